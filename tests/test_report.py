import io
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import rich.console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlagents
from rlagents.errors import UsageError
from rlagents.report import Console, JsonLines, Report, Several, TensorBoard, Wandb
from rlagents.report.jsonl import read

PROGRESS = {
    "speed/env_steps_per_second": 2000.0,
    "speed/learner_steps_per_second": 500.0,
    "train/return": -20.25,
    "train/epsilon": 0.925,
    "train/loss": 0.0123,
}
EVALUATION = {
    "evaluate/return_mean": 18.5,
    "evaluate/return_low": 17.9,
    "evaluate/return_high": 19.1,
    "evaluate/length_mean": 1700.0,
    "evaluate/distinct": 30.0,
}
PROGRESS_LINE = (
    "10,000/50,000 steps  2,000 steps/s  500 updates/s  return -20.25  epsilon 0.925  loss 0.0123  "
    "ETA 0:00:20"
)
EVALUATION_LINE = "evaluated at 10,000 steps: return 18.5 [17.9, 19.1], length 1,700.0, 30 distinct"


def console(*, terminal: bool = False, width: int = 160) -> rich.console.Console:
    return rich.console.Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=width,
        color_system=None,
        legacy_windows=False,
        _environ={},
    )


def printed(screen: rich.console.Console) -> list[str]:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue().splitlines()


def test_plain_console_prints_now_and_then_and_every_evaluation():
    screen = console()
    report = Console(50_000, console=screen)
    report.note("writes to [runs]/x")
    report.write(10_000, PROGRESS)
    report.write(10_000, EVALUATION)
    for step in range(10_001, 10_100):
        report.write(step, PROGRESS)
    report.close()
    report.close()
    lines = printed(screen)
    assert lines[:3] == ["writes to [runs]/x", PROGRESS_LINE, EVALUATION_LINE]
    # Nothing in between, whatever came within the ten seconds, and the last state once at the end.
    assert [line.split()[0] for line in lines[3:]] == ["10,099/50,000"]


def test_plain_console_prints_each_write_when_none_is_too_soon():
    screen = console()
    report = Console(50_000, every=0.0, console=screen)
    report.write(10_000, {"train/epsilon": 0.5})
    report.write(20_000, {"train/return": 1.0})
    report.close()
    assert printed(screen) == [
        "10,000/50,000 steps  epsilon 0.500",
        "20,000/50,000 steps  return 1  epsilon 0.500",
    ]


def test_quiet_console_prints_one_line():
    screen = console(terminal=True)
    report = Console(50_000, quiet=True, console=screen)
    report.note("a note")
    report.write(10_000, PROGRESS)
    report.write(10_000, EVALUATION)
    report.write(10_001, PROGRESS)
    assert printed(screen) == []
    report.close()
    assert printed(screen) == [EVALUATION_LINE]

    screen = console()
    report = Console(50_000, quiet=True, console=screen)
    report.write(10_000, PROGRESS)
    report.close()
    assert printed(screen) == [PROGRESS_LINE]


LEFT = """
import sys
from rlagents.report.console import Console
report = Console(50_000, every=0.0)
report.note("one")
sys.stdin.readline()
for step in range(3):
    report.write(step, {"train/loss": 1.0})
report.close()
print("reached the end", file=sys.stderr)
"""


def test_a_run_goes_on_where_nobody_reads_its_output_any_more():
    with subprocess.Popen(
        [sys.executable, "-c", LEFT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"one\n"
        process.stdout.close()  # as `head -1` does
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stderr.read() == b"reached the end\n"
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("terminal", [False, True])
def test_output_that_cannot_be_written_stops_nothing(terminal: bool):
    full = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115  closing it fails, too
    report = Console(50_000, every=0.0, console=rich.console.Console(file=full, force_terminal=terminal))
    for _ in range(3):
        report.note("writes to run", always=True)
        report.write(10_000, PROGRESS)
        report.write(10_000, EVALUATION)
    report.close()
    with pytest.raises(OSError, match="No space left"):
        full.close()


def test_live_console_keeps_one_line_below_the_lasting_ones(tmp_path: Path):
    screen = console(terminal=True)
    report = Console(50_000, console=screen)
    report.note("a note")
    report.write(10_000, PROGRESS)
    report.write(10_000, EVALUATION)
    report.video(10_000, tmp_path / "a.mp4")
    report.write(50_000, PROGRESS)
    report.close()
    text = "\n".join(printed(screen))
    assert (
        text.index("a note") < text.index(PROGRESS_LINE) < text.index(EVALUATION_LINE) < text.index("a.mp4")
    )
    assert "━" in text  # the bar
    assert "\x1b[2K" in text  # the live line is wiped, not repeated
    # The last thing on the screen is the final state, with no time to go; then the cursor is shown again.
    tail = text[text.rindex("50,000/50,000") :]
    assert "ETA" not in tail
    assert tail.rstrip().endswith("\x1b[?25h")


def test_live_console_loses_nothing_on_a_narrow_terminal():
    screen = console(terminal=True, width=80)
    report = Console(50_000, console=screen)
    report.write(10_000, PROGRESS)
    report.close()
    # The bar and the escape codes aside, the last words on the screen are the whole line, in two rows.
    words = [word for line in printed(screen) for word in line.split() if word in PROGRESS_LINE]
    assert words[-len(PROGRESS_LINE.split()) :] == PROGRESS_LINE.split()


def test_json_lines_come_back(tmp_path: Path):
    path = tmp_path / "run" / "metrics.jsonl"
    report = JsonLines(path)
    report.write(1, {"train/loss": 0.5})
    assert read(path) == [{"step": 1, "train/loss": 0.5}]  # flushed, while still open
    report.write(2, {"train/loss": math.nan, "train/return": math.inf})
    report.close()
    report.close()
    strict = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert strict[1] == {"step": 2, "train/loss": None, "train/return": None}


def test_json_lines_mend_a_torn_line_and_go_back_to_the_resumed_step(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps({"step": step, "x": step / 2}) + "\n" for step in (10, 20, 30))
    for torn in ('{"step": 40, "x"', '{"step": 40, "x": 20.0}', "\0\0\0"):
        path.write_text(whole + torn)
        assert [row["step"] for row in read(path)] == [10, 20, 30]
        report = JsonLines(path)
        report.write(50, {"x": 1.0})
        report.close()
        assert path.read_text() == whole + '{"step": 50, "x": 1.0}\n'

    report = JsonLines(path, resume=20)
    report.write(25, {"x": 2.0})
    report.close()
    assert [row["step"] for row in read(path)] == [10, 20, 25]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_events_come_back(tmp_path: Path):
    report = TensorBoard(tmp_path)
    for step in (100, 200, 300):
        report.write(step, {"train/return": step / 10, "evaluate/return_mean": 1.5})
    report.close()
    report = TensorBoard(tmp_path, resume=200)
    report.write(250, {"train/return": 7.0})
    report.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"train/return", "evaluate/return_mean"}
    assert [(e.step, e.value) for e in events.Scalars("train/return")] == [
        (100, 10.0),
        (200, 20.0),
        (250, 7.0),
    ]


WANDB = """
import sys
from pathlib import Path
from rlagents.report import Wandb
from rlagents.video import Frame, Painter, Video
import numpy as np

folder = Path(sys.argv[1])
with Video(folder / "videos" / "a.mp4", Painter("test"), 10) as video:
    video(Frame(np.zeros((40, 40, 3), np.uint8), np.zeros(2, np.float32), 0, 0.0, 0, 0))
config = {"agent": {"kind": "dqn", "discount": 0.97}}
report = Wandb(folder, mode="offline", config=config, name="pong-dqn-1", run_id="abc123")
report.write(100, {"train/return": -20.5, "train/loss": 0.25})
report.write(200, {"evaluate/return_mean": 18.5})
report.video(200, folder / "videos" / "a.mp4")
report.close()
report.close()
"""


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yields the records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    assert data[:4] == b":W&B"
    position, record = 7, b""
    while position + 7 <= len(data):
        if 32_768 - position % 32_768 < 7:  # no header crosses a block's end
            position += 32_768 - position % 32_768
        _, length, part = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if part in (1, 4):  # a whole record, or its last part
            yield record
            record = b""


def test_wandb_offline_leaves_a_real_run_on_disk(tmp_path: Path):
    from wandb.proto import wandb_internal_pb2

    # In a process of its own: W&B starts a service that outlives the run.
    environment = {**os.environ, "WANDB_DISABLE_SENTRY": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", WANDB, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # the terminal is the live line's
    (folder,) = (tmp_path / "wandb").glob("offline-run-*-abc123")
    logged: dict[str, str] = {}
    config: dict[str, str] = {}
    for data in wandb_records((folder / "run-abc123.wandb").read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            logged[item.key or "/".join(item.nested_key)] = item.value_json
        for item in record.run.config.update:
            config[item.key] = item.value_json
        if record.HasField("run"):
            assert (record.run.project, record.run.display_name) == ("rlagents", "pong-dqn-1")
    assert json.loads(config["agent"]) == {"kind": "dqn", "discount": 0.97}
    assert (logged["train/return"], logged["train/loss"]) == ("-20.5", "0.25")
    assert logged["evaluate/return_mean"] == "18.5"
    (copy,) = (folder / "files" / "media").rglob("*.mp4")
    assert copy.read_bytes() == (tmp_path / "videos" / "a.mp4").read_bytes()


def test_missing_wandb_names_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r'^wandb .* pip install "rlagents\[wandb\]"$'):
        Wandb(tmp_path, mode="offline", config={}, name="x", run_id="y")
    with pytest.raises(UsageError, match="wandb is not installed"):
        rlagents.train("gridworld-q-learning", out=tmp_path / "run", wandb="offline")
    assert not (tmp_path / "run").exists()


def test_reports_are_imported_without_what_they_write_to():
    code = (
        "import sys, rlagents.report; print({'wandb', 'tensorboard', 'torch', 'pygame'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_several_pass_everything_on_and_close_all(tmp_path: Path):
    class Failing(JsonLines):
        def close(self) -> None:
            super().close()
            raise OSError("disk full")

    screen = console()
    first, second = JsonLines(tmp_path / "a.jsonl"), Failing(tmp_path / "b.jsonl")
    report: Report = Several([first, second, Console(10, console=screen)])
    report.write(5, {"train/loss": 1.0})
    report.video(5, tmp_path / "a.mp4")
    with pytest.raises(OSError, match="disk full"):
        report.close()
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "b.jsonl") == [{"step": 5, "train/loss": 1.0}]
    assert printed(screen) == ["5/10 steps  loss 1", f"video at 5 steps: {tmp_path / 'a.mp4'}"]
    with pytest.raises(ValueError, match="closed"):
        first.write(6, {})

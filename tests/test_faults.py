"""Disks that fail and files that lie: the checkpoint before stays, and nothing is believed unchecked."""

import errno
import hashlib
import json
import os
import random
import resource
import sys
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rlagents
from playing import Thing
from rlagents import toml, training
from rlagents.checkpoint import Checkpoints
from rlagents.errors import RunError, UsageError
from rlagents.replay import Ring, Uniform
from rlagents.report import jsonl
from rlagents.types import Step
from rlagents_envs.vector import Leaf

GRID = {
    "run": {"env_steps": 300, "evaluate_every": 100, "evaluate_episodes": 2, "checkpoint_every": 30},
    "env": {"kind": "gridworld", "count": 2},
    "agent": {"kind": "q_learning", "discount": 0.9},
}
# What changes a file or a folder, as Python's audit hooks tell it.
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


class Disk:
    """Fails below one folder, from the operation of some number on or at it alone, with one error."""

    def __init__(self):
        self.folder = None
        sys.addaudithook(self._heard)  # for ever: there is no way to take it back

    @contextmanager
    def failing(self, folder, number, code, *, always):
        self.folder, self.number, self.code, self.always, self.count = str(folder), number, code, always, 0
        try:
            yield self
        finally:
            self.folder = None

    def _heard(self, event, arguments):
        if self.folder is None or not (event in WRITES or event == "open"):
            return
        if event == "open" and not (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        if str(arguments[0]).startswith(self.folder):
            self.happened()

    def happened(self):
        self.count += 1
        if self.count == self.number or (self.always and self.count > self.number):
            raise OSError(self.code, os.strerror(self.code))


DISK = Disk()
LATER = {"step": 2, "weight": torch.ones(3)}


def ring():
    return Ring(
        Leaf("vector", (3,), "float32"),
        2,
        environments=2,
        capacity=24,
        n_step=1,
        discount=0.9,
        sampler=Uniform(24, torch.Generator().manual_seed(0)),
        device=torch.device("cpu"),
    )


def fill(replay, count):
    no, ones = np.zeros(2, bool), np.ones(2, np.float32)
    for _ in range(count):
        obs = torch.full((2, 3), float(replay.time))
        replay.add(Step(obs, no.astype(int), ones, no, no, obs, no, no), ones)


CODES = [errno.ENOSPC, errno.EIO, errno.EROFS]
FAULTS = [
    (code, always, background) for code in CODES for always in (True, False) for background in (True, False)
]


@pytest.mark.parametrize(
    ("code", "always", "background"),
    [
        pytest.param(*fault, marks=[pytest.mark.slow] if number % 5 else [])
        for number, fault in enumerate(FAULTS)
    ],
)
def test_whatever_write_fails_the_checkpoint_before_it_loads(code, always, background, tmp_path, monkeypatch):
    sync = os.fsync

    def heard(descriptor):
        if DISK.folder is not None:
            DISK.happened()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", heard)
    number = failures = 0
    while True:
        number += 1
        run = tmp_path / str(number)
        checkpoints, replay = Checkpoints(run, keep=1), ring()
        fill(replay, 5)
        checkpoints.save(1, replay, thing=Thing({"step": 1, "weight": torch.ones(3)}))
        fill(replay, 5)
        error = None
        with DISK.failing(run, number, code, always=always):
            try:
                checkpoints.save(2, replay, background=background, thing=Thing(LATER))
                checkpoints.wait()
            except OSError as caught:
                error = caught
            reached = DISK.count >= number
        if error is not None:
            assert error.errno == code
            failures += 1
        copy, thing = ring(), Thing()
        saved = Checkpoints(run, keep=1).newest(copy)
        saved.restore(thing=thing)
        assert thing.state["step"] == saved.step
        assert copy.time == 5 * saved.step
        fill(replay, 5)
        checkpoints.save(3, replay, thing=Thing({"step": 3, "weight": torch.ones(3)}))  # once there is room
        copy = ring()
        assert Checkpoints(run, keep=1).newest(copy).step == 3
        assert torch.equal(copy._frames[""], replay._frames[""])
        assert [file.name for file in (run / "checkpoints").iterdir()] == ["000000000003"]
        if not reached:
            break
    assert number > 15
    assert failures > 12


# A thread of TensorBoard's ends with the error too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_for_a_while_stops_no_run_and_changes_no_result(tmp_path, capsys):
    """The limit on the size of a file is the system's own: what would make one larger fails, in mid-write."""
    whole = rlagents.train(GRID, out=tmp_path / "whole", quiet=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write, count = jsonl.JsonLines.write, []

    def limited(self, step, values):
        count.append(1)
        if len(count) == 60:
            size = (tmp_path / "run" / "metrics.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, before[1]))
        if len(count) == 160:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        write(self, step, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl.JsonLines, "write", limited)
        try:
            rlagents.train(GRID, out=tmp_path / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no checkpoint at")]
    assert told
    assert all("File too large; the one before it stays" in line for line in told)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    mine, theirs = (Checkpoints(run).find() for run in (tmp_path / "run", whole))
    assert mine.manifest["files"] == theirs.manifest["files"]


def test_a_run_whose_last_checkpoint_does_not_fit_says_so_and_can_be_ended_later(tmp_path, monkeypatch):
    whole = rlagents.train(GRID, out=tmp_path / "whole", quiet=True)
    run = tmp_path / "run"
    save = Checkpoints.save

    def full(self, step, *arguments, **options):
        if step > 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, step, *arguments, **options)

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(
        RunError, match=f"could not be written; make room, then: rlagents train --resume {run}"
    ):
        rlagents.train(GRID, out=run, quiet=True)
    monkeypatch.undo()
    rlagents.train(resume=run, quiet=True)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_the_best_is_one_that_could_be_written(tmp_path, monkeypatch):
    """The second evaluation is the best one, and its checkpoint cannot be written."""
    scores, failed, save = iter([1.0, 2.0, 1.5]), [], Checkpoints.save
    play = training.recorded

    def scored(*arguments, **options):
        return replace(play(*arguments, **options), returns=(next(scores),))

    def full(self, step, *arguments, best=False, **options):
        if best and step > 200 and not failed:
            failed.append(step)
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, step, *arguments, best=best, **options)

    monkeypatch.setattr(training, "recorded", scored)
    monkeypatch.setattr(Checkpoints, "save", full)
    table = {**GRID, "run": {**GRID["run"], "env_steps": 600, "evaluate_every": 200}}
    run = rlagents.train(table, out=tmp_path / "run", quiet=True)
    assert failed == [400]
    assert Checkpoints(run).find("best").step == 600


@pytest.fixture
def small(tmp_path):
    """A folder with one small checkpoint and its rows."""
    replay = ring()
    fill(replay, 3)
    Checkpoints(tmp_path / "run").save(7, replay, thing=Thing({"weights": {"w": torch.arange(3.0)}, "n": 7}))
    return tmp_path / "run"


def everything(run):
    """Returns what a run's checkpoint holds."""
    replay, thing = ring(), Thing()
    saved = Checkpoints(run).newest(replay)
    saved.restore(thing=thing)
    parts = {**replay.window(0, replay.time), "w": thing.state["weights"]["w"]}
    return saved.step, thing.state["n"], {name: part.tolist() for name, part in parts.items()}


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_every_byte_flipped_and_every_length_is_detected(every, small):
    good = everything(small)
    files = [file for file in small.rglob("*") if file.is_file()]
    assert len(files) == 5
    for file in files:
        content = file.read_bytes()
        flips = (1 << place % 8 for place in range(len(content)))
        damaged = [content[:length] for length in range(len(content))]
        damaged += [content[:i] + bytes([content[i] ^ bit]) + content[i + 1 :] for i, bit in enumerate(flips)]
        for bad in damaged[::every]:
            file.write_bytes(bad)
            with pytest.raises(RunError, match="is damaged"):
                everything(small)
        file.write_bytes(content)
    assert everything(small) == good


def mutated(content, draw):
    """Returns bytes with some of them changed, cut out, doubled, or replaced by what is known to hurt."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(content) + 1)
        stop = min(len(content), start + draw.choice((0, 1, 1, 4, 20)))
        hurtful = (
            b"",
            b"\x00",
            b"../",
            b"-1",
            b"1e999",
            b"9" * 40,
            b"[" * 500,
            b"null",
            b'"',
            b"{}",
            b"\xff\xfe",
        )
        piece = draw.choice((bytes([draw.randrange(256)]), content[start:stop] * 2, draw.choice(hurtful)))
        content[start:stop] = piece
    return bytes(content)


def sealed(folder, manifest):
    """Writes a manifest as somebody would who knows how to."""
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "manifest.sha256").write_text(hashlib.sha256(manifest).hexdigest())


def fuzz_manifests(small, rounds):
    draw, folder = random.Random(0), small / "checkpoints" / "000000000007"
    content = (folder / "manifest.json").read_bytes()
    good, refused = everything(small), 0
    for _ in range(rounds):
        sealed(folder, mutated(content, draw))
        try:
            assert everything(small)[1:] == good[1:]
        except RunError:
            refused += 1
    return refused


def fuzz_tensors(small, rounds):
    """Changes tensors, and the manifest so that size and checksum are theirs."""
    draw, folder = random.Random(0), small / "checkpoints" / "000000000007"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (entry,) = manifest["replay"]
    places = [(folder / name, expected) for name, expected in manifest["files"].items()]
    places.append((small / "replay" / entry["file"], entry))
    refused = 0
    for _ in range(rounds):
        file, expected = draw.choice(places)
        content, known = file.read_bytes(), dict(expected)
        head = draw.choice((len(content), min(300, len(content))))
        bad = mutated(content[:head], draw) + content[head:]
        file.write_bytes(bad)
        expected |= {"size": len(bad), "sha256": hashlib.sha256(bad).hexdigest()}
        sealed(folder, json.dumps(manifest).encode())
        try:
            everything(small)
        except RunError:
            refused += 1
        except (KeyError, TypeError, AttributeError):  # of what the test's own thing takes unseen
            assert file.name in ("state.json", "thing.weights.safetensors")
        file.write_bytes(content)
        expected.clear()
        expected |= known
    return refused


def fuzz_configurations(tmp_path, rounds):
    draw, refused = random.Random(0), 0
    content = toml.dump(toml.load(GRID)).encode()
    for number in range(rounds):
        file = tmp_path / "mine.toml"
        file.write_bytes(mutated(content, draw) if number % 50 else b"a = " + b"[" * 100_000)
        try:
            toml.load(file)
        except UsageError:
            refused += 1
    return refused


@pytest.mark.parametrize("rounds", [300, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fuzz", [fuzz_manifests, fuzz_tensors], ids=lambda f: f.__name__)
def test_a_strangers_checkpoint_is_refused_in_one_line_or_loads(fuzz, rounds, small, tmp_path):
    (tmp_path / "mine").write_text("keep")
    tracemalloc.start()
    refused = fuzz(small, rounds)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rounds / 2 < refused <= rounds
    assert peak < 50e6
    assert {file.name for file in tmp_path.iterdir()} == {"mine", "run"}
    assert (tmp_path / "mine").read_text() == "keep"


@pytest.mark.parametrize("rounds", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_strangers_configuration_is_refused_in_lines_or_loads(rounds, tmp_path):
    assert rounds / 2 < fuzz_configurations(tmp_path, rounds) <= rounds


@pytest.mark.parametrize("what", ["weights", "rows", "compressed"])
def test_a_file_that_asks_for_more_memory_than_there_is_is_not_read(what, small):
    folder = small / "checkpoints" / "000000000007"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (entry,) = manifest["replay"]
    size = 1 << 50
    if what == "compressed":
        rows = small / "replay" / entry["file"]
        rows.rename(rows.with_name("rows.zlib"))
        entry |= {"file": "rows.zlib", "bytes": size}
    else:
        name = "thing.weights.safetensors" if what == "weights" else entry["file"]
        file = folder / name if what == "weights" else small / "replay" / name
        with file.open("r+b") as stream:
            stream.truncate(1 << 43)  # takes no room on the disk
        size = 1 << 43
        (manifest["files"][name] if what == "weights" else entry)["size"] = size
    sealed(folder, json.dumps(manifest).encode())
    with pytest.raises(RunError, match=rf"takes {size} bytes of memory, and \d+ are free"):
        everything(small)


@pytest.mark.parametrize("count", [60, pytest.param(2_000, marks=pytest.mark.slow)])
def test_what_is_written_and_removed_stays_bounded(count, tmp_path):
    """A soak in miniature: neither files nor descriptors become more."""
    run, replay = tmp_path / "run", ring()
    checkpoints = Checkpoints(run)
    seen = []
    for step in range(count):
        fill(replay, 2)
        checkpoints.save(step, replay, background=True, best=step == 5, thing=Thing({"w": torch.ones(3)}))
        if step % 10 == 9:
            checkpoints.wait()
            copy = ring()
            checkpoints = Checkpoints(run)
            assert checkpoints.newest(copy).step == step
            assert torch.equal(copy._frames[""], replay._frames[""])
            descriptors = Path("/proc/self/fd")
            seen.append((len(list(run.rglob("*"))), len(list(descriptors.iterdir()))))
    for counts in zip(*seen[3:], strict=True):
        assert max(counts) == counts[0]

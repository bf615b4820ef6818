"""`rlagents bench peers`: the same experiment through rlagents and through the DQNs of others, in turn.

The one idea: every piece is a process of its own, so that neither threads nor settings nor memory of one side
reach the other; what a process took at its peak is what the system says of it when it has ended.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from rlagents import building, machine
from rlagents.bench import lasting
from rlagents.errors import RunError, UsageError
from rlagents.peers import OURS, SB3, TIANSHOU, Peer, sb3, tianshou
from rlagents.timing import Plan, Report, Row, progress

_SPEED, _TIME = "env steps/s", "s to the score"
_FILE = "piece.json"
_EVALUATED = re.compile(r"evaluated at ([\d,]+) steps: return (\S+)")  # what both sides print


def compare(plan: Plan, *, precisions: Sequence[str], score: float | None = None) -> Report:
    """Runs both sides in turn; every round has a seed of its own.

    Args:
        plan: what to run; a piece lasts `plan.seconds`, or until the score.
        precisions: those of rlagents; the others compute in float32.
        score: the mean return of a greedy evaluation at which a training ends; None: time the loops alone.

    Raises:
        UsageError: SB3 is not installed or cannot do what the experiment says.
        RunError: a process failed.
    """
    experiment = lasting(plan) if score is None else plan.experiment()
    sb3.require(experiment)
    peers, notes = {SB3.name: SB3}, dict[str, str]()
    try:
        tianshou.require(experiment)
        peers[TIANSHOU.name] = TIANSHOU
    except UsageError as error:  # it takes less than SB3 does
        notes = {"without": f"without {TIANSHOU.name}: {'; '.join(str(error).splitlines())}"}
    sides: dict[str, str | Peer] = {f"{OURS} {precision}": precision for precision in precisions} | peers
    known = machine.describe(building.choose_device(experiment.run.device))
    pieces: dict[str, list[dict[str, float]]] = {side: [] for side in sides}  # what each took, by unit
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(plan.repeat):
            seed = f"run.seed={experiment.run.seed + number}"
            for side, runner in sides.items():
                progress(f"{number + 1} of {plan.repeat}: {side}")
                if score is not None:
                    pieces[side].append(_process(_training(plan, seed, runner, folder), score))
                    continue
                found = _process(_timing(plan, seed, runner, folder))
                content = json.loads((folder / _FILE).read_text("utf-8"))
                pieces[side].append(found | {row["unit"]: row["median"] for row in content["rows"]})
                if isinstance(runner, Peer):
                    threads = f"PyTorch threads: {content['machine']['torch_threads']}"
                    notes[side] = ", ".join([side, threads, *content["notes"]])
                else:
                    known = content["machine"]
    progress("")
    rows = [
        Row(side, unit, tuple(piece[unit] for piece in found if unit in piece))
        for side, found in pieces.items()
        for unit in dict.fromkeys(unit for piece in found for unit in piece)
    ]
    for peer, side in product(peers, [*sides][: len(precisions)]):
        pairs = list(zip(pieces[side], pieces[peer], strict=True))
        if score is None:
            rows.append(Row(f"{side} / {peer}", "×", tuple(a[_SPEED] / b[_SPEED] for a, b in pairs)))
        elif times := tuple(b[_TIME] / a[_TIME] for a, b in pairs if _TIME in a and _TIME in b):
            rows.append(Row(f"{peer} / {side}, time", "×", times))
    if score is not None:
        plan = replace(plan, seconds=0)
        for side, found in pieces.items():
            notes[side] = (
                f"{side} came to {score:g} in {sum(_TIME in piece for piece in found)} of {len(found)}"
            )
    versions = machine.versions(*(peer.package for peer in peers.values()))
    return Report("bench peers", plan, experiment, known, versions, rows, list(notes.values()))


def _timing(plan: Plan, seed: str, runner: str | Peer, folder: Path) -> tuple[str, ...]:
    """Returns the module and arguments that time one piece of one side: a peer, or ours in a precision."""
    settings = (str(plan.file), *plan.settings, seed)
    options = ("--repeat", "1", "--seconds", str(plan.seconds), "--json", str(folder / _FILE))
    if isinstance(runner, Peer):
        return (runner.module, *settings, *options)
    return ("rlagents", "bench", "train", *settings, "--precision", runner, *options)


def _training(plan: Plan, seed: str, runner: str | Peer, folder: Path) -> tuple[str, ...]:
    """Returns the module and arguments that train one side, and print each evaluation."""
    settings = (str(plan.file), *plan.settings, seed)
    if isinstance(runner, Peer):
        return (runner.module, *settings, "--train")
    own = (f"agent.precision={runner}", "run.video=false")
    return ("rlagents", "train", *settings, *own, "--out", str(folder / f"{runner}-{seed}"))


def _process(arguments: Sequence[str], score: float | None = None) -> dict[str, float]:
    """Runs `python -m` to its end, or to an evaluation that reaches the score; returns what it took, by unit.

    Raises:
        RunError: it failed.
    """
    found: dict[str, float] = {}
    last, start = "", time.perf_counter()
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout or ():
                last = line.strip() or last
                done = _EVALUATED.match(line)
                if score is not None and done and float(done[2]) >= score and not found:
                    steps = float(done[1].replace(",", ""))
                    found = {_TIME: time.perf_counter() - start, "env steps to the score": steps}
                    process.terminate()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
    if process.returncode and not found:
        raise RunError(f"{' '.join(arguments[:2])} failed: {last}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {**found, "MB at the peak": used.ru_maxrss * unit / 1e6}

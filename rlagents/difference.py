"""Where two runs part: the first env step at which what they wrote differs, and in what.

Runs of one seed are the same to the last bit where everything is deterministic; this finds what is not.
"""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlagents import runs
from rlagents.checkpoint import Checkpoints
from rlagents.errors import RunError
from rlagents.report import jsonl


class Difference(NamedTuple):
    """What differs, at the first env step at which anything does."""

    step: int
    what: str


def first(one: Path, other: Path) -> Difference | None:
    """Returns where two runs part, in metrics or in the checkpoints that both have; None if nowhere.

    Raises:
        RunError: one of them is no run, or a checkpoint is damaged.
    """
    for run in (one, other):
        runs.read(run)
        if not (run / "metrics.jsonl").is_file():
            raise RunError(f"{run} has no metrics.jsonl: it has not begun")
    return min([*_metrics(one, other), *_checkpoints(one, other)], default=None)


def _metrics(one: Path, other: Path) -> Iterator[Difference]:
    pair = (jsonl.read(run / "metrics.jsonl") for run in (one, other))
    for number, (mine, theirs) in enumerate(zip_longest(*pair), start=1):
        if mine is None or theirs is None:
            (longer,) = filter(None, (mine, theirs))
            yield Difference(longer["step"], f"{one if mine is None else other} ends before it")
            return
        if mine != theirs:
            step = min(mine["step"], theirs["step"])
            yield Difference(step, f"metrics.jsonl, line {number}: {_entry(mine, theirs)}")
            return


def _checkpoints(one: Path, other: Path) -> Iterator[Difference]:
    mine, theirs = Checkpoints(one), Checkpoints(other)
    for step in sorted(set(mine.steps()) & set(theirs.steps())):
        pair = (mine.find(step).state(), theirs.find(step).state())
        if found := _entry(*pair):
            yield Difference(step, f"checkpoint: {found}")
            return


def _entry(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Returns the first entry that differs with both values; empty if none does."""
    for name in {**mine, **theirs}:
        here, there = mine.get(name, "nothing"), theirs.get(name, "nothing")
        if isinstance(here, Tensor) and isinstance(there, Tensor):
            if here.shape != there.shape or here.dtype != there.dtype:
                return f"{name} {_kind(here)} | {_kind(there)}"
            unlike = (here != there) & ~((here != here) & (there != there))  # NaN is like NaN
            if unlike.any():
                place = torch.nonzero(unlike)[0]
                values = (value[tuple(place)].item() for value in (here, there))
                return f"{name}{place.tolist()} {' | '.join(map(str, values))}"
        elif type(here) is not type(there) or here != there:
            shown = (_kind(value) if isinstance(value, Tensor) else value for value in (here, there))
            return f"{name} {' | '.join(map(str, shown))}"
    return ""


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"

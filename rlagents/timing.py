"""How benchmarks are timed, and how they are reported: medians with their range, and what they depend on.

The one idea: what is to be compared is timed piece by piece in turn, in one run, because the speed of a
machine drifts from minute to minute; a ratio is one of neighbouring pieces.
"""

import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rlagents import disk, experiments, machine
from rlagents.config import Experiment


@dataclass(frozen=True)
class Plan:
    """What is measured, how often and how long."""

    file: Path  # the experiment's
    settings: Sequence[str] = ()  # KEY=VALUE
    repeat: int = 5  # pieces of each thing
    seconds: float = 2.0  # of one piece; 0: as long as it takes

    def experiment(self, *defaults: str) -> Experiment:
        """Returns the experiment with `defaults` applied, and the settings, which win over them."""
        return experiments.load(self.file, [*defaults, *self.settings])


@dataclass(frozen=True)
class Row:
    """One measured thing, with the sample of every piece."""

    name: str
    unit: str
    samples: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, ready for JSON."""
        low, median, high = min(self.samples), statistics.median(self.samples), max(self.samples)
        known = {"name": self.name, "unit": self.unit, "median": median, "min": low, "max": high}
        return {**known, "samples": list(self.samples)}


@dataclass(frozen=True)
class Thing:
    """Something to time: without end, what one tick after the other does.

    A tick yields a count for each unit and becomes a rate; where the unit is µs, it becomes the time of one.
    """

    name: str
    units: tuple[str, ...]
    ticks: Iterator[tuple[int, ...]]

    def time(self, seconds: float, device: torch.device) -> tuple[float, ...]:
        """Returns the rates over some seconds, one tick at least."""
        done: list[tuple[int, ...]] = []
        _wait(device)
        start = time.perf_counter()
        for tick in self.ticks:
            done.append(tick)
            if time.perf_counter() - start >= seconds:
                break
        _wait(device)
        passed = time.perf_counter() - start
        totals = (sum(counts) for counts in zip(*done, strict=True))
        pairs = zip(self.units, totals, strict=True)
        return tuple(1e6 * passed / total if unit == "µs" else total / passed for unit, total in pairs)


def measure(things: Sequence[Thing], plan: Plan, device: torch.device) -> list[Row]:
    """Times all things in turn, after a shorter piece of each that does not count."""
    for thing in things:
        thing.time(plan.seconds / 4, device)
    pieces: list[list[tuple[float, ...]]] = [[] for _ in things]
    for number in range(plan.repeat):
        progress(f"{number + 1} of {plan.repeat}")
        for thing, found in zip(things, pieces, strict=True):
            found.append(thing.time(plan.seconds, device))
    progress("")
    return [
        Row(thing.name, unit, samples)
        for thing, found in zip(things, pieces, strict=True)
        for unit, samples in zip(thing.units, zip(*found, strict=True), strict=True)
    ]


def ratio(name: str, above: Row, below: Row) -> Row:
    """Returns the ratios of two rows, piece by piece."""
    return Row(name, "×", tuple(a / b for a, b in zip(above.samples, below.samples, strict=True)))


def progress(text: str) -> None:
    """Says on a terminal what is under way, in a line that the next one takes the place of."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


@dataclass(frozen=True)
class Report:
    """What was measured, and all that it depends on."""

    command: str
    plan: Plan
    experiment: Experiment
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, ready for JSON."""
        return {
            "command": self.command,
            "repeat": self.plan.repeat,
            "seconds": self.plan.seconds,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "notes": list(self.notes),
            "rows": [row.as_dict() for row in self.rows],
            "experiment": self.experiment.model_dump(mode="json"),
        }

    def write(self, file: Path) -> None:
        """Writes everything as JSON; a RunError where that cannot be."""
        disk.write_json(file, self.as_dict())

    def show(self) -> None:
        """Prints medians and ranges, under what they depend on."""
        seconds = self.plan.seconds
        about = [
            ("machine", machine.line(self.machine)),
            ("versions", ", ".join(f"{name} {version}" for name, version in self.versions.items())),
            ("experiment", " ".join([self.experiment.run.name, *self.plan.settings])),
            ("measured", f"in turn, {self.plan.repeat} times each{f' for {seconds:g} s' if seconds else ''}"),
            *(("note", note) for note in self.notes),
        ]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(self.command)
        table.add_column("median", justify="right", no_wrap=True)
        table.add_column("range", justify="right", no_wrap=True)
        table.add_column("unit")
        for row in self.rows:
            low, high = _number(min(row.samples)), _number(max(row.samples))
            span = f"{low} – {high}" if len(row.samples) > 1 else ""
            table.add_row(row.name, _number(statistics.median(row.samples)), span, row.unit)
        console = Console(highlight=False)
        for name, text in about:
            console.print(f"{name:10}  {text}", markup=False, soft_wrap=True)
        console.print(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _wait(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

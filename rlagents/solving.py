"""What `rlagents solve` shows: the exact values of an environment whose model is known, and its best actions.

On a grid that is a heat map of the values with an arrow for each best action: on the terminal, or a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich.box
import rich.console
from rich.table import Table
from rich.text import Text

import rlagents_envs
from rlagents import experiments, planning, runs, tables, toml
from rlagents.config import Experiment
from rlagents.errors import RunError, UsageError
from rlagents_envs.model import Model, Values

_COLOURS = ((46, 43, 98), (38, 130, 142), (248, 222, 90))  # of the lowest, the middle and the highest value
_BLANK = (58, 61, 68)  # where no episode goes on
_DARK, _LIGHT = (24, 24, 28), (240, 240, 240)


@dataclass(frozen=True)
class Solution:
    """An environment and its Q*."""

    title: str
    model: Model
    discount: float
    q: Values  # [S, A]
    sweeps: int  # of value iteration

    @property
    def value(self) -> Values:
        """V* [S]; NaN where no episode goes on."""
        here = self.model.choices.any(1) & self.model.reachable
        return np.where(here, self.model.values(self.q), np.nan)

    def summary(self) -> dict[str, str]:
        """Returns what there is to say in a line each, by name."""
        model = self.model
        states, actions, outcomes = model.successor.shape
        value = model.at_start(model.values(self.q))
        rows = {
            "environment": f"{self.title}: {states} states, {actions} actions, up to {outcomes} outcomes",
            "start": f"worth {value:.5f} at discount {self.discount:g}, after {self.sweeps} sweeps",
        }
        if limit := model.time_limit:
            policy = planning.greedy(model, self.q)
            best, follows = (model.at_start(planning.within(model, limit, each)) for each in (None, policy))
            rows["limit"] = (
                f"return of {limit} steps, undiscounted: at most {best:.4f}, {follows:.4f} with these actions"
            )
        return rows

    def show(self, console: rich.console.Console) -> None:
        """Prints the heat map of a grid, then V and Q."""
        if self.model.shape:
            rows, columns = self.model.shape
            table = Table(box=rich.box.SQUARE, show_header=False, show_lines=True, padding=0)
            cells = [Text(*cell, justify="center") for cell in self._cells()]
            for row in range(rows):
                table.add_row(*cells[row * columns : (row + 1) * columns])
            console.print(table)
        console.print(tables.text(self.model, self.q), highlight=False, soft_wrap=True)

    def _cells(self) -> list[tuple[str, str]]:
        """Returns text and style of each cell."""
        ways, best = tables.directions(self.model), planning.best_actions(self.model, self.q)
        cells: list[tuple[str, str]] = []
        for value, shade, chosen in zip(self.value, self._shades(), best, strict=True):
            if np.isnan(value):
                cells.append((" ", "default"))
                continue
            signs = (
                str(a) if (way := ways[a]) is None else tables.ARROWS[way] for a in np.flatnonzero(chosen)
            )
            style = "rgb({},{},{}) on rgb({},{},{})".format(*_ink(shade), *shade)
            cells.append((f" {''.join(signs):4} \n {value:.3g} ", style))
        return cells

    def _shades(self) -> list[tuple[int, int, int]]:
        """Returns the colour of each state's value."""
        value = self.value
        low, high = np.nanmin(value), np.nanmax(value)
        part = np.nan_to_num((value - low) / ((high - low) or 1.0))
        shades = [np.interp(part, (0, 0.5, 1), channel) for channel in zip(*_COLOURS, strict=True)]
        red, green, blue = (np.round(shade).astype(int).tolist() for shade in shades)
        return list(zip(red, green, blue, strict=True))

    def draw(self, file: Path) -> None:
        """Writes the heat map with an arrow for each best action as PNG.

        Raises:
            UsageError: the states are no grid.
            RunError: the file cannot be written.
        """
        from PIL import Image, ImageDraw, ImageFont

        if self.model.shape is None:
            raise UsageError(f"--picture needs states that are cells of a grid, got {self.title}")
        rows, columns = self.model.shape
        size = max(40, min(120, 1200 // columns))
        image = Image.new("RGB", (columns * size, rows * size), _BLANK)
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(size / 6)
        ways, best = tables.directions(self.model), planning.best_actions(self.model, self.q)
        for state, (value, shade) in enumerate(zip(self.value, self._shades(), strict=True)):
            if np.isnan(value):
                continue
            top, left = (place * size for place in divmod(state, columns))
            draw.rectangle((left + 1, top + 1, left + size - 2, top + size - 2), fill=shade)
            x, y, ink = left + size / 2, top + size * 0.42, _ink(shade)
            for action in np.flatnonzero(best[state]):
                if (way := ways[action]) is not None:
                    _arrow(draw, (x, y), way, size * 0.3, ink)
            draw.text((x, top + size * 0.88), f"{value:.3g}", ink, font, anchor="mm")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file, "PNG")
        except OSError as error:
            raise RunError(f"cannot write {file}: {error}") from error


def solve(environment: str, settings: Sequence[str] = (), *, trust: bool = False) -> Solution:
    """Solves an environment by value iteration.

    Args:
        environment: an experiment's name or file, a kind of environment, or a Gymnasium id.
        settings: as "env.kwargs.is_slippery=false" or "agent.discount=0.9".
        trust: import what a run that was not made here names.

    Raises:
        UsageError: there is no such environment, no model of it, or no bound of its values.
        RunError: it is of a run that must be trusted first.
    """
    experiment = described(environment, settings, trust=trust)
    try:
        model = rlagents_envs.model_of(experiment.env)
        q, sweeps = planning.value_iteration(model, experiment.agent.discount)
    except ValueError as error:
        raise UsageError(str(error)) from error
    title = getattr(experiment.env, "id", experiment.env.kind)
    return Solution(title, model, experiment.agent.discount, q, sweeps)


def described(environment: str, settings: Sequence[str], *, trust: bool) -> Experiment:
    """Returns the experiment that `solve` takes environment and discount of; raises what it raises."""
    kinds = dict(rlagents_envs.describe())
    if environment not in kinds and (environment in experiments.names() or Path(environment).exists()):
        file = experiments.find(environment)
        runs.require_trust(file, trust=trust)
        return experiments.load(file, settings)
    env = {"kind": environment} if environment in kinds else {"kind": "gymnasium", "id": environment}
    return toml.load({"run": {"env_steps": 1}, "env": env, "agent": {"kind": "q_learning"}}, settings)


def _ink(shade: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the colour to write with on another."""
    return _DARK if sum(shade) > 380 else _LIGHT


def _arrow(
    draw: Any, centre: tuple[float, float], way: tuple[int, int], length: float, ink: tuple[int, int, int]
) -> None:
    """Draws an arrow from the centre along (row, column)."""
    (x, y), (down, right) = centre, way
    head = length / 3
    tip, neck = (
        (x + right * length, y + down * length),
        (x + right * (length - head), y + down * (length - head)),
    )
    draw.line((x, y, *neck), fill=ink, width=max(2, round(length / 8)))
    sides = [(neck[0] + turn * down * head / 2, neck[1] + turn * right * head / 2) for turn in (1, -1)]
    draw.polygon([tip, *sides], fill=ink)

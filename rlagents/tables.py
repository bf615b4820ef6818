"""A table of values for people to read, and how far it is from the exact one where the model is known."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import rlagents_envs
from rlagents.agents import AnyAgent, QLearning
from rlagents_envs.config import EnvConfig
from rlagents_envs.model import Model

_READABLE = 64  # states; more are more than anyone reads
_WIDTH = 11  # characters of a number
ARROWS = {(-1, 0): "↑", (0, 1): "→", (1, 0): "↓", (0, -1): "←"}
_WORDS = {(-1, 0): "up", (0, 1): "right", (1, 0): "down", (0, -1): "left"}


@dataclass(frozen=True)
class Distance:
    """How far a table is from Q*, over all legal actions of the states that an episode may come to."""

    largest: float
    mean: float
    start: float  # value of the start, mean over the states where episodes begin
    exact: float  # the same by Q*

    def __str__(self) -> str:
        return (
            f"largest distance from Q* {self.largest:.2g}, mean {self.mean:.2g}; "
            f"value of the start {self.start:.5g}, exactly {self.exact:.5g}"
        )


def distance(agent: AnyAgent, env: EnvConfig) -> Distance | None:
    """Returns how far an agent's table is from Q*; None where there is no table or no model."""
    if not isinstance(agent, QLearning):
        return None
    try:
        model = rlagents_envs.model_of(env)
    except ValueError:
        return None
    exact, q = model.optimal_q(agent.config.discount), agent.q.cpu().numpy()  # [S, A]
    errors = np.abs(q - exact)[model.choices & model.reachable[:, None]]
    start, best = (model.at_start(model.values(table)) for table in (q, exact))
    return Distance(float(errors.max()), float(errors.mean()), start, best)


def readable(agent: AnyAgent, env: EnvConfig) -> str | None:
    """Returns V and Q as text, if not too long, and the distance from Q*; None without table or model."""
    apart = distance(agent, env)
    if apart is None or not isinstance(agent, QLearning):
        return None
    model = rlagents_envs.model_of(env)
    if len(model.start) > _READABLE:
        return str(apart)
    return f"{text(model, agent.q.cpu().numpy())}\n{apart}"


def text(model: Model, q: NDArray[np.float64], policy: NDArray[np.float64] | None = None) -> str:
    """Returns V and Q [S, A] as text, of those states alone in which an episode may go on.

    V is that of the policy with probabilities [S, A], or of the best actions.
    """
    here = model.choices & model.reachable[:, None]
    value = np.where(here.any(1), model.values(q, policy), np.nan)  # [S]
    q = np.where(here, q, np.nan)
    columns = model.shape[1] if model.shape else 1
    lines = ["V", *("       " + _numbers(row) for row in value.reshape(-1, columns))] if model.shape else []
    lines.append("Q      " + " ".join(f"{name:>{_WIDTH}}" for name in action_names(model)))
    for state, row in enumerate(q):
        if not np.isnan(row).all():
            place = f"({state // columns + 1},{state % columns + 1})" if model.shape else f"{state}"
            lines.append(f"{place:5}  {_numbers(row)}")
    return "\n".join(lines)


def action_names(model: Model) -> list[str]:
    """Returns what actions do on a grid, such as up; their numbers elsewhere."""
    ways = directions(model)
    return [str(action) if way is None else _WORDS[way] for action, way in enumerate(ways)]


def directions(model: Model) -> list[tuple[int, int] | None]:
    """Returns where each action leads on a grid, as (row, column) of one step; None where that is nowhere.

    It is the axis along which the action moves most, on the mean over outcomes and states: slips to either
    side cancel. Leaps, such as back to the start, count as one step.
    """
    if model.shape is None:
        return [None] * model.legal.shape[1]
    columns = model.shape[1]
    here = np.arange(len(model.start))[:, None, None]
    ahead = model.successor
    steps = np.stack([ahead // columns - here // columns, ahead % columns - here % columns])  # [2, S, A, L]
    moved = (model.probability * np.clip(steps, -1, 1)).sum((1, 3))  # [2, A]
    axis = np.abs(moved).argmax(0)
    ways: list[tuple[int, int] | None] = []
    for action, along in enumerate(axis):
        sign = int(np.sign(moved[along, action])) if abs(moved[along, action]) > 1e-9 else 0
        ways.append(None if sign == 0 else (0, sign) if along else (sign, 0))
    return ways


def _numbers(row: NDArray[np.float64]) -> str:
    return " ".join(f"{v:{_WIDTH}.6f}" if np.isfinite(v) else f"{'-':>{_WIDTH}}" for v in row)

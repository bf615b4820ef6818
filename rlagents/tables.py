"""A table of values for people to read, beside the exact one where the environment's model is known."""

import numpy as np
from numpy.typing import NDArray

from rlagents.agents import DQN, QLearning
from rlagents_envs.toy import ToyEnvironments
from rlagents_envs.vector import Environments


def readable(agent: DQN | QLearning, envs: Environments) -> str | None:
    """Returns V and Q as text with the largest distance from Q*; None where there is no table or no model."""
    if not (isinstance(agent, QLearning) and isinstance(envs, ToyEnvironments)):
        return None
    rows, columns = envs.model.shape
    exact = envs.optimal_q(agent.config.discount)  # [S, A], NaN where there is nothing to choose
    q = np.where(np.isnan(exact), np.nan, agent.q.cpu().numpy())
    value = np.max(q, axis=1, initial=-np.inf, where=~np.isnan(q))  # [S]
    lines = ["V", *("       " + _numbers(row, "goal") for row in value.reshape(rows, columns))]
    lines.append("Q      " + " ".join(f"{name:>9}" for name in envs.action_names))
    lines += [
        f"({cell // columns + 1},{cell % columns + 1})  {_numbers(row, '-')}"
        for cell, row in enumerate(q)
        if not np.isnan(row).all()
    ]
    lines.append(f"largest distance from Q*: {np.nanmax(np.abs(q - exact)):.1e}")
    return "\n".join(lines)


def _numbers(row: NDArray[np.float64], missing: str) -> str:
    return " ".join(f"{v:9.6f}" if np.isfinite(v) else f"{missing:>9}" for v in row)

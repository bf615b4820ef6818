"""A table of values for people to read, beside the exact one where the environment's model is known."""

import numpy as np
from rlagents_envs.toy import ToyEnvironments
from rlagents_envs.vector import Environments

from rlagents.agents import DQN, QLearning


def readable(agent: DQN | QLearning, envs: Environments) -> str | None:
    """Returns V and Q as text with the largest distance from Q*; None where there is no table or no model."""
    if not (isinstance(agent, QLearning) and isinstance(envs, ToyEnvironments)):
        return None
    model = envs.model
    exact = envs.optimal_q(agent.config.discount)  # [S, A], NaN where there is nothing to choose
    q = np.where(np.isnan(exact), np.nan, agent.q.cpu().numpy())
    value = np.max(q, axis=1, initial=-np.inf, where=~np.isnan(q))  # [S]
    rows, columns = model.shape
    cells = [f"({i // columns + 1},{i % columns + 1})" for i in range(len(q))]
    lines = ["V"]
    for row in value.reshape(rows, columns):
        lines.append("  " + " ".join(f"{v:9.6f}" if np.isfinite(v) else f"{'goal':>9}" for v in row))
    lines.append("Q      " + " ".join(f"{name:>9}" for name in envs.action_names))
    for cell, state in zip(cells, q, strict=True):
        if not np.isnan(state).all():
            lines.append(
                f"{cell:6} " + " ".join(f"{v:9.6f}" if np.isfinite(v) else f"{'-':>9}" for v in state)
            )
    lines.append(f"largest distance from Q*: {np.nanmax(np.abs(q - exact)):.1e}")
    return "\n".join(lines)

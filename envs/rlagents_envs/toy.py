"""Gridworld and corridor: deterministic tables small enough that Q* is known in closed form."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from rlagents_envs.config import Corridor, Gridworld
from rlagents_envs.model import Model, ModelEnvironments
from rlagents_envs.vector import Bools

BACKGROUND, CELL, GOAL, AGENT = (70, 74, 82), (240, 240, 236), (126, 190, 120), (214, 98, 58)


def gridworld(config: Gridworld) -> ModelEnvironments:
    """Makes the gridworld: 1 for entering the bottom right cell, which ends it; no moves off the grid.

    In the goal every move is called legal: what is chosen there is ignored, but there must be a choice.
    """
    rows, columns = config.rows, config.columns
    state = np.arange(rows * columns)[:, None]  # [S, 1]
    moves = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # up, right, down, left
    row, column = state // columns + moves[:, 0], state % columns + moves[:, 1]  # [S, A]
    legal = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    goal = rows * columns - 1
    legal[goal] = False
    successor = np.where(legal, row * columns + column, state)
    legal[goal] = True
    ends = successor == goal
    reward = (ends & (state != goal)).astype(np.float32)
    model = _model(successor, reward, ends, legal, (rows, columns), config.time_limit)
    picture = partial(_picture, (rows, columns), goal)
    return ModelEnvironments(model, ("up", "right", "down", "left"), count=config.count, picture=picture)


def corridor(config: Corridor) -> ModelEnvironments:
    """Makes the corridor: left and right; going right from the last cell pays 1 and ends it, in that cell."""
    last = config.length - 1
    state = np.arange(config.length)
    successor = np.stack([np.maximum(state - 1, 0), np.minimum(state + 1, last)], axis=1)  # [S, A]
    ends = np.zeros_like(successor, dtype=np.bool_)
    ends[last, 1] = True
    shape = (1, config.length)
    model = _model(successor, ends.astype(np.float32), ends, np.ones_like(ends), shape, config.time_limit)
    return ModelEnvironments(
        model,
        ("left", "right"),
        count=config.count,
        picture=partial(_picture, shape, None),
        onehot=config.observation == "onehot",
    )


def _model(
    successor: NDArray[np.int64],
    reward: NDArray[np.float32],
    ends: Bools,
    legal: Bools,
    shape: tuple[int, int],
    time_limit: int,
) -> Model:
    """Returns the model of one outcome per state and action, which starts in state 0."""
    return Model(
        probability=np.ones((*successor.shape, 1)),
        successor=successor[..., None],
        reward=reward[..., None],
        ends=ends[..., None],
        legal=legal,
        start=np.eye(len(successor))[0],
        shape=shape,
        time_limit=time_limit,
    )


def _picture(shape: tuple[int, int], goal: int | None, state: int) -> NDArray[np.uint8]:
    """Draws the cells, the goal and where the agent is, about 300 pixels wide."""
    rows, columns = shape
    size = max(24, 300 // columns) // 2 * 2  # even, as video codecs want it
    picture = np.empty((rows * size, columns * size, 3), np.uint8)
    picture[:] = BACKGROUND
    for cell in range(rows * columns):
        top, left = (axis * size for axis in divmod(cell, columns))
        colour = GOAL if cell == goal else CELL
        picture[top + 1 : top + size - 1, left + 1 : left + size - 1] = colour
    top, left = (axis * size for axis in divmod(state, columns))
    across = np.arange(size) - (size - 1) / 2
    disc = across[:, None] ** 2 + across**2 < (size / 3) ** 2  # [size, size]
    picture[top : top + size, left : left + size][disc] = AGENT
    return picture

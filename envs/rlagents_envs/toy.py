"""Gridworld and corridor: deterministic tables small enough that Q* is known exactly.

The one idea: such an environment *is* its model. Successor, reward, end and legal moves of every state and
action are arrays, so N environments step by one look-up and Q* comes from the same arrays.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlagents_envs.config import Corridor, Gridworld
from rlagents_envs.vector import Array, Bools, Layout, Leaf, Obs, Outcome, Pending

BACKGROUND, CELL, GOAL, AGENT = (70, 74, 82), (240, 240, 236), (126, 190, 120), (214, 98, 58)


@dataclass(frozen=True)
class Model:
    """A deterministic environment of S states, cells in rows and columns; it starts in state 0."""

    successor: NDArray[np.int64]  # [S, A]
    reward: NDArray[np.float32]  # [S, A]
    ends: Bools  # [S, A]
    legal: Bools  # [S, A]
    shape: tuple[int, int]  # rows, columns
    goal: int | None  # the state whose entry ends an episode, if there is one

    def optimal_q(self, discount: float) -> NDArray[np.float64]:
        """Returns Q* [S, A] by value iteration until nothing changes.

        NaN where a move is not feasible, and in the goal, where nothing is left to choose. No time limit.
        """
        going_on = ~self.ends * discount  # [S, A]
        playable = self.legal.copy()
        if self.goal is not None:
            playable[self.goal] = False
        q = np.where(playable, 0.0, -np.inf)  # [S, A]
        while True:
            value = np.where(playable.any(1), q.max(1), 0.0)  # [S]
            better = np.where(playable, self.reward + going_on * value[self.successor], -np.inf)
            if np.array_equal(better, q):
                return np.where(playable, q, np.nan)
            q = better


class ToyEnvironments:
    """N copies of one model, in lockstep.

    Attributes:
        model: The arrays behind it.
        action_names: A words, in the order of the actions.
    """

    replayable = True

    def __init__(
        self, model: Model, action_names: tuple[str, ...], *, count: int, time_limit: int, onehot: bool
    ) -> None:
        states, self.actions = model.successor.shape
        self.model = model
        self.action_names = action_names
        self.count = count
        self.time_limit = time_limit
        self.layout: Layout = (
            Leaf("vector", (states,), "float32") if onehot else Leaf("index", (), "int64", size=states)
        )
        self._rows: Array = np.eye(states, dtype=np.float32) if onehot else np.arange(states)
        self._pending = Pending(count, self.actions)
        self._restart()

    def optimal_q(self, discount: float) -> NDArray[np.float64]:
        """Returns Q* [S, A]; NaN where a move is not feasible."""
        return self.model.optimal_q(discount)

    def reset(self, seed: int) -> tuple[Obs, Bools | None]:
        """Puts everyone in state 0; nothing here is random, so the seed does nothing."""
        self._pending.restart()
        self._restart()
        return self._rows[self._state], self._mask()

    def send(self, actions: NDArray[np.int64]) -> None:
        """Takes the actions; the step itself happens in `recv`. An unfeasible move stays where it is."""
        self._pending.put(actions)

    def recv(self) -> Outcome:
        """Makes the step."""
        actions = self._pending.take()
        resets = self._ended
        before = self._state
        terminated = self.model.ends[before, actions] & ~resets
        reward = np.where(resets, np.float32(0), self.model.reward[before, actions])
        self._state = np.where(resets, 0, self.model.successor[before, actions])
        self._age = np.where(resets, 0, self._age + 1)
        truncated = (self._age >= self.time_limit) & ~terminated
        self._ended = terminated | truncated
        return Outcome(
            self._rows[self._state], reward, terminated, truncated, self._ended.copy(), self._mask()
        )

    def picture(self) -> NDArray[np.uint8]:
        """Draws the cells, the goal and where environment 0 is, about 300 pixels wide."""
        rows, columns = self.model.shape
        size = max(24, 300 // columns) // 2 * 2  # even, as video codecs want it
        picture = np.empty((rows * size, columns * size, 3), np.uint8)
        picture[:] = BACKGROUND
        for state in range(rows * columns):
            top, left = (axis * size for axis in divmod(state, columns))
            colour = GOAL if state == self.model.goal else CELL
            picture[top + 1 : top + size - 1, left + 1 : left + size - 1] = colour
        top, left = (int(axis) * size for axis in divmod(self._state[0], columns))
        across = np.arange(size) - (size - 1) / 2
        disc = across[:, None] ** 2 + across**2 < (size / 3) ** 2  # [size, size]
        picture[top : top + size, left : left + size][disc] = AGENT
        return picture

    def close(self) -> None:
        """Refuses further steps."""
        self._pending.close()

    def _restart(self) -> None:
        self._state = np.zeros(self.count, np.int64)
        self._age = np.zeros(self.count, np.int64)
        self._ended = np.zeros(self.count, np.bool_)

    def _mask(self) -> Bools | None:
        return None if self.model.legal.all() else self.model.legal[self._state]


def gridworld(config: Gridworld) -> ToyEnvironments:
    """Makes the gridworld: 1 for entering the bottom right cell, which ends it; no moves off the grid.

    In the goal every move is called legal: what is chosen there is ignored, but there must be a choice.
    """
    rows, columns = config.rows, config.columns
    state = np.arange(rows * columns)[:, None]  # [S, 1]
    moves = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # up, right, down, left
    row, column = state // columns + moves[:, 0], state % columns + moves[:, 1]  # [S, A]
    legal = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    goal = rows * columns - 1
    successor = np.where(legal, row * columns + column, state)
    legal[goal] = True
    ends = (successor == goal) & (state != goal)
    model = Model(successor, ends.astype(np.float32), ends, legal, (rows, columns), goal)
    return ToyEnvironments(
        model, ("up", "right", "down", "left"), count=config.count, time_limit=config.time_limit, onehot=False
    )


def corridor(config: Corridor) -> ToyEnvironments:
    """Makes the corridor: left and right; going right from the last cell pays 1 and ends it, in that cell."""
    last = config.length - 1
    state = np.arange(config.length)
    successor = np.stack([np.maximum(state - 1, 0), np.minimum(state + 1, last)], axis=1)  # [S, A]
    ends = np.zeros_like(successor, dtype=np.bool_)
    ends[last, 1] = True
    model = Model(successor, ends.astype(np.float32), ends, np.ones_like(ends), (1, config.length), None)
    return ToyEnvironments(
        model,
        ("left", "right"),
        count=config.count,
        time_limit=config.time_limit,
        onehot=config.observation == "onehot",
    )

"""Environments that are their model: what may follow each state and action stands in arrays.

The one idea: N environments then step by one look-up, whoever wrote them, and exact answers come from the
same arrays.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rlagents_envs.vector import Array, Bools, Environments, Layout, Leaf, Obs, Outcome, Pending

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """S states, A actions and up to L outcomes of each pair; those that are not needed have probability 0."""

    probability: Values  # [S, A, L]
    successor: NDArray[np.int64]  # [S, A, L]
    reward: NDArray[np.float32]  # [S, A, L]
    ends: Bools  # [S, A, L] the outcome is a termination
    legal: Bools  # [S, A]; every state has a legal action
    start: Values  # [S] probability that an episode begins there
    shape: tuple[int, int] | None = None  # rows and columns, where states are cells of a grid, row by row
    time_limit: int | None = None  # steps after which an episode is truncated

    @cached_property
    def terminal(self) -> Bools:
        """States [S] with nothing left to choose: whatever is done there ends it, in place, for nothing."""
        here = np.arange(len(self.successor))[:, None, None]
        over = self.ends & (self.successor == here) & (self.reward == 0)
        return (over | (self.probability == 0)).all((1, 2))

    @cached_property
    def choices(self) -> Bools:
        """Legal actions [S, A] of the states that are not terminal."""
        return self.legal & ~self.terminal[:, None]

    @cached_property
    def reachable(self) -> Bools:
        """States [S] in which an episode may begin or go on."""
        seen = self.start > 0
        while True:
            goes_on = self.choices[..., None] & (self.probability > 0) & ~self.ends & seen[:, None, None]
            more = seen.copy()
            more[self.successor[goes_on]] = True
            if (more == seen).all():
                return seen
            seen = more

    def values(self, q: Values, policy: Values | None = None) -> Values:
        """Returns the value [S] of Q [S, A] under a policy's probabilities [S, A], or of the best choice.

        0 where there is nothing to choose.
        """
        if policy is not None:
            return np.sum(policy * q, axis=1, where=self.choices)
        return np.where(self.terminal, 0, np.max(q, axis=1, initial=-np.inf, where=self.choices))

    def at_start(self, value: Values) -> float:
        """Returns the mean of values [S] over where episodes begin."""
        return float(self.start @ value / self.start.sum())

    def backup(self, value: Values, discount: float) -> Values:
        """Returns Q [S, A]: the mean over outcomes of reward + discount * value [S] of what follows.

        NaN where there is nothing to choose.
        """
        ahead = self.reward + discount * np.where(self.ends, 0, value[self.successor])
        return np.where(self.choices, (self.probability * ahead).sum(2), np.nan)

    def sweeps(self, discount: float, policy: Values | None = None) -> Iterator[Values]:
        """Yields Q [S, A] after each synchronous sweep from zero, without end.

        After k sweeps these are the returns of k steps. Probabilities [S, A] make it the evaluation of that
        policy; without any, each sweep goes on with the best action, which is value iteration.
        """
        value = np.zeros(len(self.start))
        while True:
            yield (q := self.backup(value, discount))
            value = self.values(q, policy)

    def optimal_q(self, discount: float) -> Values:
        """Returns Q* [S, A], without the time limit; NaN where there is nothing to choose."""
        return settle(self.sweeps(discount))[0]


def settle(sweeps: Iterable[Values], most: int = 1_000_000) -> tuple[Values, int]:
    """Returns the table that later sweeps change by no more than rounding does, and how many came before it.

    Raises:
        ValueError: It still changes after `most` sweeps.
    """
    before: Values | float = np.inf
    for count, after in enumerate(islice(sweeps, most)):
        if np.nanmax(np.abs(after - before), initial=0) <= 1e-13 * np.nanmax(np.abs(after), initial=1):
            return after, count
        before = after
    raise ValueError(
        "discount must be below 1 where a policy may never end an episode, got values without end"
    )


class ModelEnvironments(Environments):
    """N copies of one model, in lockstep.

    Args:
        model: The arrays.
        action_names: A words, in the order of the actions; None where nobody named them.
        count: N.
        picture: Draws a state.
        onehot: Whether an observation is a one-hot vector in place of the state's number.
    """

    replayable = True

    def __init__(
        self,
        model: Model,
        action_names: tuple[str, ...] | None,
        *,
        count: int,
        picture: Callable[[int], NDArray[np.uint8]],
        onehot: bool = False,
    ) -> None:
        states, self.actions, self._outcomes = model.successor.shape
        self.model, self.count = model, count
        self.action_names = action_names
        self.layout: Layout = (
            Leaf("vector", (states,), "float32") if onehot else Leaf("index", (), "int64", size=states)
        )
        self._rows: Array = np.eye(states, dtype=np.float32) if onehot else np.arange(states)
        self._masked = not model.legal.all()
        self._limit = model.time_limit or int(np.iinfo(np.int64).max)
        # By entry, state * A + action, and by outcome, entry * L + which: one index into flat arrays.
        cumulative = model.probability.cumsum(2)
        self._cumulative = (cumulative / cumulative[..., -1:]).reshape(-1, self._outcomes)
        self._successor, self._reward = model.successor.ravel(), model.reward.ravel()
        self._ends = model.ends.ravel()
        self._begin = model.start.cumsum() / model.start.sum()
        self._draw = picture
        self._state = np.full(count, model.start.argmax())
        self._pending = Pending(count, self.actions)

    def reset(self, seed: int) -> tuple[Obs, Bools | None]:
        """Starts every environment anew; all draw from one generator."""
        self._pending.restart()
        self._rng = np.random.default_rng(seed)
        self._state = self._starts(self.count)
        self._age = np.zeros(self.count, np.int64)
        self._ended = np.zeros(self.count, np.bool_)
        return self._rows[self._state], self._mask()

    def send(self, actions: NDArray[np.int64]) -> None:
        """Takes the actions; the step itself happens in `recv`. An illegal one does what the model says."""
        self._pending.put(actions)

    def recv(self) -> Outcome:
        """Makes the step."""
        outcome = self._state * self.actions + self._pending.take()
        if self._outcomes > 1:
            passed = self._rng.random((self.count, 1)) >= self._cumulative[outcome]  # [N, L]
            outcome = outcome * self._outcomes + np.count_nonzero(passed, axis=1)
        state, reward, terminated = self._successor[outcome], self._reward[outcome], self._ends[outcome]
        age = self._age + 1
        if (resets := self._ended.nonzero()[0]).size:
            state[resets] = self._starts(resets.size)
            reward[resets], terminated[resets], age[resets] = 0, False, 0
        truncated = (age >= self._limit) & ~terminated
        self._state, self._age, self._ended = state, age, terminated | truncated
        return Outcome(self._rows[state], reward, terminated, truncated, self._ended.copy(), self._mask())

    def picture(self) -> NDArray[np.uint8]:
        """Draws where environment 0 is."""
        return self._draw(int(self._state[0]))

    def close(self) -> None:
        """Refuses further steps."""
        self._pending.close()

    def _starts(self, count: int) -> NDArray[np.int64]:
        return np.searchsorted(self._begin, self._rng.random(count), side="right")

    def _mask(self) -> Bools | None:
        return self.model.legal[self._state] if self._masked else None

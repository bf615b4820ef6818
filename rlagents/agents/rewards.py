"""What of the rewards is learned."""

import math

import numpy as np
from numpy.typing import NDArray

from rlagents.config import NetworkLearner
from rlagents.types import State, Step

_LEAST = 1e-8  # added to a variance


def transformed(reward: NDArray[np.float32], config: NetworkLearner) -> NDArray[np.float32]:
    """Returns what is learned in place of rewards [N]; normalising comes later, see `ReturnScale`."""
    if config.reward_transform == "sign":
        return np.sign(reward)
    return reward * config.reward_scale if config.reward_transform == "scale" else reward


class ReturnScale:
    """The deviation of discounted returns, which rewards are divided by (Engstrom et al. 2020, section 3).

    A return is summed forwards, from the start of its episode: g = discount * g + reward.

    Args:
        environments: N.
        discount: per env step.
    """

    def __init__(self, environments: int, discount: float) -> None:
        self._discount = discount
        self._returns = np.zeros(environments)
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    @property
    def factor(self) -> float:
        """What rewards are multiplied by; 1 before there are two returns."""
        if self._count < 2:
            return 1.0
        return 1 / math.sqrt(self._squares / self._count + _LEAST)

    def update(self, step: Step) -> None:
        """Takes note of one step of N environments."""
        self._returns[step.first] = 0
        self._returns = self._returns * self._discount + step.reward
        new = self._returns[~step.final]
        if not len(new):
            return
        before, distance = self._count, float(new.mean()) - self._mean
        self._count += len(new)
        self._mean += distance * len(new) / self._count
        # Chan et al. 1983: squares of both parts, and of the distance between their means.
        self._squares += float(new.var()) * len(new) + distance**2 * before * len(new) / self._count

    def state_dict(self) -> State:
        """Returns the sums and unfinished returns."""
        return {
            "count": self._count,
            "mean": self._mean,
            "squares": self._squares,
            "returns": self._returns.tolist(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self._count, self._mean, self._squares = state["count"], state["mean"], state["squares"]
        self._returns = np.array(state["returns"])

"""What N environments just did, step after step, and what their returns come to.

Rows are timesteps, as in the replay: environments reset on the *next* step, so the last observation of an
episode is a row that starts no transition. Its value is what a truncated return counts on.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlagents.types import Obs, State, Step, each, named
from rlagents_envs.vector import Bools, Layout, Leaf

_COLUMNS = {
    "action": torch.int64,
    "reward": torch.float32,
    "value": torch.float32,  # of the best legal action, by the weights that acted
    "terminated": torch.bool,
    "truncated": torch.bool,
    "first": torch.bool,
    "final": torch.bool,
}


class Rollout:
    """T rows of N environments, and one more, which may close their episodes before a full reset.

    Observations lie on the agent's device, whole: what is soon overwritten need not be kept frame by frame.
    Everything else lies on the CPU, where it comes from.

    Args:
        layout: what an observation is made of.
        environments: N.
        length: T.
        device: the agent's.
    """

    def __init__(self, layout: Layout, environments: int, length: int, device: torch.device) -> None:
        def zeros(leaf: Leaf) -> Tensor:
            dtype = getattr(torch, leaf.dtype)
            return torch.zeros(length + 1, environments, *leaf.shape, dtype=dtype, device=device)

        self.length, self.rows = length, 0
        self._obs: Obs = each(zeros, layout)  # [T + 1, N, *O]
        shape = (length + 1, environments)
        self._columns = {name: torch.zeros(shape, dtype=dtype) for name, dtype in _COLUMNS.items()}

    @property
    def full(self) -> bool:
        """Whether T rows are there."""
        return self.rows >= self.length

    @property
    def obs(self) -> Obs:
        """The observations of the T rows, [T * N, *O], where they lie."""

        def flat(column: Tensor) -> Tensor:
            return column[: self.length].flatten(0, 1)

        return each(flat, self._obs)

    @property
    def action(self) -> Tensor:
        """What was done in them, [T * N]."""
        return self._columns["action"][: self.length].flatten()

    def add(self, step: Step, reward: NDArray[np.float32], value: Tensor) -> None:
        """Writes one row.

        Args:
            step: what happened.
            reward: [N] what is to be learned in place of `step.reward`.
            value: [N] what `step.obs` is worth.
        """

        def write(column: Tensor, obs: Tensor) -> None:
            column[self.rows] = obs

        each(write, self._obs, step.obs)
        new = {**step._asdict(), "reward": reward, "value": value}
        for name, column in self._columns.items():
            column[self.rows] = torch.as_tensor(new[name])
        self.rows += 1

    def returns(
        self, value: Tensor, first: Bools, discount: float, trace_decay: float, factor: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Returns the lambda-returns of the T rows, and which of them are transitions, both [T * N].

        Args:
            value: [N] what the observations after them are worth; a closing row knows that better.
            first: [N] whether these open an episode.
            discount: per env step.
            trace_decay: lambda.
            factor: what rewards are multiplied by.
        """
        columns, last = self._columns, self.length
        if self.rows == last:
            columns["value"][last], columns["first"][last] = value, torch.as_tensor(first)
        # Nobody saw what a row led to if the next one opens an episode: it was final, or got lost.
        live = ~(columns["final"][:last] | columns["first"][1:])  # [T, N]
        ended = columns["terminated"] | columns["truncated"]
        carry = trace_decay * (live[1:] & ~ended[: last - 1])  # [T - 1, N]
        discounts = discount * ~columns["terminated"][:last]  # [T, N]
        goal = lambda_returns(factor * columns["reward"][:last], discounts, columns["value"][1:], carry)
        return goal.flatten(), live.flatten()

    def clear(self) -> None:
        """Forgets the rows."""
        self.rows = 0

    def state_dict(self) -> State:
        """Returns the rows that are there."""
        columns = {f"obs.{name}": column for name, column in named(self._obs).items()} | self._columns
        return {name: column[: self.rows] for name, column in columns.items()}

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self.rows = len(state["action"])
        for name, rows in self.state_dict().items():
            rows.copy_(state[name])


def row_bytes(layout: Layout) -> int:
    """Returns the bytes that a row of one environment takes: its whole observation, and its record."""
    leaves = named(layout).values()
    obs = (math.prod(leaf.shape) * getattr(torch, leaf.dtype).itemsize for leaf in leaves)
    return sum(obs) + sum(dtype.itemsize for dtype in _COLUMNS.values())


def lambda_returns(reward: Tensor, discount: Tensor, value: Tensor, carry: Tensor) -> Tensor:
    """Returns G(t) = reward(t) + discount(t) * ((1 - carry(t)) * value(t) + carry(t) * G(t + 1)).

    This is the Q(lambda) of Peng and Williams (1996): the next action counts as it was done, greedy or not.
    Nothing is carried over from behind the last row.

    Args:
        reward: [T, N].
        discount: [T, N], 0 after a termination.
        value: [T, N] of the successors.
        carry: [T - 1, N] lambda, 0 where the row after does not go on with the episode.
    """
    goal = reward + discount * value
    weight = discount[:-1] * carry
    for time in reversed(range(len(weight))):
        goal[time] += weight[time] * (goal[time + 1] - value[time])
    return goal

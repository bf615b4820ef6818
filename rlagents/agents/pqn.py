"""Q-learning with a network from what many environments just did: PQN (Gallici et al. 2024).

    goal = reward + discount * ((1 - lambda) * max over a of Q(next_obs, a) + lambda * next goal)

There is no replay and no target network: LayerNorm keeps the values from running away, and many environments
make up for the memory. T steps of each are gone through a few times and forgotten. Departures from the paper:
Adam, which PyTorch fuses into one pass over all weights, where the paper has RAdam; and a row that starts no
transition counts for nothing in the minibatch it comes into.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlagents.agents.exploration import legal_values
from rlagents.agents.network_agent import NetworkAgent
from rlagents.agents.rewards import transformed
from rlagents.agents.rollout import Rollout
from rlagents.agents.values import taken
from rlagents.config import PQN as Config
from rlagents.types import Metrics, Obs, State, Step, Task, each
from rlagents_envs.vector import Bools


class Minibatch(NamedTuple):
    """B rows of a rollout."""

    obs: Obs  # [B, *O]
    action: Tensor  # [B] int64
    goal: Tensor  # [B] float32
    live: Tensor  # [B] bool: it is a transition


class PQN(NetworkAgent[Config]):
    """A network that learns the values of actions from one rollout after the other.

    The values behind the goals are those that the agent acted on: its weights move between rollouts only. A
    rollout that is full is learned from after the next `act`, which values what came after it.
    """

    replay = None

    def __init__(self, config: Config, task: Task) -> None:
        rows = task.environments * config.rollout
        super().__init__(config, task, rows // config.minibatches)
        device = self.device
        self._random["minibatches"] = task.streams.torch("minibatches", device)
        self._rollout = Rollout(task.layout, task.environments, config.rollout, device)
        # What a recorded graph reads lies at fixed places.
        self._learned = Minibatch(
            self._rollout.obs,
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )
        self._ahead: tuple[Tensor, Bools | None] | None = None  # value and `first` of what was acted on last
        self._suspect: tuple[int, Minibatch] | None = None
        self._begin()

    def _values_to_explore(
        self, obs: Obs, mask: Tensor | None, first: Bools | None, generator: torch.Generator
    ) -> Tensor:
        values = self._q_values(self.working, obs)
        self._ahead = _best(values, mask), first
        return values

    def observe(self, step: Step) -> None:
        """Stores one step."""
        super().observe(step)
        # A closing row was not acted on.
        if self._ahead:
            value = self._ahead[0]
        else:
            legal = None if step.mask is None else torch.as_tensor(step.mask)
            value = _best(self._q_values(self.working, step.obs), legal)
        self._ahead = None
        self._rollout.add(step, transformed(step.reward, self.config), value)

    def learn(self) -> Metrics:
        """Does all learner steps of a rollout, once it is full and what came after it was acted on."""
        rollout, config = self._rollout, self.config
        if not rollout.full or self._ahead is None:
            return {}
        value, first = self._ahead
        goal, live = rollout.returns(
            value,
            np.zeros(len(value), np.bool_) if first is None else first,
            config.discount,
            config.trace_decay,
            self._returns.factor if self._returns else 1.0,
        )
        for fixed, new in zip(self._learned[1:], (rollout.action, goal, live), strict=True):
            fixed.copy_(new)
        if not self.learner_steps:  # the values of this first rollout are those of no training at all
            self._weights.centre(self._learned.obs)
        self._weights.set_rates(self.env_steps)
        count = config.epochs * config.minibatches
        metrics = self._launch(count)
        self.learner_steps += count
        if self._suspect is None and (failed := self._guard.failed()):
            before, row = failed
            self._suspect = self._guarded + before + 1, self._minibatch(row)
        rollout.clear()
        return metrics

    def _updates(self, count: int) -> Metrics:
        metrics: Metrics = {}
        rows = len(self._learned.action)
        shape, stream = (self.config.epochs, rows), self._random["minibatches"]
        order = torch.rand(shape, generator=stream, device=self.device).argsort(1)  # each epoch its own
        for row in order.view(count, self._batch_size):
            metrics = self._update(row)
        return metrics

    def _minibatch(self, row: Tensor) -> Minibatch:
        """Returns copies of rows [B] of the rollout."""

        def drawn(column: Tensor) -> Tensor:
            return column.index_select(0, row)

        obs, *columns = self._learned
        return Minibatch(each(drawn, obs), *map(drawn, columns))

    def _update(self, row: Tensor) -> Metrics:
        batch = self._minibatch(row)
        params = taken(self.working(batch.obs), batch.action)  # [B, 1]
        share = batch.live / batch.live.sum().clamp(min=1)  # [B]
        loss = (share * self.values.loss(params, batch.goal)).sum()
        loss.backward()
        norm, loss = self._weights.step(), loss.detach()
        self._guard.watch(row, loss, *norm)
        return {"loss": loss, "q_mean": (share * self.values.mean(params.detach())).sum()}

    def suspect(self) -> tuple[int, Minibatch] | None:
        """Returns the first learner step whose loss or gradient was no number, with its minibatch."""
        return self._suspect

    def state_dict(self) -> State:
        """Returns weights, optimiser, counters, random streams and what there is of a rollout."""
        return {**super().state_dict(), "rollout": self._rollout.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self._rollout.load_state_dict(state["rollout"])
        self._ahead = self._suspect = None


def _best(values: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the value [N] of the best legal action, for values [N, A]."""
    choice = legal_values(values, mask).argmax(1, keepdim=True)
    return values.gather(1, choice)[:, 0]  # a number also where nothing is legal

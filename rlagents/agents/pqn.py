"""Q-learning with a network from what many environments just did: PQN (Gallici et al. 2024).

    goal = reward + discount * ((1 - lambda) * max over a of Q(next_obs, a) + lambda * next goal)

There is no replay and no target network: LayerNorm keeps the values from running away, and many environments
make up for the memory. T steps of each are gone through a few times and forgotten. Departures from the paper:
Adam, which PyTorch fuses into one pass over all weights, where the paper has RAdam; and a row that starts no
transition counts for nothing in the minibatch it comes into.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlagents.agents.exploration import epsilon_greedy, legal_values
from rlagents.agents.exploration import make as make_explorer
from rlagents.agents.graph import Captured
from rlagents.agents.guard import Guard
from rlagents.agents.rewards import ReturnScale, transformed
from rlagents.agents.rollout import Rollout
from rlagents.agents.values import make as make_values
from rlagents.agents.weights import Weights, seeded
from rlagents.config import PQN as Config
from rlagents.networks import Network
from rlagents.seeding import Streams
from rlagents.types import Metrics, Obs, State, Step, each
from rlagents_envs.vector import Layout


class Minibatch(NamedTuple):
    """B rows of a rollout."""

    obs: Obs  # [B, *O]
    action: Tensor  # [B] int64
    goal: Tensor  # [B] float32
    live: Tensor  # [B] bool: it is a transition


class PQN:
    """A network that learns the values of actions from one rollout after the other.

    The values behind the goals are those that the agent acted on: its weights move between rollouts only. A
    rollout that is full is learned from after the next `act`, which values what came after it.
    """

    replay = None

    def __init__(
        self,
        config: Config,
        layout: Layout,
        actions: int,
        *,
        environments: int,
        env_steps: int,
        streams: Streams,
        device: torch.device,
    ) -> None:
        self.config, self.actions, self.device = config, actions, device
        self.env_steps = self.learner_steps = 0
        self.values = make_values(config.values)
        seed = streams.integer("network")
        network = seeded(lambda: Network(config.network, layout, actions, self.values.width), seed)
        self._weights = Weights(config, network, layout, env_steps=env_steps, device=device)
        self.online, self.working = self._weights.online, self._weights.working
        self.optimizer = self._weights.optimizer
        self._explore = streams.torch("exploration", device)
        self._random = {"exploration": self._explore, "minibatches": streams.torch("minibatches", device)}
        self._explorer = make_explorer(config.exploration)
        normalised = config.reward_transform == "normalise"
        self._returns = ReturnScale(environments, config.discount) if normalised else None
        self._rollout = Rollout(layout, environments, config.rollout, device)
        rows = environments * config.rollout
        # What a recorded graph reads lies at fixed places.
        self._learned = Minibatch(
            self._rollout.obs,
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )
        self._size = rows // config.minibatches  # B
        self._ahead: tuple[Tensor, Tensor | None] | None = None  # value and `first` of what was acted on last
        self._suspect: tuple[int, Minibatch] | None = None
        self._begin()

    def _begin(self) -> None:
        """Starts what knows the tensors or learner steps of before anew."""
        self._guard, self._guarded = Guard(self._size, self.device), self.learner_steps
        captured = self.device.type == "cuda" and self.config.cuda_graph
        self._launch: Callable[[int], Metrics] = self._updates
        if captured:
            self._launch = Captured(self._updates, [self._random["minibatches"]])

    @property
    def epsilon(self) -> float:
        """Probability of a uniform action at present."""
        return self._explorer.epsilon(self.env_steps)

    @torch.no_grad()
    def q_values(self, obs: Obs) -> Tensor:
        """Returns the values of every action for observations [N, *O], as [N, A] float32."""
        return self.values.mean(self.working(obs))

    def act(
        self,
        obs: Obs,
        *,
        mask: Tensor | None = None,
        first: Tensor | None = None,
        epsilon: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns actions [N] for observations [N, *O], from one forward pass."""
        generator, values = generator or self._explore, self.q_values(obs)
        if epsilon is not None:
            return epsilon_greedy(values, epsilon, generator, mask)
        self._ahead = _best(values, mask), first
        return self._explorer.choose(values, self.env_steps, generator, mask)

    def observe(self, step: Step) -> None:
        """Stores one step."""
        self.env_steps += int((~step.final).sum())
        if self._returns:  # rewards are normalised as they are learned, by what is known by then
            self._returns.update(step)
        # A closing row was not acted on.
        value = self._ahead[0] if self._ahead else _best(self.q_values(step.obs), step.mask)
        self._ahead = None
        self._rollout.add(step, transformed(step.reward, self.config), value)

    def learn(self) -> Metrics:
        """Does all learner steps of a rollout, once it is full and what came after it was acted on."""
        rollout, config = self._rollout, self.config
        if not rollout.full or self._ahead is None:
            return {}
        value, first = self._ahead
        goal, live = rollout.returns(
            value.cpu(),
            torch.zeros(len(value), dtype=torch.bool) if first is None else first,
            config.discount,
            config.trace_decay,
            self._returns.factor if self._returns else 1.0,
        )
        for fixed, new in zip(self._learned[1:], (rollout.action, goal, live), strict=True):
            fixed.copy_(new)
        if not self.learner_steps:  # the values of this first rollout are those of no training at all
            self._weights.centre(self._learned.obs)
        self._weights.set_rate(self.env_steps)
        count = config.epochs * config.minibatches
        metrics = self._launch(count)
        self.learner_steps += count
        if self._suspect is None and (failed := self._guard.failed()):
            before, row = failed
            self._suspect = self._guarded + before + 1, self._minibatch(row)
        rollout.clear()
        return metrics

    def _updates(self, count: int) -> Metrics:
        """Does learner steps, on the device alone: nothing here waits for a number."""
        metrics: Metrics = {}
        rows = len(self._learned.action)
        shape, stream = (self.config.epochs, rows), self._random["minibatches"]
        order = torch.rand(shape, generator=stream, device=self.device).argsort(1)  # each epoch its own
        for row in order.view(count, self._size):
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
        params = self.working(batch.obs)[torch.arange(len(row), device=self.device), batch.action]  # [B, 1]
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
        return {
            **self._weights.state_dict(),
            "counters": {"env_steps": self.env_steps, "learner_steps": self.learner_steps},
            "random": {name: generator.get_state() for name, generator in self._random.items()},
            "rollout": self._rollout.state_dict(),
            "returns": self._returns.state_dict() if self._returns else {},
        }

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self._weights.load_state_dict(state)
        self.env_steps, self.learner_steps = (state["counters"][n] for n in ("env_steps", "learner_steps"))
        for name, generator in self._random.items():
            generator.set_state(state["random"][name].cpu())
        self._rollout.load_state_dict(state["rollout"])
        if self._returns:
            self._returns.load_state_dict(state["returns"])
        self._ahead = self._suspect = None
        self._begin()


def _best(values: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the value [N] of the best legal action, for values [N, A]."""
    choice = legal_values(values, mask).argmax(1, keepdim=True)
    return values.gather(1, choice)[:, 0]  # a number also where nothing is legal

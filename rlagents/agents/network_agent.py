"""What the agents with a network have in common; what they learn from, and towards, is their own affair."""

from collections.abc import Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from rlagents.agents.actor import Actor
from rlagents.agents.graph import Captured
from rlagents.agents.guard import Guard
from rlagents.agents.rewards import ReturnScale
from rlagents.agents.values import Values, midpoints
from rlagents.agents.values import make as make_values
from rlagents.agents.weights import Weights, seeded
from rlagents.config import DQN, PQN
from rlagents.networks import Network, Noise
from rlagents.types import Metrics, Obs, State, Step, Task, joined, named

Config = TypeVar("Config", DQN, PQN)


class NetworkAgent(Actor, Generic[Config]):
    """A network that is acted with: its weights, what its outputs mean, and how all this is saved.

    Args:
        config: of the agent.
        task: what it is built for.
        batch_size: B of a learner step.
    """

    def __init__(self, config: Config, task: Task, batch_size: int) -> None:
        super().__init__(config.exploration, task)
        self.config = config
        self.values: Values = make_values(config.values)
        self._asked = self.values.fractions
        self._task, self._batch_size = task, batch_size
        self._weights = Weights(config, self._fresh_network(0), task)
        self.online, self.working = self._weights.online, self._weights.working
        self.optimizer = self._weights.optimizer
        self._spread = midpoints(self._asked.choice, self.device) if self._asked else None
        normalised = config.reward_transform == "normalise"
        self._returns = ReturnScale(task.environments, config.discount) if normalised else None

    @property
    def _width(self) -> int:
        """The numbers that the network puts out for each action."""
        return self.values.width

    def _fresh_network(self, index: int) -> Network:
        """Returns an untrained network, the same for the same index."""
        cosines = self._asked.cosines if self._asked else 0
        shape = (self._task.layout, self.actions, self._width, cosines)
        seed = self._task.streams.integer("network", index)
        return seeded(lambda: Network(self.config.network, *shape), seed)

    def _begin(self) -> None:
        """Starts what knows the tensors or learner steps of before anew."""
        self._guard, self._guarded = Guard(self._batch_size, self.device), self.learner_steps
        self._graph: Captured[Metrics] | None = None
        self._acting: Captured[Tensor] | None = None
        if self.device.type == "cuda" and self.config.cuda_graph:
            streams = {name: drawn for name, drawn in self._random.items() if drawn.device.type == "cuda"}
            self._acting = Captured("acting", [streams.pop("acting")] if "acting" in streams else [])
            self._graph = Captured("a learner step", list(streams.values()))

    def _launch(self, count: int, *kind: Hashable) -> Metrics:
        """Does learner steps, as one graph of their kind where there is a GPU for it."""
        if self._graph is None:
            return self._updates(count)

        def updates() -> Metrics:
            self._weights.forget_gradients()
            return self._updates(count)

        return self._graph(updates, (count, *kind))

    def _updates(self, count: int) -> Metrics:
        """Does learner steps, on the device alone: nothing here waits for a number."""
        raise NotImplementedError

    def _values_of(self, obs: Obs) -> Tensor:
        """Returns values [N, A] without noise, and by the average weights if they are kept."""
        return self._q_values(self._weights.settled, obs)

    def _valued(self, params: Tensor) -> Tensor:
        """Returns values [N, A], or of each head [N, A, K], of what the network puts out."""
        return self.values.mean(params)

    @torch.no_grad()
    def _q_values(self, network: Network, obs: Obs, noise: Noise | None = None) -> Tensor:
        """Returns what `_valued` does, on the CPU, where actions are chosen."""
        parts = named(obs)

        def values(*given: Tensor) -> Tensor:
            seen = joined(dict(zip(parts, given, strict=True)))
            return self._valued(network(seen, self._spread, noise))

        if self._acting is None:
            return values(*parts.values()).cpu()
        key = (network is self._weights.settled, noise is None, *(part.shape for part in parts.values()))
        return self._acting(values, key, *parts.values()).cpu()

    def observe(self, step: Step) -> None:
        """Counts one step; who learns stores it."""
        super().observe(step)
        if self._returns:  # rewards are normalised as they are learned, by what is known by then
            self._returns.update(step)

    def state_dict(self) -> State:
        """Returns weights, optimiser, counters and random streams."""
        return {
            **self._weights.state_dict(),
            **super().state_dict(),
            "returns": self._returns.state_dict() if self._returns else {},
        }

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self._weights.load_state_dict(state)
        super().load_state_dict(state)
        if self._returns:
            self._returns.load_state_dict(state["returns"])
        self._begin()

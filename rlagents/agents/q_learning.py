"""Tabular Q-learning (Watkins 1989), one step at a time or from the shared replay."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlagents.agents.exploration import EpsilonGreedy, epsilon_greedy, legal_values
from rlagents.config import QLearning as Config
from rlagents.replay import Ring, Uniform
from rlagents.schedules import Every, Linear
from rlagents.seeding import Streams
from rlagents.types import Metrics, Obs, State, Step
from rlagents_envs.vector import Layout


class QLearning:
    """A table Q [S, A], float64, moved towards reward + discount * max Q of the successor.

    Several environments may visit one entry at once: the entry moves by the mean of their errors, which does
    not depend on their order.

    Raises:
        ValueError: an observation is not one of S states.
    """

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
        if isinstance(layout, dict) or layout.kind != "index":
            raise ValueError(
                "agent.kind must be a network agent for this environment: a table needs numbered states, got "
                f"{layout}; set agent.kind to dqn, or give the environment a Discrete observation space"
            )
        self.config, self.device = config, device
        self.env_steps = self.learner_steps = 0
        self.q = torch.full((layout.size, actions), config.initial_value, dtype=torch.float64, device=device)
        explore = config.exploration
        self._exploration = EpsilonGreedy(
            Linear(explore.start, explore.end, explore.steps), explore.ladder, ties=True
        )
        self._rate = Linear(config.learning_rate, config.final_learning_rate, env_steps)
        self._explore = streams.torch("exploration", device)
        self._learn = Every(config.learn_every, config.learning_starts)
        self._learned = 0  # env steps at the last `learn`
        self._pending: Step | None = None
        self._sampling = streams.torch("replay", device)
        self.replay: Ring | None = None
        if config.learn_from == "replay":
            self.replay = Ring(
                layout,
                actions,
                environments=environments,
                capacity=config.replay.capacity,
                n_step=config.n_step,
                discount=config.discount,
                sampler=Uniform(config.replay.capacity, self._sampling),
                device=device,
            )

    @property
    def epsilon(self) -> float:
        """Probability of a uniform action at present."""
        return self._exploration.epsilon(self.env_steps)

    def q_values(self, obs: Obs) -> Tensor:
        """Returns the table's rows of states [N], as [N, A] float32."""
        return self.q[_states(obs)].float()

    def act(
        self,
        obs: Obs,
        *,
        mask: Tensor | None = None,
        first: Tensor | None = None,
        epsilon: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns actions [N] for states [N], ties broken at random while exploring."""
        values, generator = self.q[_states(obs)], generator or self._explore
        if epsilon is None:
            return self._exploration.choose(values, self.env_steps, generator, mask)
        return epsilon_greedy(values, epsilon, generator, mask, ties=True)

    def observe(self, step: Step) -> None:
        """Stores one step."""
        self.env_steps += int((~step.final).sum())
        if self.replay is not None:
            self.replay.add(step, step.reward)
        else:
            self._pending = step

    def learn(self) -> Metrics:
        """Learns from the step before, or does the batches that are due."""
        if self.replay is None:
            step, self._pending = self._pending, None
            return {} if step is None else self._online(step)
        if not len(self.replay):
            return {}
        due, self._learned = self._learn.due(self._learned, self.env_steps), self.env_steps
        metrics: Metrics = {}
        for _ in range(due):
            batch = self.replay.sample(self.config.batch_size)
            metrics = self._update(
                _states(batch.obs),
                batch.action,
                batch.reward,
                batch.discount,
                _states(batch.next_obs),
                batch.mask,
            )
        return metrics

    def _online(self, step: Step) -> Metrics:
        real = (~step.final).to(self.device).nonzero()[:, 0]
        state, successor = _states(step.obs)[real], _states(step.next_obs)[real]
        action, reward, terminated = (
            t.to(self.device)[real] for t in (step.action, step.reward, step.terminated)
        )
        mask = None if step.next_mask is None else step.next_mask.to(self.device)[real]
        discount = self.config.discount * (~terminated).double()
        return self._update(state, action, reward, discount, successor, mask)

    def _update(
        self,
        state: Tensor,
        action: Tensor,
        reward: Tensor,
        discount: Tensor,
        successor: Tensor,
        mask: Tensor | None,
    ) -> Metrics:
        if not len(state):
            return {}
        goal = reward + discount * legal_values(self.q[successor], mask).amax(1)  # [B]
        table, entry = self.q.view(-1), state * self.q.shape[1] + action
        error = goal - table[entry]
        moved = table[entry] + self._rate(self.env_steps) * error
        table.scatter_reduce_(0, entry, moved, "mean", include_self=False)
        self.learner_steps += 1
        return {"loss": error.square().mean() / 2}

    def state_dict(self) -> State:
        """Returns the table, counters and random streams."""
        pending = None if self._pending is None else self._pending._asdict()
        return {
            "policy": {"q": self.q},
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "random": {"exploration": self._explore.get_state(), "replay": self._sampling.get_state()},
            "pending": {k: v for k, v in (pending or {}).items() if v is not None},
        }

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self.q.copy_(state["policy"]["q"])
        for name in _COUNTERS:
            setattr(self, name, state["counters"][name])
        self._explore.set_state(state["random"]["exploration"].cpu())
        self._sampling.set_state(state["random"]["replay"].cpu())
        self._pending = Step(**state["pending"]) if state.get("pending") else None


_COUNTERS: Sequence[str] = ("env_steps", "learner_steps", "_learned")


def _states(obs: Obs) -> Tensor:
    assert isinstance(obs, Tensor)  # the layout was checked when the agent was built
    return obs

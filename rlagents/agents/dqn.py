"""Q-learning with a network and the replay: DQN (Mnih et al. 2015) and its variants, each a field.

    goal = reward + discount**n * Q_target(next_obs, argmax over a of Q_chooser(next_obs, a))

where the chooser is the target network or, for double Q-learning, the online one; without a target network
both are the online one. Departures from the paper: Adam instead of RMSProp, one coin per environment.

Soft values (Munchausen, Vieillard et al. 2020) take the policy softmax(Q_target / temperature) in place of
the maximum. What a value is, how the replay is sampled and how actions are explored are objects of their own.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlagents.agents.exploration import epsilon_greedy, legal_values
from rlagents.agents.exploration import make as make_explorer
from rlagents.agents.graph import Captured
from rlagents.agents.guard import Guard
from rlagents.agents.rewards import ReturnScale, transformed
from rlagents.agents.values import Values, midpoints, soften
from rlagents.agents.values import make as make_values
from rlagents.agents.weights import Weights, copy_buffers, copy_tensors, seeded
from rlagents.config import DQN as Config
from rlagents.config import FixedTarget, NoTarget, SoftTarget
from rlagents.networks import Network, Noise
from rlagents.replay import Ring, make_sampler
from rlagents.schedules import Every
from rlagents.seeding import Streams
from rlagents.types import Batch, Metrics, Obs, State, Step
from rlagents_envs.vector import Layout


class DQN:
    """A network that learns the values of actions from the replay.

    Three networks at most: `online` and `working`, see `Weights`, and `target`, which the goals come from.
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
        self.config, self.actions, self.device = config, actions, device
        self.env_steps = self.learner_steps = 0
        self.values: Values = make_values(config.values)
        self._layout, self._streams = layout, streams
        self._weights = Weights(config, self._fresh_network(0), layout, env_steps=env_steps, device=device)
        self.online, self.working = self._weights.online, self._weights.working
        self.optimizer = self._weights.optimizer
        self.target = (
            self.working
            if isinstance(config.target, NoTarget)
            else copy.deepcopy(self.working).requires_grad_(False)
        )
        # A moving average needs float32: in bfloat16 its small steps would round to nothing.
        averages = self._weights.narrow and isinstance(config.target, SoftTarget)
        parameters = [p.detach().clone() for p in self._weights.parameters] if averages else None
        self._slow = parameters or list(self.target.parameters())
        self._explore = streams.torch("exploration", device)
        self._random = {"exploration": self._explore, "replay": streams.torch("replay", device)}
        self._asked = self.values.fractions
        if self._asked:
            self._random["fractions"] = streams.torch("fractions", device)
        # One noise for a whole batch that is learned, as in the paper; one for each environment that acts.
        self._noise: Noise | None = None
        if config.network.noisy:
            self._random["noise"] = streams.torch("noise", device)
            self._noise = Noise(self._random["noise"])
        self._spread = midpoints(self._asked.choice, device) if self._asked else None
        normalised = config.reward_transform == "normalise"
        self._returns = ReturnScale(environments, config.discount) if normalised else None
        self._reward_factor = torch.ones((), device=device)
        self._prioritised = config.replay.sampling.kind != "uniform"
        self._guard, self._guarded = Guard(config.batch_size, device), 0  # from which learner step on
        self._norm: list[Tensor] = []  # of the newest gradient, where it is limited
        self._captured = device.type == "cuda" and config.cuda_graph
        self._launch = self._launcher()
        self.replay = Ring(
            layout,
            actions,
            environments=environments,
            capacity=config.replay.capacity,
            n_step=config.n_step,
            discount=config.discount,
            sampler=make_sampler(config.replay, self._random["replay"], env_steps),
            device=device,
        )
        self._explorer = make_explorer(config.exploration)
        self._learn = Every(config.learn_every, config.learning_starts)
        self._learned = 0  # env steps at the last `learn`

    def _fresh_network(self, index: int) -> Network:
        """Returns an untrained network, the same for the same index."""
        cosines = self.values.fractions.cosines if self.values.fractions else 0
        shape = (self._layout, self.actions, self.values.width, cosines)
        return seeded(lambda: Network(self.config.network, *shape), self._streams.integer("network", index))

    @property
    def epsilon(self) -> float:
        """Probability of a uniform action at present."""
        return self._explorer.epsilon(self.env_steps)

    def q_values(self, obs: Obs) -> Tensor:
        """Returns the values of every action for observations [N, *O], as [N, A] float32, without noise."""
        return self._q_values(obs, None)

    @torch.no_grad()
    def _q_values(self, obs: Obs, noise: Noise | None) -> Tensor:
        return self.values.mean(self.working(obs, self._spread, noise))

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
        generator = generator or self._explore
        if epsilon is not None:
            return epsilon_greedy(self.q_values(obs), epsilon, generator, mask)
        noise = None
        if self._noise:
            noise = Noise(generator, len(obs if isinstance(obs, Tensor) else next(iter(obs.values()))))
        return self._explorer.choose(self._q_values(obs, noise), self.env_steps, generator, mask)

    def observe(self, step: Step) -> None:
        """Stores one step."""
        self.env_steps += int((~step.final).sum())
        if self._returns:  # rewards are normalised as they are drawn, by what is known by then
            self._returns.update(step)
        self.replay.add(step, transformed(step.reward, self.config))

    def learn(self) -> Metrics:
        """Does the learner steps, and renews the target, that the env steps so far have made due."""
        if not len(self.replay):
            return {}
        before, self._learned = self._learned, self.env_steps
        metrics: Metrics = {}
        due = self._learn.due(before, self.env_steps)
        if due and not self.learner_steps:
            self._weights.centre(self.replay.sample(_CENTRE).obs)
            copy_buffers(self.target, self.online)
        if due:
            self._weights.set_rate(self.env_steps)
            self.replay.sampler.anneal(self.env_steps)
            if self._returns:
                self._reward_factor.fill_(self._returns.factor)
            metrics = self._launch(due)
            self.learner_steps += due
        target = self.config.target
        if isinstance(target, FixedTarget) and Every(target.sync_every).due(before, self.env_steps):
            copy_tensors(self._slow, self._weights.parameters)
        reset = self.config.reset_head_every
        if reset and Every(reset).due(before, self.env_steps):
            self._reset_head(self.env_steps // reset)
        return metrics

    def _launcher(self) -> Callable[[int], Metrics]:
        if not self._captured:
            return self._updates
        drawn = [generator for name, generator in self._random.items() if name != "exploration"]
        return Captured(self._updates, drawn)

    def _updates(self, count: int) -> Metrics:
        """Does learner steps, on the device alone: nothing here waits for a number."""
        metrics: Metrics = {}
        for _ in range(count):
            metrics = self._update(self.replay.sample(self.config.batch_size))
        return metrics

    def _update(self, batch: Batch) -> Metrics:
        rows = torch.arange(len(batch.action), device=self.device)
        obs = self.working.prepare(batch.obs)
        with torch.no_grad():
            goal = self._goal(batch, obs)
        fractions = self._fractions(len(rows), self._asked.learned) if self._asked else None
        params = self.working.compute(obs, fractions, self._noise)[rows, batch.action]  # [B, Z]
        loss = self.values.loss(params, goal, fractions)  # [B]
        (batch.weight * loss).mean().backward()
        self._step()
        loss, params = loss.detach(), params.detach()
        if self._prioritised:
            self.replay.sampler.update(batch.row, self.values.error(params, goal, loss))
        mean = loss.mean()
        self._guard.watch(batch.row, mean, *self._norm)
        return {"loss": mean, "q_mean": self.values.mean(params).mean()}

    def _goal(self, batch: Batch, obs: list[Tensor]) -> Tensor:
        """Returns what to learn for a batch, whose `obs` are prepared already."""
        next_obs = self.working.prepare(batch.next_obs)  # once for both networks
        fractions = self._fractions(len(batch.action), self._asked.goals) if self._asked else None
        ahead = chooser = self.target.compute(next_obs, fractions, self._noise)  # [B, A, Z]
        if self.config.double or self._asked:
            network = self.working if self.config.double else self.target
            chooser = network.compute(next_obs, self._spread, self._noise)
        values = legal_values(self.values.mean(chooser), batch.mask)  # [B, A]
        reward = batch.reward * self._reward_factor if self._returns else batch.reward
        if self.config.munchausen.share:
            now = self.values.mean(self.target.compute(obs, self._spread, self._noise))
            now = legal_values(now, batch.obs_mask)
            bonus, policy = soften(self.config.munchausen, now, batch.action, values, batch.discount)
            reward = reward + bonus
        else:
            policy = F.one_hot(values.argmax(1), self.actions).to(ahead.dtype)  # [B, A]
        return self.values.target(reward, batch.discount, ahead, policy)

    def _fractions(self, rows: int, count: int) -> Tensor:
        """Draws fractions [rows, count]."""
        return torch.rand(rows, count, generator=self._random["fractions"], device=self.device)

    def _reset_head(self, index: int) -> None:
        """Starts the last layers of all networks anew, with their optimiser (Nikishin et al. 2022)."""
        fresh = list(self._fresh_network(index).parameters())
        names = [name for name, _ in self.online.named_parameters()]
        last = [at for at, name in enumerate(names) if name.startswith(("head.", "state_value."))]
        moved, renewed = self._weights.parameters, self._weights.renewed
        for weights in filter(None, (moved, renewed, self._slow, list(self.target.parameters()))):
            copy_tensors([weights[at] for at in last], [fresh[at] for at in last])
        for at in last:
            for moment in self.optimizer.state[moved[at]].values():
                moment.zero_()

    def _step(self) -> None:
        """Moves the weights along the gradient that lies on the working ones, and what follows them."""
        self._norm = self._weights.step()
        if isinstance(self.config.target, SoftTarget):
            with torch.no_grad():
                for slow, fast in zip(self._slow, self._weights.parameters, strict=True):
                    slow.lerp_(fast, self.config.target.rate)
            copy_tensors(list(self.target.parameters()), self._slow)

    def suspect(self) -> tuple[int, Batch] | None:
        """Returns the first learner step whose loss or gradient was no number, with its batch; waits."""
        found = self._guard.failed()
        if found is None:
            return None
        before, row = found
        return self._guarded + before + 1, self.replay.gather(row, torch.ones_like(row, dtype=torch.float32))

    def state_dict(self) -> State:
        """Returns weights, optimiser, counters and random streams; not the replay's rows."""
        names = [name for name, _ in self.online.named_parameters()]
        return {
            **self._weights.state_dict(),
            "target": {} if self.target is self.working else dict(zip(names, self._slow, strict=True)),
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "random": {name: generator.get_state() for name, generator in self._random.items()},
            "priorities": self.replay.sampler.state_dict(),
            "returns": self._returns.state_dict() if self._returns else {},
        }

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self._weights.load_state_dict(state)
        copy_buffers(self.target, self.online)
        if self.target is not self.working:
            names = [name for name, _ in self.online.named_parameters()]
            copy_tensors(self._slow, [state["target"][name] for name in names])
            copy_tensors(list(self.target.parameters()), self._slow)
        for name in _COUNTERS:
            setattr(self, name, state["counters"][name])
        self._guard, self._guarded = Guard(self.config.batch_size, self.device), self.learner_steps
        self._launch = self._launcher()  # a graph knows the tensors of before
        for name, generator in self._random.items():
            generator.set_state(state["random"][name].cpu())
        if self._prioritised:
            self.replay.sampler.load_state_dict(state["priorities"])
        if self._returns:
            self._returns.load_state_dict(state["returns"])


_CENTRE = 512  # observations that the mean image is taken of
_COUNTERS = ("env_steps", "learner_steps", "_learned")

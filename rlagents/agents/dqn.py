"""Q-learning with a network and the replay: DQN (Mnih et al. 2015) and its variants, each a field.

    goal = reward + discount**n * Q_target(next_obs, argmax over a of Q_chooser(next_obs, a))

where the chooser is the target network or, for double Q-learning, the online one; without a target network
both are the online one. Departures from the paper: Adam instead of RMSProp, one coin per environment.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlagents.agents.exploration import epsilon_greedy, legal_values
from rlagents.agents.graph import Captured
from rlagents.agents.guard import Guard
from rlagents.agents.values import Scalar, Values
from rlagents.config import DQN as Config
from rlagents.config import FixedTarget, NoTarget, SoftTarget
from rlagents.networks import Network, computes_in_bfloat16, has_pixels
from rlagents.replay import Ring, Uniform
from rlagents.schedules import Every, Linear
from rlagents.seeding import Streams
from rlagents.types import Batch, Metrics, Obs, State, Step
from rlagents_envs.vector import Layout


class DQN:
    """A network that learns the values of actions from the replay.

    Three networks at most: `online` holds the weights that the optimiser moves, in float32; `working` is what
    computes, the same object or, in bfloat16, a copy renewed after each learner step, which costs less than
    casting the weights anew in every pass; `target` is what the goals come from.
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
        scalar = config.values
        self.values: Values = Scalar(scalar.huber_delta if scalar.loss == "huber" else None)
        with torch.random.fork_rng(devices=[]):  # torch initialises from its global stream only
            torch.manual_seed(streams.integer("network"))
            self.online = Network(config.network, layout, actions, self.values.width)
        self.online.to(device)
        narrow = config.precision == "bfloat16" or (
            config.precision == "auto" and has_pixels(layout) and computes_in_bfloat16(device)
        )
        self.working = copy.deepcopy(self.online).narrow_() if narrow else self.online
        self.target = (
            self.working
            if isinstance(config.target, NoTarget)
            else copy.deepcopy(self.working).requires_grad_(False)
        )
        self._renewed = list(self.working.parameters()) if narrow else []
        self._parameters = list(self.online.parameters())
        # A moving average needs float32: in bfloat16 its small steps would round to nothing.
        averages = narrow and isinstance(config.target, SoftTarget)
        self._slow = (
            [p.detach().clone() for p in self._parameters] if averages else list(self.target.parameters())
        )
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            self._parameters,
            lr=torch.tensor(config.learning_rate, device=device) if on_gpu else config.learning_rate,
            eps=config.adam_epsilon,
            fused=True,
            capturable=on_gpu,
        )
        self._explore = streams.torch("exploration", device)
        self._sampling = streams.torch("replay", device)
        self._guard, self._guarded = Guard(config.batch_size, device), 0  # from which learner step on
        self._norm: list[Tensor] = []  # of the newest gradient, where it is limited
        self._captured = on_gpu and config.cuda_graph
        self._launch = self._launcher()
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
        self._exploration = Linear(config.exploration.start, config.exploration.end, config.exploration.steps)
        self._rate = Linear(config.learning_rate, config.final_learning_rate, env_steps)
        self._learn = Every(config.learn_every, config.learning_starts)
        self._learned = 0  # env steps at the last `learn`

    @property
    def epsilon(self) -> float:
        """Probability of a uniform action at present."""
        return self._exploration(self.env_steps)

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
        epsilon = self.epsilon if epsilon is None else epsilon
        return epsilon_greedy(self.q_values(obs), epsilon, generator or self._explore, mask)

    def observe(self, step: Step) -> None:
        """Stores one step."""
        self.env_steps += int((~step.final).sum())
        self.replay.add(step, step.reward.sign() if self.config.reward_transform == "sign" else step.reward)

    def learn(self) -> Metrics:
        """Does the learner steps, and renews the target, that the env steps so far have made due."""
        if not len(self.replay):
            return {}
        before, self._learned = self._learned, self.env_steps
        metrics: Metrics = {}
        due = self._learn.due(before, self.env_steps)
        if due and not self.learner_steps:
            self.online.centre_(self.replay.sample(_CENTRE).obs)
            self._share()
        if due:
            self._set_rate(self._rate(self.env_steps))
            metrics = self._launch(due)
            self.learner_steps += due
        target = self.config.target
        if isinstance(target, FixedTarget) and Every(target.sync_every).due(before, self.env_steps):
            _copy(self._slow, self._parameters)
        return metrics

    def _launcher(self) -> Callable[[int], Metrics]:
        return Captured(self._updates, [self._sampling]) if self._captured else self._updates

    def _set_rate(self, rate: float) -> None:
        group = self.optimizer.param_groups[0]
        if isinstance(group["lr"], Tensor):  # a recorded graph reads it from where it is
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

    def _updates(self, count: int) -> Metrics:
        """Does learner steps, on the device alone: nothing here waits for a number."""
        metrics: Metrics = {}
        for _ in range(count):
            metrics = self._update(self.replay.sample(self.config.batch_size))
        return metrics

    def _update(self, batch: Batch) -> Metrics:
        rows = torch.arange(len(batch.action), device=self.device)
        with torch.no_grad():
            next_obs = self.working.prepare(batch.next_obs)  # once for both networks
            ahead = self.target.compute(next_obs)  # [B, A, Z]
            chooser = self.working.compute(next_obs) if self.config.double else ahead
            best = legal_values(self.values.mean(chooser), batch.mask).argmax(1)  # [B]
            policy = F.one_hot(best, self.actions).to(ahead.dtype)  # [B, A]
            goal = self.values.target(batch.reward, batch.discount, ahead, policy)
        params = self.working(batch.obs)[rows, batch.action]  # [B, Z]
        loss = self.values.loss(params, goal)  # [B]
        (batch.weight * loss).mean().backward()
        self._step()
        self.replay.sampler.update(batch.row, loss.detach())
        mean = loss.detach().mean()
        self._guard.watch(batch.row, mean, *self._norm)
        return {"loss": mean, "q_mean": self.values.mean(params.detach()).mean()}

    def _share(self) -> None:
        """Gives the working and the target network what the online one holds beside its weights."""
        for network in (self.working, self.target):
            for mine, theirs in zip(network.buffers(), self.online.buffers(), strict=True):
                mine.copy_(theirs)

    def _step(self) -> None:
        """Moves the online weights along the gradient that lies on the working ones."""
        if self._renewed:
            for wide in self._parameters:
                if wide.grad is None:
                    wide.grad = torch.empty_like(wide)
            _copy(_gradients(self._parameters), _gradients(self._renewed))
        if self.config.gradient_clip:
            self._norm = [torch.nn.utils.clip_grad_norm_(self._parameters, self.config.gradient_clip)]
        self.optimizer.step()
        with torch.no_grad():
            if self._renewed:
                _copy(self._renewed, self._parameters)
            if isinstance(self.config.target, SoftTarget):
                for slow, fast in zip(self._slow, self._parameters, strict=True):
                    slow.lerp_(fast, self.config.target.rate)
                _copy(list(self.target.parameters()), self._slow)
        for parameter in self._renewed or self._parameters:
            parameter.grad = None

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
        moments = {
            name: dict(self.optimizer.state[parameter])
            for name, parameter in self.online.named_parameters()
            if parameter in self.optimizer.state
        }
        return {
            "policy": dict(self.online.state_dict()),
            "target": {} if self.target is self.working else dict(zip(names, self._slow, strict=True)),
            "optimizer": moments,
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "random": {"exploration": self._explore.get_state(), "replay": self._sampling.get_state()},
        }

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self.online.load_state_dict(state["policy"])
        self._share()
        if self._renewed:
            _copy(self._renewed, self._parameters)
        names = [name for name, _ in self.online.named_parameters()]
        if self.target is not self.working:
            _copy(self._slow, [state["target"][name] for name in names])
            _copy(list(self.target.parameters()), self._slow)
        self.optimizer.state.clear()
        for name, parameter in zip(names, self._parameters, strict=True):
            if moments := state["optimizer"].get(name):
                # In the parameter's own memory layout: the fused optimiser goes through memory, not by index.
                self.optimizer.state[parameter] = {
                    "step": moments["step"].clone().to(self.device),
                    "exp_avg": torch.empty_like(parameter).detach().copy_(moments["exp_avg"]),
                    "exp_avg_sq": torch.empty_like(parameter).detach().copy_(moments["exp_avg_sq"]),
                }
        for name in _COUNTERS:
            setattr(self, name, state["counters"][name])
        self._guard, self._guarded = Guard(self.config.batch_size, self.device), self.learner_steps
        self._launch = self._launcher()  # a graph knows the tensors of before
        self._explore.set_state(state["random"]["exploration"].cpu())
        self._sampling.set_state(state["random"]["replay"].cpu())


_CENTRE = 512  # observations that the mean image is taken of
_COUNTERS = ("env_steps", "learner_steps", "_learned")


@torch.no_grad()
def _copy(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copies tensors to others of their shapes, whatever their precision, in one call."""
    torch._foreach_copy_(list(to), list(source))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]

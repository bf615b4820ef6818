"""Q-learning with a network and the replay: DQN (Mnih et al. 2015) and its variants, each a field.

    goal = reward + discount**n * Q_target(next_obs, argmax over a of Q_chooser(next_obs, a))

where the chooser is the target network or, for double Q-learning, the online one; without a target network
both are the online one. Departures from the paper: Adam instead of RMSProp, one coin per environment.

n may fall and the discount rise while the agent learns (Schwarzer et al. 2023): long returns bring rewards
fast, short ones depend less on actions that the agent would no longer take; and a small discount is learned
fast, while a large one makes patient agents.

With a bound, the return of more steps is learned in place of that of n where it is the larger one. Where
nothing is left to chance, what happened is a lower bound of the best value, and what led to a reward counts
as good over all those steps at once; elsewhere luck counts as merit. The larger of two guesses is too high,
too, so values are optimistic, and a bound is for the first part of a budget. Departures from optimality
tightening (He et al. 2017): the goal itself is raised, in place of a penalty, by one return of a fixed
length, and there is no upper bound.

With `cut_traces`, an n-step return ends before the next action that was not greedy when it was taken
(Watkins 1989), and bootstraps there: what an exploring action brought is no merit of those before it.

With several `heads`, last layers on one body learn side by side, each towards goals of its own, of the action
that it would choose. They start from different weights and differ where little was seen, so environments that
act by one each explore for whole episodes (bootstrapped DQN, Osband et al. 2016). Departures from the paper:
heads take turns in place of being drawn, learn from every transition, and evaluations act by their mean.

Soft values (Munchausen, Vieillard et al. 2020) take the policy softmax(Q_target / temperature) in place of
the maximum. What a value is, how the replay is sampled and how actions are explored are objects of their own.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rlagents.agents.exploration import legal_values
from rlagents.agents.network_agent import NetworkAgent
from rlagents.agents.rewards import transformed
from rlagents.agents.values import soften, taken
from rlagents.agents.weights import copy_buffers, copy_tensors
from rlagents.config import DQN as Config
from rlagents.config import FixedTarget, NoTarget, SoftTarget
from rlagents.networks import Noise
from rlagents.replay import make as make_replay
from rlagents.schedules import Every, Geometric, TowardsOne
from rlagents.types import Batch, Metrics, Obs, State, Step, Task
from rlagents_envs.vector import Bools

_CENTRE = 512  # observations that the mean image is taken of


class DQN(NetworkAgent[Config]):
    """A network that learns the values of actions from the replay.

    Beside the networks of `Weights` there is `target`, which the goals come from.
    """

    _counters = ("env_steps", "learner_steps", "_learned")

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task, config.batch_size)
        self._turn = torch.arange(task.environments) % self.config.heads  # [N] the head that each explores by
        self.target = (
            self.working
            if isinstance(config.target, NoTarget)
            else copy.deepcopy(self.working).requires_grad_(False)
        )
        # A moving average needs float32: in bfloat16 its small steps would round to nothing.
        averages = self._weights.narrow and isinstance(config.target, SoftTarget)
        parameters = [p.detach().clone() for p in self._weights.parameters] if averages else None
        self._slow = parameters or list(self.target.parameters())
        noisy = config.network.noisy
        drawn = {"replay": True, "fractions": self._asked, "noise": noisy, "acting": noisy}
        self._random |= {name: task.streams.torch(name, self.device) for name, used in drawn.items() if used}
        # One noise for a whole batch that is learned, as in the paper; one for each environment that acts.
        self._noise = Noise(self._random["noise"]) if noisy else None
        self._reward_factor = torch.ones((), device=self.device)
        self._notes_exploring = config.cut_traces
        self._prioritised = config.replay.sampling.kind != "uniform"
        self._norm: list[Tensor] = []  # of the newest gradient, where it is limited
        self.replay = make_replay(config, task, self._random["replay"])
        change = config.horizon_steps - config.horizon_hold  # env steps that it takes
        self._n_step = Geometric(config.n_step, config.n_step_end or config.n_step, change)
        self._discount = TowardsOne(config.discount, config.discount_end or config.discount, change)
        self._bound_until = config.n_step_bound_until or math.inf
        self._learn = Every(config.learn_every, config.learning_starts)
        self._learned = 0  # env steps at the last `learn`
        self._begin()

    def _values_to_explore(
        self, obs: Obs, mask: Tensor | None, first: Bools | None, generator: torch.Generator
    ) -> Tensor:
        noise = None
        if self._noise:
            count = len(obs if isinstance(obs, Tensor) else next(iter(obs.values())))
            noise = Noise(self._random["acting"], count)
        values = self._q_values(self.working, obs, noise)
        if self.config.heads == 1:
            return values
        if first is not None:  # an episode begins: the next head's turn
            self._turn = (self._turn + torch.as_tensor(first)) % self.config.heads
        return values[torch.arange(len(values)), :, self._turn]

    def _values_of(self, obs: Obs) -> Tensor:
        """Returns values [N, A] without noise, by the average weights if they are kept, and of all heads."""
        values = super()._values_of(obs)
        return values if self.config.heads == 1 else values.mean(2)

    @property
    def _width(self) -> int:
        """The numbers that the network puts out for each action."""
        return self.config.heads * self.values.width

    def _valued(self, params: Tensor) -> Tensor:
        """Returns values [N, A], or of each head [N, A, K], of what the network puts out."""
        return self.values.mean(params if self.config.heads == 1 else self._by_head(params))

    def _apart(self, params: Tensor) -> Tensor:
        """Returns what the network puts out with each head as a row of its own, [B * K, A, Z]."""
        if self.config.heads == 1:
            return params
        return self._by_head(params).transpose(1, 2).flatten(0, 1)

    def _by_head(self, params: Tensor) -> Tensor:
        """Returns what the network puts out, [B, A, K * Z], as [B, A, K, Z]."""
        return params.view(*params.shape[:2], self.config.heads, -1)

    def _for_each(self, batch: Batch) -> Batch:
        """Returns a batch whose actions, rewards, discounts and masks are there for each head, [B * K]."""
        if self.config.heads == 1:
            return batch

        def each(rows: Tensor) -> Tensor:
            return rows.repeat_interleave(self.config.heads, 0)

        return batch._replace(
            action=each(batch.action),
            reward=each(batch.reward),
            discount=each(batch.discount),
            mask=None if batch.mask is None else each(batch.mask),
            obs_mask=None if batch.obs_mask is None else each(batch.obs_mask),
        )

    def _over_heads(self, rows: Tensor) -> Tensor:
        """Returns the means [B] over heads of [B * K]."""
        return rows if self.config.heads == 1 else rows.view(-1, self.config.heads).mean(1)

    def observe(self, step: Step) -> None:
        """Stores one step."""
        super().observe(step)
        self.replay.add(step, transformed(step.reward, self.config), self._explored)

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
            self._weights.set_rates(self.env_steps)
            self.replay.sampler.anneal(self.env_steps)
            changed = max(0, self.env_steps - self.config.horizon_hold)
            bound = self.config.horizons[1:] if self.env_steps < self._bound_until else ()
            self.replay.set_horizons((round(self._n_step(changed)), *bound), self._discount(changed))
            if self._returns:
                self._reward_factor.fill_(self._returns.factor)
            metrics = self._launch(due, self.replay.masked, self.replay.horizons)
            self.learner_steps += due
        target = self.config.target
        if isinstance(target, FixedTarget) and Every(target.sync_every).due(before, self.env_steps):
            copy_tensors(self._slow, self._weights.parameters)
        reset = self.config.reset_head_every
        if reset and Every(reset).due(before, self.env_steps):
            self._reset_head(self.env_steps // reset)
        return metrics

    def _updates(self, count: int) -> Metrics:
        metrics: Metrics = {}
        for _ in range(count):
            metrics = self._update(self.replay.sample(self.config.batch_size))
        return metrics

    def _update(self, batch: Batch) -> Metrics:
        obs, each = self.working.prepare(batch.obs), self._for_each(batch)
        with torch.no_grad():
            goal = self._goal(each, obs)
        fractions = self._fractions(len(batch.action), self._asked.learned) if self._asked else None
        params = self._apart(self.working.compute(obs, fractions, self._noise))
        params = taken(params, each.action)  # [B * K, Z]
        loss = self.values.loss(params, goal, fractions)  # [B * K]
        (batch.weight * self._over_heads(loss)).mean().backward()
        self._step()
        loss, params = loss.detach(), params.detach()
        if self._prioritised:
            self.replay.sampler.update(batch.row, self._over_heads(self.values.error(params, goal, loss)))
        mean = loss.mean()
        self._guard.watch(batch.row, mean, *self._norm)
        return {"loss": mean, "q_mean": self.values.mean(params).mean()}

    def _goal(self, batch: Batch, obs: list[Tensor]) -> Tensor:
        """Returns what each head is to learn, [B * K, Z]; `batch` is as `_for_each` returned it.

        In it are R = H * B * K returns.
        """
        next_obs = self.working.prepare(batch.next_obs)  # once for both networks
        fractions = self._fractions(len(batch.reward), self._asked.goals) if self._asked else None
        ahead = chooser = self._apart(self.target.compute(next_obs, fractions, self._noise))  # [R, A, Z]
        if self.config.double or self._asked:
            network = self.working if self.config.double else self.target
            chooser = self._apart(network.compute(next_obs, self._spread, self._noise))
        values = legal_values(self.values.mean(chooser), batch.mask)  # [R, A]
        reward = batch.reward * self._reward_factor if self._returns else batch.reward
        discount, count = batch.discount, len(batch.action)
        horizons = len(reward) // count  # H
        if self.config.munchausen.share:
            now = self.values.mean(self._apart(self.target.compute(obs, self._spread, self._noise)))
            now, action = legal_values(now, batch.obs_mask).repeat(horizons, 1), batch.action.repeat(horizons)
            bonus, policy = soften(self.config.munchausen, now, action, values, discount)
            reward = reward + bonus
        else:
            policy = F.one_hot(values.argmax(1), self.actions).to(ahead.dtype)  # [R, A]
        if horizons > 1:  # of each row the largest return
            worth = reward + discount * (policy * self.values.mean(ahead)).sum(1)
            best = worth.view(horizons, count).argmax(0) * count + torch.arange(count, device=worth.device)
            reward, discount, ahead, policy = (part[best] for part in (reward, discount, ahead, policy))
        return self.values.target(reward, discount, ahead, policy)

    def _fractions(self, rows: int, count: int) -> Tensor:
        """Draws fractions [rows, count]."""
        return torch.rand(rows, count, generator=self._random["fractions"], device=self.device)

    def _reset_head(self, index: int) -> None:
        """Starts the last layers of all networks anew, with their optimiser (Nikishin et al. 2022)."""
        fresh = list(self._fresh_network(index).parameters())
        names = [name for name, _ in self.online.named_parameters()]
        last = [at for at, name in enumerate(names) if name.startswith(("head.", "state_value."))]
        moved, renewed, average = self._weights.parameters, self._weights.renewed, self._weights.average
        for weights in filter(None, (moved, renewed, average, self._slow, list(self.target.parameters()))):
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
            **super().state_dict(),
            "target": {} if self.target is self.working else dict(zip(names, self._slow, strict=True)),
            "turn": self._turn,
            "priorities": self.replay.sampler.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        copy_buffers(self.target, self.online)
        if self.target is not self.working:
            names = [name for name, _ in self.online.named_parameters()]
            copy_tensors(self._slow, [state["target"][name] for name in names])
            copy_tensors(list(self.target.parameters()), self._slow)
        if self._prioritised:
            self.replay.sampler.load_state_dict(state["priorities"])
        self._turn = state.get("turn", self._turn)

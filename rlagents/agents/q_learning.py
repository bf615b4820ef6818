"""Tables of values: Q-learning (Watkins 1989), SARSA and their kin, online or from the shared replay."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlagents import machine
from rlagents.agents.actor import Actor
from rlagents.agents.exploration import probabilities
from rlagents.config import QLearning as Config
from rlagents.replay import Ring
from rlagents.replay import make as make_replay
from rlagents.schedules import Every, Linear
from rlagents.types import Metrics, Obs, State, Step, Task, named
from rlagents_envs.vector import Bools

Numbers: TypeAlias = NDArray[np.int64]
Values: TypeAlias = NDArray[np.float64]


class QLearning(Actor):
    """A table Q [S, A], float64, or two of them, moved towards what a return of up to n steps says.

    With reward r(k), action a(k) and value V(k) of the successor in row k of an episode, the goal of row 0 is
    G(0), where G(k) = r(k) + discount * ((1 - c) * V(k) + c * G(k + 1)) and c is `trace_decay`; c is 0 in row
    n - 1 and where the episode ended, and with `cut_traces` also where a(k + 1) was not greedy. Nothing
    follows a termination. V is by `target_policy` the best value (Q-learning, Watkins 1989), the mean over
    the agent's own policy (expected SARSA, van Seijen et al. 2009) or the value of the action that was taken
    (SARSA, Rummery and Niranjan 1994); the mean also where an episode was cut off and no action counts.

    Departures: the lambda-return looks at most n steps ahead and is learned once it is whole (Cichosz 1995)
    in place of eligibility traces that go back without end; and a step is learned from one tick later, after
    the next action was chosen, as everywhere in this loop.

    With `double` (van Hasselt 2010) a coin says which of two tables moves; it chooses, the other one values.
    The agent acts on their mean. Ties are broken at random, except with an epsilon of 0.

    Several environments may visit one entry at once: the entry moves by the mean of their errors, which does
    not depend on their order.

    Raises:
        ValueError: an observation is not one of S states, or a dictionary of such, or S is too large.
    """

    _counters = ("env_steps", "learner_steps", "_learned")

    def __init__(self, config: Config, task: Task) -> None:
        task = task._replace(device=torch.device("cpu"))  # N look-ups take less time than a call to a GPU
        super().__init__(config.exploration, task, ties=True)
        leaves = named(task.layout)
        if any(leaf.kind != "index" for leaf in leaves.values()):
            raise ValueError(
                "agent.kind must be a network agent for this environment: a table needs numbered states, got "
                f"{task.layout}; set agent.kind to dqn, or give the environment a Discrete observation "
                "space, or cut it into cells with env.bins"
            )
        self._sizes = {name: leaf.size for name, leaf in leaves.items()}
        states = math.prod(self._sizes.values())
        self.config = config
        shape = (1 + config.double, states, task.actions)
        size, free = 2 * 8 * math.prod(shape), machine.available(self.device)  # values and visits
        if size > free:
            raise ValueError(
                f"agent.kind q_learning must have a table that fits into memory, got {states} states and "
                f"{task.actions} actions: it takes {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free; "
                "cut observations into fewer cells with env.bins, or set agent.kind to dqn"
            )
        self._tables = np.full(shape, config.initial_value)  # [1 or 2, S, A]
        self._visits = np.zeros(self._tables.size)  # of each entry in the update under way; else zero
        steps = config.learning_rate_steps or task.env_steps
        self._rate = Linear(config.learning_rate, config.final_learning_rate, steps)
        self._random |= {name: task.streams.torch(name, self.device) for name in ("replay", "tables")}
        self._learn = Every(config.learn_every, config.learning_starts)
        self._learned = 0  # env steps at the last `learn`
        self._window: list[Step] = []  # of the newest steps, with states for observations
        self._horizon = config.n_step + (config.target_policy == "sampled")  # steps that a goal needs
        from_replay = config.learn_from == "replay"
        self.replay = make_replay(config, task, self._random["replay"]) if from_replay else None

    @property
    def q(self) -> Tensor:
        """The values [S, A] that the agent acts on."""
        return torch.as_tensor(self._tables.mean(0) if self.config.double else self._tables[0])

    def _values_of(self, obs: Obs) -> Tensor:
        """Returns the table's rows [N, A] float64 of states [N]."""
        return torch.as_tensor(self._rows(self._states(obs).numpy()))

    def observe(self, step: Step) -> None:
        """Stores one step."""
        super().observe(step)
        if self.replay is not None:
            self.replay.add(step, step.reward)
        else:
            obs, next_obs = self._states(step.obs), self._states(step.next_obs)
            self._window.append(step._replace(obs=obs, next_obs=next_obs))

    def learn(self) -> Metrics:
        """Learns from the oldest step whose goal is known, or does the batches that are due."""
        metrics: Metrics = {}
        if self.replay is None:
            while len(self._window) >= self._horizon:
                metrics = self._online() or metrics
                del self._window[0]
        elif len(self.replay):
            due, self._learned = self._learn.due(self._learned, self.env_steps), self.env_steps
            for _ in range(due):
                metrics = self._batch(self.replay)
        return metrics

    def _batch(self, replay: Ring) -> Metrics:
        """Moves the entries of a batch of the replay."""
        batch = replay.sample(self.config.batch_size)
        table = self._toss(len(batch.row))
        mask = None if batch.mask is None else batch.mask.numpy()
        value = self._value(self._states(batch.next_obs).numpy(), mask, table)
        goal = batch.reward.numpy() + batch.discount.numpy() * value
        return self._move(self._states(batch.obs).numpy(), batch.action.numpy(), goal, table)

    def _online(self) -> Metrics:
        """Moves the entries of the window's oldest step."""
        config, count = self.config, self.config.n_step
        path, later = self._window[:count], self._window[1 : self._horizon]
        oldest = path[0]
        real = np.flatnonzero(~oldest.final)
        if not len(real):
            return {}
        reward = _stack([step.reward for step in path])  # [n, N]
        terminated = _stack([step.terminated for step in path])
        truncated = _stack([step.truncated for step in path])
        successor = _stack([_numbers(step.next_obs) for step in path])
        mask = self._masks(path)  # [n, N, A]
        after = _stack([step.action for step in later]) if later else None  # [n - 1 or n, N]
        table = self._toss(reward.shape[1])
        value = self._value(
            successor.ravel(),
            None if mask is None else mask.reshape(-1, self.actions),
            None if table is None else np.tile(table, count),
            None if after is None or len(after) < count else (after.ravel(), ~truncated.ravel()),
        ).reshape(reward.shape)
        goal = reward[-1] + config.discount * ~terminated[-1] * value[-1]
        for k in range(count - 2, -1, -1):
            assert after is not None  # there are n - 1 actions at least
            # What follows a lost step is a final row, like what follows an end.
            closed = terminated[k] | truncated[k] | path[k + 1].final
            weight = config.trace_decay * ~closed  # [N]
            if config.cut_traces:
                rows = _legal(self._rows(successor[k]), None if mask is None else mask[k])
                weight = weight * (rows[np.arange(len(rows)), after[k]] >= rows.max(1))
            ahead = value[k] + weight * (goal - value[k])
            goal = reward[k] + config.discount * ~terminated[k] * ahead
        return self._move(
            _numbers(oldest.obs)[real],
            oldest.action[real],
            goal[real],
            None if table is None else table[real],
        )

    def _value(
        self,
        state: Numbers,
        mask: Bools | None,
        table: Numbers | None,
        sampled: tuple[Numbers, Bools] | None = None,
    ) -> Values:
        """Returns what states [B] are worth to the target policy.

        Args:
            state: [B].
            mask: [B, A] legal actions in them; None: all.
            table: [B] which table moves, where there are two.
            sampled: [B] what was done in them, and [B] whether it was, for the sampled policy.
        """
        valuing = self._tables[0 if table is None else 1 - table, state]  # [B, A]
        if self.config.target_policy == "greedy":
            if table is None:
                return _legal(valuing, mask).max(1)
            choice = _legal(self._tables[table, state], mask).argmax(1)
            return valuing[np.arange(len(state)), choice]
        if sampled is not None and sampled[1].all():
            return valuing[np.arange(len(state)), sampled[0]]
        legal = None if mask is None else torch.as_tensor(mask)
        policy = probabilities(torch.as_tensor(self._rows(state)), self.epsilon, legal).numpy()  # [B, A]
        mean: Values = (policy * valuing).sum(1)
        if sampled is None:
            return mean
        action, done = sampled
        return np.where(done, valuing[np.arange(len(state)), action], mean)

    def _move(self, state: Numbers, action: Numbers, goal: Values, table: Numbers | None) -> Metrics:
        """Moves the entries of states and actions [B] towards goals [B]; `table` as in `_value`."""
        flat, entry = self._tables.reshape(-1), state * self.actions + action
        if table is not None:
            entry = entry + table * self._tables[0].size
        error = goal - flat[entry]
        np.add.at(self._visits, entry, 1)
        np.add.at(flat, entry, self._rate(self.env_steps) * error / self._visits[entry])
        self._visits[entry] = 0
        self.learner_steps += 1
        return {"loss": torch.as_tensor(error @ error / (2 * len(error)))}

    def _toss(self, size: int) -> Numbers | None:
        """Returns which of two tables moves, [size]; None where there is one."""
        if not self.config.double:
            return None
        return torch.randint(2, (size,), generator=self._random["tables"]).numpy()

    def _masks(self, path: Sequence[Step]) -> Bools | None:
        """Returns the legal actions [n, N, A] of the steps' successors; None where nobody gave any."""
        if all(step.next_mask is None for step in path):
            return None
        every = np.ones((len(path[0].action), self.actions), np.bool_)
        return _stack([every if step.next_mask is None else step.next_mask for step in path])

    def _rows(self, state: Numbers) -> Values:
        """Returns the values [B, A] that the agent acts on in states [B]."""
        return self._tables[:, state].mean(0) if self.config.double else self._tables[0].take(state, 0)

    def _states(self, obs: Obs) -> Tensor:
        """Returns the numbers [N] of the observed states; of several indices the last one counts units."""
        if not isinstance(obs, dict):
            return obs
        number = torch.zeros((), dtype=torch.int64, device=self.device)
        for name, size in self._sizes.items():
            number = number * size + obs[name]
        return number

    def state_dict(self) -> State:
        """Returns the tables, counters, random streams and the steps that are yet to be learned from."""
        window = [
            {name: torch.as_tensor(part).clone() for name, part in step._asdict().items() if part is not None}
            for step in self._window
        ]
        return {
            "policy": {"q": torch.as_tensor(self._tables)},
            **super().state_dict(),
            "window": {str(age): step for age, step in enumerate(window)},
        }

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self._tables[:] = state["policy"]["q"].cpu().numpy()
        super().load_state_dict(state)
        window = state.get("window", {})
        self._window = []
        for age in range(len(window)):
            step = Step(**window[str(age)])
            rest = {name: part.numpy() for name, part in window[str(age)].items() if "obs" not in name}
            self._window.append(step._replace(**rest))


def _stack(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _legal(values: Values, mask: Bools | None) -> Values:
    """Returns values [B, A] with -inf where an action is illegal."""
    return values if mask is None else np.where(mask, values, -np.inf)


def _numbers(obs: Obs) -> Numbers:
    assert isinstance(obs, Tensor)  # `observe` made a number of it
    return obs.numpy()

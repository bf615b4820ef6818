"""What a training has come to: its steps, its episodes and their returns, and how fast it goes."""

import time
from collections import deque

import numpy as np
import torch

from rlagents.types import Metrics, State, Step

_RECENT = 20  # episodes that a training return is the mean of


class Tracker:
    """Counts env steps and finished episodes, from the rewards as the environment paid them."""

    def __init__(self, environments: int) -> None:
        self.env_steps = self.episodes = 0
        self.best: float | None = None  # mean return of the best evaluation
        self.learned: Metrics = {}  # what the newest learner steps said
        self.unevaluated = False  # whether an evaluation at these env steps is still to come
        self._return = np.zeros(environments)
        self._length = np.zeros(environments, np.int64)
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)

    def update(self, step: Step) -> None:
        """Takes note of one step of N environments."""
        first, final = step.first, step.final
        self._return[first], self._length[first] = 0, 0
        self._return += step.reward
        self._length += ~final
        self.env_steps += int(np.count_nonzero(~final))
        # Where a simulator died there was no end; two rows are final then, the second of them first, too.
        over = final & ~first if step.lost is None else final & ~first & ~step.lost
        for lane in np.flatnonzero(over):
            self.episodes += 1
            self._recent.append((float(self._return[lane]), int(self._length[lane])))

    def metrics(self) -> dict[str, float]:
        """Returns what is known about the newest episodes."""
        if not self._recent:
            return {}
        returns, lengths = np.array(self._recent).T
        return {
            "train/return": float(returns.mean()),
            "train/episode_length": float(lengths.mean()),
            "train/episodes": float(self.episodes),
        }

    def state_dict(self) -> State:
        """Returns counters and unfinished episodes."""
        return {
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "best": self.best,
            "learned": {name: float(value) for name, value in self.learned.items()},  # in their order
            "unevaluated": self.unevaluated,
            "return": self._return.tolist(),
            "length": self._length.tolist(),
            "recent": [list(pair) for pair in self._recent],
        }

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self.env_steps, self.episodes, self.best = state["env_steps"], state["episodes"], state["best"]
        self._return, self._length = np.array(state["return"]), np.array(state["length"])
        self._recent.extend((value, length) for value, length in state["recent"])
        learned = state.get("learned", {})  # schema 1 has neither
        self.learned = {name: torch.tensor(value, dtype=torch.float64) for name, value in learned.items()}
        self.unevaluated = state.get("unevaluated", False)


class Clock:
    """Env steps and learner steps per second since the last time it was asked."""

    def __init__(self, env_steps: int, learner_steps: int) -> None:
        self.restart(env_steps, learner_steps)

    def restart(self, env_steps: int, learner_steps: int) -> None:
        """Leaves out the time since it was asked, such as that of an evaluation."""
        self._last = (time.perf_counter(), env_steps, learner_steps)

    def speeds(self, env_steps: int, learner_steps: int) -> dict[str, float]:
        """Returns both rates."""
        now = time.perf_counter()
        then, env_before, learner_before = self._last
        self.restart(env_steps, learner_steps)
        seconds = max(now - then, 1e-9)
        return {
            "speed/env_steps_per_second": (env_steps - env_before) / seconds,
            "speed/learner_steps_per_second": (learner_steps - learner_before) / seconds,
        }

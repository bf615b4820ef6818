"""Values that change with the number of env steps, and events that are due every so many of them."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """From `start` to `end` over `steps` env steps, constant afterwards; how, a subclass says."""

    start: float
    end: float
    steps: int

    def __call__(self, env_steps: int) -> float:
        """Returns the value after so many env steps."""
        constant = env_steps >= self.steps or self.start == self.end
        return self.end if constant else self._between(env_steps)

    def _between(self, env_steps: int) -> float:
        raise NotImplementedError


class Linear(Schedule):
    """Along a straight line."""

    def _between(self, env_steps: int) -> float:
        return self.start + (self.end - self.start) * env_steps / self.steps


class Cosine(Schedule):
    """Along half a cosine."""

    def _between(self, env_steps: int) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * env_steps / self.steps)) / 2


class Geometric(Schedule):
    """By equal ratios in equal times; both ends are above 0."""

    def _between(self, env_steps: int) -> float:
        return self.start * (self.end / self.start) ** (env_steps / self.steps)


class TowardsOne(Schedule):
    """What is left to 1 changes by equal ratios in equal times; both ends are below 1."""

    def _between(self, env_steps: int) -> float:
        return 1 - Geometric(1 - self.start, 1 - self.end, self.steps)(env_steps)


@dataclass(frozen=True)
class Every:
    """An event every `period` env steps, counted from `start`.

    N environments step at once and may jump over several periods: `due` counts them, so that the ratio of
    learner steps to env steps is exact for any N.
    """

    period: int
    start: int = 0

    def due(self, before: int, after: int) -> int:
        """Returns how many times the event falls in the env steps (before, after]."""
        return max(0, after - self.start) // self.period - max(0, before - self.start) // self.period

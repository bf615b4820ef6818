"""The shared replay: a ring of timesteps (`Ring`) and what draws rows from it (`Sampler`)."""

import torch

from rlagents.config import ProportionalSampling, Replay
from rlagents.replay.priority import Proportional
from rlagents.replay.ring import Ring, row_bytes
from rlagents.replay.sampling import Sampler, Uniform
from rlagents.schedules import Linear

__all__ = ["Proportional", "Ring", "Sampler", "Uniform", "make_sampler", "row_bytes"]


def make_sampler(config: Replay, generator: torch.Generator, env_steps: int) -> Sampler:
    """Returns what draws rows of a replay.

    Args:
        config: the `[agent.replay]` table.
        generator: where draws come from, on the replay's device.
        env_steps: the budget, for importance weights that change over the whole of it.
    """
    sampling = config.sampling
    if isinstance(sampling, ProportionalSampling):
        importance = Linear(sampling.importance_start, sampling.importance_end, env_steps)
        return Proportional(
            config.capacity,
            generator,
            exponent=sampling.exponent,
            importance=importance,
            floor=sampling.floor,
        )
    return Uniform(config.capacity, generator)

"""The shared replay: a ring of timesteps (`Ring`) and what draws rows from it (`Sampler`)."""

import torch

from rlagents.config import ProportionalSampling, ReplayLearner
from rlagents.replay.priority import Proportional
from rlagents.replay.ring import Ring, row_bytes
from rlagents.replay.sampling import Sampler, Uniform
from rlagents.schedules import Linear
from rlagents.types import Task

__all__ = ["Proportional", "Ring", "Sampler", "Uniform", "make", "row_bytes"]


def make(config: ReplayLearner, task: Task, generator: torch.Generator) -> Ring:
    """Returns the replay of an agent.

    Args:
        config: of the agent.
        task: what it is built for.
        generator: where draws come from, on the task's device.
    """
    capacity, sampling = config.replay.capacity, config.replay.sampling
    if isinstance(sampling, ProportionalSampling):
        sampler = Proportional(
            capacity,
            generator,
            exponent=sampling.exponent,
            importance=Linear(sampling.importance_start, sampling.importance_end, task.env_steps),
            floor=sampling.floor,
        )
    else:
        sampler = Uniform(capacity, generator)
    ring = Ring(
        task.layout,
        task.actions,
        environments=task.environments,
        capacity=capacity,
        n_step=max(config.horizons),
        discount=config.discount,
        sampler=sampler,
        device=task.device,
    )
    ring.set_horizons(config.horizons, config.discount)
    return ring

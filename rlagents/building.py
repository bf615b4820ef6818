"""From an experiment to what runs: its device, its environments and its agent.

What is impossible on this machine is refused by the name of the setting that asks for it.
"""

import ctypes
import os
import sys

import torch

import rlagents_envs
from rlagents import agents, machine
from rlagents.config import PQN, EnvConfig, Experiment, QLearning, least_timesteps
from rlagents.errors import UsageError
from rlagents.networks import has_pixels
from rlagents.replay import row_bytes
from rlagents.seeding import Streams
from rlagents.types import Task
from rlagents_envs.vector import Environments

_THREADS = torch.get_num_threads()  # as the user has it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def choose_device(name: str) -> torch.device:
    """Returns the device to compute on.

    Raises:
        UsageError: cuda where there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError("device must be cpu or auto here: this PyTorch sees no CUDA device, got cuda")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def environments(
    env: EnvConfig, *, count: int | None = None, pictures: bool = False, resting: bool = False
) -> Environments:
    """Makes the environments of an experiment, see `rlagents_envs.make`.

    Raises:
        UsageError: they cannot be made as configured.
    """
    try:
        return rlagents_envs.make(env, count=count, pictures=pictures, resting=resting)
    except ValueError as error:
        raise UsageError(str(error)) from error


def agent(
    experiment: Experiment, envs: Environments, on: torch.device, *, learns: bool = True
) -> agents.AnyAgent:
    """Builds the agent of an experiment, untrained, for its environments.

    Args:
        experiment: what it is part of.
        envs: where it acts.
        on: where it computes.
        learns: whether its replay needs the room that it is configured to have, all of it at once on a GPU.

    Raises:
        UsageError: it cannot learn in such environments.
    """
    _tune(envs, experiment.run.torch_threads)
    config = experiment.agent
    if not learns and not isinstance(config, PQN):
        least = least_timesteps(config, experiment.env) * experiment.env.count
        replay = config.replay.model_copy(update={"capacity": least})
        config = config.model_copy(update={"replay": replay})
    try:
        task = Task(
            layout=envs.layout,
            actions=envs.actions,
            environments=experiment.env.count,
            env_steps=experiment.run.env_steps,
            streams=Streams(experiment.run.seed),
            device=on,
        )
        return agents.make(config, task)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        name = "rollout" if isinstance(experiment.agent, PQN) else "replay.capacity"
        kept = experiment.timesteps_kept
        raise UsageError(f"agent.{name} must fit into memory, got {kept} timesteps: {error}") from error


def require_memory(experiment: Experiment, envs: Environments, on: torch.device) -> None:
    """Checks that the replay or the rollout will fit when it is full.

    On a CPU memory is taken up only as rows are written.

    Raises:
        UsageError: it will not.
    """
    config = experiment.agent
    if isinstance(config, PQN):
        name, given, spare = "rollout", config.rollout, 1
        each = experiment.env.count * agents.row_bytes(envs.layout)
    elif isinstance(config, QLearning) and config.learn_from == "online":
        return
    else:
        name, given, spare, each = "replay.capacity", config.replay.capacity, 0, row_bytes(envs.layout)
    tabular = isinstance(config, QLearning)  # a table and its replay never leave the CPU
    size, free = (given + spare) * each, machine.available(torch.device("cpu") if tabular else on)
    if size > free:
        raise UsageError(
            f"agent.{name} must fit into memory, got {given}: it takes {size / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free; at most {max(0, free // each - spare)} fit"
        )


def _tune(envs: Environments, threads: int) -> None:
    """Sets what PyTorch's speed on a CPU depends on, for the whole process."""
    torch.set_flush_denormal(True)  # denormals in Adam's moments cost ten times the step
    # Handing small matrices to other threads takes longer than multiplying them. With images one core is left
    # to the environments: where threads outnumber cores, each of a hundred operators waits for one to return.
    spare = min(_THREADS, max(1, (os.cpu_count() or 1) - 1)) if has_pixels(envs.layout) else 1
    torch.set_num_threads(threads or spare)
    # Every learner step allocates the same megabytes. glibc would give them back to the system and have them
    # zeroed again, which takes longer than filling them: let it keep blocks of up to 64 MB, 256 MB in all.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 64 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)

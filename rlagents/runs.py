"""Run directories: `runs/<experiment>/<id>/` with the resolved configuration, metrics and checkpoints."""

import ctypes
import json
import os
import secrets
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

import rlagents_envs
from rlagents import agents, toml
from rlagents.checkpoint import Checkpoints
from rlagents.config import EnvConfig, Experiment
from rlagents.errors import RunError, UsageError
from rlagents.machine import versions
from rlagents.networks import has_pixels
from rlagents.seeding import Streams
from rlagents_envs.vector import Environments

_THREADS = torch.get_num_threads()  # as the user has it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Loaded:
    """An agent as a run saved it."""

    agent: agents.DQN | agents.QLearning
    config: Experiment
    step: int  # env steps at its checkpoint
    path: Path  # the run directory


def place(experiment: Experiment) -> Path:
    """Returns the directory that a new run takes unless told otherwise: one that is not there yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run = Path("runs") / (experiment.run.name or "unnamed") / f"{stamp}-seed{experiment.run.seed}"
    name, number = run.name, 1
    while run.exists():
        number += 1
        run = run.with_name(f"{name}-{number}")
    return run


def create(experiment: Experiment, run: Path) -> None:
    """Makes the directory of a new run and writes what it is.

    Raises:
        UsageError: the directory is there and not empty.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UsageError(
            f"--out must be a new or empty directory, got {run}; continue a run with --resume {run}"
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.toml").write_text(toml.dump(experiment), "utf-8")
    except OSError as error:
        raise UsageError(f"{run} cannot be written: {error.strerror}") from error
    about = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv, "versions": versions()}
    about["id"] = secrets.token_hex(4)
    (run / "run.json").write_text(json.dumps(about, indent=1), "utf-8")


def identity(run: Path) -> str:
    """Returns the name that a run has among all runs anywhere."""
    about = json.loads((run / "run.json").read_text("utf-8"))
    return f"{run.name}-{about['id']}"


def read(run: str | Path) -> Experiment:
    """Returns the experiment of a run directory.

    Raises:
        RunError: it is not one.
    """
    file = Path(run) / "config.toml"
    if not file.is_file():
        what = "has no config.toml" if Path(run).is_dir() else "is not there"
        raise RunError(f"{run} is not a run directory: it {what}; runs lie in runs/<experiment>/<id>")
    return toml.load(file)


def choose_device(name: str) -> torch.device:
    """Returns the device to compute on.

    Raises:
        UsageError: cuda where there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError("device must be cpu or auto here: this PyTorch sees no CUDA device, got cuda")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def environments(env: EnvConfig, *, count: int | None = None, pictures: bool = False) -> Environments:
    """Makes the environments of an experiment.

    Raises:
        UsageError: they cannot be made as configured.
    """
    try:
        return rlagents_envs.make(env, count=count, pictures=pictures)
    except ValueError as error:
        raise UsageError(str(error)) from error


def agent(experiment: Experiment, envs: Environments, on: torch.device) -> agents.DQN | agents.QLearning:
    """Builds the agent of an experiment, untrained, for its environments.

    Raises:
        UsageError: it cannot learn in such environments.
    """
    _tune(envs, experiment.run.torch_threads)
    try:
        return agents.make(
            experiment.agent,
            envs.layout,
            envs.actions,
            environments=experiment.env.count,
            env_steps=experiment.run.env_steps,
            streams=Streams(experiment.run.seed),
            device=on,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        size = experiment.agent.replay.capacity
        raise UsageError(f"agent.replay.capacity must fit into memory, got {size}: {error}") from error


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


def load(run: str | Path, *, checkpoint: str | int = "latest", device: str = "auto") -> Loaded:
    """Returns a run's agent as it was at a checkpoint.

    Args:
        run: the run directory.
        checkpoint: `latest`, `best` or its env steps.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        RunError: no such run or checkpoint, or it is damaged.
        UsageError: the device or the environment is not there.
    """
    path = Path(run)
    experiment, on = read(path), choose_device(device)
    saved = Checkpoints(path).find(checkpoint)
    with closing(environments(experiment.env, count=1)) as envs:
        made = agent(experiment, envs, on)
    saved.restore(agent=made)
    return Loaded(made, experiment, saved.step, path)

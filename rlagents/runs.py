"""Run directories: `runs/<experiment>/<id>/` with the resolved configuration, metrics and checkpoints."""

import ctypes
import fcntl
import json
import os
import platform
import re
import secrets
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

import rlagents_envs
from rlagents import agents, machine, provenance, toml
from rlagents.checkpoint import Checkpoints
from rlagents.config import PQN, EnvConfig, Experiment, QLearning
from rlagents.errors import RunError, UsageError
from rlagents.networks import has_pixels
from rlagents.provenance import CONFIG
from rlagents.replay import row_bytes
from rlagents.seeding import Streams
from rlagents.types import Task
from rlagents_envs.vector import Environments

_THREADS = torch.get_num_threads()  # as the user has it
_LARGEST_CONFIG = 1 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Loaded:
    """An agent as a run saved it."""

    agent: agents.AnyAgent
    config: Experiment
    step: int  # env steps at its checkpoint
    path: Path  # the run directory
    skipped: tuple[str, ...] = ()  # what is wrong with newer checkpoints, a line each


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
    config = toml.dump(experiment).encode()
    about = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "versions": machine.versions(),
        "id": secrets.token_hex(4),
    }
    try:
        run.mkdir(parents=True, exist_ok=True)
        provenance.sign(run, config)
        (run / "run.json").write_text(json.dumps(about, indent=1), "utf-8")
        beside = run / f".{CONFIG}.tmp"
        beside.write_bytes(config)
        beside.rename(run / CONFIG)  # last and whole: this makes it a run
    except OSError as error:
        raise UsageError(f"{run} cannot be written: {error.strerror}") from error


def identity(run: Path) -> str:
    """Returns the name that a run has among all runs anywhere.

    Raises:
        RunError: run.json does not say.
    """
    try:
        number = str(json.loads((run / "run.json").read_bytes())["id"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        number = ""
    if not re.fullmatch("[0-9a-f]{8}", number):
        raise RunError(f"{run / 'run.json'} must hold an id of 8 hexadecimal digits; leave out --wandb")
    return f"{run.name}-{number}"


def read(run: str | Path) -> Experiment:
    """Returns the experiment of a run directory.

    Raises:
        RunError: it is not one.
    """
    file = Path(run) / CONFIG
    if not file.is_file():
        what = "has no config.toml" if Path(run).is_dir() else "is not there"
        raise RunError(f"{run} is not a run directory: it {what}; runs lie in runs/<experiment>/<id>")
    if (size := file.stat().st_size) > _LARGEST_CONFIG:
        raise RunError(f"{file} must have at most {_LARGEST_CONFIG} bytes, got {size}")
    return toml.load(file)


def _written(run: Path) -> Iterator[Path]:
    """Yields what lies where a run is written to; W&B has links of its own in its folder."""
    for inside in run.iterdir():
        yield inside
        if inside.name != "wandb" and inside.is_dir() and not inside.is_symlink():
            yield from inside.iterdir()


def trusted(run: str | Path, *, trust: bool = False) -> Experiment:
    """Returns the experiment of a run that may be worked in: nothing in it leads elsewhere.

    Args:
        run: the run directory.
        trust: import what it names, although it was not made here.

    Raises:
        RunError: it is no run, holds symbolic links, or must be trusted first.
    """
    experiment = read(run)
    for inside in _written(Path(run)):
        if inside.is_symlink():
            raise RunError(f"{inside} must not be a symbolic link: what is written there would go elsewhere")
    provenance.require(experiment, Path(run), trust=trust)
    return experiment


def require_trust(file: Path, *, trust: bool = False) -> None:
    """Checks an experiment's file: if it is of a run, that may be a stranger's; see `provenance.require`."""
    if file.name == CONFIG:
        provenance.require(read(file.parent), file.parent, trust=trust)


@contextmanager
def locked(run: Path) -> Generator[None]:
    """Holds a run directory for one process. However that ends, the system opens the lock.

    Raises:
        RunError: another one holds it.
    """
    with (run / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read(100)
            holder = f"process {who}" if re.fullmatch(r"\d+ on [\w.-]+", who) else "another process"
            raise RunError(f"{run} is in use by {holder}; stop that one first") from None
        file.truncate(0)
        with suppress(OSError):  # on a full disk the holder remains unnamed
            file.write(f"{os.getpid()} on {platform.node()}")
            file.flush()
        yield


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
    size, free = (given + spare) * each, machine.available(on)
    if size > free:
        raise UsageError(
            f"agent.{name} must fit into memory, got {given}: it takes {size / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free; at most {max(0, free // each - spare)} fit"
        )


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


def agent(experiment: Experiment, envs: Environments, on: torch.device) -> agents.AnyAgent:
    """Builds the agent of an experiment, untrained, for its environments.

    Raises:
        UsageError: it cannot learn in such environments.
    """
    _tune(envs, experiment.run.torch_threads)
    try:
        task = Task(
            layout=envs.layout,
            actions=envs.actions,
            environments=experiment.env.count,
            env_steps=experiment.run.env_steps,
            streams=Streams(experiment.run.seed),
            device=on,
        )
        return agents.make(experiment.agent, task)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        name = "rollout" if isinstance(experiment.agent, PQN) else "replay.capacity"
        kept = experiment.timesteps_kept
        raise UsageError(f"agent.{name} must fit into memory, got {kept} timesteps: {error}") from error


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


def load(
    run: str | Path, *, checkpoint: str | int = "latest", device: str = "auto", trust: bool = False
) -> Loaded:
    """Returns a run's agent as it was at a checkpoint.

    Args:
        run: the run directory.
        checkpoint: `latest`, the newest that is whole; `best`, or its env steps.
        device: `auto`, `cpu` or `cuda`.
        trust: import what a run that was not made here names.

    Raises:
        RunError: no such run or checkpoint, it is damaged, or not to be trusted.
        UsageError: the device or the environment is not there.
    """
    path = Path(run)
    experiment, on = trusted(path, trust=trust), choose_device(device)
    saved = Checkpoints(path).find(checkpoint)
    with closing(environments(experiment.env, count=1)) as envs:
        made = agent(experiment, envs, on)
    saved.restore(agent=made)
    return Loaded(made, experiment, saved.step, path, saved.skipped)

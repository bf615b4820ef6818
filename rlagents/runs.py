"""Run directories: `runs/<experiment>/<id>/` with the resolved configuration, metrics and checkpoints."""

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

from rlagents import agents, building, machine, provenance, toml
from rlagents.checkpoint import Checkpoints
from rlagents.config import Experiment
from rlagents.errors import RunError, UsageError
from rlagents.provenance import CONFIG

_LARGEST_CONFIG = 1 << 20


@dataclass(frozen=True)
class Loaded:
    """An agent as a run saved it."""

    agent: agents.AnyAgent
    config: Experiment
    step: int  # env steps at its checkpoint
    path: Path  # the run directory
    skipped: tuple[str, ...] = ()  # what is wrong with newer checkpoints, a line each


def place(experiment: Experiment) -> Path:
    """Returns the directory that a new run takes unless told otherwise, another one at each call."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{experiment.run.seed}-{secrets.token_hex(2)}"
    return Path("runs") / (experiment.run.name or "unnamed") / name


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
    experiment, on = trusted(path, trust=trust), building.choose_device(device)
    saved = Checkpoints(path).find(checkpoint)
    with closing(building.environments(experiment.env, count=1)) as envs:
        made = building.agent(experiment, envs, on, learns=False)
    saved.restore(agent=made)
    return Loaded(made, experiment, saved.step, path, saved.skipped)

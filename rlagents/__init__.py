"""One loop, one replay, one agent interface: value-based reinforcement learning from a Q-table to Atari.

Importing this is cheap; torch comes with the first call. `train` stands here; `load` and `evaluate` come from
their modules when they are first asked for.
"""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

# Must precede the import of torch. OpenMP threads that spin for long beside emulator threads on the same
# cores cost every operator a tick of the scheduler (8 ms); threads that sleep at once cost it a wake-up
# (50 us). So: spin for a while, then sleep.
SPIN_COUNT = "100000"
os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)

if TYPE_CHECKING:
    from rlagents.config import Experiment
    from rlagents.evaluation import evaluate
    from rlagents.runs import load

    __version__: str

__all__ = ["__version__", "evaluate", "load", "train"]


def train(
    experiment: "str | Path | Mapping[str, Any] | Experiment | None" = None,
    *overrides: str,
    resume: str | Path | None = None,
    seed: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    out: str | Path | None = None,
    wandb: Literal["off", "offline", "online"] = "off",
    quiet: bool = False,
    trust: bool = False,
) -> Path:
    """Trains an experiment, or goes on with a run; returns the run directory.

    `rlagents.train("cartpole-dqn", "agent.double=true", seed=1)` is
    `rlagents train cartpole-dqn agent.double=true --seed 1`.

    Args:
        experiment: A name, a path, or what its TOML holds.
        overrides: Settings as "agent.learning_rate=1e-4".
        resume: Run directory to go on with; then there is nothing to set but `wandb`, `quiet` and `trust`.
        seed: Short for `run.seed`.
        device: Short for `run.device`.
        out: The run directory; by default `runs/<experiment>/<id>`.
        wandb: Whether to record the run for Weights & Biases.
        quiet: Whether to print nothing on the way.
        trust: Whether to import what a run directory that was not made here names.

    Raises:
        UsageError: The experiment, or how it is asked for, cannot work: one line for each thing wrong.
        RunError: Something failed on the way.
    """
    from rlagents import experiments, runs, toml, training
    from rlagents.errors import UsageError

    short = {"run.seed": seed, "run.device": device}
    settings = [*overrides, *(f"{key}={value}" for key, value in short.items() if value is not None)]
    if resume is not None:
        if experiment is not None or settings or out is not None:
            raise UsageError("a run is resumed as it is: give no experiment, setting or out beside resume")
        return training.resume(Path(resume), wandb=wandb, quiet=quiet, trust=trust)
    if experiment is None:
        raise UsageError("train needs an experiment or a run to resume; see `rlagents list experiments`")
    source = experiments.find(experiment) if isinstance(experiment, str | Path) else experiment
    if isinstance(source, Path):
        runs.require_trust(source, trust=trust)
    return training.train(
        toml.load(source, settings), out=Path(out) if out else None, wandb=wandb, quiet=quiet
    )


def __getattr__(name: str) -> Any:
    match name:
        case "__version__":
            return import_module("importlib.metadata").version("rlagents")
        case "evaluate":
            return import_module("rlagents.evaluation").evaluate
        case "load":
            return import_module("rlagents.runs").load
        case _:
            raise AttributeError(f"module 'rlagents' has no attribute '{name}'")

"""Runs that are killed: each in a process of its own, forked from one that has imported everything."""

import multiprocessing
import os
import signal
import time
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import rlagents
from rlagents import evaluation, runs, training  # noqa: F401 - what a forked process shall not wait for


def go(table: dict[str, Any], run: Path, saves: int | None = None) -> None:
    """Trains, or goes on where there is a run already; is killed once it has saved so often."""
    torch.set_num_threads(1)
    if saves is not None:
        save, saved = training._Training._save, count(1)

        def deadly(self: Any, **how: Any) -> None:
            save(self, **how)
            if next(saved) == saves:
                os.kill(os.getpid(), signal.SIGKILL)

        training._Training._save = deadly
    go_on(table, run)


def go_on(table: dict[str, Any], run: Path) -> None:
    """Trains, or goes on where there is a run already."""
    if (run / "config.toml").exists():
        rlagents.train(resume=run, quiet=True)
    else:
        rlagents.train(table, out=run, quiet=True)


def _start(table: dict[str, Any], run: Path, saves: int | None = None) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killing"])
    process = context.Process(target=go, args=(table, run, saves))
    process.start()
    return process


def kill_after(seconds: float, table: dict[str, Any], run: Path) -> bool:
    """Lets a run, once it is one, go on for some seconds, then kills it; returns whether it ended before."""
    process = _start(table, run)
    started = time.monotonic()
    while not (run / "config.toml").exists() and process.is_alive() and time.monotonic() < started + 60:
        time.sleep(0.001)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), process.exitcode
    return process.exitcode == 0


def kill_at_save(number: int, table: dict[str, Any], run: Path) -> None:
    """Lets a run go on to its so manieth checkpoint, then kills it."""
    process = _start(table, run, number)
    process.join()
    assert process.exitcode == -9, process.exitcode

"""Runs that are killed: each in a process of its own, forked from one that has imported everything."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch

import rlagents
from rlagents import evaluation, runs, training  # noqa: F401 - what a forked process shall not wait for


def go(table: dict[str, Any], run: Path) -> None:
    """Trains, or goes on where there is a run already."""
    torch.set_num_threads(1)
    if (run / "config.toml").exists():
        rlagents.train(resume=run, quiet=True)
    else:
        rlagents.train(table, out=run, quiet=True)


def kill_after(seconds: float | None, table: dict[str, Any], run: Path) -> bool:
    """Lets a run go on for some seconds, then kills it; returns whether it had ended before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killing"])
    process = context.Process(target=go, args=(table, run))
    process.start()
    started = time.monotonic()
    while seconds is not None and not run.exists() and process.is_alive() and time.monotonic() < started + 60:
        time.sleep(0.001)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), process.exitcode
    return process.exitcode == 0

"""What is lost when a run is killed, interrupted or out of disk: nothing."""

import gc
import json
import os
import random
import shutil
import signal
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import learning
import rlagents
from killing import go, kill_after
from learning import assert_same, outcome, stopped
from rlagents import machine, runs, training
from rlagents.checkpoint import Checkpoints
from rlagents.errors import RunError
from rlagents.report import jsonl
from rlagents.tracker import Tracker
from rlagents_envs.cartpole import CartPoleEnvironments

CARTPOLE = {
    **learning.CARTPOLE,
    "agent": {
        "kind": "dqn",
        "learning_starts": 200,
        "learn_every": 8,
        "double": True,
        "heads": 3,
        "n_step": 3,
        "n_step_end": 1,
        "discount_end": 0.995,
        "horizon_steps": 2000,
        "n_step_bound": 6,
        "n_step_bound_until": 700,
        "exploration": {"end": 0.1, "longest": 20},
        "network": {"hidden": [16]},
        "replay": {"capacity": 1000},
    },
}
PONG = {
    **learning.PONG,
    "agent": {
        "kind": "dqn",
        "learning_starts": 60,
        "learn_every": 8,
        "batch_size": 8,
        "n_step": 2,
        "muon": 3.0,
        "target": {"kind": "fixed", "sync_every": 100},
        "network": {"body": "arcade_cnn", "hidden": [16]},
        "replay": {"capacity": 160},
    },
}


class Whole(NamedTuple):
    """A run that nothing stopped, and what it is judged by."""

    run: Path
    outcome: dict[str, bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns that of a table, trained when it is first asked for."""
    known = {}

    def of(table):
        key = json.dumps(table)
        if key not in known:
            run = rlagents.train(table, out=tmp_path_factory.mktemp("whole") / "run", quiet=True)
            known[key] = Whole(run, outcome(run))
        return known[key]

    return of


def survive(table, whole, folder, kills, each):
    """Kills runs at random instants, each `each` times, and resumes them to their end."""
    draw, number = random.Random(0), 0
    length = jsonl.read(whole.run / "timings.jsonl")[-1]["speed/seconds"]
    while kills > 0:
        run = folder / str(number)
        number += 1
        for _ in range(min(each, kills)):
            if kill_after(draw.uniform(0, length), table, run):
                break
            kills -= 1
        go(table, run)
        assert_same(outcome(run), whole.outcome)


@pytest.mark.parametrize("table", [CARTPOLE, PONG], ids=["cartpole", "pong"])
def test_a_run_killed_at_any_instant_ends_as_one_never_killed(table, whole, tmp_path):
    survive(table, whole(table), tmp_path, kills=3, each=3)


@pytest.mark.slow
@pytest.mark.parametrize("table", [CARTPOLE, PONG], ids=["cartpole", "pong"])
def test_a_hundred_kills_each_resumed_to_the_end(table, whole, tmp_path):
    survive(table, whole(table), tmp_path, kills=100, each=1)


@pytest.mark.parametrize("resumes", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_resumes_leave_memory_descriptors_threads_and_disk_as_they_are(resumes, tmp_path):
    """A night in miniature, in one process: each resume takes ten checkpoints and is interrupted."""
    settings = {"env_steps": 10**6, "evaluate_every": 10**6, "checkpoint_every": 100, "reset_every": 500}
    run, device, seen = tmp_path / "run", torch.device("cpu"), []
    gc.collect()  # what tests before this one left in cycles would be given back meanwhile
    for number in range(resumes):
        stopped({**CARTPOLE, "run": settings}, run, 1000 * (number + 1))
        kept = [file for name in ("checkpoints", "replay") for file in (run / name).rglob("*")]
        size = sum(file.stat().st_size for file in kept if file.is_file())
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        seen.append((machine.resident(device), descriptors, threading.active_count(), len(kept), size))
        print(*seen[-1])
    memory, descriptors, threads, files, sizes = zip(*seen[2:], strict=True)
    assert len({*descriptors}) == len({*threads}) == 1
    assert max(files) <= min(files) + 1  # the rows kept lie in one file more or less
    assert max(sizes) < 1.2 * min(sizes)
    assert max(memory) - min(memory) < 5e6


GRID = {
    "run": {"env_steps": 300, "evaluate_every": 100, "evaluate_episodes": 2, "checkpoint_every": 30},
    "env": {"kind": "gridworld", "count": 2},
    "agent": {
        "kind": "q_learning",
        "learn_from": "replay",
        "learning_starts": 10,
        "replay": {"capacity": 64},
    },
}


def test_a_checkpoint_of_an_older_schema_loads_and_its_run_ends_as_then(tmp_path):
    """The run was killed, and another one like it went on to its end, before schema 2."""
    old = Path(__file__).parent / "data" / "schema1"
    run = shutil.copytree(old, tmp_path / "run")
    assert Checkpoints(run).find().manifest["schema"] == 1
    rlagents.train(resume=run, quiet=True)
    assert (run / "metrics.jsonl").read_bytes() == (old / "expected.jsonl").read_bytes()
    assert Checkpoints(run).find().manifest["schema"] == 2


@pytest.mark.parametrize("number", [2, 3])  # the last one is at the end of the budget
def test_an_evaluation_that_ctrl_c_cut_off_is_made_after_the_resume(whole, number, tmp_path, monkeypatch):
    play, plays = training.recorded, []

    def interrupt(*arguments, **options):
        plays.append(1)
        if len(plays) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return play(*arguments, **options)

    monkeypatch.setattr(training, "recorded", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rlagents.train(CARTPOLE, out=tmp_path / "run", quiet=True)
    assert len(plays) == number
    assert 0 <= Checkpoints(tmp_path / "run").steps()[-1] - 500 * number < 4
    rlagents.train(resume=tmp_path / "run", quiet=True)
    assert len(plays) == 4
    assert_same(outcome(tmp_path / "run"), whole(CARTPOLE).outcome)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_so(whole, number, tmp_path, monkeypatch, capsys):
    update, ticks = Tracker.update, []

    def signalled(self, step):
        update(self, step)
        ticks.append(1)
        if len(ticks) == 57:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Tracker, "update", signalled)
    with pytest.raises(KeyboardInterrupt):
        rlagents.train(GRID, out=tmp_path / "run", quiet=True)
    assert "stopping: finishing this step and saving" in capsys.readouterr().err
    assert len(ticks) == 57
    monkeypatch.undo()
    rlagents.train(resume=tmp_path / "run", quiet=True)
    assert_same(outcome(tmp_path / "run"), whole(GRID).outcome)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(whole, tmp_path):
    run = tmp_path / "run"
    runs.create(runs.read(whole(GRID).run), run)
    rlagents.train(resume=run, quiet=True)
    assert_same(outcome(run), whole(GRID).outcome)


def test_damaged_checkpoints_alone_are_no_reason_to_begin_anew(tmp_path):
    run = stopped(GRID, tmp_path / "run", 100)
    for _ in range(2):
        for folder in (run / "checkpoints").iterdir():
            (folder / "state.json").write_text("{}")
        with pytest.raises(RunError, match=r"is damaged: state\.json has 2 bytes, not"):
            rlagents.train(resume=run, quiet=True)


@pytest.mark.parametrize("where", ["checkpoints", "replay"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(whole, where, tmp_path, capsys):
    run = stopped(GRID, tmp_path / "run", 100)
    before, last = Checkpoints(run).steps()[-2:]
    newest = max((run / where).iterdir())
    file = newest / "trail.safetensors" if newest.is_dir() else newest
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    rlagents.train(resume=run)
    told = capsys.readouterr().out
    assert f"resumed at {before} env steps" in told
    assert f"{run / 'checkpoints' / f'{last:012d}'}" in told
    assert f"{file.name}" in told
    assert "differs from its checksum; the one before it is used" in told
    assert_same(outcome(run), whole(GRID).outcome)


def test_a_changed_experiment_is_refused_and_a_longer_one_is_not(tmp_path):
    run = rlagents.train(GRID, out=tmp_path / "run", quiet=True)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("discount = 0.99", "discount = 0.5"))
    told = r"is of another experiment: agent\.discount is 0\.99 there and 0\.5 in config"
    with pytest.raises(RunError, match=told):
        rlagents.train(resume=run, quiet=True)
    (run / "config.toml").write_text(text.replace("env_steps = 300", "env_steps = 400"))
    rlagents.train(resume=run, quiet=True)
    assert runs.load(run).step >= 400


def test_compressed_rows_are_fewer_bytes_and_the_same(whole, tmp_path):
    run = stopped({**PONG, "checkpoint": {"compress": True}}, tmp_path / "run", 160)
    entries = Checkpoints(run).find().manifest["replay"]
    assert sum(entry["size"] for entry in entries) * 5 < sum(entry["bytes"] for entry in entries)
    rlagents.train(resume=run, quiet=True)
    assert_same(outcome(run), whole(PONG).outcome)


def test_where_environments_cannot_return_a_resume_says_that_it_is_inexact(tmp_path, capsys, monkeypatch):
    run = stopped(CARTPOLE, tmp_path / "run", 500)
    monkeypatch.setattr(CartPoleEnvironments, "replayable", False)
    capsys.readouterr()
    rlagents.train(resume=run, quiet=True)
    told = "this resume is not exact: cartpole cannot return to where it was, so new episodes begin"
    assert told in " ".join(capsys.readouterr().out.split())
    assert runs.load(run).step >= 1500


def test_without_rows_a_resume_says_that_it_is_inexact(tmp_path, capsys):
    run = stopped({**GRID, "checkpoint": {"replay": "none"}}, tmp_path / "run", 100)
    assert not (run / "replay").exists()
    capsys.readouterr()
    rlagents.train(resume=run, quiet=True)
    assert "THIS RESUME IS NOT EXACT: checkpoint.replay is none" in capsys.readouterr().out
    assert runs.load(run).step >= 300

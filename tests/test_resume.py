"""What is lost when a run is killed, interrupted or out of disk: nothing."""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

import rlagents
from killing import kill_after
from rlagents import runs, training
from rlagents.checkpoint import Checkpoints
from rlagents.errors import RunError
from rlagents.report import jsonl

CARTPOLE = {
    "run": {"env_steps": 1500, "evaluate_every": 500, "evaluate_episodes": 4, "checkpoint_every": 75},
    "env": {"kind": "cartpole", "count": 4},
    "agent": {
        "kind": "dqn",
        "learning_starts": 200,
        "learn_every": 8,
        "double": True,
        "n_step": 3,
        "network": {"hidden": [16]},
        "replay": {"capacity": 1000},
    },
}
PONG = {
    "run": {
        "env_steps": 320,
        "evaluate_every": 160,
        "evaluate_episodes": 2,
        "checkpoint_every": 40,
        "reset_every": 130,
    },
    "env": {"kind": "atari", "game": "pong", "count": 4, "sticky": 0.25, "max_frames": 200},
    "agent": {
        "kind": "dqn",
        "learning_starts": 60,
        "learn_every": 8,
        "batch_size": 8,
        "n_step": 2,
        "target": {"kind": "fixed", "sync_every": 100},
        "network": {"body": "small_cnn", "hidden": [16]},
        "replay": {"capacity": 160},
    },
}


@pytest.fixture(autouse=True)
def one_thread():
    """The same bits need the same number of threads, here and in processes of their own."""
    torch.set_num_threads(1)


def outcome(run):
    """Returns everything that a run is judged by, byte for byte."""
    saved = Checkpoints(run).find()
    best = Checkpoints(run).find("best")
    files = {
        f"{kind.step}/{name}": (kind.folder / name).read_bytes()
        for kind in (saved, best)
        for name in kind.manifest["files"]
    }
    rlagents.evaluate(run, episodes=3, json=run / "scores.json")
    return {
        "metrics": (run / "metrics.jsonl").read_bytes(),
        "scores": (run / "scores.json").read_bytes(),
        **files,
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if other[name] != value] == []


def survive(table, folder, kills, each):
    """Kills runs at random instants, each `each` times, and resumes them to their end."""
    draw, number = random.Random(0), 0
    assert kill_after(None, table, folder / "whole")
    length = jsonl.read(folder / "whole" / "timings.jsonl")[-1]["speed/seconds"]
    whole = outcome(folder / "whole")
    while kills > 0:
        run = folder / str(number)
        number += 1
        for _ in range(min(each, kills)):
            if kill_after(draw.uniform(0, length), table, run):
                break
            kills -= 1
        assert kill_after(None, table, run)
        assert_same(outcome(run), whole)


@pytest.mark.parametrize("table", [CARTPOLE, PONG], ids=["cartpole", "pong"])
def test_a_run_killed_at_any_instant_ends_as_one_never_killed(table, tmp_path):
    survive(table, tmp_path, kills=3, each=3)


@pytest.mark.slow
@pytest.mark.parametrize("table", [CARTPOLE, PONG], ids=["cartpole", "pong"])
def test_a_hundred_kills_each_resumed_to_the_end(table, tmp_path):
    survive(table, tmp_path, kills=100, each=1)


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


def stopped(table, run, step):
    """Trains until a checkpoint of at least `step` env steps is there, then stops as a Ctrl-C would."""
    save = training._Training._save

    def then_stop(self, **how):
        save(self, **how)
        self._signals.caught = self.tracker.env_steps >= step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Training, "_save", then_stop)
        with pytest.raises(KeyboardInterrupt):
            rlagents.train(table, out=run, quiet=True)
    return run


def test_a_checkpoint_of_an_older_schema_loads_and_its_run_ends_as_then(tmp_path):
    """The run was killed, and another one like it went on to its end, before schema 2."""
    old = Path(__file__).parent / "data" / "schema1"
    run = shutil.copytree(old, tmp_path / "run")
    assert Checkpoints(run).find().manifest["schema"] == 1
    rlagents.train(resume=run, quiet=True)
    assert (run / "metrics.jsonl").read_bytes() == (old / "expected.jsonl").read_bytes()
    assert Checkpoints(run).find().manifest["schema"] == 2


@pytest.mark.parametrize("number", [2, 3])  # the last one is at the end of the budget
def test_an_evaluation_that_ctrl_c_cut_off_is_made_after_the_resume(number, tmp_path, monkeypatch):
    whole = rlagents.train(CARTPOLE, out=tmp_path / "whole", quiet=True)
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
    assert_same(outcome(tmp_path / "run"), outcome(whole))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_so(number, tmp_path, monkeypatch, capsys):
    update, ticks = training.Tracker.update, []

    def signalled(self, step):
        update(self, step)
        ticks.append(1)
        if len(ticks) == 57:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(training.Tracker, "update", signalled)
    with pytest.raises(KeyboardInterrupt):
        rlagents.train(GRID, out=tmp_path / "run", quiet=True)
    assert "stopping: finishing this step and saving" in capsys.readouterr().err
    assert len(ticks) == 57
    monkeypatch.undo()
    whole = rlagents.train(GRID, out=tmp_path / "whole", quiet=True)
    rlagents.train(resume=tmp_path / "run", quiet=True)
    assert_same(outcome(tmp_path / "run"), outcome(whole))


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    whole = rlagents.train(GRID, out=tmp_path / "whole", quiet=True)
    run = tmp_path / "run"
    runs.create(runs.read(whole), run)
    rlagents.train(resume=run, quiet=True)
    assert_same(outcome(run), outcome(whole))


def test_damaged_checkpoints_alone_are_no_reason_to_begin_anew(tmp_path):
    run = stopped(GRID, tmp_path / "run", 100)
    for _ in range(2):
        for folder in (run / "checkpoints").iterdir():
            (folder / "state.json").write_text("{}")
        with pytest.raises(RunError, match=r"is damaged: state\.json has 2 bytes, not"):
            rlagents.train(resume=run, quiet=True)


@pytest.mark.parametrize("where", ["checkpoints", "replay"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(where, tmp_path, capsys):
    whole = rlagents.train(GRID, out=tmp_path / "whole", quiet=True)
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
    assert_same(outcome(run), outcome(whole))


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


def test_compressed_rows_are_fewer_bytes_and_the_same(tmp_path):
    whole = rlagents.train(PONG, out=tmp_path / "whole", quiet=True)
    run = stopped({**PONG, "checkpoint": {"compress": True}}, tmp_path / "run", 160)
    entries = Checkpoints(run).find().manifest["replay"]
    assert sum(entry["size"] for entry in entries) * 5 < sum(entry["bytes"] for entry in entries)
    rlagents.train(resume=run, quiet=True)
    assert_same(outcome(run), outcome(whole))


def test_without_rows_a_resume_says_that_it_is_inexact(tmp_path, capsys):
    run = stopped({**GRID, "checkpoint": {"replay": "none"}}, tmp_path / "run", 100)
    assert not (run / "replay").exists()
    capsys.readouterr()
    rlagents.train(resume=run, quiet=True)
    assert "THIS RESUME IS NOT EXACT: checkpoint.replay is none" in capsys.readouterr().out
    assert runs.load(run).step >= 300

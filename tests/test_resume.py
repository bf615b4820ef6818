"""What is lost when a run is killed, interrupted or out of disk: nothing."""

import random

import pytest
import torch

import rlagents
from killing import kill_after
from rlagents.checkpoint import Checkpoints
from rlagents.report import jsonl

CARTPOLE = {
    "run": {"env_steps": 3000, "evaluate_every": 500, "evaluate_episodes": 4, "checkpoint_every": 150},
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
        "env_steps": 600,
        "evaluate_every": 200,
        "evaluate_episodes": 2,
        "checkpoint_every": 60,
        "reset_every": 250,
    },
    "env": {"kind": "atari", "game": "pong", "count": 4, "sticky": 0.25, "max_frames": 300},
    "agent": {
        "kind": "dqn",
        "learning_starts": 100,
        "learn_every": 8,
        "batch_size": 8,
        "n_step": 2,
        "target": {"kind": "fixed", "sync_every": 100},
        "network": {"body": "small_cnn", "hidden": [16]},
        "replay": {"capacity": 240},
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

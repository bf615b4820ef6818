"""Training as a whole: every experiment, the same twice, and after an interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rlagents
from killing import kill_at_save
from rlagents import experiments, runs
from rlagents.errors import RunError, UsageError
from rlagents.report import jsonl

CARTPOLE = {
    "run": {"env_steps": 1500, "evaluate_every": 500, "evaluate_episodes": 4, "checkpoint_every": 400},
    "env": {"kind": "cartpole", "count": 4},
    "agent": {
        "kind": "dqn",
        "learning_starts": 200,
        "double": True,
        "n_step": 3,
        "network": {"hidden": [16]},
    },
}
RAINBOW = {
    **CARTPOLE,
    "agent": {
        **CARTPOLE["agent"],
        "values": {"kind": "categorical", "low": 0.0, "high": 100.0},
        "network": {"hidden": [16], "dueling": True, "noisy": True},
        "exploration": {"kind": "noisy"},
        "replay": {"capacity": 800, "sampling": {"kind": "proportional"}},
        "reward_transform": "normalise",
        "reset_head_every": 700,
    },
}
IQN = {
    **CARTPOLE,
    "agent": {
        **CARTPOLE["agent"],
        "values": {"kind": "iqn"},
        "double": False,
        "munchausen": {"share": 0.9},
        "exploration": {"kind": "boltzmann"},
    },
}
PONG = {
    "run": {"env_steps": 400, "evaluate_every": 0, "evaluate_episodes": 1, "checkpoint_every": 150},
    "env": {"kind": "atari", "game": "pong", "count": 4, "sticky": 0.25, "max_frames": 300},
    "agent": {
        "kind": "dqn",
        "learning_starts": 100,
        "learn_every": 8,
        "batch_size": 8,
        "n_step": 2,
        "target": {"kind": "fixed", "sync_every": 100},
        "replay": {"capacity": 240},
    },
}
DQN_SMALL = {"kind": "dqn", "learning_starts": 10, "batch_size": 4, "network": {"hidden": [4]}}
GRID = {
    "run": {"env_steps": 600, "evaluate_episodes": 2, "reset_every": 130},
    "env": {"kind": "gridworld", "count": 2},
    "agent": {"kind": "q_learning", "discount": 0.9},
}
LAKE = {
    "run": {"env_steps": 600, "evaluate_episodes": 2, "reset_every": 130},
    "env": {"kind": "gymnasium", "id": "FrozenLake-v1", "backend": "model", "count": 3},
    "agent": {"kind": "q_learning", "target_policy": "sampled", "double": True, "n_step": 3},
}


def train(table, out, *overrides, **options):
    return rlagents.train(table, *overrides, out=out, quiet=True, **options)


def weights(run):
    newest = max((run / "checkpoints").glob("0*"))
    return {
        f"{file.name}/{key}": value
        for file in sorted(newest.glob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def assert_same_run(one, other):
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_runs_shrunk(name, tmp_path):
    experiment = experiments.load(name)
    small = ["run.env_steps=240", "run.evaluate_every=0", "run.evaluate_episodes=1", "run.checkpoint_every=0"]
    if experiment.env.kind == "atari":
        small += ["env.max_frames=400", "env.count=2"]
    if experiment.agent.kind == "dqn":
        small += ["agent.learning_starts=64", "agent.batch_size=8", "agent.learn_every=16"]
        small += ["agent.replay.capacity=400"]
    if experiment.agent.kind == "pqn":
        small += ["agent.rollout=4", "agent.minibatches=2"]
    run = train(experiment, tmp_path / "run", *small)
    loaded = runs.load(run).agent
    assert loaded.learner_steps > 0
    if (ring := loaded.replay) is not None:
        assert ring.rows == ring.stack + ring.n_step + 1  # what only plays takes no room for more
    rows = jsonl.read(run / "metrics.jsonl")
    assert rows[-1]["step"] >= 240
    assert "evaluate/return_mean" in rows[-1]
    again = rlagents.train(run / "config.toml", out=tmp_path / "again", quiet=True)
    assert_same_run(run, again)


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_runs_for_a_minute(name, tmp_path):
    code = f"import rlagents; rlagents.train({name!r}, out={str(tmp_path / 'run')!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    try:
        assert process.wait(60) == 0
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert runs.load(tmp_path / "run").step > 0


@pytest.mark.parametrize(
    "table",
    [CARTPOLE, RAINBOW, IQN, PONG, GRID, LAKE],
    ids=["cartpole", "rainbow", "iqn", "pong", "grid", "lake"],
)
def test_a_resumed_run_ends_as_one_never_interrupted(table, tmp_path):
    whole = train(table, tmp_path / "whole")
    kill_at_save(3, table, tmp_path / "killed")
    step = runs.load(tmp_path / "killed").step
    assert 0 < step < table["run"]["env_steps"]
    rlagents.train(resume=tmp_path / "killed", quiet=True)
    assert_same_run(whole, tmp_path / "killed")


def test_another_seed_is_another_run(tmp_path):
    one, other = train(CARTPOLE, tmp_path / "1"), train(CARTPOLE, tmp_path / "2", seed=2)
    assert (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes()


def test_evaluations_disturb_nothing(tmp_path):
    often = train(CARTPOLE, tmp_path / "often", "run.evaluate_every=100", "run.evaluate_episodes=7")
    seldom = train(CARTPOLE, tmp_path / "seldom", "run.evaluate_every=0", "run.checkpoint_every=0")
    mine, theirs = weights(often), weights(seldom)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path):
    command = [sys.executable, "-m", "rlagents", "train", "cartpole-dqn", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"rlagents train --resume {tmp_path / 'run'}" in error
    step = runs.load(tmp_path / "run").step
    assert step > 0
    assert jsonl.read(metrics)[-1]["step"] <= step


def test_a_loss_that_is_no_number_stops_the_run_in_one_line(tmp_path):
    settings = ["agent.learning_rate=1e30", "agent.gradient_clip=0", "agent.values.loss=mse"]
    with pytest.raises(RunError, match=r"train/\w+ is (nan|inf) at [\d,]+ env steps: the learning diverged"):
        train(CARTPOLE, tmp_path / "run", *settings)
    assert runs.load(tmp_path / "run").step >= 0


def test_a_directory_with_something_in_it_is_not_written_to(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="--out must be a new or empty directory"):
        train(GRID, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="device must be cpu or auto here"):
        train(GRID, tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, "folder", "file"])
def test_what_is_no_run_is_not_resumed(content, tmp_path):
    path = tmp_path / "thing"
    if content == "folder":
        path.mkdir()
    elif content == "file":
        path.write_text("x")
    with pytest.raises(RunError, match="is not a run directory"):
        rlagents.train(resume=path)


def test_wandb_and_videos_of_a_training(tmp_path):
    small = ["run.env_steps=300", "run.evaluate_every=0", "run.checkpoint_every=0"]
    code = f"""
import json, rlagents
table = json.loads({json.dumps(CARTPOLE)!r})
rlagents.train(table, *{small!r}, out={str(tmp_path / "run")!r}, wandb="offline", quiet=True)
"""
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))
    assert list(folder.rglob("*.mp4"))
    assert list((tmp_path / "run" / "videos").glob("*.mp4"))
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_what_cannot_be_filmed_is_evaluated_without_a_video(tmp_path, capsys):
    env = {"kind": "gymnasium", "id": "example_envs:NoPictures", "count": 2}
    table = {"run": {"env_steps": 60, "evaluate_episodes": 1, "video": True}, "env": env, "agent": DQN_SMALL}
    run = rlagents.train(table, out=tmp_path / "run")
    assert "evaluated without a video: example_envs:NoPictures" in capsys.readouterr().out
    assert any("evaluate/return_mean" in row for row in jsonl.read(run / "metrics.jsonl"))


def test_an_environment_that_fails_in_an_evaluation_is_named_as_in_training(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("the environment fell over")

    monkeypatch.setattr("rlagents.training.recorded", fail)
    with pytest.raises(RunError, match=r"^at [\d,]+ env steps: the environment fell over$"):
        train(GRID, tmp_path / "run")


def test_a_table_is_printed_beside_the_exact_one(tmp_path, capsys):
    rlagents.train({**GRID, "agent": {**GRID["agent"], "learning_rate": 1.0}}, out=tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("V")
    assert lines[start + 1].split() == ["0.810000", "0.900000", "1.000000"]
    assert lines[start + 2].split() == ["0.900000", "1.000000", "-"]
    assert lines[start + 4].split() == ["(1,1)", "-", "0.810000", "0.810000", "-"]
    (distance,) = [line for line in lines if line.startswith("largest distance from Q*")]
    assert float(distance.split()[4].rstrip(",")) < 1e-6
    assert distance.endswith("value of the start 0.81, exactly 0.81")

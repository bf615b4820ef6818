"""Run directories: who made them, who works in them, and what in them is not believed."""

import os
import signal
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import rlagents
from rlagents import building, cli, experiments, machine, runs, toml
from rlagents.agents.rollout import Rollout
from rlagents.errors import RunError, UsageError

COUNTER = {
    "run": {"env_steps": 60, "evaluate_every": 0, "evaluate_episodes": 1, "checkpoint_every": 20},
    "env": {"kind": "gymnasium", "id": "example_envs:Counter", "count": 2},
    "agent": {"kind": "dqn", "learning_starts": 10, "batch_size": 4, "network": {"hidden": [4]}},
}
GRID = {"run": {"env_steps": 50}, "env": {"kind": "gridworld"}, "agent": {"kind": "q_learning"}}


@pytest.fixture
def key(tmp_path, monkeypatch):
    """Another user, who has no key yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "rlagents" / "key"


def test_the_key_is_made_once_for_this_user_alone(key, tmp_path):
    rlagents.train(GRID, out=tmp_path / "1", quiet=True)
    first = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(first) == 32
    assert [file.name for file in key.parent.iterdir()] == ["key"]
    rlagents.train(GRID, out=tmp_path / "2", quiet=True)
    assert key.read_bytes() == first


def test_a_run_made_here_is_gone_on_with_and_one_from_elsewhere_must_be_trusted(key, tmp_path):
    run = rlagents.train(COUNTER, out=tmp_path / "run", quiet=True)
    rlagents.train(resume=run, quiet=True)
    rlagents.evaluate(run, episodes=1)
    key.unlink()  # to another user
    told = (
        "would import example_envs:Counter, which runs with your rights: look at that code, then say --trust"
    )
    for use in (
        lambda **how: rlagents.evaluate(run, episodes=1, **how),
        lambda **how: rlagents.load(run, **how),
        lambda **how: rlagents.train(resume=run, quiet=True, **how),
        lambda **how: rlagents.train(run, out=tmp_path / f"new{len(how)}", quiet=True, **how),
    ):
        with pytest.raises(RunError, match=told):
            use()
        use(trust=True)


@pytest.mark.parametrize("command", [("bench", "env", "--repeat", "1", "--seconds", "0.01"), ("solve",)])
def test_other_commands_want_trust_too(command, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    mark = tmp_path / "mark"
    table = {**COUNTER, "env": {**COUNTER["env"], "id": "example_envs:Marks", "kwargs": {"path": str(mark)}}}
    run = rlagents.train(table, out=tmp_path / "run", quiet=True)
    mark.unlink()
    mine = CliRunner().invoke(cli.main, [*command, str(run)])
    assert "--trust" not in mine.output
    mark.unlink(missing_ok=True)
    key.unlink()
    for name in (run, run / "config.toml"):
        refused = CliRunner().invoke(cli.main, [*command, str(name)])
        assert refused.exit_code == 1
        assert (
            f"error: {run} was not made here by you, and would import example_envs:Marks, " in refused.stderr
        )
        assert not mark.exists()
    trusted = CliRunner().invoke(cli.main, [*command, str(run), "--trust"])
    assert "--trust" not in trusted.output
    assert mark.exists() == (command[0] == "bench")  # solving makes no step


def test_a_signature_is_of_one_configuration(key, tmp_path):
    run = rlagents.train(GRID, out=tmp_path / "run", quiet=True)
    other = rlagents.train(COUNTER, out=tmp_path / "other", quiet=True)
    (other / "signature").write_bytes((run / "signature").read_bytes())
    with pytest.raises(RunError, match="--trust"):
        rlagents.load(other)


def test_what_names_no_code_needs_no_trust(key, tmp_path):
    run = rlagents.train(GRID, out=tmp_path / "run", quiet=True)
    (run / "signature").unlink()
    rlagents.evaluate(run, episodes=1)
    rlagents.train(resume=run, quiet=True)


@pytest.mark.parametrize("env", [{"kwargs": {"size": 3}}, {"wrappers": ["evil:wrapper"]}], ids=str)
def test_arguments_and_wrappers_are_code_too(env, tmp_path):
    table = {**COUNTER, "env": {"kind": "gymnasium", "id": "CartPole-v1", **env}}
    (tmp_path / "config.toml").write_text(toml.dump(toml.load(table)), "utf-8")
    with pytest.raises(RunError, match=r"would import (CartPole-v1 with|evil:wrapper)"):
        rlagents.load(tmp_path)


def test_a_program_to_start_is_code_too(tmp_path):
    table = {**GRID, "env": {"kind": "carla", "launch": "their-run/CarlaUE4.sh"}, "agent": {"kind": "dqn"}}
    (tmp_path / "config.toml").write_text(toml.dump(toml.load(table)), "utf-8")
    with pytest.raises(RunError, match=r"would start their-run/CarlaUE4\.sh, which runs with your rights"):
        rlagents.load(tmp_path)


def test_a_key_that_others_can_read_signs_nothing(key, tmp_path):
    run = rlagents.train(COUNTER, out=tmp_path / "run", quiet=True)
    key.chmod(0o644)
    with pytest.raises(RunError, match=r"must hold 32 bytes and be of mode 0600, got 32 and 0644"):
        rlagents.load(run)
    other = rlagents.train(GRID, out=tmp_path / "other", quiet=True)
    assert not (other / "signature").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "lock", "videos", "checkpoints/000000000099"])
def test_a_link_out_of_a_run_is_not_followed(name, tmp_path):
    run = rlagents.train(GRID, out=tmp_path / "run", quiet=True)
    mine = tmp_path / "mine"
    mine.write_text("keep")
    if (run / name).exists():
        (run / name).unlink()
    (run / name).symlink_to(mine)
    for use in (lambda: rlagents.train(resume=run, quiet=True), lambda: rlagents.evaluate(run, episodes=1)):
        with pytest.raises(RunError, match=f"{name} must not be a symbolic link"):
            use()
    assert mine.read_text() == "keep"


def test_modules_beside_a_strangers_run_are_not_found(tmp_path):
    run = rlagents.train(COUNTER, out=tmp_path / "run", quiet=True)
    for module in ("example_envs", "wandb", "pygame"):
        (run / f"{module}.py").write_text("raise SystemExit('planted')\n")
    (run / "signature").unlink()
    command = [sys.executable, "-m", "rlagents"]
    for arguments in (["train", str(run)], ["train", "--resume", str(run)], ["evaluate", str(run)]):
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 1
        assert "would import example_envs:Counter" in done.stderr
        assert "planted" not in done.stderr


def test_modules_in_a_strangers_run_are_not_found_from_within(tmp_path):
    run = rlagents.train(GRID, out=tmp_path / "run", quiet=True)
    (run / "tensorboard" / "__init__.py").write_text("raise SystemExit('planted')\n")
    command = [Path(sys.executable).with_name("rlagents"), "train", ".", "--out", tmp_path / "new", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run, check=False)
    assert "planted" not in done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", ['"../../x"', '"a b"', "[1]", "null"])
def test_an_id_from_a_stranger_reaches_no_path(number, tmp_path):
    (tmp_path / "run.json").write_text(f'{{"id": {number}}}')
    with pytest.raises(RunError, match="must hold an id of 8 hexadecimal digits"):
        runs.identity(tmp_path)


def test_a_configuration_of_any_size_is_not_read(tmp_path):
    with (tmp_path / "config.toml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunError, match=r"config\.toml must have at most 1048576 bytes, got 1099511627776"):
        runs.read(tmp_path)


def test_one_process_at_a_time_and_a_killed_one_holds_nothing(tmp_path):
    run = rlagents.train(GRID, out=tmp_path / "run", quiet=True)
    code = f"""
import time
from pathlib import Path
from rlagents import cli, machine, runs, toml
with runs.locked(Path({str(run)!r})):
    print("locked", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(RunError, match=f"run is in use by process {holder.pid} on .*; stop that one first"):
        rlagents.train(resume=run, quiet=True)
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert (run / "lock").exists()
    rlagents.train(resume=run, quiet=True)


def test_a_replay_larger_than_memory_is_refused_before_anything_is_taken(tmp_path):
    free = machine.available()
    assert 0 < free <= machine.memory()
    # A timestep takes 2 float32, 12 bytes beside them and 8 in the queue.
    big = {**COUNTER, "agent": {**COUNTER["agent"], "replay": {"capacity": free // 14}}}
    told = rf"got {free // 14}: it takes \d+\.\d\d GB, and \d+\.\d\d GB are free; at most \d+ fit"
    with pytest.raises(UsageError, match=told):
        rlagents.train(big, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_rollout_larger_than_memory_is_refused_as_well(tmp_path):
    free = machine.available()
    # A row of two environments takes 2 x (2 float32 and 20 bytes beside them).
    rollout = free // 50
    big = {**COUNTER, "agent": {"kind": "pqn", "rollout": rollout, "minibatches": 1}}
    told = rf"^agent\.rollout must fit into memory, got {rollout}: it takes .* GB are free; at most \d+ fit$"
    with pytest.raises(UsageError, match=told):
        rlagents.train(big, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_table_that_does_not_fit_into_memory_is_refused_by_its_own_name(tmp_path):
    settings = {"run": {"env_steps": 10}, "env": {"kind": "cartpole", "bins": [3000] * 4}}
    told = r"^agent\.kind q_learning must have a table .* 81000000000000 states .* fewer cells with env\.bins"
    with pytest.raises(UsageError, match=told):
        rlagents.train(settings | {"agent": {"kind": "q_learning"}}, out=tmp_path / "run", quiet=True)


@pytest.mark.parametrize("spare", [0, -1])
@pytest.mark.parametrize("count", [1, 3])
def test_a_rollout_that_just_fits_is_taken(count, spare, monkeypatch):
    """What is asked for is what the rollout then has, its spare row too."""
    settings = [f"env.count={count}", "agent.rollout=5", "agent.minibatches=1"]
    experiment = toml.load(experiments.find("cartpole-pqn"), settings)
    cpu = torch.device("cpu")
    with closing(building.environments(experiment.env)) as envs:
        rollout = Rollout(envs.layout, count, 5, cpu)
        rollout.rows = 6
        size = sum(column.nbytes for column in rollout.state_dict().values())
        monkeypatch.setattr(machine, "available", lambda on: size + spare)
        if spare:
            with pytest.raises(UsageError, match=r"got 5: .*; at most 4 fit"):
                building.require_memory(experiment, envs, cpu)
        else:
            building.require_memory(experiment, envs, cpu)

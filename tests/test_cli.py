"""The command line: its exit codes, one line per error, what it prints, and what can be imported from it."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import rlagents
from rlagents import cli, evaluation, experiments, runs, toml, training
from rlagents.errors import RunError, UsageError

pytestmark = pytest.mark.usefixtures("folder")
TINY = '[run]\nenv_steps = 200\n[env]\nkind = "corridor"\n[agent]\nkind = "q_learning"\n'


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, prog_name="rlagents")


def refuse(code: int, *arguments: str) -> list[str]:
    """Returns the lines of a command that must fail: errors alone, and no traceback."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), lines
    return [line.removeprefix("error: ") for line in lines]


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_version_and_help() -> None:
    assert rlagents.__version__ in call("--version").output
    text = call("--help").output
    assert all(command in text for command in ("train", "evaluate", "list", "show"))


def test_list_prints_what_there_is() -> None:
    listed = call("list").output
    for name, description in experiments.names().items():
        assert f"{name} " in listed
        assert description in listed
    for word in ("experiments:", "environments:", "atari", "gymnasium", "agents:", "q_learning"):
        assert word in listed
    kinds = {line.split()[0] for line in call("list", "agents").output.splitlines()}
    assert kinds == {"dqn", "pqn", "q_learning"}


def test_show_prints_the_resolved_toml() -> None:
    result = call("show", "cartpole-dqn", "agent.double=true", "run.env_steps=1000")
    shown = tomllib.loads(result.output)
    assert shown["agent"]["double"] is True
    assert shown["run"]["evaluate_every"] == 100
    assert toml.load(shown) == experiments.load("cartpole-dqn", ["agent.double=true", "run.env_steps=1000"])


def test_show_into_a_closed_pipe_is_quiet() -> None:
    """The reader is gone before anything is printed, so the pipe is broken for certain."""
    code = """
import os, sys
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
from rlagents.cli import main
main(["show", "cartpole-dqn"])
"""
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["show", "pong-dq"], 'got "pong-dq"; did you mean pong-dqn'),
        (["train", "pong-dq"], 'got "pong-dq"; did you mean pong-dqn'),
        (["train", "none/pong.toml"], "none/pong.toml does not exist"),
        (["train", "cartpole-dqn", "agent.n_steps=3"], "agent.n_steps is not a key, got 3; did you mean"),
        (["train", "cartpole-dqn", "agent.n_step=0"], "n_step must be greater than or equal to 1, got 0"),
        (["train", "cartpole-dqn", "agent.double=3"], "agent.double must be true or false, got 3"),
        (["train", "pong-dqn", "agent.replay.capacity=7"], "agent.replay.capacity must hold at least"),
        (["train", "cartpole-dqn", "--seed", "-1"], "run.seed must be greater than or equal to 0, got -1"),
        (["train", "cartpole-dqn", "--seed", "x"], "not a valid integer (see `rlagents train --help`)"),
        (["train", "cartpole-dqn", "--device", "tpu"], "'tpu' is not one of"),
        (["train", "cartpole-dqn", "--speed", "3"], "No such option"),
        (["train"], "EXPERIMENT must be given"),
        (["train", "--resume", "r", "a=b"], "--resume goes on with a run as it is: leave out KEY=VALUE"),
        (["train", "--resume", "r", "x", "a=b", "--seed", "0"], "leave out KEY=VALUE, --seed"),
        (["train", "--resume", "r", "--device", "cpu", "--out", "o"], "leave out --device, --out"),
        (["evaluate", "r", "--checkpoint", "newest"], "must be latest, best or a number of env"),
        (["evaluate", "r", "--epsilon", "2"], "2.0 is not in the range"),
        (["evaluate", "r", "--episodes", "0"], "0 is not in the range"),
        (["list", "games"], "'games' is not one of"),
        (["tran"], "No such command 'tran'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_usage_is_one_line_and_2(arguments: list[str], line: str, tmp_path: Path) -> None:
    (told,) = refuse(2, *arguments)
    assert line in told
    assert not list(tmp_path.iterdir())


def test_all_mistakes_in_an_experiment_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[run]\nenv_step = 5\n[env]\nkind = 'atary'\n[agent]\nlr = 3\n")
    told = refuse(2, "train", "mine.toml")
    assert [line.split()[0] for line in told] == ["run.env_steps", "run.env_step", "env.kind", "agent.lr"]


def test_a_malformed_file_is_one_line_and_2(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[run\n")
    (told,) = refuse(2, "train", "mine.toml")
    assert told.startswith("mine.toml must be TOML: ")
    assert "line 1" in told


@pytest.mark.parametrize("command", [("train", "--resume"), ("evaluate",)], ids=" ".join)
def test_what_is_no_run_directory_is_one_line_and_1(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for run in ("folder", "nowhere"):
        (told,) = refuse(1, *command, run)
        assert told.startswith(f"{run} is not a run directory")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UsageError("device must be cpu\nand another"), 2, ["device must be cpu", "and another"]),
        (RunError("it diverged"), 1, ["it diverged"]),
        (ValueError("a\nb"), 1, ["unexpected ValueError: a b; set RLAGENTS_DEBUG=1 for the traceback"]),
        (OSError(28, "No space left"), 1, ["unexpected OSError: [Errno 28] No space left; set RLAGENTS"]),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_errors_on_the_way_become_exit_codes(
    error: Exception, code: int, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train", raising(error))
    lines = refuse(code, "train", "cartpole-dqn")
    assert len(lines) == len(told)
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=True))


def test_the_traceback_is_there_for_the_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAGENTS_DEBUG", "1")
    monkeypatch.setattr(training, "train", raising(ZeroDivisionError("bug")))
    assert isinstance(call("train", "cartpole-dqn").exception, ZeroDivisionError)


def test_interrupted_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training, "train", raising(KeyboardInterrupt()))
    result = call("train", "cartpole-dqn", "--out", "mine")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    (tmp_path / "mine" / "checkpoints").mkdir(parents=True)
    result = call("train", "cartpole-dqn", "--out", "mine")
    assert result.exit_code == 130
    assert result.stderr == "interrupted; go on with: rlagents train --resume mine\n"
    assert "Aborted" not in result.output


def test_train_evaluate_and_resume_one_run(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TINY)
    trained = call(
        "train", "mine.toml", "--seed", "3", "agent.discount=0.9", "--out", "run", "--device", "cpu"
    )
    assert trained.exit_code == 0, trained.output
    assert "experiment  mine.toml" in trained.output
    assert "q_learning on corridor × 8: 200 env steps, seed 3" in trained.output
    assert "writes      run" in trained.output
    config = runs.read("run")
    assert (config.run.seed, config.run.name, config.agent.discount) == (3, "mine", 0.9)

    evaluated = call("evaluate", "run", "--episodes", "5", "--json", "scores.json")
    assert evaluated.exit_code == 0, evaluated.output
    assert "greedy, seed 1000003" in evaluated.output
    assert str(evaluation.evaluate("run", episodes=5)) in evaluated.output
    assert (tmp_path / "scores.json").is_file()

    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    size = (kept[-1] / "state.json").stat().st_size
    (kept[-1] / "state.json").write_text("{}")
    assert call("evaluate", "run", "--json", "scores.json").stderr == (
        f"note: {Path('run') / 'checkpoints' / kept[-1].name} is damaged: state.json has 2 bytes, not "
        f"{size}; the one before it is used\n"
    )
    assert json.loads((tmp_path / "scores.json").read_text())["checkpoint_step"] == int(kept[-2].name)
    (told,) = refuse(1, "evaluate", "run", "--checkpoint", str(int(kept[-1].name)))
    assert f"{kept[-1].name} is damaged: state.json has 2 bytes, not" in told

    (told,) = refuse(2, "train", "--resume", "run", "cartpole-dqn")
    assert told == "EXPERIMENT beside --resume must be the run's own, mine, got cartpole-dqn; leave it out"
    resumed = call("train", "--resume", "run", "mine.toml")
    assert resumed.exit_code == 0, resumed.output


def test_a_module_in_the_current_folder_or_beside_the_experiment_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
        (folder / "whose_env.py").write_text(f"raise RuntimeError('this is the one {folder.name}')\n")
    (beside / "mine.toml").write_text(
        '[run]\nenv_steps = 50\n[env]\nkind = "gymnasium"\nid = "whose_env:None-v0"\n'
    )
    (told,) = refuse(2, "train", str(beside / "mine.toml"))
    assert "this is the one beside" in told
    monkeypatch.chdir(here)
    (here / "config.toml").write_text("[theirs]\n")  # another program's
    (told,) = refuse(2, "train", str(beside / "mine.toml"))
    assert "this is the one here" in told


def test_python_does_what_the_command_does(tmp_path: Path) -> None:
    content = tomllib.loads(TINY)
    run = rlagents.train(content, "agent.discount=0.5", seed=4, device="cpu", out="mine", quiet=True)
    assert run == Path("mine")
    loaded = rlagents.load(run)
    assert (loaded.config.agent.discount, loaded.config.run.seed) == (0.5, 4)
    assert len(rlagents.evaluate(run, episodes=3).returns) == 3
    assert rlagents.train(resume=run, quiet=True) == run
    with pytest.raises(UsageError, match="give no experiment"):
        rlagents.train("cartpole-dqn", resume=run)
    with pytest.raises(UsageError, match="needs an experiment"):
        rlagents.train()
    with pytest.raises(UsageError, match="did you mean pong-dqn"):
        rlagents.train("pong-dq")


def test_importing_is_light() -> None:
    code = "import rlagents, rlagents.cli, os, sys; print(os.environ['GOMP_SPINCOUNT'], *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    spins, *modules = done.stdout.split()
    assert spins.isdigit()
    assert not {"torch", "pydantic", "gymnasium", "numpy"} & set(modules)

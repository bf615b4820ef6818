"""What goes wrong on the way is told with its place, and leaves the last good checkpoint alone."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import rlagents
from rlagents import building, runs
from rlagents.agents.guard import Guard
from rlagents.checkpoint import Checkpoints
from rlagents.errors import RunError
from rlagents.tracker import Tracker
from rlagents.types import Step

CARTPOLE = {
    "run": {"env_steps": 1500, "evaluate_every": 0, "evaluate_episodes": 4, "checkpoint_every": 20},
    "env": {"kind": "cartpole", "count": 4},
    "agent": {"kind": "dqn", "learning_starts": 200, "n_step": 3, "network": {"hidden": [16]}},
}
COUNTER = {
    "run": {"env_steps": 100, "evaluate_every": 0, "checkpoint_every": 4},
    "env": {"kind": "gymnasium", "count": 2},
    "agent": {"kind": "dqn", "network": {"hidden": [4]}},
}


@pytest.mark.parametrize("waits", [True, False])
def test_the_first_bad_batch_is_remembered(waits):
    guard = Guard(3, torch.device("cpu"), waits=waits)
    good, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    rows = [torch.arange(3) + 10 * number for number in range(6)]
    for row in rows[:3]:
        guard.watch(row, good, good)
    assert guard.failed() is None
    guard.watch(rows[3], good, torch.tensor(float("inf")))
    guard.watch(rows[4], bad, bad)
    guard.watch(rows[5], good)
    before, row = guard.failed()
    assert before == 3
    assert torch.equal(row, rows[3])


@pytest.mark.parametrize("clip", ["0", "10"])
def test_learning_that_breaks_leaves_its_batch_and_a_good_checkpoint(clip, tmp_path):
    run = tmp_path / "run"
    settings = ["agent.learning_rate=1e30", f"agent.gradient_clip={clip}", "agent.values.loss=mse"]
    with pytest.raises(RunError) as caught:
        rlagents.train(CARTPOLE, *settings, out=run, quiet=True)
    told = str(caught.value)
    assert f"it began at learner step 2, whose batch lies in {run / 'diverged.safetensors'}" in told
    batch = load_file(run / "diverged.safetensors")
    assert batch["obs"].shape == batch["next_obs"].shape == (64, 4)
    assert {"action", "reward", "discount", "row", "weight"} < batch.keys()
    loaded = runs.load(run)
    assert loaded.step > 0
    assert all(weight.isfinite().all() for weight in loaded.agent.online.parameters())


def test_weights_that_are_no_numbers_replace_no_good_ones(tmp_path, monkeypatch):
    """Without a limit on it, the norm of the gradient is not known: the weights themselves are looked at."""
    step = torch.optim.Adam.step

    def spoil(self, *arguments):
        step(self, *arguments)
        with torch.no_grad():
            self.param_groups[0]["params"][0][0, 0] = torch.nan

    monkeypatch.setattr(torch.optim.Adam, "step", spoil)
    with pytest.raises(RunError, match=r"is (nan|inf)|holds what is no number|the gradient is no number"):
        rlagents.train(CARTPOLE, "agent.gradient_clip=0.0", out=tmp_path / "run", quiet=True)
    monkeypatch.undo()
    saved = Checkpoints(tmp_path / "run").find().state()
    assert all(value.isfinite().all() for name, value in saved.items() if name.startswith("agent/policy"))


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_crashed_environment_is_named_with_its_traceback(backend, tmp_path):
    run = tmp_path / "run"
    env = {**COUNTER["env"], "id": "example_envs:Late", "backend": backend}
    with pytest.raises(RunError) as caught:
        rlagents.train({**COUNTER, "env": env}, out=run, quiet=True)
    told = str(caught.value)
    assert "example_envs:Late failed in step: RuntimeError: the engine is on fire (environment " in told
    assert f"; its traceback lies in {run / 'crash.txt'}" in told
    assert 'raise RuntimeError("the engine is on fire")' in (run / "crash.txt").read_text()
    assert runs.load(run).step > 0


def crashing(name, **env):
    run = {**COUNTER["run"], "evaluate_episodes": 2}
    return {
        **COUNTER,
        "run": run,
        "env": {**COUNTER["env"], "id": f"example_envs:{name}", "on_crash": "restart", **env},
    }


def test_a_killed_worker_is_named_and_started_again_where_that_is_asked_for(tmp_path, monkeypatch, capsys):
    update, ticks = Tracker.update, []
    make = building.environments

    def kept(*arguments, **options):
        envs = make(*arguments, **options)
        ticks.append(envs)
        return envs

    def kill(self, step):
        update(self, step)
        ticks.append(step)
        if len(ticks) == 15:
            os.kill(ticks[0]._vector.processes[1].pid, signal.SIGKILL)

    monkeypatch.setattr(building, "environments", kept)
    monkeypatch.setattr(Tracker, "update", kill)
    run = rlagents.train(crashing("Counter", backend="async"), out=tmp_path / "run", quiet=True)
    steps = ticks[1:]
    (lost,) = [step for step in steps[:-1] if isinstance(step, Step) and step.lost is not None]
    assert lost.lost.any()
    assert lost.final.all()
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "ended" in line]
    assert "env steps: example_envs:Counter failed: a worker process ended (environment 1, exit c" in told
    assert "code -9, action " in told
    assert told.endswith("; all environments start anew")
    assert runs.load(run).step >= 100


def test_a_run_with_crashes_resumes_as_if_it_had_not_been_stopped(tmp_path):
    """`Late` fails in its third episode: in every 13th step, after which all start anew."""
    table = crashing("Late")
    whole = rlagents.train(table, out=tmp_path / "whole", quiet=True)
    for tick in (13, 14):
        run, update, losses = tmp_path / str(tick), Tracker.update, []

        def signalled(self, step, tick=tick, update=update, losses=losses):
            update(self, step)
            losses.append(step.lost is not None)
            if len(losses) == tick:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tracker, "update", signalled)
            with pytest.raises(KeyboardInterrupt):
                rlagents.train(table, out=run, quiet=True)
        assert losses[-1] == (tick == 13)
        rlagents.train(resume=run, quiet=True)
        assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
        mine, theirs = (Checkpoints(path).find().manifest["files"] for path in (run, whole))
        assert mine == theirs


def test_what_fails_over_and_over_is_not_started_again_for_ever(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunError) as caught:
        rlagents.train(crashing("Fails"), out=run, quiet=True)
    told = str(caught.value)
    assert "is on fire (environment 0, action " in told
    assert "); it crashed 5 times before, without an episode between; its traceback lies in" in told
    assert "Peculiar" in (run / "crash.txt").read_text()


def test_a_run_that_crashed_may_go_on_with_another_way_out(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunError, match="the engine is on fire"):
        rlagents.train(crashing("Late", on_crash="stop"), out=run, quiet=True)
    file = run / "config.toml"
    file.write_text(file.read_text().replace('on_crash = "stop"', 'on_crash = "restart"'))
    rlagents.train(resume=run, trust=True, quiet=True)
    result = rlagents.evaluate(run, episodes=70, trust=True)
    assert result.lengths == (5,) * 70
    assert result.notes
    for note in result.notes:
        assert "Late failed in step: RuntimeError: the engine is on fire (environment " in note
        assert note.endswith("; the episodes under way were played again")

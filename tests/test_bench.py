"""`rlagents bench`: each command runs small on the real parts, and its numbers fit together."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import rlagents
from rlagents import building, cli, experiments
from rlagents.errors import UsageError
from rlagents.loop import Trail, interact
from rlagents.peers import TIANSHOU, sb3, tianshou
from rlagents.seeding import Streams
from rlagents.timing import Plan, Row, Thing, measure, ratio

pytestmark = pytest.mark.usefixtures("folder")
CPU = torch.device("cpu")
SMALL_PONG = ("pong-dqn", "env.count=2", "agent.replay.capacity=400")
# What SB3's DQN can do, too.
PLAIN = ("agent.double=false", "agent.network.layer_norm=false")
CONSTANT = "agent.learning_rate_end=-1"  # for Tianshou
SHARED = ("cartpole-dqn-fixed-target", *PLAIN, "agent.target.sync_every=96", "agent.learning_starts=100")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["bench", *arguments], prog_name="rlagents")


def bench(*arguments: str) -> dict[str, Any]:
    """Runs a command; returns its JSON after checking what all of them have in common."""
    result = call(*arguments, "--json", "measured.json")
    assert result.exit_code == 0, result.output
    measured = json.loads(Path("measured.json").read_text("utf-8"))
    assert measured["machine"]["cores"] > 0
    assert measured["machine"]["torch_threads"] > 0
    assert measured["versions"]["torch"] == torch.__version__
    assert measured["versions"]["torch"] in result.output
    assert measured["rows"]
    for row in measured["rows"]:
        # A process may have memory to spare, and a training may go faster while a checkpoint is written.
        least = -1e9 if "resident" in row["unit"] or "lost" in row["name"] else 0
        assert least < row["min"] <= row["median"] <= row["max"], row
        assert {row["min"], row["max"]} <= set(row["samples"]), row
        assert row["unit"].split("/")[0] in result.output
    return measured


def samples(measured: dict[str, Any], name: str, unit: str) -> list[float]:
    (found,) = [row["samples"] for row in measured["rows"] if (row["name"], row["unit"]) == (name, unit)]
    return found


def test_pieces_are_timed_in_turn_after_one_that_does_not_count() -> None:
    order: list[str] = []

    def ticks(name: str, amount: int) -> Iterator[tuple[int, int]]:
        while True:
            order.append(name)
            yield amount, 2 * amount

    things = [Thing(name, ("steps/s", "µs"), ticks(name, amount)) for name, amount in (("a", 3), ("b", 5))]
    rows = measure(things, Plan(Path("none.toml"), repeat=2, seconds=0.0), CPU)  # so each piece is one tick
    assert order == ["a", "b"] * 3
    assert [(row.name, row.unit, len(row.samples)) for row in rows] == [
        ("a", "steps/s", 2), ("a", "µs", 2), ("b", "steps/s", 2), ("b", "µs", 2)
    ]  # fmt: skip
    for rate, time in zip(rows[0].samples, rows[1].samples, strict=True):
        assert 3 / rate * 1e6 == pytest.approx(time * 6)


def test_a_ratio_is_one_of_neighbours() -> None:
    row = ratio("a / b", Row("a", "x", (4.0, 9.0)), Row("b", "x", (2.0, 3.0)))
    assert row.samples == (2.0, 3.0)
    assert row.as_dict() == {
        "name": "a / b", "unit": "×", "median": 2.5, "min": 2.0, "max": 3.0, "samples": [2.0, 3.0]
    }  # fmt: skip


def test_env() -> None:
    measured = bench("env", "gridworld-q-learning", "env.count=3", "--seconds", "0.02", "--repeat", "3")
    assert (measured["command"], measured["repeat"], measured["seconds"]) == ("bench env", 3, 0.02)
    assert measured["experiment"]["env"]["count"] == 3
    assert len(samples(measured, "gridworld × 3, random", "env steps/s")) == 3


def test_env_with_an_agent_that_acts() -> None:
    measured = bench("env", "env.count=2", "--act", "--seconds", "0.05", "--repeat", "1")  # pong-dqn
    names = [row["name"] for row in measured["rows"]]
    assert names == ["atari pong × 2, random", "atari pong × 2, agent acts"]


@pytest.mark.slow
def test_every_backend() -> None:
    rows = bench("env", "--all", "--seconds", "0.05", "--repeat", "1")["rows"]
    names = " ".join(row["name"] for row in rows)
    for backend in ("gridworld", "FrozenLake-v1 sync", "FrozenLake-v1 async", "cartpole", "atari pong × 16"):
        assert backend in names


@pytest.mark.parametrize(
    "experiment",
    [("cartpole-dqn", "agent.learning_starts=100"), (*SMALL_PONG, "agent.learning_starts=60")],
    ids=lambda arguments: arguments[0],
)
def test_update(experiment: tuple[str, ...]) -> None:
    batches = ("--batch", "4", "--batch", "8")
    rows = bench("update", *experiment, *batches, "--seconds", "0.1", "--repeat", "2")["rows"]
    assert [(row["name"], row["unit"]) for row in rows] == [
        (f"batch {size}, {precision}", "updates/s")
        for size in (4, 8)
        for precision in ("float32", "bfloat16")
    ]


def test_checkpoint() -> None:
    asked = (*SMALL_PONG, "agent.batch_size=4", "--timesteps", "100", "--seconds", "0.05", "--repeat", "2")
    measured = bench("checkpoint", *asked)
    (written,) = [row for row in measured["rows"] if row["unit"] == "× in memory"]
    assert 0.99 < written["min"] <= written["max"] < 1.1
    assert written["samples"] == samples(measured, "checkpoint, bytes of new rows", "× in memory")
    waits, there = (
        samples(measured, f"checkpoint, {what}", "s") for what in ("training waits", "on the disk after")
    )
    assert len(waits) == 2
    assert all(wait < done for wait, done in zip(waits, there, strict=True))
    assert list(Path().iterdir()) == [Path("measured.json")]  # nothing stays behind


def test_checkpoint_of_no_replay() -> None:
    result = call("checkpoint", "pong-pqn", "env.count=2")
    assert result.exit_code == 2
    assert "agent must learn from a replay for bench checkpoint" in result.output


def test_update_against_another_learner() -> None:
    small = ("--batch", "4", "--precision", "float32", "--seconds", "0.1", "--repeat", "3")
    other = "agent.values.kind=scalar agent.double=true"
    settings = [part for setting in other.split() for part in ("--against", setting)]
    measured = bench("update", "cartpole-c51", "agent.learning_starts=100", *small, *settings)
    c51 = samples(measured, "batch 4, float32", "updates/s")
    scalar = samples(measured, f"batch 4, float32, {other}", "updates/s")
    times = [b / a for a, b in zip(c51, scalar, strict=True)]
    assert samples(measured, f"times as long as {other}, batch 4, float32", "×") == times


def test_what_is_timed_against_another_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = building.agent
    monkeypatch.setattr(building, "agent", lambda *known: made.append(make(*known)) or made[-1])
    small = ("--batch", "4", "--precision", "float32", "--seconds", "0.01", "--repeat", "1")
    uniform = "agent.replay.sampling.kind=uniform"
    bench("update", "cartpole-per", "agent.learning_starts=100", *small, "--against", uniform)
    assert [agent.config.replay.sampling.kind for agent in made] == ["proportional", "uniform"]


def test_replay_beside_the_two_of_stable_baselines3() -> None:
    measured = bench("replay", *SMALL_PONG, "--batch", "8", "--seconds", "0.02", "--repeat", "3")
    assert "stable-baselines3" in measured["versions"]
    for other in ("SB3", "SB3 optimised"):
        for operation, unit in (("insert × 2", "rows/s"), ("sample 8", "µs")):
            ours = samples(measured, f"rlagents, {operation}", unit)
            theirs = samples(measured, f"{other}, {operation}", unit)
            pairs = zip(ours, theirs, strict=True) if unit == "rows/s" else zip(theirs, ours, strict=True)
            expected = [above / below for above, below in pairs]
            assert samples(measured, f"rlagents faster than {other}, {operation}", "×") == expected
    sizes = [samples(measured, name, "bytes/timestep")[0] for name in ("rlagents", "SB3", "SB3 optimised")]
    frame = 60 * 60
    assert frame < sizes[0] < 1.02 * frame + frame / 4
    assert 8 * frame < sizes[1] < 8.1 * frame
    assert 4 * frame < sizes[2] < 4.1 * frame


def test_replay_without_stable_baselines3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    measured = bench("replay", *SHARED, "--batch", "8", "--seconds", "0.02", "--repeat", "1")
    assert any('pip install "rlagents[peers]"' in note for note in measured["notes"])
    assert not any("SB3" in row["name"] for row in measured["rows"])


def test_replay_with_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    small = ("agent.replay.capacity=800", "--batch", "8", "--seconds", "0.02", "--repeat", "2")
    measured = bench("replay", "cartpole-per", *small)
    for operation, unit in (("insert × 8", "rows/s"), ("sample 8", "µs"), ("priorities 8", "µs")):
        assert min(samples(measured, f"rlagents, {operation}", unit)) > 0


def test_train_with_noise_in_place_of_epsilon() -> None:
    small = ("agent.learning_starts=100", "--precision", "float32", "--seconds", "0.1", "--repeat", "1")
    assert bench("train", "cartpole-rainbow", *small)["rows"]


def test_train_learns_as_often_as_configured() -> None:
    measured = bench("train", *SHARED, "agent.learn_every=5", "--seconds", "0.3", "--repeat", "2")
    for precision in ("float32", "bfloat16"):
        env_steps = samples(measured, precision, "env steps/s")
        updates = samples(measured, precision, "updates/s")
        assert len(env_steps) == 2
        for steps, learned in zip(env_steps, updates, strict=True):
            slack = 2 / (steps * 0.3) + 2 / (learned * 0.3)  # a tick more or less on either side
            assert steps / learned == pytest.approx(5, rel=8 * slack)


def test_train_a_table() -> None:
    measured = bench("train", "gridworld-q-learning", "--seconds", "0.05", "--repeat", "1")
    assert [row["unit"] for row in measured["rows"]] == ["env steps/s", "updates/s"]


def test_train_from_rollouts() -> None:
    small = (
        "agent.rollout=4",
        "agent.minibatches=1",
        "--precision",
        "float32",
        "--seconds",
        "0.3",
        "--repeat",
        "1",
    )
    measured = bench("train", "cartpole-pqn", *small)
    assert measured["notes"] == ["learning from env step 128 on"]
    assert [row["unit"] for row in measured["rows"]] == ["env steps/s", "updates/s"]


def test_peers_in_processes_of_their_own() -> None:
    options = ("--precision", "float32", "--seconds", "0.4", "--repeat", "1")
    measured = bench("peers", *SHARED, *options)
    assert samples(measured, "rlagents float32 / SB3", "×") == [
        samples(measured, "rlagents float32", "env steps/s")[0] / samples(measured, "SB3", "env steps/s")[0]
    ]
    for side in ("rlagents float32", "SB3"):
        assert samples(measured, side, "MB at the peak")[0] > 50  # PyTorch alone takes more
        env_steps, updates = (samples(measured, side, unit)[0] for unit in ("env steps/s", "updates/s"))
        assert env_steps / updates == pytest.approx(4, rel=0.5)  # a tick more or less of few
    assert any("Tianshou" in note for note in measured["notes"])


@pytest.mark.slow
def test_peers_to_a_score() -> None:
    budget = ("run.env_steps=3000", "run.evaluate_every=1000", "run.evaluate_episodes=3")
    measured = bench("peers", *SHARED, *budget, "--until", "5", "--precision", "float32", "--repeat", "1")
    for side in ("rlagents float32", "SB3"):
        (steps,) = samples(measured, side, "env steps to the score")
        assert 1000 <= steps < 1008
    never = bench("peers", *SHARED, *budget, "--until", "501", "--precision", "float32", "--repeat", "1")
    assert {row["unit"] for row in never["rows"]} == {"MB at the peak"}
    assert "SB3 came to 501 in 0 of 1" in never["notes"]


@pytest.mark.parametrize("command", ["env", "update", "replay", "train", "peers"])
def test_an_unknown_key_is_one_line_and_2(command: str) -> None:
    result = call(command, "agent.learning_rte=1e-3")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: agent.learning_rte is not a key, got 0.001; did you mean")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["env", "pong-dq"], ["did you mean pong-dqn"]),
        (["env", "--repeat", "0"], ["0 is not in the range"]),
        (["env", "--seconds", "0"], ["0.0 is not in the range"]),
        (["train", "--precision", "float16"], ["'float16' is not one of"]),
        (["update", "gridworld-q-learning"], ["agent.kind must be dqn for bench update, got q_learning"]),
        (["update", "cartpole-pqn"], ["agent.kind must be dqn for bench update, got pqn"]),
        (["replay", "gridworld-q-learning"], ["agent.learn_from must be replay for bench replay"]),
        (["replay", "cartpole-pqn"], ["agent.kind must be dqn or q_learning for bench replay, got pqn"]),
        (["peers", "taxi-q-learning"], ["agent.kind must be dqn in SB3, got q_learning"]),
        (["peers", "pong-dqn"], [
            "agent.learning_rate_steps must be 0 in SB3, got 400000",
            "agent.replay.sampling.kind must be uniform in SB3, got proportional",
            "agent.learning_rate_schedule must be linear in SB3, got cosine",
            "agent.average_rate must be 0.0 in SB3, got 0.001",
            "agent.average_rate_end must be 0.0 in SB3, got 0.0001",
            "agent.double must be false in SB3, got true",
            "agent.values.kind must be scalar in SB3, got quantile",
            "agent.network.dueling must be false in SB3, got true",
            "agent.network.subtract_mean must be false in SB3, got true",
            "agent.network.body must be auto or nature_cnn in SB3, got arcade_cnn",
        ]),
        (["peers", "cartpole-dqn", *PLAIN], ["agent.target.kind must be fixed in SB3, got none"]),
        (["peers", "pong-dqn-nature", "env.width=96"], ["env.height must be env.width, and 36"]),
        (["peers", "pong-dqn-nature", "env.fire_reset=false"], ["env.fire_reset must be true in SB3"]),
        (["peers", "cartpole-dqn-fixed-target", *PLAIN], ["sync_every must be a multiple of env.count"]),
    ],
    ids=lambda value: " ".join(value[:2]),
)  # fmt: skip
def test_what_cannot_be_measured_is_a_line_and_2(arguments: list[str], lines: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    told = result.stderr.splitlines()
    assert len(told) == len(lines), told
    assert all(line in found for line, found in zip(lines, told, strict=True)), told


def test_peers_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    result = call("peers")
    assert result.exit_code == 2
    assert result.stderr == (
        'error: stable-baselines3 is not installed; install it with: pip install "rlagents[peers]"\n'
    )


def test_stable_baselines3_has_the_same_network_and_numbers() -> None:
    experiment = experiments.load("pong-dqn-nature", ["agent.replay.capacity=500", "env.sticky=0.25"])
    model = sb3.build(experiment)
    envs = building.environments(experiment.env)
    agent = building.agent(experiment, envs, CPU)
    shapes = sorted(tuple(p.shape) for p in agent.online.parameters())
    assert sorted(tuple(p.shape) for p in model.q_net.parameters()) == shapes
    assert model.env is not None
    assert model.env.observation_space.shape == envs.layout.shape
    assert model.action_space.n == envs.actions
    envs.close()
    (group,) = model.policy.optimizer.param_groups
    assert (group["lr"], group["eps"], model.gamma, model.max_grad_norm) == (1e-4, 1e-8, 0.99, 10)
    assert (model.batch_size, model.buffer_size, model.learning_starts) == (32, 500, 100_000)
    assert (model.train_freq.frequency, model.gradient_steps, model.target_update_interval) == (4, 1, 1000)
    assert [model.exploration_schedule(left) for left in (1.0, 0.0)] == [1.0, 0.01]
    assert model.exploration_schedule(0.95) == pytest.approx(0.505)
    (emulator,) = model.env.get_attr("ale")
    assert emulator.getFloat("repeat_action_probability") == 0.25
    model.env.close()


@pytest.mark.parametrize(
    ("count", "learn_every", "ticks", "updates"), [(1, 4, 4, 1), (8, 4, 1, 2), (4, 6, 3, 2), (8, 8, 1, 1)]
)
def test_stable_baselines3_learns_as_often(count: int, learn_every: int, ticks: int, updates: int) -> None:
    settings = (*SHARED[1:], f"env.count={count}", f"agent.learn_every={learn_every}")
    model = sb3.build(experiments.load(SHARED[0], settings))
    assert (model.train_freq.frequency, model.gradient_steps) == (ticks, updates)
    assert count * ticks / updates == learn_every


def test_stable_baselines3_learns_with_a_rate_that_falls() -> None:
    model = sb3.build(experiments.load(SHARED[0], SHARED[1:]))
    assert [model.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([2e-3, 1e-3, 0])


def test_stable_baselines3_makes_the_same_returns_of_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiments.load(SHARED[0], [*SHARED[1:], "env.count=1", "agent.n_step=4"])
    model = sb3.build(experiment)
    assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == (4, 0.99)
    with closing(building.environments(experiment.env)) as envs:
        agent = building.agent(experiment, envs, CPU)
        loop = interact(envs, agent, Trail(Streams(3), 1, envs.actions), reset_every=10**6)
        steps = [step for step, _ in islice(loop, 60)]
        stores = sb3.stores(experiment, envs, steps, CPU)
    assert [type(store.sample.__self__).__name__ for store in stores.values()] == [
        "NStepReplayBuffer", "ReplayBuffer"
    ]  # fmt: skip
    theirs = stores["SB3"]
    for row in theirs.rows:
        theirs.add(*row)
    kept = [time for time in range(60 - 4) if not steps[time].final[0]]  # the others are no transitions
    assert len(kept) < 56, "an episode must end within"
    expected = theirs.sample.__self__._get_samples(np.array(kept))
    row = torch.tensor(kept)
    ours = agent.replay.gather(row, torch.ones(len(row)))
    torch.testing.assert_close(ours.reward, expected.rewards[:, 0])
    torch.testing.assert_close(ours.discount, ((1 - expected.dones) * expected.discounts)[:, 0])
    going = ours.discount > 0  # where one follows
    assert torch.equal(ours.next_obs[going], expected.next_observations[going])
    monkeypatch.setattr(sb3, "fits", lambda *_, **__: False)
    with pytest.raises(
        UsageError, match=r"agent\.n_step must be 1 in SB3 where its replay takes more than 80"
    ):
        sb3.build(experiment)


def test_stable_baselines3_has_its_threads_wait_as_it_comes() -> None:
    code = f"""
import os, runpy, sys
sys.argv = ["sb3", *{[*SHARED, "--seconds", "0.05"]!r}]
try:
    runpy.run_module("rlagents.peers.sb3", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
assert "GOMP_SPINCOUNT" not in os.environ
"""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "env steps/s" in done.stdout
    assert os.environ["GOMP_SPINCOUNT"]  # here it is ours
    assert rlagents.SPIN_COUNT.isdigit()


needs_tianshou = pytest.mark.skipif(not TIANSHOU.installed, reason=TIANSHOU.missing)


@needs_tianshou
def test_tianshou_has_the_same_network_and_numbers() -> None:
    settings = ["agent.replay.capacity=500", "agent.n_step=5", "env.sticky=0.25", "agent.learn_every=8"]
    experiment = experiments.load("pong-dqn-nature", settings)
    training = tianshou.Training(experiment)
    envs = building.environments(experiment.env)
    agent = building.agent(experiment, envs, CPU)
    shapes = sorted(tuple(p.shape) for p in agent.online.parameters())
    assert sorted(tuple(p.shape) for p in training.policy.model.parameters()) == shapes
    envs.close()
    theirs = training.algorithm
    assert (theirs.gamma, theirs.n_step, theirs.is_double, theirs.target_update_freq) == (0.99, 5, False, 125)
    assert (theirs.optim._max_grad_norm, training.buffer.maxsize) == (10, 500)
    (group,) = theirs.optim._optim.param_groups
    assert (group["lr"], group["eps"]) == (1e-4, 1e-8)
    training.collector.reset()
    training.collector.collect(n_step=40)
    batch, _ = training.buffer.sample(8)
    assert batch.obs.shape == (8, 4, 84, 84)
    assert batch.obs.dtype == "uint8"
    (worker,) = training.collector.env.workers
    assert worker.get_env_attr("ale").getFloat("repeat_action_probability") == 0.25
    training.collector.close()


@needs_tianshou
def test_tianshou_learns_as_often_and_evaluates(capsys: pytest.CaptureFixture[str]) -> None:
    told = ("run.env_steps=900", "run.evaluate_every=400", "run.evaluate_episodes=3")
    tianshou.train(experiments.load(SHARED[0], [*SHARED[1:], CONSTANT, *told]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["evaluated at 496 steps", "evaluated at 896 steps"]


@needs_tianshou
def test_tianshou_is_timed_once_it_learns() -> None:
    experiment = experiments.load(SHARED[0], [*SHARED[1:], CONSTANT])
    rows, _ = tianshou.measure(experiment, Plan(experiments.find(SHARED[0]), (), 2, 0.05))
    speed, updates, size = rows
    assert len(speed.samples) == len(updates.samples) == 2
    ratio = [a / b for a, b in zip(speed.samples, updates.samples, strict=True)]
    assert ratio == pytest.approx([experiment.agent.learn_every] * 2)
    assert size.samples[0] > 0


@needs_tianshou
@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["agent.learning_rate_end=0"], "agent.learning_rate_end must be -1.0 in Tianshou, got 0.0"),
        (["agent.learn_every=7"], "agent.target.sync_every must be a multiple of agent.learn_every, 7,"),
        (["agent.double=true"], "agent.double must be false in Tianshou, got true"),
    ],
)
def test_tianshou_refuses_what_it_cannot_do(settings: list[str], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        tianshou.require(experiments.load(SHARED[0], [*SHARED[1:], CONSTANT, *settings]))


@pytest.mark.slow
@needs_tianshou
def test_tianshou_in_a_process_of_its_own() -> None:
    measured = bench(
        "peers", *SHARED, CONSTANT, "--repeat", "1", "--seconds", "0.2", "--precision", "float32"
    )
    ours, theirs = (samples(measured, name, "env steps/s")[0] for name in ("rlagents float32", "Tianshou"))
    assert samples(measured, "rlagents float32 / Tianshou", "×") == [ours / theirs]
    assert "tianshou" in measured["versions"]


@pytest.mark.parametrize("name", ["pong-dqn-nature", "pong-dqn-plain"])
def test_stable_baselines3_can_do_what_is_there_to_compare_with_it(name: str) -> None:
    agent, target = sb3.require(experiments.load(name))
    assert agent.kind == "dqn"
    assert target.kind == "fixed"


def test_stable_baselines3_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UsageError, match=r"env\.kind must be atari or cartpole in SB3, got corridor"):
        sb3.require(experiments.load(SHARED[0], [*SHARED[1:], "env.kind=corridor"]))

"""What only a CUDA device can show. Run with `pytest -m gpu`."""

import numpy as np
import pytest
import torch

import rlagents
from learning import build
from playing import assert_uploaded, make, play
from rlagents import runs
from rlagents.agents.graph import Captured
from rlagents.replay import Proportional, Ring, Uniform
from rlagents.schedules import Linear
from rlagents.types import Step
from rlagents_envs.vector import Leaf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def same_sums_each_time():
    """Some of cuDNN's gradients add up in an order of chance, which 300 learner steps make much of."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=True):
        yield


PONG = Leaf("pixels", (4, 84, 84), "uint8", 4, scale=1 / 255)
COUNT = 4


def steps(number):
    """Returns steps of random frames, with an end now and then, observations on the GPU."""
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator}
    first, final = np.ones(COUNT, bool), np.zeros(COUNT, bool)
    obs = torch.randint(256, (COUNT, 4, 84, 84), dtype=torch.uint8, **draw)
    for _ in range(number):
        frame = torch.randint(256, (COUNT, 1, 84, 84), dtype=torch.uint8, **draw)
        next_obs = torch.cat((obs[:, 1:], frame), 1)
        terminated = (torch.rand(COUNT, **draw) < 0.03).numpy() & ~final
        yield Step(
            obs=obs.cuda(),
            action=torch.randint(6, (COUNT,), **draw).numpy(),
            reward=torch.randint(-1, 2, (COUNT,), **draw).float().numpy(),
            terminated=terminated,
            truncated=np.zeros(COUNT, bool),
            next_obs=next_obs.cuda(),
            first=first,
            final=final,
        )
        first, final, obs = final, terminated, next_obs


def dqn(**table):
    table = {"kind": "dqn", "learning_starts": 200, "learn_every": 2, "n_step": 3, "double": True, **table}
    return build(PONG, 6, device=torch.device("cuda"), **{"replay": {"capacity": 4000}, **table})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recorded_learner_steps_do_what_plain_ones_do(precision):
    table = {"precision": precision, "learning_rate_end": 1e-5, "network": {"subtract_mean": True}}
    plain, recorded = dqn(cuda_graph=False, **table), dqn(**table)
    for agent in (plain, recorded):
        for step in steps(200):
            metrics = agent.learn()
            agent.observe(step)
    assert recorded._graph.recorded
    assert plain.learner_steps == recorded.learner_steps > 200
    for mine, theirs in zip(recorded.online.parameters(), plain.online.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=2e-2)
    assert metrics["loss"].isfinite()
    assert recorded.optimizer.param_groups[0]["lr"].item() < 5e-4


def test_pqn_recorded_does_what_plain_pqn_does():
    table = {"kind": "pqn", "rollout": 16, "minibatches": 4, "epochs": 2, "precision": "float32"}
    plain, recorded = (
        build(PONG, 6, device=torch.device("cuda"), cuda_graph=graph, **table) for graph in (False, True)
    )
    for agent in (plain, recorded):
        for step in steps(120):  # 7 rollouts: three to warm up, then recorded
            agent.act(step.obs, first=step.first)
            agent.learn()
            agent.observe(step)
    assert recorded._graph.recorded
    for mine, theirs in zip(recorded.online.parameters(), plain.online.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("kind", ["scalar", "categorical", "quantile", "iqn"])
def test_every_kind_of_values_is_recorded_with_noise_and_priorities(kind):
    table = {"precision": "float32", "network": {"noisy": True, "dueling": True, "hidden": [64]}}
    table |= {"values": {"kind": kind}, "exploration": {"kind": "noisy"}, "reward_transform": "normalise"}
    table |= {"double": False, "munchausen": {"share": 0.9}, "reset_head_every": 300}
    table |= {"n_step_end": 1, "discount_end": 0.999, "horizon_hold": 300, "horizon_steps": 500}
    table |= {"n_step_bound": 5, "n_step_bound_until": 800, "muon": 2.0}
    table |= {"average_rate": 0.5, "average_rate_end": 0.001, "heads": 1 if kind == "iqn" else 3}
    # Of a row that is drawn twice IQN has two errors, and which of them is kept is chance.
    sampling = "uniform" if kind == "iqn" else "proportional"
    table |= {"replay": {"capacity": 4000, "sampling": {"kind": sampling}}}
    plain, recorded = dqn(cuda_graph=False, **table), dqn(**table)
    for agent in (plain, recorded):
        for step in steps(150):
            agent.act(step.obs)
            metrics = agent.learn()
            agent.observe(step)
        assert metrics["loss"].isfinite()
    assert recorded._graph.recorded
    if sampling == "proportional":
        one, other = (agent.replay.sampler.state_dict()["priority"] for agent in (plain, recorded))
        assert torch.equal(one > 0, other > 0)
        assert len(one[one > 0].unique()) > 50
    mine, theirs = ([*agent.online.parameters(), *agent._weights.average] for agent in (recorded, plain))
    torch.testing.assert_close(mine, theirs, atol=2e-2, rtol=5e-2)
    assert recorded._weights._part.item() < 0.5  # the graph reads it from where it is


def test_a_million_prioritised_draws_on_the_gpu_have_their_probabilities():
    generator = torch.Generator("cuda").manual_seed(0)
    chosen = Proportional(5000, generator, exponent=0.7, importance=Linear(0.4, 1.0, 10), floor=1e-2)
    chosen.allow(np.arange(4000))
    error = torch.rand(4000, generator=generator, device="cuda") * 3
    chosen.update(torch.arange(4000, device="cuda"), error)
    chosen.forbid(np.arange(100))
    probability = ((error.double() + 1e-2) ** 0.7)[100:]
    probability /= probability.sum()
    drawn = sum(torch.bincount(chosen.draw(10_000)[0], minlength=5000) for _ in range(100))
    assert drawn[:100].sum() == drawn[4000:].sum() == 0
    expected = probability * 1_000_000
    statistic = ((drawn[100:4000] - expected) ** 2 / expected).sum().item()
    assert abs(statistic - 3899) < 5 * (2 * 3899) ** 0.5


def test_recorded_learner_steps_see_rows_written_later():
    agent = dqn(batch_size=64)
    for step in steps(150):
        agent.learn()
        agent.observe(step)
    assert agent._graph.recorded
    before = [p.clone() for p in agent.online.parameters()]
    for ring in agent.replay._frames.values():
        ring.zero_()
    agent.replay._columns["reward"].fill_(1)
    for step in steps(20):
        agent.observe(step._replace(reward=np.ones(COUNT, np.float32)))
        metrics = agent.learn()
    assert metrics["q_mean"].isfinite()
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.online.parameters(), strict=True))


@pytest.mark.parametrize("noisy", [False, True])
def test_recorded_acting_chooses_as_plain_acting_does(noisy):
    table = {"network": {"noisy": noisy}, "average_rate": 0.5}
    table |= {"exploration": {"kind": "noisy"} if noisy else {"kind": "epsilon", "start": 0.2, "end": 0.2}}
    plain, recorded = dqn(cuda_graph=False, **table), dqn(**table)
    for step in steps(30):
        assert np.array_equal(plain.act(step.obs), recorded.act(step.obs))
        assert np.array_equal(plain.act(step.obs, epsilon=0.0), recorded.act(step.obs, epsilon=0.0))
        values = recorded.q_values(step.obs)
        torch.testing.assert_close(values, plain.q_values(step.obs))
        one = recorded.q_values(step.obs[:1])
        torch.testing.assert_close(one, plain.q_values(step.obs[:1]))
        assert values.device.type == "cpu"
    assert recorded._acting.recorded
    with torch.no_grad():
        for agent in (plain, recorded):
            for parameter in agent.working.parameters():
                parameter.mul_(1.5)
    assert np.array_equal(plain.act(step.obs), recorded.act(step.obs))


def test_where_recording_fails_learner_steps_go_on_with_the_same_draws():
    generator, other = (torch.Generator("cuda").manual_seed(0) for _ in range(2))
    captured, drawn = Captured("a draw", [generator]), []

    def draw():
        drawn.append(torch.rand(2, generator=generator, device="cuda").tolist())  # waits for the device

    def often():
        for _ in range(6):
            captured(draw, 2)

    with pytest.warns(RuntimeWarning, match="without a CUDA graph"):
        often()
    assert not captured.recorded
    assert drawn == [torch.rand(2, generator=other, device="cuda").tolist() for _ in range(6)]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_the_ring_gathers_the_same_on_both_devices():
    def ring(device):
        generator = torch.Generator(device).manual_seed(0)
        return Ring(
            PONG,
            6,
            environments=COUNT,
            capacity=400,
            n_step=3,
            discount=0.99,
            sampler=Uniform(400, generator),
            device=torch.device(device),
        )

    here, there = ring("cpu"), ring("cuda")
    for step in steps(150):
        here.add(step._replace(obs=step.obs.cpu()), step.reward)
        there.add(step, step.reward)
    assert len(here) == len(there)
    rows, weight = there.sampler.draw(500)
    queue = here.sampler
    places = torch.arange(queue._start, queue._end) % len(queue._queue)
    assert set(rows.tolist()) <= set(queue._queue[places].tolist())
    assert len(set(rows.tolist())) > 200
    for mine, theirs in zip(here.gather(rows.cpu(), weight.cpu()), there.gather(rows, weight), strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, theirs.cpu())


def test_observations_arrive_as_they_are_while_nobody_waits():
    envs = make(kind="atari", game="pong", count=4, max_frames=200)
    assert_uploaded(envs, play(envs, 300), torch.device("cuda"))
    envs.close()


def test_pong_trains_and_is_evaluated_on_the_gpu(tmp_path):
    small = [
        "run.env_steps=3000",
        "agent.learning_starts=500",
        "run.evaluate_episodes=2",
        "env.max_frames=400",
    ]
    run = rlagents.train("pong-dqn", *small, device="cuda", out=tmp_path / "run", quiet=True)
    loaded = runs.load(run)
    assert loaded.agent.device.type == "cuda"
    assert rlagents.evaluate(run, episodes=2).returns
    elsewhere = runs.load(run, device="cpu")
    for mine, theirs in zip(
        elsewhere.agent.online.parameters(), loaded.agent.online.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs.cpu())
    assert rlagents.evaluate(run, episodes=2, device="cpu").returns

"""PQN: its returns against a naive twin, what it learns, when, and what it is brought back with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import learning
import rlagents
from learning import assert_same, build, learn_corridor, outcome, pixels, stopped, train
from playing import make
from rlagents import runs
from rlagents.agents.pqn import Minibatch
from rlagents.checkpoint import Checkpoints
from rlagents.errors import RunError
from rlagents.loop import Trail, interact
from rlagents.seeding import Streams
from rlagents.types import Step
from rlagents_envs.vector import Leaf
from test_config import complaints

DISCOUNT = 0.9
ONE = Leaf("vector", (1,), "float32")
IMAGE = Leaf("pixels", (4, 84, 84), "uint8", 4, scale=1 / 255)
CORRIDOR = {"kind": "pqn", "discount": DISCOUNT, "rollout": 8, "minibatches": 4, "network": {"hidden": [32]}}
CARTPOLE = {
    **learning.CARTPOLE,
    "agent": {
        "kind": "pqn",
        "rollout": 24,
        "minibatches": 4,
        "reward_transform": "normalise",
        "network": {"hidden": [16]},
    },
}
PONG = {
    **learning.PONG,
    "agent": {
        "kind": "pqn",
        "rollout": 12,
        "minibatches": 4,
        "network": {"body": "arcade_cnn", "hidden": [16], "subtract_mean": True},
    },
}


class Played:
    """Episodes as the loop tells of them, made from one event for each row and environment.

    Every observation is a number of its own, and so are its values. `breaks` say after which rows all
    environments start anew: with a closing row, as in a full reset, or without, as where a resume found
    environments that cannot be replayed.
    """

    def __init__(self, events, breaks, seed, masks):
        draw = np.random.default_rng(seed)
        lanes = len(events[0])
        self.steps: list[Step] = []
        self.closing: set[int] = set()  # rows that nobody acts on
        first, final = np.ones(lanes, bool), np.zeros(lanes, bool)
        ids = (np.arange(lanes) + lanes * row for row in range(10**9))
        obs, mask = next(ids), self._mask(draw, lanes) if masks else None
        for time, now in enumerate(events):
            event = np.array(now)
            lost = (event == "lose") & ~final
            terminated = np.isin(event, ["terminate", "lose a life"]) & ~final
            truncated = (event == "truncate") & ~final
            ended = (terminated & (event == "terminate")) | truncated | lost
            final = final | lost
            how = breaks.get(time)
            if how == "close":
                truncated |= ~final & ~ended
            ahead, next_mask = next(ids), self._mask(draw, lanes) if masks else None
            reward = np.where(final, 0, draw.normal(size=lanes))
            action = draw.integers(3, size=lanes)
            self._add(obs, action, reward, terminated, truncated, ahead, first, final, mask, next_mask, lost)
            first, final, obs, mask = final, ended, ahead, next_mask
            if how == "close":
                self.closing.add(len(self.steps))
                no, zero = np.zeros(lanes, bool), np.zeros(lanes)
                self._add(obs, zero.astype(int), zero, no, no, obs, first, ~no, mask, mask, None)
            if how is not None:
                first, final = np.ones(lanes, bool), np.zeros(lanes, bool)
                obs, mask = next(ids), self._mask(draw, lanes) if masks else None
        self.values = draw.normal(size=(lanes * (len(self.steps) + len(breaks) + 2), 3))  # [ids, A]

    @staticmethod
    def _mask(draw, lanes):
        mask = draw.random((lanes, 3)) < 0.6
        mask[:, 1] = True
        return mask

    def _add(self, obs, action, reward, terminated, truncated, ahead, first, final, mask, next_mask, lost):
        def of(array):
            return None if array is None else np.array(array)

        seen, seen_ahead = (torch.tensor(ids).float()[:, None] for ids in (obs, ahead))
        rest = (of(action), np.float32(reward), of(terminated), of(truncated), seen_ahead, of(first))
        self.steps.append(Step(seen, *rest, of(final), of(mask), of(next_mask), of(lost)))

    def value(self, time, lane):
        """Returns the value of the best legal action of a row."""
        row = self.steps[time]
        values = self.values[int(row.obs[lane])]
        return max(v for a, v in enumerate(values) if row.mask is None or row.mask[lane, a])

    def transition(self, time, lane):
        """Returns whether what a row led to was seen."""
        following = self.steps[time + 1] if time + 1 < len(self.steps) else None
        return not self.steps[time].final[lane] and not (following and following.first[lane])

    def goal(self, time, lane, last, decay):
        """Returns the lambda-return of a row by its definition, where `last` ends the rollout."""
        row = self.steps[time]
        reward = float(row.reward[lane])
        if row.terminated[lane]:
            return reward
        ahead = self.value(time + 1, lane)
        if time < last and not row.truncated[lane] and self.transition(time + 1, lane):
            ahead = (1 - decay) * ahead + decay * self.goal(time + 1, lane, last, decay)
        return reward + DISCOUNT * ahead


EVENTS = st.sampled_from([*["go"] * 6, "terminate", "lose a life", "truncate", "lose"])


@settings(max_examples=150)
@given(
    data=st.data(),
    lanes=st.integers(1, 3),
    length=st.integers(2, 5),
    rollouts=st.integers(1, 4),
    decay=st.sampled_from([0.0, 0.65, 1.0]),
    masks=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_returns_agree_with_a_naive_twin(data, lanes, length, rollouts, decay, masks, seed):
    ticks = length * rollouts + 1
    events = data.draw(
        st.lists(st.lists(EVENTS, min_size=lanes, max_size=lanes), min_size=ticks, max_size=ticks)
    )
    breaks = data.draw(
        st.dictionaries(st.integers(0, ticks - 1), st.sampled_from(["close", "tear"]), max_size=2)
    )
    played = Played(events, breaks, seed, masks)
    table = {"rollout": length, "epochs": 1, "minibatches": 1, "trace_decay": decay}
    agent = build(ONE, 3, kind="pqn", environments=lanes, discount=DISCOUNT, **table)
    values, learned = torch.from_numpy(played.values).float(), []
    agent._q_values = lambda _, obs: values[obs[:, 0].long()]
    agent._launch = lambda count: learned.append(Minibatch(*(part.clone() for part in agent._learned)))
    times, rows = [], []
    for time, step in enumerate(played.steps):
        if time not in played.closing:
            agent.act(step.obs, mask=step.mask, first=step.first)
            before = len(learned)
            agent.learn()
            if len(learned) > before:
                times, rows = [*times, rows[:length]], []
        agent.observe(step)
        rows.append(time)
    assert len(learned) == len(times) >= rollouts
    for batch, rollout in zip(learned, times, strict=True):
        for at, (time, lane) in enumerate((time, lane) for time in rollout for lane in range(lanes)):
            assert batch.live[at] == played.transition(time, lane)
            if batch.live[at]:
                assert batch.obs[at] == played.steps[time].obs[lane]
                assert batch.action[at] == played.steps[time].action[lane]
                expected = played.goal(time, lane, rollout[-1], decay)
                assert batch.goal[at].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_the_update_is_the_gradient_of_the_loss_over_transitions(loss):
    leaf = Leaf("vector", (3,), "float32")
    agent = build(leaf, 4, kind="pqn", gradient_clip=0, values={"loss": loss}, network={"hidden": [8]})
    generator = torch.Generator().manual_seed(0)
    rows = len(agent._learned.action)
    obs, goal = torch.randn(rows, 3, generator=generator), 3 * torch.randn(rows, generator=generator)
    action = torch.randint(4, (rows,), generator=generator)
    live = torch.rand(rows, generator=generator) < 0.7
    agent._learned = Minibatch(obs, action, goal, live)
    row = torch.randperm(rows, generator=generator)[:20]
    kept = row[live[row]]
    assert 0 < len(kept) < 20
    online = agent.online
    error = online(obs[kept])[torch.arange(len(kept)), action[kept], 0] - goal[kept]
    each = error**2 / 2
    if loss == "huber":
        each = torch.where(error.abs() < 1, each, error.abs() - 0.5)
    expected = torch.autograd.grad(each.mean(), list(online.parameters()))
    gradients = []
    agent._weights.step = lambda: gradients.extend(p.grad for p in online.parameters()) or []
    assert agent._update(row)["loss"].item() == pytest.approx(each.mean().item(), rel=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("decay", "last"), [(0.0, 0.5), (0.65, 0.0)])
def test_the_network_reaches_the_exact_values_of_the_corridor(decay, last):
    table = {name: value for name, value in CORRIDOR.items() if name != "discount"}
    table |= {"learning_rate": 2e-3, "learning_rate_end": 1e-4, "trace_decay": decay}
    table |= {"exploration": {"kind": "epsilon", "start": 1.0, "end": last, "steps": 4000}}
    q, exact = learn_corridor(12_000, count=8, **table)
    # Returns of more than one step are those of the behaviour, and a greedy one shows the right alone.
    learned = slice(1, 2) if decay else slice(None)
    np.testing.assert_allclose(q[:, learned], exact[:, learned], atol=0.05)


def test_weights_move_only_when_a_rollout_is_full():
    envs = make(**learning.CORRIDOR)
    agent = build(envs.layout, 2, **CORRIDOR, epochs=3)
    loop = interact(envs, agent, Trail(Streams(1), 4, 2), reset_every=10**9)
    before = [p.clone() for p in agent.online.parameters()]
    for tick in range(30):
        _, metrics = next(loop)
        moved = [not torch.equal(a, b) for a, b in zip(before, agent.online.parameters(), strict=True)]
        before = [p.clone() for p in agent.online.parameters()]
        full = tick > 0 and tick % 8 == 0  # the tick after the last row of a rollout
        assert all(moved) if full else not any(moved)
        assert metrics.keys() == ({"loss", "q_mean"} if full else set())
        assert agent.learner_steps == tick // 8 * 3 * 4


def test_every_row_is_learned_once_in_each_epoch():
    envs = make(**learning.CORRIDOR)
    agent, seen = build(envs.layout, 2, **CORRIDOR, epochs=3), []
    update = agent._update
    agent._update = lambda row: seen.append(row) or update(row)
    train(envs, agent, 60)
    epochs = torch.cat(seen).view(3, 32)
    assert all(epoch.sort().values.tolist() == list(range(32)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pixels_are_learned_in_either_precision_and_centred_first(precision):
    network = {"body": "arcade_cnn", "hidden": [16], "subtract_mean": True}
    agent = build(IMAGE, 6, kind="pqn", rollout=8, minibatches=4, precision=precision, network=network)
    no = np.zeros(4, bool)
    before = [p.clone() for p in agent.online.parameters()]
    for time in range(9):
        obs = pixels(4, seed=time)
        action = agent.act(obs, first=no)
        agent.learn()
        agent.observe(Step(obs, action, np.ones(4, np.float32), no, no, obs, no, no))
    assert agent.learner_steps == 8
    mean = agent.online.bodies[0].mean
    assert mean[-1].mean() == pytest.approx(127.5, abs=3)
    assert torch.equal(agent.working.bodies[0].mean.float(), mean)
    for old, new, work in zip(before, agent.online.parameters(), agent.working.parameters(), strict=True):
        assert new.dtype == torch.float32
        assert not torch.equal(old, new)
        assert torch.equal(new.to(work.dtype), work)


def test_rewards_are_transformed_before_they_are_summed():
    no, obs = np.zeros(4, bool), torch.zeros(4, 1)
    for how, expected in (
        ({"reward_transform": "sign"}, 1),
        ({"reward_transform": "scale", "reward_scale": 0.25}, 1.75),
    ):
        table = {"rollout": 2, "minibatches": 1, "discount": 0.0}
        agent = build(ONE, 2, kind="pqn", **table, **how)
        for _ in range(3):
            agent.act(obs)
            agent.learn()
            agent.observe(Step(obs, no.astype(int), np.full(4, 7, np.float32), no, no, obs, no, no))
        assert agent._learned.goal.tolist() == [expected] * 8


def test_an_agent_with_masks_never_takes_an_illegal_action():
    envs = make(kind="gridworld", count=8)
    table = {"rollout": 8, "minibatches": 4, "exploration": {"kind": "boltzmann", "start": 5.0}}
    agent = build(envs.layout, envs.actions, environments=8, kind="pqn", **table)
    for step, _ in interact(envs, agent, Trail(Streams(1), 8, envs.actions), reset_every=10**9):
        assert step.mask[np.arange(8), step.action][~step.final].all()
        if agent.env_steps > 2000:
            break


@pytest.mark.parametrize(("table", "step"), [(CARTPOLE, 700), (PONG, 200)], ids=["cartpole", "pong"])
def test_a_resumed_run_ends_as_one_never_stopped(table, step, tmp_path):
    whole = rlagents.train(table, out=tmp_path / "whole", quiet=True)
    run = stopped(table, tmp_path / "run", step)
    saved = Checkpoints(run).find().state()
    assert 0 < len(saved["agent/rollout/action"]) < table["agent"]["rollout"]  # within a rollout
    assert saved["agent/counters/learner_steps"] > 0
    rlagents.train(resume=run, quiet=True)
    assert_same(outcome(run), outcome(whole))


def test_a_dictionary_of_observations_is_brought_back(tmp_path):
    env = {
        "kind": "gymnasium",
        "id": "example_envs:Everything",
        "wrappers": ["example_envs:five_steps"],
        "count": 2,
    }
    run = {"env_steps": 60, "checkpoint_every": 10, "evaluate_every": 30, "evaluate_episodes": 2}
    agent = {"kind": "pqn", "rollout": 7, "minibatches": 2, "network": {"hidden": [8]}}
    table = {"run": run, "env": env, "agent": agent}
    whole = rlagents.train(table, out=tmp_path / "whole", quiet=True)
    run = stopped(table, tmp_path / "run", 40)
    rlagents.train(resume=run, quiet=True)
    assert_same(outcome(run), outcome(whole))


def test_learning_that_breaks_leaves_its_minibatch_and_a_good_checkpoint(tmp_path):
    run = tmp_path / "run"
    settings = ["agent.learning_rate=1e30", "agent.gradient_clip=0", "run.checkpoint_every=20"]
    with pytest.raises(RunError, match=r"it began at learner step \d, whose batch lies in"):
        rlagents.train(CARTPOLE, *settings, out=run, quiet=True)
    batch = load_file(run / "diverged.safetensors")
    assert batch.keys() == {"obs", "action", "goal", "live"}
    assert batch["obs"].shape == (24, 4)
    assert all(weight.isfinite().all() for weight in runs.load(run).agent.online.parameters())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            ["agent.minibatches=7"],
            "agent.minibatches must divide the env steps of a rollout, env.count * agent.rollout = 4 * 24 ",
        ),
        (
            ["agent.network.noisy=true"],
            "agent.network.noisy must be false where agent.kind is pqn, got true: ",
        ),
        (
            ["agent.rollout=1"],
            "agent.rollout must be above 1 for agent.trace_decay to weigh anything, got 1; ",
        ),
        (["agent.exploration.kind=noisy"], "agent.exploration.kind must be one of epsilon, boltzmann, got "),
        (["agent.values.kind=quantile"], 'agent.values.kind must be scalar, got "quantile"'),
        (["agent.replay.capacity=10"], "agent.replay is not a key"),
        (["agent.n_step=3"], "agent.n_step is not a key, got 3"),
        (["agent.target.kind=fixed"], "agent.target is not a key"),
        (
            ["agent.reward_scale=2.0"],
            'agent.reward_scale must be 1 where agent.reward_transform is "normalise"',
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(settings, complaint):
    (line,) = complaints(CARTPOLE, *settings)
    assert line.startswith(complaint)


def test_a_rollout_of_one_step_is_fine_without_traces_and_the_network_is_normalised_by_default():
    from rlagents import toml

    agent = toml.load(CARTPOLE, ["agent.rollout=1", "agent.trace_decay=0"]).agent
    assert agent.network.layer_norm
    assert not toml.load(CARTPOLE, ["agent.network.layer_norm=false"]).agent.network.layer_norm

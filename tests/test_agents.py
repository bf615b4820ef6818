"""The agents: exact answers where there are some, and the pieces one by one."""

import weakref
from itertools import islice

import numpy as np
import pytest
import torch

from learning import CORRIDOR, CORRIDOR_DQN, CPU, build, learn_corridor, pixels, train
from playing import make
from rlagents.agents.exploration import epsilon_greedy
from rlagents.agents.values import Scalar
from rlagents.loop import Trail, interact
from rlagents.seeding import Streams
from rlagents.types import Batch, Step
from rlagents_envs.vector import Leaf
from test_replay import Naive

EXPLORE = {"start": 1.0, "end": 1.0, "steps": 0}


@pytest.mark.parametrize("learn_from", ["online", "replay"])
@pytest.mark.parametrize("kind", ["gridworld", "corridor"])
def test_the_table_reaches_the_exact_values(kind, learn_from):
    envs = make(kind=kind, count=4)
    agent = build(
        envs.layout,
        envs.actions,
        kind="q_learning",
        discount=0.9,
        learning_rate=0.5,
        learn_from=learn_from,
        learn_every=4,
        learning_starts=100,
        exploration=EXPLORE,
        replay={"capacity": 4000},
    )
    train(envs, agent, 8000)
    exact = envs.model.optimal_q(0.9)
    known = ~np.isnan(exact)
    assert known.sum() >= 10
    np.testing.assert_allclose(agent.q.numpy()[known], exact[known], atol=1e-6)


def test_n_step_targets_in_a_table_agree_with_one_step_ones_where_one_action_leads():
    # Along the corridor, only moving right pays: with a greedy behaviour every n gives Q*.
    envs = make(kind="corridor", count=4)
    agent = build(
        envs.layout,
        envs.actions,
        kind="q_learning",
        discount=0.9,
        n_step=3,
        learning_rate=0.5,
        initial_value=1.0,
        learn_from="replay",
        learning_starts=50,
        exploration={"start": 0.0, "end": 0.0, "steps": 0},
        replay={"capacity": 400},  # which soon holds nothing but moves to the right
    )
    train(envs, agent, 6000)
    np.testing.assert_allclose(agent.q.numpy()[:, 1], envs.model.optimal_q(0.9)[:, 1], atol=1e-6)


@pytest.mark.parametrize("target", ["none", "fixed", "soft"])
@pytest.mark.parametrize(
    ("n_step", "double", "dueling", "cut"),
    [(1, False, False, False), (3, True, True, False), (1, True, False, False), (3, True, False, True)],
)
def test_the_network_reaches_the_exact_values_of_the_corridor(target, n_step, double, dueling, cut):
    extra = {"none": {}, "fixed": {"sync_every": 50}, "soft": {"rate": 0.05}}[target]
    q, exact = learn_corridor(
        5000,
        **CORRIDOR_DQN,
        n_step=n_step,
        double=double,
        cut_traces=cut,
        exploration={"kind": "epsilon", "start": 1.0, "end": 0.5, "steps": 2000},
        target={"kind": target, **extra},
        network={"hidden": [32], "dueling": dueling},
        replay={"capacity": 2000},
    )
    if n_step == 1 or cut:  # what exploring actions bring is in the others
        np.testing.assert_allclose(q, exact, atol=0.05)


def test_returns_are_cut_before_actions_that_were_not_greedy():
    envs = make(kind="corridor", count=4)
    explores = {"kind": "epsilon", "start": 0.5, "end": 0.5, "steps": 0}
    agent = build(envs.layout, envs.actions, **CORRIDOR_DQN, n_step=3, cut_traces=True, exploration=explores)
    seen = []
    for step, _ in interact(envs, agent, Trail(Streams(0), 4, envs.actions), reset_every=10**9):
        seen.append(step.action != agent.q_values(step.obs).argmax(1).numpy())
        if len(seen) == 50:  # nothing is learned yet
            break
    row = torch.arange(4 * 50)
    cut = agent.replay._columns["cut"][row].view(50, 4)
    assert np.array_equal(cut, np.stack(seen))
    assert 0.1 < cut.float().mean() < 0.4


def test_each_environment_has_a_coin_of_its_own():
    values = torch.tensor([[0.0, 1.0]]).expand(20_000, 2)
    generator = torch.Generator().manual_seed(0)
    explored = (epsilon_greedy(values, 0.5, generator) == 0).float().mean()
    assert explored == pytest.approx(0.25, abs=0.02)


def test_uniform_actions_are_uniform_over_the_legal_ones():
    mask = torch.tensor([[True, False, True, True]]).expand(30_000, 4)
    actions = epsilon_greedy(torch.zeros(30_000, 4), 1.0, torch.Generator().manual_seed(0), mask)
    share = torch.bincount(actions, minlength=4) / 30_000
    assert share[1] == 0
    assert share[[0, 2, 3]].tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_the_greedy_choice_is_legal_and_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    mask = torch.tensor([[True, True, False]])
    assert epsilon_greedy(torch.tensor([[1.0, 2.0, 3.0]]), 0.0, generator, mask).tolist() == [1]
    assert torch.equal(generator.get_state(), before)


def test_ties_are_broken_at_random_while_exploring():
    values = torch.tensor([[1.0, 1.0, 0.0]]).expand(10_000, 3)
    actions = epsilon_greedy(values, 1e-9, torch.Generator().manual_seed(0), ties=True)
    assert (torch.bincount(actions, minlength=3) / 10_000).tolist() == pytest.approx([0.5, 0.5, 0], abs=0.02)


def test_a_table_needs_numbered_states():
    with pytest.raises(ValueError, match=r"agent\.kind must be a network agent"):
        build(Leaf("vector", (4,), "float32"), 2, kind="q_learning")


def test_several_visits_of_one_entry_move_it_by_their_mean_error():
    agent = build(Leaf("index", (), "int64", size=2), 2, kind="q_learning", learning_rate=0.5)
    zero = np.zeros(3, np.int64)
    agent._move(zero, zero, np.array([1.0, 2.0, 6.0]), None)
    assert agent.q[0, 0].item() == pytest.approx(0.5 * 3)
    assert agent.q.sum().item() == pytest.approx(0.5 * 3)


def test_huber_and_squared_losses_by_hand():
    params, goal = torch.tensor([[0.0], [0.0]]), torch.tensor([0.5, 3.0])
    assert Scalar(1.0).loss(params, goal).tolist() == pytest.approx([0.125, 2.5])
    assert Scalar(2.0).loss(params, goal).tolist() == pytest.approx([0.0625, 2.0])
    assert Scalar(None).loss(params, goal).tolist() == pytest.approx([0.125, 4.5])


@pytest.mark.parametrize("double", [False, True])
def test_the_update_is_the_gradient_of_the_written_out_loss(double):
    leaf = Leaf("vector", (3,), "float32")
    agent = build(
        leaf,
        4,
        kind="dqn",
        double=double,
        gradient_clip=0,
        network={"hidden": [8]},
        precision="float32",
        target={"kind": "fixed"},
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in agent.target.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    obs, ahead = torch.randn(2, 16, 3, generator=generator).unbind()
    action, reward = torch.randint(4, (16,), generator=generator), torch.randn(16, generator=generator)
    discount, weight = torch.rand(16, generator=generator), torch.rand(16, generator=generator)
    mask = torch.rand(16, 4, generator=generator) < 0.7
    mask[:, 0] = True
    online = agent.online
    with torch.no_grad():
        q_target, q_online = agent.target(ahead)[..., 0], online(ahead)[..., 0]
        chooser = (q_online if double else q_target).masked_fill(~mask, -1e9)
        goal = reward + discount * q_target[torch.arange(16), chooser.argmax(1)]
    error = online(obs)[torch.arange(16), action, 0] - goal
    loss = torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5)
    expected = torch.autograd.grad((weight * loss).mean(), list(online.parameters()))
    gradients = []
    agent._step = lambda: gradients.extend(p.grad for p in online.parameters())
    batch = Batch(obs, action, reward, discount, ahead, torch.arange(16), weight, mask)
    assert agent._update(batch)["loss"].item() == pytest.approx(loss.mean().item(), rel=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_bfloat16_stays_close_to_float32():
    leaf = Leaf("pixels", (4, 84, 84), "uint8", 4, scale=1 / 255)
    wide = build(leaf, 6, kind="dqn", precision="float32", replay={"capacity": 100})
    narrow = build(leaf, 6, kind="dqn", precision="bfloat16", replay={"capacity": 100})
    one, other = wide.q_values(pixels()), narrow.q_values(pixels())
    assert one.dtype == other.dtype == torch.float32
    torch.testing.assert_close(one, other, atol=0.02, rtol=0.05)
    for parameter in narrow.optimizer.param_groups[0]["params"]:
        assert parameter.dtype == torch.float32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", ["none", "fixed", "soft"])
def test_working_and_target_networks_follow_the_online_one(precision, target):
    leaf = Leaf("pixels", (4, 84, 84), "uint8", 4, scale=1 / 255)
    agent = build(leaf, 6, kind="dqn", precision=precision, target={"kind": target}, replay={"capacity": 100})
    obs = pixels(4)
    batch = Batch(
        obs, torch.arange(4), torch.ones(4), torch.full((4,), 0.9), obs, torch.arange(4), torch.ones(4)
    )
    before = [p.clone() for p in agent.online.parameters()]
    still = [p.clone() for p in agent.target.parameters()]
    agent._update(batch)
    for old, new, work in zip(before, agent.online.parameters(), agent.working.parameters(), strict=True):
        assert not torch.equal(old, new)
        assert torch.equal(new.to(work.dtype), work)
    moved = [not torch.equal(a, b) for a, b in zip(still, agent.target.parameters(), strict=True)]
    assert any(moved) == (target != "fixed")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_mean_image_is_taken_before_the_first_learner_step_and_kept(precision):
    leaf = Leaf("pixels", (4, 84, 84), "uint8", 4, scale=1 / 255)
    table = {"kind": "dqn", "precision": precision, "network": {"subtract_mean": True}, "learn_every": 4}
    table |= {"replay": {"capacity": 400}, "batch_size": 2, "learning_starts": 100, "n_step": 1}
    agent = build(leaf, 6, **table)
    means, no, ones = [], np.zeros(4, bool), np.ones(4, np.float32)
    for time in range(40):
        agent.learn()
        means.append(agent.online.bodies[0].mean.clone())
        obs = pixels(4, seed=time)
        agent.observe(Step(obs, no.astype(int), ones, no, no, obs, no, no))
    assert agent.learner_steps > 1
    assert not means[0].any()
    assert means[-1][-1].mean() == pytest.approx(127.5, abs=3)  # of the newest frames, each seen
    later = [mean for mean in means if mean.any()]
    assert all(torch.equal(mean, later[0]) for mean in later)
    twin = build(leaf, 6, seed=2, **table)
    twin.load_state_dict(agent.state_dict())
    for network in (agent.working, agent.target, twin.online, twin.working, twin.target):
        assert torch.equal(network.bodies[0].mean.float(), means[-1].float())
    assert torch.equal(twin.q_values(pixels()), agent.q_values(pixels()))


def test_the_learning_rate_falls_to_its_end():
    envs = make(**CORRIDOR)
    table = {"kind": "dqn", "learning_rate": 1e-2, "learning_rate_end": 1e-3, "learning_starts": 50}
    agent = build(envs.layout, 2, env_steps=1000, **table)
    train(envs, agent, 500)
    assert agent.optimizer.param_groups[0]["lr"] == pytest.approx(5.5e-3, rel=0.02)
    train(envs, agent, 1200)
    assert agent.optimizer.param_groups[0]["lr"] == 1e-3


def test_the_horizon_is_held_and_then_changes_to_its_end():
    envs = make(**CORRIDOR)
    table = {"kind": "dqn", "n_step": 8, "n_step_end": 2, "discount": 0.9, "discount_end": 0.99}
    table |= {"horizon_hold": 200, "horizon_steps": 600, "learning_starts": 50, "learn_every": 4}
    agent = build(envs.layout, 2, **table)
    seen, left = [], []
    for until in (100, 200, 400, 560, 600, 900):
        train(envs, agent, until)
        seen.append(agent.replay.horizons[0])
        left.append(1 - agent.replay.discount)
    assert seen == [8, 8, 4, 2, 2, 2]
    # The last learner step saw the steps up to the tick before.
    tenths = [0, 0, 0.5, 0.9, 1, 1]
    assert left == pytest.approx([0.1 * 0.1**share for share in tenths], rel=0.05)
    assert agent.replay.n_step == 8
    expected = [0.99**power for power in range(9)]
    assert agent.replay._powers.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_learning_rate_may_fall_along_a_cosine():
    agent = build(
        Leaf("vector", (3,), "float32"),
        2,
        env_steps=1000,
        kind="dqn",
        learning_rate=1e-2,
        learning_rate_end=1e-3,
        learning_rate_schedule="cosine",
    )
    assert agent._weights.rate(250) == pytest.approx(1e-3 + 9e-3 * (1 + 0.5**0.5) / 2)


@pytest.mark.parametrize("kind", ["dqn", "q_learning"])
def test_the_learning_rate_may_come_to_its_end_before_the_budget_does(kind: str):
    rates = {"learning_rate": 1e-2, "learning_rate_end": 1e-3, "learning_rate_steps": 100}
    agent = build(Leaf("index", (), "int64", size=2), 2, env_steps=1000, kind=kind, **rates)
    rate = agent._rate if kind == "q_learning" else agent._weights.rate
    assert [rate(steps) for steps in (50, 100, 1000)] == pytest.approx([5.5e-3, 1e-3, 1e-3])


def test_learner_steps_are_due_by_env_steps_whatever_the_number_of_environments():
    for count in (1, 3, 8):
        envs = make(kind="corridor", count=count, observation="onehot")
        agent = build(
            envs.layout,
            2,
            environments=count,
            kind="dqn",
            learn_every=5,
            learning_starts=100,
            network={"hidden": [4]},
            batch_size=4,
        )
        train(envs, agent, 400)
        # Learning in one tick sees the steps up to the tick before.
        assert (agent.env_steps - count - 100) // 5 <= agent.learner_steps <= (agent.env_steps - 100) // 5


def test_rewards_are_clipped_for_learning_only():
    agent = build(
        Leaf("vector", (1,), "float32"),
        2,
        kind="dqn",
        reward_transform="sign",
        n_step=1,
        replay={"capacity": 40},
    )
    assert agent.config.reward_transform == "sign"
    for step in Naive(4, 1, 5, 0).steps:
        agent.observe(step._replace(obs=torch.zeros(4, 1), reward=step.reward * 7))
    learned = agent.replay._columns["reward"][:20]
    assert set(learned.tolist()) <= {-1.0, 0.0, 1.0}
    assert learned.any()


def test_rewards_are_multiplied_to_scale_them():
    vector = Leaf("vector", (1,), "float32")
    agent = build(vector, 2, kind="dqn", reward_transform="scale", reward_scale=0.25, replay={"capacity": 40})
    for step in Naive(4, 1, 5, 0).steps:
        agent.observe(step._replace(obs=torch.zeros(4, 1)))
        row = slice(4 * (agent.replay.time - 1), 4 * agent.replay.time)
        assert np.array_equal(agent.replay._columns["reward"][row], step.reward / 4)


def test_normalised_rewards_are_divided_by_the_deviation_of_the_returns():
    vector = Leaf("vector", (1,), "float32")
    agent = build(vector, 2, kind="dqn", discount=0.8, reward_transform="normalise", replay={"capacity": 400})
    returns, running = [], np.zeros(4)
    for step in Naive(4, 1, 60, 0).steps:
        agent.observe(step._replace(obs=torch.zeros(4, 1), reward=step.reward * 7))
        running = np.where(step.first, 0, running) * 0.8 + step.reward * 7
        returns += running[~step.final].tolist()
    assert agent._returns.factor == pytest.approx(1 / np.std(returns), rel=1e-6)
    agent._reward_factor.fill_(agent._returns.factor)
    batch = agent.replay.sample(8)
    ahead = agent.target(batch.next_obs)[..., 0].amax(1)
    goal = agent._goal(batch, agent.working.prepare(batch.obs))
    expected = batch.reward / np.float32(np.std(returns)) + batch.discount * ahead
    torch.testing.assert_close(goal, expected)


def test_weights_decay_by_the_learning_rate_times_themselves():
    vector = Leaf("vector", (3,), "float32")
    agent = build(vector, 2, kind="dqn", weight_decay=0.1, learning_rate=0.01)
    before = [p.clone() for p in agent.online.parameters()]
    for parameter in agent.online.parameters():
        parameter.grad = torch.zeros_like(parameter)
    agent._step()
    for old, new in zip(before, agent.online.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old.detach() * (1 - 0.01 * 0.1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", ["none", "fixed", "soft"])
def test_the_last_layers_start_anew_and_nothing_else(target, precision):
    envs = make(**CORRIDOR)
    agent = build(
        envs.layout,
        2,
        kind="dqn",
        precision=precision,
        learning_starts=20,
        learn_every=4,
        reset_head_every=400,
        network={"dueling": True, "hidden": [8]},
        target={"kind": target},
    )
    train(envs, agent, 396)
    before = {name: p.clone() for name, p in agent.online.named_parameters()}
    agent._reset_head(1)
    fresh = dict(agent._fresh_network(1).named_parameters())
    for name, parameter in agent.online.named_parameters():
        last = name.startswith(("head", "state_value"))
        assert torch.equal(parameter, fresh[name] if last else before[name])
        moments = agent.optimizer.state[parameter]
        assert all(bool(moment.any()) != last for moment in moments.values())
        for network in (agent.working, agent.target):
            found = dict(network.named_parameters())[name]
            if last or network is agent.working:
                assert torch.equal(found, parameter.to(found.dtype))
    assert not torch.equal(fresh["head.weight"], agent._fresh_network(0).head.weight)
    resets = []
    agent._reset_head = resets.append
    train(envs, agent, 1300)
    assert resets == [1, 2, 3]


def test_streams_of_another_kind_of_device_start_anew_and_the_rest_is_as_it_was():
    table = {"kind": "dqn", "exploration": {"kind": "noisy"}, "network": {"noisy": True}}
    agent, other = (build(Leaf("vector", (3,), "float32"), 6, **table) for _ in range(2))
    state = agent.state_dict()
    kept = other._random["exploration"].get_state()
    state["random"]["exploration"] = torch.zeros(16, dtype=torch.uint8)  # a GPU's
    del state["random"]["acting"]
    with torch.no_grad():
        state["policy"]["head.bias"].add_(1)
    other.load_state_dict(state)
    assert torch.equal(other._random["exploration"].get_state(), kept)
    assert torch.equal(other.online.head.bias, agent.online.head.bias)


def test_noise_explores_with_one_draw_for_each_environment_and_not_in_evaluations():
    table = {"kind": "dqn", "exploration": {"kind": "noisy"}, "network": {"noisy": True, "noise": 5.0}}
    agent = build(Leaf("vector", (3,), "float32"), 6, **table)
    obs = torch.ones(64, 3)
    assert len(set(agent.act(obs).tolist())) > 2
    state = agent._random["acting"].get_state()
    assert len(set(agent.act(obs, epsilon=0.0).tolist())) == 1
    assert np.array_equal(agent.act(obs, epsilon=0.0), agent.q_values(obs).argmax(1))
    assert torch.equal(agent._random["acting"].get_state(), state)
    assert agent.epsilon == 0
    mask = np.random.default_rng(0).random((64, 6)) < 0.5
    mask[:, 0] = True
    assert mask[np.arange(64), agent.act(obs, mask=mask)].all()


WHOLE = {
    "kind": "dqn",
    "n_step": 2,
    "values": {"kind": "iqn", "choice": 4},
    "network": {"noisy": True, "hidden": [8]},
    "exploration": {"kind": "boltzmann"},
    "replay": {"capacity": 200, "sampling": {"kind": "proportional"}},
    "reward_transform": "normalise",
    "munchausen": {"share": 0.9},
    "average_rate": 0.1,
}


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "dqn", "double": True, "n_step": 2},
        {"kind": "q_learning"},
        WHOLE,
        {"kind": "q_learning", "double": True, "n_step": 3, "target_policy": "sampled"},
    ],
)
def test_state_dicts_bring_an_agent_back_bit_for_bit(table):
    onehot = "onehot" if table["kind"] == "dqn" else "index"
    envs = make(kind="corridor", count=4, observation=onehot)
    table = {**table, "learning_starts": 20}
    agent = train(envs, build(envs.layout, 2, **table), 400)
    twin = build(envs.layout, 2, seed=2, **table)
    twin.load_state_dict(agent.state_dict())
    if agent.replay:
        start = max(0, agent.replay.time - agent.replay.rows)
        twin.replay.restore(start, agent.replay.window(start, agent.replay.time))
        twin.replay.reopen()
    trails = [Trail(Streams(5), 4, 2), Trail(Streams(5), 4, 2)]
    for player, trail in zip((agent, twin), trails, strict=True):
        fresh = make(kind="corridor", count=4, observation=onehot)
        loop = interact(fresh, player, trail, reset_every=10**9)
        for _ in range(100):
            next(loop)
    one, other = agent.state_dict(), twin.state_dict()
    assert one["counters"] == other["counters"]
    assert all(torch.equal(v, other["policy"][k]) for k, v in one["policy"].items())
    assert all(torch.equal(v, other["random"][k]) for k, v in one["random"].items())
    if "priorities" in one:
        assert all(torch.equal(v, other["priorities"][k]) for k, v in one["priorities"].items())
        assert one["returns"] == other["returns"]


@pytest.mark.parametrize("table", [{"kind": "dqn"}, {"kind": "q_learning"}, WHOLE])
def test_an_agent_with_masks_never_takes_an_illegal_action(table):
    envs = make(kind="gridworld", count=8)
    agent = build(envs.layout, envs.actions, environments=8, **{**table, "learning_starts": 50})
    trail = Trail(Streams(1), 8, envs.actions)
    for step, _ in interact(envs, agent, trail, reset_every=10**9):
        legal = step.mask[np.arange(8), step.action]
        assert legal[~step.final].all()
        if agent.env_steps > 3000:
            break


def test_random_streams_do_not_disturb_one_another():
    one, other = Streams(1), Streams(1)
    one.torch("exploration", CPU)
    assert one.integer("environments") == other.integer("environments")
    draws = {float(torch.rand(1, generator=Streams(s).torch(n, CPU))) for s in (1, 2) for n in ("a", "b")}
    assert len(draws) == 4


@pytest.mark.parametrize(
    "table",
    [CORRIDOR_DQN, {"kind": "pqn"}, {"kind": "q_learning", "learn_from": "replay", "learning_starts": 50}],
    ids=lambda table: table["kind"],
)
def test_an_agent_and_its_replay_are_gone_with_the_last_reference(table):
    """A replay has gigabytes, and Python looks for cycles when it has made many objects, not large ones."""
    seen = "index" if table["kind"] == "q_learning" else "onehot"
    envs = make(**{**CORRIDOR, "observation": seen})
    for _ in range(2):  # what libraries import with the first one keeps that one for a while
        agent = build(envs.layout, envs.actions, **table)
        train(envs, agent, 400)
        known = weakref.ref(agent)
        del agent
    assert known() is None


@pytest.mark.parametrize("kind", ["dqn", "pqn"])
def test_evaluations_act_by_the_average_of_the_weights(kind):
    table = {"kind": kind, **({"rollout": 4, "minibatches": 2} if kind == "pqn" else CORRIDOR_DQN)}
    envs, others = make(**CORRIDOR), make(**CORRIDOR)
    table |= {"env_steps": 400}
    rates = {"average_rate": 0.4, "average_rate_end": 0.1}
    agent = build(envs.layout, envs.actions, **rates, **table)
    plain = build(envs.layout, envs.actions, **table)
    expected = [p.detach().clone() for p in agent.online.parameters()]
    trail, other_trail = Trail(Streams(1), 4, 2), Trail(Streams(1), 4, 2)
    ticks = zip(
        interact(envs, agent, trail, reset_every=10**9),
        interact(others, plain, other_trail, reset_every=10**9),
        strict=False,
    )
    done = before = 0
    for _ in ticks:
        if agent.learner_steps > done and kind == "dqn":  # one learner step a tick, after the tick before
            rate = 0.4 * 0.25 ** min(1, before / 400)
            expected = [e + rate * (p - e) for e, p in zip(expected, agent.online.parameters(), strict=True)]
        done, before = agent.learner_steps, agent.env_steps
        if agent.env_steps >= 600:
            break
    assert done > 50
    # Nothing is learned from it.
    for mine, theirs in zip(agent.online.parameters(), plain.online.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    obs = torch.eye(5)
    assert torch.equal(agent._q_values(agent.working, obs), plain.q_values(obs))
    assert not torch.allclose(agent.q_values(obs), plain.q_values(obs), atol=1e-4)
    if kind == "dqn":
        for weight, known in zip(agent.state_dict()["average"].values(), expected, strict=True):
            torch.testing.assert_close(weight, known)
    state = agent.state_dict()
    twin = build(envs.layout, envs.actions, seed=2, **rates, **table)
    twin.load_state_dict(state)
    assert torch.equal(twin.q_values(obs), agent.q_values(obs))
    twin.load_state_dict({**state, "average": {}})  # of a checkpoint from before there was one
    assert torch.equal(twin.q_values(obs), plain.q_values(obs))


def test_learner_steps_with_masks_are_recorded_apart_from_those_without():
    """A graph recorded before the first mask came would leave masks out for ever."""
    envs = make(kind="corridor", count=2, observation="onehot")
    agent = build(envs.layout, 2, environments=2, kind="dqn", learning_starts=4, learn_every=2, batch_size=4)
    kinds = []
    agent._graph = lambda function, kind: kinds.append(kind) or function()
    steps = [step for step, _ in islice(interact(envs, agent, Trail(Streams(0), 2, 2), reset_every=10**6), 8)]
    seen = len(kinds)
    assert len(set(kinds)) == 1
    agent.observe(steps[-1]._replace(mask=np.ones((2, 2), bool)))
    agent.learn()
    assert len(kinds) == seen + 1
    assert kinds[-1] != kinds[-2]


def test_gradients_of_a_recording_that_failed_are_not_learned_from():
    """Such a recording leaves places for them into which nothing was computed."""
    envs = make(kind="corridor", count=2, observation="onehot")
    agent = build(envs.layout, 2, environments=2, kind="dqn", learning_starts=4, learn_every=2, batch_size=4)
    agent._graph = lambda function, kind: function()
    steps = [step for step, _ in islice(interact(envs, agent, Trail(Streams(0), 2, 2), reset_every=10**6), 8)]
    for parameter in agent.online.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    done = agent.learner_steps
    agent.observe(steps[-1])
    agent.learn()
    assert agent.learner_steps > done
    assert all(parameter.isfinite().all() for parameter in agent.online.parameters())

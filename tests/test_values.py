"""Kinds of values: projections, losses and gradients against formulas written out, and other libraries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import learning
from rlagents.agents.values import Categorical, Quantile, Scalar, midpoints, soften
from rlagents.config import ImplicitQuantileValues, Munchausen
from rlagents.types import Batch
from rlagents_envs.vector import Leaf

B, A = 12, 4
KINDS = ("scalar", "categorical", "quantile", "iqn")
CATEGORICAL = Categorical(-2.0, 3.0, 11)
TABLES = {
    "scalar": {"kind": "scalar"},
    "categorical": {"kind": "categorical", "low": -2.0, "high": 3.0, "atoms": 11},
    "quantile": {"kind": "quantile", "quantiles": 7, "huber_delta": 0.5},
    "iqn": {"kind": "iqn", "learned": 5, "goals": 3, "choice": 6, "cosines": 9, "huber_delta": 0.5},
}
MEANINGS = {
    "scalar": Scalar(),
    "categorical": Categorical(-5.0, 5.0, 11),  # wide enough for what the tests add up to
    "quantile": Quantile(7),
    "iqn": Quantile(1, 1.0, ImplicitQuantileValues(learned=7, goals=7, choice=7, cosines=8)),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def projected(values, reward, discount, probability):
    """Algorithm 1 of Bellemare et al. 2017 for one sample, in Python's floats."""
    spacing = (values.high - values.low) / (values.width - 1)
    goal = [0.0] * values.width
    for j in range(values.width):
        moved = reward + discount * (values.low + j * spacing)
        place = (min(max(moved, values.low), values.high) - values.low) / spacing
        below, above = math.floor(place), math.ceil(place)
        if below == above:
            goal[below] += probability[j]
        else:
            goal[below] += probability[j] * (above - place)
            goal[above] += probability[j] * (place - below)
    return goal


def quantile_huber(params, goal, fractions, delta):
    """Equation 3 of Dabney et al. 2018b for one sample, term by term."""
    total = 0.0
    for fraction, predicted in zip(fractions, params, strict=True):
        for wanted in goal:
            u = wanted - predicted
            huber = u * u / 2 if abs(u) <= delta else delta * (abs(u) - delta / 2)
            total = total + abs(fraction - (1.0 if u < 0 else 0.0)) * huber / delta / len(goal)
    return total


def test_the_projection_is_that_of_a_loop_over_atoms():
    draw = generator()
    reward = torch.randn(64, generator=draw) * 2
    discount = torch.rand(64, generator=draw)
    discount[:8] = 0
    reward[8:12], discount[8:12] = 0.5, 1.0  # atoms on atoms
    ahead = torch.randn(64, A, 11, generator=draw) * 2
    policy = torch.rand(64, A, generator=draw)
    policy /= policy.sum(1, keepdim=True)
    goal = CATEGORICAL.target(reward, discount, ahead, policy)
    mixture = (policy[..., None].double() * ahead.double().softmax(-1)).sum(1)
    for b in range(64):
        expected = projected(CATEGORICAL, float(reward[b]), float(discount[b]), mixture[b].tolist())
        assert goal[b].tolist() == pytest.approx(expected, abs=2e-6)


@given(
    reward=st.floats(-1, 1),
    discount=st.floats(0, 1),
    seed=st.integers(0, 1000),
    width=st.integers(2, 60),
)
def test_the_projection_sums_to_one_and_keeps_the_mean_where_nothing_is_clipped(
    reward, discount, seed, width
):
    values = Categorical(-5.0, 5.0, width)
    ahead = torch.randn(1, 1, width, generator=generator(seed))
    # Nearly all weight on atoms that stay within the range.
    reach = (values.atoms(ahead.device) * discount + reward).abs() <= 5
    ahead = ahead.masked_fill(~reach, -torch.inf)
    goal = values.target(torch.tensor([reward]), torch.tensor([discount]), ahead, torch.ones(1, 1))
    assert (goal >= 0).all()
    assert goal.sum().item() == pytest.approx(1, abs=1e-5)
    mean = (goal @ values.atoms(ahead.device)).item()
    assert mean == pytest.approx(reward + discount * values.mean(ahead).item(), abs=1e-4)


def test_the_gradient_of_the_categorical_loss_is_prediction_less_goal():
    params = torch.randn(B, 11, generator=generator(), requires_grad=True)
    goal = torch.rand(B, 11, generator=generator(1))
    goal /= goal.sum(1, keepdim=True)
    loss = CATEGORICAL.loss(params, goal)
    loss.sum().backward()
    torch.testing.assert_close(params.grad, (params.softmax(1) - goal).detach())
    divergence = (goal * (goal.log() - params.log_softmax(1))).sum(1)
    torch.testing.assert_close(CATEGORICAL.error(params, goal, loss), divergence)


def test_where_only_chance_is_left_the_means_of_quantiles_are_not_wrong():
    params = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    goal = torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.5, 0.5]])
    loss = Quantile(3).loss(params, goal)
    assert loss.min() > 0
    assert torch.equal(Quantile(3).error(params, goal, loss), loss)
    assert Quantile(3, error_of="mean").error(params, goal, loss).tolist() == [0.0, 0.5]


@pytest.mark.parametrize(("delta", "mean"), [(1.0, 0.69), (0.1, 0.79)])
def test_the_mean_of_quantiles_is_that_of_the_return_where_the_huber_loss_is_mostly_linear(delta, mean):
    values, params = Quantile(51, delta), torch.zeros(1, 51, requires_grad=True)
    goal = torch.tensor([[1.0] * 9 + [-1.0]])  # whose mean is 0.8
    optimizer = torch.optim.SGD([params], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        (values.loss(params, goal) * delta).sum().backward()
        optimizer.step()
    assert values.mean(params).item() == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("delta", [0.3, 1.0, 2.0])
def test_quantile_huber_losses_and_gradients_are_those_of_the_sum_written_out(delta, asked):
    draw = generator()
    params = torch.randn(B, 5, generator=draw, requires_grad=True)
    goal = torch.randn(B, 8, generator=draw) * 2
    fractions = torch.rand(B, 5, generator=draw) if asked else midpoints(5, goal.device).expand(B, 5)
    twin = params.detach().double().requires_grad_(True)
    expected = [
        quantile_huber(twin[b], goal[b].double(), fractions[b].double().tolist(), delta) for b in range(B)
    ]
    loss = Quantile(5, delta).loss(params, goal, fractions if asked else None)
    torch.testing.assert_close(loss, torch.stack(expected).float())
    loss.sum().backward()
    torch.stack(expected).sum().backward()
    torch.testing.assert_close(params.grad, twin.grad.float())


def test_quantile_huber_losses_are_those_of_sb3_contrib():
    utils = pytest.importorskip("sb3_contrib.common.utils")
    params, goal = torch.randn(B, 9, generator=generator()), torch.randn(B, 9, generator=generator(1)) * 2
    theirs = utils.quantile_huber_loss(params, goal, sum_over_quantiles=True)
    torch.testing.assert_close(Quantile(9).loss(params, goal).mean(), theirs)


def test_losses_and_gradients_are_those_of_stable_baselines3():
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    model = sb3.DQN(
        "MlpPolicy",
        "CartPole-v1",
        policy_kwargs={"net_arch": [16, 16]},
        max_grad_norm=math.inf,
        batch_size=B,
        gamma=0.97,
        device="cpu",
    )
    ours = build("scalar", leaf=Leaf("vector", (4,), "float32"), actions=2, network={"hidden": [16, 16]})
    with torch.no_grad():
        for mine, theirs in (
            (ours.online, model.policy.q_net),
            (ours.target, model.policy.q_net_target),
        ):
            for to, source in zip(mine.parameters(), theirs.parameters(), strict=True):
                if theirs is model.policy.q_net_target:
                    source.add_(0.1)  # the two networks differ
                to.copy_(source)
    draw = generator()
    obs, ahead = torch.randn(2, B, 4, generator=draw).unbind()
    action, reward = torch.randint(2, (B,), generator=draw), torch.randn(B, generator=draw) * 2
    done = (torch.rand(B, generator=draw) < 0.3).float()
    samples = ReplayBufferSamples(obs, action[:, None], ahead, done[:, None], reward[:, None])
    model.replay_buffer.sample = lambda *_, **__: samples
    model._logger = sb3.common.logger.configure(None, [])
    model.policy.optimizer.step = lambda: None
    model.train(gradient_steps=1, batch_size=B)
    gradients = taken(ours)
    batch = Batch(obs, action, reward, 0.97 * (1 - done), ahead, torch.arange(B), torch.ones(B))
    loss = ours._update(batch)["loss"]
    assert loss.item() == pytest.approx(model.logger.name_to_value["train/loss"], rel=1e-5)
    for mine, theirs in zip(gradients, model.policy.q_net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad)


def build(kind, *, leaf=None, actions=A, **table):
    table = {"network": {"hidden": [8]}, "gradient_clip": 0.0, "precision": "float32", **table}
    leaf = leaf or Leaf("vector", (3,), "float32")
    return learning.build(leaf, actions, kind="dqn", values=TABLES[kind], replay={"capacity": 100}, **table)


def taken(agent):
    """Makes an agent hand out its gradients in place of a step; returns where they will be."""
    gradients = []

    def step():
        gradients.extend(p.grad.clone() for p in agent.online.parameters())
        for parameter in agent.online.parameters():
            parameter.grad = None

    agent._step = step
    return gradients


def random_batch(seed=0, masked=True):
    draw = generator(seed)
    obs, ahead = torch.randn(2, B, 3, generator=draw).unbind()
    mask, obs_mask = (torch.rand(2, B, A, generator=draw) < 0.7).unbind()
    action = torch.randint(A, (B,), generator=draw)
    mask[:, 0] = True
    obs_mask[torch.arange(B), action] = True
    return Batch(
        obs,
        action,
        torch.randn(B, generator=draw),
        torch.rand(B, generator=draw),
        ahead,
        torch.arange(B),
        torch.rand(B, generator=draw),
        mask if masked else None,
        obs_mask if masked else None,
    )


def written_out(agent, kind, batch, fractions, goals):
    """The loss of each sample, from the networks' outputs alone, one sample after the other."""
    config = agent.config
    spread = torch.tensor([[(i + 0.5) / 6 for i in range(6)]]) if kind == "iqn" else None
    with torch.no_grad():
        ahead = agent.target(batch.next_obs, goals).double()
        chooser = (agent.online if config.double else agent.target)(batch.next_obs, spread).double()
        now = agent.target(batch.obs, spread).double()
    params = agent.online(batch.obs, fractions)
    atoms = torch.linspace(-2, 3, 11, dtype=torch.float64)

    def mean(of):
        return (of.softmax(-1) * atoms).sum(-1) if kind == "categorical" else of.mean(-1)

    losses = []
    for b in range(B):
        legal = batch.mask[b].nonzero()[:, 0].tolist()
        q = mean(chooser[b])
        reward, discount = float(batch.reward[b]), float(batch.discount[b])
        policy = torch.zeros(A, dtype=torch.float64)
        if config.munchausen.share:
            temperature = config.munchausen.temperature
            policy[legal] = (q[legal] / temperature).softmax(0)
            here = batch.obs_mask[b].nonzero()[:, 0].tolist()
            log_policy = (mean(now[b])[here] / temperature).log_softmax(0)[here.index(int(batch.action[b]))]
            reward += config.munchausen.share * max(config.munchausen.lowest, temperature * float(log_policy))
            reward -= discount * sum(temperature * float(policy[a] * policy[a].log()) for a in legal)
        else:
            policy[max(legal, key=lambda a: float(q[a]))] = 1
        outcome, predicted = ahead[b], params[b, batch.action[b]]
        if kind == "categorical":
            mixture = (policy[:, None] * outcome.softmax(-1)).sum(0).tolist()
            goal = torch.tensor(projected(CATEGORICAL, reward, discount, mixture))
            losses.append(-(goal * predicted.log_softmax(0)).sum())
        else:
            goal = reward + discount * (policy[:, None] * outcome).sum(0)
            if kind == "scalar":
                u = goal[0] - predicted[0]
                losses.append(u * u / 2 if abs(u) < 1 else abs(u) - 0.5)
            else:
                at = [(i + 0.5) / 7 for i in range(7)] if fractions is None else fractions[b].tolist()
                losses.append(quantile_huber(predicted, goal, at, 0.5))
    return torch.stack([loss.float() for loss in losses])


@pytest.mark.parametrize("way", ["plain", "double", "munchausen"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_update_of_every_kind_is_the_gradient_of_the_loss_written_out(kind, way):
    soft = {"share": 0.9, "temperature": 0.1, "lowest": -0.3} if way == "munchausen" else {}
    agent = build(kind, double=way == "double", munchausen=soft)
    for parameter in agent.target.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator(3)) * 0.3)
    batch = random_batch()
    fractions = torch.rand(B, 5, generator=generator(4)) if kind == "iqn" else None
    goals = torch.rand(B, 3, generator=generator(5)) if kind == "iqn" else None
    agent._fractions = lambda _, count: {5: fractions, 3: goals}[count]
    losses = written_out(agent, kind, batch, fractions, goals)
    expected = torch.autograd.grad((batch.weight * losses).mean(), list(agent.online.parameters()))
    gradients = taken(agent)
    assert agent._update(batch)["loss"].item() == pytest.approx(losses.mean().item(), rel=1e-4)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_zero_removes_the_gradient_of_a_sample(kind):
    batch = random_batch(masked=False)
    weight = batch.weight.clone()
    weight[3] = 0
    gradients = []
    for reward in (batch.reward, batch.reward.index_fill(0, torch.tensor([3]), 1.7)):
        agent = build(kind)  # with the same random streams each time
        found = taken(agent)
        agent._update(batch._replace(weight=weight, reward=reward))
        gradients.append(found)
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    agent = build(kind)
    found = taken(agent)
    agent._update(batch._replace(reward=batch.reward.index_fill(0, torch.tensor([3]), 1.7)))
    assert any(not torch.equal(one, other) for one, other in zip(gradients[0], found, strict=True))


@given(
    rewards=st.lists(st.floats(-0.25, 0.25), min_size=1, max_size=5),
    terminated=st.booleans(),
    seed=st.integers(0, 100),
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_n_step_goal_is_n_rewards_and_the_bootstrap(kind, rewards, terminated, seed):
    values = MEANINGS[kind]
    ahead = torch.randn(1, 1, 11 if kind == "categorical" else 7, generator=generator(seed)) * 0.3
    total = sum(0.9**k * reward for k, reward in enumerate(rewards))
    discount = 0.0 if terminated else 0.9 ** len(rewards)
    goal = values.target(torch.tensor([total]), torch.tensor([discount]), ahead, torch.ones(1, 1))
    mean = goal @ values.atoms(goal.device) if kind == "categorical" else goal.mean()
    assert mean.item() == pytest.approx(total + discount * values.mean(ahead).item(), abs=1e-5)


def test_soft_values_by_hand():
    config = Munchausen(share=0.9, temperature=0.5, lowest=-0.7)
    now = torch.tensor([[1.0, 0.0, -torch.inf], [-3.0, 1.0, 1.0]])
    ahead = torch.tensor([[2.0, 1.0, 0.0], [0.0, -torch.inf, -torch.inf]])
    bonus, policy = soften(config, now, torch.tensor([1, 0]), ahead, torch.tensor([0.9, 0.5]))
    weights = [math.exp(q / 0.5) for q in (2, 1, 0)]
    pi = [w / sum(weights) for w in weights]
    assert policy[0].tolist() == pytest.approx(pi)
    assert policy[1].tolist() == [1, 0, 0]
    log_policy = 0.5 * math.log(1 / (1 + math.exp(2)))  # about -1.06: below the lowest
    assert log_policy < -0.7
    entropy = -sum(p * math.log(p) for p in pi)
    assert bonus.tolist() == pytest.approx([0.9 * -0.7 + 0.9 * 0.5 * entropy, 0.9 * -0.7])
    mild = soften(config, now / 4, torch.tensor([0, 1]), ahead, torch.zeros(2))[0]
    expected = 0.9 * 0.5 * math.log(math.exp(0.5) / (math.exp(0.5) + 1))
    assert mild[0].item() == pytest.approx(expected)

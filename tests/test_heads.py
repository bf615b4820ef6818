"""Several last layers on one body: each learns and explores by itself, and evaluations take their mean."""

import numpy as np
import pytest
import torch

from learning import CORRIDOR_DQN, build, learn_corridor, pixels, train
from rlagents import building, experiments
from rlagents.agents.values import make
from rlagents.types import Batch
from rlagents_envs.vector import Leaf

ACTIONS, HEADS, ROWS, SEEN = 3, 4, 16, 5
VALUES = [{"kind": "scalar"}, {"kind": "quantile", "quantiles": 3}, {"kind": "categorical", "atoms": 5}]
NEVER = {"kind": "epsilon", "start": 0.0, "end": 0.0, "steps": 0}


def agent_of(**table):
    leaf = Leaf("vector", (SEEN,), "float32")
    return build(leaf, ACTIONS, kind="dqn", **{"network": {"hidden": [8]}, **table})


def batch():
    draw = torch.Generator().manual_seed(3)
    mask = torch.rand(ROWS, ACTIONS, generator=draw) < 0.7
    mask[:, 0] = True
    return Batch(
        obs=torch.randn(ROWS, SEEN, generator=draw),
        action=torch.randint(0, ACTIONS, (ROWS,), generator=draw),
        reward=torch.randn(ROWS, generator=draw),
        discount=0.9 * (torch.rand(ROWS, generator=draw) < 0.8),
        next_obs=torch.randn(ROWS, SEEN, generator=draw),
        row=torch.arange(ROWS),
        weight=torch.rand(ROWS, generator=draw),
        mask=mask,
        obs_mask=torch.ones(ROWS, ACTIONS, dtype=torch.bool),
    )


@pytest.mark.parametrize("values", VALUES, ids=lambda table: table["kind"])
@pytest.mark.parametrize("double", [False, True])
def test_each_head_learns_towards_the_goal_of_its_own_choice(values, double):
    agent = agent_of(heads=HEADS, double=double, values=values, gradient_clip=0)
    with torch.no_grad():  # the target is another network
        for parameter in agent.target.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    meaning, width, rows = make(agent.config.values), agent.values.width, batch()

    def head(network, obs, index):  # of [B, A, K * Z], those of one
        return network(obs)[:, :, index * width : (index + 1) * width]

    losses = []
    for index in range(HEADS):
        with torch.no_grad():
            ahead = head(agent.target, rows.next_obs, index)
            chooser = head(agent.online, rows.next_obs, index) if double else ahead
            best = meaning.mean(chooser).masked_fill(~rows.mask, -torch.inf).argmax(1)
            policy = torch.eye(ACTIONS)[best]
            goal = meaning.target(rows.reward, rows.discount, ahead, policy)
        mine = head(agent.online, rows.obs, index)[torch.arange(ROWS), rows.action]
        losses.append(meaning.loss(mine, goal))
    expected = torch.stack(losses).mean(0)  # [B]
    gradients = torch.autograd.grad((rows.weight * expected).mean(), [*agent.online.parameters()])
    found = {}
    agent._step = lambda: found.update({p: p.grad for p in agent.online.parameters()})
    metrics = agent._update(rows)
    assert metrics["loss"].item() == pytest.approx(expected.mean().item(), rel=1e-5)
    for parameter, gradient in zip(agent.online.parameters(), gradients, strict=True):
        torch.testing.assert_close(found[parameter], gradient)


@pytest.mark.parametrize("values", VALUES[:2], ids=lambda table: table["kind"])
def test_environments_act_by_one_head_each_in_turn_and_evaluations_by_their_mean(values):
    agent = agent_of(heads=HEADS, values=values, exploration=NEVER)
    obs = torch.randn(6, SEEN, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for parameter in agent.online.head.parameters():  # so that heads disagree
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
        each = agent.online(obs).view(6, ACTIONS, HEADS, -1).mean(3)  # [N, A, K]
    best = each.argmax(1).numpy()  # [N, K]
    assert (best.min(1) != best.max(1)).any()
    agent._turn = torch.tensor([0, 1, 2, 3, 0, 1])
    rows = np.arange(6)
    begun = np.array([True, False, False, True, False, False])
    for turn, first in (([0, 1, 2, 3, 0, 1], ~begun & begun), ([1, 1, 2, 0, 0, 1], begun)):
        assert np.array_equal(agent.act(obs, first=first), best[rows, turn])
    torch.testing.assert_close(agent.q_values(obs), each.mean(2))
    assert np.array_equal(agent.act(obs, epsilon=0.0), each.mean(2).argmax(1).numpy())
    twin = agent_of(heads=HEADS, values=values, exploration=NEVER)
    twin.load_state_dict(agent.state_dict())
    assert np.array_equal(twin.act(obs), best[rows, [1, 1, 2, 0, 0, 1]])


def test_heads_reach_the_exact_values_of_the_corridor():
    q, exact = learn_corridor(
        10_000,
        **CORRIDOR_DQN,
        heads=3,
        exploration={"kind": "epsilon", "start": 1.0, "end": 0.5, "steps": 2000},
        network={"hidden": [32], "dueling": True},
        replay={"capacity": 2000},
    )
    np.testing.assert_allclose(q, exact, atol=0.01)


def test_what_heads_disagree_on_leads_to_the_end_of_a_corridor_without_any_chance():
    experiment = experiments.load("corridor-bootstrapped-dqn")
    assert experiment.agent.exploration.start == 0
    envs = building.environments(experiment.env)
    agent = building.agent(experiment, envs, torch.device("cpu"))
    q = train(envs, agent, experiment.run.env_steps).q_values(torch.eye(experiment.env.length))
    assert (q.argmax(1) == 1).all()


@pytest.mark.parametrize("extra", [{}, {"double": False, "munchausen": {"share": 0.9}}], ids=["", "soft"])
def test_heads_learn_from_pixels_with_priorities(extra):
    sampling = {"kind": "proportional"}
    agent = build(
        Leaf("pixels", (4, 84, 84), "uint8", stack=4, scale=1 / 255),
        ACTIONS,
        kind="dqn",
        heads=HEADS,
        average_rate=0.5,
        values={"kind": "quantile", "quantiles": 3},
        network={"body": "arcade_cnn", "hidden": [16], "dueling": True},
        replay={"capacity": 100, "sampling": sampling},
        **{"double": True, **extra},
    )
    seen = batch()._replace(obs=pixels(ROWS), next_obs=pixels(ROWS, 1), mask=None, obs_mask=None)
    written = []
    agent.replay.sampler.update = lambda row, error: written.append((row, error))
    before = [p.clone() for p in agent.online.parameters()]
    assert agent._update(seen)["loss"].isfinite()
    (row, error), *_ = written
    assert torch.equal(row, seen.row)
    assert error.shape == (ROWS,)
    assert (error > 0).all()
    assert all(not torch.equal(a, b) for a, b in zip(before, agent.online.parameters(), strict=True))

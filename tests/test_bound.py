"""A second, longer return is learned where it is the larger one."""

import numpy as np
import pytest
import torch

from learning import CORRIDOR, CORRIDOR_DQN, build, learn_corridor, train
from playing import make
from rlagents.agents.values import make as make_values
from rlagents.types import Batch
from rlagents_envs.vector import Leaf

ACTIONS, ROWS, SEEN = 3, 32, 5
VALUES = [
    {"kind": "scalar"},
    {"kind": "quantile", "quantiles": 5},
    {"kind": "categorical", "atoms": 21, "low": -20, "high": 20},
]


def batch():
    """Returns a batch with two returns a row."""
    draw = torch.Generator().manual_seed(3)
    mask = torch.rand(2 * ROWS, ACTIONS, generator=draw) < 0.7
    mask[:, 0] = True
    return Batch(
        obs=torch.randn(ROWS, SEEN, generator=draw),
        action=torch.randint(0, ACTIONS, (ROWS,), generator=draw),
        reward=torch.randn(2 * ROWS, generator=draw),
        discount=0.9 * (torch.rand(2 * ROWS, generator=draw) < 0.8),
        next_obs=torch.randn(2 * ROWS, SEEN, generator=draw),
        row=torch.arange(ROWS),
        weight=torch.rand(ROWS, generator=draw),
        mask=mask,
        obs_mask=torch.ones(ROWS, ACTIONS, dtype=torch.bool),
    )


def half(rows, index):
    """Returns a batch with the returns of one horizon alone."""
    part = slice(index * ROWS, (index + 1) * ROWS)
    names = ("reward", "discount", "next_obs", "mask")
    return rows._replace(**{name: getattr(rows, name)[part] for name in names})


@pytest.mark.parametrize("values", VALUES, ids=lambda table: table["kind"])
@pytest.mark.parametrize(
    "extra",
    [{}, {"double": True}, {"munchausen": {"share": 0.9}}, {"heads": 4}],
    ids=["max", "double", "soft", "heads"],
)
def test_of_two_returns_the_one_with_the_larger_mean_is_the_goal(values, extra):
    leaf = Leaf("vector", (SEEN,), "float32")
    table = {"kind": "dqn", "n_step_bound": 9, "network": {"hidden": [8]}, "values": values}
    agent = build(leaf, ACTIONS, **table, **extra)
    with torch.no_grad():  # the target is another network
        for parameter in agent.target.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
        rows = batch()
        obs = agent.working.prepare(rows.obs)
        goal, one, other = (
            agent._goal(agent._for_each(each), obs) for each in (rows, half(rows, 0), half(rows, 1))
        )
    if values["kind"] == "categorical":  # a goal is the probabilities of atoms
        mean = [each @ make_values(agent.config.values).atoms(each.device) for each in (one, other)]
    else:
        mean = [each.view(len(each), -1).mean(1) for each in (one, other)]
    larger = mean[1] > mean[0]
    assert 0.2 < larger.float().mean() < 0.8
    expected = torch.where(larger.view(-1, *[1] * (one.ndim - 1)), other, one)
    torch.testing.assert_close(goal, expected)


@pytest.mark.parametrize(
    "extra", [{}, {"heads": 2}, {"values": {"kind": "iqn"}}], ids=["scalar", "heads", "iqn"]
)
def test_long_returns_that_explore_do_no_harm_as_a_bound(extra):
    q, exact = learn_corridor(
        5000,
        **CORRIDOR_DQN,
        n_step_bound=5,
        exploration={"kind": "epsilon", "start": 1.0, "end": 0.5, "steps": 2000},
        network={"hidden": [32]},
        replay={"capacity": 2000},
        **extra,
    )
    np.testing.assert_allclose(q, exact, atol=0.05)


def test_the_bound_counts_until_it_is_told_not_to():
    envs = make(**CORRIDOR)
    agent = build(envs.layout, 2, **CORRIDOR_DQN, n_step=2, n_step_bound=7, n_step_bound_until=600)
    seen = []
    for until in (400, 596, 604, 700):
        train(envs, agent, until)
        seen.append(agent.replay.horizons)
    assert seen == [(2, 7), (2, 7), (2,), (2,)]
    assert agent.replay.n_step == 7


def test_what_led_to_a_reward_is_valued_before_the_target_is_renewed():
    """In a corridor of nine cells, whose last action is all that is learned otherwise."""
    found = []
    for bound in (0, 8):
        envs = make(**{**CORRIDOR, "length": 9})
        never = {"kind": "fixed", "sync_every": 10**6}
        table = {"n_step_bound": bound, "target": never, "network": {"hidden": [32]}}
        agent = build(envs.layout, 2, **CORRIDOR_DQN, **table)
        found.append(train(envs, agent, 3000).q_values(torch.eye(9))[:, 1])
    without, with_bound = found
    assert without[:8].max() < 0.5 < 0.8 < with_bound[7]
    assert (with_bound[3:].diff() > 0).all()
    assert with_bound[-1] == pytest.approx(1, abs=0.05) == without[-1]

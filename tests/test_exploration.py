"""Ways to explore: their probabilities, and that no illegal action comes."""

import pytest
import torch

from rlagents.agents.exploration import Explorer, boltzmann
from rlagents.config import Boltzmann, EpsilonGreedy, NoisyExploration


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_boltzmann_draws_with_the_probabilities_of_the_softmax():
    values = torch.tensor([1.0, 0.5, -0.3, 0.9])
    mask = torch.tensor([True, True, True, False])
    for legal in (None, mask):
        many = None if legal is None else legal.expand(100_000, 4)
        actions = boltzmann(values.expand(100_000, 4), 0.4, generator(), many)
        share = torch.bincount(actions, minlength=4) / 100_000
        allowed = values if legal is None else values.masked_fill(~legal, -torch.inf)
        assert share.tolist() == pytest.approx((allowed / 0.4).softmax(0).tolist(), abs=0.006)


def test_the_temperature_falls():
    values = torch.tensor([[0.0, 1.0]]).expand(20_000, 2)
    way = Explorer(Boltzmann(start=2.0, end=0.1, steps=100))
    shares = [way.choose(values, at, generator(), None).float().mean().item() for at in (0, 50, 100)]
    expected = [1 / (1 + 2.718281828 ** (-1 / t)) for t in (2.0, 1.05, 0.1)]
    assert shares == pytest.approx(expected, abs=0.015)


def test_each_rung_of_the_ladder_has_its_own_epsilon():
    way = Explorer(EpsilonGreedy(start=0.4, end=0.4, ladder=7.0))
    values = torch.tensor([[0.0, 1.0]]).expand(4, 2)
    draw, explored = generator(), torch.zeros(4)
    for _ in range(4000):
        explored += way.choose(values, 0, draw, None) == 0
    expected = [0.4 ** (1 + 7 * i / 3) / 2 for i in range(4)]
    assert (explored / 4000).tolist() == pytest.approx(expected, abs=0.025)
    assert way.epsilon(0) == 0.4
    alone = way.choose(values[:1].expand(1, 2), 0, draw, None)
    assert alone.shape == (1,)


def test_without_a_ladder_all_are_alike():
    plain, rungs = (Explorer(EpsilonGreedy(start=0.5, end=0.5, ladder=ladder)) for ladder in (0.0, 1e-9))
    values = torch.randn(500, 3, generator=generator(1))
    one, other = (way.choose(values, 0, generator(), None) for way in (plain, rungs))
    assert torch.equal(one, other)


def test_random_actions_are_held_for_n_steps_in_proportion_to_the_square_of_1_over_n():
    way, draw = Explorer(EpsilonGreedy(start=0.1, end=0.1, longest=4)), generator()
    values = torch.eye(1, 200).expand(1000, 200)
    steps = torch.stack([way.choose(values, 0, draw, None) for _ in range(300)])  # [T, N]
    counts = torch.zeros(5)
    for path in steps.T:
        action, length = path.unique_consecutive(return_counts=True)
        counts += torch.bincount(length[1:-1][action[1:-1] != 0].clamp(max=4), minlength=5)
    share = torch.tensor([1, 1 / 4, 1 / 9, 1 / 16])
    share /= share.sum()
    assert (counts[1:] / counts.sum()).tolist() == pytest.approx(share.tolist(), abs=0.01)
    # Steps that one is held; on average nine pass in between.
    mean = (share * torch.arange(1, 5)).sum().item()
    assert (steps != 0).float().mean().item() == pytest.approx(mean / (mean + 9), abs=0.005)


def test_a_held_action_that_becomes_illegal_is_let_go():
    way, draw = Explorer(EpsilonGreedy(start=1.0, end=0.0, steps=1, longest=50)), generator()
    values = torch.tensor([[0.0, 1.0, 2.0]]).expand(2000, 3)
    first = way.choose(values, 0, draw, None)
    held = way.choose(values, 1, draw, None)  # from here on, nothing begins
    share = (held == first)[first != 2].float().mean().item()
    assert share == pytest.approx(0.385, abs=0.03)  # the others had one step alone
    mask = torch.tensor([[False, True, True]]).expand(2000, 3)
    assert set(way.choose(values, 1, draw, mask).tolist()) == {1, 2}
    assert set(way.choose(values, 1, draw, None).tolist()) == {1, 2}  # 0 does not come back


@pytest.mark.parametrize(
    "config",
    [
        EpsilonGreedy(start=1.0, end=1.0),
        EpsilonGreedy(start=0.9, end=0.9, ladder=2.0),
        EpsilonGreedy(start=0.9, end=0.9, longest=20),
        Boltzmann(start=100.0, end=100.0),
        NoisyExploration(),
    ],
)
def test_no_illegal_action_in_a_hundred_thousand(config):
    draw = generator()
    values, mask = torch.randn(100_000, 6, generator=draw), torch.rand(100_000, 6, generator=draw) < 0.4
    mask[:, 2] |= ~mask.any(1)
    actions = Explorer(config).choose(values, 0, draw, mask)
    assert mask[torch.arange(100_000), actions].all()
    assert not mask[torch.arange(100_000), values.argmax(1)].all()  # what is best may be illegal

"""The sum tree against plain sums, and prioritised draws against the exact distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlagents.replay import Proportional, Ring
from rlagents.replay.priority import SumTree
from rlagents.schedules import Linear
from test_replay import Naive, layout_of

CPU = torch.device("cpu")


class OnTensors(SumTree):
    """The tree as a GPU has it: on tensors, not on numpy arrays."""

    def _array(self, tensor):
        return tensor


def sampler(rows, *, seed=0, exponent=1.0, importance=None, floor=1e-3):
    return Proportional(
        rows,
        torch.Generator().manual_seed(seed),
        exponent=exponent,
        importance=importance or Linear(0.5, 0.5, 0),
        floor=floor,
    )


def ring(replay_sampler, *, environments=3, rows=40, n_step=2, stack=2):
    return Ring(
        layout_of(stack),
        4,
        environments=environments,
        capacity=rows * environments,
        n_step=n_step,
        discount=0.9,
        sampler=replay_sampler,
        device=CPU,
    )


@given(
    rows=st.integers(1, 200),
    writes=st.lists(
        st.lists(st.tuples(st.integers(0, 199), st.integers(0, 50)), min_size=1, max_size=9), max_size=20
    ),
    shares=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=9),
)
@pytest.mark.parametrize("kind", [SumTree, OnTensors])
def test_the_tree_finds_what_a_running_sum_finds(kind, rows, writes, shares):
    tree, naive = kind(rows, CPU), np.zeros(rows)
    for write in writes:
        last = {row % rows: value for row, value in write}
        row, value = np.array(list(last)), np.array(list(last.values()), float)
        naive[row] = value
        tree.write(torch.from_numpy(row), torch.from_numpy(value))
    anew, held = kind(rows, CPU), np.flatnonzero(naive)
    anew.write(torch.arange(rows), torch.ones(()))  # of which nothing stays
    anew.rewrite(torch.from_numpy(held), torch.from_numpy(naive[held]))
    assert all((one == other).all() for one, other in zip(tree._flat, anew._flat, strict=True))
    assert tree.leaves(rows).tolist() == naive.tolist()
    assert tree.read(torch.arange(rows)).tolist() == naive.tolist()
    if not naive.sum():
        return
    total = float(naive.sum())  # of whole numbers: exact
    edges = [0.0, 1 - 2**-53, *(np.cumsum(naive)[:-1] / total)[:5]]
    share = torch.tensor([*shares, *(edge for edge in edges if edge < 1)], dtype=torch.float64)
    found = tree.find(share)
    assert (naive[found.numpy()] > 0).all()
    running = np.cumsum(naive)
    nearest = np.searchsorted(running, share.numpy() * total, side="right").clip(max=rows - 1)
    for at, row, wanted in zip(share.tolist(), found.tolist(), nearest.tolist(), strict=True):
        on_edge = np.abs(running - at * total).min() < 1e-9  # a rounding may decide
        assert row == wanted or on_edge


@given(
    rows=st.integers(1, 200),
    ranges=st.lists(
        st.tuples(st.integers(0, 199), st.integers(1, 70), st.floats(0, 9)), min_size=1, max_size=9
    ),
)
@pytest.mark.parametrize("kind", [SumTree, OnTensors])
def test_a_range_is_filled_as_its_rows_are_written(kind, rows, ranges):
    filled, written = kind(rows, CPU), kind(rows, CPU)
    for first, length, value in ranges:
        start, priority = first % rows, torch.tensor(value)
        stop = min(start + length, rows)
        filled.fill(start, stop, priority)
        written.write(torch.arange(start, stop), priority)
    for mine, theirs in zip(filled._flat, written._flat, strict=True):
        assert np.allclose(mine, theirs, rtol=1e-15, atol=0)


def test_sums_do_not_drift():
    tree, draw = SumTree(1000, CPU), torch.Generator().manual_seed(0)
    for _ in range(2000):
        row = torch.randint(1000, (32,), generator=draw)
        tree.write(row, torch.rand(32, generator=draw).pow(8) * 1e6)
    leaves = tree.leaves(1000).double()
    fresh = SumTree(1000, CPU)
    fresh.write(torch.arange(1000), leaves)
    for mine, theirs in zip(tree._levels, fresh._levels, strict=True):
        assert np.array_equal(mine, theirs)


def chi_square(drawn, probability):
    """Returns how many standard deviations the statistic lies from its mean."""
    expected = probability * drawn.sum()
    possible = expected > 0
    assert drawn[~possible].sum() == 0
    statistic = ((drawn - expected)[possible] ** 2 / expected[possible]).sum().item()
    degrees = int(possible.sum()) - 1
    return abs(statistic - degrees) / (2 * degrees) ** 0.5


def test_a_million_draws_have_the_probabilities_that_the_priorities_say():
    exponent, floor = 0.7, 1e-2
    chosen = sampler(120, exponent=exponent, floor=floor)
    replay = ring(chosen)
    error = torch.rand(120, generator=torch.Generator().manual_seed(1)) * 3
    allowed = []
    for step in Naive(3, 2, 200, 5).steps:  # five times around the ring
        replay.add(step, step.reward)
        if len(replay) and replay.time % 7 == 0:
            row, _ = chosen.draw(16)
            chosen.update(row, error[row] * 2)
    for time in range(replay.time - replay.rows + 1, replay.time - 2):
        allowed += [time % 40 * 3 + lane for lane in range(3) if not replay._final[time % 40, lane]]
    assert len(allowed) == len(replay)
    chosen.update(torch.tensor(allowed), error[allowed])
    probability = torch.zeros(120, dtype=torch.float64)
    probability[allowed] = (error[allowed].double() + floor) ** exponent
    probability /= probability.sum()
    drawn = torch.zeros(120)
    for _ in range(100):
        drawn += torch.bincount(chosen.draw(10_000)[0], minlength=120)
    assert drawn.sum() == 1_000_000
    assert chi_square(drawn, probability) < 5
    uniform = torch.where(probability > 0, 1 / len(allowed), 0.0)
    assert chi_square(drawn, uniform) > 1000  # the test can tell


def test_exponent_zero_is_uniform_with_weights_of_one():
    chosen = sampler(50, exponent=0.0)
    chosen.allow(np.arange(40))
    chosen.update(torch.arange(40), torch.arange(40.0))
    row, weight = chosen.draw(100_000)
    assert (weight == 1).all()
    assert chi_square(torch.bincount(row, minlength=50).float(), torch.tensor([1 / 40] * 40 + [0.0] * 10)) < 5


def test_importance_weights_are_those_of_the_paper_and_annealed():
    chosen = sampler(20, exponent=0.5, importance=Linear(0.4, 1.0, 100), floor=1e-6)
    chosen.allow(np.arange(20))
    error = torch.arange(20.0).cos().abs() * 4
    chosen.update(torch.arange(20), error)
    probability = (error + 1e-6) ** 0.5
    probability /= probability.sum()
    for env_steps, importance in ((0, 0.4), (50, 0.7), (1000, 1.0)):
        chosen.anneal(env_steps)
        row, weight = chosen.draw(8)
        expected = (20 * probability[row]) ** -importance
        torch.testing.assert_close(weight, expected / expected.max())


def test_a_new_row_has_the_highest_priority_so_far():
    chosen = sampler(10, floor=0.5)
    chosen.allow(np.arange(4))
    assert chosen.state_dict()["priority"].tolist() == [1.0] * 4 + [0.0] * 6
    chosen.update(torch.tensor([1, 2, 1]), torch.tensor([2.5, 0.0, 2.5]))
    chosen.allow(np.array([4, 5]))
    chosen.update(torch.tensor([1]), torch.tensor([0.0]))
    chosen.allow(np.array([6]))
    chosen.forbid(np.array([0, 1]))
    assert chosen.state_dict()["priority"].tolist() == [0, 0, 0.5, 1, 3, 3, 3, 0, 0, 0]
    assert len(chosen) == 5


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_error_that_is_no_number_leaves_the_draws_within_the_rows(wrong):
    chosen = sampler(30)
    chosen.allow(np.arange(10))
    chosen.update(torch.tensor([3, 4]), torch.tensor([wrong, 1.0]))
    row, weight = chosen.draw(1000)
    assert row.max() < 10
    assert weight.isfinite().all()


@given(
    environments=st.integers(1, 4),
    stack=st.integers(1, 3),
    n_step=st.integers(1, 4),
    spare=st.integers(1, 20),
    length=st.integers(8, 80),
    seed=st.integers(0, 2**31),
)
def test_only_whole_rows_are_drawn_whatever_their_errors(environments, stack, n_step, spare, length, seed):
    rows = stack + n_step + spare
    chosen = sampler(rows * environments, seed=seed)
    replay = ring(chosen, environments=environments, rows=rows, n_step=n_step, stack=stack)
    for step in Naive(environments, stack, length, seed).steps:
        replay.add(step, step.reward)
        if not len(replay):
            continue
        batch = replay.sample(8)
        time, lane = batch.row // environments, batch.row % environments
        assert not replay._final[time, lane].any()
        age = (replay.time - 1 - time) % rows  # ticks since the row was written
        assert (age >= n_step).all()
        assert (age <= rows - stack).all()
        chosen.update(batch.row, batch.reward.abs() * 100)
    priority = chosen.state_dict()["priority"]
    assert int((priority > 0).sum()) == len(replay)


def test_priorities_come_back_with_the_rows():
    chosen, again = sampler(120, seed=4), sampler(120, seed=5)
    replay, copy = ring(chosen), ring(again)
    naive = Naive(3, 2, 130, 9).steps
    for step in naive[:100]:
        replay.add(step, step.reward)
        if len(replay):
            row, _ = chosen.draw(4)
            chosen.update(row, row.float() / 9)
    again.load_state_dict(chosen.state_dict())
    copy.restore(60, replay.window(60, 100))
    copy.reopen()
    again.generator.set_state(chosen.generator.get_state())
    assert torch.equal(chosen.state_dict()["priority"], again.state_dict()["priority"])
    for step in naive[100:]:
        for one in (replay, copy):
            one.add(step, step.reward)
        (mine, weight), (theirs, other) = chosen.draw(32), again.draw(32)
        assert torch.equal(mine, theirs)
        assert torch.equal(weight, other)
        for one in (chosen, again):
            one.update(mine, mine.float() / 7)

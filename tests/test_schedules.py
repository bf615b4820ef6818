"""Schedules against plain loops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlagents.schedules import Cosine, Every, Geometric, Linear


@given(period=st.integers(1, 50), start=st.integers(0, 60), jumps=st.lists(st.integers(0, 40), max_size=40))
def test_every_counts_what_a_loop_over_single_steps_counts(period, start, jumps):
    every, before = Every(period, start), 0
    for jump in jumps:
        after = before + jump
        expected = sum(step > start and (step - start) % period == 0 for step in range(before + 1, after + 1))
        assert every.due(before, after) == expected
        before = after


def test_linear_reaches_its_end_and_stays():
    epsilon = Linear(1.0, 0.1, 90)
    assert [epsilon(0), epsilon(45), epsilon(90), epsilon(10**6)] == [1.0, 0.55, 0.1, 0.1]
    assert Linear(1.0, 0.0, 0)(0) == 0.0


def test_cosine_falls_slowly_then_fast_then_slowly():
    rate = Cosine(1.0, 0.2, 100)
    assert [rate(at) for at in (0, 50, 100, 10**6)] == [1.0, pytest.approx(0.6), 0.2, 0.2]
    assert rate(25) == pytest.approx(0.6 + 0.4 * 0.5**0.5)


def test_geometric_falls_by_equal_ratios():
    n = Geometric(16, 1, 400)
    assert [n(at) for at in (0, 100, 200, 300, 400, 10**6)] == pytest.approx([16, 8, 4, 2, 1, 1])
    assert Geometric(3, 3, 0)(0) == 3

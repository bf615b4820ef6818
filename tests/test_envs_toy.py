"""Gridworld and corridor: exact values, feasible moves, time limits, pictures."""

import numpy as np
import pytest

from playing import make, play
from rlagents_envs.model import ModelEnvironments

NO = np.nan


def toy(**table: object) -> ModelEnvironments:
    made = make(**table)
    assert isinstance(made, ModelEnvironments)
    return made


def test_gridworld_has_the_textbooks_values() -> None:
    grid = toy(kind="gridworld")
    assert grid.action_names == ("up", "right", "down", "left")
    expected = [
        [NO, 0.81, 0.81, NO],
        [NO, 0.9, 0.9, 0.729],
        [NO, NO, 1, 0.81],
        [0.729, 0.9, NO, NO],
        [0.81, 1, NO, 0.81],
        [NO, NO, NO, NO],
    ]
    np.testing.assert_allclose(grid.model.optimal_q(0.9), expected, rtol=1e-12)


@pytest.mark.parametrize("discount", [0.5, 0.9, 1.0])
def test_corridor_has_its_closed_form(discount: float) -> None:
    q = toy(kind="corridor", length=6).model.optimal_q(discount)
    right = discount ** np.arange(5, -1, -1.0)
    left = discount * right[[0, 0, 1, 2, 3, 4]]
    np.testing.assert_allclose(q, np.stack([left, right], 1), rtol=1e-12)


def test_playing_agrees_with_the_model() -> None:
    """Every move that environments make, and every reward they pay, is the model's."""
    grid = toy(kind="gridworld", rows=3, columns=4, count=20)
    obs, mask = grid.reset(0)
    ended = np.zeros(20, bool)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(500):
        assert mask is not None
        actions = np.array([rng.choice(np.flatnonzero(row)) for row in mask])
        grid.send(actions)
        outcome = grid.recv()
        for n in np.flatnonzero(~ended):
            row, column = divmod(int(obs[n]), 4)
            row, column = [(row - 1, column), (row, column + 1), (row + 1, column), (row, column - 1)][
                actions[n]
            ]
            assert outcome.obs[n] == row * 4 + column
            assert outcome.reward[n] == outcome.terminated[n] == ((row, column) == (2, 3))
            seen.add((int(obs[n]), int(actions[n])))
        obs, mask, ended = outcome.obs, outcome.mask, outcome.ended
    assert len(seen) == np.isfinite(grid.model.optimal_q(0.9)).sum()


def test_an_unfeasible_move_stays_and_the_goal_leaves_a_choice() -> None:
    grid = toy(kind="gridworld", count=1)
    _, mask = grid.reset(0)
    assert mask is not None
    assert mask.tolist() == [[False, True, True, False]]
    for action, cell in ((0, 0), (3, 0), (1, 1), (1, 2), (1, 2), (2, 5)):
        grid.send(np.array([action]))
        outcome = grid.recv()
        assert outcome.obs == [cell]
    assert outcome.terminated.all()
    assert outcome.mask is not None
    assert outcome.mask.all()


def test_a_time_limit_truncates_and_the_goal_at_the_limit_terminates() -> None:
    corridor = toy(kind="corridor", length=3, time_limit=3, count=2)
    assert corridor.reset(0)[1] is None
    for _ in range(3):
        corridor.send(np.array([0, 1]))
        outcome = corridor.recv()
    assert outcome.terminated.tolist() == [False, True]
    assert outcome.truncated.tolist() == [True, False]
    assert outcome.reward.tolist() == [0, 1]
    corridor.send(np.array([1, 1]))
    assert corridor.recv().obs.tolist() == [0, 0]


def test_pictures_show_the_agent_where_it_is() -> None:
    grid = toy(kind="gridworld", count=2)
    play(grid, 0)
    start = grid.picture()
    grid.send(np.array([1, 2]))
    grid.recv()
    moved = grid.picture()
    assert start.shape == (200, 300, 3)
    assert start.dtype == np.uint8
    cells = [start[:100, :100], start[:100, 100:200]]
    after = [moved[:100, :100], moved[:100, 100:200]]
    np.testing.assert_array_equal(after[0], cells[1])  # an empty cell stays behind
    np.testing.assert_array_equal(after[1], cells[0])
    assert (cells[0] != cells[1]).any()
    assert toy(kind="corridor", length=40).picture().shape == (24, 960, 3)

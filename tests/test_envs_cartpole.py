"""CartPole: the native vector environment is Gymnasium's CartPole, whole or in cells."""

import gymnasium
import numpy as np
import pytest

from playing import make, play
from rlagents_envs.vector import Leaf


def test_it_moves_as_gymnasiums_single_environment() -> None:
    envs = make(kind="cartpole", count=3)
    obs, _ = envs.reset(5)
    single = gymnasium.make("CartPole-v1")
    single.reset()
    assert isinstance(obs, np.ndarray)
    single.unwrapped.state = obs[1].astype(np.float64)  # type: ignore[attr-defined]
    for step in range(200):
        envs.send(np.array([0, step // 2 % 2, 1]))
        outcome = envs.recv()
        expected, reward, terminated, *_ = single.step(step // 2 % 2)
        np.testing.assert_allclose(outcome.obs[1], expected, rtol=1e-4, atol=1e-4)
        assert outcome.reward[1] == reward
        assert outcome.terminated[1] == terminated
        if terminated:
            break
    assert terminated


def test_a_fall_at_the_time_limit_is_a_termination() -> None:
    free = play(make(kind="cartpole", count=1), 60)
    length = 1 + next(t for t, outcome in enumerate(free.outcomes) if outcome.ended[0])
    at_limit = play(make(kind="cartpole", count=1, time_limit=length), 60).outcomes[length - 1]
    assert (at_limit.terminated[0], at_limit.truncated[0], at_limit.ended[0]) == (True, False, True)
    cut = play(make(kind="cartpole", count=1, time_limit=length - 1), 60).outcomes[length - 2]
    assert (cut.terminated[0], cut.truncated[0], cut.ended[0]) == (False, True, True)


def test_cells_are_equal_and_beyond_the_range_is_the_outermost() -> None:
    bins = (3, 4, 5, 6)
    cells = make(kind="cartpole", bins=bins, count=64)
    numbers = make(kind="cartpole", count=64)
    assert cells.layout == Leaf("index", (), "int64", size=360)
    half = (2.4, 3.0, 0.2095, 3.5)
    seen = set()
    for cell, number in zip(play(cells, 80).outcomes, play(numbers, 80).outcomes, strict=True):
        places = [
            np.clip(np.floor((number.obs[:, i] + half[i]) / (2 * half[i]) * n), 0, n - 1).astype(int)
            for i, n in enumerate(bins)
        ]
        np.testing.assert_array_equal(cell.obs, ((places[0] * 4 + places[1]) * 5 + places[2]) * 6 + places[3])
        seen.update(cell.obs.tolist())
    assert len(seen) > 30


def test_cells_need_all_four_numbers() -> None:
    with pytest.raises(ValueError, match=r"env.bins must be 4 numbers of cells .* got \[3, 3\]"):
        make(kind="cartpole", bins=(3, 3))


def test_pictures_show_cart_0() -> None:
    envs = make(pictures=True, kind="cartpole", count=3)
    with pytest.raises(RuntimeError, match="picture needs"):
        envs.picture()
    obs, _ = envs.reset(0)
    single = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    single.reset()
    single.unwrapped.state = obs[0]  # type: ignore[attr-defined, index]
    picture = envs.picture()
    assert picture.shape == (400, 600, 3)
    assert (np.abs(picture.astype(int) - np.asarray(single.render()).astype(int)) > 60).mean() < 0.001
    for _ in range(25):
        envs.send(np.array([1, 1, 1]))
        envs.recv()
    assert (picture != envs.picture()).any()
    with pytest.raises(RuntimeError, match="picture needs"):
        make(kind="cartpole").picture()

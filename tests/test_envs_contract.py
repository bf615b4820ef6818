"""Every adapter keeps the one contract that the loop relies on."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

import rlagents_envs
from playing import Game, actions_of, assert_fits, assert_same, assert_uploaded, leaves, make, play
from rlagents_envs import Environments

TABLES: dict[str, dict[str, Any]] = {
    "gridworld": {"kind": "gridworld", "count": 5, "time_limit": 9},
    "corridor": {"kind": "corridor", "count": 5, "length": 3, "time_limit": 7},
    "corridor-onehot": {"kind": "corridor", "count": 5, "observation": "onehot"},
    "cartpole": {"kind": "cartpole", "count": 5, "time_limit": 20},
    "cartpole-bins": {"kind": "cartpole", "count": 5, "bins": (3, 4, 5, 6)},
    "pong": {"kind": "atari", "game": "pong", "count": 2, "max_frames": 200},
    "breakout-lives": {
        "kind": "atari",
        "game": "breakout",
        "count": 3,
        "terminal_on_life_loss": True,
        "sticky": 0.25,
        "height": 30,
        "width": 32,
        "frame_stack": 2,
    },
    "frozen-lake": {"kind": "gymnasium", "id": "FrozenLake-v1", "count": 5},
    "lake-model": {"kind": "gymnasium", "id": "FrozenLake-v1", "count": 5, "backend": "model"},
    "taxi-model": {"kind": "gymnasium", "id": "Taxi-v4", "count": 5, "backend": "model"},
    "mountain-car-bins": {"kind": "gymnasium", "id": "MountainCar-v0", "count": 5, "bins": (5, 6)},
    "blackjack": {"kind": "gymnasium", "id": "Blackjack-v1", "count": 5},
    "minatar": {"kind": "gymnasium", "id": "MinAtar/Breakout-v1", "count": 5},
    "taxi": {"kind": "gymnasium", "id": "Taxi-v4", "count": 5},
    "stacked": {"kind": "gymnasium", "id": "example_envs:Counter-v0", "count": 5, "frame_stack": 3},
    "everything": {"kind": "gymnasium", "id": "example_envs:Everything", "count": 3, "frame_stack": 2},
    "async": {"kind": "gymnasium", "id": "example_envs:Masked", "count": 2, "backend": "async"},
}
NEVER_ENDS = ("everything",)


@pytest.fixture(scope="module", params=TABLES)
def envs(request: pytest.FixtureRequest) -> Any:
    made = make(**TABLES[request.param])
    yield request.param, made
    made.close()


@pytest.fixture(scope="module")
def game(envs: tuple[str, Environments]) -> Game:
    return play(envs[1], 300)


def test_shapes_and_dtypes_are_those_of_the_layout(envs: tuple[str, Environments], game: Game) -> None:
    _, made = envs
    assert made.replayable
    assert_fits(made, game.obs)
    for outcome in game.outcomes:
        assert_fits(made, outcome.obs)
        assert outcome.reward.dtype == np.float32
        for flags in (outcome.terminated, outcome.truncated, outcome.ended):
            assert flags.dtype == np.bool_
            assert flags.shape == (made.count,)
        if outcome.mask is not None:
            assert outcome.mask.dtype == np.bool_
            assert outcome.mask.shape == (made.count, made.actions)
            assert outcome.mask.any(1).all()
        assert not (outcome.terminated & outcome.truncated).any()


def test_the_step_after_an_end_is_a_reset(envs: tuple[str, Environments], game: Game) -> None:
    name, _ = envs
    ends = 0
    for outcome, after in zip(game.outcomes[:-1], game.outcomes[1:], strict=True):
        over = outcome.ended
        ends += over.sum()
        assert (outcome.terminated | outcome.truncated)[over].all()
        assert (after.reward[over] == 0).all()
        assert not (after.terminated | after.truncated | after.ended)[over].any()
    assert (ends == 0) == (name in NEVER_ENDS)


def test_a_reset_observation_follows_an_end(envs: tuple[str, Environments], game: Game) -> None:
    """Known for each kind: where an episode begins."""
    name, _ = envs
    for outcome, after in zip(game.outcomes[:-1], game.outcomes[1:], strict=True):
        for n in np.flatnonzero(outcome.ended):
            begun = leaves(after.obs).get("", np.zeros(0))[n : n + 1]
            match name:
                case "gridworld" | "corridor" | "frozen-lake" | "lake-model":
                    assert begun == 0
                case "cartpole":
                    assert (np.abs(begun) <= 0.05).all()
                case "pong" | "breakout-lives":
                    assert not begun[0, :-1].any()
                    assert begun[0, -1].any()
                case "stacked":
                    assert not begun[0, :4].any()
                    assert begun[0, 5] == 1
                case "async":
                    assert begun[0, 1] == 1
                case _:
                    pass


def test_what_is_uploaded_frame_by_frame_is_what_arrived(envs: tuple[str, Environments], game: Game) -> None:
    assert_uploaded(envs[1], game, torch.device("cpu"))


def test_the_same_seed_and_actions_bring_the_same_game_in_a_fresh_object(
    envs: tuple[str, Environments], game: Game
) -> None:
    name, _ = envs
    fresh = make(**TABLES[name])
    assert_same(game, play(fresh, 300))
    fresh.close()


def test_a_reset_in_mid_game_starts_from_the_seed(envs: tuple[str, Environments], game: Game) -> None:
    _, made = envs
    play(made, 3, seed=99)
    made.send(np.zeros(made.count, np.int64))  # never received: the reset has to wait for it
    again = play(made, 40)
    assert_same(Game(game.obs, game.mask, game.outcomes[:40]), again)


def test_seeds_of_any_size_are_welcome_and_matter(envs: tuple[str, Environments]) -> None:
    name, made = envs
    games = [play(made, 60, seed=seed) for seed in (2**31 - 1, 2**40 + 5)]
    if name not in ("gridworld", "corridor", "corridor-onehot"):
        with pytest.raises(AssertionError):
            assert_same(*games)


def test_arrays_belong_to_the_caller(envs: tuple[str, Environments]) -> None:
    """Nothing handed out is written later, and writing into it changes nothing."""
    _, made = envs
    kept = play(made, 30)
    copied = copy.deepcopy(kept)
    play(made, 30, seed=8)
    assert_same(kept, copied)
    obs, _ = made.reset(7)
    for step, actions in enumerate(actions_of(made, 30)):
        made.send(actions)
        actions[:] = 0
        for array in leaves(obs).values():
            array[:] = 1
        outcome = made.recv()
        for name, array in leaves(outcome.obs).items():
            np.testing.assert_array_equal(array, leaves(kept.outcomes[step].obs)[name])
        np.testing.assert_array_equal(outcome.ended, kept.outcomes[step].ended)
        obs = outcome.obs
        outcome.ended[:] = True
        outcome.terminated[:] = True


def test_the_order_of_calls_and_the_actions_are_checked(envs: tuple[str, Environments]) -> None:
    _, made = envs
    made.reset(0)
    with pytest.raises(RuntimeError, match="recv needs a send first"):
        made.recv()
    for wrong in (made.actions, -1):
        with pytest.raises(ValueError, match=rf"actions must lie in 0 .. {made.actions - 1}"):
            made.send(np.full(made.count, wrong))
    with pytest.raises(ValueError, match=f"actions must be {made.count} integers"):
        made.send(np.zeros(made.count + 1, np.int64))
    with pytest.raises(ValueError, match="integers, got float64"):
        made.send(np.zeros(made.count))  # type: ignore[arg-type]
    made.send(np.zeros(made.count, np.int64))
    with pytest.raises(RuntimeError, match="send must be followed by recv"):
        made.send(np.zeros(made.count, np.int64))
    made.recv()


@pytest.mark.parametrize("name", TABLES)
def test_closing_twice_and_in_mid_step_is_fine(name: str) -> None:
    made = make(**TABLES[name])
    with pytest.raises(RuntimeError, match="send needs a reset first"):
        made.send(np.zeros(made.count, np.int64))
    made.reset(0)
    made.send(np.zeros(made.count, np.int64))
    made.close()
    made.close()
    with pytest.raises(RuntimeError, match="not closed"):
        made.send(np.zeros(made.count, np.int64))
    with pytest.raises(RuntimeError, match="not closed"):
        made.reset(0)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("gridworld", "cartpole", "pong", "frozen-lake"):
        play(make(**TABLES[name]), 3)
    play(make(kind="gymnasium", id="ALE/Pong-v5", count=1), 3)
    assert capfd.readouterr() == ("", "")


def test_count_overrides_the_table() -> None:
    config = rlagents_envs.config.Gridworld(count=4)
    assert rlagents_envs.make(config, count=2).reset(0)[0].shape == (2,)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="count must be a positive number of environments, got 0"):
        rlagents_envs.make(config, count=0)


def test_describe_names_every_kind() -> None:
    lines = dict(rlagents_envs.describe())
    assert set(lines) >= {"gridworld", "corridor", "cartpole", "atari", "gymnasium"}
    assert all(lines.values())

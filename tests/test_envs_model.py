"""Environments that step by their model, against the environments that the model was read from."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from playing import assert_same, make, play
from rlagents_envs import model_of
from rlagents_envs.config import CartPole, Gymnasium
from rlagents_envs.model import ModelEnvironments


def pair(**table: Any) -> tuple[Any, Any]:
    """The same environments, stepped by Gymnasium and by the model."""
    return tuple(make(kind="gymnasium", backend=backend, **table) for backend in ("sync", "model"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "table",
    [
        {"id": "FrozenLake-v1", "kwargs": {"is_slippery": False}},
        {"id": "FrozenLake-v1", "kwargs": {"is_slippery": False, "max_episode_steps": 5}},
        {"id": "CliffWalking-v1", "kwargs": {"max_episode_steps": 50}},
    ],
)
def test_without_chance_games_are_gymnasiums(table: dict[str, Any]) -> None:
    games = [play(envs, 400) for envs in pair(**table, count=5)]
    assert_same(*games)
    assert any(outcome.ended.any() for outcome in games[0].outcomes)


def test_chance_is_as_likely_as_the_transitions_say() -> None:
    envs = make(kind="gymnasium", id="FrozenLake-v1", backend="model", count=2000)
    seen: dict[tuple[int, int], dict[tuple[int, float, bool], int]] = {}
    obs, _ = envs.reset(3)
    rng, ended = np.random.default_rng(0), np.zeros(2000, np.bool_)
    for _ in range(40):
        actions = rng.integers(4, size=2000)
        envs.send(actions)
        outcome = envs.recv()
        for n in np.flatnonzero(~ended):
            happened = (int(outcome.obs[n]), float(outcome.reward[n]), bool(outcome.terminated[n]))  # type: ignore[index]
            counts = seen.setdefault((int(obs[n]), int(actions[n])), {})  # type: ignore[index]
            counts[happened] = counts.get(happened, 0) + 1
        assert not outcome.obs[ended].any()  # type: ignore[index]
        obs, ended = outcome.obs, outcome.ended
    transitions: Any = gymnasium.make("FrozenLake-v1").unwrapped.P  # type: ignore[attr-defined]
    assert len(seen) == 11 * 4
    for (state, action), counts in seen.items():
        likely: dict[tuple[int, float, bool], float] = {}
        for probability, successor, reward, ends in transitions[state][action]:
            key = (int(successor), float(reward), bool(ends))
            likely[key] = likely.get(key, 0) + probability
        assert counts.keys() <= likely.keys()
        total = sum(counts.values())
        for key, probability in likely.items():
            spread = np.sqrt(probability * (1 - probability) / total)
            assert abs(counts.get(key, 0) / total - probability) < 4.5 * spread + 1e-9


def test_taxis_start_anywhere_and_have_gymnasiums_masks() -> None:
    envs = make(kind="gymnasium", id="Taxi-v4", backend="model", count=6000)
    taxi: Any = gymnasium.make("Taxi-v4").unwrapped
    obs, mask = envs.reset(0)
    counts = np.bincount(obs, minlength=500)  # type: ignore[arg-type]
    np.testing.assert_array_equal(counts > 0, taxi.initial_state_distrib > 0)
    assert counts.max() < 60  # 20 on the mean
    assert mask is not None
    for state, legal in zip(obs[:300], mask[:300], strict=True):  # type: ignore[index]
        np.testing.assert_array_equal(legal, taxi.action_mask(int(state)))
    free = make(kind="gymnasium", id="Taxi-v4", masks=False, backend="model", count=3)
    assert free.reset(0)[1] is None
    assert make(kind="gymnasium", id="Taxi-v4", masks=False, count=3).reset(0)[1] is None


def test_pictures_are_gymnasiums() -> None:
    sync, model = (
        make(True, kind="gymnasium", id="FrozenLake-v1", kwargs={"is_slippery": False}, backend=b, count=1)
        for b in ("sync", "model")
    )
    sync.reset(0)
    model.reset(0)
    before = model.picture()
    np.testing.assert_array_equal(before, sync.picture())
    model.send(np.array([2]))
    model.recv()
    assert model.picture().shape == before.shape
    assert (model.picture() != before).any()
    blind = make(kind="gymnasium", id="FrozenLake-v1", backend="model", count=1)
    with pytest.raises(RuntimeError, match="pictures=True"):
        blind.picture()


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"id": "Blackjack-v1"}, "Blackjack-v1 has no model to use: it must have numbered states"),
        ({"id": "Taxi-v4", "kwargs": {"fickle_passenger": True}}, "described by its transitions alone"),
        ({"id": "Taxi-v4", "wrappers": ["example_envs:doubled"]}, "wrappers, frame_stack and bins must be"),
        ({"id": "FrozenLak-v1"}, "env.id must be a registered environment"),
    ],
)
def test_what_has_no_model_is_refused_in_one_line(table: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        make(kind="gymnasium", backend="model", **table)
    assert "\n" not in str(caught.value)


def test_the_model_of_every_kind_is_its_own() -> None:
    grid = make(kind="gridworld")
    assert isinstance(grid, ModelEnvironments)
    assert model_of(Gymnasium(id="FrozenLake-v1")).shape == (4, 4)
    assert model_of(Gymnasium(id="CliffWalking-v1")).shape == (4, 12)
    assert model_of(Gymnasium(id="Taxi-v4")).shape is None
    assert model_of(Gymnasium(id="Taxi-v4")).time_limit == 200
    with pytest.raises(ValueError, match=r"env\.kind must be one whose model is known, got cartpole"):
        model_of(CartPole(count=1))

"""What tests of environments share: make from a table, play random actions, keep what came."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

import rlagents_envs
from rlagents.upload import Upload
from rlagents_envs import EnvConfig, Environments, Leaf, Outcome


class Game(NamedTuple):
    """A reset and the steps after it."""

    obs: Any
    mask: NDArray[np.bool_] | None
    outcomes: list[Outcome]


def make(pictures: bool = False, **table: Any) -> Environments:
    return rlagents_envs.make(TypeAdapter(EnvConfig).validate_python(table), pictures=pictures)


def actions_of(envs: Environments, steps: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(envs.actions, size=(steps, envs.count))


def play(envs: Environments, steps: int, seed: int = 7) -> Game:
    obs, mask = envs.reset(seed)
    outcomes: list[Outcome] = []
    for actions in actions_of(envs, steps):
        envs.send(actions)
        outcomes.append(envs.recv())
    return Game(obs, mask, outcomes)


def leaves(obs: Any) -> dict[str, Any]:
    return obs if isinstance(obs, dict) else {"": obs}


def assert_same(one: Game, other: Game) -> None:
    """Every array of both games is equal."""
    for a, b in zip(
        [(one.obs, one.mask), *one.outcomes], [(other.obs, other.mask), *other.outcomes], strict=True
    ):
        for left, right in zip(a, b, strict=True):
            assert (left is None) == (right is None)
            for name, array in leaves(left).items():
                np.testing.assert_array_equal(array, leaves(right)[name])


def assert_uploaded(envs: Environments, game: Game, device: torch.device) -> None:
    """Each observation comes to a device as it is, and nothing is written into it later."""
    arrived = [game.obs, *(outcome.obs for outcome in game.outcomes)]
    all_ = np.ones(envs.count, np.bool_)
    opens = [all_, ~all_, *(outcome.ended for outcome in game.outcomes[:-1])]
    upload = Upload(envs.layout, device)
    sent = [upload(obs, first) for obs, first in zip(arrived, opens, strict=True)]
    for obs, uploaded in zip(arrived, sent, strict=True):
        for name, array in leaves(obs).items():
            np.testing.assert_array_equal(leaves(uploaded)[name].cpu(), array)


def assert_fits(envs: Environments, obs: Any) -> None:
    """Shapes and dtypes are those of the layout; an index is in range."""
    layout = leaves(envs.layout)
    assert layout.keys() == leaves(obs).keys()
    for name, leaf in layout.items():
        assert isinstance(leaf, Leaf)
        array = leaves(obs)[name]
        assert array.shape == (envs.count, *leaf.shape)
        assert array.dtype == leaf.dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable
        if leaf.kind == "index":
            assert array.min() >= 0
            assert array.max() < leaf.size


class Thing:
    """Something with a state."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state

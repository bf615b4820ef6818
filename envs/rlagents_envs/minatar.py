"""MinAtar's games (Young and Tian 2019), with what it takes to play one again and to show it."""

import importlib
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray


def register() -> None:
    """Makes the ids `MinAtar/…` known to Gymnasium; ImportError without the package."""
    if "MinAtar/Breakout-v1" not in gymnasium.registry:
        importlib.import_module("minatar.gym").register_envs()


def make(name: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Returns the game of an id, as `gymnasium.make` would, but mended."""
    return Mended(gymnasium.make(name, **kwargs))


class Mended(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A game that begins anew with a reset, and whose pictures are bytes.

    MinAtar keeps the last action across resets, and a sticky first action repeats it: the same seed and
    actions would not give the same game. Its pictures are floats from 0 to 1.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets, the last action too, to "do nothing"."""
        game: Any = self.env.unwrapped
        game.game.last_action = 0
        return self.env.reset(seed=seed, options=options)

    def render(self) -> NDArray[np.uint8]:
        """Returns the picture [10, 10, 3]."""
        return (255 * np.asarray(self.env.render(), np.float64)).astype(np.uint8)

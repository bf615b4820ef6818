"""The same experiment run through other libraries, for comparison; nothing else in the package needs them."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

OURS, SB3 = "rlagents", "SB3"  # what they are called in tables
SB3_PACKAGE = "stable-baselines3"
MISSING = f'{SB3_PACKAGE} is not installed; install it with: pip install "rlagents[peers]"'


class Store(NamedTuple):
    """A replay, ours or another's."""

    add: Callable[..., object]
    rows: Sequence[tuple[Any, ...]]  # what `add` takes, tick by tick
    sample: Callable[[int], object]
    nbytes: int  # when full


def installed() -> bool:
    """Returns whether the extra `peers` is there: Stable-Baselines3, and OpenCV for its Atari wrappers."""
    return all(find_spec(name) is not None for name in ("stable_baselines3", "cv2"))

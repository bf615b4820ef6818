"""The same experiment run through other libraries, for comparison; nothing else in the package needs them."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

OURS = "rlagents"  # what it is called in tables


class Peer(NamedTuple):
    """Another library."""

    name: str  # in tables
    package: str
    extra: str
    needs: tuple[str, ...]  # modules
    module: str  # ours, that runs it in a process of its own

    @property
    def installed(self) -> bool:
        """Whether all that it needs is there."""
        return all(find_spec(name) is not None for name in self.needs)

    @property
    def missing(self) -> str:
        """What to say where it is not."""
        return f'{self.package} is not installed; install it with: pip install "rlagents[{self.extra}]"'


# Atari wrappers need OpenCV in both.
SB3 = Peer("SB3", "stable-baselines3", "peers", ("stable_baselines3", "cv2"), "rlagents.peers.sb3")
TIANSHOU = Peer("Tianshou", "tianshou", "tianshou", ("tianshou", "cv2"), "rlagents.peers.tianshou")


class Store(NamedTuple):
    """A replay, ours or another's."""

    add: Callable[..., object]
    rows: Sequence[tuple[Any, ...]]  # what `add` takes, tick by tick
    sample: Callable[[int], object]
    nbytes: int  # when full

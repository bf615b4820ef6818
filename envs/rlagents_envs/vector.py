"""What every vector of environments looks like to the loop: described once, stepped by send and recv.

The one idea: an adapter hides what differs (dtypes, masks, seeds, lives, pending actions), so that the loop
never asks which kind it drives. Environments reset on the *next* step (Gymnasium's NEXT_STEP): the final
observation of an episode comes back as itself; the step after it ignores the action, pays 0 and returns the
reset observation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.generic]
Obs: TypeAlias = Array | dict[str, Array]
Bools: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Leaf:
    """One array of an observation, as it arrives for one environment.

    `shape` is that of a whole observation. Where `stack` (K) is above 1, its first axis is K newest-last
    frames of `shape[0] // K` each, joined: (4, 84, 84) for four gray frames, (12, 84, 84) for four RGB ones.
    Frames from before the episode's first are zero.
    """

    kind: Literal["index", "vector", "pixels"]
    shape: tuple[int, ...]  # () for an index; pixels are channels, height, width
    dtype: Literal["uint8", "float32", "int64"]
    stack: int = 1
    size: int = 0  # of an index: how many values it takes
    scale: float = 1.0  # multiply by this to feed a network: 1/255 for uint8 pixels

    @property
    def frame(self) -> tuple[int, ...]:
        """The shape of one frame; of what is no stack, its own."""
        return (self.shape[0] // self.stack, *self.shape[1:]) if self.shape else ()

    @property
    def newest(self) -> tuple[slice, ...]:
        """Where the newest frame lies in observations [N, *shape]."""
        return () if self.stack == 1 else (slice(None), slice(-self.frame[0], None))


Layout: TypeAlias = Leaf | dict[str, Leaf]


class Outcome(NamedTuple):
    """What one step of N environments returned. Arrays are the caller's own: never written again."""

    obs: Obs  # [N, *shape], each leaf in its layout's dtype
    reward: NDArray[np.float32]  # [N]
    terminated: Bools  # [N] the return ends here; a lost life may say so while the game goes on
    truncated: Bools  # [N] cut off: the return goes on, unseen
    ended: Bools  # [N] the environment resets on the next step
    mask: Bools | None  # [N, A] legal actions in `obs`; None where nobody gave one
    # [N] a simulator died: there was no step, `obs` is made up, and the environment resets on the next step.
    lost: Bools | None = None
    # What an environment reports about the episode that ended in this step, by name, for those that do.
    episode_metrics: Mapping[int, Mapping[str, float]] | None = None


class Environments(Protocol):
    """N environments that step together; what has a default here is for the kinds that can do more.

    Attributes:
        count: N.
        actions: A, the number of discrete actions.
        layout: what an observation is made of.
        replayable: whether a seed and the actions since bring the same observations back.
        action_names: A words, in the order of the actions; None where nobody named them.
        drivers: names of the scripted drivers that the environments bring along.
    """

    count: int
    actions: int
    layout: Layout
    replayable: bool
    action_names: tuple[str, ...] | None = None
    drivers: tuple[str, ...] = ()

    def reset(self, seed: int) -> tuple[Obs, Bools | None]:
        """Starts every environment anew from one seed; returns observations and legal actions."""
        ...

    def send(self, actions: NDArray[np.int64]) -> None:
        """Starts one step with actions [N]; work may go on in other threads or processes."""
        ...

    def recv(self) -> Outcome:
        """Waits for the step that `send` started."""
        ...

    def picture(self) -> NDArray[np.uint8]:
        """Environment 0 as the user knows it, RGB [H, W, 3]; only if made with `pictures=True`."""
        ...

    def close(self) -> None:
        """Frees threads, processes and windows; may be called twice."""
        ...

    def rest(self, over: Bools) -> None:
        """Lets environments [N] stand still until the next reset, where they can; nobody looks at them."""

    def scripted(self, driver: str) -> NDArray[np.int64]:
        """Returns the actions [N] that one of `drivers` would take now."""
        raise ValueError(f"driver must be one that the environments bring along, got {driver!r}")

    def summarise(self, reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Returns what is reported about episodes, at least one, in all: each number's mean."""
        return {name: float(np.mean([report[name] for report in reports])) for name in reports[0]}

    def take_crashes(self) -> list[RuntimeError]:
        """Returns what failed, and made all environments start anew, since this was last asked for."""
        return []


class Pending:
    """The actions between `send` and `recv`: checked on the way in, handed out once.

    Every adapter holds one, because a simulator's own answer to a wrong action or to a wrong order ranges
    from silence to a crash: ALE hangs on an action out of range and on a `recv` without a `send`.

    Args:
        count: N.
        actions: A.
    """

    def __init__(self, count: int, actions: int) -> None:
        self.count = count
        self.actions = actions
        self.waiting: NDArray[np.int64] | None = None
        self._state: Literal["new", "open", "closed"] = "new"

    def restart(self) -> None:
        """Forgets what was sent; from now on `put` is welcome. RuntimeError after `close`."""
        if self._state == "closed":
            raise RuntimeError("reset needs environments that are not closed; make new ones")
        self.waiting = None
        self._state = "open"

    def close(self) -> None:
        """Forgets what was sent and refuses more."""
        self.waiting = None
        self._state = "closed"

    def put(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns a copy of actions [N] as int64, each in 0 .. A - 1, and keeps it for `take`.

        Raises:
            RuntimeError: Before a reset, after closing, or if a step is under way already.
            ValueError: If the actions are not N integers in range.
        """
        if self._state != "open":
            raise RuntimeError("send needs a reset first, and environments that are not closed")
        if self.waiting is not None:
            raise RuntimeError("send must be followed by recv before the next send")
        array = np.asarray(actions)
        if array.shape != (self.count,) or array.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be {self.count} integers, got {array.dtype} of shape {array.shape}"
            )
        if array.min() < 0 or array.max() >= self.actions:
            raise ValueError(f"actions must lie in 0 .. {self.actions - 1}, got {array.tolist()}")
        self.waiting = np.array(array, dtype=np.int64)
        return self.waiting

    def take(self) -> NDArray[np.int64]:
        """Returns what `put` kept; raises RuntimeError if there is nothing."""
        if self.waiting is None:
            raise RuntimeError("recv needs a send first")
        actions, self.waiting = self.waiting, None
        return actions


def first_seed(seed: int, count: int) -> int:
    """Returns a seed that starts N consecutive non-negative 31-bit numbers: every simulator takes those.

    A negative seed would leave ALE unseeded without a word.
    """
    return int(seed) % (2**31 - count)

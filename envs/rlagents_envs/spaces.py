"""From a Gymnasium observation space to a `Layout`, and from its batches to arrays of that layout.

The one idea: a space is read once, at construction; after that an observation of N environments is converted
by one vectorised function per leaf, and every array that leaves here is new.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import getitem
from typing import Any, cast

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from rlagents_envs.vector import Array, Bools, Layout, Leaf, Obs

Convert = Callable[[Any], Array]


@dataclass(frozen=True)
class Entry:
    """One leaf: its name in the layout, the keys that lead to it in a batch, and its conversion."""

    name: str
    path: tuple[str | int, ...]
    leaf: Leaf
    convert: Convert


class Observer:
    """Turns batches of a space's observations into arrays of its layout, `stack` newest frames joined.

    Index leaves are never stacked. Frames from before an episode's first are zero (Gymnasium's own
    FrameStackObservation repeats the first one, which a replay of single frames could not rebuild).

    Args:
        space: Observation space of one environment.
        stack: K, 1 for none.
        bins: cells per number of a Box, which then is one index; empty for none.

    Raises:
        ValueError: If the space, or one in it, has no array of fixed size, or nothing in it can be stacked.
    """

    layout: Layout

    def __init__(self, space: Space[Any], stack: int = 1, bins: tuple[int, ...] = ()) -> None:
        entries = [Entry("", (), *_bounded_cells(space, bins))] if bins else list(_entries(space, ()))
        if stack > 1 and all(entry.leaf.kind == "index" for entry in entries):
            raise ValueError(f"env.frame_stack must be 1 where an observation is a number, got {stack}")
        self._stack = stack
        self._entries = [replace(entry, leaf=_stacked(entry.leaf, stack)) for entry in entries]
        self._frames: dict[str, Array] = {}
        alone = isinstance(space, spaces.Dict | spaces.Tuple)
        self.layout = {entry.name: entry.leaf for entry in self._entries} if alone else self._entries[0].leaf

    def __call__(self, batch: Any, fresh: Bools) -> Obs:
        """Returns new arrays; `fresh` [N] says whose observation opens an episode."""
        arrays = {entry.name: self._array(entry, batch, fresh) for entry in self._entries}
        return arrays if isinstance(self.layout, dict) else arrays[self._entries[0].name]

    def _array(self, entry: Entry, batch: Any, fresh: Bools) -> Array:
        frame = entry.convert(reduce(getitem, entry.path, batch))  # [N, *O]
        if entry.leaf.stack == 1:
            return frame
        old = self._frames.get(entry.name)
        if old is None:
            old = np.zeros((len(frame), *entry.leaf.shape), frame.dtype)
        frames = np.concatenate([old[:, frame.shape[1] :], frame], axis=1)  # [N, K * channels, ...]
        frames[fresh, : -frame.shape[1]] = 0
        self._frames[entry.name] = frames
        return frames.copy()


def _stacked(leaf: Leaf, stack: int) -> Leaf:
    if stack == 1 or leaf.kind == "index":
        return leaf
    return replace(leaf, shape=(stack * leaf.shape[0], *leaf.shape[1:]), stack=stack)


def _entries(space: Space[Any], path: tuple[str | int, ...]) -> Iterator[Entry]:
    if isinstance(space, spaces.Dict):
        for key, inside in cast("dict[str, Space[Any]]", cast("Any", space).spaces).items():
            yield from _entries(inside, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for position, inside in enumerate(cast("tuple[Space[Any], ...]", cast("Any", space).spaces)):
            yield from _entries(inside, (*path, position))
    else:
        yield Entry(".".join(map(str, path)), path, *_leaf(space))


def _leaf(space: Space[Any]) -> tuple[Leaf, Convert]:
    match space:
        case spaces.Discrete():
            start = int(space.start)
            return Leaf(
                "index", (), "int64", size=int(space.n)
            ), lambda batch: np.array(batch, dtype=np.int64) - start
        case spaces.Box():
            return _box(space)
        case spaces.MultiBinary():
            return _vector(int(np.prod(space.shape)))
        case spaces.MultiDiscrete():
            return _one_hot(space)
        case _:
            raise ValueError(
                "observation space must be made of Box, Discrete, MultiBinary, MultiDiscrete, Dict and "
                f"Tuple, got {space}; convert it with a wrapper (env.wrappers)"
            )


def _box(box: spaces.Box) -> tuple[Leaf, Convert]:
    byte = str(box.dtype) in ("uint8", "bool")
    axes = len(box.shape)
    dtype = "uint8" if byte and axes else "float32"
    scale = 1 / max(1.0, float(np.max(box.high, initial=1))) if dtype == "uint8" else 1.0
    if byte and axes > 3:
        raise ValueError(
            f"observation space must have images of 2 or 3 axes, got {box.shape}; "
            "set env.frame_stack in place of a wrapper that stacks"
        )
    if axes == 3 and not _channels_first(box.shape):
        rows, columns, channels = box.shape
        leaf = Leaf("pixels", (channels, rows, columns), dtype, scale=scale)
        return leaf, lambda batch: np.array(np.moveaxis(batch, -1, 1), dtype=dtype, order="C")
    if axes == 3 or (byte and axes == 2):
        shape = (*(1,) * (3 - axes), *box.shape)
        leaf = Leaf("pixels", shape, dtype, scale=scale)
        return leaf, lambda batch: np.array(batch, dtype=dtype, order="C").reshape(-1, *shape)
    return _vector(int(np.prod(box.shape)), dtype, scale)


def _bounded_cells(space: Space[Any], bins: tuple[int, ...]) -> tuple[Leaf, Convert]:
    """Cuts each number of a Box into equal cells between its bounds."""
    if not isinstance(space, spaces.Box) or space.shape != (len(bins),):
        raise ValueError(
            f"env.bins must be one number of cells for each number of a Box, got {bins} for {space}"
        )
    low, high = cast("NDArray[np.float64]", space.low), cast("NDArray[np.float64]", space.high)
    if not (np.isfinite(low) & np.isfinite(high)).all():
        raise ValueError(f"env.bins need finite bounds to cut between, got {space}")
    return cells(low, high, bins)


def cells(low: NDArray[Any], high: NDArray[Any], bins: tuple[int, ...]) -> tuple[Leaf, Convert]:
    """Cuts D numbers between bounds [D] into equal cells; they are counted row by row."""
    cuts: list[NDArray[np.float64]] = [
        np.linspace(low[i], high[i], count + 1)[1:-1] for i, count in enumerate(bins)
    ]

    def convert(batch: NDArray[np.float64]) -> Array:
        places = tuple(np.digitize(batch[:, i], inner) for i, inner in enumerate(cuts))  # D x [N]
        return np.asarray(np.ravel_multi_index(places, bins), np.int64)

    return Leaf("index", (), "int64", size=int(np.prod(bins))), convert


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an image is CHW: its first axis is the odd one out, and the last does not look like colours."""
    first, middle, last = shape
    return last > 4 and (first <= 4 or first < min(middle, last) or (middle == last != first))


def _vector(size: int, dtype: Any = "float32", scale: float = 1.0) -> tuple[Leaf, Convert]:
    leaf = Leaf("vector", (size,), dtype, scale=scale)
    return leaf, lambda batch: np.array(batch, dtype=dtype, order="C").reshape(len(batch), size)


def _one_hot(space: spaces.MultiDiscrete) -> tuple[Leaf, Convert]:
    sizes = cast("Array", space.nvec).ravel().astype(np.int64)
    starts = np.broadcast_to(cast("Array", space.start), space.nvec.shape).ravel().astype(np.int64)
    places = np.cumsum(sizes) - sizes - starts  # of each number's value 0 in the vector
    width = int(sizes.sum())

    def convert(batch: Any) -> Array:
        numbers = np.asarray(batch, dtype=np.int64).reshape(len(batch), len(sizes))
        vectors = np.zeros((len(batch), width), np.float32)
        vectors[np.arange(len(batch))[:, None], numbers + places] = 1
        return vectors

    return Leaf("vector", (width,), "float32"), convert

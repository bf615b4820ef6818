"""Observation spaces become layouts, and their batches arrays of that layout."""

from typing import Any

import numpy as np
import pytest
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_space

from playing import leaves
from rlagents_envs.spaces import Observer
from rlagents_envs.vector import Leaf

U8, F32, F64 = np.uint8, np.float32, np.float64
NONE = np.zeros(3, bool)


def pixels(*shape: int, dtype: Any = "uint8", scale: float = 1 / 255) -> Leaf:
    return Leaf("pixels", shape, dtype, scale=scale)


def vector(size: int, dtype: Any = "float32", scale: float = 1.0) -> Leaf:
    return Leaf("vector", (size,), dtype, scale=scale)


@pytest.mark.parametrize(
    ("space", "leaf"),
    [
        (spaces.Discrete(7), Leaf("index", (), "int64", size=7)),
        (spaces.Discrete(7, start=-3), Leaf("index", (), "int64", size=7)),
        (spaces.Box(-np.inf, np.inf, (5,), F64), vector(5)),
        (spaces.Box(-1, 1, (), F32), vector(1)),
        (spaces.Box(-9, 9, (5,), np.int32), vector(5)),
        (spaces.Box(-1, 1, (5, 2), F64), vector(10)),
        (spaces.Box(0, 9, (5, 2), np.int64), vector(10)),
        (spaces.Box(0, 1, (2, 3, 4, 5), F32), vector(120)),
        (spaces.Box(0, 255, (128,), U8), vector(128, "uint8", 1 / 255)),
        (spaces.Box(0, 1, (4,), np.bool_), vector(4, "uint8")),
        (spaces.Box(0, 255, (84, 96), U8), pixels(1, 84, 96)),
        (spaces.Box(0, 1, (8, 9), np.bool_), pixels(1, 8, 9, scale=1.0)),
        (spaces.Box(0, 255, (210, 160, 3), U8), pixels(3, 210, 160)),
        (spaces.Box(0, 255, (84, 84, 1), U8), pixels(1, 84, 84)),
        (spaces.Box(0, 255, (4, 84, 84), U8), pixels(4, 84, 84)),
        (spaces.Box(0, 255, (3, 40, 50), U8), pixels(3, 40, 50)),
        (spaces.Box(0, 1, (10, 10, 7), np.bool_), pixels(7, 10, 10, scale=1.0)),
        (spaces.Box(0, 1, (10, 10, 16), np.bool_), pixels(16, 10, 10, scale=1.0)),
        (spaces.Box(0, 1, (7, 10, 10), np.bool_), pixels(7, 10, 10, scale=1.0)),
        (spaces.Box(0, 1, (16, 10, 10), np.bool_), pixels(16, 10, 10, scale=1.0)),
        (spaces.Box(0, 1, (7, 7, 3), F64), pixels(3, 7, 7, dtype="float32", scale=1.0)),
        (spaces.Box(0, 10, (7, 7, 3), U8), pixels(3, 7, 7, scale=1 / 10)),
        (spaces.Box(0, 9, (3, 9, 8), np.int32), pixels(3, 9, 8, dtype="float32", scale=1.0)),
        (spaces.MultiBinary(6), vector(6)),
        (spaces.MultiBinary((2, 3)), vector(6)),
        (spaces.MultiDiscrete([2, 5, 3]), vector(10)),
        (spaces.MultiDiscrete(np.array([[2, 2], [3, 3]])), vector(10)),
    ],
    ids=lambda value: str(value) if isinstance(value, Space) else "",
)
@pytest.mark.parametrize("stack", [1, 3])
def test_each_space_has_its_leaf_and_keeps_its_numbers(space: Space[Any], leaf: Leaf, stack: int) -> None:
    if stack > 1 and leaf.kind == "index":
        with pytest.raises(
            ValueError, match=r"env.frame_stack must be 1 where an observation is a number, got 3"
        ):
            Observer(space, stack)
        return
    observer = Observer(space, stack)
    shape = (stack * leaf.shape[0], *leaf.shape[1:]) if leaf.shape else ()
    assert observer.layout == Leaf(leaf.kind, shape, leaf.dtype, stack, leaf.size, leaf.scale)
    batched = batch_space(space, 3)
    batched.seed(0)
    batch: Any = batched.sample()
    obs = observer(batch, ~NONE)
    assert isinstance(obs, np.ndarray)
    assert obs.shape == (3, *shape)
    assert obs.dtype == leaf.dtype
    assert obs.flags.c_contiguous
    assert not np.shares_memory(obs, batch)
    newest = obs[:, obs.shape[1] * (stack - 1) // stack :] if leaf.shape else obs
    if leaf.kind == "index":
        np.testing.assert_array_equal(newest, batch - int(space.start))  # type: ignore[attr-defined]
    elif isinstance(space, spaces.MultiDiscrete):
        flat = [spaces.flatten(space, row) for row in batch]
        np.testing.assert_array_equal(newest, flat)
    elif leaf.shape != space.shape and len(space.shape or ()) == 3:
        np.testing.assert_array_equal(newest, np.transpose(batch, (0, 3, 1, 2)).astype(leaf.dtype))
    else:
        np.testing.assert_array_equal(newest.ravel(), batch.astype(leaf.dtype).ravel())


def test_multi_discrete_starts_are_subtracted() -> None:
    space = spaces.MultiDiscrete([3, 2], start=[5, -1])
    obs = Observer(space)(np.array([[5, 0], [7, -1]]), np.zeros(2, bool))
    assert obs.tolist() == [[1, 0, 0, 0, 1], [0, 0, 1, 1, 0]]  # type: ignore[union-attr]


def test_dictionaries_and_tuples_become_flat_dictionaries() -> None:
    space = spaces.Dict(
        {
            "b": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), F32))),
            "a": spaces.Dict({"x": spaces.Box(0, 255, (4, 5, 3), U8), "y": spaces.MultiBinary(2)}),
        }
    )
    observer = Observer(space)
    assert observer.layout == {
        "a.x": pixels(3, 4, 5),
        "a.y": vector(2),
        "b.0": Leaf("index", (), "int64", size=3),
        "b.1": vector(2),
    }
    batch: Any = batch_space(space, 3).sample()
    obs = leaves(observer(batch, NONE))
    np.testing.assert_array_equal(obs["b.0"], batch["b"][0])
    np.testing.assert_array_equal(obs["b.1"], batch["b"][1])
    np.testing.assert_array_equal(obs["a.x"], batch["a"]["x"].transpose(0, 3, 1, 2))


def test_a_stack_restarts_with_zeros_where_an_episode_does() -> None:
    space = spaces.Dict({"n": spaces.Box(-9, 9, (2,), F64), "i": spaces.Discrete(100)})
    observer = Observer(space, 3)
    layout = observer.layout
    assert isinstance(layout, dict)
    assert layout["n"] == Leaf("vector", (6,), "float32", stack=3)
    assert layout["i"].stack == 1
    rows: list[list[list[float]]] = []
    for t in range(1, 6):
        batch = {"n": np.full((2, 2), t, F64), "i": np.array([t, t])}
        obs = leaves(observer(batch, np.array([t == 1, t in (1, 4)])))
        rows.append(obs["n"][:, ::2].tolist())
        assert obs["i"].tolist() == [t, t]
        obs["n"][:] = -1  # the caller's own
    assert [row[0] for row in rows] == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert [row[1] for row in rows] == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [0, 0, 4], [0, 4, 5]]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(3),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Box(0, 1, (2,)), None),
        spaces.Dict({"fine": spaces.Discrete(2), "not": spaces.Text(3)}),
    ],
    ids=lambda space: type(space).__name__,
)
def test_spaces_without_a_size_are_refused(space: Space[Any]) -> None:
    with pytest.raises(
        ValueError, match=r"observation space must be made of Box, .* convert it with a wrapper"
    ):
        Observer(space)


def test_images_stacked_by_someone_else_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images of 2 or 3 axes, got \(4, 84, 84, 3\); set env.frame_stack"):
        Observer(spaces.Box(0, 255, (4, 84, 84, 3), U8))


def test_cells_of_a_box_are_equal_and_counted_row_by_row() -> None:
    box = spaces.Box(np.array([-1, 0], F32), np.array([1, 9], F32))
    observer = Observer(box, bins=(2, 3))
    assert observer.layout == Leaf("index", (), "int64", size=6)
    batch = np.array([[-1, 0], [-0.1, 2.9], [-0.1, 3.1], [0.1, 8.9], [1, 9]], F32)
    assert observer(batch, np.zeros(5, np.bool_)).tolist() == [0, 0, 1, 5, 5]


@pytest.mark.parametrize(
    ("space", "complaint"),
    [
        (spaces.Discrete(3), "one number of cells for each number of a Box"),
        (spaces.Box(0, 1, (3,), F32), "one number of cells for each number of a Box"),
        (spaces.Box(-np.inf, 1, (2,), F32), "need finite bounds"),
    ],
)
def test_cells_need_a_bounded_box_of_as_many_numbers(space: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Observer(space, bins=(2, 3))

"""Models of Gymnasium environments whose transitions are known: those of toy text, and what is like them."""

import contextlib
from dataclasses import replace
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlagents_envs.config import Gymnasium
from rlagents_envs.model import Model, ModelEnvironments
from rlagents_envs.single import Maker, quiet


def modelled(config: Gymnasium, *, pictures: bool = False) -> ModelEnvironments:
    """Makes environments that step by the model of a Gymnasium environment, which itself never steps.

    Raises:
        ValueError: If it cannot be made, or has no model that says everything.
    """
    model = model_of(config)
    painter: Any = None
    if pictures:
        with quiet():
            painter = Maker(config.id, config.kwargs, pictures=True)()
            painter.reset(seed=0)

    def picture(state: int) -> NDArray[np.uint8]:
        if painter is None:
            raise RuntimeError("picture needs environments made with pictures=True")
        painter.unwrapped.s = state
        return np.array(painter.render(), np.uint8)

    return ModelEnvironments(model, None, count=config.count, picture=picture)


def model_of(config: Gymnasium) -> Model:
    """Returns the model of an environment, whatever its backend.

    Raises:
        ValueError: It cannot be made, or has no model that says everything.
    """
    if config.wrappers or config.frame_stack > 1 or config.bins:
        raise ValueError(
            f"env.wrappers, frame_stack and bins must be left out where the model of {config.id} is used"
        )
    with quiet(), contextlib.closing(Maker(config.id, config.kwargs)()) as env:
        try:
            model = _read(env)
        except ValueError as error:
            raise ValueError(f"{config.id} has no model to use: {error}; set env.backend to sync") from error
    return model if config.masks else replace(model, legal=np.ones_like(model.legal))


def _read(env: Any) -> Model:
    """Returns the model that a Gymnasium environment has as `unwrapped.P`, as those of toy text do.

    `P[state][action]` is a list of (probability, successor, reward, terminated). `initial_state_distrib`
    says where episodes begin, and a method `action_mask(state)`, if there is one, what is legal.

    Raises:
        ValueError: It has none, or one that does not say everything.
    """
    inner, size = env.unwrapped, env.observation_space
    transitions, start = (getattr(inner, name, None) for name in ("P", "initial_state_distrib"))
    if transitions is None or start is None or not isinstance(size, spaces.Discrete) or size.start != 0:
        raise ValueError(
            "it must have numbered states from 0, transitions P and an initial_state_distrib, "
            f"got {type(inner).__name__} over {size}"
        )
    if getattr(inner, "fickle_passenger", False):  # Taxi then remembers more than its state
        raise ValueError("it must be described by its transitions alone, got fickle_passenger=true")
    states, actions = int(cast("Any", size).n), int(env.action_space.n)
    rows: list[list[Any]] = [list(transitions[s][a]) for s in range(states) for a in range(actions)]
    outcomes = max(len(row) for row in rows)
    filled = [(*row, *((0.0, 0, 0.0, False),) * (outcomes - len(row))) for row in rows]
    table = np.array(filled, np.float64).reshape(states, actions, outcomes, 4)
    masks = getattr(inner, "action_mask", None)
    legal = np.ones((states, actions), np.bool_)
    if masks is not None:
        legal = np.array([masks(state) for state in range(states)], np.bool_)
        legal[~legal.any(1)] = True
    return Model(
        probability=table[..., 0],
        successor=table[..., 1].astype(np.int64),
        reward=table[..., 2].astype(np.float32),
        ends=table[..., 3].astype(np.bool_),
        legal=legal,
        start=np.asarray(start, np.float64),
        shape=_grid(inner, states),
        time_limit=env.spec.max_episode_steps if env.spec else None,
    )


def _grid(env: Any, states: int) -> tuple[int, int] | None:
    """Returns rows and columns, where the environment is a map or a shape of as many cells as states."""
    for shape in (getattr(getattr(env, "desc", None), "shape", None), getattr(env, "shape", None)):
        if shape is not None and len(shape) == 2 and np.prod(shape) == states:
            return cast("tuple[int, int]", tuple(int(size) for size in shape))
    return None

"""Small environments that tests make by id, as a user's own module would be: `example_envs:Name`."""

import os
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env[Any, Any]):
    """Counts its steps in float64, from a seeded start; ends after `length` steps; actions are -1, 0, 1."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space: spaces.Space[Any] = spaces.Discrete(3, start=-1)

    def __init__(self, length: int = 5, render_mode: str | None = None) -> None:
        self.length = length
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.steps = 0
        self.total = float(self.np_random.uniform(1, 2))
        return np.array([self.total, 1.0]), {"odd": np.zeros(3)}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        self.steps += 1
        self.total += float(action)
        return (
            np.array([self.total, 1.0 + self.steps]),
            float(action),
            self.steps >= self.length,
            False,
            {"odd": np.zeros(self.steps)},
        )

    def render(self) -> Any:
        return np.full((8, 6, 3), self.steps, np.uint8)


class Masked(Counter):
    """Gives a mask in every other step only, and once one with nothing legal."""

    action_space = spaces.Discrete(3)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        *rest, _ = super().step(action)
        masks = {2: [1, 0, 1], 4: [0, 0, 0]}
        info = {"action_mask": np.array(masks[self.steps], np.int8)} if self.steps in masks else {}
        return (*rest, info)  # type: ignore[return-value]


class Everything(gymnasium.Env[Any, Any]):
    """A dictionary with one of each kind in it; never ends."""

    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (6, 5, 3), np.uint8),
                "inner": spaces.Dict({"flag": spaces.MultiBinary(2), "cell": spaces.Discrete(4, start=1)}),
                "pair": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2, 2), np.float64))),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        return self.observation_space.sample(), 1, False, False, {}


class Continuous(Counter):
    action_space = spaces.Box(-1, 1, (2,), np.float32)


class BareReset(Counter):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0].tolist()


class FourStep(Counter):
    def step(self, action: Any) -> Any:
        return super().step(action)[:4]


class WrongShape(Counter):
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)


class OutOfBounds(Counter):
    observation_space = spaces.Box(-1, 0, (2,), np.float64)


class TextReward(Counter):
    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return (obs, "much", *rest)


class Words(Counter):
    observation_space = spaces.Text(5)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        return "hello", {}

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return ("world", *rest)


class NoPictures(Counter):
    metadata: ClassVar = {"render_modes": []}


class Fails(Counter):
    """Raises in step 3, an exception that no other process could unpickle."""

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        class Peculiar(Exception):
            pass

        if getattr(self, "steps", 0) == 2:
            raise Peculiar("the engine\nis on fire")
        return super().step(action)


class Late(Counter):
    """Raises in the third episode."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.episodes += 1
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        if self.episodes == 3:
            raise RuntimeError("the engine is on fire")
        return super().step(action)


class Dies(Counter):
    """Ends its process in step 3."""

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        if self.steps == 2:
            os._exit(3)
        return super().step(action)


class Marks(Counter):
    """Makes a file in its first step."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        self.path.touch()
        return super().step(action)


def doubled(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Doubles rewards."""
    return gymnasium.wrappers.TransformReward(env, lambda reward: 2 * float(reward))


def five_steps(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Cuts episodes off after five steps."""
    return gymnasium.wrappers.TimeLimit(env, 5)


def plus_one(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Adds 1 to rewards."""
    return gymnasium.wrappers.TransformReward(env, lambda reward: float(reward) + 1)


def broken_wrapper(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    raise KeyError("screw")


class MaskedByChance(Masked):
    """Gives a mask or none, drawn from its own generator."""

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        *rest, _ = super().step(action)
        info = {"action_mask": [True, False, True]} if self.np_random.random() < 0.5 else {}
        return (*rest, info)  # type: ignore[return-value]


class ShortMask(Counter):
    def step(self, action: Any) -> Any:
        *rest, _ = super().step(action)
        return (*rest, {"action_mask": np.ones(2)})


class ListInfo(Counter):
    def step(self, action: Any) -> Any:
        *rest, _ = super().step(action)
        return (*rest, [])


class TextFlag(Counter):
    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, "no", truncated, info


class WrongCell(Counter):
    observation_space = spaces.Dict({"cell": spaces.Discrete(5)})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return {"cell": 4}, {}

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return ({"cell": 5}, *rest)


class Grows(Counter):
    """Returns a longer observation from step 3 on."""

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return (np.zeros(2 if self.steps < 3 else 3), *rest)


class Blurs(Counter):
    """Returns bytes first, and in step 3 what a byte cannot hold."""

    observation_space = spaces.Box(0, 255, (2,), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.uint8), {}

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return (np.zeros(2, np.uint8 if self.steps < 3 else np.float64), *rest)


class NotANumber(Counter):
    """Returns NaN in step 3."""

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return (obs if self.steps < 3 else obs * np.nan, *rest)


class Priceless(Counter):
    """Pays NaN in step 3."""

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return (obs, reward if self.steps < 3 else float("nan"), *rest)


class Surveyed(Counter):
    """Reports where it got to, brings two drivers along, and loses its simulator in step 2 of episode 2."""

    metadata: ClassVar = {"render_modes": [], "drivers": ("down", "up")}
    episode = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        self.episode = 1 if seed is not None else self.episode + 1
        return super().reset(seed=seed)

    def scripted(self, driver: str) -> int:
        return {"down": -1, "up": 1}[driver]

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.episode == 2 and self.steps == 2:
            return obs, 0.0, False, True, {"lost": True}
        if terminated:
            info = {
                "episode_metrics": {"steps": self.steps, "episode": self.episode, "sign": np.sign(reward)}
            }
        return obs, reward, terminated, truncated, info


class OddMetrics(Counter):
    def step(self, action: Any) -> Any:
        *rest, _ = super().step(action)
        return (*rest, {"episode_metrics": {"name": "high"}})


def not_an_env(env: gymnasium.Env[Any, Any]) -> int:
    """What a wrapper should not return."""
    return 3


gymnasium.register("Counter-v0", entry_point=Counter, max_episode_steps=4)

"""One Gymnasium environment: found by its id, made, checked, and watched while it runs.

The one idea: strangers' code is checked once, before anything is built on it; what it does wrong later
becomes one line that names it.
"""

import contextlib
import difflib
import importlib
import math
import multiprocessing
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import Autoreset

from rlagents_envs import minatar

AnyEnv = gymnasium.Env[Any, Any]
METRICS = "episode_metrics"  # in `info` at the end of an episode: numbers about it, by name
_EXTRAS = {"Box2D": "box2d", "minatar": "minatar"}  # modules that environments import, and who brings them


class BrokenEnvironmentError(RuntimeError):
    """What an environment did wrong while it ran: one line that names it, with its traceback as a note."""

    index: int = 0  # which of the N

    def own(self) -> "BrokenEnvironmentError":
        """Returns the error of the worker: Gymnasium wraps it in another one, without its notes."""
        (inside,) = self.args
        return inside if isinstance(inside, BrokenEnvironmentError) else self


@dataclass(frozen=True)
class Maker:
    """Makes one environment, in this process or, pickled, in another."""

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    wrappers: tuple[str, ...] = ()
    pictures: bool = False
    index: int = 0  # which of the N

    def __call__(self) -> AnyEnv:
        """Makes and wraps it; ValueError, in one line, if that fails."""
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
        with quiet():
            create = _creator(self.id)
            mode = {"render_mode": "rgb_array"} if self.pictures else {}
            try:
                env = create(**{**self.kwargs, **mode})
            except Exception as error:
                given = f" with kwargs {self.kwargs}" if self.kwargs else ""
                raise ValueError(f"env.id {self.id!r}{given} could not be made: {_remedy(error)}") from error
            for name in self.wrappers:
                env = _wrap(env, name)
            if not isinstance(env, gymnasium.Env):
                raise ValueError(f"env.id must make a gymnasium.Env, got {type(env).__name__}: {self.id!r}")
            return Watched(cast("AnyEnv", env), self.id, self.pictures, self.index)


class Watched(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The outermost wrapper: names who failed, and lets through only what the vector needs.

    Infos are dropped but for the mask, `lost` and the metrics of an episode: Gymnasium would join them into
    arrays, step by step, and fails where they differ in shape.
    """

    def __init__(self, env: AnyEnv, name: str, pictures: bool, index: int) -> None:
        super().__init__(env)
        self._name, self._index = name, index
        self._pictures = pictures

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets; BrokenEnvironmentError if that does not return (observation, info)."""
        with self._named("reset", f"seed {seed}"):
            obs, info = _parts(self.env.reset(seed=seed, options=options), "observation, info")
            self._require_fit(obs, "reset")
            return obs, self._checked(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Steps; BrokenEnvironmentError if that does not return Gymnasium's five things."""
        with self._named("step", f"action {action}"):
            obs, reward, terminated, truncated, info = _parts(
                self.env.step(action), "observation, reward, terminated, truncated, info"
            )
            if np.ndim(reward) != 0 or np.asarray(reward).dtype.kind not in "fiub":
                raise TypeError(f"it must return a number as reward, got {reward!r}")
            if not math.isfinite(reward):
                raise ValueError(f"it must return a finite reward, got {reward}")
            self._require_fit(obs, "step")
            for flag in (terminated, truncated):
                if np.ndim(flag) != 0 or np.asarray(flag).dtype.kind not in "biu":
                    raise TypeError(f"it must return terminated and truncated as bool, got {flag!r}")
            return obs, float(reward), bool(terminated), bool(truncated), self._checked(info)

    def scripted(self, driver: str) -> int:
        """Returns the action that a driver of the environment would take now."""
        with self._named("scripted", f"driver {driver}"):
            env: Any = self.env.unwrapped
            return int(env.scripted(driver))

    def picture(self) -> Any:
        """Renders, if this is the environment that pictures are wanted of."""
        if not self._pictures:
            return None
        with self._named("render", "its picture"):
            return self.env.render()

    def _require_fit(self, obs: Any, source: str) -> None:
        if wrong := _mismatch(self.env.observation_space, obs, bounds=False):
            raise ValueError(
                f"it must return observations of its observation_space, got one from {source} {wrong}"
            )

    def _checked(self, info: Any) -> dict[str, Any]:
        if not isinstance(info, dict):
            raise TypeError(f"it must return info as a dictionary, got {type(info).__name__}")
        given = cast("dict[str, Any]", info)
        kept: dict[str, Any] = {"lost": True} if given.get("lost") else {}
        if (metrics := given.get(METRICS)) is not None:
            try:
                kept[METRICS] = {str(name): float(value) for name, value in metrics.items()}
            except (AttributeError, TypeError, ValueError) as error:
                raise TypeError(
                    f"info[{METRICS!r}] must be a dictionary of numbers, got {metrics!r}"
                ) from error
        if (mask := given.get("action_mask")) is None:
            return kept
        mask, actions = np.asarray(mask), self.env.action_space
        if isinstance(actions, spaces.Discrete) and mask.shape != (actions.n,):
            raise ValueError(f"info['action_mask'] must have {actions.n} entries, got shape {mask.shape}")
        return {**kept, "action_mask": mask.astype(np.bool_)}

    @contextlib.contextmanager
    def _named(self, what: str, given: str) -> Generator[None]:
        try:
            yield
        except Exception as error:
            # A type of ours, because a worker's exception has to be pickled to reach its parent.
            told = f"{self._name} failed in {what}: {in_one_line(error)} (environment {self._index}, {given})"
            broken = BrokenEnvironmentError(told)
            broken.index = self._index
            broken.add_note(traceback.format_exc())
            raise broken from error


def check(maker: Maker, pictures: bool) -> tuple[spaces.Discrete, gymnasium.Space[Any], tuple[str, ...]]:
    """Returns spaces and scripted drivers of one environment, after a reset and a step of it.

    Raises:
        ValueError: it misbehaves.
    """
    env = maker()
    try:
        actions, observations = env.action_space, env.observation_space
        if not isinstance(actions, spaces.Discrete):
            raise ValueError(f"{maker.id} needs a discrete action space, got {actions}")
        layer: Any = env
        while isinstance(layer, gymnasium.Wrapper):
            if isinstance(layer, Autoreset):
                raise ValueError(
                    f"{maker.id} must leave resets to the vector (autoreset mode NEXT_STEP); "
                    "remove the Autoreset wrapper"
                )
            layer = cast("gymnasium.Wrapper[Any, Any, Any, Any]", layer).env
        modes: Any = env.metadata.get("render_modes") or ()
        if pictures and "rgb_array" not in modes:
            raise ValueError(
                f"{maker.id} must have the render mode 'rgb_array' to be shown, got {list(modes)}; "
                "evaluate without rendering"
            )
        try:
            obs, info = env.reset(seed=0)
            legal: Any = info.get("action_mask")
            choice = int(np.argmax(legal)) if legal is not None else 0
            after, _, _, _, _ = env.step(np.int64(choice) + actions.start)
        except BrokenEnvironmentError as error:
            raise ValueError(str(error)) from error
        for what, value in (("reset", obs), ("step", after)):
            if wrong := _mismatch(observations, value):
                raise ValueError(
                    f"{maker.id} must return observations of its observation_space, "
                    f"got one from {what} {wrong}"
                )
        return actions, observations, tuple(env.metadata.get("drivers") or ())
    finally:
        env.close()


def _mismatch(space: Any, value: Any, where: str = "", *, bounds: bool = True) -> str:
    """Returns what is wrong with an observation; empty if nothing is. `bounds`: also outside low and high."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts, held = cast("Any", space).spaces, value
        if isinstance(parts, dict):
            names = list(cast("dict[str, Any]", parts))
            if not isinstance(value, dict) or set(cast("dict[str, Any]", value)) != set(names):
                return f"that is not a dictionary of {sorted(names)}{where}"
        else:
            names = range(len(parts))
            if not isinstance(value, tuple) or len(cast("tuple[Any, ...]", value)) != len(names):
                return f"that is not a tuple of {len(names)}{where}"
        found = (_mismatch(parts[name], held[name], f" at {name!r}", bounds=bounds) for name in names)
        return next(filter(None, found), "")
    if not isinstance(space, spaces.Box):
        return "" if space.contains(value) else f"that is {value!r}, not in {space}{where}"
    box = cast("Any", space)
    array = np.asarray(value)
    if array.shape != box.shape:
        return f"of shape {array.shape} in place of {box.shape}{where}"
    if array.dtype.kind not in "fiub" or not np.can_cast(array.dtype, box.dtype, "same_kind"):
        return f"of {array.dtype} in place of {box.dtype}{where}"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return f"with numbers that are not finite{where}"
    array = array.astype(box.dtype)  # vector environments cast just so
    if bounds and not ((array >= box.low) & (array <= box.high)).all():
        return f"outside low and high of {box}{where}"
    return ""


def _creator(name: str) -> Callable[..., Any]:
    """Returns what makes the environment of an id; ValueError with the nearest names if there is none."""
    if name.startswith("ALE/"):
        import ale_py

        gymnasium.register_envs(ale_py)
        ale_py.ALEInterface.setLoggerMode(cast("Any", ale_py.LoggerMode).Error)  # no banner
    if name.startswith("MinAtar/"):
        try:
            minatar.register()
        except ImportError as error:
            raise ValueError(f"env.id {name!r} could not be made: {_remedy(error)}") from error
    module_name, _, rest = name.rpartition(":")
    choices: list[str] = []
    if module_name:
        module = _module(module_name, f"env.id {name!r}")
        candidate = getattr(module, rest, None)
        if rest not in gymnasium.registry and callable(candidate):
            return candidate
        choices = [key for key in dir(module) if _is_environment(getattr(module, key))]
    choices += gymnasium.registry
    stem = rest.rpartition("-v")[0] or rest
    versions = [key for key in gymnasium.registry if key.startswith(stem + "-v")]
    if rest in gymnasium.registry or (stem == rest and versions):
        make = minatar.make if name.startswith("MinAtar/") else gymnasium.make
        return partial(make, rest, disable_env_checker=True)
    near = versions or difflib.get_close_matches(rest, choices)
    hint = f"nearest: {', '.join(near)}" if near else "write module:id for one in a module of yours"
    raise ValueError(f"env.id must be a registered environment, got {name!r}; {hint}")


def _is_environment(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, gymnasium.Env)


def _wrap(env: Any, name: str) -> Any:
    module_name, _, attribute = name.rpartition(":")
    if not module_name:
        raise ValueError(f'env.wrappers must be written as "module:function", got {name!r}')
    module = _module(module_name, f"env.wrappers {name!r}")
    function = getattr(module, attribute, None)
    if not callable(function):
        near = difflib.get_close_matches(attribute, [key for key in dir(module) if not key.startswith("_")])
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"env.wrappers must name functions, got {name!r}, not in {module_name}{hint}")
    try:
        return function(env)
    except Exception as error:
        raise ValueError(f"env.wrappers {name!r} failed: {in_one_line(error)}") from error


def _module(name: str, of: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            installed = (sys.prefix, sys.base_prefix)
            paths = [Path(entry).absolute() for entry in sys.path]
            folders = dict.fromkeys(
                str(path) for path in paths if path.is_dir() and not str(path).startswith(installed)
            )
            raise ValueError(
                f"{of} needs the module {name!r}, which is neither installed nor in {', '.join(folders)}; "
                "put its file into one of these folders"
            ) from error
        raise ValueError(
            f"{of} needs the module {name!r}, whose import failed: {in_one_line(error)}"
        ) from error


def in_one_line(error: BaseException) -> str:
    """Returns an exception in one line, with its type unless it is one of ours."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _remedy(error: BaseException) -> str:
    """Returns an exception in one line; of a module that an extra of ours brings, how to install it."""
    name = str(getattr(error.__cause__ or error, "name", "")).partition(".")[0]
    if name not in _EXTRAS:
        return in_one_line(error)
    return f'{name} is not installed; install it with: pip install "rlagents[{_EXTRAS[name]}]"'


def _parts(answer: Any, names: str) -> tuple[Any, ...]:
    """Returns the parts of an answer, which must be a tuple with one for each name."""
    if isinstance(answer, tuple):
        parts = cast("tuple[Any, ...]", answer)
        if len(parts) == len(names.split(", ")):
            return parts
        raise TypeError(f"it must return ({names}), got a tuple of {len(parts)}")
    raise TypeError(f"it must return ({names}), got {type(answer).__name__}")


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keeps Gymnasium's advice (old versions, spaces, workers that failed) off the user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

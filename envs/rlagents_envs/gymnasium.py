"""Any Gymnasium environment with discrete actions, by its id, in this process or in processes of its own.

The one idea: strangers' code is checked once, on a single environment, before anything is built on it; what
it does wrong later becomes one line that names it. Worker processes are started afresh (forkserver, or
spawn), never forked from a process in which threads may hold locks.
"""

import contextlib
import copy
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
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import Autoreset
from numpy.typing import NDArray

from rlagents_envs import minatar
from rlagents_envs.config import Carla, Gymnasium
from rlagents_envs.spaces import Observer
from rlagents_envs.vector import Bools, Layout, Obs, Outcome, Pending, first_seed

AnyEnv = gymnasium.Env[Any, Any]
_METRICS = "episode_metrics"  # in `info` at the end of an episode: numbers about it, by name
CRASHES = 5  # of one environment without an episode between, after which starting anew does not mend it
_EXTRAS = {"Box2D": "box2d", "minatar": "minatar"}  # modules that environments import, and who brings them
PATIENCE = 10.0  # seconds that closing waits for a step under way before it ends the processes


class _CrashedError(Exception):
    """The environments failed, have ended, and may start anew."""


class GymnasiumEnvironments:
    """N environments of one id.

    Attributes:
        drivers: names of the scripted drivers that the environments bring along.
        crashes: what failed and was started anew (`on_crash`), for who reads it to empty. One failure ends
            all of them: the others' episodes could not be brought back without the one that failed.

    `info["action_mask"]` becomes the mask; where an environment gave none, or one without a legal action,
    everything is legal. A Discrete action space that does not start at 0 is shifted.
    """

    replayable = True

    def __init__(self, config: Gymnasium, *, pictures: bool = False) -> None:
        maker = Maker(config.id, config.kwargs, config.wrappers)
        with quiet():
            actions, observations, drivers = _check(maker, pictures)
        makers = [
            Maker(config.id, config.kwargs, config.wrappers, pictures and not index, index)
            for index in range(config.count)
        ]
        self._open(config, makers, actions, observations, drivers)

    def _open(
        self,
        config: Gymnasium | Carla,
        makers: "list[Maker]",
        actions: spaces.Discrete,
        observations: gymnasium.Space[Any],
        drivers: tuple[str, ...],
    ) -> None:
        """Builds the vector of what each maker makes; only the first may have pictures."""
        self.count = len(makers)
        self._id = makers[0].id
        self._pictures = makers[0].pictures
        self._masks = not isinstance(config, Gymnasium) or config.masks
        self.actions = int(actions.n)
        self._start = int(actions.start)
        try:
            bins = config.bins if isinstance(config, Gymnasium) else ()
            self._observer = Observer(observations, config.frame_stack, bins)
        except ValueError as error:
            raise ValueError(f"{self._id}: {error}") from error
        self.layout: Layout = self._observer.layout
        self.drivers = drivers
        self._pending = Pending(self.count, self.actions)
        self._ended = np.zeros(self.count, np.bool_)
        self._sent: NDArray[np.int64] | None = None  # the newest actions, as the environments know them
        self.crashes: list[RuntimeError] = []
        self._restart = config.on_crash == "restart"
        self._crashes = np.zeros(self.count, np.int64)  # of each since its last episode
        self._crashed = False  # whether all have ended
        self._lost = False  # whether that was told, so that the next step only resets
        self._makers, self._backend = makers, config.backend
        self._vector = self._made()

    def _made(self) -> SyncVectorEnv[Any, Any] | AsyncVectorEnv[Any, Any]:
        """Starts the environments, and their processes."""
        with quiet():
            if self._backend == "sync":
                return SyncVectorEnv(self._makers, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
            ways = multiprocessing.get_all_start_methods()
            try:
                # Without shared memory, workers of Gymnasium 1.4 keep a pending auto-reset across a reset.
                return AsyncVectorEnv(
                    self._makers,
                    shared_memory=True,
                    copy=False,
                    context="forkserver" if "forkserver" in ways else "spawn",
                    autoreset_mode=AutoresetMode.NEXT_STEP,
                )
            except (EOFError, OSError) as error:  # a worker's traceback is on the screen already
                raise ValueError(
                    f"env.id must be found by a new process too, got {self._id!r}; "
                    "write it as module:id, with the module in a folder of its own"
                ) from error

    def reset(self, seed: int) -> tuple[Obs, Bools | None]:
        """Starts every environment anew, with consecutive seeds."""
        with contextlib.suppress(_CrashedError):
            self._ask(self._drain)
        self._pending.restart()
        self._seed, self._lost, self._sent = seed, False, None
        info = self._fresh()
        return self._seen, self._mask(info)

    def _fresh(self) -> dict[str, Any]:
        """Resets all environments, after starting them if they crashed; returns what they say."""

        def anew() -> Any:
            if self._crashed:
                self._vector, self._crashed = self._made(), False
            return self._vector.reset(seed=first_seed(self._seed, self.count))

        while True:
            with contextlib.suppress(_CrashedError):
                obs, info = self._ask(anew)
                self._ended = np.zeros(self.count, np.bool_)
                self._seen = self._observer(obs, ~self._ended)
                return info

    def send(self, actions: NDArray[np.int64]) -> None:
        """Hands the actions to the worker processes; without any, the step happens in `recv`."""
        self._sent = actions = self._pending.put(actions) + self._start
        if isinstance(self._vector, AsyncVectorEnv) and not self._crashed:
            vector = self._vector
            with contextlib.suppress(_CrashedError):  # told in `recv`
                self._ask(lambda: vector.step_async(actions))

    def recv(self) -> Outcome:
        """Waits for the workers, or makes the step.

        Raises:
            RuntimeError: If an environment failed, with its error in one line; all are closed then. With
                `on_crash = "restart"` only if one did so too often.
        """
        actions = self._pending.take() + self._start
        no, vector = np.zeros(self.count, np.bool_), self._vector
        if self._lost:
            self._lost, self._seed = False, self._seed + self.count  # none of the games before
            info = self._fresh()
            return Outcome(self._seen, no.astype(np.float32), no, no, no, self._mask(info))
        try:
            if self._crashed:
                raise _CrashedError
            obs, reward, terminated, truncated, info = self._ask(
                vector.step_wait if isinstance(vector, AsyncVectorEnv) else lambda: vector.step(actions)
            )
        except _CrashedError:
            self._lost = True
            made_up = copy.deepcopy(self._seen)
            return Outcome(made_up, no.astype(np.float32), no, ~no, ~no, None, ~no)
        fresh, self._ended = self._ended, terminated | truncated
        lost = np.asarray(info["lost"], np.bool_) if "lost" in info else None
        self._crashes[self._ended if lost is None else self._ended & ~lost] = 0
        self._seen = self._observer(obs, fresh)
        return Outcome(
            self._seen,
            reward.astype(np.float32),
            terminated,
            truncated & ~terminated,
            self._ended.copy(),
            self._mask(info),
            lost,
            self._metrics(info),
        )

    def picture(self) -> NDArray[np.uint8]:
        """Returns what environment 0 renders."""
        if not self._pictures or self._pending.waiting is not None:
            raise RuntimeError("picture needs environments made with pictures=True, and no step under way")
        picture = np.array(self._ask(lambda: self._vector.call("picture"), restart=False)[0])
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise RuntimeError(f"{self._id} must render [height, width, 3], got {picture.shape}")
        return picture.astype(np.uint8)

    def scripted(self, driver: str) -> NDArray[np.int64]:
        """Returns the actions [N] that a driver which the environments bring along would take now.

        An environment has drivers if it names them in `metadata["drivers"]` and has `scripted(name)`.
        """
        chosen = self._ask(lambda: self._vector.call("scripted", driver), restart=False)
        return np.array(chosen, np.int64) - self._start

    def close(self) -> None:
        """Ends the environments and their processes; one that does not answer is ended by force."""
        try:
            self._drain(PATIENCE)
            self._vector.close()
        except Exception:
            self._end()
        self._pending.close()

    def _drain(self, timeout: float | None = None) -> None:
        if self._pending.waiting is not None:
            self._pending.take()
            if isinstance(self._vector, AsyncVectorEnv) and not self._crashed:
                with quiet():
                    self._vector.step_wait(timeout)

    def _end(self) -> None:
        """Ends everything without asking: after a failure Gymnasium's own close waits for answers."""
        if isinstance(self._vector, AsyncVectorEnv):
            for process in self._vector.processes:
                process.kill()
                process.join()
            for pipe in filter(None, self._vector.parent_pipes):
                pipe.close()
            self._vector.closed = True
        else:
            with contextlib.suppress(Exception):
                self._vector.close()

    def _ask(self, call: Callable[[], Any], *, restart: bool = True) -> Any:
        """Calls into the environments; their failure ends them all.

        Raises:
            RuntimeError: an environment failed; nothing can be asked any more.
            _CrashedError: it failed, and may start anew.
        """
        try:
            if isinstance(self._vector, SyncVectorEnv):
                return call()
            with quiet():  # Gymnasium would write the worker's traceback as warnings
                return call()
        except BaseException as error:  # Ctrl-C too: a half-received step cannot be finished
            dead = self._dead() if isinstance(error, EOFError | ConnectionError) else {}
            self._end()
            if not isinstance(error, Exception):
                self._pending.close()
                raise
            if dead:
                failed = list(dead)
                broken = RuntimeError(
                    f"{self._id} failed: a worker process ended ({'; '.join(dead.values())})"
                )
            elif isinstance(error, BrokenEnvironmentError):
                broken = error.own()
                failed = [broken.index]
            else:
                failed = list(range(self.count))
                broken = RuntimeError(f"{self._id} failed: {_line(error)}")
            self._crashes[failed] += 1
            if self._restart and restart and self._crashes.max() <= CRASHES:
                self._crashed = True
                self.crashes.append(broken)
                raise _CrashedError from error
            self._pending.close()
            if self._restart and restart:
                broken.args = (f"{broken}; it crashed {CRASHES} times before, without an episode between",)
            raise broken from error

    def _dead(self) -> dict[int, str]:
        """Returns which workers ended, how, and on which action."""
        found: dict[int, str] = {}
        for index, process in enumerate(cast("Any", self._vector).processes):
            process.join(0.2)  # what it is about to end with is not known at once
            if not process.is_alive():
                action = "" if self._sent is None else f", action {self._sent[index]}"
                found[index] = f"environment {index}, exit code {process.exitcode}{action}"
        return found

    def _metrics(self, info: dict[str, Any]) -> dict[int, dict[str, float]] | None:
        """Returns what environments reported about episodes that ended in this step."""
        if _METRICS not in info:
            return None
        reports = cast("dict[str, Any]", info[_METRICS])
        return {
            int(i): {name: float(reports[name][i]) for name in reports if f"_{name}" in reports}
            for i in np.flatnonzero(info[f"_{_METRICS}"])
        }

    def _mask(self, info: dict[str, Any]) -> Bools | None:
        if not self._masks or "action_mask" not in info:
            return None
        mask = np.array(info["action_mask"], dtype=np.bool_)  # [N, A]
        mask[~mask.any(1)] = True
        return mask


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
            answer: Any = self.env.reset(seed=seed, options=options)
            if not isinstance(answer, tuple) or len(cast("tuple[Any, ...]", answer)) != 2:
                raise TypeError(f"it must return (observation, info), got {_kind(answer)}")
            obs, info = cast("tuple[Any, Any]", answer)
            self._require_fit(obs, "reset")
            return obs, self._checked(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Steps; BrokenEnvironmentError if that does not return Gymnasium's five things."""
        with self._named("step", f"action {action}"):
            answer: Any = self.env.step(action)
            if not isinstance(answer, tuple) or len(cast("tuple[Any, ...]", answer)) != 5:
                raise TypeError(
                    f"it must return (observation, reward, terminated, truncated, info), got {_kind(answer)}"
                )
            obs, reward, terminated, truncated, info = cast("tuple[Any, ...]", answer)
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
            raise TypeError(f"it must return info as a dictionary, got {_kind(info)}")
        given = cast("dict[str, Any]", info)
        kept: dict[str, Any] = {"lost": True} if given.get("lost") else {}
        if (metrics := given.get(_METRICS)) is not None:
            try:
                kept[_METRICS] = {str(name): float(value) for name, value in metrics.items()}
            except (AttributeError, TypeError, ValueError) as error:
                raise TypeError(
                    f"info[{_METRICS!r}] must be a dictionary of numbers, got {metrics!r}"
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
            told = f"{self._name} failed in {what}: {_line(error)} (environment {self._index}, {given})"
            broken = BrokenEnvironmentError(told)
            broken.index = self._index
            broken.add_note(traceback.format_exc())
            raise broken from error


def _check(maker: Maker, pictures: bool) -> tuple[spaces.Discrete, gymnasium.Space[Any], tuple[str, ...]]:
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
    inside: list[tuple[str, Any, Any]] = []  # where, space, value
    if isinstance(space, spaces.Dict):
        parts = cast("dict[str, Any]", cast("Any", space).spaces)
        if not isinstance(value, dict) or set(cast("dict[str, Any]", value)) != set(parts):
            return f"that is not a dictionary of {sorted(parts)}{where}"
        inside = [(f" at {key!r}", part, value[key]) for key, part in parts.items()]
    if isinstance(space, spaces.Tuple):
        kinds = cast("tuple[Any, ...]", cast("Any", space).spaces)
        if not isinstance(value, tuple) or len(cast("tuple[Any, ...]", value)) != len(kinds):
            return f"that is not a tuple of {len(kinds)}{where}"
        inside = [(f" at {key}", kind, value[key]) for key, kind in enumerate(kinds)]
    if isinstance(space, spaces.Dict | spaces.Tuple):
        found = (_mismatch(part, held, place, bounds=bounds) for place, part, held in inside)
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
        raise ValueError(f"env.wrappers {name!r} failed: {_line(error)}") from error


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
        raise ValueError(f"{of} needs the module {name!r}, whose import failed: {_line(error)}") from error


def _line(error: BaseException) -> str:
    """Returns an exception in one line, with its type unless it is one of ours."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _remedy(error: BaseException) -> str:
    """Returns an exception in one line; of a module that an extra of ours brings, how to install it."""
    name = str(getattr(error.__cause__ or error, "name", "")).partition(".")[0]
    if name not in _EXTRAS:
        return _line(error)
    return f'{name} is not installed; install it with: pip install "rlagents[{_EXTRAS[name]}]"'


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(cast('tuple[Any, ...]', value))}"
    return type(value).__name__


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keeps Gymnasium's advice (old versions, spaces, workers that failed) off the user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

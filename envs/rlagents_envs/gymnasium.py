"""N Gymnasium environments of one id, in this process or in processes of their own; `single` makes each.

The one idea: a failure of one of them ends them all, with one line that names it, or starts them all anew.
Worker processes are started afresh (forkserver, or spawn), never forked from a process in which threads may
hold locks.
"""

import contextlib
import copy
import multiprocessing
from collections.abc import Callable
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from rlagents_envs.config import Carla, Gymnasium
from rlagents_envs.single import METRICS, BrokenEnvironmentError, Maker, check, in_one_line, quiet
from rlagents_envs.spaces import Observer
from rlagents_envs.vector import Bools, Environments, Layout, Obs, Outcome, Pending, first_seed

CRASHES = 5  # of one environment without an episode between, after which starting anew does not mend it
PATIENCE = 10.0  # seconds that closing waits for a step under way before it ends the processes


class _CrashedError(Exception):
    """The environments failed, have ended, and may start anew."""


class GymnasiumEnvironments(Environments):
    """N environments of one id.

    Attributes:
        crashes: what failed and was started anew (`on_crash`), until it is taken. One failure ends all of
            them: the others' episodes could not be brought back without the one that failed.

    `info["action_mask"]` becomes the mask; where an environment gave none, or one without a legal action,
    everything is legal. A Discrete action space that does not start at 0 is shifted.
    """

    replayable = True

    def __init__(self, config: Gymnasium, *, pictures: bool = False) -> None:
        maker = Maker(config.id, config.kwargs, config.wrappers)
        with quiet():
            actions, observations, drivers = check(maker, pictures)
        makers = [
            Maker(config.id, config.kwargs, config.wrappers, pictures and not index, index)
            for index in range(config.count)
        ]
        self._open(config, makers, actions, observations, drivers)

    def _open(
        self,
        config: Gymnasium | Carla,
        makers: list[Maker],
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
            except RuntimeError as error:
                if "bootstrapping" in str(error):  # a worker of ours runs the script anew: see below
                    raise SystemExit(1) from None
                raise
            except (EOFError, OSError) as error:  # a worker's traceback is on the screen already
                raise ValueError(
                    f"the worker processes of {self._id} must import what they need, and one ended: "
                    'a script must train under `if __name__ == "__main__":`, and env.id of your own must be '
                    "module:id, with the module in a folder of its own; or set env.backend = sync"
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

    def take_crashes(self) -> list[RuntimeError]:
        """Empties `crashes`."""
        told, self.crashes = self.crashes, []
        return told

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
                broken = RuntimeError(f"{self._id} failed: {in_one_line(error)}")
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
        if METRICS not in info:
            return None
        reports = cast("dict[str, Any]", info[METRICS])
        return {
            int(i): {name: float(reports[name][i]) for name in reports if f"_{name}" in reports}
            for i in np.flatnonzero(info[f"_{METRICS}"])
        }

    def _mask(self, info: dict[str, Any]) -> Bools | None:
        if not self._masks or "action_mask" not in info:
            return None
        mask = np.array(info["action_mask"], dtype=np.bool_)  # [N, A]
        mask[~mask.any(1)] = True
        return mask

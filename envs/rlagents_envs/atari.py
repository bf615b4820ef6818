"""Atari games on ALE's own vector environment: C++ threads step, crop, scale and stack.

The one idea: ALE trusts its caller. An action out of range or a `recv` without a `send` hangs, a reset or an
exit between the two corrupts memory; so everything is checked before it goes in, and what is under way is
waited for before anything else is done.
"""

import difflib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from rlagents_envs.config import Atari
from rlagents_envs.vector import Bools, Environments, Layout, Leaf, Obs, Outcome, Pending, first_seed

_FEW_CORES = 4
SCREEN = (210, 160)  # rows and columns of the picture that a player sees


class _Part:
    """Emulators that step together: some of the games, or game 0 in colour.

    Args:
        games: which ones.
        emulators: as many.
    """

    def __init__(self, games: slice, emulators: AtariVectorEnv) -> None:
        self.games, self.emulators = games, emulators
        self.screens: Any = None  # newest observations
        self.rests = False
        self._busy = False  # sent to and not received from

    def reset(self, seed: int) -> NDArray[np.int64]:
        """Starts the games anew, game i with seed + i; returns their lives, 0 where a game counts none."""
        self.screens, info = self.emulators.reset(seed=seed + self.games.start)
        self.rests = False
        return info["lives"]

    def send(self, actions: NDArray[np.int64]) -> None:
        """Steps with its share of actions [N], unless it rests."""
        if not self.rests:
            self.emulators.send(actions[self.games])
            self._busy = True

    def recv(self) -> tuple[Any, ...]:
        """Waits for the step; returns observations, rewards, terminations, truncations and lives."""
        if not self._busy:
            count = self.games.stop - self.games.start
            no = np.zeros(count, np.bool_)
            return self.screens, np.zeros(count), no, no, np.ones(count, np.int64)
        self._busy = False
        self.screens, reward, terminated, truncated, info = self.emulators.recv()
        return self.screens, reward, terminated, truncated, info["lives"]


class AtariEnvironments(Environments):
    """N games of one ROM, rewards as the game pays them.

    With `terminal_on_life_loss` a lost life terminates while the game goes on; `ended` says when it does
    not. The next life begins as the game did, with FIRE where it needs that: no other action is legal then,
    or an agent that never learned to press it would wait for ever.

    For pictures a colour emulator plays game 0 once more: same seed, same actions, hence the same game,
    sticky actions and automatic resets included.

    Args:
        config: the table.
        pictures: have `picture`.
        resting: where cores are few, have an emulator thread for each game, so that one can `rest`.
    """

    replayable = True

    def __init__(self, config: Atari, *, pictures: bool = False, resting: bool = False) -> None:
        known = roms.get_all_rom_ids()
        if config.game not in known:
            written = config.game.lower().replace("-", "_").replace(" ", "_")
            near = difflib.get_close_matches(written, known) or ["pong", "breakout"]
            raise ValueError(
                f"env.game must be the name of a ROM in snake_case, got {config.game!r}; "
                f"nearest: {', '.join(near)}"
            )
        self.count = config.count
        self.layout: Layout = Leaf(
            "pixels",
            (config.frame_stack, config.height, config.width),
            "uint8",
            stack=config.frame_stack,
            scale=1 / 255,
        )
        self._life_loss = config.terminal_on_life_loss
        common: dict[str, Any] = {
            "max_num_frames_per_episode": config.max_frames,
            "repeat_action_probability": config.sticky,
            "full_action_space": config.full_action_space,
            "frameskip": config.frame_skip,
            "noop_max": config.noop_max,
            "life_loss_info": config.terminal_on_life_loss,
            "use_fire_reset": config.fire_reset,
            "reward_clipping": False,
            "autoreset_mode": "NextStep",
        }

        def emulators(games: slice, **own: Any) -> _Part:
            return _Part(games, AtariVectorEnv(config.game, games.stop - games.start, **common, **own))

        # With many cores, waiting for each game on its own takes longer than stepping those that are over.
        alone = resting and (os.cpu_count() or 1) <= _FEW_CORES
        size = 1 if alone else config.count
        gray = {"img_height": config.height, "img_width": config.width, "stack_num": config.frame_stack}
        self._parts = [
            emulators(slice(at, at + size), num_threads=1 if alone else config.threads, **gray)
            for at in range(0, config.count, size)
        ]
        self._painter: _Part | None = None
        if pictures:
            rows, columns = SCREEN
            self._painter = emulators(
                slice(0, 1), num_threads=1, img_height=rows, img_width=columns, grayscale=False, stack_num=1
            )
        names = [action.name for action in self._parts[0].emulators.ale.get_action_set()]
        self.action_names = tuple(str(name).lower() for name in names)
        self.actions = len(names)
        serves = self._life_loss and config.fire_reset and "fire" in self.action_names
        self._fire = self.action_names.index("fire") if serves else -1
        self._lives = False  # whether the game counts any
        self._pending = Pending(config.count, self.actions)

    def __del__(self) -> None:
        if hasattr(self, "_pending"):
            self._drain()

    def reset(self, seed: int) -> tuple[Obs, Bools | None]:
        """Starts every game anew, each with a seed of its own."""
        self._drain()
        self._pending.restart()
        start = first_seed(seed, self.count)
        self._lives = bool(np.any([part.reset(start).any() for part in self._all()]))
        return _joined([part.screens for part in self._parts]), None

    def rest(self, over: Bools) -> None:
        """Lets games [N] stand still until the next reset: nobody will look at what they return."""
        for part in self._all():
            part.rests = bool(over[part.games].all())

    def send(self, actions: NDArray[np.int64]) -> None:
        """Hands the actions to the emulator threads and returns at once."""
        actions = self._pending.put(actions)
        for part in self._all():
            part.send(actions)

    def recv(self) -> Outcome:
        """Waits for the emulators."""
        self._pending.take()
        if self._painter:
            self._painter.recv()
        obs, reward, terminated, truncated, lives = map(
            _joined, zip(*(part.recv() for part in self._parts), strict=True)
        )
        over = terminated & (lives == 0) if self._life_loss else terminated
        mask = None
        if self._fire >= 0 and self._lives:
            mask = np.ones((self.count, self.actions), np.bool_)
            mask[terminated & ~over] = np.arange(self.actions) == self._fire
        return Outcome(
            obs, reward.astype(np.float32), terminated, truncated & ~terminated, truncated | over, mask
        )

    def picture(self) -> NDArray[np.uint8]:
        """Returns the newest frame of game 0 in colour, 210 x 160."""
        if self._painter is None or self._painter.screens is None:
            raise RuntimeError("picture needs environments made with pictures=True, and a reset")
        return self._painter.screens[0, 0].copy()

    def close(self) -> None:
        """Waits for what is under way and frees the emulators and their threads."""
        self._drain()
        self._pending.close()
        self._parts.clear()
        self._painter = None

    def _all(self) -> Iterator[_Part]:
        yield from self._parts
        if self._painter:
            yield self._painter

    def _drain(self) -> None:
        for part in self._all():
            part.recv()


def _joined(arrays: Sequence[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

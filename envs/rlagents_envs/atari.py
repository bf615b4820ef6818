"""Atari games on ALE's own vector environment: C++ threads step, crop, scale and stack.

The one idea: ALE trusts its caller. An action out of range or a `recv` without a `send` hangs, a reset or an
exit between the two corrupts memory; so everything is checked before it goes in, and what is under way is
waited for before anything else is done.
"""

import difflib
from typing import Any

import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from rlagents_envs.config import Atari
from rlagents_envs.vector import Bools, Layout, Leaf, Obs, Outcome, Pending, first_seed

SCREEN = (210, 160)  # rows and columns of the picture that a player sees


class AtariEnvironments:
    """N games of one ROM, rewards as the game pays them.

    With `terminal_on_life_loss` a lost life terminates while the game goes on; `ended` says when it does
    not. For pictures a colour emulator plays game 0 once more: same seed, same actions, hence the same game,
    sticky actions and automatic resets included.
    """

    replayable = True

    def __init__(self, config: Atari, *, pictures: bool = False) -> None:
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
        self._emulators = [
            AtariVectorEnv(
                config.game,
                config.count,
                num_threads=config.threads,
                img_height=config.height,
                img_width=config.width,
                stack_num=config.frame_stack,
                **common,
            )
        ]
        if pictures:
            rows, columns = SCREEN
            self._emulators.append(
                AtariVectorEnv(
                    config.game,
                    1,
                    num_threads=1,
                    img_height=rows,
                    img_width=columns,
                    grayscale=False,
                    stack_num=1,
                    **common,
                )
            )
        names = [action.name for action in self._emulators[0].ale.get_action_set()]
        self.action_names = tuple(str(name).lower() for name in names)
        self.actions = len(names)
        self._picture: NDArray[np.uint8] | None = None
        self._pending = Pending(config.count, self.actions)
        self._busy: list[AtariVectorEnv] = []  # sent to and not received from

    def __del__(self) -> None:
        if hasattr(self, "_busy"):
            self._drain()

    def reset(self, seed: int) -> tuple[Obs, Bools | None]:
        """Starts every game anew, each with a seed of its own."""
        self._drain()
        self._pending.restart()
        start = first_seed(seed, self.count)
        screens = [emulators.reset(seed=start)[0] for emulators in self._emulators]
        self._keep_picture(screens)
        return screens[0], None

    def send(self, actions: NDArray[np.int64]) -> None:
        """Hands the actions to the emulator threads and returns at once."""
        actions = self._pending.put(actions)
        for emulators in self._emulators:
            emulators.send(actions[: emulators.num_envs])
            self._busy.append(emulators)

    def recv(self) -> Outcome:
        """Waits for the emulators."""
        self._pending.take()
        outcomes = [self._busy.pop(0).recv() for _ in self._emulators]
        self._keep_picture([outcome[0] for outcome in outcomes])
        obs, reward, terminated, truncated, info = outcomes[0]
        over = terminated & (info["lives"] == 0) if self._life_loss else terminated
        return Outcome(
            obs, reward.astype(np.float32), terminated, truncated & ~terminated, truncated | over, None
        )

    def picture(self) -> NDArray[np.uint8]:
        """Returns the newest frame of game 0 in colour, 210 x 160."""
        if self._picture is None:
            raise RuntimeError("picture needs environments made with pictures=True, and a reset")
        return self._picture.copy()

    def close(self) -> None:
        """Waits for what is under way and frees the emulators and their threads."""
        self._drain()
        self._pending.close()
        self._emulators.clear()

    def _drain(self) -> None:
        while self._busy:
            self._busy.pop(0).recv()

    def _keep_picture(self, screens: list[Any]) -> None:
        if len(screens) > 1:
            self._picture = screens[1][0, 0]

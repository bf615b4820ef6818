"""The `[env]` table: one frozen model per kind of environment, told apart by `kind`.

An environment kind is a model here and a factory in `rlagents_envs.make`; nothing else knows the list.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Model(BaseModel):
    """A frozen table in which an unknown key is an error, and so is a text or a truth where a number belongs.

    Tuples alone are not strict, since an array of TOML is a list.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Vectorised(Model):
    """What every kind has: how many environments step together."""

    count: int = Field(default=8, ge=1, le=65_536, description="environments stepped together (N)")


class Gridworld(Vectorised):
    """The 2x3 gridworld of a first lesson: start top left, goal bottom right, reward 1 on entering it."""

    kind: Literal["gridworld"] = "gridworld"
    rows: int = Field(default=2, ge=1, description="rows of cells")
    columns: int = Field(default=3, ge=2, description="columns of cells")
    time_limit: int = Field(default=100, ge=1, description="steps after which an episode is truncated")


class Corridor(Vectorised):
    """A corridor with reward 1 at its right end: Q* in closed form."""

    kind: Literal["corridor"] = "corridor"
    length: int = Field(default=5, ge=2, description="cells")
    time_limit: int = Field(default=100, ge=1, description="steps after which an episode is truncated")
    observation: Literal["index", "onehot"] = Field(
        default="index", description="a cell's number (for a table) or a one-hot vector (for a network)"
    )


class CartPole(Vectorised):
    """CartPole-v1 on Gymnasium's native vector environment."""

    kind: Literal["cartpole"] = "cartpole"
    time_limit: int = Field(default=500, ge=1, description="steps after which an episode is truncated")
    bins: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        strict=False,
        description="cells per dimension (position, velocity, angle, angular velocity) for a table; "
        "empty: the four numbers themselves",
    )


class Atari(Vectorised):
    """An Atari game on ALE's own vector environment: gray frames, stacked, uint8."""

    kind: Literal["atari"] = "atari"
    game: str = Field(description="ROM name in snake_case, such as pong or ms_pacman")
    frame_stack: int = Field(default=4, ge=1, le=16, description="frames in one observation (K)")
    frame_skip: int = Field(default=4, ge=1, description="emulator frames per env step")
    height: int = Field(default=84, ge=16, description="rows of pixels")
    width: int = Field(default=84, ge=16, description="columns of pixels")
    noop_max: int = Field(default=30, ge=0, description="most no-op frames at the start of a game")
    fire_reset: bool = Field(default=True, description="press FIRE after a reset where the game needs it")
    sticky: float = Field(
        default=0.0, ge=0, lt=1, description="probability that the emulator repeats the action before"
    )
    terminal_on_life_loss: bool = Field(
        default=False, description="a lost life ends the return that is learned, while the game goes on"
    )
    max_frames: int = Field(
        default=108_000, ge=1, description="emulator frames after which a game is truncated"
    )
    full_action_space: bool = Field(default=False, description="all 18 actions, not the game's own")
    threads: int = Field(default=0, ge=0, description="emulator threads; 0: chosen by the library")


class Gymnasium(Vectorised):
    """Any registered or importable Gymnasium environment with discrete actions."""

    kind: Literal["gymnasium"] = "gymnasium"
    id: str = Field(description="registered id, or module:id, such as my_package:MyEnv-v0")
    kwargs: dict[str, Any] = Field(default={}, description="keyword arguments of the environment")
    wrappers: tuple[str, ...] = Field(
        default=(), strict=False, description='wrappers as "module:function", innermost first'
    )
    backend: Literal["sync", "async", "model"] = Field(
        default="sync",
        description="sync: stepped in turn in this process; async: each in a process of its own; "
        "model: all at once, by the transitions that the environment has as unwrapped.P",
    )
    frame_stack: int = Field(default=1, ge=1, le=16, description="newest observations joined in one (K)")
    bins: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        strict=False,
        description="equal cells per number of a Box, from its low to its high, for a table; "
        "empty: the numbers themselves",
    )
    masks: bool = Field(default=True, description='heed info["action_mask"], the legal actions')


EnvConfig = Annotated[Gridworld | Corridor | CartPole | Atari | Gymnasium, Field(discriminator="kind")]

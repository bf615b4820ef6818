"""The `[env]` table: one frozen model per kind of environment, told apart by `kind`.

An environment kind is a model here and a factory in `rlagents_envs.make`; nothing else knows the list.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PORT = 2000  # CARLA's own default
_SPACING = 10  # between the ports of servers that we start: each takes three


class Model(BaseModel):
    """A frozen table in which an unknown key is an error, and so is a text or a truth where a number belongs.

    Tuples alone are not strict, since an array of TOML is a list.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Vectorised(Model):
    """What every kind has: how many environments step together."""

    count: int = Field(default=8, ge=1, le=65_536, description="environments stepped together (N)")

    def for_evaluation(self) -> Self:
        """Returns the table that an agent trained with this one is evaluated with."""
        return self

    @property
    def parallel(self) -> int:
        """How many environments an evaluation steps together at most."""
        return 32

    @property
    def suites(self) -> Mapping[str, Self]:
        """Returns the table in the conditions under which agents are compared, by name."""
        return {}

    @property
    def suite_metrics(self) -> tuple[str, ...]:
        """Returns the metrics of episodes that a table of suites shows."""
        return ()


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
        default=False,
        description="a lost life ends the return that is learned, while the game goes on, with FIRE first",
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
    on_crash: Literal["stop", "restart"] = Field(
        default="stop",
        description="when an environment fails or its process dies: stop: so does the run; "
        "restart: all start anew, and the episodes under way are lost",
    )


class Carla(Vectorised):
    """Driving with the carla client: on our stand-in server, or a real CARLA server.

    N environments drive on N servers. Units: metres, seconds, km/h.
    """

    kind: Literal["carla"] = "carla"
    count: int = Field(default=2, ge=1, le=256, description="environments, each with a server of its own (N)")
    server: str = Field(
        default="",
        description="host:port of running servers, one per environment, separated by commas; "
        "empty: stand-in servers are started",
    )
    launch: str = Field(default="", description="path of CarlaUE4.sh, to start real servers with")
    launch_options: tuple[str, ...] = Field(default=(), strict=False, description="more flags for `launch`")
    port: int = Field(
        default=0,
        ge=0,
        le=60_000,
        description="of the first server started, the next ones 10 apart; 0: free ones, or 2000 with launch",
    )
    towns: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="in turn for the environments: family-seed, an .xodr file, or a map of the server; "
        "empty: grid-1, or what the server has loaded",
    )
    evaluation_towns: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="in place of `towns` where the agent is evaluated; empty: the same",
    )
    observations: tuple[Literal["bev", "state", "camera", "lidar"], ...] = Field(
        default=("bev", "state"), strict=False, description="what one observation is made of"
    )
    frame_stack: int = Field(default=1, ge=1, le=16, description="newest observations joined in one (K)")
    size: int = Field(default=84, ge=36, le=512, description="pixels along a side of bev, camera and lidar")
    metres: float = Field(
        default=0.5, gt=0, le=5, description="of ground along the side of a pixel of bev and lidar"
    )
    camera: Literal["semantic", "depth", "rgb"] = Field(
        default="semantic", description="what the camera sees"
    )
    actions: Literal["27", "21", "9"] = Field(
        default="27",
        description="table of throttle, steer and brake: 27 fine, 21 as DI-drive, 9 as gym-carla",
    )
    reward: Literal["shaped", "simple", "gym-carla"] = Field(default="shaped", description="what is paid for")
    physics_rate: int = Field(default=20, ge=10, le=100, description="physics ticks per second")
    ticks: int = Field(default=2, ge=1, le=20, description="physics ticks per env step")
    speed: float = Field(
        default=30.0, gt=0, le=130, description="km/h to drive at, where the limit allows it"
    )
    route_metres: float = Field(default=300.0, ge=30, description="least length of a route")
    route_turns: int = Field(
        default=2, ge=0, le=20, description="least number of turns at junctions on a route"
    )
    time_limit: float = Field(
        default=0.0, ge=0, description="seconds after which an episode is truncated; 0: the route at 10 km/h"
    )
    blocked_after: float = Field(
        default=30.0, gt=0, description="seconds of standing, red lights aside, that end it"
    )
    off_route: float = Field(
        default=3.5, gt=0, description="metres beside the route's lane centre that end it"
    )
    lights: bool = Field(
        default=True, description="red lights end an episode; false: nobody heeds them but other cars"
    )
    vehicles: int = Field(
        default=0, ge=0, le=200, description="other cars, driven by CARLA's Traffic Manager"
    )
    walkers: int = Field(default=0, ge=0, le=100, description="walkers that cross the route, per episode")
    weather: str = Field(default="ClearNoon", pattern="^[A-Z][A-Za-z]+$", description="a preset of CARLA")
    timeout: float = Field(
        default=10.0, gt=0, description="seconds without an answer after which a server is lost"
    )
    patience: float = Field(
        default=120.0, ge=0, description="seconds to wait for a lost server that is not ours"
    )
    restart_episodes: int = Field(
        default=0, ge=0, description="episodes between restarts of our servers; 0: never"
    )
    restart_megabytes: int = Field(
        default=0, ge=0, description="memory of a server of ours above which it is restarted; 0: never"
    )
    any_version: bool = Field(default=False, description="try a server of another version than the client's")
    backend: Literal["sync", "async"] = Field(
        default="async",
        description="sync: stepped in turn in this process; async: each in a process of its own",
    )
    on_crash: Literal["stop", "restart"] = Field(
        default="restart",
        description="when an environment fails or its process dies, where a lost server is no failure: "
        "stop: so does the run; restart: all start anew, and the episodes under way are lost",
    )

    def for_evaluation(self) -> Self:
        """Returns the same in the towns that evaluation is to see, on ports behind those of training."""
        towns = self.evaluation_towns or self.towns
        return self.model_copy(update={"towns": towns, "port": self.port_of(self.count)})

    def port_of(self, index: int) -> int:
        """Returns the port of one of the servers that we start; 0: a free one."""
        first = self.port or (PORT if self.launch else 0)
        return first + _SPACING * index if first else 0

    @property
    def parallel(self) -> int:
        """Every environment costs a server: evaluation takes no more of them than training."""
        return self.count

    @property
    def suites(self) -> "Mapping[str, Carla]":
        """Returns the task in three densities of traffic, in towns seen in training and in unseen ones."""
        from rlagents_envs.carla.suites import suites

        return suites(self)

    @property
    def suite_metrics(self) -> tuple[str, ...]:
        """Returns how well was driven, how often what was hit, and how fast."""
        from rlagents_envs.carla.suites import METRICS

        return METRICS

    @model_validator(mode="after")
    def _servers(self) -> Self:
        if self.server and self.launch:
            raise ValueError("server and launch cannot both be given: connect to one, or start one")
        if self.server and len(self.server.split(",")) < self.count:
            raise ValueError(
                f"server must name one server per environment, {self.count} in all, got {self.server!r}; "
                "set env.count=1, or separate more addresses by commas"
            )
        if not self.observations or len(set(self.observations)) < len(self.observations):
            raise ValueError(
                f"observations must be one or more, all different, got {list(self.observations)}"
            )
        return self


EnvConfig = Annotated[
    Gridworld | Corridor | CartPole | Atari | Gymnasium | Carla, Field(discriminator="kind")
]

"""Driving a route in a town, as a Gymnasium environment on the real `carla` client.

The one idea: a decision is two physics ticks of a synchronous world; all that is seen, paid and judged comes
from the one snapshot after them. When the server is lost the step is called lost, everything is built up
again at the next reset, and nothing is made up in between.
"""

import contextlib
import math
import time
from collections import deque
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlagents_envs.carla.actions import table
from rlagents_envs.carla.actors import Actors, Car, Others, stranded
from rlagents_envs.carla.baselines import DRIVERS
from rlagents_envs.carla.bev import NOTHING, SHADE, BirdsEye, Boxes, Scene
from rlagents_envs.carla.connection import Connection, LostError, ServerError, address, library, probe
from rlagents_envs.carla.metrics import Record
from rlagents_envs.carla.observations import SIGHT, SOON, camera, caption, gap, lidar, space, state
from rlagents_envs.carla.planner import Route
from rlagents_envs.carla.rewards import REWARDS, SUCCESS, TIMEOUT, Moment
from rlagents_envs.config import Carla

_STILL = 0.3  # m/s at which somebody leaning on the car moves it
LOSSES = 20  # in a row, after which something is wrong that a restart does not mend
_NEAR = 3.0  # metres before the end of a route at which it is finished

Observation = dict[str, NDArray[Any]]


class CarlaEnv(gymnasium.Env[Observation, np.int64]):
    """One car, one route per episode, one server.

    Nothing is connected to before the first reset. `info` of the last step of an episode says why it ended
    (`reason`) and how it was driven (`episode_metrics`); a step that was lost with its server has
    `info["lost"]`, a reward of 0 and `truncated`.

    Args:
        config: the task; None: from `fields`.
        index: of the environment among several; it decides on server and town.
        again: it takes the place of one that had a server, and has patience if there is none now.
        render_mode: "rgb_array" to have pictures.
        fields: of the configuration, such as `towns=["ring-2"]`.

    Raises:
        ValueError: the carla package is not there, or the fields are wrong.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium's own
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "drivers": ("random", "cruise", "rules"),
    }

    def __init__(
        self,
        config: Carla | None = None,
        *,
        index: int = 0,
        again: bool = False,
        render_mode: str | None = None,
        **fields: Any,
    ) -> None:
        self.config = config = config or Carla.model_validate({"count": 1, **fields})
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be rgb_array or None, got {render_mode!r}")
        library()
        self.render_mode = render_mode
        self._index = index
        self._table = table(config.actions)
        self.action_space = spaces.Discrete(len(self._table))
        self.observation_space = cast("spaces.Space[Observation]", space(config))
        self._seconds = config.ticks / config.physics_rate
        self._reward = REWARDS[config.reward]
        self._link: Connection | None = None
        self._actors: Actors | None = None
        self._episodes = 0  # since the server was started
        self._ever = again  # whether there was a server
        self._losses = 0  # since an episode was driven to its end
        self.moment: Moment | None = None
        self.terms: dict[str, float] = {}
        self._last: Observation = {}
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode on a random route.

        Raises:
            ServerError: no server, or none any more after several attempts.
        """
        super().reset(seed=seed)
        draw = int(self.np_random.integers(2**31))
        patience = self.config.patience if self.config.server and self._ever else 0.0
        attempts = 1 if self.config.server and not self._ever else 3
        until = time.monotonic() + patience
        if stranded():
            self._wait(until)
            raise ServerError("a Traffic Manager lost its server, and this process can drive no more")
        while True:
            try:
                return self._begin(np.random.default_rng(draw)), {}
            except RuntimeError as error:  # what the client library raises, too
                self._drop()
                attempts -= 1
                hopeless = isinstance(error, ServerError) and not isinstance(error, LostError)
                if hopeless or (attempts <= 0 and time.monotonic() >= until):
                    raise ServerError(" ".join(str(error).split())) from error

    def _wait(self, until: float) -> None:
        """Waits until the server that is not ours is there again, for who drives on in another process."""
        while self.config.server and time.monotonic() < until:
            with contextlib.suppress(ServerError):
                probe(*address(self.config.server.split(",")[self._index]))
                return
            time.sleep(0.5)

    def _begin(self, rng: np.random.Generator) -> Observation:
        config = self.config
        if self._worn():
            self._drop(lost=False)
        if self._link is None:
            self._link = Connection(
                config,
                self._index,
                seed=self._index,
                patient=self._ever,
                pictures=self.render_mode is not None,
            )
            self._ever, self._episodes = True, 0
            self._eye = BirdsEye(self._link.roads, size=config.size, metres=config.metres)
            self._lines = np.array(
                [
                    (stop.x, stop.y, math.radians(stop.yaw), stop.width)
                    for light in self._link.roads.lights
                    for stop in light.stops
                ]
            ).reshape(-1, 4)
            self._signals = [light.signal for light in self._link.roads.lights for _ in light.stops]
        self.route = route = self._route(rng)
        if self._actors is None:
            (x, y), z = route.xy[0], route.z[0] + 0.3
            start = (float(x), float(y), float(z), float(route.yaw[0]))
            self._actors = Actors(
                self._link, config, seed=self._index, picture=self.render_mode is not None, start=start
            )
        snapshot = self._actors.place(route, rng)
        self._episodes += 1
        self._dice = np.random.default_rng(rng.integers(2**31))  # of the random driver
        self._record = Record()
        self._before: deque[Any] = deque(maxlen=max(1, round(0.5 / self._seconds)))
        self._control = (0.0, 0.0, 0.0)
        self._standing = self._elapsed = self._driven = 0.0
        self._shoved = False
        self._limit = config.time_limit or 3.6 * route.length / 10
        self._point = 0
        self._over = False
        self.moment = None
        self.moment = self._judge(snapshot, 0.0, "")
        self.terms = {}
        self._last = self._observe(snapshot.frame)
        return self._last

    def _route(self, rng: np.random.Generator) -> Route:
        assert self._link is not None
        try:
            return self._link.lanes.route(rng, metres=self.config.route_metres, turns=self.config.route_turns)
        except LookupError as error:
            raise ServerError(str(error.args[0])) from error

    def _worn(self) -> bool:
        """Whether a server of ours is due for a restart."""
        if self._link is None or self._link.server is None:
            return False
        episodes, memory = self.config.restart_episodes, self.config.restart_megabytes
        return bool(
            (episodes and self._episodes >= episodes) or (memory and self._link.server.megabytes > memory)
        )

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Drives for one decision, a tenth of a second."""
        if self._over or self._actors is None or self.moment is None:
            raise RuntimeError("step needs a reset first, and after the end of every episode")
        steer_before = self._control[1]
        self._control = control = self._table[int(action)]
        try:
            self._actors.walk(self._driven, self._car, self._others.vehicles)
            snapshot = self._actors.drive(*control)
            self._elapsed += self._seconds
            self.moment = moment = self._judge(snapshot, steer_before, self._actors.collision())
            self._last = self._observe(snapshot.frame)
        except (LostError, RuntimeError) as error:
            why = " ".join(str(error).split())
            self._over = True
            self._drop()
            self._losses += 1
            if self._losses > LOSSES:
                raise ServerError(
                    f"the server was lost {LOSSES} times without an episode between: {why}"
                ) from error
            return self._last, 0.0, False, True, {"lost": True, "reason": f"lost: {why}"}
        self.terms = self._reward(moment)
        self._record.add(moment)
        self._over = bool(moment.reason)
        info: dict[str, Any] = {}
        if self._over:
            self._losses = 0
            info = {"reason": moment.reason, "episode_metrics": self._record.metrics()}
        truncated = moment.reason == TIMEOUT
        return self._last, float(sum(self.terms.values())), self._over and not truncated, truncated, info

    def _judge(self, snapshot: Any, steer_before: float, hit: str) -> Moment:
        """Puts together what is known after a tick, and whether it is an end."""
        config, route = self.config, self.route
        car = self._car = self._cast.car(snapshot)
        others = self._others = self._cast.others(snapshot)
        place = route.locate(car.x, car.y, car.yaw, self._point)
        self._point = place.point
        progress, self._driven = place.distance - self._driven, place.distance
        metres, closing = self._gap(car, others)
        colour, line = "", math.inf
        signal = route.next_signal(place.distance) if config.lights else None
        if signal is not None and signal.distance - place.distance < SIGHT:
            colour = self._cast.light(signal.id)
            line = signal.distance - place.distance - self._cast.half_length if colour else math.inf
        ran = config.lights and any(
            place.distance - progress < passed.distance <= place.distance
            and self._cast.light(passed.id) == "red"
            for passed in route.signals
        )
        slow = car.speed < 0.1 and not (colour in ("red", "yellow") and line < 15)
        self._standing = self._standing + self._seconds if slow else 0.0
        assert self._link is not None
        road = bool(self._link.roads.at(np.array(car.x), np.array(car.y)) & 1)
        reason = ""
        if self.moment is not None:
            # Who stands with his foot off the gas is hit: it is not his fault, nor where it throws him.
            still = self.moment.speed < _STILL or self._shoved
            self._shoved = bool(hit) and still and not self._control[0]
            checks = {
                f"collision_{hit}": bool(hit) and not self._shoved,
                "red_light": ran,
                "off_road": not road,
                "off_route": abs(place.lateral) > config.off_route,
                "wrong_way": abs(place.heading) > math.pi / 2,
                SUCCESS: place.distance >= route.length - _NEAR,
                "blocked": self._standing >= config.blocked_after,
                TIMEOUT: self._elapsed >= self._limit,
            }
            reason = next((name for name, holds in checks.items() if holds), "")
        throttle, steer, brake = self._control
        return Moment(
            time=self._elapsed,
            seconds=self._seconds,
            x=car.x,
            y=car.y,
            yaw=car.yaw,
            speed=car.speed,
            forward=car.forward,
            yaw_rate=car.yaw_rate,
            limit=min(car.limit, config.speed / 3.6),
            throttle=throttle,
            steer=steer,
            brake=brake,
            steer_before=steer_before,
            lateral=place.lateral,
            heading=place.heading,
            width=float(route.width[place.point]),
            progress=progress if self.moment is not None else 0.0,
            driven=place.distance,
            length=route.length,
            gap=metres,
            closing=closing,
            light=colour,
            light_distance=line,
            reason=reason,
            pace=float(route.pace[place.point]),
        )

    def _gap(self, car: Car, others: Others) -> tuple[float, float]:
        """Returns metres to who is ahead on the route, or walks onto it, and how fast they shrink."""
        size = self._cast.half_length
        # Who is behind will not be ahead, wherever his speed would take him.
        cos, sin = math.cos(car.yaw), math.sin(car.yaw)
        before = (others.vehicles.xy - (car.x, car.y)) @ (cos, sin) > size  # [V]
        vehicles = Boxes(*(part[before] for part in others.vehicles))
        gaps = [
            gap(self.route, self._point, boxes, velocity, half_length=size, seconds=SOON, speed=car.speed)
            for boxes, velocity in (
                (vehicles, others.vehicle_velocity[before]),
                (others.walkers, others.walker_velocity),
            )
        ]
        metres, speed = min(gaps)
        return metres, car.speed - speed if metres < math.inf else 0.0

    def _observe(self, frame: int) -> Observation:
        """Returns what the agent sees."""
        seen: Observation = {}
        assert self.moment is not None
        for name in self.config.observations:
            match name:
                case "bev":
                    seen[name] = self._eye.draw(self._scene())
                case "state":
                    others = self._others
                    seen[name] = state(
                        self.moment, self.route, self._point, others.walkers, others.walker_velocity
                    )
                case "camera":
                    seen[name] = camera(self._cast.image("camera", frame), self.config.camera)
                case "lidar":
                    points = np.frombuffer(self._cast.data("lidar", frame).raw_data, np.float32)
                    seen[name] = lidar(points.reshape(-1, 4), self.config.size, self.config.metres)
        if self.render_mode is not None:
            self._picture = self._cast.image("picture", frame)[:, :, 2::-1]
        self._before.append(self._others.vehicles)
        return seen

    def _scene(self) -> Scene:
        car, others, eye = self._car, self._others, self._eye
        shades = np.zeros(0, np.uint8)
        lines = self._lines
        if len(lines):
            close = np.hypot(lines[:, 0] - car.x, lines[:, 1] - car.y) < eye.reach
            lines = lines[close]
            shades = np.array(
                [SHADE.get(self._cast.light(self._signals[i]), 0) for i in np.flatnonzero(close)], np.uint8
            )
        before = self._before[0] if self._before else others.vehicles
        return Scene(
            car.x,
            car.y,
            car.yaw,
            self.route.ahead(self._point, eye.reach),
            others.vehicles.near(car.x, car.y, eye.reach) if len(others.vehicles.xy) else NOTHING,
            before.near(car.x, car.y, eye.reach) if len(before.xy) else NOTHING,
            others.walkers.near(car.x, car.y, eye.reach) if len(others.walkers.xy) else NOTHING,
            lines,
            shades,
        )

    @property
    def _cast(self) -> Actors:
        if self._actors is None:
            raise RuntimeError("there are no actors before the first reset and after a loss")
        return self._actors

    @property
    def connection(self) -> Connection:
        """The way to the server; RuntimeError before the first reset and after a loss."""
        if self._link is None:
            raise RuntimeError("connection needs a reset first")
        return self._link

    def scripted(self, driver: str) -> int:
        """Returns the action that a scripted driver would take now: random, cruise or rules."""
        if driver == "random" or self.moment is None or self._over:
            return int(self._dice.integers(len(self._table)))
        ahead = self.route.ahead(self._point, SIGHT)
        return DRIVERS[driver](self._table, self.moment, ahead)

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns bird's-eye view and camera side by side with numbers below them, RGB [400, 784, 3]."""
        if self.render_mode is None or self.moment is None or self._actors is None:
            return None if self.render_mode is None else np.zeros((400, 784, 3), np.uint8)
        assert self._link is not None
        eye = BirdsEye(self._link.roads, size=336, metres=self.config.metres * self.config.size / 336)
        view = eye.colours(eye.draw(self._scene()))
        return caption(np.concatenate([view, self._picture], 1), self.moment, self.terms)

    def close(self) -> None:
        """Destroys what was spawned and ends the server, if it is ours; may be called twice."""
        self._drop(lost=False)

    def _drop(self, *, lost: bool = True) -> None:
        """Lets go of actors, client and server."""
        actors, link, self._actors, self._link = self._actors, self._link, None, None
        if actors is not None and link is not None:
            # With a server of ours everything ends at once: there is nothing to tidy up.
            actors.close(lost=lost or link.server is not None)
        if link is not None:
            link.close(lost=lost)

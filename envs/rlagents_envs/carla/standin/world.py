"""The simulation behind the stand-in server: vehicles, walkers, props and lights on one town's ground.

The one idea: whatever moves is a row of one table, written by a few array operations per tick, so that a tick
costs the same with one car as with twenty. The same seed and the same calls give the same table, bit for bit.
Units and axes are CARLA's: metres, seconds, degrees, x forward, y right, z up. Nothing here knows a socket.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import carla
import numpy as np
from numpy.typing import NDArray

from rlagents_envs.carla.roads import BIT, Light, Roads

Floats = NDArray[np.float64]
RED, YELLOW, GREEN, OFF, UNKNOWN = range(5)  # carla.TrafficLightState
PEDESTRIAN = 12  # carla.CityObjectLabel
X, Y, Z, PITCH, YAW, ROLL, VX, VY, VZ, SPIN_X, SPIN_Y, SPIN, AX, AY, AZ = range(15)  # columns of the table
GRAVITY = 9.81
GRIP = 7.5  # m/s^2 that tyres hold sideways
STEER_RATE = 4.0  # of the whole lock, per second
ROLLING, DRAG, COASTING = 0.1, 0.0015, 0.4  # m/s^2, 1/m, m/s^2 with the foot off the pedal
SOFT_GROUND = 1.5  # m/s^2 lost beside the road
SLIDING, SPINNING = 6.0, 4.0  # m/s^2 and rad/s^2 at which a push fades
BOUNCE = 0.1  # coefficient of restitution
LIGHT_AHEAD = 12.0  # metres before its stop line in which a light concerns a vehicle
MAX_ACTORS = 4096
NO_ROOM = "Spawn failed because of collision at spawn position"
DEFAULT_WEATHER = (10.0, 0.0, 0.0, 5.0, 0.0, 50.0, 2.0, 0.75, 0.1, 0.0, 1.0, 0.03, 0.0331, 0.0)


class Transform(NamedTuple):
    """A pose; the six numbers that open a row of the table."""

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    pitch: float = 0.0
    yaw: float = 0.0
    roll: float = 0.0


class Box(NamedTuple):
    """Half a body's length, width and height; its middle lies `height` above its origin."""

    length: float
    width: float
    height: float


NO_BODY = Box(0.0, 0.0, 0.0)
HERE = Transform()


class Attribute(NamedTuple):
    """One property of a blueprint. Kinds: 1 truth, 2 integer, 3 float, 4 text, 5 colour."""

    name: str
    kind: int
    value: str
    recommended: tuple[str, ...] = ()
    modifiable: bool = True


@dataclass(frozen=True)
class Blueprint:
    """A kind of actor.

    Attributes:
        mass: kg; 0 cannot be moved.
        tags: What cameras call it (`carla.CityObjectLabel`).
        acceleration: m/s^2 at full throttle from rest, as far as `power` (W/kg) allows.
        braking: m/s^2 at full brake.
        lock: Degrees of the mean front wheel at full steer.
    """

    name: str
    attributes: tuple[Attribute, ...] = ()
    box: Box = NO_BODY
    mass: float = 0.0
    tag: int = 0
    wheelbase: float = 0.0
    acceleration: float = 4.5
    power: float = 60.0
    braking: float = 8.0
    lock: float = 50.0  # CARLA says 70 of the inner wheel; with 35 its Traffic Manager runs wide in bends

    @property
    def walks(self) -> bool:
        """Whether it is a walker: its origin is its middle, not its feet."""
        return self.tag == PEDESTRIAN


@dataclass(eq=False)
class Actor:
    """One thing in the world; where it is, its row of `World.table` says."""

    id: int
    blueprint: Blueprint
    attributes: dict[str, str]
    row: int
    parent: int = 0
    mount: Transform = HERE
    slot: int = -1  # in the fleet, for a vehicle
    physics: bool = True
    solid: bool = True
    light: int = -1  # in `Lights`, for a traffic light
    stop: tuple[float, float, float] = (0.0, 0.0, 0.0)  # its line in its own frame: x, y, half the width
    orders: tuple[float, float, float, bool, bool] = (0.0, 0.0, 0.0, False, False)  # throttle, steer, ...
    gear: int = 0
    manual: bool = False
    vehicle_lights: int = 0
    constant: tuple[float, float] | None = None  # velocity in its own frame, m/s
    walk: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of a walker: direction x, y and speed
    jump: bool = False
    crossing: "Crossing | None" = None

    @property
    def type(self) -> str:
        """Returns the blueprint's name."""
        return self.blueprint.name


@dataclass
class Crossing:
    """A walker's task: wait, cross, wait, come back."""

    ends: tuple[tuple[float, float], tuple[float, float]]
    target: int
    wait: float  # seconds left


class Collision(NamedTuple):
    """What one of two bodies felt."""

    actor: Actor
    other: Actor
    impulse: tuple[float, float, float]  # N s, on `actor`


def _texts(name: str, *values: str) -> Attribute:
    return Attribute(name, 4, values[0], values)


_ROLE = _texts("role_name", "default", "autopilot", "scenario", "ego_vehicle", "hero")
_TICK = Attribute("sensor_tick", 3, "0.0", ("0.0",))


def _vehicle(
    name: str, box: Box, mass: float, base: str = "car", tag: int = 14, wheels: int = 4, **more: float
) -> Blueprint:
    colours = ("17,37,103", "180,180,180", "140,30,30", "30,30,30", "220,220,215")
    attributes = (
        Attribute("number_of_wheels", 2, str(wheels), modifiable=False),
        Attribute("base_type", 4, base, modifiable=False),
        Attribute("special_type", 4, "", modifiable=False),
        Attribute("generation", 2, "1", modifiable=False),
        Attribute("has_lights", 1, "true", modifiable=False),
        Attribute("sticky_control", 1, "true", ("false", "true")),
        Attribute("color", 5, colours[0], colours),
        _ROLE,
    )
    return Blueprint(
        f"vehicle.{name}",
        attributes,
        box,
        mass,
        tag,
        wheelbase=more.pop("wheelbase", box.length * 1.2),
        **more,
    )


def _sensor(name: str, **attributes: float | str) -> Blueprint:
    kinds = {float: 3, int: 2, str: 4}
    listed = [
        Attribute(key, 1 if value in ("true", "false") else kinds[type(value)], str(value), (str(value),))
        for key, value in attributes.items()
    ]
    return Blueprint(f"sensor.{name}", (*listed, _TICK, _ROLE))


_CAMERA: dict[str, float | str] = {"image_size_x": 800, "image_size_y": 600, "fov": 90.0}
_LIDAR: dict[str, float | str] = {
    "channels": 32,
    "range": 10.0,
    "points_per_second": 56000,
    "rotation_frequency": 10.0,
    "upper_fov": 10.0,
    "lower_fov": -30.0,
    "horizontal_fov": 360.0,
    "atmosphere_attenuation_rate": 0.004,
}
BLUEPRINTS: dict[str, Blueprint] = {
    blueprint.name: blueprint
    for blueprint in (
        _vehicle("tesla.model3", Box(2.40, 1.08, 0.74), 1845),
        _vehicle("lincoln.mkz_2020", Box(2.45, 1.07, 0.75), 1796),
        _vehicle("audi.a2", Box(1.85, 0.89, 0.78), 1115, acceleration=4.0, power=45.0),
        _vehicle("nissan.micra", Box(1.82, 0.92, 0.76), 1090, acceleration=4.0, power=45.0),
        _vehicle("mini.cooper_s", Box(1.90, 0.99, 0.74), 1250),
        _vehicle(
            "carlamotors.firetruck", Box(4.23, 1.45, 1.91), 12000, "truck", 15, acceleration=2.0, power=15.0
        ),
        _vehicle(
            "kawasaki.ninja", Box(1.02, 0.40, 0.73), 250, "motorcycle", 18, 2, acceleration=6.0, wheelbase=1.4
        ),
        _vehicle(
            "bh.crossbike",
            Box(0.74, 0.43, 0.85),
            90,
            "bicycle",
            19,
            2,
            acceleration=1.5,
            power=4.0,
            wheelbase=1.0,
        ),
        *(
            Blueprint(
                f"walker.pedestrian.{number:04}",
                (
                    _texts("gender", "male" if number % 2 else "female"),
                    _texts("age", "adult"),
                    Attribute("speed", 3, "1.4", ("0.0", "1.4", "2.8")),
                    Attribute("is_invincible", 1, "true", ("false", "true")),
                    _ROLE,
                ),
                Box(0.19, 0.19, 0.93),
                80,
                PEDESTRIAN,
            )
            for number in range(1, 9)
        ),
        Blueprint("controller.ai.walker", (_ROLE,)),
        Blueprint("static.prop.streetbarrier", (_ROLE,), Box(0.18, 0.62, 0.55), 0, 20),
        Blueprint("static.prop.constructioncone", (_ROLE,), Box(0.17, 0.17, 0.30), 0, 20),
        Blueprint("static.prop.container", (_ROLE,), Box(0.96, 1.92, 1.12), 0, 20),
        _sensor("camera.rgb", **_CAMERA),
        _sensor("camera.semantic_segmentation", **_CAMERA),
        _sensor("camera.depth", **_CAMERA),
        _sensor("lidar.ray_cast", **_LIDAR),
        _sensor("other.collision"),
        _sensor("other.lane_invasion"),
        _sensor(
            "other.obstacle", distance=5.0, hit_radius=0.5, only_dynamics="false", debug_linetrace="false"
        ),
        _sensor("other.gnss"),
        _sensor("other.imu"),
    )
}
_SPECTATOR = Blueprint("spectator")
_LIGHT = Blueprint("traffic.traffic_light", tag=7)
FLEET = (  # float columns of the fleet; the first nine are the blueprint's
    *("wheelbase", "acceleration", "power", "braking", "lock", "mass", "length", "width", "inertia"),
    *("throttle", "steer", "brake", "hand_brake", "reverse"),
    *("pull", "hold"),  # of what full throttle gives; m/s^2
    *("speed", "wheel", "slide_x", "slide_y", "spin", "limit"),
)
_FIRM = np.uint8(BIT["road"] | BIT["shoulder"])


class Lights:
    """The traffic lights: in every junction one phase after the other has green, yellow, then all have red.

    Attributes:
        states: uint8 [L] what each shows.
        elapsed: float64 [L] seconds since it began to show that.
        frozen: bool [L] whether its junction's cycle stands still.
        stops: [S, 4] x, y, yaw in radians and the number of the light, for every stop line.
    """

    def __init__(self, lights: Sequence[Light]) -> None:
        self.specs = tuple(lights)
        self.states = np.full(len(lights), RED, np.uint8)
        self.elapsed = np.zeros(len(lights))
        self.frozen = np.zeros(len(lights), np.bool_)
        self.times = np.tile([10.0, 3.0, 2.0], (len(lights), 1))  # green, yellow, all red
        stops = [(s.x, s.y, math.radians(s.yaw), i) for i, light in enumerate(lights) for s in light.stops]
        self.stops = np.array(stops, np.float64).reshape(-1, 4)
        self._groups: dict[int, _Cycle] = {}
        for i, light in enumerate(lights):
            cycle = self._groups.setdefault(light.junction, _Cycle())
            cycle.phases.setdefault(light.phase, []).append(i)
        self._group_of = [self._groups[light.junction] for light in lights]
        self.reset()

    def reset(self) -> None:
        """Starts every junction's cycle anew, each a little further on than the one before; thaws all."""
        self.frozen[:] = False
        for number, cycle in enumerate(self._groups.values()):
            cycle.frozen = False
            self._enter(cycle, number % len(cycle.phases), 0)
            cycle.elapsed = 1.5 * (number % 5)

    def tick(self, seconds: float) -> None:
        """Lets time pass."""
        self.elapsed += seconds
        for cycle in self._groups.values():
            if cycle.frozen:
                continue
            cycle.elapsed += seconds
            if cycle.elapsed >= cycle.limit - 1e-9:
                if cycle.stage < 2:
                    self._enter(cycle, cycle.phase, cycle.stage + 1)
                else:
                    self._enter(cycle, (cycle.phase + 1) % len(cycle.phases), 0)

    def set_state(self, light: int, state: int) -> None:
        """Makes one light show a state until its junction's next change."""
        if self.states[light] != state:
            self.states[light] = state
            self.elapsed[light] = 0.0

    def set_time(self, light: int, stage: int, seconds: float) -> None:
        """Sets how long a light's phase is green (0) or yellow (1), and all are red after it (2)."""
        for member in self.phase_of(light):
            self.times[member, stage] = seconds
        cycle = self._group_of[light]
        cycle.limit = self._limit(cycle)

    def freeze(self, light: int | None, frozen: bool) -> None:
        """Stops, or lets go on, the cycle of a light's junction; None: of all."""
        for cycle in self._groups.values() if light is None else (self._group_of[light],):
            cycle.frozen = frozen
        self.frozen[slice(None) if light is None else self.group(light)] = frozen

    def group(self, light: int) -> list[int]:
        """Returns the lights of the same junction."""
        return sorted(itertools.chain.from_iterable(self._group_of[light].phases.values()))

    def phase_of(self, light: int) -> list[int]:
        """Returns the lights that are green together with this one."""
        return next(phase for phase in self._group_of[light].phases.values() if light in phase)

    def reset_group(self, light: int) -> None:
        """Starts the cycle of a light's junction anew."""
        self._enter(self._group_of[light], 0, 0)

    def _limit(self, cycle: "_Cycle") -> float:
        return float(self.times[list(cycle.phases.values())[cycle.phase][0], cycle.stage])

    def _enter(self, cycle: "_Cycle", phase: int, stage: int) -> None:
        cycle.phase, cycle.stage, cycle.elapsed = phase, stage, 0.0
        cycle.limit = self._limit(cycle)
        for number, members in enumerate(cycle.phases.values()):
            state = (GREEN, YELLOW, RED)[stage] if number == phase else RED
            for light in members:
                self.set_state(light, state)


def _stop_line(light: Light) -> tuple[float, float, float]:
    """Returns the middle of a light's stop lines, x to its right and y back, and half their width."""
    if not light.stops:
        return (0.0, 0.0, 0.0)
    dx = sum(stop.x for stop in light.stops) / len(light.stops) - light.x
    dy = sum(stop.y for stop in light.stops) / len(light.stops) - light.y
    cos, sin = math.cos(math.radians(light.yaw)), math.sin(math.radians(light.yaw))
    return dy * cos - dx * sin, -dx * cos - dy * sin, sum(stop.width for stop in light.stops) / 2


@dataclass
class _Cycle:
    phases: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    phase: int = 0
    stage: int = 0
    elapsed: float = 0.0
    limit: float = 0.0  # seconds that the stage lasts
    frozen: bool = False


class World:
    """One episode: a town, its actors, its lights, the weather, and the time.

    Attributes:
        roads: The ground.
        actors: By id, in the order in which they came.
        table: float64 [N, 15], a row per actor: x, y, z, pitch, yaw, roll, velocity (3), angular velocity in
            degrees per second (3), acceleration (3).
        vehicles: The V actors that drive, in the order of the fleet.
        fleet: float64 [V] for every name in `FLEET`: what they are, what their drivers want, how they move.
        light_ahead: int64 [V] the number of the light whose stop line lies ahead, -1 for none.
        ground: uint8 [V] the bits of the raster under their middles at the last tick.
        lights: The traffic lights.
        weather: The fourteen numbers of `carla.WeatherParameters`; they change pictures only.
        spectator: The actor that a client's window looks from.
        changes: Grows whenever actors come or go.
        collisions: Those of the last tick.
        frame: Ticks so far.
        seconds: Simulated.
    """

    def __init__(self, roads: Roads, *, seed: int = 0, frame: int = 0) -> None:
        self.roads = roads
        self.seed = seed
        self.frame = frame
        self.seconds = 0.0
        self.weather: tuple[float, ...] = DEFAULT_WEATHER
        self.actors: dict[int, Actor] = {}
        self.table: Floats = np.zeros((0, 15))
        self.fleet: dict[str, Floats] = {name: np.zeros(0) for name in FLEET}
        self.vehicles: list[Actor] = []
        self.light_ahead: NDArray[np.int64] = np.zeros(0, np.int64)
        self.ground: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.collisions: list[Collision] = []
        self.changes = 0
        self._pushed = False  # whether any vehicle slides or spins
        self._ordered = False  # whether any has orders that are not heeded yet
        self._rng = np.random.default_rng([seed, 1])
        self._next = 1
        self._sloped = roads.sloped
        self.lights = Lights(roads.lights)
        self.spectator = self._add(_SPECTATOR, {}, Transform(z=50.0))
        self._next = 24
        for number, light in enumerate(roads.lights):
            # CARLA's own lights have their x axis across the lanes that they stop.
            actor = self._add(_LIGHT, {}, Transform(light.x, light.y, 0.0, 0.0, light.yaw + 90.0))
            actor.light, actor.stop = number, _stop_line(light)
        self._light_rows = [actor.id for actor in self.actors.values() if actor.light >= 0]

    # ---- actors

    def spawn(self, name: str, attributes: dict[str, str], transform: Transform, parent: int = 0) -> Actor:
        """Puts an actor of a blueprint into the world; with a parent, `transform` is relative to it.

        Attributes that the blueprint has not are left out.

        Raises:
            ValueError: If there is no such blueprint or parent, no room for it, no number where an attribute
                needs one, or too many actors already.
        """
        blueprint = BLUEPRINTS.get(name)
        if blueprint is None:
            raise ValueError(f"blueprint must be one of the library's, got {name!r}")
        if len(self.actors) >= MAX_ACTORS:
            raise ValueError(f"actors must be at most {MAX_ACTORS}")
        mount = transform
        if parent:
            if parent not in self.actors:
                raise ValueError("unable to attach actor: parent actor not found")
            transform = compose(self.transform(self.actors[parent]), transform)
        elif blueprint.box.length and not self._room(blueprint.box, transform):
            raise ValueError(NO_ROOM)
        complete = {a.name: attributes.get(a.name, a.value) for a in blueprint.attributes}
        for attribute in blueprint.attributes:
            if attribute.kind in (2, 3) and not math.isfinite(float(complete[attribute.name])):
                raise ValueError(f"{attribute.name} must be finite, got {complete[attribute.name]}")
        if not parent:
            transform = self._grounded(blueprint, transform)
        actor = self._add(blueprint, complete, transform, parent, mount)
        if blueprint.wheelbase:
            self._enlist(actor)
        if name == "controller.ai.walker" and parent:
            walker = self.actors[parent]
            if walker.type.startswith("walker."):
                walker.crossing = self._plan_crossing(walker)
        return actor

    def destroy(self, actor_id: int) -> bool:
        """Takes an actor away; what was attached to it stays where it is. False if there is none such."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.light >= 0 or actor is self.spectator:
            return False
        del self.actors[actor_id]
        self.table = np.delete(self.table, actor.row, axis=0)
        if actor.slot >= 0:
            self.vehicles.remove(actor)
            for name, column in self.fleet.items():
                self.fleet[name] = np.delete(column, actor.slot)
            self.light_ahead = np.delete(self.light_ahead, actor.slot)
            self.ground = np.delete(self.ground, actor.slot)
        for row, other in enumerate(self.actors.values()):
            other.row = row
            if other.parent == actor_id:
                other.parent = 0
        if actor.type == "controller.ai.walker" and actor.parent in self.actors:
            self.actors[actor.parent].crossing = None
        for slot, vehicle in enumerate(self.vehicles):
            vehicle.slot = slot
        self._settle()
        return True

    def transform(self, actor: Actor) -> Transform:
        """Returns where an actor is."""
        return Transform(*self.table[actor.row, :6].tolist())

    def place(self, actor: Actor, transform: Transform) -> None:
        """Puts an actor somewhere else; it keeps its speed. Relative if it has a parent."""
        if actor.parent:
            actor.mount = transform
            transform = compose(self.transform(self.actors[actor.parent]), transform)
        else:
            transform = self._grounded(actor.blueprint, transform)
        self.table[actor.row, :6] = transform
        if actor.crossing is not None:
            actor.crossing = self._plan_crossing(actor)

    def control(
        self, actor: Actor, throttle: float, steer: float, brake: float, hand_brake: bool, reverse: bool
    ) -> None:
        """Sets a vehicle's pedals and wheel, each cut to its range, from the next tick on."""
        actor.orders = (throttle, steer, brake, hand_brake, reverse)
        self._ordered = True

    def set_velocity(self, actor: Actor, x: float, y: float, z: float = 0.0) -> None:
        """Sets an actor's velocity, m/s in the world's frame; across its wheels a vehicle slides."""
        self.table[actor.row, VX : VZ + 1] = (x, y, z)
        if actor.slot >= 0:
            yaw = math.radians(self.table[actor.row, YAW])
            along = x * math.cos(yaw) + y * math.sin(yaw)
            self.fleet["speed"][actor.slot] = along
            self.fleet["slide_x"][actor.slot] = x - along * math.cos(yaw)
            self.fleet["slide_y"][actor.slot] = y - along * math.sin(yaw)
            self._pushed = True

    def set_spin(self, actor: Actor, degrees: float) -> None:
        """Sets a vehicle's angular velocity about the vertical, in degrees per second."""
        if actor.slot >= 0:
            self.fleet["spin"][actor.slot] = math.radians(degrees)
            self._pushed = True

    def push(self, actor: Actor, x: float, y: float) -> None:
        """Gives an actor an impulse in N s."""
        if actor.blueprint.mass and actor.slot >= 0:
            velocity = self.table[actor.row, VX : VY + 1] + np.array([x, y]) / actor.blueprint.mass
            self.set_velocity(actor, *velocity.tolist())

    def set_physics(self, actor: Actor, enabled: bool) -> None:
        """Lets an actor move by itself, or only when it is placed."""
        actor.physics = enabled
        self._settle()

    def set_solid(self, actor: Actor, solid: bool) -> None:
        """Lets an actor collide, or not; a walker always does, though its controller asks for less."""
        actor.solid = solid or actor.blueprint.walks
        self._settle()

    def light_actor(self, light: int) -> int:
        """Returns the actor's id of a light."""
        return self._light_rows[light]

    # ---- time

    def tick(self, seconds: float) -> None:
        """Moves the world on by one step of so many seconds."""
        self.frame += 1
        self.seconds += seconds
        self.collisions = []
        self.lights.tick(seconds)
        if self.vehicles:
            self._drive(seconds)
        for walker in self._walkers:
            self._walk(walker, seconds)
        if self._bodies_can_meet:
            self._collide()
        if self.vehicles:
            self._look_at_lights()
        for actor in self._attached:
            self.table[actor.row, :6] = compose(
                Transform(*self.table[self.actors[actor.parent].row, :6].tolist()), actor.mount
            )
            self.table[actor.row, VX:] = self.table[self.actors[actor.parent].row, VX:]

    def digest(self) -> str:
        """Returns a hash of everything that moves."""
        state = hashlib.blake2b(self.table.tobytes(), digest_size=16)
        state.update(self.lights.states.tobytes())
        return state.hexdigest()

    def _heed(self) -> None:
        """Brings the fleet's pedals and wheels up to date: all at once, for a client may set them all."""
        self._ordered = False
        fleet = self.fleet
        orders = np.array([actor.orders for actor in self.vehicles], np.float64)  # [V, 5]
        orders = np.minimum(np.maximum(orders, (0.0, -1.0, 0.0, 0.0, 0.0)), 1.0)
        throttle, fleet["steer"], brake, hand_brake, reverse = orders.T
        fleet["throttle"], fleet["brake"], fleet["hand_brake"], fleet["reverse"] = (
            throttle,
            brake,
            hand_brake,
            reverse,
        )
        fleet["pull"] = throttle * (1.0 - 1.5 * reverse)
        brakes = np.minimum(brake + 0.6 * hand_brake, 1.0)
        fleet["hold"] = brakes * fleet["braking"] + COASTING * (throttle == 0)

    def _drive(self, seconds: float) -> None:
        """Moves the vehicles: a bicycle about its middle, within what tyres, engine and brakes allow.

        Kinematic bicycle with the reference point halfway (Kong et al. 2015, equations 1-5): slip angle
        b = atan(tan(wheel) / 2), yaw rate = v sin(b) / (wheelbase / 2). Departures: sin(b) is cut so that the
        lateral acceleration stays within `GRIP`, and pushes add a velocity that fades.
        """
        if self._ordered:
            self._heed()
        fleet = self.fleet
        motion = self.table[self._rows]  # [V, 15], a copy
        moves, yaw = self._moves, np.radians(motion[:, YAW])
        self.ground = self.roads.at(motion[:, X], motion[:, Y])
        speed, wheel = fleet["speed"], fleet["wheel"]
        engine = np.minimum(fleet["acceleration"], fleet["power"] / (np.abs(speed) + 1.0))
        speed += fleet["pull"] * engine * (moves * seconds)
        size = np.abs(speed)
        resisting = ROLLING + DRAG * size * size + fleet["hold"]
        resisting += SOFT_GROUND * ((self.ground & _FIRM) == 0)
        speed *= np.maximum(size - resisting * seconds, 0.0) / np.maximum(size, 1e-9)
        size = np.abs(speed)
        most = STEER_RATE * seconds
        wheel += np.minimum(np.maximum(fleet["steer"] - wheel, -most), most)
        # At speed, full lock means less: half of it from 120 km/h on, as in CARLA's own steering curve.
        tangent = np.tan(wheel * fleet["lock"] * (1.0 - 0.015 * np.minimum(size, 33.3)))
        half = fleet["wheelbase"] / 2
        slip = tangent / np.sqrt(4.0 + tangent * tangent)  # sin(b)
        held = GRIP * half / np.maximum(size * size, 1e-6)
        slip = np.minimum(np.maximum(slip, -held), held)
        course = yaw + np.arcsin(slip)
        turn = (speed * slip / half + fleet["spin"]) * moves
        vx = (speed * np.cos(course) + fleet["slide_x"]) * moves
        vy = (speed * np.sin(course) + fleet["slide_y"]) * moves
        if self._constant:
            self._keep_velocity(yaw, vx, vy)
        motion[:, AX] = (vx - motion[:, VX]) / seconds
        motion[:, AY] = (vy - motion[:, VY]) / seconds
        motion[:, X] += vx * seconds
        motion[:, Y] += vy * seconds
        motion[:, YAW] = (np.degrees(yaw + turn * seconds) + 180.0) % 360.0 - 180.0
        motion[:, VX] = vx
        motion[:, VY] = vy
        motion[:, SPIN] = np.degrees(turn)
        if self._pushed:
            self._fade(seconds)
        # A nearest-lane query takes longer than all the rest: every vehicle has one every twentieth tick.
        for slot in range(self.frame % 20, len(self.vehicles), 20):
            fleet["limit"][slot] = self.roads.limit(motion[slot, X], motion[slot, Y])
        if self._sloped:
            motion[:, Z] = [self._height(x, y) for x, y in motion[:, :2].tolist()]
        self.table[self._rows] = motion

    def _keep_velocity(self, yaw: Floats, vx: Floats, vy: Floats) -> None:
        for actor in self._constant:
            along, across = actor.constant or (0.0, 0.0)
            i, cos, sin = actor.slot, math.cos(yaw[actor.slot]), math.sin(yaw[actor.slot])
            vx[i], vy[i] = along * cos - across * sin, along * sin + across * cos
            self.fleet["speed"][i] = along

    def keep_velocity(self, actor: Actor, velocity: tuple[float, float] | None) -> None:
        """Makes a vehicle keep a velocity (forward, right) whatever its pedals say; None: no longer."""
        actor.constant = velocity
        self._settle()

    def _fade(self, seconds: float) -> None:
        fleet = self.fleet
        size = np.hypot(fleet["slide_x"], fleet["slide_y"])
        rest = np.maximum(size - SLIDING * seconds, 0.0) / np.maximum(size, 1e-9)
        fleet["slide_x"] *= rest
        fleet["slide_y"] *= rest
        spin = fleet["spin"]
        spin -= np.clip(spin, -SPINNING * seconds, SPINNING * seconds)
        self._pushed = bool(fleet["slide_x"].any() or fleet["slide_y"].any() or spin.any())

    def _look_at_lights(self) -> None:
        """Finds for every vehicle the light whose stop line it approaches: `light_ahead`."""
        stops = self.lights.stops
        if not len(stops):
            return
        x, y, yaw = (self.table[self._rows, column][:, None] for column in (X, Y, YAW))
        dx, dy = stops[:, 0] - x, stops[:, 1] - y  # [V, S]
        self.light_ahead = np.full(len(self.vehicles), -1)
        vehicle, stop = np.nonzero(dx * dx + dy * dy < (LIGHT_AHEAD + 8.0) ** 2)
        if not len(vehicle):
            return
        dx, dy = dx[vehicle, stop], dy[vehicle, stop]
        angle = stops[stop, 2]
        cos, sin = np.cos(angle), np.sin(angle)
        ahead = dx * cos + dy * sin - self.fleet["length"][vehicle]  # of the bumper
        turned = np.cos(np.radians(yaw[vehicle, 0]) - angle)
        here = (ahead > -1.0) & (ahead < LIGHT_AHEAD) & (np.abs(dy * cos - dx * sin) < 1.75) & (turned > 0.7)
        order = np.argsort(-ahead[here], kind="stable")  # the nearest last: it stays
        self.light_ahead[vehicle[here][order]] = stops[stop[here][order], 3].astype(np.int64)

    # ---- bodies

    def _collide(self) -> None:
        """Pushes apart whatever overlaps, with impulses through the point of contact."""
        rows, reach, movable = self._body_rows, self._body_reach, self._movable
        xy = self.table[rows, X : Y + 1]
        dx = xy[:movable, None, 0] - xy[None, :, 0]  # [movable, all]
        dy = xy[:movable, None, 1] - xy[None, :, 1]
        close = dx * dx + dy * dy < (reach[:movable, None] + reach[None, :]) ** 2
        for i, j in zip(*np.nonzero(close), strict=True):
            if i >= j:
                continue
            a, b = self._bodies[int(i)], self._bodies[int(j)]
            contact = overlap(self._rectangle(a), self._rectangle(b))
            if contact is not None:
                self._resolve(a, b, *contact)

    def _rectangle(self, actor: Actor) -> "Rectangle":
        x, y, yaw = self.table[actor.row, [X, Y, YAW]].tolist()
        return Rectangle(x, y, math.radians(yaw), actor.blueprint.box.length, actor.blueprint.box.width)

    def _resolve(
        self, a: Actor, b: Actor, normal: tuple[float, float], depth: float, point: tuple[float, float]
    ) -> None:
        """Applies the impulse of two rigid bodies in the plane; `normal` points from b to a."""
        nx, ny = normal
        inverse = [
            1.0 / actor.blueprint.mass if actor.blueprint.mass and actor.physics else 0.0 for actor in (a, b)
        ]
        total = sum(inverse)
        if not total:
            return
        arms: list[float] = []
        closing = resistance = 0.0
        for actor, sign, light in ((a, 1.0, inverse[0]), (b, -1.0, inverse[1])):
            x, y, vx, vy, spin = self.table[actor.row, [X, Y, VX, VY, SPIN]].tolist()
            rx, ry = point[0] - x, point[1] - y
            turn = math.radians(spin)
            closing += sign * ((vx - turn * ry) * nx + (vy + turn * rx) * ny)
            arm = rx * ny - ry * nx
            arms.append(arm)
            resistance += light + (
                arm * arm / self.fleet["inertia"][actor.slot] if actor.slot >= 0 and light else 0.0
            )
        size = max(0.0, -(1.0 + BOUNCE) * closing / resistance)
        for actor, sign, light, arm in ((a, 1.0, inverse[0], arms[0]), (b, -1.0, inverse[1], arms[1])):
            if not light:
                continue
            row = self.table[actor.row]
            share = sign * depth * light / total
            row[X] += nx * share
            row[Y] += ny * share
            vx, vy = float(row[VX]) + sign * size * light * nx, float(row[VY]) + sign * size * light * ny
            self.set_velocity(actor, vx, vy)
            if actor.slot >= 0:
                self.fleet["spin"][actor.slot] += sign * size * arm / self.fleet["inertia"][actor.slot]
        impulse = (size * nx, size * ny, 0.0)
        self.collisions.append(Collision(a, b, impulse))
        self.collisions.append(Collision(b, a, (-impulse[0], -impulse[1], 0.0)))

    def _room(self, box: Box, transform: Transform) -> bool:
        mine = Rectangle(
            transform.x, transform.y, math.radians(transform.yaw), box.length + 0.1, box.width + 0.1
        )
        reach = math.hypot(box.length, box.width) + 0.2
        for other in self._bodies:
            x, y = self.table[other.row, :2].tolist()
            theirs = math.hypot(other.blueprint.box.length, other.blueprint.box.width)
            if math.hypot(x - transform.x, y - transform.y) < reach + theirs and overlap(
                mine, self._rectangle(other)
            ):
                return False
        return True

    # ---- walkers

    def walk(self, actor: Actor, x: float, y: float, speed: float, jump: bool = False) -> None:
        """Makes a walker go in a direction at a speed in m/s, from now on."""
        size = math.hypot(x, y)
        actor.walk = (x / size, y / size, speed) if size > 1e-6 else (0.0, 0.0, 0.0)
        actor.jump = jump

    def _walk(self, actor: Actor, seconds: float) -> None:
        row = self.table[actor.row]
        if actor.crossing is not None:
            self._follow(actor, actor.crossing, seconds)
        x, y, speed = actor.walk
        if not actor.physics and actor.crossing is None:
            speed = 0.0
        vx, vy = x * speed, y * speed
        row[AX], row[AY] = (vx - row[VX]) / seconds, (vy - row[VY]) / seconds
        row[VX], row[VY] = vx, vy
        row[X] += vx * seconds
        row[Y] += vy * seconds
        if speed:
            row[YAW] = math.degrees(math.atan2(vy, vx))

    def _follow(self, actor: Actor, crossing: Crossing, seconds: float) -> None:
        """Goes on crossing; whoever stands at the kerb waits for a gap in the traffic, then steps out."""
        x, y = self.table[actor.row, :2].tolist()
        to_x, to_y = (
            there - here for there, here in zip(crossing.ends[crossing.target], (x, y), strict=True)
        )
        if math.hypot(to_x, to_y) < 0.3:
            crossing.target = 1 - crossing.target
            crossing.wait = float(self._rng.uniform(4.0, 15.0))
            self.walk(actor, 0.0, 0.0, 0.0)
        elif crossing.wait > 0:
            crossing.wait -= seconds
            if crossing.wait <= 0 and not self._gap(crossing):
                crossing.wait = 0.5
            self.walk(actor, 0.0, 0.0, 0.0)
        else:
            self.walk(actor, to_x, to_y, float(actor.attributes.get("speed", "1.4")) or 1.4)

    def _gap(self, crossing: Crossing) -> bool:
        """Whether no vehicle comes that would be here within three seconds and could hardly stop."""
        (ax, ay), (bx, by) = crossing.ends
        for vehicle in self.vehicles:
            x, y, vx, vy = self.table[vehicle.row, [X, Y, VX, VY]].tolist()
            dx, dy = (ax + bx) / 2 - x, (ay + by) / 2 - y
            speed, away = math.hypot(vx, vy), math.hypot(dx, dy)
            if away < 5.0 or (
                speed > 0.5 and vx * dx + vy * dy > 0.7 * speed * away and away < 3.0 * speed + 5.0
            ):
                return False
        return True

    def _plan_crossing(self, actor: Actor) -> Crossing:
        """Returns the nearest crosswalk within 30 m, or else straight across the nearest street."""
        x, y = self.table[actor.row, :2].tolist()
        best: tuple[float, tuple[tuple[float, float], tuple[float, float]]] | None = None
        for corners in self.roads.crosswalks:
            sides = [(corners[i] + corners[(i + 1) % 4]) / 2 for i in range(4)]
            pairs = ((sides[0], sides[2]), (sides[1], sides[3]))
            first, second = max(pairs, key=lambda pair: float(np.hypot(*(pair[0] - pair[1]))))
            out = (first - second) / np.hypot(*(first - second))
            ends = (tuple((first + out).tolist()), tuple((second - out).tolist()))
            away = min(math.dist((x, y), end) for end in ends)
            if away < 30.0 and (best is None or away < best[0]):
                best = (away, ends)
        if best is None:
            best = (0.0, self._across(x, y))
        target = int(math.dist((x, y), best[1][0]) < math.dist((x, y), best[1][1]))
        return Crossing(best[1], 1 - target, float(self._rng.uniform(1.0, 8.0)))

    def _across(self, x: float, y: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """Returns where the nearest street can be crossed: 1 m beyond its road on either side."""
        waypoint = self.roads.map.get_waypoint(carla.Location(x, y, 0.0))
        place, yaw = waypoint.transform.location, math.radians(waypoint.transform.rotation.yaw)
        steps = np.arange(-20.0, 20.0, 0.25)
        xs, ys = place.x - steps * math.sin(yaw), place.y + steps * math.cos(yaw)
        road = self.roads.at(xs, ys) & np.uint8(BIT["road"]) > 0
        middle = len(steps) // 2
        low = middle - int(np.argmin(np.append(road[middle::-1], False)))
        high = middle + int(np.argmin(np.append(road[middle:], False)))
        ends = [(float(xs[i]), float(ys[i])) for i in (max(low - 4, 0), min(high + 4, len(steps) - 1))]
        return ends[0], ends[1]

    # ---- bookkeeping

    def _grounded(self, blueprint: Blueprint, transform: Transform) -> Transform:
        """Returns a pose with the feet on the ground, for what has a body."""
        if not blueprint.box.length:
            return transform
        z = self._height(transform.x, transform.y) + (blueprint.box.height if blueprint.walks else 0.0)
        yaw = (transform.yaw + 180.0) % 360.0 - 180.0
        return Transform(transform.x, transform.y, z, 0.0, yaw, 0.0)

    def _height(self, x: float, y: float) -> float:
        if not self._sloped:
            return 0.0
        return float(self.roads.map.get_waypoint(carla.Location(x, y, 0.0)).transform.location.z)

    def _add(
        self,
        blueprint: Blueprint,
        attributes: dict[str, str],
        transform: Transform,
        parent: int = 0,
        mount: Transform = HERE,
    ) -> Actor:
        actor = Actor(self._next, blueprint, attributes, len(self.actors), parent, mount)
        self._next += 1
        self.actors[actor.id] = actor
        self.table = np.vstack([self.table, np.array([[*transform, *[0.0] * 9]])])
        self._settle()
        return actor

    def _enlist(self, actor: Actor) -> None:
        """Gives a vehicle a place in the fleet."""
        actor.slot = len(self.vehicles)
        self.vehicles.append(actor)
        kind = actor.blueprint
        inertia = kind.mass * (kind.box.length**2 + kind.box.width**2) / 3  # of a plate
        lock = math.radians(kind.lock)
        own = (kind.wheelbase, kind.acceleration, kind.power, kind.braking, lock, kind.mass)
        values = dict(zip(FLEET, (*own, kind.box.length, kind.box.width, inertia), strict=False))
        x, y = self.table[actor.row, :2].tolist()
        values |= {"limit": self.roads.limit(x, y), "hold": COASTING}
        for name, column in self.fleet.items():
            self.fleet[name] = np.append(column, values.get(name, 0.0))
        self.light_ahead = np.append(self.light_ahead, -1)
        self.ground = np.append(self.ground, np.uint8(0))
        self._settle()

    def _settle(self) -> None:
        """Brings what is derived from the set of actors up to date."""
        self.changes += 1
        everyone = list(self.actors.values())
        self._rows = np.array([actor.row for actor in self.vehicles], np.intp)
        self._moves = np.array([float(actor.physics) for actor in self.vehicles])
        self._constant = [actor for actor in self.vehicles if actor.constant is not None]
        self._walkers = [actor for actor in everyone if actor.blueprint.walks]
        self._attached = [actor for actor in everyone if actor.parent in self.actors]
        props = [a for a in everyone if a.blueprint.box.length and a.slot < 0 and not a.blueprint.walks]
        solid = [actor for actor in self.vehicles if actor.solid]
        self._movable = len(solid)
        self._bodies = [*solid, *self._walkers, *(prop for prop in props if prop.solid and not prop.parent)]
        self._bodies_can_meet = self._movable > 0 and len(self._bodies) > 1
        self._body_rows = np.array([actor.row for actor in self._bodies], np.intp)
        self._body_reach = np.array([math.hypot(*actor.blueprint.box[:2]) for actor in self._bodies])

    def bodies(self) -> Iterable[Actor]:
        """Returns everything that a ray or a camera can meet, besides the ground and the lights."""
        return self._bodies


class Rectangle(NamedTuple):
    """A body from above: middle, yaw in radians, half its length and width."""

    x: float
    y: float
    yaw: float
    length: float
    width: float

    def corners(self) -> list[tuple[float, float]]:
        """Returns the four corners in order."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
        sides = [(self.length * a, self.width * b) for a, b in signs]
        return [(self.x + cos * u - sin * v, self.y + sin * u + cos * v) for u, v in sides]

    def holds(self, x: float, y: float) -> bool:
        """Returns whether a point lies inside."""
        dx, dy, cos, sin = x - self.x, y - self.y, math.cos(self.yaw), math.sin(self.yaw)
        return abs(dx * cos + dy * sin) <= self.length and abs(dy * cos - dx * sin) <= self.width


def overlap(a: Rectangle, b: Rectangle) -> tuple[tuple[float, float], float, tuple[float, float]] | None:
    """Returns how two rectangles overlap, or None: normal from b to a, depth along it, point of contact.

    Separating axes: of all four sides' directions the one along which they overlap least.
    """
    ours, theirs = a.corners(), b.corners()
    best, normal = math.inf, (0.0, 0.0)
    for angle in (a.yaw, a.yaw + math.pi / 2, b.yaw, b.yaw + math.pi / 2):
        nx, ny = math.cos(angle), math.sin(angle)
        mine = [x * nx + y * ny for x, y in ours]
        yours = [x * nx + y * ny for x, y in theirs]
        depth = min(max(mine) - min(yours), max(yours) - min(mine))
        if depth <= 0:
            return None
        if depth < best:
            away = (a.x - b.x) * nx + (a.y - b.y) * ny >= 0
            best, normal = depth, (nx, ny) if away else (-nx, -ny)
    inside = [corner for corner in ours if b.holds(*corner)] + [
        corner for corner in theirs if a.holds(*corner)
    ]
    points = inside or [(a.x, a.y), (b.x, b.y)]
    point = (sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points))
    return normal, best, point


def compose(parent: Transform, mount: Transform) -> Transform:
    """Returns where something mounted on a parent is; exact for parents that stand level, as all here do."""
    yaw = math.radians(parent.yaw)
    cos, sin = math.cos(yaw), math.sin(yaw)
    return Transform(
        parent.x + cos * mount.x - sin * mount.y,
        parent.y + sin * mount.x + cos * mount.y,
        parent.z + mount.z,
        parent.pitch + mount.pitch,
        (parent.yaw + mount.yaw + 180.0) % 360.0 - 180.0,
        parent.roll + mount.roll,
    )

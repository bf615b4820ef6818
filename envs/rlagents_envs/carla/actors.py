"""Who is on the road: the car that is driven with its sensors, and the traffic around it.

The one idea: everything is spawned once and kept; between episodes it is moved, for creating and destroying
sensors over and over is what crashes CARLA. Where everybody is comes from the snapshot of the tick, without
another call to the server.
"""

import contextlib
import math
import queue
import socket
import threading
import time
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from rlagents_envs.carla.bev import NOTHING, Boxes, Floats
from rlagents_envs.carla.connection import Connection, LostError, free_port
from rlagents_envs.carla.planner import Route
from rlagents_envs.config import Carla

CAR = "vehicle.tesla.model3"
_MOUNT = (1.5, 0.0, 2.4)  # of camera and lidar, metres ahead, right and up
_SETTLE = 4  # ticks after a teleport
_CONNECT = 0.1  # seconds in which a sensor that measures only events connects
_HARMLESS = ("static.road", "static.ground", "static.terrain", "static.roadlines")
_STUCK = 3.0  # seconds of one tick
_CAREFUL = 1.2  # metres ahead of a walker in which nobody's side may be
_CLEAR = 20.0  # metres around the start without other cars
_stranded: list[Any] = []  # Traffic Managers of this process whose server is gone


class Car(NamedTuple):
    """Where the driven car is and how it moves, in metres, seconds and radians."""

    x: float
    y: float
    yaw: float
    vx: float
    vy: float
    yaw_rate: float
    limit: float  # m/s

    @property
    def speed(self) -> float:
        """Metres per second, in whatever direction."""
        return math.hypot(self.vx, self.vy)

    @property
    def forward(self) -> float:
        """Metres per second along the car."""
        return self.vx * math.cos(self.yaw) + self.vy * math.sin(self.yaw)


class Others(NamedTuple):
    """Everybody else."""

    vehicles: Boxes
    vehicle_velocity: Floats  # [V, 2]
    walkers: Boxes
    walker_velocity: Floats  # [W, 2]


class Crossing(NamedTuple):
    """What one walker will do in this episode."""

    walker: Any
    start: float  # metres along the route at which the car sets it off
    direction: tuple[float, float]
    speed: float
    until: float  # metres to walk


def stranded() -> bool:
    """Whether this process can tick no world any more: a Traffic Manager without a server would end it."""
    return bool(_stranded)


class Actors:
    """The car, its sensors, other cars and walkers in one world.

    Args:
        connection: to the server.
        config: which sensors, how much traffic.
        seed: of the Traffic Manager.
        picture: have a colour camera for people, too.
        start: x, y, z and yaw (rad) at which the car appears.

    Raises:
        ServerError: the server does not allow it.
    """

    def __init__(
        self,
        connection: Connection,
        config: Carla,
        *,
        seed: int,
        picture: bool,
        start: tuple[float, float, float, float],
    ) -> None:
        self._link, self._config, self._carla = connection, config, connection.carla
        self._sensors: dict[str, tuple[Any, queue.SimpleQueue[Any]]] = {}
        self._boxes: dict[
            int, tuple[bool, float, float]
        ] = {}  # id: whether it walks, half its length and width
        self._traffic: list[int] = []
        self._walkers: list[Any] = []
        self._crossings: list[Crossing] = []
        self._walking: dict[int, tuple[Crossing, float, float]] = {}
        self._waiting: set[int] = set()  # those of them who stand
        self._count = -1
        self._manager: Any = None
        self._closed = threading.Event()
        self._seed = seed
        self.ego: Any = None
        world = connection.world
        with connection.guard("spawning"):
            library = world.get_blueprint_library()
            self._blueprints = library
            cars = list(library.filter(CAR)) or list(library.filter("vehicle.*"))
            if cars[0].has_attribute("role_name"):
                cars[0].set_attribute("role_name", "hero")
            self.ego = world.spawn_actor(cars[0], self._transform(*start))
            extent = self.ego.bounding_box.extent
            self.half_length = float(extent.x) or 2.4
            self._half = self.half_length, float(extent.y) or 1.0
            self._attach("collision", "sensor.other.collision", {}, (0.0, 0.0, 0.0))
            size = str(config.size)
            if "camera" in config.observations:
                kind = {"semantic": "semantic_segmentation"}.get(config.camera, config.camera)
                options = {"image_size_x": size, "image_size_y": size, "fov": "100"}
                self._attach("camera", f"sensor.camera.{kind}", options, _MOUNT)
            if "lidar" in config.observations:
                options = {
                    "range": f"{config.size * config.metres:g}",
                    "rotation_frequency": f"{config.physics_rate}",
                    "channels": "16",
                    "points_per_second": f"{16 * 180 * config.physics_rate}",
                    "upper_fov": "0",
                    "lower_fov": "-25",
                }
                self._attach("lidar", "sensor.lidar.ray_cast", options, (0.0, 0.0, 2.4))
            if picture:
                options = {"image_size_x": "448", "image_size_y": "336", "fov": "100"}
                self._attach("picture", "sensor.camera.rgb", options, (-6.0, 0.0, 4.0))
            self._listen()
            lights = world.get_actors().filter("traffic.traffic_light*")
            self.lights: dict[str, Any] = {light.get_opendrive_id(): light for light in lights}
            states = connection.carla.TrafficLightState
            self._colours = {
                int(getattr(states, name.capitalize())): name for name in ("red", "yellow", "green")
            }

    def _transform(self, x: float, y: float, z: float, yaw: float) -> Any:
        carla = self._carla
        return carla.Transform(
            carla.Location(float(x), float(y), float(z)), carla.Rotation(0.0, math.degrees(yaw), 0.0)
        )

    def _attach(
        self, name: str, kind: str, options: dict[str, str], mount: tuple[float, float, float]
    ) -> None:
        blueprint = self._blueprints.find(kind)
        for key, value in options.items():
            if blueprint.has_attribute(key):
                blueprint.set_attribute(key, value)
        sensor = self._link.world.spawn_actor(blueprint, self._transform(*mount, 0.0), attach_to=self.ego)
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        sensor.listen(arrived.put)
        self._sensors[name] = (sensor, arrived)

    def _listen(self) -> None:
        """Waits until what sensors measure arrives: they connect on their own, in their own time."""
        self._link.tick()
        until = time.monotonic() + self._config.timeout
        for name, (_, arrived) in self._sensors.items():
            while name != "collision" and arrived.empty():
                if time.monotonic() > until:
                    raise LostError(f"nothing arrives from the {name}")
                time.sleep(0.01)
                self._link.tick()
        time.sleep(_CONNECT)

    def place(self, route: Route, rng: np.random.Generator) -> Any:
        """Puts the car at rest at the start of a route and the traffic where it belongs; returns a snapshot.

        Raises:
            LostError: the server is gone.
        """
        carla, link = self._carla, self._link
        with link.guard("a reset"):
            x, y = route.xy[0]
            # Draws of their own: how many cars are missing by now must not decide where walkers stand.
            cars, walkers = rng.spawn(2)
            self._settle_traffic(float(x), float(y), cars)
            self._place_walkers(route, walkers)
            self.ego.set_transform(self._transform(x, y, route.z[0] + 0.3, route.yaw[0]))
            self.ego.set_target_velocity(carla.Vector3D(0.0, 0.0, 0.0))
            self.ego.set_target_angular_velocity(carla.Vector3D(0.0, 0.0, 0.0))
            self.ego.apply_control(carla.VehicleControl(brake=1.0, hand_brake=True))
            link.world.reset_all_traffic_lights()
        for _ in range(_SETTLE):
            link.tick()
        self.collision(drain=True)
        return link.tick()

    def drive(self, throttle: float, steer: float, brake: float) -> Any:
        """Applies a control for one decision; returns the snapshot after it.

        Raises:
            LostError: the server is gone.
        """
        with self._link.guard("a control"):
            self.ego.apply_control(self._carla.VehicleControl(throttle=throttle, steer=steer, brake=brake))
        snapshot = None
        for _ in range(self._config.ticks):
            snapshot = self._link.tick()
        return snapshot

    def car(self, snapshot: Any) -> Car:
        """Returns the driven car; LostError if it is not in the snapshot any more."""
        me = snapshot.find(self.ego.id)
        if me is None:
            raise LostError("the car is not in the world any more: the world was loaded anew")
        place, velocity, turning = me.get_transform(), me.get_velocity(), me.get_angular_velocity()
        at = place.location
        return Car(
            at.x,
            at.y,
            math.radians(place.rotation.yaw),
            velocity.x,
            velocity.y,
            math.radians(turning.z),
            (self.ego.get_speed_limit() or self._config.speed) / 3.6,
        )

    def others(self, snapshot: Any) -> Others:
        """Returns all other vehicles and walkers of a snapshot."""
        if len(snapshot) != self._count:
            self._count = len(snapshot)
            self._look(snapshot)
        rows: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = ([], [])
        for number, (walks, length, width) in self._boxes.items():
            one = snapshot.find(number)
            if one is None:
                self._count = -1
                continue
            place, velocity = one.get_transform(), one.get_velocity()
            at, yaw = place.location, math.radians(place.rotation.yaw)
            rows[walks].append((at.x, at.y, yaw, length, width, velocity.x, velocity.y))
        return Others(*_boxes(rows[0]), *_boxes(rows[1]))

    def _look(self, snapshot: Any) -> None:
        """Learns who is there: only where their number has changed, for it may ask the server."""
        self._boxes = {}
        for actor in self._link.world.get_actors([one.id for one in snapshot]):
            kind = actor.type_id
            if actor.id != self.ego.id and kind.startswith(("vehicle.", "walker.")):
                extent = actor.bounding_box.extent
                self._boxes[actor.id] = (kind.startswith("walker."), float(extent.x), float(extent.y))

    def light(self, signal: str) -> str:
        """Returns red, yellow or green; nothing for a light that is off or not there."""
        lamp = self.lights.get(signal)
        return "" if lamp is None else self._colours.get(int(lamp.state), "")

    def collision(self, *, drain: bool = False) -> str:
        """Returns what the car has hit since the last call: walker, vehicle, static, or nothing."""
        hits: set[str] = set()
        arrived = self._sensors["collision"][1]
        while not arrived.empty():
            kind = arrived.get().other_actor.type_id
            if kind.startswith(_HARMLESS):
                continue
            hits.add(next((name for name in ("walker", "vehicle") if kind.startswith(name)), "static"))
        return "" if drain else next((name for name in ("walker", "vehicle", "static") if name in hits), "")

    def data(self, name: str, frame: int) -> Any:
        """Returns what a sensor measured at a frame; LostError if it never arrives."""
        arrived = self._sensors[name][1]
        try:
            while (data := arrived.get(timeout=self._config.timeout)).frame < frame:
                pass
        except queue.Empty:
            raise LostError(f"the {name} must measure at frame {frame}, and nothing arrived") from None
        return data

    def image(self, name: str, frame: int) -> NDArray[np.uint8]:
        """Returns a camera's picture at a frame, [H, W, 4] BGRA."""
        image = self.data(name, frame)
        return np.frombuffer(image.raw_data, np.uint8).reshape(image.height, image.width, 4)

    # Traffic

    def _wake(self, port: int) -> None:
        """Wakes the Traffic Manager that listens at a port where it and a tick wait for each other.

        The library tells the manager's thread to make its step, and that thread tells the tick that it was
        made, without the lock under which the other one goes to sleep. Told in between, both sleep for ever,
        whatever the tick's time limit. Where it is the server that keeps a tick waiting, nothing is done:
        told to make a step then, the manager would end the process.
        """
        while not self._closed.wait(1):
            if time.monotonic() - self._link.ticking > _STUCK and self._link.answers():
                with contextlib.suppress(OSError):  # it may have ended meanwhile
                    _nudge(port)

    def _dismiss(self, manager: Any) -> None:
        """Ends the Traffic Manager, unless its server is gone.

        Ending, it asks its server, as it does on every tick of any world in this process; without an answer
        the library ends the process.
        """
        if self._link.answers():
            manager.shut_down()
        else:
            _stranded.append(manager)

    def _settle_traffic(self, x: float, y: float, rng: np.random.Generator) -> None:
        """Fills up the other cars to their number, and moves those away that are near a point."""
        config, carla, link = self._config, self._carla, self._link
        if not config.vehicles:
            return
        if self._manager is None:
            port = free_port()
            self._manager = link.client.get_trafficmanager(port)
            self._manager.set_synchronous_mode(True)
            threading.Thread(target=self._wake, args=(port,), daemon=True).start()
            self._manager.set_random_device_seed(self._seed)
            self._manager.set_global_distance_to_leading_vehicle(2.5)
        snapshot = link.world.get_snapshot()
        self._traffic = [number for number in self._traffic if snapshot.find(number) is not None]
        places = {number: snapshot.find(number).get_transform().location for number in self._traffic}
        near = [number for number, at in places.items() if math.hypot(at.x - x, at.y - y) < _CLEAR]
        taken = [self.ego.get_location(), *(at for number, at in places.items() if number not in near)]
        points = link.world.get_map().get_spawn_points()
        command, blueprints = carla.command, self._cars()
        moves: list[Any] = []
        spawns: list[Any] = []
        for i in rng.permutation(len(points)):
            if not near and len(self._traffic) + len(spawns) >= config.vehicles:
                break
            point = points[i]
            px, py = point.location.x, point.location.y
            if math.hypot(px - x, py - y) < _CLEAR or any(
                math.hypot(px - at.x, py - at.y) < 10 for at in taken
            ):
                continue
            taken.append(point.location)
            if near:
                moves.append(command.ApplyTransform(near.pop(), point))
                continue
            blueprint = blueprints[rng.integers(len(blueprints))]
            drive = command.SetAutopilot(command.FutureActor, True, self._manager.get_port())
            spawns.append(command.SpawnActor(blueprint, point).then(drive))
        if moves:
            link.client.apply_batch_sync(moves, False)
        if spawns:
            self._traffic += [
                answer.actor_id for answer in link.client.apply_batch_sync(spawns, False) if not answer.error
            ]
            link.tick()

    def _cars(self) -> list[Any]:
        cars = [
            blueprint
            for blueprint in self._blueprints.filter("vehicle.*")
            if not blueprint.has_attribute("number_of_wheels")
            or int(blueprint.get_attribute("number_of_wheels")) == 4
        ]
        return cars or list(self._blueprints.filter("vehicle.*"))

    def _place_walkers(self, route: Route, rng: np.random.Generator) -> None:
        """Stands walkers on the kerbs along a route, each to cross it once the car comes near."""
        if not self._config.walkers:
            return
        carla, link = self._carla, self._link
        snapshot = link.world.get_snapshot()
        self._walkers = [walker for walker in self._walkers if snapshot.find(walker.id) is not None]
        self._crossings, self._walking, self._waiting = [], {}, set()
        blueprints = list(self._blueprints.filter("walker.pedestrian.*"))
        places = np.flatnonzero(~route.junction)
        places = places[(places > 60) & (places < len(route.xy) - 20)]
        if not blueprints or not len(places):
            return
        for number in range(self._config.walkers):
            index = int(places[rng.integers(len(places))])
            x, y = route.xy[index]
            side = -1.0 if rng.random() < 0.5 else 1.0
            notice, speed = rng.uniform(18.0, 32.0), rng.uniform(1.2, 1.8)
            blueprint = blueprints[rng.integers(len(blueprints))]
            across = np.array([-math.sin(route.yaw[index]), math.cos(route.yaw[index])]) * side
            here, there = self._kerb(x, y, across), self._kerb(x, y, -across)
            at = self._transform(
                x + across[0] * here,
                y + across[1] * here,
                route.z[index] + 1.0,
                math.atan2(-across[1], -across[0]),
            )
            if number < len(self._walkers):
                walker = self._walkers[number]
                walker.set_transform(at)
                walker.apply_control(carla.WalkerControl(carla.Vector3D(1.0, 0.0, 0.0), 0.0))
            else:
                if blueprint.has_attribute("is_invincible"):
                    blueprint.set_attribute("is_invincible", "false")
                walker = link.world.try_spawn_actor(blueprint, at)
                if walker is None:
                    continue
                self._walkers.append(walker)
            away = (-float(across[0]), -float(across[1]))
            self._crossings.append(Crossing(walker, index / 2 - notice, away, speed, here + there))

    def _kerb(self, x: float, y: float, across: NDArray[np.float64]) -> float:
        """Returns how far it is from a point on the road to where a walker stands beside it."""
        metres = np.arange(1.0, 20.0, 0.25)
        bits = self._link.roads.at(x + across[0] * metres, y + across[1] * metres)
        off = np.flatnonzero((bits & 1) == 0)  # the bit of "road"
        return float(metres[off[0]] + 1.0) if len(off) else 6.0

    def walk(self, driven: float, car: Car, vehicles: Boxes) -> None:
        """Sets off the walkers that the car comes near to, and stops those that are across.

        A walker heeds nobody who comes, but waits where somebody's side is in the way already.
        """
        carla = self._carla
        for crossing in [one for one in self._crossings if driven >= one.start]:
            self._crossings.remove(crossing)
            at = crossing.walker.get_location()
            self._walking[crossing.walker.id] = (crossing, at.x, at.y)
            self._waiting.add(crossing.walker.id)
        own = Boxes(np.array([[car.x, car.y]]), np.array([car.yaw]), np.array([self._half]))
        for number, (crossing, x, y) in list(self._walking.items()):
            at, (dx, dy) = crossing.walker.get_location(), crossing.direction
            across = math.hypot(at.x - x, at.y - y) >= crossing.until
            ahead = at.x + dx * _CAREFUL, at.y + dy * _CAREFUL
            waits = across or own.hold(*ahead) or vehicles.hold(*ahead)
            if waits != (number in self._waiting):
                speed = 0.0 if waits else crossing.speed
                crossing.walker.apply_control(carla.WalkerControl(carla.Vector3D(dx, dy, 0.0), speed))
                self._waiting ^= {number}
            if across:
                del self._walking[number]

    def close(self, *, lost: bool = False) -> None:
        """Stops and destroys everything in the right order; where the server is lost, only lets go of it.

        Sensors are stopped first and then destroyed, by the references that were got when they were spawned;
        then walkers, other cars, and the car itself.
        """
        self._closed.set()
        for sensor, _ in self._sensors.values():
            with contextlib.suppress(RuntimeError):
                sensor.stop()
        if self._manager is not None:
            self._dismiss(self._manager)
        if not lost:
            with contextlib.suppress(RuntimeError):
                for sensor, _ in self._sensors.values():
                    sensor.destroy()
                batch = [self._carla.command.DestroyActor(number) for number in self._traffic]
                if batch:
                    self._link.client.apply_batch_sync(batch, False)
                for actor in (*self._walkers, self.ego):
                    if actor is not None:
                        actor.destroy()
                self._link.tick()
        self._sensors.clear()
        self._walkers, self._crossings, self._walking = [], [], {}
        self.ego = self._manager = None


def _nudge(port: int) -> None:
    """Has the Traffic Manager at a port leave synchronous mode and enter it again, by which it makes a step.

    Its methods in Python need a lock that a tick holds while it waits for it; its own server does not.
    """
    import msgpack

    with socket.create_connection(("127.0.0.1", port), _STUCK) as line:
        for number, mode in enumerate((False, True)):
            call = [0, number, "set_synchronous_mode", [mode]]  # as rpclib writes it
            line.sendall(cast("bytes", msgpack.packb(call)))
            line.recv(4096)  # that it is done


def _boxes(rows: list[tuple[float, ...]]) -> tuple[Boxes, Floats]:
    if not rows:
        return NOTHING, np.zeros((0, 2))
    table = np.array(rows)  # [V, 7]
    return Boxes(table[:, :2], table[:, 2], table[:, 3:5]), table[:, 5:7]

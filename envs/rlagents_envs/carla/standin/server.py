"""The stand-in server: CARLA's two ports, one thread, one world.

The one idea: everything happens in one loop that waits on all sockets, so there is no lock, and the order of
events is the order of arrival. Requests come in on one port; on the next one clients open a stream per
sensor, plus one for the states of the world. Whatever a client sends, all it can lose is its own connection.
"""

import contextlib
import math
import os
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections import deque
from typing import Any, ClassVar

from rlagents_envs.carla import towns
from rlagents_envs.carla.roads import Roads
from rlagents_envs.carla.standin import sensors, wire
from rlagents_envs.carla.standin.wire import Layout, Request, WireError
from rlagents_envs.carla.standin.world import Actor, Transform, World

STEP = 0.05  # seconds per tick where a client has fixed none
MAX_STEP = 1.0
MAX_CONNECTIONS = 384
MAX_UNSENT = 64 * 2**20  # bytes that a client may leave unread before it is cut off
MAX_REPORTS = 20  # of faults, on the error output
AWAITED = 0.5  # seconds that a tick waits for a stream that a client is about to open
PAUSE = 0.25  # seconds without a tick of its own after a new world
GENERATED = "OpenDriveMap"  # CARLA's name for a map from a client
TICKS = ("tick_cue", "apply_batch")
DEFAULT_SETTINGS: tuple[Any, ...] = (False, False, None, True, 0.01, 10, 0.0, False, 3000.0, 2000.0, True)


class Link:
    """One connection: what has arrived and is not done, what is to be sent and could not yet be."""

    def __init__(self, connection: socket.socket, kind: str) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self.kind = kind  # "request" or "stream"
        self.decoder = wire.Decoder()
        self.waiting: deque[Request] = deque()
        self.unsent = bytearray()
        self.head = b""  # of a stream: the bytes of its number so far
        self.stream = -1
        self.open = True


class Server:
    """A stand-in for the CARLA simulator.

    Args:
        town: A town's name, or the path of an .xodr file.
        host: Address to listen at.
        port: For requests; streams use the next one. 0: a free pair is chosen.
        seed: Of everything random.
        version: Of CARLA, whose messages it speaks.
        streams: Number of the first stream, that of the world's states. Clients of a server that was here
            before open theirs again by number, and their library may abort over what it then hears.

    Raises:
        ValueError: If there is no such town or version.
        OSError: If the ports are taken.
    """

    def __init__(
        self,
        town: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 0,
        version: str = "0.9.16",
        streams: int = 1,
    ) -> None:
        if version not in wire.LAYOUTS:
            raise ValueError(f"version must be one of {', '.join(wire.LAYOUTS)}, got {version!r}")
        self.layout: Layout = wire.LAYOUTS[version]
        self._town = town
        self._name = os.path.splitext(os.path.basename(town))[0] if town.endswith(".xodr") else town  # noqa: PTH119, PTH122
        self._seed = seed
        self._generated: Roads | None = None
        self._roads = Roads(towns.opendrive(town), name=self._name)
        self._first_roads, self._first_name = self._roads, self._name
        self.episode = 1
        self.world = World(self._roads, seed=seed)
        self._settings = DEFAULT_SETTINGS
        self._states = wire.States(self.layout)
        self._fresh = 2  # states to send with the sign of a new map
        self._subscribers: dict[int, list[Link]] = {}
        self._sensors: dict[int, tuple[int, sensors.Sensor]] = {}  # by actor: stream, state
        self._tokens: dict[int, bytes] = {}
        self._observer, self._next_stream = streams, streams + 1
        self._awaited: dict[int, float] = {}  # streams about to be opened, and until when to wait for them
        self._managers: dict[int, str] = {}
        self._links: set[Link] = set()
        self._orphans: dict[Link, None] = {}  # streams with nothing to send, the oldest first
        self._reports = 0
        self._running = True
        self._next_tick = 0.0
        self._answers = {name: getattr(self, f"_{name}") for name in self.layout.methods}
        self._selector = selectors.DefaultSelector()
        self._requests, self._streams = _bind(host, port)
        self.host, self.port = self._requests.getsockname()[:2]
        self._arrived = memoryview(
            bytearray(1 << 18)
        )  # a fresh one per message would cost more than it holds
        self._wake, self._alarm = socket.socketpair()
        for listener in (self._requests, self._streams, self._wake):
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)

    def stop(self) -> None:
        """Makes `run` return soon; may be called from another thread or a signal's handler."""
        self._running = False
        with contextlib.suppress(OSError):
            self._alarm.send(b"\0")

    def run(self, parent: int = 0) -> None:
        """Serves until `stop`, or until the process `parent` (0: none) is gone; then closes everything."""
        ours = parent and os.getppid() == parent
        checked = 0.0
        try:
            while self._running:
                for key, ready in self._selector.select(self._patience(parent)):
                    self._attend(key, ready)
                now = time.monotonic()
                if parent and now >= checked:
                    checked = now + 0.5
                    if (ours and os.getppid() != parent) or not _alive(parent):
                        break
                self._resume(now)
                if not self._settings[0] and now >= self._next_tick:
                    self._next_tick = max(self._next_tick + self._step(), now)
                    try:
                        self._tick()
                    except Exception:  # as in an answer: the world goes on
                        self._report(f"a tick failed\n{traceback.format_exc(limit=-3)}")
        finally:
            self.close()

    def close(self) -> None:
        """Closes all sockets; may be called twice."""
        self._running = False
        for link in list(self._links):
            self._drop(link)
        for listener in (self._requests, self._streams, self._wake, self._alarm):
            listener.close()
        self._selector.close()

    # ---- sockets

    def _patience(self, parent: int) -> float | None:
        """Returns how long to wait for the sockets at most."""
        now = time.monotonic()
        limits = [0.5] if parent else []
        if not self._settings[0]:
            limits.append(max(self._next_tick - now, 0.0))
        if self._awaited:
            limits.append(max(min(self._awaited.values()) - now, 0.0))
        return min(limits) if limits else None

    def _attend(self, key: selectors.SelectorKey, ready: int) -> None:
        link = key.data
        if isinstance(link, Link):
            if ready & selectors.EVENT_WRITE:
                self._flush(link)
            if ready & selectors.EVENT_READ and link.open:
                self._receive(link)
        elif key.fileobj is self._wake:
            with contextlib.suppress(OSError):
                self._wake.recv(64)
        else:
            self._accept(self._requests if key.fileobj is self._requests else self._streams)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if len(self._links) >= MAX_CONNECTIONS and self._orphans:
            self._drop(next(iter(self._orphans)))
        if len(self._links) >= MAX_CONNECTIONS:
            connection.close()
            return
        link = Link(connection, "request" if listener is self._requests else "stream")
        self._links.add(link)
        self._selector.register(connection, selectors.EVENT_READ, link)

    def _receive(self, link: Link) -> None:
        try:
            data: bytes | memoryview = self._arrived[: link.socket.recv_into(self._arrived)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._drop(link)
        elif link.kind == "stream":
            self._subscribe(link, data)
        else:
            try:
                link.waiting.extend(link.decoder.feed(data))
            except WireError as error:
                self._report(f"a connection was closed: {error}")
                self._drop(link)
                return
            self._serve(link)

    def _subscribe(self, link: Link, data: bytes | memoryview) -> None:
        """Reads which stream a client wants; whatever it sends after that is not for anyone."""
        if link.stream >= 0:
            return
        link.head += data[: 4 - len(link.head)]
        if len(link.head) < 4:
            return
        (link.stream,) = struct.unpack("<I", link.head)
        if link.stream != self._observer and link.stream not in {
            stream for stream, _ in self._sensors.values()
        }:
            self._orphans[link] = None
            return
        self._subscribers.setdefault(link.stream, []).append(link)
        self._awaited.pop(link.stream, None)
        if link.stream == self._observer:
            self._send(link, self._state())

    def _send(self, link: Link, data: bytes) -> None:
        """Sends now what the socket takes, the rest when it takes more."""
        if not link.open:
            return
        if not link.unsent:
            try:
                sent = link.socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._drop(link)
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._selector.modify(link.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, link)
        link.unsent += data
        if len(link.unsent) > MAX_UNSENT:
            self._report(f"a connection was closed: {len(link.unsent)} bytes were left unread")
            self._drop(link)

    def _flush(self, link: Link) -> None:
        try:
            del link.unsent[: link.socket.send(link.unsent)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(link)
            return
        if not link.unsent:
            self._selector.modify(link.socket, selectors.EVENT_READ, link)

    def _drop(self, link: Link) -> None:
        if link.open:
            link.open = False
            link.waiting.clear()
            self._links.discard(link)
            self._orphans.pop(link, None)
            if link in self._subscribers.get(link.stream, ()):
                self._subscribers[link.stream].remove(link)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(link.socket)
            link.socket.close()

    def _report(self, what: str) -> None:
        """Tells about a fault, for the first few of them."""
        self._reports += 1
        if self._reports <= MAX_REPORTS:
            last = " (no more of these will be shown)" if self._reports == MAX_REPORTS else ""
            print(f"stand-in server: {what}{last}", file=sys.stderr, flush=True)  # noqa: T201

    # ---- requests

    def _serve(self, link: Link) -> None:
        """Answers what has arrived; a tick waits for streams about to be opened, so that none misses it."""
        while link.waiting and not (self._awaited and link.waiting[0].method in TICKS):
            request = link.waiting.popleft()
            reply = self._answer(request)
            if reply is not None:
                self._send(link, reply)

    def _resume(self, now: float) -> None:
        """Goes on with requests that waited, once every stream is open or has had its time."""
        for stream in [stream for stream, until in self._awaited.items() if until <= now]:
            del self._awaited[stream]
        if not self._awaited:
            for link in [link for link in self._links if link.waiting]:
                self._serve(link)

    def _answer(self, request: Request) -> bytes | None:
        """Returns the reply to a request, if it wants one."""
        method = self.layout.methods.get(request.method)
        try:
            method, arguments = self.layout.request(request)
            result = self._answers[request.method](*arguments)
            return None if request.id is None else self.layout.reply(request.id, method, result)
        except Exception as error:  # a fault of ours must not end everybody's simulation
            reason = self._reason(error, request.method)
        return None if request.id is None else self.layout.refusal(request.id, method, reason)

    def _reason(self, error: Exception, method: str) -> str:
        """Returns what to tell a client about an error; a fault of ours is reported, too."""
        if isinstance(error, ValueError):
            return str(error)
        reason = f"{type(error).__name__} in {method}"
        self._report(f"{reason}\n{traceback.format_exc(limit=-3)}")
        return reason

    def _actor(self, actor_id: int, prefix: str = "") -> Actor:
        actor = self.world.actors.get(actor_id)
        if actor is None or not actor.type.startswith(prefix):
            raise ValueError(f"actor {actor_id} not found" + (f" among {prefix}*" if prefix else ""))
        return actor

    def _light(self, actor_id: int) -> int:
        return self._actor(actor_id, "traffic.traffic_light").light

    # ---- time

    def _step(self) -> float:
        return min(max(self._settings[2] or STEP, 1e-3), MAX_STEP)

    def _tick(self) -> None:
        """Moves the world on and sends what sensors measured, then its state."""
        seconds = self._step()
        self.world.tick(seconds)
        for actor_id, (stream, state) in self._sensors.items():
            links = self._subscribers.get(stream)
            if links:
                self._measure(self.world.actors[actor_id], state, links, seconds)
        links = self._subscribers.get(self._observer)
        if links:
            message = self._state()
            for link in tuple(links):
                self._send(link, message)

    def _measure(self, actor: Actor, state: sensors.Sensor, links: list[Link], seconds: float) -> None:
        try:
            bodies = list(sensors.sense(self.world, actor, state, self.layout, seconds, self._tokens))
        except (ValueError, ArithmeticError) as error:
            self._report(f"{actor.type} could not measure: {error}")
            return
        if bodies:
            pose, index = self.world.transform(actor), self.layout.sensors[actor.type]
            for body in bodies:
                message = self.layout.message(index, self.world.frame, self.world.seconds, pose, body)
                for link in tuple(links):
                    self._send(link, message)

    def _state(self) -> bytes:
        fresh, self._fresh = self._fresh > 0, max(self._fresh - 1, 0)
        body = self._states.encode(self.world, self.episode, self._step(), fresh)
        world = self.world
        return self.layout.message(self.layout.observer, world.frame, world.seconds, Transform(), body)

    def _tick_cue(self) -> int:
        self._tick()
        return self.world.frame

    # ---- episodes, maps, settings

    def _version(self) -> str:
        return self.layout.version

    def _get_episode_info(self) -> list[object]:
        return [self.episode, [self.layout.make_token(self._observer, self.port + 1)]]

    def _get_episode_settings(self) -> list[object]:
        values: list[object] = list(self._settings)
        values[2] = [False] if values[2] is None else [True, values[2]]
        return values

    def _set_episode_settings(self, settings: tuple[Any, ...]) -> int:
        if settings[2] is not None and not 0 <= settings[2] <= MAX_STEP:
            raise ValueError(f"fixed_delta_seconds must lie between 0 and {MAX_STEP}, got {settings[2]}")
        self._settings = settings
        self._next_tick = time.monotonic()
        return self.world.frame

    def _get_map_info(self) -> list[object]:
        points = [
            [[p.location.x, p.location.y, p.location.z], [p.rotation.pitch, p.rotation.yaw, p.rotation.roll]]
            for p in self._roads.spawn_points()
        ]
        return [f"Carla/Maps/{self._name}", points]

    def _get_map_data(self) -> str:
        return self._roads.text

    def _get_required_files(self, folder: str) -> list[str]:
        return []

    def _get_navigation_mesh(self) -> bytes:
        return b""

    def _get_available_maps(self) -> list[str]:
        names = [self._first_name, *(f"{family}-{seed}" for family in towns.FAMILIES for seed in range(1, 5))]
        return [f"/Game/Carla/Maps/{name}" for name in dict.fromkeys(names)]

    def _load_new_episode(self, name: str, reset_settings: bool, layers: object) -> None:
        """Loads a town by its name, the present one by none. A client's words never open a file."""
        short = name.rsplit("/", 1)[-1] or self._name
        if short == self._name:
            roads = self._roads
        elif short == self._first_name:
            roads = self._first_roads
        elif short == GENERATED and self._generated is not None:
            roads = self._generated
        elif "." not in short:
            roads = Roads(towns.opendrive(short), name=short)
        else:
            raise ValueError(f"map '{name}' not found")
        self._begin(roads, short, reset_settings)

    def _copy_opendrive_to_file(self, text: str, parameters: object) -> None:
        if not _parses(text):
            raise ValueError("opendrive could not be correctly parsed")
        self._generated = Roads(text, name=GENERATED)
        if self._name == GENERATED:
            self._roads = self._generated

    def _begin(self, roads: Roads, name: str, reset_settings: bool) -> None:
        for stream, _ in self._sensors.values():
            self._silence(stream)
        self._sensors.clear()
        self._tokens.clear()
        self._awaited.clear()
        self._roads, self._name = roads, name
        self.episode += 1
        self.world = World(roads, seed=self._seed, frame=self.world.frame)
        self._fresh = 2
        if reset_settings:
            self._settings = (False, self._settings[1], None, *self._settings[3:])
        # Nothing is sent now: a client that loads a world drops its old stream and opens a new one at once,
        # and its library aborts if a state arrives between the two.
        self._next_tick = time.monotonic() + PAUSE

    # ---- actors

    def _get_actor_definitions(self) -> list[object]:
        return self.layout.definitions()

    def _get_spectator(self) -> list[object]:
        return self.layout.actor(self.world.spectator, self._tokens)

    def _get_actors_by_id(self, numbers: list[int]) -> list[object]:
        actors = self.world.actors
        return [self.layout.actor(actors[number], self._tokens) for number in numbers if number in actors]

    def _spawn(self, description: tuple[Any, ...], transform: Transform, parent: int = 0) -> Actor:
        _, kind, listed = description
        attributes = {name: value for name, _, value in listed}
        if kind.startswith("sensor."):
            known = wire.BLUEPRINTS.get(kind)
            own = {a.name: a.value for a in known.attributes} if known else {}
            sensors.check(kind, own | attributes)
        actor = self.world.spawn(kind, attributes, transform, parent)
        if kind in self.layout.sensors:
            stream, self._next_stream = self._next_stream, self._next_stream + 1
            self._sensors[actor.id] = stream, sensors.Sensor()
            self._tokens[actor.id] = self.layout.make_token(stream, self.port + 1)
        return actor

    def _spawn_actor(self, description: tuple[Any, ...], transform: Transform) -> list[object]:
        return self.layout.actor(self._spawn(description, transform), self._tokens)

    def _spawn_actor_with_parent(
        self, description: tuple[Any, ...], transform: Transform, parent: int, attachment: int, bone: str
    ) -> list[object]:
        self._actor(parent)
        return self.layout.actor(self._spawn(description, transform, parent), self._tokens)

    def _destroy_actor(self, number: int) -> bool:
        if not self.world.destroy(number):
            raise ValueError(f"unable to destroy actor: {number} not found")
        stream, _ = self._sensors.pop(number, (0, None))
        self._tokens.pop(number, None)
        self._silence(stream)
        return True

    def _silence(self, stream: int) -> None:
        """Sends no more on a stream. The client is to close it: its library aborts if both do at once."""
        self._awaited.pop(stream, None)
        self._orphans.update(dict.fromkeys(self._subscribers.pop(stream, [])))

    def _get_sensor_token(self, stream: int) -> list[object]:
        """Gives a token to open a stream with; the next tick waits a moment for it to be opened."""
        if stream != self._observer and stream not in {number for number, _ in self._sensors.values()}:
            raise ValueError(f"stream {stream} not found")
        if not self._subscribers.get(stream):
            self._awaited[stream] = time.monotonic() + AWAITED
        return [self.layout.make_token(stream, self.port + 1)]

    def _enable_sensor_for_ros(self, stream: int) -> None:
        raise ValueError("ROS is not part of the stand-in server")

    def _disable_sensor_for_ros(self, stream: int) -> None:
        raise ValueError("ROS is not part of the stand-in server")

    def _is_sensor_enabled_for_ros(self, stream: int) -> bool:
        return False

    def _apply_control_to_vehicle(self, number: int, control: tuple[Any, ...]) -> None:
        throttle, steer, brake, hand_brake, reverse, manual, gear = control
        actor = self._actor(number, "vehicle.")
        self.world.control(actor, throttle, steer, brake, hand_brake, reverse or (manual and gear < 0))
        if (actor.manual, actor.gear) != (manual, gear):
            actor.manual, actor.gear = manual, gear
            self.world.changes += 1

    def _apply_control_to_walker(self, number: int, control: tuple[Any, ...]) -> None:
        (x, y, _), speed, jump = control
        self.world.walk(self._actor(number, "walker."), x, y, min(max(speed, 0.0), 10.0), jump)

    def _set_actor_transform(self, number: int, transform: Transform) -> None:
        self.world.place(self._actor(number), transform)

    def _set_actor_location(self, number: int, location: tuple[float, float, float]) -> None:
        actor = self._actor(number)
        now = actor.mount if actor.parent else self.world.transform(actor)
        self.world.place(actor, Transform(*location, *now[3:]))

    def _set_actor_target_velocity(self, number: int, velocity: tuple[float, float, float]) -> None:
        self.world.set_velocity(self._actor(number), *velocity)

    def _set_actor_target_angular_velocity(self, number: int, velocity: tuple[float, float, float]) -> None:
        self.world.set_spin(self._actor(number), velocity[2])

    def _enable_actor_constant_velocity(self, number: int, velocity: tuple[float, float, float]) -> None:
        self.world.keep_velocity(self._actor(number, "vehicle."), velocity[:2])

    def _disable_actor_constant_velocity(self, number: int) -> None:
        self.world.keep_velocity(self._actor(number, "vehicle."), None)

    def _add_actor_impulse(self, number: int, impulse: tuple[float, float, float]) -> None:
        self.world.push(self._actor(number), impulse[0], impulse[1])

    def _set_actor_simulate_physics(self, number: int, enabled: bool) -> None:
        self.world.set_physics(self._actor(number), enabled)

    def _set_actor_enable_gravity(self, number: int, enabled: bool) -> None:
        self._actor(number)  # nothing falls here

    def _set_actor_collisions(self, number: int, enabled: bool) -> None:
        self.world.set_solid(self._actor(number), enabled)

    def _set_actor_autopilot(self, number: int, enabled: bool) -> None:
        self._actor(number, "vehicle.")  # the Traffic Manager, in the client, does the driving

    def _get_actor_bounding_box(self, number: int) -> list[object]:
        return self.layout.box(self._actor(number))

    def _get_physics_control(self, number: int) -> list[object]:
        # No error for a vehicle that has just gone: a Traffic Manager that asks for it would abort.
        actor = self.world.actors.get(number)
        kind = actor.blueprint if actor and actor.slot >= 0 else wire.BLUEPRINTS["vehicle.tesla.model3"]
        # 70 degrees: as CARLA says it, of the inner wheel.
        wheel = [3.5, 0.25, 70.0, 35.0, 1500.0, 3000.0, 3.0, 20.0, 3000.0, [0.0, 0.0, 0.0]]
        torque, steering = [[0.0, 500.0], [5000.0, 500.0]], [[0.0, 1.0], [120.0, 0.5]]
        gears = [[1.0, 0.5, 0.65]]
        head = [torque, 5000.0, 1.0, 0.15, 2.0, 0.35, True, 0.5, 10.0, 4.0, gears, kind.mass, 0.3]
        return [*head, [0.0, 0.0, 0.0], steering, [wheel] * 4, True]

    def _get_vehicle_light_states(self) -> list[object]:
        return [[actor.id, actor.vehicle_lights] for actor in self.world.vehicles]

    def _get_vehicle_light_state(self, number: int) -> list[int]:
        return [self._actor(number, "vehicle.").vehicle_lights]

    def _set_vehicle_light_state(self, number: int, lights: tuple[int]) -> None:
        (self._actor(number, "vehicle.").vehicle_lights,) = lights

    def _apply_batch(
        self, commands: list[tuple[int, tuple[Any, ...]] | WireError], then_tick: bool
    ) -> list[object]:
        """Does what can be done: a client whose whole batch fails ends its process, as a Traffic Manager."""
        outcomes: list[object] = []
        for each in commands:
            try:
                if isinstance(each, WireError):
                    self._report(f"a command of a batch was not heeded: {each}")
                    raise each
                outcomes.append([[1, self._command(*each)]])
            except Exception as error:
                outcomes.append([[0, [self._reason(error, "apply_batch")]]])
        if then_tick:
            self._tick()
        return outcomes

    def _command(self, kind: int, fields: tuple[Any, ...]) -> int:
        """Does one command of a batch; returns the actor's id."""
        act = self._BATCHED.get(kind)
        if act is not None:
            act(self, *fields)
            return fields[0]
        if kind == wire.SPAWN:
            description, transform, parent, _, _, afterwards = fields
            actor = self._spawn(description, transform, parent or 0)
            for further, details in afterwards:
                with contextlib.suppress(ValueError):
                    # The client could not know the id yet.
                    self._command(further, details if further == wire.SPAWN else (actor.id, *details[1:]))
            return actor.id
        if kind in wire.UNSUPPORTED:
            raise ValueError(f"{wire.UNSUPPORTED[kind]} is not part of the stand-in server")
        if kind == wire.WALKER_STATE:
            number, transform, speed = fields
            self.world.place(self._actor(number, "walker."), transform)
            angle = math.radians(transform.yaw)
            self.world.walk(self._actor(number), math.cos(angle), math.sin(angle), speed)
            return number
        return 0  # for the console, or telemetry to be shown

    # ---- weather and lights

    def _get_weather_parameters(self) -> list[float]:
        return list(self.world.weather)

    def _set_weather_parameters(self, weather: tuple[float, ...]) -> None:
        self.world.weather = weather

    def _query_lights_state(self, client: object) -> list[object]:
        return []

    def _update_lights_state(self, client: object, lights: object, discard: object) -> None:
        pass

    def _get_group_traffic_lights(self, number: int) -> list[int]:
        return [self.world.light_actor(light) for light in self.world.lights.group(self._light(number))]

    def _get_light_boxes(self, number: int) -> list[object]:
        x, y, _, _, yaw, _ = self.world.transform(
            self.world.actors[self.world.light_actor(self._light(number))]
        )
        return [[[x, y, 3.2], [0.15, 0.3, 0.6], [0.0, yaw - 90.0, 0.0], number]]

    def _get_traffic_sign_trigger_volume(self, number: int) -> list[object]:
        self._light(number)
        return self.layout.box(self._actor(number))

    def _set_traffic_light_state(self, number: int, state: int) -> None:
        self.world.lights.set_state(self._light(number), state)

    def _set_traffic_light_green_time(self, number: int, seconds: float) -> None:
        self._set_time(number, 0, seconds)

    def _set_traffic_light_yellow_time(self, number: int, seconds: float) -> None:
        self._set_time(number, 1, seconds)

    def _set_traffic_light_red_time(self, number: int, seconds: float) -> None:
        self._set_time(number, 2, seconds)

    def _set_time(self, number: int, stage: int, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"a light's time must be at least 0 s, got {seconds}")
        self.world.lights.set_time(self._light(number), stage, seconds)

    def _freeze_traffic_light(self, number: int, frozen: bool) -> None:
        self.world.lights.freeze(self._light(number), frozen)

    def _freeze_all_traffic_lights(self, frozen: bool) -> None:
        self.world.lights.freeze(None, frozen)

    def _reset_traffic_light_group(self, number: int) -> None:
        self.world.lights.reset_group(self._light(number))

    def _reset_all_traffic_lights(self) -> None:
        self.world.lights.reset()

    def _project_point(
        self, start: tuple[float, float, float], direction: tuple[float, float, float], reach: float
    ) -> list[object]:
        """Returns whether a ray meets the ground within reach, and where."""
        size = math.hypot(*direction)
        down = -direction[2] / size if size else 0.0
        away = start[2] / down if down > 1e-6 else -1.0
        if not 0 <= away <= reach:
            return [False, [[0.0, 0.0, 0.0], 0]]
        x, y = (at + away * side / size for at, side in zip(start[:2], direction[:2], strict=True))
        return [True, [[x, y, 0.0], 1]]

    # ---- what there is nothing of

    def _show_vehicle_debug_telemetry(self, number: int, shown: bool) -> None:
        pass

    def _enable_environment_objects(self, numbers: object, enabled: bool) -> None:
        pass

    def _get_environment_objects(self, tag: int) -> list[object]:
        return []

    def _get_all_level_BBs(self, tag: int) -> list[object]:  # noqa: N802 - CARLA's own name
        return []

    def _get_names_of_all_objects(self) -> list[str]:
        return []

    def _draw_debug_shape(self, shape: object) -> None:
        pass

    # ---- traffic managers: clients tell each other where theirs listens

    def _is_traffic_manager_running(self, port: int) -> bool:
        return port in self._managers

    def _get_traffic_manager_running(self, port: int) -> list[object]:
        return [self._managers[port], port] if port in self._managers else ["", 0]

    def _add_traffic_manager_running(self, manager: tuple[str, int]) -> bool:
        host, port = manager
        if port in self._managers or len(self._managers) >= 1024:
            return False
        self._managers[port] = host
        return True

    def _destroy_traffic_manager(self, port: int) -> bool:
        return self._managers.pop(port, None) is not None

    _BATCHED: ClassVar[dict[int, Any]] = {
        wire.DESTROY: _destroy_actor,
        wire.CONTROL: _apply_control_to_vehicle,
        wire.WALK: _apply_control_to_walker,
        wire.PLACE: _set_actor_transform,
        wire.VELOCITY: _set_actor_target_velocity,
        wire.SPIN: _set_actor_target_angular_velocity,
        wire.IMPULSE: _add_actor_impulse,
        wire.PHYSICS: _set_actor_simulate_physics,
        wire.GRAVITY: _set_actor_enable_gravity,
        wire.AUTOPILOT: _set_actor_autopilot,
        wire.VEHICLE_LIGHTS: _set_vehicle_light_state,
        wire.LOCATION: _set_actor_location,
        wire.LIGHT_STATE: _set_traffic_light_state,
    }


def _bind(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Returns two listening sockets at a port and the next one; port 0: any free pair."""
    for attempt in range(100):
        pair: list[socket.socket] = []
        try:
            first = port
            for offset in range(2):
                listener = socket.socket()
                pair.append(listener)
                if os.name == "posix":
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((host, first + offset if first else 0))
                first = first or listener.getsockname()[1]
                listener.listen(64)
            return pair[0], pair[1]
        except (OSError, OverflowError):
            for listener in pair:
                listener.close()
            if port or attempt == 99:
                raise
    raise OSError("no free pair of ports was found")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _parses(text: str) -> bool:
    """Returns whether a map can be made of a client's text, tried in a process that may crash over it."""
    if not hasattr(os, "fork"):
        return True
    child = os.fork()
    if not child:
        try:
            os.close(1)
            os.close(2)
            Roads(text)
        except BaseException:  # nothing may return from here
            os._exit(1)
        os._exit(0)
    until = time.monotonic() + 20.0
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False

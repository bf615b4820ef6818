"""CARLA's messages: strict decoding of what clients send, and the byte layouts of what they expect.

The one idea: nothing that arrives is trusted. A message is bounded before it is decoded, an argument is
checked against the type its method declares before anything acts on it. What differs between versions of
CARLA lies in one `Layout`. Requests are msgpack-rpc, as rpclib speaks it; sensor streams are packed structs.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard, cast

import msgpack
import numpy as np
from numpy.typing import NDArray

from rlagents_envs.carla.standin.world import BLUEPRINTS, Actor, Collision, Transform, World

MAX_MESSAGE = 32 * 2**20  # bytes of one request: an OpenDRIVE text is the largest there is
MAX_ITEMS = 4096  # of one list
MAX_NAME = 128  # characters of a method, blueprint or attribute
MAX_NUMBER = 1e7  # no coordinate, speed or time is larger
NO_TOKEN = b""


class WireError(ValueError):
    """A message, or a part of one, is not what its sender was to send."""


class Request(NamedTuple):
    """One call: `id` is None where no answer is wanted."""

    id: int | None
    method: str
    arguments: list[object]


class Decoder:
    """Cuts a connection's bytes into requests."""

    def __init__(self) -> None:
        self._unpacker: Any = msgpack.Unpacker(
            raw=False,
            unicode_errors="surrogateescape",
            max_buffer_size=MAX_MESSAGE,
            max_str_len=MAX_MESSAGE,
            max_bin_len=MAX_MESSAGE,
            max_array_len=MAX_ITEMS,
            max_map_len=0,
            max_ext_len=0,
        )

    def feed(self, data: bytes | memoryview) -> Iterator[Request]:
        """Gives the requests that are complete by now.

        Raises:
            WireError: At the first byte that cannot be part of a request; the rest of the connection is lost.
        """
        try:
            self._unpacker.feed(data)
            yield from map(_request, self._unpacker)
        except WireError:
            raise
        except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
            raise WireError(f"not a msgpack message: {type(error).__name__} {error}") from None


def _request(message: object) -> Request:
    parts = message if _is_list(message) else []
    if len(parts) == 4 and parts[0] == 0 and type(parts[0]) is int:
        number, method, arguments = parts[1:]
        if type(number) is not int or not 0 <= number < 2**32:
            raise WireError("a request must carry an unsigned 32-bit id")
    elif len(parts) == 3 and parts[0] == 2 and type(parts[0]) is int:
        number, (method, arguments) = None, parts[1:]
    else:
        raise WireError("a message must be [0, id, method, arguments] or [2, method, arguments]")
    if not isinstance(method, str) or len(method) > MAX_NAME:
        raise WireError(f"a method must be a text of at most {MAX_NAME} characters")
    if not _is_list(arguments):
        raise WireError("arguments must be a list")
    return Request(number, method, arguments)


# ---- the types of arguments: each is a function that returns the value, or raises WireError

Parser = Callable[[object], Any]


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return type(value) is list


def number(value: object) -> float:
    """Takes a finite number of a size that means something."""
    if (type(value) is float or type(value) is int) and -MAX_NUMBER <= value <= MAX_NUMBER:  # NaN is neither
        return float(value)
    raise WireError(f"a number within {MAX_NUMBER:g} is needed, got {str(value)[:40]}")


def truth(value: object) -> bool:
    """Takes true or false."""
    if value is True or value is False:
        return value
    raise WireError("true or false is needed")


def integer(low: int, high: int) -> Parser:
    """Takes an integer in a range, both ends included."""

    def parse(value: object) -> int:
        if type(value) is int and low <= value <= high:
            return value
        raise WireError(f"an integer from {low} to {high} is needed, got {str(value)[:40]}")

    return parse


def text(most: int) -> Parser:
    """Takes a text of at most so many characters."""

    def parse(value: object) -> str:
        if isinstance(value, str) and len(value) <= most:
            return value
        raise WireError(f"a text of at most {most} characters is needed")

    return parse


def record(*fields: Parser) -> Parser:
    """Takes a list with exactly these fields; returns a tuple."""

    def parse(value: object) -> tuple[Any, ...]:
        if _is_list(value) and len(value) == len(fields):
            return tuple([field(item) for field, item in zip(fields, value, strict=True)])
        raise WireError(f"a list of {len(fields)} is needed")

    return parse


def many(item: Parser) -> Parser:
    """Takes a list of any length."""

    def parse(value: object) -> list[Any]:
        if _is_list(value):
            return [item(entry) for entry in value]
        raise WireError("a list is needed")

    return parse


def or_error(item: Parser) -> Parser:
    """Takes what `item` takes; returns the WireError of anything else, where the rest is to go on."""

    def parse(value: object) -> Any:
        try:
            return item(value)
        except WireError as error:
            return error

    return parse


def optional(item: Parser) -> Parser:
    """Takes [false] or [true, value]; returns None or the value."""

    def parse(value: object) -> Any:
        if _is_list(value):
            if len(value) == 1 and value[0] is False:
                return None
            if len(value) == 2 and value[0] is True:
                return item(value[1])
        raise WireError("an optional value is needed")

    return parse


def anything(value: object) -> object:
    """Takes what is not used."""
    return value


def transform(value: object) -> Transform:
    """Takes [[x, y, z], [pitch, yaw, roll]]."""
    (x, y, z), (pitch, yaw, roll) = _pose(value)
    return Transform(x, y, z, pitch, yaw, roll)


def command(value: object) -> tuple[int, tuple[Any, ...]]:
    """Takes one command of a batch: [[kind, fields]]."""
    if _is_list(value) and len(value) == 1:
        inner = value[0]
        if _is_list(inner) and len(inner) == 2:
            kind, fields = inner
            if type(kind) is int and kind in _COMMANDS:
                return kind, _COMMANDS[kind](fields)
    raise WireError("a command must be [[kind, fields]]")


def control(value: object) -> tuple[Any, ...]:
    """Takes [throttle, steer, brake, hand brake, reverse, manual, gear]: of all that arrives, most."""
    if _is_list(value) and tuple(map(type, value)) == _CONTROL_TYPES:
        throttle, steer, brake, *_ = value
        most = MAX_NUMBER  # NaN is not within it
        if -most <= throttle <= most and -most <= steer <= most and -most <= brake <= most:
            return tuple(value)
    return _control(value)


actor_id = integer(0, 2**32 - 1)
vector = record(number, number, number)
_pose = record(vector, vector)
name = text(MAX_NAME)
gear = integer(-128, 127)
attachment = integer(0, 255)  # clients leave it undefined where there is no parent
_control = record(number, number, number, truth, truth, truth, gear)
_CONTROL_TYPES = (float, float, float, bool, bool, bool, int)
walker_control = record(vector, number, truth)
description = record(actor_id, name, many(record(name, integer(0, 255), text(1024))))
light_state = integer(0, 4)
flags = integer(0, 2**32 - 1)
settings = record(
    truth, truth, optional(number), truth, number, integer(0, 1000), number, truth, number, number, truth
)
weather = record(*[number] * 14)
SPAWN, DESTROY, CONTROL, WALK, PLACE, WALKER_STATE, VELOCITY, SPIN, IMPULSE = 0, 1, 2, 4, 6, 7, 8, 9, 10
PHYSICS, GRAVITY, AUTOPILOT, TELEMETRY, VEHICLE_LIGHTS, LOCATION, CONSOLE, LIGHT_STATE = (
    14,
    15,
    16,
    17,
    18,
    19,
    20,
    21,
)


def _lights_command(value: object) -> tuple[int, tuple[int]]:
    """Takes [actor, flags]; as a call of its own it has [flags]."""
    number, lights = _pair(value)
    return number, (lights,)


_pair = record(actor_id, flags)
_COMMANDS: dict[int, Parser] = {
    SPAWN: record(
        description, transform, optional(actor_id), attachment, text(1024), many(lambda c: command(c))
    ),
    DESTROY: record(actor_id),
    CONTROL: record(actor_id, control),
    3: record(actor_id, anything),
    WALK: record(actor_id, walker_control),
    5: record(actor_id, anything),
    PLACE: record(actor_id, transform),
    WALKER_STATE: record(actor_id, transform, number),
    VELOCITY: record(actor_id, vector),
    SPIN: record(actor_id, vector),
    IMPULSE: record(actor_id, vector),
    11: record(actor_id, vector),
    12: record(actor_id, vector),
    13: record(actor_id, vector),
    PHYSICS: record(actor_id, truth),
    GRAVITY: record(actor_id, truth),
    AUTOPILOT: record(actor_id, truth),
    TELEMETRY: record(actor_id, truth),
    VEHICLE_LIGHTS: _lights_command,
    LOCATION: record(actor_id, vector),
    CONSOLE: record(text(4096)),
    LIGHT_STATE: record(actor_id, light_state),
}
UNSUPPORTED = {3: "Ackermann control", 5: "physics control", 11: "force", 12: "angular impulse", 13: "torque"}


class Method(NamedTuple):
    """How a method is called: its parameters after the metadata, and the shape of its answer.

    `answer` is "value" for CARLA's Response<T>, "nothing" for Response<void>, "bare" for a plain result.
    """

    answer: str
    parameters: tuple[Parser, ...]


def value_of(*parameters: Parser) -> Method:
    """Describes a method that answers with a value."""
    return Method("value", parameters)


def effect_of(*parameters: Parser) -> Method:
    """Describes a method that answers with nothing."""
    return Method("nothing", parameters)


_METHODS = {
    "version": value_of(),
    "get_episode_info": value_of(),
    "get_episode_settings": value_of(),
    "set_episode_settings": value_of(settings),
    "get_map_info": value_of(),
    "get_map_data": value_of(),
    "get_required_files": value_of(text(1024)),
    "get_available_maps": value_of(),
    "get_navigation_mesh": value_of(),
    "load_new_episode": effect_of(text(4096), truth, anything),
    "copy_opendrive_to_file": effect_of(text(MAX_MESSAGE), anything),
    "get_actor_definitions": value_of(),
    "get_spectator": value_of(),
    "get_actors_by_id": value_of(many(actor_id)),
    "spawn_actor": value_of(description, transform),
    "spawn_actor_with_parent": value_of(description, transform, actor_id, attachment, text(1024)),
    "destroy_actor": value_of(actor_id),
    "get_sensor_token": value_of(actor_id),
    "enable_sensor_for_ros": effect_of(actor_id),
    "disable_sensor_for_ros": effect_of(actor_id),
    "is_sensor_enabled_for_ros": value_of(actor_id),
    "tick_cue": value_of(),
    "apply_batch": Method("bare", (many(or_error(command)), truth)),
    "apply_control_to_vehicle": effect_of(actor_id, control),
    "apply_control_to_walker": effect_of(actor_id, walker_control),
    "set_actor_transform": effect_of(actor_id, transform),
    "set_actor_location": effect_of(actor_id, vector),
    "set_actor_target_velocity": effect_of(actor_id, vector),
    "set_actor_target_angular_velocity": effect_of(actor_id, vector),
    "enable_actor_constant_velocity": effect_of(actor_id, vector),
    "disable_actor_constant_velocity": effect_of(actor_id),
    "add_actor_impulse": effect_of(actor_id, vector),
    "set_actor_simulate_physics": effect_of(actor_id, truth),
    "set_actor_enable_gravity": effect_of(actor_id, truth),
    "set_actor_collisions": effect_of(actor_id, truth),
    "set_actor_autopilot": effect_of(actor_id, truth),
    "get_actor_bounding_box": value_of(actor_id),
    "get_physics_control": value_of(actor_id),
    "get_vehicle_light_states": value_of(),
    "get_vehicle_light_state": value_of(actor_id),
    "set_vehicle_light_state": effect_of(actor_id, record(flags)),
    "get_weather_parameters": value_of(),
    "set_weather_parameters": effect_of(weather),
    "query_lights_state": value_of(anything),
    "update_lights_state": effect_of(anything, anything, anything),
    "get_group_traffic_lights": value_of(actor_id),
    "get_light_boxes": value_of(actor_id),
    "get_traffic_sign_trigger_volume": value_of(actor_id),
    "set_traffic_light_state": effect_of(actor_id, light_state),
    "set_traffic_light_green_time": effect_of(actor_id, number),
    "set_traffic_light_yellow_time": effect_of(actor_id, number),
    "set_traffic_light_red_time": effect_of(actor_id, number),
    "freeze_traffic_light": effect_of(actor_id, truth),
    "freeze_all_traffic_lights": effect_of(truth),
    "reset_traffic_light_group": effect_of(actor_id),
    "reset_all_traffic_lights": effect_of(),
    "get_environment_objects": value_of(integer(0, 255)),
    "get_all_level_BBs": value_of(integer(0, 255)),
    "get_names_of_all_objects": value_of(),
    "project_point": value_of(vector, vector, number),
    "show_vehicle_debug_telemetry": effect_of(actor_id, truth),
    "enable_environment_objects": effect_of(anything, truth),
    "draw_debug_shape": effect_of(anything),
    "is_traffic_manager_running": value_of(integer(0, 65535)),
    "get_traffic_manager_running": value_of(integer(0, 65535)),
    "add_traffic_manager_running": value_of(record(text(256), integer(0, 65535))),
    "destroy_traffic_manager": value_of(integer(0, 65535)),
}


# ---- what goes out


@dataclass(frozen=True)
class Layout:
    """What one version of CARLA puts where.

    Attributes:
        version: As the server reports it.
        sensors: Index of every sensor in the client's registry.
        observer: Index of the stream of world states.
        methods: What may be called.
        row: The packed record of one actor in a world state.
    """

    version: str
    sensors: dict[str, int]
    observer: int
    methods: dict[str, Method]
    row: np.dtype[np.void]
    header: struct.Struct  # of every message of a stream: sensor, frame, seconds, six of the transform
    episode: struct.Struct  # of a world state: episode, clock, step, origin (3), flags
    image: struct.Struct  # width, height, field of view
    token: struct.Struct  # stream, port, protocol, kind of address, address

    def request(self, request: Request) -> tuple[Method, list[Any]]:
        """Returns the method of a request and its checked arguments.

        Raises:
            WireError: In rpclib's words if there is no such method; else which argument is wrong, and how.
        """
        method = self.methods.get(request.method)
        given = len(request.arguments)
        if method is None or given != len(method.parameters) + 1:
            raise WireError(f"server could not find function '{request.method}' with argument count {given}.")
        arguments: list[Any] = []
        for i, (parse, argument) in enumerate(zip(method.parameters, request.arguments[1:], strict=True)):
            try:
                arguments.append(parse(argument))
            except (WireError, RecursionError) as error:
                raise WireError(f"argument {i + 1} of {request.method}: {error}") from None
        return method, arguments

    def reply(self, request: int, method: Method, result: object) -> bytes:
        """Returns the answer to a request that went well."""
        if method.answer == "value":
            result = [[1, result]]
        elif method.answer == "nothing":
            result = [[False]]
        return _pack([1, request, None, result])

    def refusal(self, request: int, method: Method | None, reason: str) -> bytes:
        """Returns the answer to a request that did not: the client raises RuntimeError with the reason."""
        if method is None or method.answer == "bare":
            return _pack([1, request, f"rpclib: {reason}", None])
        return _pack([1, request, None, [[0, [reason]]] if method.answer == "value" else [[True, [reason]]]])

    def make_token(self, stream: int, port: int) -> bytes:
        """Returns what a client needs to open a stream; the address is left to be the server's own."""
        return self.token.pack(stream, port, 1, 0, b"")

    def message(self, sensor: int, frame: int, seconds: float, where: Transform, body: bytes) -> bytes:
        """Returns one message of a stream, length first."""
        head = self.header.pack(sensor, frame, seconds, *where)
        return b"".join((struct.pack("<I", len(head) + len(body)), head, body))

    def picture(self, pixels: NDArray[np.uint8], fov: float) -> bytes:
        """Returns the body of an image [H, W, 4], BGRA."""
        height, width = pixels.shape[:2]
        return self.image.pack(width, height, fov) + pixels.tobytes()

    def points(self, angle: float, points: NDArray[np.float32], counts: NDArray[np.intp]) -> bytes:
        """Returns the body of a LiDAR sweep: points [n, 4] of x, y, z, intensity, channel by channel."""
        head = struct.pack("<fI", angle, len(counts)) + counts.astype("<u4").tobytes()
        return head + points.astype("<f4").tobytes()

    def numbers(self, *values: object) -> bytes:
        """Returns the body of a sensor that sends a few numbers."""
        return _pack(list(values))

    def collision(self, event: Collision, tokens: dict[int, bytes]) -> bytes:
        """Returns the body of a collision."""
        own, other = self.actor(event.actor, tokens), self.actor(event.other, tokens)
        return _pack([own, other, list(event.impulse)])

    def obstacle(self, own: Actor, other: Actor, distance: float, tokens: dict[int, bytes]) -> bytes:
        """Returns the body of an obstacle's detection."""
        return _pack([self.actor(own, tokens), self.actor(other, tokens), distance])

    def actor(self, actor: Actor, tokens: dict[int, bytes]) -> list[object]:
        """Returns an actor as a client knows it."""
        kinds = {attribute.name: attribute.kind for attribute in actor.blueprint.attributes}
        attributes = [[key, kinds.get(key, 4), value] for key, value in actor.attributes.items()]
        about = [_UID.get(actor.type, 0), actor.type, attributes]
        tags = bytes([actor.blueprint.tag])
        return [actor.id, actor.parent, about, self.box(actor), tags, tokens.get(actor.id, NO_TOKEN)]

    def box(self, actor: Actor) -> list[object]:
        """Returns an actor's bounding box in its own frame; a vehicle stands on its origin.

        That of a light is its trigger volume, over the stop lines, as CARLA has it.
        """
        if actor.light >= 0:
            x, y, half = actor.stop
            return [[x, y, 0.0], [half, 1.0, 1.0], [0.0, 0.0, 0.0], actor.id]
        extent = list(actor.blueprint.box)
        middle = 0.0 if actor.blueprint.walks else extent[2]
        return [[0.0, 0.0, middle], extent, [0.0, 0.0, 0.0], actor.id]

    def definitions(self) -> list[object]:
        """Returns the blueprint library."""
        return [
            [
                _UID[blueprint.name],
                blueprint.name,
                blueprint.name.replace(".", ","),
                [
                    [a.name, a.kind, a.value, list(a.recommended), a.modifiable, False]
                    for a in blueprint.attributes
                ],
            ]
            for blueprint in BLUEPRINTS.values()
        ]


class States:
    """Encodes world states: a packed record per actor, kept between ticks and written in a few operations."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known = -1
        self._world: World | None = None
        self._rows = np.zeros(0, layout.row)
        self._vehicles = np.zeros(0, np.intp)
        self._lights = np.zeros(0, np.intp)
        self._light_ids = np.zeros(1, np.uint32)

    def encode(self, world: World, episode: int, seconds: float, changed: bool) -> bytes:
        """Returns the body of the message that tells a tick's outcome; `changed`: the map is a new one."""
        if world is not self._world or world.changes != self._known:
            self._renew(world)
        rows, fleet, lights = self._rows, world.fleet, world.lights
        rows["motion"] = world.table
        if len(self._vehicles):
            packed = self._packed
            for column in ("throttle", "steer", "brake", "hand_brake", "reverse", "limit"):
                packed[column] = fleet[column]
            ahead = world.light_ahead
            packed["has_light"] = ahead >= 0
            packed["light"] = self._light_ids[ahead]
            packed["light_state"] = np.where(ahead >= 0, self._states(lights.states)[ahead], 2)
            rows["state"][self._vehicles] = packed.view("V54")
        if len(self._lights):
            rows["state"][self._lights] = self._shown(world)
        # The clock is the simulation's own: a wall clock would make two equal runs differ.
        head = self._layout.episode.pack(episode, world.seconds, seconds, 0, 0, 0, int(changed))
        return head + rows.tobytes()

    @staticmethod
    def _states(states: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return states if len(states) else np.zeros(1, np.uint8)

    def _shown(self, world: World) -> NDArray[np.void]:
        lights, table = world.lights, self._light_states
        table["shown"] = lights.states
        table["elapsed"] = lights.elapsed
        table["times"] = lights.times
        table["frozen"] = lights.frozen
        return table.view("V54")

    def _renew(self, world: World) -> None:
        actors = list(world.actors.values())
        self._world, self._known = world, world.changes
        self._rows = np.zeros(len(actors), self._layout.row)
        self._rows["id"] = [actor.id for actor in actors]
        self._rows["active"] = 1
        self._vehicles = np.array([actor.row for actor in world.vehicles], np.intp)
        self._packed = np.zeros(len(self._vehicles), VEHICLE)
        self._packed["gear"] = [actor.gear for actor in world.vehicles]
        self._packed["manual"] = [actor.manual for actor in world.vehicles]
        lights = [actor for actor in actors if actor.light >= 0]
        self._lights = np.array([actor.row for actor in lights], np.intp)
        self._light_ids = np.array([*(actor.id for actor in lights), 0], np.uint32)  # the last: none
        self._light_states = np.zeros(len(lights), LIGHT)
        self._light_states["sign"] = [light.signal.encode()[:32] for light in world.lights.specs]
        self._light_states["pole"] = range(len(lights))


def _pack(value: object) -> bytes:
    return cast(bytes, msgpack.packb(value, use_bin_type=True, unicode_errors="surrogateescape"))


_UID = {blueprint: uid for uid, blueprint in enumerate(BLUEPRINTS, 1)}
VEHICLE = np.dtype(
    {
        "names": (
            *("throttle", "steer", "brake", "hand_brake", "reverse", "manual", "gear"),
            *("limit", "light_state", "has_light", "light", "failure"),
        ),
        "formats": ("<f4", "<f4", "<f4", "?", "?", "?", "<i4", "<f4", "u1", "?", "<u4", "u1"),
        "offsets": (0, 4, 8, 12, 13, 14, 15, 19, 23, 24, 25, 29),
        "itemsize": 54,
    }
)
LIGHT = np.dtype(
    {
        "names": ("sign", "times", "elapsed", "pole", "frozen", "shown"),
        "formats": ("S32", ("<f4", (3,)), "<f4", "<u4", "?", "u1"),
        "offsets": (0, 32, 44, 48, 52, 53),
        "itemsize": 54,
    }
)
LAYOUTS = {
    "0.9.16": Layout(
        version="0.9.16",
        sensors={
            "sensor.other.collision": 0,
            "sensor.camera.depth": 1,
            "sensor.other.gnss": 4,
            "sensor.other.imu": 5,
            "sensor.other.obstacle": 7,
            "sensor.lidar.ray_cast": 11,
            "sensor.camera.rgb": 13,
            "sensor.camera.semantic_segmentation": 14,
        },
        observer=17,
        methods=_METHODS,
        row=np.dtype([("id", "<u4"), ("active", "u1"), ("motion", "<f4", (15,)), ("state", "V54")]),
        header=struct.Struct("<QQd6f"),
        episode=struct.Struct("<QdfiiiI"),
        image=struct.Struct("<IIf"),
        token=struct.Struct("<IHBB16s"),
    )
}

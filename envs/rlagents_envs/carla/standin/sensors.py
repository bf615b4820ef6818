"""What sensors see: rays against a flat ground with its layers, and against boxes.

The one idea: a camera's rays are fixed in its frame, so where they meet the ground is computed once; a frame
is then one look-up in the ground's raster and one slab test for each box that is near. Pictures are
schematic: ground, boxes, the heads of traffic lights, and a sky.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import carla
import numpy as np
from numpy.typing import NDArray

from rlagents_envs.carla.roads import BIT
from rlagents_envs.carla.standin.wire import Layout
from rlagents_envs.carla.standin.world import (
    AX,
    AY,
    GRAVITY,
    PEDESTRIAN,
    SPIN,
    Actor,
    Rectangle,
    World,
    overlap,
)

Floats = NDArray[np.floating]
FAR = 1000.0  # metres that the depth camera's range stands for
GROUND_REACH = 250.0  # metres beyond which the ground is horizon
BOX_REACH = 120.0
MAX_PIXELS, MAX_POINTS = 1 << 21, 1 << 18  # of one frame
ROAD, SIDEWALK, TERRAIN, SKY, ROAD_LINE, GROUND = 1, 2, 10, 11, 24, 25  # carla.CityObjectLabel
LIGHT_TAG, CAR = 7, 14
COLOURS = {  # red, green, blue
    0: (0, 0, 0),
    ROAD: (96, 96, 100),
    SIDEWALK: (168, 150, 160),
    LIGHT_TAG: (60, 60, 60),
    TERRAIN: (112, 140, 90),
    SKY: (150, 190, 230),
    PEDESTRIAN: (214, 120, 60),
    CAR: (40, 70, 150),
    15: (160, 60, 50),
    18: (50, 120, 120),
    19: (60, 140, 90),
    20: (200, 140, 60),
    ROAD_LINE: (232, 232, 228),
    GROUND: (130, 130, 120),
}
HEADS = ((230, 50, 40), (240, 200, 60), (60, 210, 90), (60, 60, 60), (60, 60, 60))  # by state


class Box(NamedTuple):
    """A box in the world: middle, yaw in radians, half its sides, and what it is."""

    x: float
    y: float
    z: float
    yaw: float
    half: tuple[float, float, float]
    tag: int
    colour: tuple[int, int, int]


@dataclass
class Sensor:
    """What a sensor keeps between frames."""

    last: float = -math.inf  # simulated seconds of its newest frame
    angle: float = 0.0  # of a LiDAR, degrees


def sense(
    world: World, actor: Actor, state: Sensor, layout: Layout, seconds: float, tokens: dict[int, bytes]
) -> Iterator[bytes]:
    """Gives the bodies of the messages that a sensor sends for the tick that has just happened."""
    period = _number(actor, "sensor_tick", 0.0)
    if actor.type == "sensor.other.collision":
        for event in world.collisions:
            if event.actor.id == actor.parent:
                yield layout.collision(event, tokens)
    elif world.seconds - state.last > period - 1e-6:
        body = _READERS[actor.type](world, actor, state, layout, seconds, tokens)
        state.last = world.seconds
        if body is not None:
            yield body


def check(actor_type: str, attributes: dict[str, str]) -> None:
    """Refuses a sensor whose frames would be empty or too large.

    Raises:
        ValueError: Which attribute is wrong.
    """
    if actor_type.startswith("sensor.camera."):
        width, height = (float(attributes[name]) for name in ("image_size_x", "image_size_y"))
        fov = float(attributes["fov"])
        if min(width, height) < 1 or not width * height <= MAX_PIXELS or not 1 <= fov <= 170:
            raise ValueError(f"a camera must have 1 to {MAX_PIXELS} pixels and a fov of 1 to 170 degrees")
    elif actor_type == "sensor.lidar.ray_cast":
        numbers = {name: float(value) for name, value in attributes.items() if name != "role_name"}
        if not (1 <= numbers["channels"] <= 512 and 1 <= numbers["points_per_second"] <= 20 * MAX_POINTS):
            raise ValueError(
                f"a LiDAR must have 1 to 512 channels and at most {20 * MAX_POINTS} points per second"
            )
        if not numbers["horizontal_fov"] > 0:
            raise ValueError("horizontal_fov must be a positive number of degrees")
    elif actor_type == "sensor.other.obstacle":
        sizes = [float(attributes[name]) for name in ("distance", "hit_radius")]
        if not all(0 < size < 1000 for size in sizes):
            raise ValueError("distance and hit_radius must lie between 0 and 1000 m")


# ---- boxes


def boxes(world: World, viewer: Actor) -> list[Box]:
    """Returns all boxes but the one that the viewer sits on, lights included."""
    found: list[Box] = []
    for actor in world.bodies():
        if actor.id != viewer.parent:
            x, y, z, _, yaw, _ = world.transform(actor)
            half = actor.blueprint.box
            middle = z if actor.blueprint.walks else z + half.height
            colour = _paint(actor.attributes.get("color", ""), COLOURS.get(actor.blueprint.tag, (0, 0, 0)))
            sides = (half.length, half.width, half.height)
            found.append(Box(x, y, middle, math.radians(yaw), sides, actor.blueprint.tag, colour))
    for light, state in zip(world.lights.specs, world.lights.states.tolist(), strict=True):
        yaw = math.radians(light.yaw)
        found.append(Box(light.x, light.y, 3.2, yaw, (0.15, 0.3, 0.6), LIGHT_TAG, HEADS[state]))
    return found


@functools.lru_cache(maxsize=64)
def _paint(text: str, otherwise: tuple[int, int, int]) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        return otherwise
    red, green, blue = (min(int(part), 255) for part in parts)
    return red, green, blue


def strike(box: Box, x: float, y: float, z: float, rays: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Returns how far along each ray from a point a box is met (inf: not), and through which of its axes.

    Rays [3, n] are forward, right, up in the world's axes, of any length: distances are in units of it. A
    point inside the box meets nothing.
    """
    cos, sin = math.cos(box.yaw), math.sin(box.yaw)
    dx, dy = x - box.x, y - box.y
    origin = (dx * cos + dy * sin, dy * cos - dx * sin, z - box.z)
    along = (rays[0] * cos + rays[1] * sin, rays[1] * cos - rays[0] * sin, rays[2])
    entries: list[Floats] = []
    leave: Floats | None = None
    for start, ray, half in zip(origin, along, box.half, strict=True):
        inverse = 1.0 / np.where(np.abs(ray) < 1e-7, np.float32(1e-7), ray)
        middle, reach = -start * inverse, np.abs(half * inverse)
        entries.append(middle - reach)
        leave = middle + reach if leave is None else np.minimum(leave, middle + reach)
    enter = np.maximum(np.maximum(entries[0], entries[1]), entries[2])
    assert leave is not None
    hit = (enter > 0) & (leave >= enter)
    axis = np.where(enter == entries[0], 0, np.where(enter == entries[1], 1, 2))
    return np.where(hit, enter, np.float32(np.inf)), axis


# ---- cameras


class View(NamedTuple):
    """A camera's rays: [3, H, W] forward, right, up for a level camera with yaw 0; depth 1 along its axis."""

    rays: Floats
    axes: NDArray[np.float64]  # [3, 3] the camera's own forward, right, up
    focus: float  # pixels


@functools.lru_cache(maxsize=32)
def view(width: int, height: int, fov: float, pitch: float, roll: float) -> View:
    """Returns the rays of a pinhole camera; angles in degrees, fov across the width."""
    focus = width / 2 / math.tan(math.radians(fov) / 2)
    right = (np.arange(width) + 0.5 - width / 2) / focus
    up = -(np.arange(height) + 0.5 - height / 2) / focus
    axes = _axes(pitch, roll)
    local = np.stack([np.ones((height, width)), *np.meshgrid(right, up)])  # [3, H, W]
    return View(np.tensordot(axes.T, local, 1).astype(np.float32), axes, focus)


def _axes(pitch: float, roll: float) -> NDArray[np.float64]:
    """Returns a sensor's forward, right and up as rows, for yaw 0."""
    p, r = math.radians(pitch), math.radians(roll)
    forward = np.array([math.cos(p), 0.0, math.sin(p)])
    level_up, level_right = np.array([-math.sin(p), 0.0, math.cos(p)]), np.array([0.0, 1.0, 0.0])
    right = math.cos(r) * level_right - math.sin(r) * level_up
    up = math.sin(r) * level_right + math.cos(r) * level_up
    return np.stack([forward, right, up])


@functools.lru_cache(maxsize=32)
def _ground(
    width: int, height: int, fov: float, pitch: float, roll: float, z: float
) -> tuple[Floats, Floats, Floats]:
    """Returns depth (inf: nowhere), metres forward and right of where rays meet the ground, [H * W] each."""
    rays = view(width, height, fov, pitch, roll).rays.reshape(3, -1)
    down = rays[2] < -1e-4
    depth = np.where(down, -z / np.where(down, rays[2], -1.0), np.inf)
    depth = np.where(depth * np.hypot(rays[0], rays[1]) < GROUND_REACH, depth, np.inf).astype(np.float32)
    near = np.where(np.isfinite(depth), depth, np.float32(0))
    return depth, near * rays[0], near * rays[1]


def _tags() -> NDArray[np.uint8]:
    """Returns what the ground is, by the bits that lie on it."""
    tags = np.full(256, TERRAIN, np.uint8)
    bits = np.arange(256)
    for layers, tag in (
        (("sidewalk",), SIDEWALK),
        (("shoulder",), GROUND),
        (("road", "junction", "crosswalk"), ROAD),
        (("line", "stop"), ROAD_LINE),
    ):
        tags[bits & sum(BIT[layer] for layer in layers) > 0] = tag
    return tags


_TAG_OF_BITS = _tags()
_COLOUR_OF_TAG = np.array([COLOURS.get(tag, (128, 128, 128)) for tag in range(256)], np.uint8)
_SHADE = (0.85, 0.7, 1.0)  # of a box's front and back, sides, top


class Frame(NamedTuple):
    """What a camera sees, [H, W]: tags, metres along its axis, and colours [H, W, 3] if asked for."""

    tags: NDArray[np.uint8]
    depth: Floats
    colours: NDArray[np.uint8] | None


def look(world: World, actor: Actor, *, coloured: bool) -> Frame:
    """Returns what a camera sees now."""
    width, height = int(_number(actor, "image_size_x", 800)), int(_number(actor, "image_size_y", 600))
    fov = _number(actor, "fov", 90.0)
    x, y, z, pitch, yaw, roll = world.transform(actor)
    level = z - _floor(world, actor)
    key = (width, height, fov, round(pitch, 3), round(roll, 3))
    depth, forward, right = _ground(*key, round(level, 3))
    angle = math.radians(yaw)
    cos, sin = math.cos(angle), math.sin(angle)
    tags = _TAG_OF_BITS[world.roads.at(x + (cos * forward - sin * right), y + (sin * forward + cos * right))]
    seen = depth.copy()
    tags[np.isinf(seen)] = SKY
    colours = _COLOUR_OF_TAG[tags] if coloured else None
    pinhole = view(*key)
    rays = pinhole.rays
    shape = (height, width)
    tags, seen = tags.reshape(shape), seen.reshape(shape)
    colours = None if colours is None else colours.reshape(*shape, 3)
    for box in boxes(world, actor):
        dx, dy = box.x - x, box.y - y
        if abs(dx) + abs(dy) > BOX_REACH or dx * cos + dy * sin < -8.0:
            continue
        window = _window(box, (x, y, z), angle, pinhole, shape)
        if window is None:
            continue
        part = rays[:, window[0], window[1]]
        turned = np.stack([cos * part[0] - sin * part[1], sin * part[0] + cos * part[1], part[2]])
        distance, axis = strike(box, x, y, z, turned)
        nearer = distance < seen[window]
        if nearer.any():
            seen[window][nearer] = distance[nearer]
            tags[window][nearer] = box.tag
            if colours is not None:
                shade = np.array(_SHADE) if box.tag != LIGHT_TAG else np.ones(3)
                colours[window][nearer] = (shade[axis[nearer], None] * np.array(box.colour)).astype(np.uint8)
    return Frame(tags, np.minimum(seen, np.float32(FAR)), colours)


def _window(
    box: Box, eye: tuple[float, float, float], yaw: float, pinhole: View, shape: tuple[int, int]
) -> tuple[slice, slice] | None:
    """Returns the pixels among which all of a box lies; None if it is out of sight."""
    cos, sin = math.cos(yaw - box.yaw), math.sin(yaw - box.yaw)
    signs = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], np.float64)  # [8, 3]
    local = signs * box.half
    dx, dy = box.x - eye[0], box.y - eye[1]
    back, side = math.cos(yaw), math.sin(yaw)
    corners = np.stack(  # in the level frame that looks where the camera looks
        [
            dx * back + dy * side + cos * local[:, 0] + sin * local[:, 1],
            dy * back - dx * side - sin * local[:, 0] + cos * local[:, 1],
            box.z - eye[2] + local[:, 2],
        ]
    )
    ahead, right, up = pinhole.axes @ corners
    rows, columns = shape
    if (ahead < 0.1).all():
        return None
    if (ahead < 0.1).any():
        return slice(0, rows), slice(0, columns)
    across, down = right / ahead * pinhole.focus + columns / 2, rows / 2 - up / ahead * pinhole.focus
    left, top = max(int(across.min()), 0), max(int(down.min()), 0)
    end, bottom = min(int(across.max()) + 1, columns), min(int(down.max()) + 1, rows)
    return (slice(top, bottom), slice(left, end)) if left < end and top < bottom else None


def _floor(world: World, actor: Actor) -> float:
    """Returns the height of the ground below a sensor: that of what it is mounted on."""
    parent = world.actors.get(actor.parent)
    if parent is None:
        return 0.0
    return world.transform(parent).z - (parent.blueprint.box.height if parent.blueprint.walks else 0.0)


def _semantic(
    world: World, actor: Actor, state: Sensor, layout: Layout, seconds: float, tokens: dict[int, bytes]
) -> bytes:
    frame = look(world, actor, coloured=False)
    pixels = np.zeros((*frame.tags.shape, 4), np.uint8)  # BGRA, the tag in red
    pixels[..., 2] = frame.tags
    pixels[..., 3] = 255
    return layout.picture(pixels, _number(actor, "fov", 90.0))


def _depth(
    world: World, actor: Actor, state: Sensor, layout: Layout, seconds: float, tokens: dict[int, bytes]
) -> bytes:
    """Returns depth in 24 bits, red lowest, of 1000 m."""
    frame = look(world, actor, coloured=False)
    code = np.minimum(frame.depth.astype(np.float64) / FAR * (2**24 - 1), 2**24 - 1).astype("<u4")
    pixels = np.full((*code.shape, 4), 255, np.uint8)
    pixels[..., 2], pixels[..., 1], pixels[..., 0] = code & 255, code >> 8 & 255, code >> 16
    return layout.picture(pixels, _number(actor, "fov", 90.0))


def _rgb(
    world: World, actor: Actor, state: Sensor, layout: Layout, seconds: float, tokens: dict[int, bytes]
) -> bytes:
    """Returns flat colours under the weather's light: darker with a low sun, greyer with fog and rain."""
    frame = look(world, actor, coloured=True)
    assert frame.colours is not None
    clouds, rain, sun, fog, wet = (world.weather[i] for i in (0, 1, 5, 6, 9))
    light = min(max(0.25 + 0.75 * (sun + 10.0) / 40.0, 0.25), 1.0) * (1.0 - 0.003 * clouds)
    haze = max(fog, 0.5 * rain) / 100.0
    veil = (1.0 - np.exp(-frame.depth * np.float32(0.05 * haze)))[..., None]
    picture = frame.colours * np.float32(light * (1.0 - 0.002 * wet))
    picture += (np.float32(190.0 * light) - picture) * veil
    pixels = np.full((*frame.tags.shape, 4), 255, np.uint8)
    pixels[..., :3] = np.clip(picture, 0, 255)[..., ::-1]
    return layout.picture(pixels, _number(actor, "fov", 90.0))


# ---- the others


@functools.lru_cache(maxsize=16)
def _elevations(channels: int, upper: float, lower: float) -> NDArray[np.float64]:
    return np.radians(np.linspace(upper, lower, channels))


def _lidar(
    world: World, actor: Actor, state: Sensor, layout: Layout, seconds: float, tokens: dict[int, bytes]
) -> bytes:
    """Returns the part of a turn that the tick took: points within range, channel by channel."""
    channels = int(_number(actor, "channels", 32))
    reach = _number(actor, "range", 10.0)
    count = max(1, min(int(_number(actor, "points_per_second", 56000) * seconds), MAX_POINTS) // channels)
    turn = _number(actor, "rotation_frequency", 10.0) * 360.0 * seconds
    field_of_view = min(_number(actor, "horizontal_fov", 360.0), 360.0)
    bearing = (state.angle + np.arange(count) * turn / count) % field_of_view
    state.angle = (state.angle + turn) % 360.0
    azimuth = np.radians(bearing)
    elevation = _elevations(channels, _number(actor, "upper_fov", 10.0), _number(actor, "lower_fov", -30.0))
    flat, climb = np.cos(elevation)[:, None], np.sin(elevation)[:, None]
    local = np.stack(  # [3, channels, count]
        [flat * np.cos(azimuth), flat * np.sin(azimuth), np.broadcast_to(climb, (channels, count))]
    ).reshape(3, -1)
    x, y, z, pitch, yaw, roll = world.transform(actor)
    level = _axes(pitch, roll).T @ local
    cos, sin = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    rays = np.stack([cos * level[0] - sin * level[1], sin * level[0] + cos * level[1], level[2]]).astype(
        np.float32
    )
    down = rays[2] < -1e-4
    distance = np.where(down, (_floor(world, actor) - z) / np.where(down, rays[2], -1.0), np.float32(np.inf))
    for box in boxes(world, actor):
        if math.hypot(box.x - x, box.y - y) < reach + math.hypot(box.half[0], box.half[1]):
            distance = np.minimum(distance, strike(box, x, y, z, rays)[0])
    hit = distance < reach
    far = distance[hit]
    intensity = np.exp(-_number(actor, "atmosphere_attenuation_rate", 0.004) * far)
    points = np.concatenate([local[:, hit] * far, intensity[None]]).T.astype(np.float32)
    return layout.points(math.radians(state.angle), points, hit.reshape(channels, count).sum(1))


def _obstacle(
    world: World, actor: Actor, state: Sensor, layout: Layout, seconds: float, tokens: dict[int, bytes]
) -> bytes | None:
    """Returns the nearest body in the corridor ahead, if there is one."""
    x, y, _, _, yaw, _ = world.transform(actor)
    angle, reach = math.radians(yaw), _number(actor, "distance", 5.0)
    cos, sin = math.cos(angle), math.sin(angle)
    corridor = Rectangle(
        x + cos * reach / 2,
        y + sin * reach / 2,
        angle,
        reach / 2,
        max(_number(actor, "hit_radius", 0.5), 0.01),
    )
    dynamic = actor.attributes.get("only_dynamics") == "true"
    nearest: tuple[float, Actor] | None = None
    for other in world.bodies():
        if other.id == actor.parent or (dynamic and not other.blueprint.mass):
            continue
        where = world.transform(other)
        half = other.blueprint.box
        body = Rectangle(where.x, where.y, math.radians(where.yaw), half.length, half.width)
        if overlap(corridor, body) is not None:
            away = max(0.0, min((cx - x) * cos + (cy - y) * sin for cx, cy in body.corners()))
            if nearest is None or away < nearest[0]:
                nearest = (away, other)
    parent = world.actors.get(actor.parent)
    return (
        None if nearest is None or parent is None else layout.obstacle(parent, nearest[1], nearest[0], tokens)
    )


def _gnss(
    world: World, actor: Actor, state: Sensor, layout: Layout, seconds: float, tokens: dict[int, bytes]
) -> bytes:
    x, y, z = world.transform(actor)[:3]
    place = world.roads.map.transform_to_geolocation(carla.Location(x, y, z))
    return layout.numbers(place.latitude, place.longitude, place.altitude)


def _imu(
    world: World, actor: Actor, state: Sensor, layout: Layout, seconds: float, tokens: dict[int, bytes]
) -> bytes:
    """Returns acceleration with gravity (m/s^2), turn rate (rad/s), both in its own axes, and compass."""
    ax, ay, spin = world.table[actor.row, [AX, AY, SPIN]].tolist()
    yaw = math.radians(world.transform(actor).yaw)
    forward, right = ax * math.cos(yaw) + ay * math.sin(yaw), ay * math.cos(yaw) - ax * math.sin(yaw)
    compass = (yaw + math.pi / 2) % (2 * math.pi)  # north, which is -y, reads 0
    return layout.numbers([forward, right, GRAVITY], [0.0, 0.0, math.radians(spin)], compass)


def _number(actor: Actor, name: str, otherwise: float) -> float:
    return float(actor.attributes.get(name, otherwise))


_Reader = Callable[[World, Actor, Sensor, Layout, float, dict[int, bytes]], bytes | None]
_READERS: dict[str, _Reader] = {
    "sensor.camera.semantic_segmentation": _semantic,
    "sensor.camera.depth": _depth,
    "sensor.camera.rgb": _rgb,
    "sensor.lidar.ray_cast": _lidar,
    "sensor.other.obstacle": _obstacle,
    "sensor.other.gnss": _gnss,
    "sensor.other.imu": _imu,
}

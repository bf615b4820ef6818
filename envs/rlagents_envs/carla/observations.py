"""What the agent sees beside the bird's-eye view: numbers, camera and lidar, each as an array of fixed shape.

The one idea: these are functions from what was measured to an array, with no server behind them.
"""

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlagents_envs.carla.bev import NOTHING, PLANES, Boxes, Floats
from rlagents_envs.carla.planner import FOLLOW, LEFT, RIGHT, STEP, STRAIGHT, Route
from rlagents_envs.carla.rewards import BRAKING, Moment, ways_to_stop
from rlagents_envs.config import Carla

POINTS = (3.0, 6.0, 10.0, 16.0, 25.0)  # metres ahead on the route that the state vector holds
STATE = 36  # numbers in it
SIGHT = 40.0  # metres ahead that traffic and lights are looked for
CLOSE = 5.0  # metres within which they are told apart finely
NOW, SOON = np.zeros(1), np.linspace(0.0, 1.4, 5)  # seconds ahead at which others are looked for
_MARGIN = 1.0  # metres behind the car at which somebody may cross
_HALF_WIDTH = 1.1  # metres of the car, a little more
_DEPTH = 50.0  # metres that a depth picture reaches
_SEMANTIC = {  # CARLA's tags, by plane
    "road": (1,),
    "line": (24,),
    "sidewalk": (2,),
    "vehicles": (13, 14, 15, 16, 17, 18, 19),
    "walkers": (12,),
    "lights": (7,),
}
_TAGS = np.zeros((len(_SEMANTIC), 256), np.uint8)
for _plane, _tags in enumerate(_SEMANTIC.values()):
    _TAGS[_plane, list(_tags)] = 255


def space(config: Carla) -> spaces.Dict:
    """Returns the space of an observation."""
    side = config.size
    cameras = {"semantic": len(_SEMANTIC), "depth": 1, "rgb": 3}
    planes = {"bev": len(PLANES), "lidar": 2, "camera": cameras[config.camera]}
    parts: dict[str, spaces.Space[Any]] = {
        name: spaces.Box(-3.0, 3.0, (STATE,), np.float32)
        if name == "state"
        else spaces.Box(0, 255, (planes[name], side, side), np.uint8)
        for name in config.observations
    }
    return spaces.Dict(parts)


def state(
    moment: Moment, route: Route, point: int, walkers: Boxes = NOTHING, velocity: Floats = NOTHING.xy
) -> NDArray[np.float32]:
    """Returns the state vector [36]: most of it in -1 .. 1, all of it in -3 .. 3.

    Speed and limit (10 m/s); steer, throttle and brake; lateral offset (2 m), heading error (rad), yaw rate
    (rad/s); whether the next light says stop, and the way to it (40 m, 1 if not); gap ahead (40 m, 1 if none)
    and closing speed (10 m/s); both ways again, up close (5 m, 1 if farther); how hard one must brake for
    that light and for what is ahead (v^2 / 2 d of `ways_to_stop`, 3 m/s^2); the speed that the bends allow
    (10 m/s); what is left of the route (50 m, at most 1); five points of the route, ahead and to the right
    (25 m); the command of the next junction: none, left, straight or right; where the nearest walker is,
    ahead (25 m) and to the right (10 m), and how he walks (2 m/s), if no more than 3 m behind; or 2, 0, 0, 0.

    Args:
        moment: what is known now.
        route: the route.
        point: of the route at which the car is.
        walkers: all of them.
        velocity: theirs, [W, 2] m/s.
    """
    stop = moment.light in ("red", "yellow")
    light, ahead = (moment.speed**2 / (2 * BRAKING * max(way, 0.1)) for way in ways_to_stop(moment))
    line = moment.light_distance if stop else SIGHT
    numbers: list[float] = [
        moment.speed / 10,
        moment.limit / 10,
        moment.steer,
        moment.throttle,
        moment.brake,
        moment.lateral / 2,
        moment.heading,
        moment.yaw_rate,
        stop,
        min(line, SIGHT) / SIGHT,
        min(moment.gap, SIGHT) / SIGHT,
        moment.closing / 10 if moment.gap < math.inf else 0.0,
        min(line, CLOSE) / CLOSE,
        min(moment.gap, CLOSE) / CLOSE,
        light,
        ahead,
        min(moment.pace, moment.limit) / 10,
        min(moment.length - moment.driven, 50.0) / 50,
    ]
    cos, sin = math.cos(moment.yaw), math.sin(moment.yaw)
    last = len(route.xy) - 1
    for metres in POINTS:
        x, y = route.xy[min(point + round(metres / STEP), last)]
        dx, dy = x - moment.x, y - moment.y
        numbers += ((cos * dx + sin * dy) / 25, (cos * dy - sin * dx) / 25)
    numbers += (route.command[point] == command for command in (FOLLOW, LEFT, STRAIGHT, RIGHT))
    numbers += _nearest(moment, walkers, velocity)
    return np.clip(np.array(numbers, np.float32), -3, 3)


def _nearest(moment: Moment, walkers: Boxes, velocity: Floats) -> tuple[float, float, float, float]:
    """Returns where the nearest walker is and how he walks, as the state vector has it."""
    cos, sin = math.cos(moment.yaw), math.sin(moment.yaw)
    turn = np.array([[cos, -sin], [sin, cos]])
    at = (walkers.xy - (moment.x, moment.y)) @ turn  # [W, 2] ahead and to the right
    away = np.where(at[:, 0] > -3, np.hypot(*at.T), np.inf)
    if not (away < SIGHT).any():
        return 2.0, 0.0, 0.0, 0.0
    i = int(away.argmin())
    (ahead, right), (along, across) = at[i], velocity[i] @ turn
    return float(ahead) / 25, float(right) / 10, float(along) / 2, float(across) / 2


def gap(
    route: Route,
    point: int,
    boxes: Boxes,
    velocity: Floats,
    *,
    half_length: float,
    seconds: NDArray[np.float64] = NOW,
    speed: float = 0.0,
) -> tuple[float, float]:
    """Returns metres from the front bumper to the first box on the route, and its speed along the route.

    A box is on the route where it reaches into the width of the car driving along it; who comes onto it when
    the car will be past is not in the way. (inf, 0) if none is.

    Args:
        route: the route.
        point: of the route at which the car is.
        boxes: of the others.
        velocity: theirs, [V, 2] m/s.
        half_length: of the car, metres.
        seconds: ahead of now at which they are looked for, as if they kept their velocity.
        speed: of the car, m/s, as if it kept it.
    """
    x, y = route.xy[point]
    if not len(boxes.xy):
        return math.inf, 0.0
    close = np.hypot(*(boxes.xy - (x, y)).T) < SIGHT + 5
    if not close.any():
        return math.inf, 0.0
    ahead = route.ahead(point, SIGHT)  # [P, 2]
    half, moving = boxes.half[close], velocity[close]
    at = boxes.xy[close] + seconds[:, None, None] * moving  # [M, V, 2]
    away = np.hypot(at[..., None, 0] - ahead[:, 0], at[..., None, 1] - ahead[:, 1])  # [M, V, P]
    nearest = away.argmin(-1)  # [M, V]
    course = route.yaw[point + nearest]
    turned = boxes.yaw[close] - course
    along, across = np.abs(np.cos(turned)), np.abs(np.sin(turned))
    side, deep = across * half[:, 0] + along * half[:, 1], along * half[:, 0] + across * half[:, 1]
    rear = speed * seconds[:, None] - half_length - _MARGIN  # [M, 1] on the route
    on = (away.min(-1) < side + _HALF_WIDTH) & (nearest > 0) & (nearest * STEP + deep > rear)
    gaps = np.where(on, nearest * STEP - half_length - deep, np.inf)  # [M, V]
    when, who = (int(i) for i in np.unravel_index(int(gaps.argmin()), gaps.shape))
    if math.isinf(gaps[when, who]):
        return math.inf, 0.0
    angle = float(course[when, who])
    forward = float(moving[who, 0]) * math.cos(angle) + float(moving[who, 1]) * math.sin(angle)
    return max(0.0, float(gaps[when, who])), forward


def camera(image: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """Returns a camera's picture [H, W, 4] BGRA as the agent sees it, [C, H, W].

    Semantic: a plane for each of road, lane lines, sidewalk, vehicles, walkers and lights, 255 where it is.
    Depth: 255 is 50 m and more.
    """
    if kind == "semantic":  # the tag stands in red
        return np.ascontiguousarray(_TAGS[:, image[:, :, 2]])
    if kind == "depth":
        blue, green, red = (image[:, :, i].astype(np.float32) for i in range(3))
        metres = 1000 * (red + 256 * green + 65_536 * blue) / (2**24 - 1)
        return (np.minimum(metres / _DEPTH, 1) * 255).astype(np.uint8)[None]
    return np.ascontiguousarray(np.moveaxis(image[:, :, 2::-1], 2, 0))


def lidar(points: NDArray[np.float32], size: int, metres: float) -> NDArray[np.uint8]:
    """Returns hits per cell, [2, size, size]: near the ground, and above it; 64 shades a hit.

    Args:
        points: [n, 4] x ahead, y to the right, z up from the sensor (2.4 m above the ground), intensity.
        size: cells along a side; the car is at three quarters of the height.
        metres: along the side of a cell.
    """
    row = np.floor(size * 0.75 - points[:, 0] / metres).astype(np.int64)
    column = np.floor(size / 2 + points[:, 1] / metres).astype(np.int64)
    seen = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    cell = (((points[:, 2] > -2.1) * size + row) * size + column)[seen]
    hits = np.bincount(cell, minlength=2 * size * size)
    return np.minimum(hits * 64, 255).astype(np.uint8).reshape(2, size, size)


def caption(picture: NDArray[np.uint8], moment: Moment, terms: dict[str, float]) -> NDArray[np.uint8]:
    """Returns a picture [H, W, 3] with 64 rows of text below it: speed, limit, light, gap, reward terms."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (picture.shape[1], picture.shape[0] + 64), (20, 22, 28))
    image.paste(Image.fromarray(np.ascontiguousarray(picture)), (0, 0))
    draw = ImageDraw.Draw(image)
    ahead = "" if math.isinf(moment.gap) else f"   gap {moment.gap:.0f} m"
    light = f"   {moment.light} in {moment.light_distance:.0f} m" if moment.light else ""
    first = (
        f"{3.6 * moment.speed:.0f} of {3.6 * moment.limit:.0f} km/h   "
        f"{moment.driven:.0f} of {moment.length:.0f} m{light}{ahead}   {moment.reason}"
    )
    second = "   ".join(f"{name} {value:+.2f}" for name, value in terms.items())
    draw.text((12, picture.shape[0] + 10), first, (234, 236, 240))
    draw.text((12, picture.shape[0] + 36), second, (140, 147, 160))
    return np.array(image)

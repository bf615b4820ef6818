"""The bird's-eye view: what lies and moves around the car, as planes of pixels, its own heading up.

The one idea: it is drawn by the client, from the town's OpenDRIVE and the snapshot of the tick, so it is the
same against every server, and no camera has to be rendered for it. Everything is array arithmetic: a crop of
the ground, and points of boxes and lines turned into the car's frame.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rlagents_envs.carla.roads import Roads

PLANES = ("road", "line", "route", "vehicles", "vehicles before", "walkers", "lights")
SHADE = {"red": 255, "yellow": 170, "green": 85}  # of a stop line
_AHEAD = 0.25  # the picture's middle lies a quarter of its side ahead of the car
_COLOURS = np.array(  # of each plane, drawn one over the other
    [
        (70, 74, 82),
        (190, 190, 190),
        (60, 110, 190),
        (240, 200, 80),
        (120, 100, 50),
        (240, 90, 160),
        (255, 60, 60),
    ],
    np.uint8,
)
_GRASS, _EGO = (34, 44, 36), (255, 255, 255)

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]


class Boxes(NamedTuple):
    """Upright boxes on the ground: of vehicles, or of walkers."""

    xy: Floats  # [V, 2] of the middle
    yaw: Floats  # [V] rad
    half: Floats  # [V, 2] half the length and half the width

    def near(self, x: float, y: float, metres: float) -> "Boxes":
        """Returns those whose middle lies within so many metres of a point."""
        if not len(self.xy):
            return self
        close = np.hypot(*(self.xy - (x, y)).T) < metres
        return Boxes(self.xy[close], self.yaw[close], self.half[close])

    def hold(self, x: float, y: float) -> bool:
        """Returns whether a point lies in any of them."""
        dx, dy = x - self.xy[:, 0], y - self.xy[:, 1]
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        along, across = np.abs(cos * dx + sin * dy), np.abs(cos * dy - sin * dx)
        return bool(((along < self.half[:, 0]) & (across < self.half[:, 1])).any())


NOTHING = Boxes(np.zeros((0, 2)), np.zeros(0), np.zeros((0, 2)))


class Scene(NamedTuple):
    """What there is to draw, in metres and radians."""

    x: float
    y: float
    yaw: float
    route: Floats  # [P, 2] from the car on
    vehicles: Boxes
    before: Boxes  # the vehicles half a second ago
    walkers: Boxes
    lines: Floats  # [L, 4] x, y, yaw and width of stop lines of lights
    shades: Bytes  # [L]


class BirdsEye:
    """Draws bird's-eye views of one town.

    Args:
        roads: the town.
        size: pixels along a side.
        metres: along the side of one pixel.
    """

    def __init__(self, roads: "Roads", *, size: int = 84, metres: float = 0.5) -> None:
        self.roads, self.size, self.metres = roads, size, metres
        self.reach = size * metres * 1.1  # metres from the car to the farthest corner, a little more
        spread = [np.linspace(-1, 1, max(5, round(side / metres) | 1)) for side in (5, 2.5)]
        self._inside = np.stack(np.meshgrid(*spread), -1).reshape(-1, 2)  # [G, 2] points that fill a box
        self._across = np.linspace(-0.5, 0.5, max(5, round(4 / metres) | 1))
        # Points are put on a canvas with a rim, so that what is partly outside needs no care.
        width = max(1, round(1.5 / metres))  # of a route, in pixels
        self._rim = width
        self._side = size + 2 * self._rim
        reach = np.arange(width) - width // 2
        self._brush = (reach[:, None] * self._side + reach).ravel()

    def draw(self, scene: Scene) -> Bytes:
        """Returns uint8 [7, size, size]: 255 where something is; stop lines by the colour of their light."""
        picture = np.zeros((len(PLANES), self.size, self.size), np.uint8)
        picture[:2] = self.roads.sample(
            PLANES[:2],
            scene.x,
            scene.y,
            math.degrees(scene.yaw),
            size=self.size,
            metres=self.metres,
            ahead=_AHEAD,
        )
        route, _ = self._pixels(scene, scene.route)
        picture[2] = self._drawn((route[:, None] + self._brush).ravel(), 255)
        for plane, boxes in ((3, scene.vehicles), (4, scene.before), (5, scene.walkers)):
            if len(boxes.xy):
                picture[plane] = self._drawn(self._pixels(scene, self._filled(boxes))[0], 255)
        if len(scene.lines):
            _, _, yaw, width = scene.lines.T
            side = np.stack([-np.sin(yaw), np.cos(yaw)], 1) * width[:, None]  # [L, 2]
            points = scene.lines[:, None, :2] + side[:, None] * self._across[:, None]  # [L, S, 2]
            pixels, seen = self._pixels(scene, points.reshape(-1, 2))
            picture[6] = self._drawn(pixels, np.repeat(scene.shades, len(self._across))[seen])
        return picture

    def colours(self, picture: Bytes) -> Bytes:
        """Returns a drawn view as a person likes to see it, RGB [size, size, 3], with the car itself."""
        view = np.empty((self.size, self.size, 3), np.uint8)
        view[:] = _GRASS
        for plane in (0, 1, 2, 4, 3, 5):
            view[picture[plane] > 0] = _COLOURS[plane]
        for name, colour in (("red", (255, 60, 60)), ("yellow", (255, 200, 40)), ("green", (70, 220, 90))):
            view[picture[6] == SHADE[name]] = colour
        row, column = round(self.size * (0.5 + _AHEAD)), self.size // 2
        long, wide = round(2.4 / self.metres), round(1.0 / self.metres)
        view[row - long : row + long, column - wide : column + wide] = _EGO
        return view

    def _filled(self, boxes: Boxes) -> Floats:
        """Returns points [n, 2] that cover the boxes without holes."""
        # No box is drawn thinner than a pixel and a half.
        at = self._inside * np.maximum(boxes.half, 0.75 * self.metres)[:, None]  # [V, G, 2]
        cos, sin = np.cos(boxes.yaw)[:, None], np.sin(boxes.yaw)[:, None]
        x = boxes.xy[:, :1] + cos * at[..., 0] - sin * at[..., 1]
        y = boxes.xy[:, 1:] + sin * at[..., 0] + cos * at[..., 1]
        return np.stack([x.ravel(), y.ravel()], 1)

    def _pixels(self, scene: Scene, points: Floats) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Returns where on the canvas points [n, 2] lie, and which of them do, [n]."""
        dx, dy = points[:, 0] - scene.x, points[:, 1] - scene.y
        cos, sin = math.cos(scene.yaw) / self.metres, math.sin(scene.yaw) / self.metres
        row = (self._rim + self.size * (0.5 + _AHEAD)) - (cos * dx + sin * dy)
        column = (self._rim + self.size / 2) + (cos * dy - sin * dx)
        # Nothing within half the rim of the canvas' edge: a brush reaches that far.
        middle = self._side / 2
        half = middle - self._rim // 2
        seen = np.maximum(np.abs(row - middle), np.abs(column - middle)) < half
        return row[seen].astype(np.intp) * self._side + column[seen].astype(np.intp), seen

    def _drawn(self, pixels: NDArray[np.intp], value: int | Bytes) -> Bytes:
        """Returns a plane [size, size] with pixels of the canvas set."""
        canvas = np.zeros(self._side * self._side, np.uint8)
        canvas[pixels] = value
        inside = slice(self._rim, self._rim + self.size)
        return canvas.reshape(self._side, self._side)[inside, inside]

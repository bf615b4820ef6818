"""The ground as a picture: what lies where in a town, drawn once from OpenDRIVE, then looked up.

The one idea: one byte per cell, one bit per layer. A bird's-eye view, a camera's ground plane and the
question whether a car is on the road are the same look-up at other places. Coordinates are CARLA's: metres,
x forward, y right, yaw in degrees from x towards y.
"""

import contextlib
import functools
import math
import xml.etree.ElementTree as Xml
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import carla
import numpy as np
from numpy.typing import NDArray

LAYERS = ("road", "sidewalk", "line", "stop", "junction", "shoulder", "crosswalk")
BIT = {name: 1 << i for i, name in enumerate(LAYERS)}
LIGHT, STOP_SIGN = "1000001", "206"  # OpenDRIVE signal types
MARGIN = 12.0  # metres of nothing around the outermost lane
MAX_CELLS = 2**28
MAX_LIMITS = 2**16  # square metres whose speed limit is kept
_UNLIMITED = [(0.0, 30.0)]  # km/h where a map says nothing
STEP = 1.0  # metres between the points that lanes are drawn from
LENGTH = 2.1  # metres drawn around each of them: a lane may end almost a step behind its last point
DRIVING = (
    carla.LaneType.Driving,
    carla.LaneType.Parking,
    carla.LaneType.Bidirectional,
    carla.LaneType.OnRamp,
    carla.LaneType.OffRamp,
    carla.LaneType.Entry,
    carla.LaneType.Exit,
)


@dataclass(frozen=True)
class Stop:
    """Where a lane's stop line lies: the middle of the lane, with the direction of travel."""

    x: float
    y: float
    yaw: float
    width: float


@dataclass(frozen=True)
class Light:
    """A traffic light of the map: whom it stops, and with whom it takes turns.

    Attributes:
        signal: Its OpenDRIVE id.
        x: Of the pole; so is `y`. `yaw` is that of the traffic it faces.
        stops: One stop line per lane.
        junction: Lights of one junction share a cycle.
        phase: Lights of one phase are green together.
    """

    signal: str
    x: float
    y: float
    yaw: float
    stops: tuple[Stop, ...]
    junction: int
    phase: int


class Roads:
    """The ground of one town.

    Attributes:
        text: The OpenDRIVE text.
        map: The `carla.Map` made from it.
        raster: uint8 [H, W], the sum of `BIT[layer]` for the layers that cover the cell.
        scale: Cells per metre.
        origin: x and y of the corner of cell 0, 0, in metres. Columns grow with x, rows with y.
        lights: The traffic lights, in the order of their signals.
        crosswalks: Corners of each crosswalk, [4, 2] x, y.
        sloped: Whether lanes lie at different heights.
    """

    def __init__(self, text: str, *, name: str = "town", scale: float = 4.0) -> None:
        """Draws a town.

        Raises:
            ValueError: If the text is no OpenDRIVE map, has no lane to drive on, or is too large for `scale`.
        """
        try:
            self.map = carla.Map(name, text)
            self._document = Xml.fromstring(text)
        except (RuntimeError, Xml.ParseError) as error:
            raise ValueError(f"a town must be an OpenDRIVE map that carla.Map takes: {error}") from None
        self.text = text
        self.scale = scale
        lanes = _Lanes(self.map)
        if not len(lanes.at):
            raise ValueError("a town must have lanes to drive on, got a map without any")
        low, high = lanes.at[:, :2].min(0) - MARGIN, lanes.at[:, :2].max(0) + MARGIN
        columns, rows = (int(side) for side in np.ceil((high - low) * scale))
        if columns * rows > MAX_CELLS:
            raise ValueError(
                f"a town must have at most {MAX_CELLS} cells, got {columns} x {rows}; lower scale"
            )
        self.origin = (float(low[0]), float(low[1]))
        self.sloped = bool(np.ptp(lanes.at[:, 3]) > 0.1)
        self.raster: NDArray[np.uint8] = np.zeros((rows, columns), np.uint8)
        self.crosswalks = self._read_crosswalks()
        self.lights, signs = self._read_lights()
        self._draw(lanes, [*(stop for light in self.lights for stop in light.stops), *signs])
        self._spawn_points = list(lanes.spawn_points())
        self._limits = self._read_limits()
        self._limit_of: dict[tuple[int, int], float] = {}  # by square metre
        self._flat = self.raster.reshape(-1)

    @functools.cached_property
    def layers(self) -> dict[str, NDArray[np.uint8]]:
        """Returns every layer as a picture of its own, uint8 [H, W], 255 where it is."""
        return {
            name: np.where(self.raster & np.uint8(bit), np.uint8(255), np.uint8(0))
            for name, bit in BIT.items()
        }

    def spawn_points(self) -> list[carla.Transform]:
        """Returns places to start from: in the middle of lanes, outside junctions, 12 m apart on a lane."""
        return [
            carla.Transform(carla.Location(x, y, z + 0.3), carla.Rotation(0, yaw, 0))
            for x, y, z, yaw in self._spawn_points
        ]

    def limit(self, x: float, y: float) -> float:
        """Returns the speed limit of the nearest lane in km/h; in a junction without, the street's before.

        Every square metre is looked up once, at its middle: the map takes long to find a lane.
        """
        cell = math.floor(x), math.floor(y)
        known = self._limit_of.get(cell)
        if known is None:
            waypoint = self.map.get_waypoint(carla.Location(cell[0] + 0.5, cell[1] + 0.5, 0))
            limits = self._limits.get(waypoint.road_id, _UNLIMITED)
            known = next((limit for s, limit in reversed(limits) if s <= waypoint.s), limits[0][1])
            if len(self._limit_of) < MAX_LIMITS:
                self._limit_of[cell] = known
        return known

    def at(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Returns the bits at points of any shape, 0 outside the map."""
        rows, columns = self.raster.shape
        # Not np.clip, which takes five times as long on a few numbers.
        column = np.minimum(np.maximum((x - self.origin[0]) * self.scale, 0), columns - 1).astype(np.int32)
        row = np.minimum(np.maximum((y - self.origin[1]) * self.scale, 0), rows - 1).astype(np.int32)
        return self._flat[row * columns + column]

    def sample(
        self,
        layers: Sequence[str],
        x: float | NDArray[np.floating],
        y: float | NDArray[np.floating],
        yaw: float | NDArray[np.floating],
        *,
        size: int = 84,
        metres: float = 0.5,
        ahead: float = 0.25,
    ) -> NDArray[np.uint8]:
        """Returns bird's-eye views, heading up: uint8 [C, size, size], 255 where a layer is, else 0.

        Several poses at once, given as arrays of one length N, give [N, C, size, size].

        Args:
            layers: Names out of `LAYERS`, in the order of the channels.
            x: Of the ego, metres.
            y: Of the ego, metres.
            yaw: Degrees.
            size: Pixels along a side.
            metres: Along the side of one pixel.
            ahead: How far the picture's middle lies ahead of the ego, as a share of its side: 0.25 shows
                the ego at three quarters of the height.
        """
        forward, right = _window(size, metres, ahead, self.scale)  # [size] cells each
        angle = np.radians(np.asarray(yaw, np.float64))[..., None].astype(np.float32)
        column = ((np.asarray(x, np.float64) - self.origin[0]) * self.scale)[..., None].astype(np.float32)
        row = ((np.asarray(y, np.float64) - self.origin[1]) * self.scale)[..., None].astype(np.float32)
        cos, sin = np.cos(angle), np.sin(angle)
        # Rows of the view lie along the heading, its columns across: each cell is the sum of two.
        column = (column + cos * forward)[..., None] - (sin * right)[..., None, :]  # [..., size, size]
        row = (row + sin * forward)[..., None] + (cos * right)[..., None, :]
        rows, columns = self.raster.shape
        index = np.minimum(np.maximum(row.astype(np.int32), 0), rows - 1)
        index *= columns
        index += np.minimum(np.maximum(column.astype(np.int32), 0), columns - 1)
        # `take` is twice as fast as brackets here.
        bits = cast(NDArray[np.uint8], self._flat.take(index))  # [..., size, size]
        found = (bits[..., None, :, :] & _masks(tuple(layers))) != 0  # [..., C, size, size]
        return found.view(np.uint8) * np.uint8(255)

    def _draw(self, lanes: "_Lanes", stops: list[Stop]) -> None:
        gap = 0.7 / self.scale  # between stamps: close enough to leave no cell out at any angle
        for bits, width in sorted({(int(b), float(w)) for b, w in lanes.kinds}):
            here = (lanes.kinds[:, 0] == bits) & (lanes.kinds[:, 1] == width)
            self._stamp(lanes.at[here], LENGTH, width, gap, bits)
        for points in lanes.lines:
            self._stamp(points, LENGTH, 2 / self.scale - gap, gap, BIT["line"])
        for stop in stops:
            # Half a metre thick: one pixel of a view with two pixels to the metre.
            self._stamp(np.array([[stop.x, stop.y, stop.yaw]]), 0.5, stop.width - 0.2, gap, BIT["stop"])
        for corners in self.crosswalks:
            middle, side, along = corners.mean(0), corners[1] - corners[0], corners[2] - corners[1]
            yaw = math.degrees(math.atan2(side[1], side[0]))
            pose = np.array([[*middle, yaw]])
            self._stamp(pose, float(np.hypot(*side)), float(np.hypot(*along)), gap, BIT["crosswalk"])

    def _stamp(self, poses: NDArray[np.float64], length: float, width: float, gap: float, bits: int) -> None:
        """Sets bits in rectangles around poses [n, 3] of x, y, yaw."""
        along = np.linspace(-length / 2, length / 2, max(2, math.ceil(length / gap) + 1))
        across = np.linspace(-width / 2, width / 2, max(2, math.ceil(width / gap) + 1))
        forward, right = (grid.ravel() for grid in np.meshgrid(along, across))
        rows, columns = self.raster.shape
        for part in np.array_split(poses, max(1, len(poses) * len(forward) // 2_000_000)):
            angle = np.radians(part[:, 2:3])
            cos, sin = np.cos(angle), np.sin(angle)
            x = (part[:, :1] + cos * forward - sin * right - self.origin[0]) * self.scale
            y = (part[:, 1:2] + sin * forward + cos * right - self.origin[1]) * self.scale
            # The outermost ring stays empty: whatever looks past the edge sees nothing there.
            column = np.clip(x, 1, columns - 2).astype(np.intp)
            row = np.clip(y, 1, rows - 2).astype(np.intp)
            self.raster[row, column] |= np.uint8(bits)

    def _read_crosswalks(self) -> list[NDArray[np.float64]]:
        """Reads the crosswalks; `carla.Map` gives closed outlines one after the other."""
        outlines: list[NDArray[np.float64]] = []
        current: list[tuple[float, float]] = []
        for corner in self.map.get_crosswalks():
            point = (corner.x, corner.y)
            if len(current) > 2 and math.dist(point, current[0]) < 1e-3:
                if len(current) == 4:
                    outlines.append(np.array(current))
                current = []
            else:
                current.append(point)
        return outlines

    def _read_lights(self) -> tuple[list[Light], list[Stop]]:
        """Reads traffic lights with the junctions and phases they belong to, and the lines of stop signs."""
        phase_of: dict[str, tuple[int, int]] = {}
        signals = {
            controller.get("id"): [control.get("signalId", "") for control in controller.iter("control")]
            for controller in self._document.findall("controller")
        }
        for junction in self._document.findall("junction"):
            for phase, controller in enumerate(junction.findall("controller")):
                for signal in signals.get(controller.get("id"), []):
                    phase_of[signal] = (int(junction.get("id", "0")), phase)
        found: dict[str, tuple[carla.Transform, list[Stop]]] = {}
        signs: list[Stop] = []
        for landmark in self.map.get_all_landmarks():
            if landmark.type not in (LIGHT, STOP_SIGN):
                continue
            stops = list(self._stops_of(landmark))
            if landmark.type == STOP_SIGN:
                signs.extend(stops)
            elif landmark.id in found:
                known = found[landmark.id][1]
                known.extend(stop for stop in stops if stop not in known)
            else:
                found[landmark.id] = (landmark.transform, stops)
        lights: list[Light] = []
        for i, (signal, (pole, stops)) in enumerate(
            sorted(found.items(), key=lambda item: _by_number(item[0]))
        ):
            # A light that no junction claims takes its turns alone.
            junction, phase = phase_of.get(signal, (-1 - i, 0))
            yaw = stops[0].yaw if stops else pole.rotation.yaw
            x, y = pole.location.x, pole.location.y
            lights.append(Light(signal, x, y, yaw, tuple(stops), junction, phase))
        return lights, signs

    def _stops_of(self, landmark: carla.Landmark) -> Iterator[Stop]:
        for first, last in landmark.get_lane_validities():
            for lane in range(min(first, last), max(first, last) + 1):
                waypoint = self.map.get_waypoint_xodr(landmark.road_id, lane, landmark.s) if lane else None
                # Many maps put a signal on the way across the junction: the line lies before it.
                before = waypoint.previous(STEP) if waypoint and waypoint.is_junction else []
                while before and before[0].is_junction:
                    before = before[0].previous(STEP)
                waypoint = before[0] if before else waypoint
                if waypoint and waypoint.lane_type in DRIVING:
                    place, yaw = waypoint.transform.location, waypoint.transform.rotation.yaw
                    yield Stop(place.x, place.y, yaw, waypoint.lane_width)

    def _read_limits(self) -> dict[int, list[tuple[float, float]]]:
        """Reads where along each road which limit begins, in km/h; ways without take over those before."""
        factor = {"km/h": 1.0, "mph": 1.609344, "m/s": 3.6}
        limits: dict[int, list[tuple[float, float]]] = {}
        before: dict[int, int] = {}
        for road in self._document.findall("road"):
            number = int(road.get("id", "0"))
            for kind in road.findall("type"):
                speed = kind.find("speed")
                if speed is None:
                    continue
                with contextlib.suppress(ValueError):  # "no limit" and "undefined" are words
                    limit = float(speed.get("max", "")) * factor.get(speed.get("unit", "m/s"), 3.6)
                    limits.setdefault(number, []).append((float(kind.get("s", "0")), limit))
            link = road.find("link/predecessor")
            if number not in limits and link is not None and link.get("elementType") == "road":
                before[number] = int(link.get("elementId", "0"))
        taken = {road: [(0.0, limits[street][-1][1])] for road, street in before.items() if street in limits}
        return limits | taken


class _Lanes:
    """Points along every lane of a map.

    Attributes:
        at: [n, 4] x, y, yaw, z.
        kinds: [n, 2] bits and width of the lane there.
        lines: Points [m, 3] of painted lines: x, y, yaw.
    """

    def __init__(self, town: carla.Map) -> None:
        at: list[tuple[float, float, float, float]] = []
        kinds: list[tuple[int, float]] = []
        lines: list[tuple[float, float, float]] = []
        self._lanes: dict[tuple[int, int, int], list[tuple[float, float, float, float]]] = {}
        for waypoint in town.generate_waypoints(STEP):
            pose = _pose(waypoint)
            bits = BIT["road"] | (BIT["junction"] if waypoint.is_junction else 0)
            at.append(pose)
            kinds.append((bits, round(waypoint.lane_width, 1)))
            if not waypoint.is_junction:
                self._lanes.setdefault((waypoint.road_id, waypoint.section_id, waypoint.lane_id), []).append(
                    pose
                )
            for marking, side in ((waypoint.left_lane_marking, -0.5), (waypoint.right_lane_marking, 0.5)):
                if _painted(marking, waypoint.s):
                    shift, angle = side * waypoint.lane_width, math.radians(pose[2])
                    lines.append(
                        (pose[0] - shift * math.sin(angle), pose[1] + shift * math.cos(angle), pose[2])
                    )
            for beside in _beside(waypoint):
                at.append(_pose(beside))
                bit = BIT["sidewalk"] if beside.lane_type == carla.LaneType.Sidewalk else BIT["shoulder"]
                kinds.append((bit, round(beside.lane_width, 1)))
        self.at = np.array(at, np.float64).reshape(-1, 4)
        self.kinds = np.array(kinds, np.float64).reshape(-1, 2)
        self.lines = [np.array(lines, np.float64)] if lines else []

    def spawn_points(self) -> Iterator[tuple[float, float, float, float]]:
        """Gives x, y, z, yaw: from 5 m behind a lane's beginning to 12 m before its end."""
        for _, poses in sorted(self._lanes.items()):
            for x, y, yaw, z in poses[5:-12:12]:
                yield x, y, z, yaw


def _pose(waypoint: carla.Waypoint) -> tuple[float, float, float, float]:
    place = waypoint.transform
    return place.location.x, place.location.y, place.rotation.yaw, place.location.z


def _painted(marking: carla.LaneMarking | None, s: float) -> bool:
    """Whether there is paint at a place along a road; broken lines have 3 m of it, then 3 m without."""
    if marking is None or marking.type == carla.LaneMarkingType.NONE:
        return False
    return marking.type != carla.LaneMarkingType.Broken or int(s / 3) % 2 == 0


def _beside(waypoint: carla.Waypoint) -> Iterator[carla.Waypoint]:
    """Gives the sidewalks and shoulders next to a driving lane, from the inside out."""
    right = waypoint.get_right_lane()
    left = waypoint.get_left_lane()
    for neighbour, leftwards in ((right, False), (left, True)):
        beside = neighbour
        # A lane on the other side of the reference line runs the other way: out is to its own right.
        outward_left = leftwards and beside is not None and beside.lane_id * waypoint.lane_id > 0
        while beside is not None and beside.lane_type not in DRIVING:
            if beside.lane_type in (carla.LaneType.Sidewalk, carla.LaneType.Shoulder):
                yield beside
            beside = beside.get_left_lane() if outward_left else beside.get_right_lane()


def _by_number(signal: str) -> tuple[int, str]:
    return (int(signal) if signal.isdecimal() else 2**31, signal)


@functools.lru_cache(maxsize=16)
def _window(
    size: int, metres: float, ahead: float, scale: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns how many cells forward of the ego the rows' middles lie, and right of it the columns'."""
    across = (np.arange(size) + 0.5 - size / 2) * metres * scale
    return (ahead * size * metres * scale - across).astype(np.float32), across.astype(np.float32)


@functools.lru_cache(maxsize=16)
def _masks(layers: tuple[str, ...]) -> NDArray[np.uint8]:
    """Returns the layers' bits, [C, 1, 1]."""
    unknown = [name for name in layers if name not in BIT]
    if unknown:
        raise ValueError(f"layers must be among {', '.join(LAYERS)}, got {', '.join(unknown)}")
    return np.array([BIT[name] for name in layers], np.uint8).reshape(-1, 1, 1)


@functools.lru_cache(maxsize=8)
def cached_roads(text: str, scale: float = 4.0) -> Roads:
    """Returns the roads of a town, drawn once per process."""
    return Roads(text, scale=scale)

"""Routes along a map's lanes: a graph of lanes from the topology, A* on it, and the route as arrays.

The one idea: a route is a list of points every half metre. Where the car is, how far it still is to the next
stop line and what lies ahead are then index arithmetic, and no map is asked anything while driving. Metres
and radians in CARLA's frame: x ahead, y to the right, yaw clockwise seen from above.
"""

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

STEP = 0.5  # metres between points of a route
TURN = math.radians(30)  # change of heading from which a way through a junction is a turn
FOLLOW, LEFT, STRAIGHT, RIGHT = range(4)  # commands
_NOTICE = 30.0  # metres before a junction from which its command is given
_FINISH = 12.0  # metres after the last junction at which a route may end
_ATTEMPTS = 200
_SIDEWAYS, _SLOWING = 2.0, 2.0  # m/s^2 in a bend and before it

Key = tuple[int, int, int]  # road, section, lane
Floats = NDArray[np.float64]


class Signal(NamedTuple):
    """A traffic light that rules one lane."""

    id: str  # in the OpenDRIVE file
    distance: float  # along the lane or route, of its stop line


@dataclass
class Lane:
    """A piece of lane: from where it begins to where its successors do."""

    points: Floats  # [P, 3] x, y, z, one metre apart
    yaw: tuple[float, float]  # at the beginning and at the end
    width: float
    junction: bool
    length: float
    signals: list[Signal] = field(default_factory=list[Signal])

    @property
    def turn(self) -> float:
        """Change of heading from beginning to end, positive to the right, in -pi .. pi."""
        return wrapped(self.yaw[1] - self.yaw[0])


class StopLine(NamedTuple):
    """Where a light stops a lane."""

    id: str
    x: float
    y: float
    yaw: float  # of the traffic that it stops
    width: float  # of the lane


class Place(NamedTuple):
    """Where a car is on a route."""

    point: int  # of the route, the nearest
    distance: float  # metres along the route
    lateral: float  # metres to the right of it
    heading: float  # the car's minus the route's, in -pi .. pi


@dataclass(frozen=True)
class Route:
    """A way to drive, from its first point to its last."""

    xy: Floats  # [P, 2], STEP apart
    z: Floats  # [P]
    yaw: Floats  # [P]
    width: Floats  # [P] of the lane
    junction: NDArray[np.bool_]  # [P]
    command: NDArray[np.int64]  # [P] FOLLOW, LEFT, STRAIGHT or RIGHT, from 30 m before a junction on
    pace: Floats  # [P] m/s at which one comes comfortably through the bends here and ahead, see `bend_pace`
    signals: tuple[Signal, ...]  # in the order of their distance
    turns: int

    @property
    def length(self) -> float:
        """Metres from the first point to the last."""
        return (len(self.xy) - 1) * STEP

    def locate(self, x: float, y: float, yaw: float, near: int) -> Place:
        """Returns the place of a car that was at point `near` a moment ago."""
        low, high = max(0, near - 6), min(len(self.xy), near + 40)
        away = self.xy[low:high] - (x, y)
        index = low + int(np.argmin(np.einsum("pi,pi->p", away, away)))
        course = float(self.yaw[index])
        cos, sin = math.cos(course), math.sin(course)
        dx, dy = x - float(self.xy[index, 0]), y - float(self.xy[index, 1])
        along = index * STEP + min(STEP, max(-STEP, cos * dx + sin * dy))
        return Place(index, min(max(along, 0.0), self.length), cos * dy - sin * dx, wrapped(yaw - course))

    def ahead(self, index: int, metres: float) -> Floats:
        """Returns the points [n, 2] from one point on, so many metres; at least one."""
        return self.xy[index : index + max(1, round(metres / STEP))]

    def next_signal(self, distance: float) -> Signal | None:
        """Returns the first light whose stop line is not yet passed."""
        return next((signal for signal in self.signals if signal.distance > distance), None)


class Lanes:
    """The lanes of a map and how they join.

    Args:
        town: a `carla.Map`.
        stop_lines: of its traffic lights.

    Raises:
        ValueError: the map has no lanes to drive on.
    """

    def __init__(self, town: Any, stop_lines: Iterable["StopLine"] = ()) -> None:
        self.lanes: dict[Key, Lane] = {}
        self.successors: dict[Key, list[Key]] = {}
        for start, end in town.get_topology():
            before, after = (self._add(waypoint) for waypoint in (start, end))
            if after not in self.successors[before]:
                self.successors[before].append(after)
        self._streets = [
            key
            for key, lane in self.lanes.items()
            if not lane.junction and lane.length >= 2 * _FINISH and self.successors[key]
        ]
        if not self._streets:
            raise ValueError("the map must have lanes to drive on, got none of 24 m that leads anywhere")
        for line in stop_lines:
            self._place(line)

    def _add(self, waypoint: Any) -> Key:
        key = (waypoint.road_id, waypoint.section_id, waypoint.lane_id)
        if key not in self.lanes:
            self.lanes[key] = _lane(waypoint)
            self.successors[key] = []
        return key

    def _place(self, line: "StopLine") -> None:
        """Gives a light to the lane on which its stop line lies; none if that is no lane of the graph."""
        best, found, point = 2.0, None, 0
        for lane in self.lanes.values():
            if lane.junction or not lane.length:
                continue
            away = np.hypot(*(lane.points[:, :2] - (line.x, line.y)).T)
            nearest = int(np.argmin(away))
            if away[nearest] < best and _along(lane, nearest, line.yaw):
                best, found, point = float(away[nearest]), lane, nearest
        if found is not None:
            found.signals.append(Signal(line.id, found.length * point / max(1, len(found.points) - 1)))

    def path(self, start: Key, goal: Key) -> list[Key]:
        """Returns the shortest sequence of lanes from one to another, both included; empty if there is none.

        A* (Hart, Nilsson, Raphael 1968) with the straight distance between the lanes' ends as heuristic.
        """
        target = self.lanes[goal].points[0, :2]

        def estimate(key: Key) -> float:
            return float(np.hypot(*(self.lanes[key].points[-1, :2] - target)))

        queue = [(estimate(start), 0.0, start)]
        came: dict[Key, Key | None] = {start: None}
        cost = {start: 0.0}
        while queue:
            _, driven, key = heapq.heappop(queue)
            if key == goal:
                way = [key]
                while (before := came[way[-1]]) is not None:
                    way.append(before)
                return way[::-1]
            if driven > cost[key]:
                continue
            for after in self.successors[key]:
                there = driven + self.lanes[after].length
                if there < cost.get(after, math.inf):
                    cost[after], came[after] = there, key
                    # The goal's own length is the same for every way to it.
                    heapq.heappush(queue, (there + (0 if after == goal else estimate(after)), there, after))
        return []

    def route(
        self,
        rng: np.random.Generator,
        *,
        metres: float = 300.0,
        turns: int = 2,
    ) -> Route:
        """Returns a random route of at least so many metres with at least so many turns at junctions.

        Shortest ways to random goals are joined until both are reached; the route ends soon after. Lanes are
        not changed within a street.

        Args:
            rng: where the draws come from.
            metres: least length.
            turns: least number of ways through a junction that change the heading by 30 degrees.

        Raises:
            LookupError: no such route was found.
        """
        for _ in range(_ATTEMPTS):
            way = [self._streets[rng.integers(len(self._streets))]]
            offset = rng.uniform(6.0, self.lanes[way[0]].length - _FINISH)
            for _ in range(8):
                goal = self._streets[rng.integers(len(self._streets))]
                way += self.path(way[-1], goal)[1:]
                route = assemble([self.lanes[key] for key in way], offset, metres=metres, turns=turns)
                if route is not None:
                    return route
        raise LookupError(
            f"the map must have routes of {metres:g} m with {turns} turns at junctions, and none was found; "
            "lower env.route_metres or env.route_turns"
        )


def assemble(lanes: Sequence[Lane], offset: float, *, metres: float = 0.0, turns: int = 0) -> Route | None:
    """Returns the route along lanes, from `offset` metres into the first one.

    It ends 12 m after a junction, as soon as it has so many metres and turns; None if it never does. Lanes
    of no length are skipped.
    """
    lanes = [lane for lane in lanes if lane.length > 0]
    starts = itertools.accumulate((lane.length for lane in lanes), initial=-offset)
    edges: Floats = np.array(list(starts))  # where each lane begins
    made, end = 0, (0.0, 0)
    for number, lane in enumerate(lanes):
        if lane.junction:
            made += abs(lane.turn) > TURN
            continue
        last = float(edges[number + 1])
        if number:
            last = min(last, max(metres, float(edges[number]) + _FINISH))
        if made >= turns and last >= metres:
            end = (last, number)
            break
    if not end[0]:
        return None
    length, count = math.floor(end[0] / STEP) * STEP, end[1] + 1
    lanes, edges = lanes[:count], edges[: count + 1]
    at = np.arange(round(length / STEP) + 1, dtype=np.float64) * STEP  # [P]
    spots: Floats = np.concatenate(
        [np.linspace(float(edges[i]), float(edges[i + 1]), len(lane.points)) for i, lane in enumerate(lanes)]
    )
    points: Floats = np.concatenate([lane.points for lane in lanes])
    xyz: Floats = np.stack([np.interp(at, spots, points[:, axis]) for axis in range(3)], 1)
    step: Floats = np.gradient(xyz[:, :2], axis=0)
    which: NDArray[np.int64] = np.clip(
        np.searchsorted(edges, at, side="right") - 1, 0, count - 1
    )  # [P] lane of each point
    junction = np.array([lane.junction for lane in lanes])
    command = np.zeros(len(at), np.int64)
    for i, lane in enumerate(lanes):
        if lane.junction:
            turn = lane.turn
            order = STRAIGHT if abs(turn) <= TURN else RIGHT if turn > 0 else LEFT
            command[(at > edges[i] - _NOTICE) & (at <= edges[i + 1])] = order
    signals = sorted(
        (
            Signal(signal.id, float(edges[i]) + signal.distance)
            for i, lane in enumerate(lanes)
            for signal in lane.signals
            if 2.0 < edges[i] + signal.distance < length
        ),
        key=lambda signal: signal.distance,
    )
    yaw = np.arctan2(step[:, 1], step[:, 0])
    return Route(
        xyz[:, :2].copy(),
        xyz[:, 2].copy(),
        yaw,
        np.array([lane.width for lane in lanes])[which],
        junction[which],
        command,
        bend_pace(yaw),
        tuple(signals),
        made,
    )


def bend_pace(yaw: Floats) -> Floats:
    """Returns the speed (m/s) at each point of a route that its bends allow, for directions [P] STEP apart.

    sqrt(a / curvature), with a = 2 m/s^2 sideways and the curvature over 2 m; before a bend no faster than
    one still slows down to that by 2 m/s^2. At most 50 m/s.
    """
    reach = round(1 / STEP)
    course = np.pad(np.unwrap(yaw), reach, mode="edge")
    bend = np.abs(course[2 * reach :] - course[: -2 * reach]) / (2 * reach * STEP)  # [P] 1/m
    pace = np.sqrt(_SIDEWAYS / np.maximum(bend, _SIDEWAYS / 50.0**2))
    for i in range(len(pace) - 2, -1, -1):
        pace[i] = min(pace[i], math.sqrt(pace[i + 1] ** 2 + 2 * _SLOWING * STEP))
    return pace


def wrapped(angle: float) -> float:
    """Returns the angle in -pi .. pi."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def _along(lane: Lane, point: int, yaw: float) -> bool:
    """Whether a lane runs in a direction at one of its points, by less than 45 degrees."""
    last = len(lane.points) - 1
    dx, dy = lane.points[min(point + 1, last), :2] - lane.points[max(point - 1, 0), :2]
    return abs(wrapped(math.atan2(dy, dx) - yaw)) < math.pi / 4


def _lane(waypoint: Any) -> Lane:
    try:
        rest = list(waypoint.next_until_lane_end(1.0))
    except RuntimeError:  # a lane of no length
        rest = []
    places = [each.transform for each in (waypoint, *rest)]
    points = np.array([(place.location.x, place.location.y, place.location.z) for place in places])
    steps = np.hypot(*np.diff(points[:, :2], axis=0).T)
    keep = np.concatenate([[True], steps > 0.05])
    length = float(steps[keep[1:]].sum())
    yaws = [math.radians(place.rotation.yaw) for place in places]
    return Lane(
        points[keep],
        (yaws[0], yaws[-1]),
        float(waypoint.lane_width),
        bool(waypoint.is_junction),
        length if length > 0.05 else 0.0,
    )

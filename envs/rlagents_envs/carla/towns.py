"""Towns of our own as OpenDRIVE text: five families, each town drawn from a seed.

The one idea: a town is a plane graph. Crossings are points, streets are edges with a heading at either end;
every street, and every way across a crossing, is then the pair of arcs that joins two poses. Everything is
flat, traffic keeps to the right, and no lane ends without a successor. Lengths are metres, angles radians,
both in OpenDRIVE's right-handed frame (y up); CARLA's own frame has y down.
"""

import itertools
import math
import re
import xml.etree.ElementTree as Xml
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

LANE, SHOULDER, SIDEWALK = 3.5, 0.5, 2.0  # widths of a lane of each type
CORNER = 8.5  # from the kerb's line to where a crossing begins, for a right angle
STOP = 5.5  # from a stop line to the crossing
CROSSING = 3.0  # from the middle of a crosswalk to the crossing
CROSSWALK = 3.0  # a crosswalk's width along the street
SLOW = 30  # km/h, at most, across and near crossings
ZONE = 30.0  # metres before and behind a crossing that count as near
MAX_BYTES = 64 * 2**20  # of a user's file


class Pose(NamedTuple):
    """A point and the direction of travel through it."""

    x: float
    y: float
    heading: float

    def moved(self, ahead: float, left: float = 0.0) -> "Pose":
        """Returns the pose so many metres ahead and to the left, with the same heading."""
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        return Pose(self.x + ahead * cos - left * sin, self.y + ahead * sin + left * cos, self.heading)

    def turned(self, angle: float) -> "Pose":
        """Returns the same point with the heading turned left."""
        return Pose(self.x, self.y, self.heading + angle)


class Arc(NamedTuple):
    """A piece of a reference line: curvature 0 is straight, positive turns left."""

    start: Pose
    length: float
    curvature: float


@dataclass(frozen=True)
class Crossing:
    """A point where streets meet.

    Attributes:
        lights: Whether it has traffic lights, if three streets or more meet here.
        radius: From the point to where the streets begin; None: wide enough for the sharpest corner.
    """

    x: float
    y: float
    lights: bool = True
    radius: float | None = None


@dataclass(frozen=True)
class Street:
    """A street between two crossings, with the headings of one who drives from the first to the second."""

    start: int
    end: int
    leaving: float
    arriving: float
    forward: int = 1  # lanes from start to end
    backward: int = 1
    limit: int = 30  # km/h, away from crossings


@dataclass
class _Arm:
    """One street as a crossing sees it."""

    road: int
    contact: str  # which end of the road lies here: "start" or "end"
    pose: Pose  # at the road's end, on its reference line, looking away from the crossing
    incoming: int  # lanes
    outgoing: int
    signal: int | None = None

    def lane(self, number: int, *, incoming: bool) -> int:
        """Returns the OpenDRIVE id of the lane so many from the middle; right-hand lanes are negative."""
        return -number if incoming == (self.contact == "end") else number


@dataclass
class _Plan:
    crossings: list[Crossing] = field(default_factory=list[Crossing])
    streets: list[Street] = field(default_factory=list[Street])


def opendrive(name: str) -> str:
    """Returns the OpenDRIVE text of a town: `family-seed`, such as grid-1, or the path of an .xodr file.

    Raises:
        ValueError: If it is neither, or the file is no OpenDRIVE text.
    """
    match = re.fullmatch(r"([a-z]+)-(\d{1,9})", name)
    if match and match[1] in FAMILIES:
        number = list(FAMILIES).index(match[1])
        return _render(name, FAMILIES[match[1]](np.random.default_rng([number, int(match[2])])))
    path = Path(name)
    if path.suffix.lower() != ".xodr":
        known = ", ".join(f"{family}-1" for family in FAMILIES)
        raise ValueError(f"town must be a family and a seed ({known}) or an .xodr file, got {name!r}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"town must be a file of at most {MAX_BYTES >> 20} MB, got {name}")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"town must be a readable .xodr file, got {name}: {error}") from None
    if "<OpenDRIVE" not in text:
        raise ValueError(f"town must be an OpenDRIVE file, got {name}, which has no <OpenDRIVE> element")
    return text


def join(start: Pose, end: Pose) -> list[Arc]:
    """Returns the two arcs (one, where one does) that lead smoothly from one pose to the other.

    Both lie equally far from the pose that they touch, measured along its tangent: with v from start to end,
    t = t0 + t1 and d that distance, |v - d t| = 2 d. The end must lie ahead of the start.
    """
    v = np.array([end.x - start.x, end.y - start.y])
    t0 = np.array([math.cos(start.heading), math.sin(start.heading)])
    t1 = np.array([math.cos(end.heading), math.sin(end.heading)])
    along, bend = float(v @ (t0 + t1)), 2 * (1 - float(t0 @ t1))
    if bend > 1e-9:
        distance = (math.sqrt(along**2 + bend * float(v @ v)) - along) / bend
    else:
        distance = float(v @ v) / (2 * along)
    middle = (np.array([start.x + end.x, start.y + end.y]) + distance * (t0 - t1)) / 2
    first = _arc(start, middle[0], middle[1])
    turn = first.length * first.curvature
    second = _arc(Pose(middle[0], middle[1], start.heading + turn), end.x, end.y)
    if abs(first.curvature - second.curvature) < 1e-7:
        return [Arc(start, first.length + second.length, first.curvature)]
    return [first, second]


def _arc(start: Pose, x: float, y: float) -> Arc:
    """Returns the arc that leaves a pose and ends in a point."""
    chord = math.hypot(x - start.x, y - start.y)
    half = math.remainder(math.atan2(y - start.y, x - start.x) - start.heading, 2 * math.pi)
    if abs(half) < 1e-7:
        return Arc(start, chord, 0.0)
    return Arc(start, chord * half / math.sin(half), 2 * math.sin(half) / chord)


# ---- the five families


def _lattice(columns: Sequence[float], rows: Sequence[float]) -> list[tuple[int, int, float]]:
    """Returns the edges of a lattice as (start, end, heading); crossings are numbered row by row."""
    width = len(columns)
    cells = list(itertools.product(range(len(rows)), range(width)))
    east = [
        (row * width + column, row * width + column + 1, 0.0) for row, column in cells if column < width - 1
    ]
    north = [
        (row * width + column, (row + 1) * width + column, math.pi / 2)
        for row, column in cells
        if row < len(rows) - 1
    ]
    return east + north


def _thinned(
    edges: list[tuple[int, int, float]], count: int, rng: np.random.Generator
) -> list[tuple[int, int, float]]:
    """Returns the edges without up to `count` drawn ones; three or more still meet at both their ends."""
    edges = list(edges)
    for edge in [edges[int(i)] for i in rng.permutation(len(edges))]:
        degrees = np.bincount(np.array([pair[:2] for pair in edges]).ravel())
        if count and degrees[edge[0]] > 3 and degrees[edge[1]] > 3:
            edges.remove(edge)
            count -= 1
    return edges


def _steps(rng: np.random.Generator, count: int, low: float, high: float) -> list[float]:
    """Returns `count` coordinates from 0, each so far from the one before."""
    return [0.0, *np.cumsum(rng.uniform(low, high, count - 1)).round(1).tolist()]


def _grid(rng: np.random.Generator) -> _Plan:
    """Straight streets at right angles, one lane each way."""
    columns = _steps(rng, int(rng.integers(4, 6)), 75, 110)
    rows = _steps(rng, int(rng.integers(3, 5)), 65, 95)
    crossings = [Crossing(x, y) for y in rows for x in columns]
    edges = _thinned(_lattice(columns, rows), 2, rng)
    return _Plan(crossings, [Street(a, b, heading, heading) for a, b, heading in edges])


def _curves(rng: np.random.Generator) -> _Plan:
    """A lattice whose crossings are shifted and turned: every street bends."""
    columns, rows = _steps(rng, 4, 95, 120), _steps(rng, 3, 90, 115)
    turns = rng.uniform(-0.5, 0.5, len(columns) * len(rows))
    shifts = rng.uniform(-12, 12, (len(turns), 2)).round(1)
    points = [(x, y) for y in rows for x in columns]
    crossings = [Crossing(x + dx, y + dy) for (x, y), (dx, dy) in zip(points, shifts.tolist(), strict=True)]
    edges = _thinned(_lattice(columns, rows), 2, rng)
    streets = [Street(a, b, h + turns[a], h + turns[b], limit=40) for a, b, h in edges]
    return _Plan(crossings, streets)


def _ring(rng: np.random.Generator) -> _Plan:
    """Two rings with spokes between them; the outer one is faster."""
    count = int(rng.integers(5, 8))
    angles = (np.arange(count) + rng.uniform(-0.12, 0.12, count)) * 2 * math.pi / count
    outer, inner = rng.uniform(125, 150), rng.uniform(62, 72)
    crossings = [
        Crossing(radius * math.cos(a), radius * math.sin(a))
        for radius in (outer, inner)
        for a in angles.tolist()
    ]
    streets: list[Street] = []
    for i in range(count):
        j, quarter = (i + 1) % count, math.pi / 2
        here, there = float(angles[i]), float(angles[j])
        streets.append(Street(i, j, here + quarter, there + quarter, limit=50))
        streets.append(Street(count + i, count + j, here + quarter, there + quarter))
        streets.append(Street(count + i, i, here, here, limit=40))
    return _Plan(crossings, streets)


def _roundabouts(rng: np.random.Generator) -> _Plan:
    """A lattice with a one-way loop in place of every crossing; nobody has lights there."""
    columns, rows = _steps(rng, 3, 125, 150), _steps(rng, 2 + int(rng.integers(2)), 120, 140)
    edges = _lattice(columns, rows)
    plan = _Plan()
    corners: dict[tuple[int, float], int] = {}
    for centre, (y, x) in enumerate(itertools.product(rows, columns)):
        outward = [h for a, _, h in edges if a == centre] + [h + math.pi for _, b, h in edges if b == centre]
        radius, outward = float(rng.uniform(24, 28)), sorted(outward)
        around = [len(plan.crossings) + i for i in range(len(outward))]
        for heading, number in zip(outward, around, strict=True):
            corners[centre, heading] = number
            at = Pose(x, y, heading).moved(radius)
            plan.crossings.append(Crossing(at.x, at.y, lights=False, radius=11.0))
        for i, heading in enumerate(outward):  # anticlockwise, as those who keep right go round
            j = (i + 1) % len(outward)
            here, there = heading + math.pi / 2, outward[j] + math.pi / 2
            plan.streets.append(Street(around[i], around[j], here, there, 1, 0, limit=20))
    for a, b, h in edges:
        plan.streets.append(Street(corners[a, h], corners[b, h + math.pi], h, h, limit=40))
    return plan


def _multilane(rng: np.random.Generator) -> _Plan:
    """Straight avenues with two lanes each way, and some streets with one."""
    columns, rows = _steps(rng, 4, 105, 140), _steps(rng, 3, 100, 130)
    narrow = {
        float(rng.integers(2)) * math.pi / 2: int(rng.integers(1, 3))
    }  # one line of streets in one direction
    streets: list[Street] = []
    for a, b, heading in _thinned(_lattice(columns, rows), 1, rng):
        line = a // len(columns) if heading == 0 else a % len(columns)
        lanes = 1 if narrow.get(heading) == line else 2
        streets.append(Street(a, b, heading, heading, lanes, lanes, limit=30 if lanes == 1 else 50))
    return _Plan([Crossing(x, y) for y in rows for x in columns], streets)


FAMILIES: dict[str, Callable[[np.random.Generator], _Plan]] = {
    "grid": _grid,
    "ring": _ring,
    "curves": _curves,
    "roundabouts": _roundabouts,
    "multilane": _multilane,
}


# ---- from a plan to OpenDRIVE 1.4


def _text(value: object) -> str:
    return f"{value:.8f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _add(parent: Xml.Element, tag: str, **attributes: object) -> Xml.Element:
    return Xml.SubElement(parent, tag, {name: _text(value) for name, value in attributes.items()})


def _radii(plan: _Plan) -> list[float]:
    """Returns how far from each crossing its streets begin: sharp corners and wide streets need room."""
    ends: list[list[float]] = [[] for _ in plan.crossings]
    lanes = [1] * len(plan.crossings)
    for street in plan.streets:
        ends[street.start].append(street.leaving)
        ends[street.end].append(street.arriving + math.pi)
        for end in (street.start, street.end):
            lanes[end] = max(lanes[end], street.forward, street.backward)
    radii: list[float] = []
    for crossing, headings, width in zip(plan.crossings, ends, lanes, strict=True):
        ordered = sorted(heading % (2 * math.pi) for heading in headings)
        gaps = [b - a for a, b in zip(ordered, [*ordered[1:], ordered[0] + 2 * math.pi], strict=True)]
        sharp = math.tan(min(min(gaps) / 2, math.pi / 4))
        radii.append(crossing.radius or (width * LANE + CORNER) / sharp)
    return radii


def _render(name: str, plan: _Plan) -> str:
    """Returns the OpenDRIVE text of a plan."""
    root = Xml.Element("OpenDRIVE")
    header = _add(
        root, "header", revMajor=1, revMinor=4, name=name, version=1, north=0, south=0, east=0, west=0
    )
    _add(header, "geoReference").text = "+proj=tmerc +lat_0=0 +lon_0=0"
    radii = _radii(plan)
    arms: list[list[_Arm]] = [[] for _ in plan.crossings]
    slow = [SLOW] * len(plan.crossings)
    for street in plan.streets:
        for end in (street.start, street.end):
            slow[end] = min(slow[end], street.limit)
    for number, street in enumerate(plan.streets, 1):
        here, there = (plan.crossings[end] for end in (street.start, street.end))
        first = Pose(here.x, here.y, street.leaving).moved(radii[street.start])
        last = Pose(there.x, there.y, street.arriving).moved(-radii[street.end])
        ends = (
            _Arm(number, "start", first, street.backward, street.forward),
            _Arm(number, "end", last.turned(math.pi), street.forward, street.backward),
        )
        arms[street.start].append(ends[0])
        arms[street.end].append(ends[1])
        _add_street(root, number, street, join(first, last), (slow[street.start], slow[street.end]))
    junctions = [10_000 + i for i in range(len(plan.crossings))]
    roads = {road.get("id"): road for road in root.iter("road")}
    connection = len(plan.streets) + 1
    signal = 1
    elements: list[Xml.Element] = []
    for crossing, number, meeting, limit in zip(plan.crossings, junctions, arms, slow, strict=True):
        for arm in meeting:
            link = roads[str(arm.road)].find("link")
            assert link is not None
            side = "predecessor" if arm.contact == "start" else "successor"
            _add(link, side, elementType="junction", elementId=number)
        junction = Xml.Element("junction", id=str(number), name=f"J{number}")
        for index, (inward, outward, links, outermost) in enumerate(_ways(meeting)):
            _add_connector(root, connection, number, inward, outward, links, limit, outermost=outermost)
            way = _add(
                junction,
                "connection",
                id=index,
                incomingRoad=inward.road,
                connectingRoad=connection,
                contactPoint="start",
            )
            _add(way, "laneLink", **{"from": inward.lane(links[0], incoming=True), "to": -1})
            connection += 1
        if crossing.lights and len(meeting) > 2:
            for arm in meeting:
                road = roads[str(arm.road)]
                _add_crosswalk(road, arm)
                if arm.incoming:
                    arm.signal, signal = signal, signal + 1
                    _add_light(road, arm)
            for sequence, phase in enumerate(_phases(meeting)):
                controller = Xml.Element("controller", id=f"{number}{sequence}", name=f"C{number}-{sequence}")
                for arm in phase:
                    _add(controller, "control", signalId=arm.signal, type="")
                elements.append(controller)
                _add(junction, "controller", id=f"{number}{sequence}", type="", sequence=sequence)
        elements.append(junction)
    for tag in ("controller", "junction"):
        root.extend(element for element in elements if element.tag == tag)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode")


def _phases(arms: list[_Arm]) -> list[list[_Arm]]:
    """Returns the arms that have green together: opposite ones; each of the others alone."""
    phases: list[list[_Arm]] = []
    for arm in arms:
        for phase in phases:
            apart = math.remainder(arm.pose.heading - phase[0].pose.heading, 2 * math.pi)
            if len(phase) == 1 and abs(apart) > math.radians(150):
                phase.append(arm)
                break
        else:
            phases.append([arm])
    return phases


def _ways(arms: list[_Arm]) -> list[tuple[_Arm, _Arm, tuple[int, int], bool]]:
    """Returns the ways across a crossing: from, to, the lanes of both, and whether it follows the kerb.

    From the leftmost lane one may turn left, from the rightmost right, from all go straight on; a lane left
    over goes where it can. Nobody turns back.
    """
    ways: list[tuple[_Arm, _Arm, tuple[int, int], bool]] = []
    for inward in arms:
        turns: list[tuple[float, _Arm]] = []
        for outward in arms:
            if outward is not inward and outward.outgoing:
                turn = outward.pose.heading - inward.pose.heading - math.pi
                turns.append((math.remainder(turn, 2 * math.pi), outward))
        turns.sort(key=lambda pair: pair[0])  # rightmost first
        lanes: list[tuple[_Arm, int, int]] = []
        for turn, outward in turns:
            count, target = inward.incoming, outward.outgoing
            if abs(turn) < math.radians(45) or len(turns) == 1:
                pairs = [(min(i, count), min(i, target)) for i in range(1, max(count, target) + 1)]
            elif turn > 0:
                pairs = [(1, 1)]
            else:
                pairs = [(count, target)]
            lanes.extend((outward, *pair) for pair in pairs if count)
        for lane in set(range(1, inward.incoming + 1)) - {pair[1] for pair in lanes}:
            outward = turns[0][1]
            lanes.append((outward, lane, min(lane, outward.outgoing)))
        kerb = _right_of(inward, arms)
        for outward, lane, target in lanes:
            outermost = outward is kerb and lane == inward.incoming and target == outward.outgoing
            ways.append((inward, outward, (lane, target), outermost))
    return ways


def _right_of(inward: _Arm, arms: list[_Arm]) -> _Arm:
    """Returns the next arm on the right of one who enters the crossing."""

    def angle(arm: _Arm) -> float:
        return (arm.pose.heading - inward.pose.heading) % (2 * math.pi)

    return min((arm for arm in arms if arm is not inward), key=angle)


def _add_geometry(road: Xml.Element, arcs: list[Arc]) -> None:
    view, at = _add(road, "planView"), 0.0
    for (x, y, heading), length, curvature in arcs:
        piece = _add(view, "geometry", s=at, x=float(x), y=float(y), hdg=float(heading), length=float(length))
        if curvature:
            _add(piece, "arc", curvature=f"{curvature:.10f}")
        else:
            _add(piece, "line")
        at += length
    road.set("length", _text(float(at)))
    _add(_add(road, "elevationProfile"), "elevation", s=0, a=0, b=0, c=0, d=0)


def _add_mark(lane: Xml.Element, kind: str, color: str, change: str) -> None:
    width = 0.0 if kind == "none" else 0.12
    _add(
        lane, "roadMark", sOffset=0, type=kind, weight="standard", color=color, width=width, laneChange=change
    )


def _add_lane(side: Xml.Element, number: int, kind: str, width: float) -> Xml.Element:
    """Adds a lane; its mark must follow."""
    lane = _add(side, "lane", id=number, type=kind, level="false")
    _add(lane, "link")
    _add(lane, "width", sOffset=0, a=width, b=0, c=0, d=0)
    return lane


def _add_lanes(side: Xml.Element, count: int, sign: int) -> None:
    """Adds driving lanes, shoulder and sidewalk on one side; where nobody drives, a shoulder alone."""
    lanes = [(i, "driving", LANE) for i in range(1, count + 1)]
    lanes.append((count + 1, "shoulder", SHOULDER))
    if count:
        lanes.append((count + 2, "sidewalk", SIDEWALK))
    for number, kind, width in sorted(lanes, reverse=sign > 0):
        lane = _add_lane(side, sign * number, kind, width)
        if kind == "driving" and number < count:
            _add_mark(lane, "broken", "white", "both")
        else:
            _add_mark(lane, "solid" if kind == "driving" else "none", "white", "none")


def _zones(street: Street, length: float, slow: tuple[int, int]) -> list[tuple[float, float, int]]:
    """Returns the stretches of a street with a limit each: from, to, km/h."""
    if length < 3 * ZONE:
        return [(0.0, length, min(street.limit, *slow))]
    stretches = [(0.0, ZONE, slow[0]), (ZONE, length - ZONE, street.limit), (length - ZONE, length, slow[1])]
    if slow == (street.limit, street.limit):
        return [(0.0, length, street.limit)]
    return stretches


def _add_street(
    root: Xml.Element, number: int, street: Street, arcs: list[Arc], slow: tuple[int, int]
) -> None:
    road = _add(root, "road", name=f"Street {number}", length=0, id=number, junction=-1)
    _add(road, "link")
    zones = _zones(street, sum(arc.length for arc in arcs), slow)
    for begin, _, limit in zones:
        _add(_add(road, "type", s=begin, type="town"), "speed", max=limit, unit="km/h")
    _add_geometry(road, arcs)
    section = _add(_add(road, "lanes"), "laneSection", s=0)
    _add_lanes(_add(section, "left"), street.backward, 1)
    centre = _add(_add(section, "center"), "lane", id=0, type="none", level="false")
    if not street.backward:
        _add_mark(centre, "solid", "white", "none")
    elif street.forward > 1:
        _add_mark(centre, "solid solid", "yellow", "none")
    else:
        _add_mark(centre, "broken", "yellow", "none")
    _add_lanes(_add(section, "right"), street.forward, -1)
    _add(road, "objects")
    signals = _add(road, "signals")
    width = LANE * max(street.forward, street.backward) + SHOULDER
    for zone, (begin, end, limit) in enumerate(zones):
        for lanes, at, side, orientation in (
            (street.forward, begin + 1.0, -1, "+"),
            (street.backward, end - 1.0, 1, "-"),
        ):
            if lanes:
                name = f"limit{number}{orientation}{zone}"
                sign = _signal(signals, name, "274", at, side * width, orientation, dynamic="no", value=limit)
                valid = sorted((side, side * lanes))
                _add(sign, "validity", fromLane=valid[0], toLane=valid[1])


def _signal(
    signals: Xml.Element,
    name: str,
    kind: str,
    s: float,
    t: float,
    orientation: str,
    *,
    dynamic: str,
    value: int,
) -> Xml.Element:
    return _add(
        signals,
        "signal",
        name=name,
        id=name,
        s=float(s),
        t=float(t),
        zOffset=3,
        hOffset=0,
        roll=0,
        pitch=0,
        orientation=orientation,
        dynamic=dynamic,
        country="OpenDRIVE",
        type=kind,
        subtype=value if kind == "274" else -1,
        value=value,
        unit="km/h",
        text="",
        height=1,
        width=0.5,
    )


def _add_connector(
    root: Xml.Element,
    number: int,
    junction: int,
    inward: _Arm,
    outward: _Arm,
    lanes: tuple[int, int],
    limit: int,
    *,
    outermost: bool,
) -> None:
    """Adds the way from one lane to another; the one along the kerb carries the pavement with it."""
    road = _add(root, "road", name=f"Way {number}", length=0, id=number, junction=junction)
    link = _add(road, "link")
    for side, arm in (("predecessor", inward), ("successor", outward)):
        _add(link, side, elementType="road", elementId=arm.road, contactPoint=arm.contact)
    _add(_add(road, "type", s=0, type="town"), "speed", max=limit, unit="km/h")
    start = inward.pose.turned(math.pi).moved(0, -(lanes[0] - 1) * LANE)
    _add_geometry(road, join(start, outward.pose.moved(0, -(lanes[1] - 1) * LANE)))
    section = _add(_add(road, "lanes"), "laneSection", s=0)
    _add(_add(section, "center"), "lane", id=0, type="none", level="false")
    right = _add(section, "right")
    pieces = [("driving", LANE), ("shoulder", SHOULDER), ("sidewalk", SIDEWALK)]
    for i, (kind, width) in enumerate(pieces if outermost else pieces[:1]):
        lane = _add_lane(right, -1 - i, kind, width)
        _add_mark(lane, "none", "white", "none")
        joined = lane.find("link")
        assert joined is not None
        _add(joined, "predecessor", id=inward.lane(lanes[0] + i, incoming=True))
        _add(joined, "successor", id=outward.lane(lanes[1] + i, incoming=False))


def _add_light(road: Xml.Element, arm: _Arm) -> None:
    """Adds a traffic light beside the stop line of one arm, for all its incoming lanes."""
    signals = road.find("signals")
    assert signals is not None
    length = float(road.get("length", "0"))
    forward = arm.contact == "end"
    s, side, orientation = (length - STOP, -1, "+") if forward else (STOP, 1, "-")
    kerb = side * (arm.incoming * LANE + SHOULDER + 0.5)
    light = _signal(signals, f"light{arm.signal}", "1000001", s, kerb, orientation, dynamic="yes", value=-1)
    light.set("id", str(arm.signal))
    lanes = sorted((side, side * arm.incoming))
    _add(light, "validity", fromLane=lanes[0], toLane=lanes[1])


def _add_crosswalk(road: Xml.Element, arm: _Arm) -> None:
    """Adds a crosswalk between a stop line and its crossing, from kerb to kerb."""
    objects = road.find("objects")
    assert objects is not None
    length = float(road.get("length", "0"))
    right, left = (arm.incoming, arm.outgoing) if arm.contact == "end" else (arm.outgoing, arm.incoming)
    item = _add(
        objects,
        "object",
        type="crosswalk",
        name="crosswalk",
        id=f"{road.get('id')}{arm.contact}",
        s=length - CROSSING if arm.contact == "end" else CROSSING,
        t=0.0,
        zOffset=0,
        orientation="none",
        hdg=0,
        pitch=0,
        roll=0,
        length=CROSSWALK,
        width=(right + left) * LANE + 2 * SHOULDER,
    )
    outline = _add(item, "outline")
    sides = (-right * LANE - SHOULDER, left * LANE + SHOULDER)
    half = CROSSWALK / 2
    for u, v in ((-half, sides[0]), (half, sides[0]), (half, sides[1]), (-half, sides[1]), (-half, sides[0])):
        _add(outline, "cornerLocal", u=u, v=v, z=0)

"""Towns and their ground: `carla.Map` is the oracle, and naive twins."""

import itertools
import math
import xml.etree.ElementTree as Xml
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("carla", reason="the carla package exists for Linux and Windows, Python 3.10 to 3.12")

import carla

from rlagents_envs.carla import towns
from rlagents_envs.carla.roads import BIT, LAYERS, Roads, cached_roads

NAMES = [f"{family}-{seed}" for family in towns.FAMILIES for seed in (1, 2)]


@pytest.fixture(scope="module", params=NAMES)
def roads(request: pytest.FixtureRequest) -> Roads:
    return cached_roads(towns.opendrive(request.param))


def test_a_town_is_its_name_and_seed() -> None:
    texts = [towns.opendrive(name) for name in NAMES]
    assert len(set(texts)) == len(NAMES)
    assert texts == [towns.opendrive(name) for name in NAMES]


def test_every_lane_leads_to_every_other(roads: Roads) -> None:
    """No dead end, and no part of a town that cannot be reached or left."""
    after: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for start, end in roads.map.get_topology():
        after.setdefault((start.road_id, start.lane_id), set()).add((end.road_id, end.lane_id))
    for point in roads.map.generate_waypoints(10.0):
        if point.lane_change in (carla.LaneChange.Right, carla.LaneChange.Both):
            beside = point.get_right_lane()
            after[point.road_id, point.lane_id].add((beside.road_id, beside.lane_id))
            after[beside.road_id, beside.lane_id].add((point.road_id, point.lane_id))
    before: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for start, ends in after.items():
        for end in ends:
            before.setdefault(end, set()).add(start)
    lanes = {(point.road_id, point.lane_id) for point in roads.map.generate_waypoints(5.0)}
    for graph in (after, before):
        seen, todo = set(), [min(lanes)]
        while todo:
            lane = todo.pop()
            if lane not in seen:
                seen.add(lane)
                todo.extend(graph.get(lane, ()))
        assert seen >= lanes


def test_lanes_join_without_steps_or_kinks(roads: Roads) -> None:
    for point in roads.map.generate_waypoints(2.0):
        successors = point.next(0.5)
        assert successors
        here = point.transform
        for successor in successors:
            there = successor.transform
            assert there.location.distance(here.location) == pytest.approx(0.5, abs=0.15)
            assert abs(math.remainder(there.rotation.yaw - here.rotation.yaw, 360)) < 8


def test_a_town_has_what_streets_have(roads: Roads) -> None:
    points = roads.map.generate_waypoints(3.0)
    name = Xml.fromstring(roads.text).find("header").get("name")  # type: ignore[union-attr]
    kinds = set()
    for point in points:
        beside = point
        while beside is not None and len(kinds) < 3:
            kinds.add(str(beside.lane_type))
            beside = beside.get_right_lane()
    assert kinds >= {"Driving", "Shoulder", "Sidewalk"}
    assert roads.map.get_all_landmarks_of_type("274")
    assert any(point.is_junction for point in points)
    assert not roads.sloped
    if name.startswith("roundabouts"):
        assert not roads.lights
    else:
        assert len(roads.crosswalks) >= len({light.junction for light in roads.lights}) * 3
    if name.startswith("multilane"):
        assert any(point.lane_change != carla.LaneChange.NONE for point in points)
    assert towns.opendrive(name) == roads.text


def test_every_way_into_a_lit_junction_has_one_light(roads: Roads) -> None:
    phases: dict[int, set[int]] = {}
    for light in roads.lights:
        assert light.stops
        assert light.junction >= 10_000
        phases.setdefault(light.junction, set()).add(light.phase)
        for stop in light.stops:
            point = roads.map.get_waypoint(carla.Location(stop.x, stop.y, 0))
            assert math.dist((stop.x, stop.y), (point.transform.location.x, point.transform.location.y)) < 0.1
            assert not point.is_junction
            assert point.next(towns.STOP + 1)[0].is_junction
            assert point.next(towns.STOP + 1)[0].junction_id == light.junction
    assert all(len(members) > 1 for members in phases.values())
    stopped = {(round(s.x), round(s.y)) for light in roads.lights for s in light.stops}
    assert len(stopped) == sum(len(light.stops) for light in roads.lights)


def test_a_users_file_is_read_and_everything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.xodr"
    path.write_text(towns.opendrive("grid-3"), encoding="utf-8")
    assert towns.opendrive(str(path)) == towns.opendrive("grid-3")
    (tmp_path / "no.xodr").write_text("<html/>", encoding="utf-8")
    for wrong in (
        "grid",
        "grid-",
        "Grid-1",
        "gird-1",
        "grid--1",
        str(tmp_path / "none.xodr"),
        str(tmp_path / "no.xodr"),
    ):
        with pytest.raises(ValueError, match="town must be"):
            towns.opendrive(wrong)
    for text in ("", "<OpenDRIVE/>", "<OpenDRIVE>", "no map"):
        with pytest.raises(ValueError, match="town must"):
            Roads(text)


poses = st.builds(
    towns.Pose, st.floats(-80, 80), st.floats(-80, 80), st.floats(-math.pi, math.pi, exclude_max=True)
)


@given(poses, poses)
def test_two_arcs_join_two_poses(start: towns.Pose, end: towns.Pose) -> None:
    along = (end.x - start.x) * (math.cos(start.heading) + math.cos(end.heading))
    along += (end.y - start.y) * (math.sin(start.heading) + math.sin(end.heading))
    if along < 0.1 * math.dist(start[:2], end[:2]) or math.dist(start[:2], end[:2]) < 1:
        return
    arcs = towns.join(start, end)
    assert arcs[0].start == start
    starts = [*(arc.start for arc in arcs[1:]), end]
    for ((x, y, heading), length, curvature), after in zip(arcs, starts, strict=True):
        turn = length * curvature
        if abs(curvature) < 1e-9:
            x, y = x + length * math.cos(heading), y + length * math.sin(heading)
        else:
            x += (math.sin(heading + turn) - math.sin(heading)) / curvature
            y -= (math.cos(heading + turn) - math.cos(heading)) / curvature
        assert math.dist((x, y), after[:2]) < 1e-3 * max(1, length)
        assert abs(math.remainder(heading + turn - after.heading, 2 * math.pi)) < 1e-3


def test_the_raster_agrees_with_the_map(roads: Roads) -> None:
    """On the road is where the map says so, but for a cell at the edge."""
    rng = np.random.default_rng(0)
    spawns = roads.spawn_points()
    checked = {True: 0, False: 0}
    for _ in range(600):
        near = spawns[rng.integers(len(spawns))].location
        x, y = near.x + rng.uniform(-25, 25), near.y + rng.uniform(-25, 25)
        inside = [
            roads.map.get_waypoint(carla.Location(x + dx, y + dy, 0), project_to_road=False) is not None
            for dx in (-0.4, 0, 0.4)
            for dy in (-0.4, 0, 0.4)
        ]
        if len(set(inside)) == 1:
            drawn = bool(roads.at(np.array(x), np.array(y)) & BIT["road"])
            assert drawn == inside[0], (x, y)
            checked[inside[0]] += 1
    assert min(checked.values()) > 50


def test_layers_are_the_bits_of_the_raster(roads: Roads) -> None:
    assert tuple(roads.layers) == LAYERS
    for name, layer in roads.layers.items():
        assert layer.dtype == np.uint8
        assert set(np.unique(layer)) <= {0, 255}
        np.testing.assert_array_equal(layer > 0, roads.raster & BIT[name] > 0)
    for light in roads.lights:
        for stop in light.stops:
            assert roads.at(np.array(stop.x), np.array(stop.y)) & BIT["stop"]


def test_a_view_is_a_look_up_per_pixel(roads: Roads) -> None:
    rng = np.random.default_rng(1)
    spawns = roads.spawn_points()
    chosen = [spawns[i] for i in rng.integers(len(spawns), size=3)]
    x, y = (np.array([getattr(s.location, axis) for s in chosen]) + rng.uniform(-2, 2, 3) for axis in "xy")
    yaw = np.array([s.rotation.yaw for s in chosen]) + rng.uniform(-20, 20, 3)
    names = ("line", "road", "sidewalk")
    views = roads.sample(names, x, y, yaw, size=20, metres=1.5, ahead=0.25)
    assert views.shape == (3, 3, 20, 20)
    assert views.dtype == np.uint8
    wrong = 0
    for n, (row, column) in itertools.product(range(3), itertools.product(range(20), range(20))):
        forward, right = (0.75 * 20 - row - 0.5) * 1.5, (column + 0.5 - 10) * 1.5
        cos, sin = math.cos(math.radians(yaw[n])), math.sin(math.radians(yaw[n]))
        px, py = x[n] + cos * forward - sin * right, y[n] + sin * forward + cos * right
        bits = int(roads.at(np.array(px), np.array(py)))
        expected = [255 if bits & BIT[name] else 0 for name in names]
        wrong += expected != views[n, :, row, column].tolist()
    assert wrong <= 6  # of 1200: the views are computed in float32, which may fall on the next cell
    one = roads.sample(names, float(x[1]), float(y[1]), float(yaw[1]), size=20, metres=1.5)
    np.testing.assert_array_equal(one, views[1])
    # The car's own place is on the road, at three quarters of the height.
    assert roads.sample(["road"], spawns[0].location.x, spawns[0].location.y, spawns[0].rotation.yaw)[
        0, 62, 42
    ]
    assert not roads.sample(["road"], 1e5, -1e5, 0.0).any()
    with pytest.raises(ValueError, match="layers must be among"):
        roads.sample(["roof"], 0.0, 0.0, 0.0)


def test_spawn_points_stand_in_lanes_and_apart(roads: Roads) -> None:
    spawns = roads.spawn_points()
    assert len(spawns) > 60
    for spawn in spawns:
        point = roads.map.get_waypoint(spawn.location, project_to_road=False)
        assert point.lane_type == carla.LaneType.Driving
        assert not point.is_junction
        assert abs(math.remainder(point.transform.rotation.yaw - spawn.rotation.yaw, 360)) < 1
        assert roads.limit(spawn.location.x, spawn.location.y) in (20, 30, 40, 50)
    at = np.array([(s.location.x, s.location.y) for s in spawns])
    apart = np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1)) + 100 * np.eye(len(at))
    assert apart.min() > 3


def test_limits_are_those_of_the_signs(roads: Roads) -> None:
    for sign in roads.map.get_all_landmarks_of_type("274"):
        lane = next(lane for lane in itertools.chain(*sign.get_lane_validities()) if lane)
        point = roads.map.get_waypoint_xodr(sign.road_id, lane, sign.s).transform.location
        assert roads.limit(point.x, point.y) == sign.value

"""Driving: what needs no server by hand-worked numbers, and the rest against the stand-in server."""

import gc
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from pydantic import ValidationError

import rlagents_envs
from rlagents_envs.carla import actions, connection
from rlagents_envs.carla.bev import SHADE, BirdsEye, Boxes, Scene
from rlagents_envs.carla.metrics import Record, driving_score, summary
from rlagents_envs.carla.observations import SOON, camera, gap, lidar, state
from rlagents_envs.carla.planner import (
    FOLLOW,
    LEFT,
    RIGHT,
    STRAIGHT,
    Lane,
    Lanes,
    Signal,
    StopLine,
    assemble,
    bend_pace,
    wrapped,
)
from rlagents_envs.carla.rewards import Moment, gym_carla, shaped, simple, target_speed
from rlagents_envs.carla.towns import FAMILIES
from rlagents_envs.config import Carla

NORTH, EAST = -math.pi / 2, 0.0  # y grows to the south


def moment(**changes) -> Moment:
    """Returns a car that drives 8 m/s along the middle of its lane with nothing in the way."""
    usual = Moment(
        time=1.0,
        seconds=0.1,
        x=0.0,
        y=0.0,
        yaw=0.0,
        speed=8.0,
        forward=8.0,
        yaw_rate=0.0,
        limit=8.0,
        throttle=0.3,
        steer=0.0,
        brake=0.0,
        steer_before=0.0,
        lateral=0.0,
        heading=0.0,
        width=3.5,
        progress=0.8,
        driven=100.0,
        length=400.0,
        gap=math.inf,
        closing=0.0,
        light="",
        light_distance=math.inf,
    )
    return usual._replace(**changes)


# Maps: waypoints of a made-up town


class Waypoint:
    """A point on a straight lane, or one of a map that has no length."""

    def __init__(self, road, x, y, yaw, length, *, lane=-1, junction=False):
        self.road_id, self.section_id, self.lane_id = road, 0, lane
        self.is_junction, self.lane_width, self.length = junction, 3.5, length
        location = types.SimpleNamespace(x=x, y=y, z=0.0)
        rotation = types.SimpleNamespace(yaw=math.degrees(yaw))
        self.transform = types.SimpleNamespace(location=location, rotation=rotation)

    def next_until_lane_end(self, distance):
        if not self.length:
            raise RuntimeError("length > 2.0f * epsilon")
        at, yaw = self.transform.location, math.radians(self.transform.rotation.yaw)
        steps = [*np.arange(distance, self.length, distance), self.length]
        return [
            Waypoint(self.road_id, at.x + s * math.cos(yaw), at.y + s * math.sin(yaw), yaw, 0) for s in steps
        ]


class Town:
    """A long way east (1, 2, 4) and a short one (1, 3, 4), with a lane of no length (5) on the short one."""

    def get_topology(self):
        lanes = {
            1: Waypoint(1, 0, 0, EAST, 50),
            2: Waypoint(2, 50, 0, EAST, 90, junction=True),
            3: Waypoint(3, 50, 0, EAST, 30, junction=True),
            5: Waypoint(5, 80, 0, EAST, 0),
            4: Waypoint(4, 80, 0, EAST, 50),
            6: Waypoint(6, 130, 0, EAST, 10),
        }
        return [(lanes[a], lanes[b]) for a, b in ((1, 2), (1, 3), (2, 4), (3, 5), (5, 4), (4, 6))]


def test_the_shortest_way_is_found_and_lanes_of_no_length_do_no_harm():
    lanes = Lanes(Town())
    assert [key[0] for key in lanes.path((1, 0, -1), (4, 0, -1))] == [1, 3, 5, 4]
    assert lanes.path((4, 0, -1), (1, 0, -1)) == []
    route = assemble([lanes.lanes[road, 0, -1] for road in (1, 3, 5, 4)], offset=10, metres=100)
    assert route is not None
    assert route.length == 100  # 40 + 30 + 30
    np.testing.assert_allclose(np.diff(route.xy[:, 0]), 0.5, atol=1e-9)
    assert route.xy[0].tolist() == [10, 0]
    assert route.junction.sum() == 60  # 30 m
    assert route.turns == 0


def test_a_map_that_leads_nowhere_is_refused():
    with pytest.raises(ValueError, match="the map must have lanes to drive on"):
        Lanes(types.SimpleNamespace(get_topology=list))


def lane(x, y, yaw, length, *, junction=False, turn=0.0):
    points = np.array(
        [(x + s * math.cos(yaw), y + s * math.sin(yaw), 0.0) for s in np.linspace(0, length, int(length) + 1)]
    )
    return Lane(points, (yaw, yaw + turn), 3.5, junction, length)


def test_a_route_knows_its_turns_commands_and_lights():
    ways = [lane(0, 0, EAST, 60), lane(60, 0, EAST, 10, junction=True, turn=math.pi / 2)]
    ways += [lane(70, 0, EAST, 50), lane(120, 0, EAST, 10, junction=True), lane(130, 0, EAST, 50)]
    ways[0].signals.append(Signal("7", 55.0))
    ways[2].signals.append(Signal("8", 45.0))
    route = assemble(ways, offset=5, metres=120, turns=1)
    assert route is not None
    assert route.length == 137  # 12 m after the second junction
    assert route.turns == 1
    command = {metres: route.command[2 * metres] for metres in (20, 26, 60, 70, 90, 120, 130)}
    expected = {20: FOLLOW, 26: RIGHT, 60: RIGHT, 70: FOLLOW, 90: STRAIGHT, 120: STRAIGHT, 130: FOLLOW}
    assert command == expected
    assert route.signals == (Signal("7", 50.0), Signal("8", 110.0))
    assert route.next_signal(49.9) == Signal("7", 50.0)
    assert route.next_signal(50.0) == Signal("8", 110.0)
    assert route.next_signal(110.0) is None
    assert assemble(ways, offset=5, metres=120, turns=2) is None
    ways[1] = lane(60, 0, EAST, 10, junction=True, turn=-math.pi / 2)
    left = assemble(ways, offset=5, metres=120)
    assert left is not None
    assert left.command[60] == LEFT


def test_a_car_is_located_on_its_route():
    route = assemble([lane(0, 0, NORTH, 100)], offset=0)
    assert route is not None
    place = route.locate(1.5, -10.2, NORTH + 0.1, near=10)
    assert place.point == 20
    assert place.distance == pytest.approx(10.2)
    assert place.lateral == pytest.approx(1.5)  # east is to the right of north
    assert place.heading == pytest.approx(0.1)
    assert route.locate(0, -60, NORTH, near=10).distance < 30  # no jumps to a far part of the route
    assert wrapped(math.pi + 0.1) == pytest.approx(-math.pi + 0.1)


def test_a_light_rules_the_lane_on_which_its_stop_line_lies():
    lights = [StopLine("9", 40.4, 0.1, EAST, 3.5), StopLine("3", 40, 0, EAST + math.pi, 3.5)]
    lanes = Lanes(Town(), lights)
    assert {key[0]: one.signals for key, one in lanes.lanes.items() if one.signals} == {
        1: [Signal("9", 40.0)]
    }


# Rewards and metrics


def test_target_speed_lets_one_stop_in_time():
    assert target_speed(moment()) == 8
    assert target_speed(moment(light="green", light_distance=0)) == 8
    assert target_speed(moment(light="red", light_distance=1)) == 0
    assert target_speed(moment(light="yellow", light_distance=7)) == pytest.approx(6)  # sqrt(2 * 3 * 6)
    assert target_speed(moment(gap=9.0, closing=8.0)) == pytest.approx(6)
    assert target_speed(moment(gap=9.0, closing=2.0)) == pytest.approx(
        8
    )  # who leads needs 6 m to stop himself
    assert target_speed(moment(gap=1.0, closing=8.0)) == 0
    assert target_speed(moment(pace=4.5)) == 4.5


def test_a_bend_slows_down_in_time():
    # 50 m straight on, then 20 m with a radius of 10 m.
    yaw = np.concatenate([np.zeros(101), np.arange(1, 41) * 0.05, np.full(20, 2.0)])
    pace = bend_pace(yaw)
    assert pace[120] == pytest.approx(math.sqrt(2.0 * 10))
    assert pace[-10] == 50.0  # behind it
    assert pace[0] == pytest.approx(math.sqrt(2 * 2 * 50 + 2 * 10), abs=0.2)  # slowing down at 2 m/s^2
    turned = bend_pace(np.linspace(3.0, 3.6, 13) % (2 * math.pi))  # across half a turn
    np.testing.assert_allclose(turned, bend_pace(np.linspace(0.0, 0.6, 13)))


def test_shaped():
    assert sum(shaped(moment()).values()) == pytest.approx(1)  # 0.5 + 0.5
    assert sum(shaped(moment(lateral=-1.0)).values()) == pytest.approx(0.875)
    assert sum(shaped(moment(heading=0.2)).values()) == pytest.approx(0.95)
    assert sum(shaped(moment(steer=0.5, steer_before=-0.5)).values()) == pytest.approx(0.98)
    assert sum(shaped(moment(speed=0.0, forward=0.0, progress=0.0)).values()) == 0
    waiting = moment(speed=0.0, forward=0.0, progress=0.0, light="red", light_distance=0.5)
    assert sum(shaped(waiting).values()) == pytest.approx(1)  # as good as to drive where one may
    fast = moment(speed=10.0, forward=10.0, progress=1.0)
    assert sum(shaped(fast).values()) == pytest.approx(0.375 + 0.5)  # what is too fast earns nothing
    slower = moment(light="red", light_distance=7.0)
    assert sum(shaped(slower).values()) == pytest.approx(1 / 3 + 0.5)  # 2 m/s above 6
    creeping = waiting._replace(speed=0.5, forward=0.5, progress=0.05)
    assert sum(shaped(creeping).values()) == pytest.approx(0.75)
    slow = moment(speed=4.0, forward=4.0, progress=0.4)
    assert sum(shaped(slow).values()) == pytest.approx(0.25 + 0.25)
    assert sum(shaped(moment(lateral=40.0, speed=0, progress=0)).values()) == -1  # cut
    assert shaped(moment(reason="red_light")) == {"end": -10}
    assert shaped(moment(reason="success")) == {"end": 10}
    assert sum(shaped(moment(reason="timeout")).values()) == pytest.approx(1)  # a truncation is no judgement


def test_simple():
    assert sum(simple(moment()).values()) == pytest.approx(0.2)  # 0.8 of 400 m
    assert sum(simple(moment(speed=8 + 2.23 / 2)).values()) == pytest.approx(0.1)
    assert sum(simple(moment(lateral=0.6)).values()) == pytest.approx(0.1)
    assert sum(simple(moment(lateral=1.8)).values()) == 0
    assert sum(simple(moment(reason="collision_static")).values()) == pytest.approx(0.2 - 1)


def test_gym_carla():
    assert sum(gym_carla(moment()).values()) == pytest.approx(8 - 0.1)
    assert sum(gym_carla(moment(forward=9.0)).values()) == pytest.approx(9 - 10 - 0.1)
    assert sum(gym_carla(moment(lateral=2.1)).values()) == pytest.approx(8 - 1 - 0.1)
    assert sum(gym_carla(moment(steer=-0.2)).values()) == pytest.approx(8 - 5 * 0.04 - 0.2 * 0.2 * 64 - 0.1)
    assert sum(gym_carla(moment(reason="collision_vehicle")).values()) == pytest.approx(8 - 200 - 0.1)


def test_driving_scores_are_the_leaderboards():
    nothing: dict[str, int] = {}
    assert driving_score(80, nothing, 0.0, "2.0") == driving_score(80, nothing, 0.0, "2.1") == 80
    both = {"collision_walker": 1, "red_light": 2}
    assert driving_score(100, both, 0.0, "2.0") == pytest.approx(100 * 0.5 * 0.7**2)
    assert driving_score(100, both, 0.0, "2.1") == pytest.approx(100 / (1 + 1.0 + 2 * 0.4))
    assert driving_score(100, {"off_route": 1}, 0.25, "2.1") == 75


def test_an_episode_and_a_summary_by_hand():
    record = Record()
    for step in range(10):  # 10 decisions at 5 m/s, the last two outside the lane
        aside = 2.0 if step >= 8 else 0.5
        record.add(moment(speed=5.0, lateral=aside, driven=0.5 * (step + 1), length=50.0))
    record.add(moment(speed=0.0, driven=5.0, length=50.0, reason="collision_vehicle"))
    one = record.metrics()
    assert one["success"] == 0
    assert one["route_completion"] == pytest.approx(10)
    assert one["outside_lane"] == pytest.approx(20)
    assert one["driving_score_2.0"] == pytest.approx(10 * 0.6 * 0.8)
    assert one["driving_score_2.1"] == pytest.approx(10 / 1.7 * 0.8)
    assert one["collision_vehicle"] == 1
    assert one["kilometres"] == pytest.approx(0.005)
    assert one["mean_speed"] == pytest.approx(5 / 1.1)
    assert one["lane_error"] == pytest.approx((8 * 0.5 + 2 * 2.0) / 11)
    assert one["comfort"] == pytest.approx(100 * 10 / 11)  # the crash was not
    other = Record()
    other.add(moment(reason="success", driven=399.0))
    both = summary([one, other.metrics()])
    assert both["success"] == 50
    assert both["route_completion"] == pytest.approx(55)
    assert both["collision_vehicle_per_km"] == pytest.approx(1 / 0.0058)
    assert both["red_light_per_km"] == 0
    with pytest.raises(ValueError, match="at least one episode"):
        summary([])


# What is seen


def boxes(*rows):
    """Returns boxes of x, y, yaw, half length and half width."""
    table = np.array(rows, np.float64).reshape(-1, 5)
    return Boxes(table[:, :2], table[:, 2], table[:, 3:])


@pytest.mark.parametrize(
    ("box", "velocity", "expected"),
    [
        ((22, 0, EAST, 2.5, 1), (6, 0), (22 - 2.5 - 2.5, 6)),  # who leads
        ((22, 1.9, EAST, 2.5, 1), (6, 0), (17, 6)),  # half in the lane
        ((22, 3.5, EAST, 2.5, 1), (6, 0), (math.inf, 0)),  # the next lane
        ((22, 3.5, EAST + math.pi / 2, 2.5, 1), (0, 0), (22 - 2.5 - 1, 0)),  # across, its nose in our lane
        ((22, 3.5, EAST, 0.3, 0.3), (0, -1.8), (22 - 2.5 - 0.3, 0)),  # walks onto the road
        ((22, 3.5, EAST, 0.3, 0.3), (0, 1.5), (math.inf, 0)),  # walks away
        ((60, 0, EAST, 2.5, 1), (0, 0), (math.inf, 0)),  # too far
    ],
)
def test_the_gap_to_who_is_or_will_be_on_the_route(box, velocity, expected):
    route = assemble([lane(0, 0, EAST, 100)], offset=0)
    assert route is not None
    found = gap(route, 0, boxes(box), np.array([velocity], float), half_length=2.5, seconds=SOON)
    assert found == pytest.approx(expected, abs=0.5)
    assert gap(route, 0, boxes(), np.zeros((0, 2)), half_length=2.5) == (math.inf, 0)


@pytest.mark.parametrize(
    ("speed", "expected"),
    [
        (4.0, 6 - 2.5 - 0.3),  # he steps onto the road before the car
        (6.0, 6 - 2.5 - 0.3),  # and before its side
        (8.0, math.inf),  # and behind it
    ],
)
def test_who_crosses_behind_the_car_is_not_in_its_way(speed, expected):
    route = assemble([lane(0, 0, EAST, 100)], offset=0)
    assert route is not None
    walker, velocity = boxes((6, 3.3, EAST, 0.3, 0.3)), np.array([[0.0, -1.5]])  # there after 1.3 s
    found, _ = gap(route, 0, walker, velocity, half_length=2.5, seconds=SOON, speed=speed)
    assert found == pytest.approx(expected, abs=0.5)


class Ground:
    """Road everywhere, no lines."""

    def sample(self, layers, x, y, yaw, *, size, metres, ahead):
        return np.stack([np.full((size, size), 255 * (name == "road"), np.uint8) for name in layers])


def test_the_bird_s_eye_view_is_drawn_heading_up():
    eye = BirdsEye(Ground(), size=84, metres=0.5)  # type: ignore[arg-type]
    scene = Scene(
        x=100.0,
        y=50.0,
        yaw=NORTH,
        route=np.stack([np.full(40, 100.0), 50 - np.arange(40) / 2], 1),
        vehicles=boxes((100, 40, NORTH, 2.0, 1.0)),
        before=boxes((105, 50, EAST, 2.0, 1.0)),
        walkers=boxes((95, 50, EAST, 0.2, 0.2), (1000, 0, EAST, 0.2, 0.2)),
        lines=np.array([[100.0, 45.0, NORTH, 3.0]]),
        shades=np.array([SHADE["red"]], np.uint8),
    )
    road, line, route, vehicles, before, walkers, lights = eye.draw(scene)
    assert (road == 255).all()
    assert not line.any()
    row, column = 63, 42  # the car
    assert set(route[row - 38 : row, column]) == {255}
    assert not route[row + 3 :].any()
    where = np.argwhere(vehicles)
    assert where.min(0).tolist() == [row - 24, column - 2]  # 12 m ahead, 1 m to the left
    assert where.max(0).tolist() == [row - 16, column + 2]
    assert len(where) == 9 * 5  # without holes
    where = np.argwhere(before)
    assert (where[:, 1] >= column + 6).all()  # 3 m and more to the right: it faces that way
    assert (where[:, 1] <= column + 14).all()
    assert 1 <= (walkers > 0).sum() <= 9
    assert (np.argwhere(walkers)[:, 1] < column - 7).all()
    assert set(lights[lights > 0]) == {255}
    assert set(np.argwhere(lights)[:, 0]) == {row - 10}
    picture = eye.colours(eye.draw(scene))
    assert picture.shape == (84, 84, 3)
    assert picture[row, column].tolist() == [255, 255, 255]


def test_camera_and_lidar_become_planes():
    image = np.zeros((2, 3, 4), np.uint8)
    image[0, :, 2] = 1, 24, 14  # road, line, car
    assert [plane[0].tolist() for plane in camera(image, "semantic")[:4]] == [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 0],
        [0, 0, 255],
    ]
    far = np.zeros((1, 2, 4), np.uint8)
    code = round(25 / 1000 * (2**24 - 1))  # 25 m, half of what is shown
    far[0, 0, :3] = code >> 16, code >> 8 & 255, code & 255
    far[0, 1, :3] = 255
    assert camera(far, "depth").tolist() == [[[127, 255]]]
    assert camera(np.array([[[1, 2, 3, 255]]], np.uint8), "rgb").ravel().tolist() == [3, 2, 1]
    points = np.array([[10, 0, -2.4, 1], [10, 0.2, 0, 1], [10, 0.2, 0, 1], [99, 0, 0, 1]], np.float32)
    ground, above = lidar(points, 84, 0.5)
    assert (ground[43, 42], ground.sum()) == (64, 64)
    assert (above[43, 42], above.sum()) == (128, 128)


def test_the_state_vector_by_hand():
    route = assemble([lane(0, 0, EAST, 100)], offset=0)
    assert route is not None
    numbers = state(moment(x=10.0, y=1.0, lateral=1.0, light="red", light_distance=10.0, gap=20.0), route, 20)
    light = 8**2 / 2 / 9 / 3  # to 1 m before the line, of 3 m/s^2
    ahead = 8**2 / 2 / (17 + 8**2 / 2 / 3) / 3  # to 3 m behind where the other, as fast, could stop
    np.testing.assert_allclose(
        numbers[:18], [0.8, 0.8, 0, 0.3, 0, 0.5, 0, 0, 1, 0.25, 0.5, 0, 1, 1, light, ahead, 0.8, 1], rtol=1e-6
    )
    np.testing.assert_allclose(numbers[18:28:2], np.array([3, 6, 10, 16, 25]) / 25)
    np.testing.assert_allclose(numbers[19:28:2], [-0.04] * 5, atol=1e-6)  # the route lies to the left
    assert numbers[28:].tolist() == [1, 0, 0, 0, 2, 0, 0, 0]


def test_the_state_vector_tells_where_the_nearest_walker_goes():
    route = assemble([lane(0, 0, EAST, 100)], offset=0)
    assert route is not None
    at = np.array([[10.0, 30.0], [10.0, 5.0], [18.0, 10.0], [10.0, 60.0]])  # the second is behind
    velocity = np.array([[1.0, 0.0], [0.0, 0.0], [-1.5, 0.5], [0.0, 0.0]])
    walkers = Boxes(at, np.zeros(4), np.full((4, 2), 0.25))
    south = moment(x=10.0, y=10.0, yaw=math.pi / 2)  # ahead is y, to the right is -x
    assert state(south, route, 20, walkers, velocity)[32:].tolist() == pytest.approx([0, -0.8, 0.25, 0.75])
    first = Boxes(*(part[:2] for part in walkers))
    assert state(south._replace(y=14.0), route, 20, first, velocity)[32:].tolist() == pytest.approx(
        [16 / 25, 0, 0, -0.5]
    )


def test_who_stands_over_the_line_is_told_to_brake_as_hard_as_can_be():
    route = assemble([lane(0, 0, EAST, 100)], offset=0)
    assert route is not None
    creeping = moment(speed=1.5, light="red", light_distance=-1.0)
    assert state(creeping, route, 20)[[12, 14]].tolist() == pytest.approx([-0.2, 3])
    assert state(creeping._replace(light="green"), route, 20)[[12, 14]].tolist() == [1, 0]


def test_the_actions_are_the_tables_of_the_plan():
    assert [len(actions.table(name)) for name in ("27", "21", "9")] == [27, 21, 9]
    assert actions.names("27")[4] == "brake 1"
    assert actions.names("27")[13:15] == ("gas 0.3", "gas 0.3 right 0.05")
    assert actions.names("9")[3] == "coast left 0.2"
    for name in ("27", "21", "9"):
        assert len(set(actions.names(name))) == len(actions.table(name))


# Suites


def test_suites_are_three_densities_of_traffic_in_seen_and_unseen_towns():
    config = Carla(towns=("grid-1", "curves-1"), evaluation_towns=("curves-3", "multilane-2"), walkers=1)
    suites = config.suites
    assert list(suites) == [f"{t}-{w}" for w in ("seen", "unseen") for t in ("empty", "regular", "dense")]
    for name, suite in suites.items():
        towns = ("multilane-2",) if name.endswith("unseen") else ("grid-1", "curves-1")  # not curves again
        assert suite.for_evaluation().towns == towns
        assert (suite.observations, suite.count) == (config.observations, config.count)
    full = [(suite.vehicles, suite.walkers) for suite in suites.values()]
    assert full[0] == full[3] == (0, 0)
    assert full[:3] == sorted(set(full))
    metrics = summary([Record.metrics(driven())])
    assert set(config.suite_metrics) <= set(metrics)


def driven() -> Record:
    record = Record()
    record.add(moment(reason="success"))
    return record


def test_unseen_towns_are_of_a_family_that_was_not_trained_on():
    assert Carla().suites["empty-unseen"].towns == ("ring-1",)  # grid-1 is what `towns` is without a word
    assert Carla(towns=("curves-2",)).suites["empty-unseen"].towns == ("grid-1",)
    again = Carla(towns=("grid-1",), evaluation_towns=("grid-2",))
    assert again.suites["dense-unseen"].towns == ("ring-1",)
    assert all(suite.lights for suite in Carla(lights=False).suites.values())
    everything = tuple(f"{family}-1" for family in FAMILIES)
    with pytest.raises(ValueError, match=r"env\.evaluation_towns must name a town of another family"):
        _ = Carla(towns=everything).suites


# Settings, and what is said where there is no server


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"server": "a:1", "launch": "b"}, "server and launch cannot both be given"),
        ({"server": "a:1", "count": 2}, "server must name one server per environment, 2 in all"),
        ({"observations": []}, "observations must be one or more, all different"),
        ({"observations": ["bev", "bev"]}, "observations must be one or more, all different"),
    ],
)
def test_impossible_settings_are_refused(fields, complaint):
    with pytest.raises(ValidationError, match=complaint):
        Carla.model_validate(fields)


def test_evaluation_has_its_own_towns_and_no_more_servers_than_training():
    config = Carla(towns=("grid-1",), evaluation_towns=("ring-2",), count=3)
    assert config.for_evaluation().towns == ("ring-2",)
    assert config.parallel == 3
    assert Carla(towns=("grid-1",)).for_evaluation().towns == ("grid-1",)


def test_servers_of_an_evaluation_keep_away_from_the_ports_of_training():
    ports = {Carla(count=3, **given).for_evaluation().port for given in ({}, {"server": ":1,:2,:3"})}
    assert ports == {0}
    assert Carla(count=3, port=4000).for_evaluation().port == 4030
    assert Carla(count=3, launch="CarlaUE4.sh").for_evaluation().port == 2030


def test_addresses():
    assert connection.address("there:2010") == ("there", 2010)
    assert connection.address(":2010") == ("127.0.0.1", 2010)
    assert connection.address("there") == ("there", 2000)
    for wrong in ("there:", "there:x", "there:70000"):
        if wrong == "there:":
            assert connection.address(wrong) == ("there", 2000)
            continue
        with pytest.raises(ValueError, match=r"env\.server must be host:port"):
            connection.address(wrong)


def test_without_the_carla_package_the_error_says_where_it_exists(monkeypatch):
    monkeypatch.setitem(sys.modules, "carla", None)
    for make in (
        lambda: rlagents_envs.make(Carla()),
        lambda: gymnasium.make("rlagents_envs/Carla-v0", disable_env_checker=True),
    ):
        with pytest.raises(ValueError, match=r'Linux on x86-64 and Windows.*pip install "rlagents\[carla\]"'):
            make()


def test_a_dead_server_is_one_line_within_a_second():
    begun = time.monotonic()
    with pytest.raises(
        connection.ServerError, match=r"no CARLA server at 127.0.0.1:1 .connection refused."
    ) as it:
        connection.probe("127.0.0.1", 1)
    assert time.monotonic() - begun < 1
    assert "\n" not in str(it.value)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection.probe("127.0.0.1", listener.getsockname()[1])


def test_a_server_that_cannot_start_says_why():
    python = [sys.executable, "-c"]
    with pytest.raises(connection.ServerError, match=r"did not start: .*no such town"):
        connection.Server([*python, "raise SystemExit('no such town')"], None, 20.0)
    with pytest.raises(connection.ServerError, match="could not be started"):
        connection.Server(["./nothing-here"], 1, 1.0)
    with pytest.raises(connection.ServerError, match=r"env\.launch must be the path"):
        connection.launch_command(Carla(launch="./nothing-here"), 2000)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups")
def test_ending_a_server_ends_what_it_started_and_nothing_else():
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(f'child {p.pid} ready at host:4321', flush=True); time.sleep(60)"
    )
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    server = connection.Server([sys.executable, "-c", code], None, 20.0)
    assert server.port == 4321
    assert server.alive
    group = server.process.pid
    server.end()
    assert not server.alive
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the server's child lives")
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


# Against the stand-in server


needs_carla = [pytest.mark.carla]


@pytest.fixture(scope="module")
def carla_package():
    return pytest.importorskip("carla")


def make_env(**fields):
    from rlagents_envs.carla.env import CarlaEnv

    return CarlaEnv(**{"towns": ("grid-1",), "timeout": 5.0, **fields})


@pytest.fixture
def env(carla_package):
    made = make_env()
    yield made
    made.close()


def drive(env, episodes, driver="rules", most=3000):
    """Lets a driver drive; returns the infos of the last steps."""
    ends = []
    for _ in range(most):
        _, _, terminated, truncated, info = env.step(np.int64(env.scripted(driver)))
        if terminated or truncated:
            ends.append(info)
            if len(ends) == episodes:
                return ends
            env.reset()
    return ends


@pytest.mark.carla
@pytest.mark.filterwarnings("ignore:.*not within the observation space:UserWarning")
def test_gymnasium_s_checker_is_content(carla_package):
    import warnings

    from gymnasium.utils.env_checker import check_env

    made = gymnasium.make("rlagents_envs:rlagents_envs/Carla-v0", towns=("grid-1",), disable_env_checker=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*render.*")
        check_env(made.unwrapped, skip_render_check=True)
    made.close()


@pytest.mark.carla
def test_stable_baselines_checker_is_content(env):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(env, warn=True)


@pytest.mark.carla
def test_every_observation_is_in_its_space_and_shows_what_is_there(carla_package):
    made = make_env(observations=("bev", "state", "camera", "lidar"))
    obs, _ = made.reset(seed=3)
    assert made.observation_space.contains(obs)
    road, line, route = obs["bev"][:3]
    assert road.any()
    assert line.any()
    row, column = 62, 42  # just ahead of the car
    assert road[row, column] == 255
    assert route[row, column] == 255
    assert obs["camera"][0, -1, 42] == 255  # road before the car
    for _ in range(20):
        obs, reward, terminated, _, _ = made.step(np.int64(made.scripted("cruise")))
        assert made.observation_space.contains(obs)
        assert np.isfinite(reward)
        assert not terminated
    assert obs["state"][0] == pytest.approx(made.moment.speed / 10)
    assert made.moment.speed > 3
    made.close()


@pytest.mark.carla
def test_the_same_seed_and_actions_bring_the_same_episode(env):
    def play():
        obs, _ = env.reset(seed=5)
        seen = [obs]
        for action in np.random.default_rng(0).integers(9, 27, size=40):
            obs, reward, terminated, truncated, _ = env.step(action)
            seen.append({**obs, "reward": np.float64(reward)})
            if terminated or truncated:
                break
        return seen

    one, other = play(), play()
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.carla
def test_the_rule_based_driver_arrives_and_cruise_does_not_mind_the_lights(env):
    env.reset(seed=1)
    ends = drive(env, 3)
    assert [end["reason"] for end in ends] == ["success"] * 3
    for end in ends:
        assert end["episode_metrics"]["driving_score_2.1"] == 100
        assert end["episode_metrics"]["route_completion"] == 100
    env.reset(seed=1)
    reasons = {end["reason"] for end in drive(env, 5, "cruise")}
    assert "red_light" in reasons


@pytest.mark.carla
def test_without_lights_nobody_stops_for_them_and_none_ends_an_episode(carla_package):
    made = make_env(lights=False)
    made.reset(seed=1)
    for driver in ("rules", "cruise"):
        assert [end["reason"] for end in drive(made, 5, driver)] == ["success"] * 5
        assert not made.moment.light
        made.reset()
    made.close()


@pytest.mark.carla
def test_all_drivers_have_the_same_routes_and_walkers_whatever_the_traffic_has_become(carla_package):
    made = make_env(vehicles=30, walkers=3, time_limit=4.0, towns=("ring-1",))

    def starts(driver):
        found = []
        made.reset(seed=4)
        for _ in range(4):
            others, here = made._others, made.moment
            found.append((here.x, here.y, made.route.length, *np.round(others.walkers.xy, 3).ravel()))
            assert not len(others.vehicles.near(here.x, here.y, 10.0).xy)
            drive(made, 1, driver)
            made.reset()
        return found

    first = starts("rules")
    assert starts("cruise") == first
    assert len(made._others.vehicles.xy) == 30
    made.close()


@pytest.mark.carla
@pytest.mark.parametrize(
    ("fields", "action", "reason"),
    [
        ({}, 26, "off_"),  # full right
        ({"blocked_after": 2.0}, 4, "blocked"),
        ({"time_limit": 3.0}, 4, "timeout"),
    ],
)
def test_ends(carla_package, fields, action, reason):
    made = make_env(**fields)
    made.reset(seed=2)
    for _ in range(600):
        _, _, terminated, truncated, info = made.step(np.int64(action))
        if terminated or truncated:
            break
    assert info["reason"].startswith(reason)
    assert truncated == (reason == "timeout")
    with pytest.raises(RuntimeError, match="step needs a reset first"):
        made.step(np.int64(action))
    made.close()


@pytest.mark.carla
@pytest.mark.parametrize(("action", "fault"), [(4, False), (13, True)])  # brake, and gas
def test_who_stands_and_is_hit_is_not_at_fault(env, action, fault):
    env.reset(seed=1)
    carla, world, ego = env.connection.carla, env.connection.world, env._actors.ego
    here = ego.get_transform()
    ahead = here.get_forward_vector()
    here.location += carla.Location(8 * ahead.x, 8 * ahead.y, 0.0)
    other = world.spawn_actor(world.get_blueprint_library().find("vehicle.tesla.model3"), here)
    other.enable_constant_velocity(carla.Vector3D(-5.0, 0.0, 0.0))  # backwards into the car
    reasons, pushed = [], 0.0
    for _ in range(15):
        _, _, terminated, truncated, info = env.step(np.int64(action))
        reasons.append(info.get("reason"))
        pushed = min(pushed, env.moment.forward)
        if terminated or truncated:
            break
    other.destroy()
    assert reasons[-1] == ("collision_vehicle" if fault else None)
    assert fault or pushed < -1


@pytest.mark.carla
def test_a_walker_waits_where_the_car_stands_in_his_way(carla_package):
    made = make_env(walkers=1)
    made.reset(seed=1)
    carla, actors, route = made.connection.carla, made._actors, made.route
    for _ in range(900):
        made.step(np.int64(made.scripted("rules")))
        if actors._walking:
            break
    ((number, (crossing, *_)),) = actors._walking.items()

    def place(metres):
        """Puts the car at rest so far along the route from where the walker crosses."""
        x, y = crossing.walker.get_location().x, crossing.walker.get_location().y
        at = int(np.hypot(*(route.xy - (x, y)).T).argmin()) + round(2 * metres)
        place = carla.Location(float(route.xy[at, 0]), float(route.xy[at, 1]), 0.3)
        actors.ego.set_transform(
            carla.Transform(place, carla.Rotation(0.0, math.degrees(route.yaw[at]), 0.0))
        )
        actors.ego.set_target_velocity(carla.Vector3D(0.0, 0.0, 0.0))

    place(0.0)
    for _ in range(60):
        *_, info = made.step(np.int64(4))
        assert "reason" not in info
    assert actors._waiting == {number}
    assert crossing.walker.get_velocity().length() == 0
    place(15.0)
    for _ in range(100):
        made.step(np.int64(4))
        if number not in actors._walking:
            break
    assert not actors._walking
    made.close()


def server_of(env):
    return env.connection.server.process


@pytest.mark.carla
@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_a_lost_server_costs_one_step_and_the_next_episode_has_a_new_one(env, fault):
    env.config = env.config.model_copy(update={"timeout": 1.0})
    before, _ = env.reset(seed=1)
    for _ in range(5):
        before, *_ = env.step(np.int64(13))
    process = server_of(env)
    os.kill(process.pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    if fault == "kill":
        process.wait()
    obs, reward, terminated, truncated, info = env.step(np.int64(13))
    assert (reward, terminated, truncated) == (0, False, True)
    assert info["lost"]
    assert "\n" not in info["reason"]
    for name in obs:
        np.testing.assert_array_equal(obs[name], before[name])
    env.reset()
    assert server_of(env).pid != process.pid
    assert process.poll() is not None
    assert drive(env, 1)[0]["reason"] == "success"


@pytest.mark.carla
def test_a_server_of_somebody_else_may_come_back_on_the_same_port(carla_package):
    port = connection.free_port(2)
    command = connection.standin_command("grid-1", port, 0)
    server = connection.Server(command, None, 20.0)
    made = make_env(server=f"127.0.0.1:{port}", timeout=1.0, patience=20.0)
    made.reset(seed=1)
    made.step(np.int64(13))
    server.end()
    servers = []
    again = threading.Timer(1.0, lambda: servers.append(connection.Server(command, None, 20.0)))
    again.start()
    assert made.step(np.int64(13))[4]["lost"]
    made.reset()
    assert made.step(np.int64(13))[4] == {}
    made.close()
    again.join()
    world = carla_package.Client("127.0.0.1", port).get_world()
    assert not world.get_settings().synchronous_mode  # given back as it was
    kinds = [actor.type_id for actor in world.get_actors()]
    assert not [kind for kind in kinds if kind.startswith(("vehicle.", "sensor.", "walker."))]
    servers[0].end()


@pytest.mark.carla
def test_traffic_ends_with_its_world_and_leaves_the_process_alive(carla_package):
    for number in range(2):
        made = make_env(vehicles=3, restart_episodes=1)
        for _ in range(2):  # the second time with another server
            made.reset(seed=number)
            for _ in range(3):
                assert made.step(np.int64(13))[4] == {}
        made.close()


@pytest.mark.carla
def test_traffic_that_lost_its_server_costs_the_process_and_the_episodes_under_way(carla_package):
    config = Carla(count=2, towns=("grid-1",), observations=("state",), vehicles=3)
    envs = rlagents_envs.make(config)
    envs.reset(1)
    told = []
    for kill in (False, True, False, False, False, False):
        if kill:
            os.kill(standins()[0], signal.SIGKILL)
        envs.send(np.full(2, 13))
        outcome = envs.recv()
        told.append([] if outcome.lost is None else np.flatnonzero(outcome.lost).tolist())
    # One is lost with its server, all with the process of that one, and then all go on.
    assert told in ([[], [i], [0, 1], [], [], []] for i in (0, 1))
    (crash,) = envs.crashes
    assert "a Traffic Manager lost its server" in str(crash)
    envs.close()


STUCK = """
import socket, time
import msgpack, numpy as np
from rlagents_envs.carla import actors
from rlagents_envs.carla.env import CarlaEnv

find, ports = actors.free_port, []
actors.free_port = lambda: ports.append(find()) or ports[-1]
actors._STUCK = 0.5
env = CarlaEnv(towns=("grid-1",), observations=("state",), vehicles=2)
env.reset(seed=1)
line = socket.create_connection(("127.0.0.1", ports[-1]))
for number in range(1000):
    # A second tick of the manager takes the one notice of the step that the tick beside it waits for.
    line.sendall(msgpack.packb([0, number, "synchronous_tick", []]))
    began = time.monotonic()
    assert env.step(np.int64(13))[4] == {}
    if time.monotonic() - began > 0.5:
        break
else:
    raise SystemExit("no tick was ever stuck")
line.close()
for _ in range(20):
    assert env.step(np.int64(13))[4] == {}
env.close()
print("awake")
"""


@pytest.mark.carla
def test_a_tick_and_a_traffic_manager_that_wait_for_each_other_are_woken(carla_package):
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["awake"], done.stderr


@pytest.mark.carla
def test_what_fails_at_the_very_first_time_is_not_tried_again(carla_package):
    envs = rlagents_envs.make(Carla(count=1, towns=("no-such-town",), observations=("state",)))
    with pytest.raises(RuntimeError, match="did not start") as it:
        envs.reset(1)
    assert "crashed" not in str(it.value)
    envs.close()


@pytest.mark.carla
def test_whoever_takes_the_server_over_is_noticed(carla_package):
    port = connection.free_port(2)
    server = connection.Server(connection.standin_command("grid-1", port, 0), None, 20.0)
    fields = {"server": f"127.0.0.1:{port}", "timeout": 2.0}
    one, other = make_env(**fields), make_env(**fields)
    one.reset(seed=1)
    one.step(np.int64(13))
    other.reset(seed=1)
    other.step(np.int64(13))
    assert one.step(np.int64(13))[4]["lost"]
    other.close()
    one.reset()
    assert one.step(np.int64(13))[4] == {}
    one.close()
    server.end()


@pytest.mark.carla
@pytest.mark.parametrize(
    ("episodes", "fields"),
    [
        (150, {}),
        pytest.param(
            1000,
            {"observations": ("bev", "state", "camera"), "vehicles": 2, "walkers": 1},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_many_episodes_leave_nothing_behind(carla_package, episodes, fields):
    made = make_env(time_limit=0.5, timeout=60.0, **fields)
    made.reset(seed=1)
    own = Path("/proc/self")

    def held():
        """Returns descriptors, threads and actors, and the megabytes of both processes."""
        made.reset()
        gc.collect()
        counts = [len(list((own / part).iterdir())) for part in ("fd", "task")]
        pages = int((own / "statm").read_text().split()[1])
        memory = (pages * os.sysconf("SC_PAGE_SIZE") / 1e6, made.connection.server.megabytes)
        return [*counts, len(made.connection.world.get_actors())], np.array(memory)

    drive(made, 50, "random", most=10**6)
    before, memory = held()
    drive(made, episodes, "random", most=10**6)
    after, more = held()
    print(f"{episodes} episodes: {before} to {after}, {memory} to {more} MB")
    assert after == before
    assert (more < memory + 5).all()
    made.close()


@pytest.mark.carla
def test_a_worn_server_is_replaced_between_episodes(carla_package):
    made = make_env(restart_episodes=2, time_limit=0.3)
    numbers = []
    for _ in range(5):
        made.reset(seed=1)
        numbers.append(server_of(made).pid)
    assert len(set(numbers)) == 3
    assert numbers[0] == numbers[1]
    made.close()


@pytest.mark.carla
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_several_drive_on_servers_of_their_own_and_a_death_is_told_to_the_loop(carla_package, backend):
    config = Carla(count=2, towns=("grid-1", "curves-2"), backend=backend, frame_stack=2, timeout=2.0)
    envs = rlagents_envs.make(config, pictures=True)
    obs, mask = envs.reset(1)
    assert mask is None
    assert obs["bev"].shape == (2, 14, 84, 84)
    assert obs["state"].shape == (2, 72)
    picture = envs.picture()
    assert picture.shape == (400, 784, 3)
    assert picture.std() > 10
    here = f"/proc/{os.getpid()}/task"
    servers = standins()
    assert len(servers) == 2, here
    for _ in range(3):
        envs.send(np.full(2, 13))
        assert envs.recv().lost is None
    os.kill(servers[0], signal.SIGKILL)
    envs.send(np.full(2, 13))
    outcome = envs.recv()
    assert sorted(outcome.lost.tolist()) == [False, True]
    np.testing.assert_array_equal(outcome.ended, outcome.lost)
    envs.send(np.full(2, 13))
    envs.recv()
    assert len(standins()) == 2
    envs.close()
    until = time.monotonic() + 10
    while standins() and time.monotonic() < until:
        time.sleep(0.1)
    assert not standins()


def standins():
    """Returns the numbers of the stand-in servers that this test, or a process of it, has started."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            if b"rlagents_envs.carla.standin" in command and ours(int(process.name)):
                found.append(int(process.name))
        except (OSError, ValueError):
            continue
    return sorted(found)


def ours(number):
    while number > 1:
        if number == os.getpid():
            return True
        stat = Path(f"/proc/{number}/stat").read_text()
        if stat.rpartition(")")[2].split()[0] == "Z":
            return False
        number = int(stat.rpartition(")")[2].split()[1])
    return False


@pytest.mark.carla
def test_training_goes_on_when_servers_die_and_learns_nothing_that_did_not_happen(
    carla_package, tmp_path, monkeypatch
):
    from rlagents import training
    from rlagents.config import Experiment

    experiment = Experiment.model_validate(
        {
            "run": {"name": "faults", "env_steps": 900, "evaluate_every": 0, "evaluate_episodes": 1},
            "env": {
                "kind": "carla",
                "count": 2,
                "towns": ["grid-1"],
                "observations": ["state"],
                "timeout": 2.0,
            },
            "agent": {"kind": "dqn", "learning_starts": 100, "learn_every": 16},
        }
    )
    interact, table = training.interact, np.array(actions.table("27"), np.float32)
    faults, lost, transitions = [], 0, 0

    def havoc(*arguments, **settings):
        nonlocal lost, transitions
        for tick, (step, metrics) in enumerate(interact(*arguments, **settings), 1):
            lost += 0 if step.lost is None else int(step.lost.sum())
            real = ~step.final
            transitions += int(real.sum())
            control = table[step.action[real]][:, [1, 0, 2]]  # steer, throttle, brake
            np.testing.assert_array_equal(step.next_obs["state"].numpy()[real, 2:5], control)
            if tick % 60 == 0:
                fault = signal.SIGKILL if tick % 120 else signal.SIGSTOP
                os.kill(standins()[len(faults) % 2], fault)
                faults.append(fault)
            yield step, metrics

    monkeypatch.setattr(training, "interact", havoc)
    run = training.train(experiment, out=tmp_path / "run", quiet=True)
    assert len(faults) >= 6
    assert lost == len(faults) or lost == len(faults) - 1  # the last may come after the last step
    assert transitions >= 900
    assert (run / "metrics.jsonl").is_file()
    assert not standins()


class Fate:
    """A server of somebody else that is killed, frozen for a while, or started again on its port."""

    def __init__(self, town, frozen):
        self.port, self.town, self.frozen = connection.free_port(2), town, frozen
        self.server = self.started()
        self.busy = None

    def started(self):
        while True:
            try:
                return connection.Server(connection.standin_command(self.town, self.port, 0), None, 60.0)
            except connection.ServerError:  # its port is not free yet
                time.sleep(0.2)

    def strike(self, fault):
        process = self.server.process
        os.kill(
            process.pid, {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "restart": signal.SIGTERM}[fault]
        )
        self.busy = threading.Thread(target=self.mend, args=(process, fault))
        self.busy.start()

    def mend(self, process, fault):
        if fault == "freeze":
            time.sleep(self.frozen)
            os.kill(process.pid, signal.SIGCONT)
        else:
            process.wait()
            self.server = self.started()


@pytest.mark.carla
@pytest.mark.parametrize(
    ("times", "frozen"), [(1, 8.0), pytest.param(10, 30.0, marks=pytest.mark.slow)], ids=["once", "ten"]
)
def test_training_outlives_servers_that_are_killed_frozen_and_started_again(
    carla_package, tmp_path, monkeypatch, times, frozen
):
    from rlagents import training
    from rlagents.config import Experiment

    fates = [Fate("grid-1", frozen), Fate("curves-2", frozen)]
    faults = [fault for _ in range(times) for fault in ("kill", "freeze", "restart")]
    experiment = Experiment.model_validate(
        {
            "run": {"name": "faults", "env_steps": 100 * len(faults), "evaluate_every": 0},
            "env": {
                "kind": "carla",
                "count": 2,
                "server": ",".join(f"127.0.0.1:{fate.port}" for fate in fates),
                "observations": ["state"],
                "timeout": 5.0,
                "patience": 300.0,
            },
            "agent": {"kind": "dqn", "learning_starts": 100, "learn_every": 16},
        }
    )
    interact, table = training.interact, np.array(actions.table("27"), np.float32)
    struck, lost, transitions, since = [], 0, 0, 0

    def havoc(*arguments, **settings):
        nonlocal lost, transitions, since
        for step, metrics in interact(*arguments, **settings):
            lost += 0 if step.lost is None else int(step.lost.sum())
            real = ~step.final
            transitions += int(real.sum())
            control = table[step.action[real]][:, [1, 0, 2]]  # steer, throttle, brake
            np.testing.assert_array_equal(step.next_obs["state"].numpy()[real, 2:5], control)
            since += 1
            fate = fates[len(struck) % 2]
            if since > 30 and len(struck) < len(faults) and not (fate.busy and fate.busy.is_alive()):
                fate.strike(faults[len(struck)])
                struck.append(faults[len(struck)])
                since = 0
            yield step, metrics

    monkeypatch.setattr(training, "interact", havoc)
    run = training.train(experiment, out=tmp_path / "run", quiet=True)
    print(f"{len(struck)} faults, {lost} steps lost, {transitions} transitions")
    assert struck == faults
    assert lost == len(faults)
    assert transitions >= experiment.run.env_steps
    assert (run / "metrics.jsonl").is_file()
    for fate in fates:
        fate.busy.join()
        client = carla_package.Client("127.0.0.1", fate.port)
        client.set_timeout(20.0)
        kinds = [actor.type_id for actor in client.get_world().get_actors()]
        assert not [kind for kind in kinds if kind.startswith(("vehicle.", "sensor.", "walker."))]
        fate.server.end()


@pytest.mark.carla
def test_check_drives_ten_metres_and_says_what_it_found(carla_package, tmp_path, capsys):
    from rlagents_envs.carla.__main__ import main

    assert main(["check", "--picture", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out
    for word in ("client 0.9.16, server 0.9.16", "grid-1", "driven", "ticks"):
        assert word in said
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert main(["check", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("error: no CARLA server at 127.0.0.1:1")


@pytest.mark.carla
def test_suites_of_a_run_are_one_table_beside_the_drivers(carla_package, tmp_path):
    from click.testing import CliRunner

    from rlagents import cli, training
    from rlagents.config import Experiment

    env = {"kind": "carla", "count": 1, "towns": ["grid-1"], "observations": ["state"], "time_limit": 2.0}
    settings = {"run": {"name": "short", "env_steps": 20, "evaluate_every": 0}, "env": env}
    agent = {"kind": "dqn", "learning_starts": 10}
    run = training.train(
        Experiment.model_validate({**settings, "agent": agent}), out=tmp_path / "run", quiet=True
    )
    names = ("empty-seen", "regular-unseen")
    chosen = [word for name in names for word in ("--suite", name)]
    file = tmp_path / "suites.json"
    told = CliRunner().invoke(
        cli.main, ["evaluate", str(run), "--episodes", "2", "--json", str(file), *chosen]
    )
    assert told.exit_code == 0, told.output
    rows = [line.split()[:2] for line in told.stdout.splitlines() if line.startswith(names)]
    assert rows == [[n, who] for n in names for who in ("agent", "random", "cruise", "rules")]
    found = json.loads(file.read_text())["suites"]
    assert [(found[n]["env"]["vehicles"], found[n]["env"]["towns"]) for n in names] == [
        (0, ["grid-1"]),
        (20, ["ring-1"]),
    ]
    for suite in found.values():
        assert suite["baselines"]["rules"]["episodes"] == 2
        assert 0 < suite["baselines"]["rules"]["seconds"] <= 2.05
    wrong = CliRunner().invoke(cli.main, ["evaluate", str(run), "--suite", "full"])
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: suites must be among empty-seen, regular-seen, ")
    assert len(wrong.stderr.splitlines()) == 1

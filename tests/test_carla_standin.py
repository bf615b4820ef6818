"""The stand-in server: its world without sockets, its messages, and the real client over TCP.

Tests marked `carla` connect the real client to a server in a process of its own. The client's Traffic Manager
listens on all interfaces: where it is allowed, it runs in a network namespace of its own.
"""

import contextlib
import json
import math
import os
import queue
import random
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("carla", reason="the carla package exists for Linux and Windows, Python 3.10 to 3.12")

import carla

from rlagents_envs.carla.roads import BIT, Roads, cached_roads
from rlagents_envs.carla.standin import sensors, wire
from rlagents_envs.carla.standin.server import Server
from rlagents_envs.carla.standin.wire import LAYOUTS, Decoder, Request, States, WireError
from rlagents_envs.carla.standin.world import (
    GREEN,
    GRIP,
    NO_ROOM,
    RED,
    SPIN,
    VX,
    VY,
    YELLOW,
    Actor,
    Rectangle,
    Transform,
    World,
    X,
    Y,
    overlap,
)
from rlagents_envs.carla.towns import opendrive

LAYOUT = LAYOUTS["0.9.16"]
CAR = "vehicle.tesla.model3"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def roads() -> Roads:
    return cached_roads(opendrive("grid-1"))


@pytest.fixture
def world(roads: Roads) -> World:
    return World(roads)


def start(world: World, number: int = 0, ahead: float = 0.0) -> Transform:
    """Returns a place on a long, straight street."""
    spots = [s for s in world.roads.spawn_points() if abs(s.rotation.yaw) < 0.1]
    place = spots[number].location
    return Transform(place.x + ahead, place.y)


def car(world: World, where: Transform, **pedals: float) -> Actor:
    actor = world.spawn(CAR, {}, where)
    drive(world, actor, **pedals)
    return actor


def drive(
    world: World, actor: Actor, throttle: float = 0, steer: float = 0, brake: float = 0, **more: Any
) -> None:
    world.control(actor, throttle, steer, brake, more.get("hand_brake", False), more.get("reverse", False))


def run(world: World, ticks: int) -> None:
    for _ in range(ticks):
        world.tick(0.05)


def speed(world: World, actor: Actor) -> float:
    return math.hypot(*world.table[actor.row, [VX, VY]])


# ---- driving


def test_a_car_speeds_up_coasts_and_brakes(world: World) -> None:
    ego = car(world, start(world), throttle=1)
    run(world, 40)
    reached = speed(world, ego)
    assert 6 < reached < 2 * 4.5
    drive(world, ego)
    run(world, 20)
    assert reached - 1.5 < speed(world, ego) < reached - 0.3
    world.set_velocity(ego, 10, 0)
    drive(world, ego, brake=1)
    begin = world.transform(ego).x
    run(world, 60)
    assert speed(world, ego) == 0
    assert 5 < world.transform(ego).x - begin < 7
    drive(world, ego, throttle=0.5, reverse=True)
    run(world, 40)
    assert -5 < world.table[ego.row, VX] < -1
    # What moved it is its velocity, every tick.
    before = world.table[ego.row].copy()
    world.tick(0.05)
    after = world.table[ego.row]
    np.testing.assert_allclose(after[[X, Y]], before[[X, Y]] + 0.05 * after[[VX, VY]], rtol=1e-12)


def test_a_car_turns_on_the_circle_of_a_bicycle_and_tyres_hold_so_much(world: World) -> None:
    ego = car(world, start(world))
    for asked, pace in ((0.3, 4.0), (1.0, 2.0), (-0.5, 3.0), (1.0, 20.0)):
        drive(world, ego, steer=asked, throttle=0.05)
        run(world, 10)
        world.set_velocity(ego, 0, 0)
        world.place(ego, start(world))
        world.set_velocity(ego, pace, 0)
        world.tick(0.05)
        rate, moving = math.radians(world.table[ego.row, SPIN]), speed(world, ego)
        angle = math.atan(math.tan(asked * math.radians(50) * (1 - 0.015 * min(moving, 33.3))) / 2)
        free = moving * math.sin(angle) / (ego.blueprint.wheelbase / 2)
        expected = math.copysign(min(abs(free), GRIP / moving), free)
        assert rate == pytest.approx(expected, rel=0.02)
        assert abs(rate * moving) < GRIP * 1.01
    drive(world, ego, steer=-1)
    world.tick(0.05)
    assert world.fleet["wheel"][ego.slot] == pytest.approx(0.8)  # the wheel takes its time


def test_the_ground_beside_the_road_slows(world: World) -> None:
    ego = car(world, start(world))
    world.set_velocity(ego, 8, 0)
    world.tick(0.05)
    assert world.ground[ego.slot] & BIT["road"]
    firm = 8 - speed(world, ego)
    # Some twelve metres to the side of a street in this town is nothing at all.
    world.place(ego, start(world)._replace(y=start(world).y + 15))
    world.set_velocity(ego, 8, 0)
    world.tick(0.05)
    assert not world.ground[ego.slot] & BIT["road"]
    assert 8 - speed(world, ego) > firm + 0.05


def test_what_is_placed_keeps_its_speed_and_what_is_mounted_follows(world: World) -> None:
    ego = car(world, start(world))
    sensor = world.spawn("sensor.other.gnss", {}, Transform(1, 0.5, 2, 0, 90, 0), ego.id)
    world.set_velocity(ego, 5, 0)
    world.place(ego, start(world, 3)._replace(yaw=450, z=7))
    assert world.transform(ego).z == 0
    assert world.transform(ego).yaw == 90
    world.tick(0.05)
    assert speed(world, ego) == pytest.approx(5, abs=0.1)
    x, y, z, _, yaw, _ = world.transform(sensor)
    place = world.transform(ego)
    assert (x, y, z) == pytest.approx((place.x - 0.5, place.y + 1, 2))
    assert abs(yaw) == 180
    world.set_physics(ego, False)
    run(world, 5)
    assert world.transform(ego) == place
    assert world.destroy(ego.id)
    run(world, 1)
    assert sensor.parent == 0
    assert not world.destroy(ego.id)
    assert not world.destroy(world.spectator.id)


def test_a_constant_velocity_is_kept(world: World) -> None:
    ego = car(world, start(world)._replace(yaw=90), brake=1)
    world.keep_velocity(ego, (3, 0))
    run(world, 20)
    assert world.table[ego.row, [VX, VY]] == pytest.approx([0, 3])
    world.keep_velocity(ego, None)
    run(world, 20)
    assert speed(world, ego) == 0


# ---- bodies


def test_a_head_on_collision_keeps_the_momentum(world: World) -> None:
    first = car(world, start(world))
    second = world.spawn("vehicle.carlamotors.firetruck", {}, start(world, ahead=9)._replace(yaw=180))
    world.set_velocity(first, 9, 0)
    world.set_velocity(second, -3, 0)
    masses = np.array([first.blueprint.mass, second.blueprint.mass])
    for _ in range(40):
        before = world.table[[first.row, second.row], VX].copy()
        world.tick(0.05)
        if world.collisions:
            break
    assert [(c.actor, c.other) for c in world.collisions] == [(first, second), (second, first)]
    impulse = world.collisions[0].impulse
    assert impulse[0] < 0
    assert impulse[:2] == pytest.approx([-side for side in world.collisions[1].impulse[:2]])
    after = np.array([world.fleet["speed"][first.slot], -world.fleet["speed"][second.slot]])
    np.testing.assert_allclose(masses * (after - before), [impulse[0], -impulse[0]], rtol=0.02)
    assert after[0] < after[1] + 1.5
    run(world, 3)
    assert overlap(world._rectangle(first), world._rectangle(second)) is None


def test_a_hit_on_the_corner_spins_and_the_push_fades(world: World) -> None:
    first = car(world, start(world))
    second = car(world, start(world, ahead=6)._replace(y=start(world).y + 1.2))
    world.set_velocity(first, 8, 0)
    run(world, 15)
    assert abs(world.transform(second).yaw) > 0.5
    run(world, 100)
    assert not world._pushed
    assert speed(world, second) == 0


def test_a_prop_stands_and_a_walker_is_felt(world: World) -> None:
    ego = car(world, start(world))
    prop = world.spawn("static.prop.container", {}, start(world, ahead=8))
    world.set_velocity(ego, 10, 0)
    run(world, 20)
    assert world.transform(prop).x == pytest.approx(start(world, ahead=8).x)
    assert world.transform(ego).x < start(world, ahead=8).x - 2
    world.destroy(prop.id)
    walker = world.spawn("walker.pedestrian.0001", {}, start(world, ahead=10))
    world.set_velocity(ego, 10, 0)
    hits = []
    for _ in range(20):
        world.tick(0.05)
        hits += [c for c in world.collisions if c.actor is ego]
    assert hits[0].other is walker
    assert 80 * 5 < -hits[0].impulse[0] < 80 * 12


def test_nobody_is_spawned_into_another(world: World) -> None:
    car(world, start(world))
    with pytest.raises(ValueError, match=NO_ROOM):
        car(world, start(world, ahead=4))
    car(world, start(world, ahead=6))
    world.set_solid(world.vehicles[0], False)
    car(world, start(world, ahead=-2))
    known = world.spawn("sensor.other.imu", {"role_name": "x" * 5, "what": "ever"}, Transform()).attributes
    assert known == {"role_name": "xxxxx", "sensor_tick": "0.0"}
    with pytest.raises(ValueError, match="blueprint"):
        world.spawn("vehicle.flying.carpet", {}, start(world, 5))
    with pytest.raises(ValueError, match="parent"):
        world.spawn("sensor.other.gnss", {}, Transform(), 999)
    for speed_text in ("fast", "nan", "inf"):
        with pytest.raises(ValueError, match=r"speed must be finite|could not convert"):
            world.spawn("walker.pedestrian.0001", {"speed": speed_text}, start(world, 9))


rectangles = st.builds(
    Rectangle, st.floats(-3, 3), st.floats(-3, 3), st.floats(-4, 4), st.floats(0.2, 3), st.floats(0.2, 2)
)


@given(rectangles, rectangles)
def test_overlap_agrees_with_points(a: Rectangle, b: Rectangle) -> None:
    grid = np.linspace(-1, 1, 25)
    cos, sin = math.cos(a.yaw), math.sin(a.yaw)
    shared = any(
        b.holds(a.x + cos * u * a.length - sin * v * a.width, a.y + sin * u * a.length + cos * v * a.width)
        for u in grid
        for v in grid
    )
    found = overlap(a, b)
    if shared:
        assert found is not None
    if found is None:
        assert overlap(b, a) is None
        return
    (nx, ny), depth, _ = found
    assert math.hypot(nx, ny) == pytest.approx(1)
    # Moved by the depth along the normal, they no longer touch.
    far = a._replace(x=a.x + nx * (depth + 1e-6), y=a.y + ny * (depth + 1e-6))
    assert overlap(far, b) is None


# ---- lights and walkers


def test_one_phase_at_a_time_has_green_and_each_has_its_turn(world: World) -> None:
    lights = world.lights
    seen: dict[int, set[int]] = {i: set() for i in range(len(lights.specs))}
    for _ in range(2000):
        old = lights.states.copy()
        world.tick(0.05)
        for i, (was, now) in enumerate(zip(old.tolist(), lights.states.tolist(), strict=True)):
            seen[i].add(now)
            assert was == now or (was, now) in ((RED, GREEN), (GREEN, YELLOW), (YELLOW, RED))
        going: dict[int, set[int]] = {}
        for light, state in zip(lights.specs, lights.states.tolist(), strict=True):
            if state != RED:
                going.setdefault(light.junction, set()).add(light.phase)
        assert all(len(phases) == 1 for phases in going.values())
    assert all(states == {RED, YELLOW, GREEN} for states in seen.values())


def test_a_client_may_set_times_states_and_freeze(world: World) -> None:
    lights = world.lights
    lights.set_state(0, GREEN)
    lights.freeze(0, True)
    run(world, 700)
    assert lights.states[0] == GREEN
    assert lights.elapsed[0] == pytest.approx(35)
    lights.freeze(0, False)
    lights.reset_group(0)
    for stage, seconds in enumerate((1.0, 0.5, 0.25)):
        for member in lights.group(0):
            lights.set_time(member, stage, seconds)
    shown = []
    for _ in range(40):
        shown.append(int(lights.states[0]))
        world.tick(0.05)
    assert shown[:35] == [GREEN] * 20 + [YELLOW] * 10 + [RED] * 5
    assert set(lights.group(0)) == {
        i for i, s in enumerate(lights.specs) if s.junction == lights.specs[0].junction
    }


def test_a_car_before_a_stop_line_sees_its_light(world: World) -> None:
    for number, light in enumerate(world.roads.lights[:8]):
        stop = light.stops[0]
        cos, sin = math.cos(math.radians(stop.yaw)), math.sin(math.radians(stop.yaw))
        ego = car(world, Transform(stop.x - 6 * cos, stop.y - 6 * sin, 0, 0, stop.yaw, 0))
        world.tick(0.05)
        assert world.light_ahead[ego.slot] == number
        world.place(ego, Transform(stop.x + 4 * cos, stop.y + 4 * sin, 0, 0, stop.yaw, 0))
        world.tick(0.05)
        assert world.light_ahead[ego.slot] == -1
        world.place(ego, Transform(stop.x - 6 * cos, stop.y - 6 * sin, 0, 0, stop.yaw + 180, 0))
        world.tick(0.05)
        assert world.light_ahead[ego.slot] != number
        world.destroy(ego.id)


@pytest.mark.parametrize("town", ["grid-1", "roundabouts-1"])
def test_a_walker_with_a_controller_crosses_to_and_fro_and_looks_out(town: str) -> None:
    world = World(cached_roads(opendrive(town)))
    if world.roads.crosswalks:
        corner = world.roads.crosswalks[0][0]
    else:
        spot = world.roads.spawn_points()[40]
        right = spot.get_right_vector()
        corner = np.array([spot.location.x + 3 * right.x, spot.location.y + 3 * right.y])
    walker = world.spawn("walker.pedestrian.0002", {}, Transform(*corner.tolist()))
    run(world, 100)
    np.testing.assert_allclose(world.table[walker.row, [X, Y]], corner)  # nobody told it anything
    world.spawn("controller.ai.walker", {}, Transform(), walker.id)
    assert walker.crossing is not None
    ends = np.array(walker.crossing.ends)
    assert not (world.roads.at(ends[:, 0], ends[:, 1]) & BIT["road"]).any()
    reached: set[int] = set()
    for _ in range(1500):
        world.tick(0.05)
        away = np.hypot(*(ends - world.table[walker.row, [X, Y]]).T)
        reached |= set(np.flatnonzero(away < 0.5).tolist())
        assert speed(world, walker) < 1.5
    assert reached == {0, 1}
    # A car that stands on its way keeps it at the kerb.
    middle = ends.mean(0)
    while walker.crossing.wait <= 0:
        world.tick(0.05)
    car(world, Transform(*middle.tolist()), brake=1)
    here = world.table[walker.row, [X, Y]].copy()
    run(world, 500)
    np.testing.assert_allclose(world.table[walker.row, [X, Y]], here)


def scene(roads: Roads, seed: int) -> list[str]:
    world = World(roads, seed=seed)
    for i, spot in enumerate(roads.spawn_points()[::12]):
        ego = world.spawn(CAR, {}, Transform(spot.location.x, spot.location.y, 0, 0, spot.rotation.yaw, 0))
        drive(world, ego, throttle=0.4, steer=0.05 * (i % 5 - 2))
    corner = roads.crosswalks[3][0].tolist()
    walker = world.spawn("walker.pedestrian.0003", {}, Transform(*corner))
    world.spawn("controller.ai.walker", {}, Transform(), walker.id)
    digests = []
    for _ in range(300):
        world.tick(0.05)
        digests.append(world.digest())
    return digests


def test_the_same_seed_gives_the_same_world(roads: Roads) -> None:
    first = scene(roads, 1)
    assert first == scene(roads, 1)
    assert first != scene(roads, 2)
    assert len(set(first)) == len(first)


# ---- sensors


def body(world: World, actor: Actor, state: sensors.Sensor | None = None) -> bytes:
    (data,) = sensors.sense(world, actor, state or sensors.Sensor(), LAYOUT, 0.05, {})
    return data


def image(data: bytes) -> np.ndarray:
    width, height, _ = struct.unpack_from("<IIf", data)
    return np.frombuffer(data, np.uint8, offset=12).reshape(height, width, 4)


def camera(world: World, ego: Actor, kind: str, **attributes: str) -> Actor:
    options = {"image_size_x": "60", "image_size_y": "40", "fov": "90"} | attributes
    return world.spawn(f"sensor.camera.{kind}", options, Transform(1.5, 0, 2.0), ego.id)


def metres(picture: np.ndarray) -> np.ndarray:
    code = (
        picture[..., 2].astype(int) + (picture[..., 1].astype(int) << 8) + (picture[..., 0].astype(int) << 16)
    )
    return code / (2**24 - 1) * 1000


def test_cameras_see_the_ground_the_sky_and_the_car_ahead(world: World) -> None:
    ego = car(world, start(world))
    world.tick(0.05)
    tags = image(body(world, camera(world, ego, "semantic_segmentation")))[..., 2]
    depth = metres(image(body(world, camera(world, ego, "depth"))))
    assert (tags[:10] == sensors.SKY).mean() > 0.9
    assert {sensors.ROAD, sensors.SIDEWALK, sensors.ROAD_LINE, sensors.TERRAIN} < set(tags.ravel().tolist())
    rows = np.arange(25, 40)
    expected = 2.0 / ((rows + 0.5 - 20) / 30)  # height over slope
    np.testing.assert_allclose(depth[25:, 30], expected, rtol=1e-4)
    assert (tags[rows, 30] != sensors.SKY).all()
    assert depth[0, 0] == pytest.approx(1000)
    other = car(world, start(world, ahead=14))
    world.tick(0.05)
    tags = image(body(world, camera(world, ego, "semantic_segmentation")))[..., 2]
    depth = metres(image(body(world, camera(world, ego, "depth"))))
    assert tags[22, 30] == sensors.CAR
    gap = world.transform(other).x - 2.4 - (world.transform(ego).x + 1.5)
    assert depth[22, 30] == pytest.approx(gap, abs=0.01)
    rgb = image(body(world, camera(world, ego, "rgb")))
    assert (rgb[..., 3] == 255).all()
    assert len(np.unique(rgb.reshape(-1, 4), axis=0)) > 5
    world.weather = (*world.weather[:5], -60.0, *world.weather[6:])
    assert image(body(world, camera(world, ego, "rgb"))).mean() < rgb.mean()


@given(
    st.tuples(*[st.floats(-6, 6)] * 3),
    st.tuples(*[st.floats(0.3, 3)] * 3),
    st.floats(-3, 3),
    st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1)),
)
def test_a_ray_meets_a_box_where_walking_along_it_does(
    middle: tuple[float, float, float],
    half: tuple[float, float, float],
    yaw: float,
    ray: tuple[float, float, float],
) -> None:
    if math.hypot(*ray) < 0.1:
        return
    box = sensors.Box(*middle, yaw, half, 14, (0, 0, 0))
    distance = float(sensors.strike(box, 0.0, 0.0, 0.0, np.array(ray, np.float32)[:, None])[0][0])

    def inside(t: float, more: float) -> bool:
        dx, dy, dz = (t * side - at for side, at in zip(ray, middle, strict=True))
        along, across = dx * math.cos(yaw) + dy * math.sin(yaw), dy * math.cos(yaw) - dx * math.sin(yaw)
        return abs(along) < half[0] + more and abs(across) < half[1] + more and abs(dz) < half[2] + more

    if inside(0, 0.01):
        return
    met = next((t for t in np.arange(0, 25, 0.02).tolist() if inside(t, -0.02)), None)
    if met is not None:
        assert distance <= met + 1e-3
    if math.isfinite(distance):
        assert inside(distance, 0.02)


def test_lidar_points_lie_on_the_ground_and_on_what_stands_there(world: World) -> None:
    ego = car(world, start(world))
    other = car(world, start(world, ahead=12))
    options = {"range": "40", "channels": "16", "points_per_second": "57600", "rotation_frequency": "20"}
    lidar = world.spawn("sensor.lidar.ray_cast", options, Transform(0, 0, 2.0), ego.id)
    world.tick(0.05)
    data = body(world, lidar)
    angle, channels = struct.unpack_from("<fI", data)
    counts = np.frombuffer(data, "<u4", channels, 8)
    points = np.frombuffer(data, "<f4", offset=8 + 4 * channels).reshape(-1, 4)
    assert (angle, channels) == (0, 16)
    assert counts.sum() == len(points)
    assert np.hypot(*points[:, :2].T).max() < 40.01
    ground = np.abs(points[:, 2] + 2.0) < 1e-3
    assert ground.sum() > 500
    up = points[~ground & (np.abs(points[:, 1]) < 1.0) & (points[:, 0] > 0) & (points[:, 0] < 13)]
    gap = world.transform(other).x - 2.4 - world.transform(ego).x
    assert len(up) > 5
    assert np.abs(up[:, 0] - gap).min() < 0.01
    assert (up[:, 0] > gap - 0.01).all()
    assert (points[:, 3] > 0.8).all()
    assert (points[:, 3] <= 1).all()


def test_small_sensors_tell_the_truth(world: World) -> None:
    ego = car(world, start(world), throttle=1)
    other = car(world, start(world, ahead=12))
    mounts = {
        kind: world.spawn(
            f"sensor.other.{kind}", {"distance": "15"} if kind == "obstacle" else {}, Transform(), ego.id
        )
        for kind in ("gnss", "imu", "obstacle")
    }
    run(world, 3)
    latitude, longitude, _ = msgpack.unpackb(body(world, mounts["gnss"]))
    place = world.roads.map.transform_to_geolocation(carla.Location(*world.transform(ego)[:3]))
    assert (latitude, longitude) == pytest.approx((place.latitude, place.longitude))
    (ahead, aside, up), gyro, compass = msgpack.unpackb(body(world, mounts["imu"]))
    assert 3 < ahead < 4.5
    assert (aside, up) == pytest.approx((0, 9.81))
    assert gyro == [0, 0, 0]
    assert compass == pytest.approx(math.pi / 2)
    own, seen, distance = msgpack.unpackb(body(world, mounts["obstacle"]))
    assert (own[0], seen[0]) == (ego.id, other.id)
    assert distance == pytest.approx(world.transform(other).x - 2.4 - world.transform(ego).x)
    world.destroy(other.id)
    world.tick(0.05)
    assert not list(sensors.sense(world, mounts["obstacle"], sensors.Sensor(), LAYOUT, 0.05, {}))


def test_a_sensor_with_a_period_waits_for_it(world: World) -> None:
    ego = car(world, start(world))
    gnss = world.spawn("sensor.other.gnss", {"sensor_tick": "0.2"}, Transform(), ego.id)
    state, frames = sensors.Sensor(), []
    for _ in range(20):
        world.tick(0.05)
        frames += [world.frame for _ in sensors.sense(world, gnss, state, LAYOUT, 0.05, {})]
    assert frames == [1, 5, 9, 13, 17]
    for options in (
        {"image_size_x": "0"},
        {"image_size_x": "1000000"},
        {"fov": "180"},
        {"fov": "nan"},
        {"fov": "x"},
    ):
        with pytest.raises(ValueError, match=r"camera|convert"):
            sensors.check(
                "sensor.camera.rgb", {"image_size_x": "8", "image_size_y": "8", "fov": "90"} | options
            )


# ---- messages


def pack(message: object) -> bytes:
    return msgpack.packb(message, use_bin_type=True)


def test_layouts_have_carlas_sizes() -> None:
    """Read from the debug information of the client's own library."""
    assert LAYOUT.row.itemsize == 119
    assert wire.VEHICLE.itemsize == wire.LIGHT.itemsize == 54
    sizes = [layout.size for layout in (LAYOUT.header, LAYOUT.episode, LAYOUT.image, LAYOUT.token)]
    assert sizes == [48, 36, 12, 24]


def test_requests_may_come_in_pieces() -> None:
    messages = [[0, i, "spawn_actor", [[False], "x" * i]] for i in (0, 1, 300)] + [[2, "tick_cue", [[False]]]]
    data = b"".join(pack(message) for message in messages)
    for size in (1, 7, len(data)):
        decoder, found = Decoder(), []
        for at in range(0, len(data), size):
            found += list(decoder.feed(data[at : at + size]))
        assert [list(request) for request in found] == [
            [*m[1:]] if m[0] == 0 else [None, *m[1:]] for m in messages
        ]


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"GET / HTTP/1.1\r\n\r\n",
        pack([1, 2, None, None]),
        pack([0, -1, "version", [[False]]]),
        pack([0, 2**33, "version", [[False]]]),
        pack([0, True, "version", [[False]]]),
        pack([0, 1, 5, [[False]]]),
        pack([0, 1, "x" * 200, [[False]]]),
        pack([0, 1, "version", {"a": 1}]),
        pack({1: 2}),
        pack(7),
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million
        b"\x91" * 2000,  # two thousand lists, each in another
        b"\xc7\x01\x05\x00" * 4,  # extensions
    ],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        list(Decoder().feed(data))


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=12,
)


@given(st.sampled_from(sorted(LAYOUT.methods)), st.lists(junk, max_size=6))
def test_arguments_are_checked_or_refused(method: str, arguments: list[object]) -> None:
    for given_arguments in (arguments, [[False], *arguments][: len(LAYOUT.methods[method].parameters) + 1]):
        with contextlib.suppress(WireError):
            LAYOUT.request(Request(1, method, list(given_arguments)))


def test_world_states_carry_what_the_world_holds(world: World) -> None:
    ego = car(world, start(world), throttle=0.5, steer=-0.25)
    run(world, 5)
    data = States(LAYOUT).encode(world, 3, 0.05, True)
    episode, _, step, *_, flags = LAYOUT.episode.unpack_from(data)
    assert (episode, flags) == (3, 1)
    assert step == pytest.approx(0.05)
    rows = np.frombuffer(data, LAYOUT.row, offset=36)
    assert rows["id"].tolist() == list(world.actors)
    np.testing.assert_allclose(rows["motion"], world.table, rtol=1e-6)
    state = np.frombuffer(rows["state"][ego.row].tobytes().ljust(54, b"\0"), wire.VEHICLE)[0]
    assert (state["throttle"], state["steer"], state["brake"]) == (0.5, -0.25, 0)
    assert state["limit"] == 30
    light = world.actors[world.light_actor(2)]
    state = np.frombuffer(rows["state"][light.row].tobytes().ljust(54, b"\0"), wire.LIGHT)[0]
    assert state["sign"].decode() == world.lights.specs[2].signal
    assert state["shown"] == world.lights.states[2]
    assert state["times"].tolist() == [10, 3, 2]


# ---- the server


class Standin:
    """A server in a process of its own."""

    def __init__(self, *options: str) -> None:
        fixed = ["--port", "0", "--streams", "1"]
        command = [sys.executable, "-m", "rlagents_envs.carla.standin", *fixed, *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "envs")}
        self.process = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        if not self.ready:
            raise RuntimeError(self.process.communicate()[1])
        self.port = int(self.ready.rsplit(":", 1)[1])

    def resident(self) -> float:
        """Returns the megabytes of memory in use."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> str:
        """Ends it; returns what it complained about."""
        self.process.terminate()
        _, errors = self.process.communicate(timeout=10)
        assert self.process.returncode == 0
        return errors


@pytest.fixture(scope="module")
def standin() -> Iterator[Standin]:
    server = Standin("--town", "grid-1", "--seed", "5")
    yield server
    server.stop()


class Caller:
    """The bare protocol, without the client."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.unpacker = msgpack.Unpacker(raw=False)
        self.count = 0

    def __call__(self, method: str, *arguments: object) -> Any:
        self.count += 1
        self.socket.sendall(pack([0, self.count, method, [[False], *arguments]]))
        return self.answer()

    def answer(self) -> Any:
        """Returns the error, or else the result, of the next reply."""
        while True:
            for _, _, error, result in self.unpacker:
                return error or result
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionError
            self.unpacker.feed(data)

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def test_the_server_answers_and_says_what_is_wrong(standin: Standin) -> None:
    assert "0.9.16: town grid-1 ready at 127.0.0.1:" in standin.ready
    with Caller(standin.port) as call:
        assert call("version") == [[1, "0.9.16"]]
        assert "could not find function 'fly' with argument count 2" in call("fly", 1)
        assert "argument count 2" in call("version", 1)[0][1][0]
        assert "argument 1 of destroy_actor" in call("destroy_actor", "me")[0][1][0]
        assert call("destroy_actor", 999) == [[0, ["unable to destroy actor: 999 not found"]]]
        assert call("set_actor_simulate_physics", 999, True) == [[True, ["actor 999 not found"]]]
        assert "argument 1 of apply_batch" in call("apply_batch", 99, False)
        assert "command must be" in call("apply_batch", [[[99, []]]], False)[0][0][1][0]
        assert "not part" in call("apply_batch", [[[11, [1, [0, 0, 0]]]]], False)[0][0][1][0]
        assert call("load_new_episode", "../../secret.xodr", True, 0)[0][0] is True
        assert call("load_new_episode", "Town01", True, 0)[0][0] is True
        assert call("copy_opendrive_to_file", "<OpenDRIVE/>", [])[0][0] is True
        assert call("version") == [[1, "0.9.16"]]


def test_an_asynchronous_world_moves_by_itself(standin: Standin) -> None:
    with socket.create_connection(("127.0.0.1", standin.port + 1), timeout=10) as stream:
        stream.sendall(struct.pack("<I", 1))
        frames = []
        with stream.makefile("rb") as source:
            for _ in range(4):
                (size,) = struct.unpack("<I", source.read(4))
                kind, frame, *_ = LAYOUT.header.unpack_from(source.read(size))
                assert kind == LAYOUT.observer
                frames.append(frame)
    assert frames == list(range(frames[0], frames[0] + 4))


def hostile(rng: random.Random) -> bytes:
    """Returns bytes that a broken or malicious client might send."""
    honest = [
        pack([0, 1, "version", [[False]]]),
        pack([0, 2, "apply_batch", [[False], [[[2, [30, [0.5, 0, 0, False, False, False, 0]]]]], True]]),
        pack([0, 3, "spawn_actor", [[False], [1, CAR, []], [[0, 0, 0], [0, 0, 0]]]]),
        pack([0, 4, "set_episode_settings", [[False], [True, False, [True, 0.05], *[0] * 8]]]),
        pack([0, 5, "get_sensor_token", [[False], 2]]),
        pack([0, 6, "load_new_episode", [[False], "grid-1", False, 0]]),
        pack([0, 7, "set_weather_parameters", [[False], [math.nan] * 14]]),
        struct.pack("<I", rng.choice([0, 1, 2, 7, 2**32 - 1])),
    ]
    kind = rng.random()
    if kind < 0.3:
        return rng.randbytes(rng.randrange(1, 200))
    data = bytearray(rng.choice(honest))
    if kind < 0.8:
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind < 0.9:
        del data[rng.randrange(len(data)) :]
    return bytes(data) * rng.choice([1, 1, 3])


def harass(standin: Standin, count: int) -> None:
    """Sends hostile messages to both ports; the server lives, does not grow, and serves the next client."""
    rng = random.Random(7)
    begun = 0.0
    for number in range(count):
        if number == count // 5:
            begun = standin.resident()
        port = standin.port + (number % 3 == 0)
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=10) as victim,
        ):
            for _ in range(rng.randrange(1, 3)):
                victim.sendall(hostile(rng))
            if number % 5 == 0:
                # Without reading what came: the server's next write fails.
                victim.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif number % 50 == 1:
                victim.shutdown(socket.SHUT_WR)
                while victim.recv(1 << 16):
                    pass
    with Caller(standin.port) as call:
        assert call("version") == [[1, "0.9.16"]]
        assert (
            call("set_episode_settings", [False, False, [False], *[True, 0.01, 10, 0, False, 0, 0, True]])[0][
                0
            ]
            == 1
        )
        assert call("get_actors_by_id", [1])[0][1][0][0] == 1
    assert standin.process.poll() is None
    assert standin.resident() - begun < 30


def test_hostile_messages_do_no_harm(standin: Standin) -> None:
    harass(standin, 600)


@pytest.mark.slow
def test_a_hundred_thousand_hostile_messages_do_no_harm(standin: Standin) -> None:
    harass(standin, 100_000)


def test_huge_messages_are_cut_off(standin: Standin) -> None:
    before = standin.resident()
    for head in (
        b"\xdb\x01\xff\xff\xff",
        b"\x94\x00\x01\xdb\x7f\xff\xff\xff",
        b"\x91" * 500 + b"\xdc\x10\x00",
    ):
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", standin.port), timeout=10) as victim,
        ):
            victim.sendall(head + b"x" * (48 << 20))
    with Caller(standin.port) as call:
        assert call("version") == [[1, "0.9.16"]]
    assert standin.resident() - before < 100


def test_it_stops_when_told_and_when_its_parent_dies() -> None:
    server = Standin("--town", "ring-1")
    with Caller(server.port) as call:
        assert call("version") == [[1, "0.9.16"]]
        assert server.stop() == ""
        with pytest.raises((ConnectionError, OSError)):
            call("version")
    script = """
        import os, subprocess, sys
        server = [sys.executable, "-m", "rlagents_envs.carla.standin", "--port", "0"]
        child = subprocess.Popen([*server, "--parent", str(os.getpid())], stdout=subprocess.PIPE)
        print(child.stdout.readline().decode().strip(), child.pid, flush=True)
        sys.stdin.read()
        os._exit(1)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "envs")},
    )
    assert parent.stdout is not None
    line = parent.stdout.readline().split()
    port = int(line[-2].rsplit(":", 1)[1])
    with Caller(port) as call:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
        # The connection ends when the server does.
        with pytest.raises((ConnectionError, OSError)):
            call.answer()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--town", "nowhere"], "town must be"),
        (["--version", "0.9.15"], "version must be one of 0.9.16"),
        (["--host", "256.0.0.1"], "could not start"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(options: list[str], words: str) -> None:
    with pytest.raises(RuntimeError, match=words) as failure:
        Standin(*options)
    assert len(str(failure.value).strip().splitlines()) == 1


def test_a_taken_port_is_an_error(roads: Roads) -> None:
    first = Server("grid-1")
    try:
        with pytest.raises(OSError, match="in use"):
            Server("grid-1", port=first.port)
        serving = threading.Thread(target=first.run)
        serving.start()
        with Caller(first.port) as call:
            assert call("version") == [[1, "0.9.16"]]
        first.stop()
        serving.join(10)
        assert not serving.is_alive()
    finally:
        first.close()


# ---- the real client


@pytest.fixture(scope="module")
def client(standin: Standin) -> carla.Client:
    client = carla.Client("127.0.0.1", standin.port, worker_threads=4)
    client.set_timeout(10.0)
    return client


@pytest.fixture
def town(client: carla.Client) -> Iterator[carla.World]:
    """A fresh, synchronous world."""
    town = client.load_world("grid-1")
    town.apply_settings(carla.WorldSettings(True, False, 0.05))
    town.tick()
    yield town
    town.apply_settings(carla.WorldSettings(False, False, 0.0))


def newest(arrived: "queue.Queue[Any]", frame: int) -> Any:
    while (data := arrived.get(timeout=10)).frame < frame:
        pass
    assert data.frame == frame
    return data


def put(town: carla.World, number: int = 0, kind: str = CAR) -> carla.Vehicle:
    spots = [s for s in town.get_map().get_spawn_points() if abs(s.rotation.yaw) < 0.1]
    return town.spawn_actor(town.get_blueprint_library().find(kind), spots[number])


@pytest.mark.carla
def test_client_versions_maps_settings_and_weather(client: carla.Client, town: carla.World) -> None:
    assert client.get_server_version() == client.get_client_version() == "0.9.16"
    assert {"/Game/Carla/Maps/grid-1", "/Game/Carla/Maps/ring-1"} < set(client.get_available_maps())
    ground = town.get_map()
    assert ground.name == "Carla/Maps/grid-1"
    assert ground.to_opendrive() == opendrive("grid-1")
    assert len(ground.get_spawn_points()) == len(cached_roads(opendrive("grid-1")).spawn_points())
    settings = town.get_settings()
    assert (settings.synchronous_mode, settings.fixed_delta_seconds) == (True, 0.05)
    settings.fixed_delta_seconds = 0.1
    town.apply_settings(settings)
    before = town.get_snapshot().timestamp.elapsed_seconds
    frame = town.tick()
    snapshot = town.get_snapshot()
    assert snapshot.frame == frame
    assert snapshot.timestamp.elapsed_seconds - before == pytest.approx(0.1)
    assert snapshot.timestamp.delta_seconds == pytest.approx(0.1)
    town.set_weather(carla.WeatherParameters.HardRainNoon)
    assert town.get_weather() == carla.WeatherParameters.HardRainNoon
    assert len(town.get_blueprint_library().filter("vehicle.*")) >= 5
    assert town.get_spectator().type_id == "spectator"
    town.debug.draw_point(carla.Location())
    assert town.get_environment_objects(carla.CityObjectLabel.Buildings) == []
    assert len(town.get_level_bbs(carla.CityObjectLabel.Car)) == 0
    client.set_files_base_folder("")


@pytest.mark.carla
def test_client_drives_teleports_and_reads_back(town: carla.World) -> None:
    ego = put(town)
    town.tick()
    assert ego.bounding_box.extent.x == pytest.approx(2.4)
    assert ego.attributes["role_name"] == "default"
    assert ego.get_speed_limit() == 30
    control = carla.VehicleControl(throttle=0.75, steer=0.125)
    ego.apply_control(control)
    for _ in range(20):
        town.tick()
    assert ego.get_control().throttle == 0.75
    assert ego.get_control().steer == 0.125
    assert 2 < ego.get_velocity().length() < 4.5
    assert ego.get_acceleration().length() > 1
    assert ego.get_angular_velocity().z > 0
    ego.apply_control(carla.VehicleControl(manual_gear_shift=True, gear=1))
    town.tick()
    assert (ego.get_control().manual_gear_shift, ego.get_control().gear) == (True, 1)
    target = town.get_map().get_spawn_points()[7]
    ego.set_transform(target)
    ego.set_target_velocity(carla.Vector3D(0, 0, 0))
    ego.set_target_angular_velocity(carla.Vector3D(0, 0, 0))
    ego.apply_control(carla.VehicleControl(hand_brake=True))
    town.tick()
    assert ego.get_location().distance(carla.Location(target.location.x, target.location.y, 0)) < 0.01
    assert ego.get_velocity().length() == 0
    ego.set_location(carla.Location(1, 2, 0))
    town.tick()
    assert (ego.get_location().x, ego.get_location().y) == (1, 2)
    ego.enable_constant_velocity(carla.Vector3D(4, 0, 0))
    town.tick()
    assert ego.get_velocity().length() == pytest.approx(4)
    ego.disable_constant_velocity()
    ego.add_impulse(carla.Vector3D(0, 1845, 0))
    ego.set_simulate_physics(False)
    town.tick()
    assert ego.get_velocity().length() == 0
    ego.set_simulate_physics(True)
    ego.set_enable_gravity(True)
    ego.set_collisions(True)
    physics = ego.get_physics_control()
    assert physics.mass == 1845
    assert [wheel.max_steer_angle for wheel in physics.wheels] == [70] * 4
    lights = carla.VehicleLightState(carla.VehicleLightState.Position | carla.VehicleLightState.LowBeam)
    ego.set_light_state(lights)
    town.tick()
    assert town.get_vehicles_light_states()[ego.id] == lights
    assert [actor.id for actor in town.get_actors([ego.id])] == [ego.id]
    assert ego.destroy()
    town.tick()
    assert town.get_snapshot().find(ego.id) is None
    assert not town.get_actors().filter("vehicle.*")


@pytest.mark.carla
def test_client_batches(client: carla.Client, town: carla.World) -> None:
    command, library = carla.command, town.get_blueprint_library()
    spots = town.get_map().get_spawn_points()
    blueprint = library.find(CAR)
    control = command.ApplyVehicleControl(command.FutureActor, carla.VehicleControl(throttle=0.5))
    spawn = [command.SpawnActor(blueprint, spot).then(control) for spot in (*spots[:9:3], spots[0])]
    answers = client.apply_batch_sync(spawn, True)
    assert [bool(answer.error) for answer in answers] == [False, False, False, True]
    assert "collision" in answers[3].error
    ids = [answer.actor_id for answer in answers[:3]]
    snapshot = town.get_snapshot()
    assert all(snapshot.find(number) is not None for number in ids)
    assert [town.get_actor(number).get_control().throttle for number in ids] == [0.5] * 3
    first = ids[0]
    client.apply_batch(
        [
            command.ApplyTransform(first, spots[40]),
            command.ApplyTargetVelocity(first, carla.Vector3D(0, 0, 0)),
            command.ApplyTargetAngularVelocity(first, carla.Vector3D(0, 0, 0)),
            command.ApplyVehicleControl(first, carla.VehicleControl(brake=1)),
            command.SetSimulatePhysics(first, True),
            command.SetEnableGravity(first, True),
            command.SetVehicleLightState(first, carla.VehicleLightState.Brake),
            command.ApplyImpulse(ids[1], carla.Vector3D(0, 0, 0)),
        ]
    )
    more = client.apply_batch_sync(
        [
            command.ApplyForce(first, carla.Vector3D(1, 0, 0)),
            command.ApplyVehicleControl(first, carla.VehicleControl(steer=math.nan)),  # costs no other one
            command.DestroyActor(ids[2]),
            command.DestroyActor(ids[2]),
        ],
        True,
    )
    assert [bool(answer.error) for answer in more] == [True, True, False, True]
    town.tick()
    actor = town.get_actor(first)
    assert actor.get_location().distance(carla.Location(spots[40].location.x, spots[40].location.y, 0)) < 0.01
    assert town.get_snapshot().find(ids[2]) is None


@pytest.mark.carla
def test_client_sensors_are_aligned_and_true(town: carla.World) -> None:
    ego, library = put(town), town.get_blueprint_library()
    ahead = ego.get_transform() if ego.get_location().x else None
    assert ahead is None or ahead
    kinds = {
        "camera.semantic_segmentation": {"image_size_x": "84", "image_size_y": "84"},
        "camera.depth": {"image_size_x": "64", "image_size_y": "32"},
        "camera.rgb": {"image_size_x": "32", "image_size_y": "64"},
        "lidar.ray_cast": {"range": "30", "channels": "8"},
        "other.gnss": {},
        "other.imu": {},
        "other.obstacle": {"distance": "30", "only_dynamics": "True"},
    }
    arrived: dict[str, queue.Queue[Any]] = {}
    attached = []
    for kind, options in kinds.items():
        blueprint = library.find(f"sensor.{kind}")
        for name, value in options.items():
            blueprint.set_attribute(name, value)
        mount = carla.Transform(carla.Location(x=1.5, z=2.4))
        sensor = town.spawn_actor(blueprint, mount, attach_to=ego)
        arrived[kind] = queue.Queue()
        sensor.listen(arrived[kind].put)
        attached.append(sensor)
    spots = [s for s in town.get_map().get_spawn_points() if abs(s.rotation.yaw) < 0.1]
    other = town.spawn_actor(library.find(CAR), spots[1])
    ego.apply_control(carla.VehicleControl(throttle=0.5))
    for _ in range(5):
        frame = town.tick()
        data = {kind: newest(found, frame) for kind, found in arrived.items()}
        for kind, item in data.items():
            if kind != "other.obstacle":
                assert item.transform.location.x == pytest.approx(ego.get_location().x + 1.5, abs=1e-3)
    image = data["camera.semantic_segmentation"]
    tags = np.frombuffer(image.raw_data, np.uint8).reshape(image.height, image.width, 4)[..., 2]
    assert {1, 11, 14, 24} < set(tags.ravel().tolist())
    assert (data["camera.depth"].width, data["camera.depth"].height) == (64, 32)
    assert (data["camera.rgb"].width, data["camera.rgb"].height) == (32, 64)
    lidar = data["lidar.ray_cast"]
    points = np.frombuffer(lidar.raw_data, np.float32).reshape(-1, 4)
    assert len(lidar) == len(points) == sum(lidar.get_point_count(i) for i in range(lidar.channels))
    assert len(points) > 50
    place = town.get_map().transform_to_geolocation(ego.get_location())
    assert data["other.gnss"].latitude == pytest.approx(place.latitude, abs=1e-4)
    assert data["other.imu"].accelerometer.z == pytest.approx(9.81)
    assert data["other.imu"].compass == pytest.approx(math.pi / 2, abs=0.01)
    assert data["other.obstacle"].other_actor.id == other.id
    assert data["other.obstacle"].actor.id == ego.id
    gap = other.get_location().x - ego.get_location().x - 2.4 - 1.5
    assert data["other.obstacle"].distance == pytest.approx(gap, abs=0.01)
    for sensor in attached:
        assert sensor.is_listening
        sensor.stop()
        assert sensor.destroy()
    town.tick()


@pytest.mark.carla
def test_client_hears_of_collisions_and_crossed_lines(town: carla.World) -> None:
    ego, library = put(town), town.get_blueprint_library()
    spots = [s for s in town.get_map().get_spawn_points() if abs(s.rotation.yaw) < 0.1]
    other = town.spawn_actor(library.find(CAR), spots[1])
    hits: queue.Queue[Any] = queue.Queue()
    lines: queue.Queue[Any] = queue.Queue()
    kept = []
    for kind, found in (("collision", hits), ("lane_invasion", lines)):
        blueprint = library.find(f"sensor.other.{kind}")
        kept.append(town.spawn_actor(blueprint, carla.Transform(), attach_to=ego))
        kept[-1].listen(found.put)
    town.tick()
    ego.set_target_velocity(carla.Vector3D(8, 0, 0))
    for _ in range(40):
        frame = town.tick()
        if town.get_snapshot().find(other.id).get_velocity().length() > 1:
            break
    event = hits.get(timeout=10)
    assert event.frame == frame
    assert (event.actor.id, event.other_actor.id) == (ego.id, other.id)
    assert event.normal_impulse.x < -1000
    other.destroy()
    ego.set_transform(spots[0])
    ego.set_target_velocity(carla.Vector3D(5, -4, 0))
    for _ in range(30):
        town.tick()
        ego.set_target_velocity(carla.Vector3D(5, -4, 0))
    crossed = lines.get(timeout=10)
    assert crossed.frame > frame
    assert crossed.crossed_lane_markings


@pytest.mark.carla
def test_client_reads_and_sets_lights(town: carla.World) -> None:
    states = carla.TrafficLightState
    lights = town.get_actors().filter("traffic.traffic_light")
    roads = cached_roads(opendrive("grid-1"))
    assert len(lights) == len(roads.lights)
    light = lights[0]
    spec = next(s for s in roads.lights if s.signal == light.get_opendrive_id())
    assert (light.get_green_time(), light.get_yellow_time(), light.get_red_time()) == (10, 3, 2)
    group = light.get_group_traffic_lights()
    assert {g.get_opendrive_id() for g in group} == {
        s.signal for s in roads.lights if s.junction == spec.junction
    }
    stops = light.get_stop_waypoints()
    assert stops
    assert all(
        math.dist((s.x, s.y), (w.transform.location.x, w.transform.location.y)) < 7
        for s in spec.stops
        for w in stops
    )
    assert light.get_affected_lane_waypoints()
    assert light.get_light_boxes()
    light.set_state(states.Green)
    light.freeze(True)
    for _ in range(5):
        town.tick()
    assert (light.get_state(), light.is_frozen()) == (states.Green, True)
    light.freeze(False)
    light.set_green_time(1.0)
    light.set_yellow_time(0.5)
    light.set_red_time(0.25)
    town.tick()
    assert (light.get_green_time(), light.get_yellow_time(), light.get_red_time()) == (1.0, 0.5, 0.25)
    light.reset_group()
    town.freeze_all_traffic_lights(True)
    town.tick()
    assert light.is_frozen()
    town.freeze_all_traffic_lights(False)
    town.reset_all_traffic_lights()
    stop = spec.stops[0]
    back = carla.Location(
        stop.x - 5 * math.cos(math.radians(stop.yaw)), stop.y - 5 * math.sin(math.radians(stop.yaw)), 0.3
    )
    ego = town.spawn_actor(
        town.get_blueprint_library().find(CAR), carla.Transform(back, carla.Rotation(0, stop.yaw, 0))
    )
    town.tick()
    town.tick()
    assert ego.is_at_traffic_light()
    assert ego.get_traffic_light().id == light.id
    assert ego.get_traffic_light_state() == light.get_state()
    landmark = town.get_map().get_all_landmarks_of_type("1000001")[0]
    assert town.get_traffic_light(landmark) is not None


@pytest.mark.carla
def test_client_walkers(town: carla.World) -> None:
    library = town.get_blueprint_library()
    corner = town.get_map().get_crosswalks()[0]
    walker = town.spawn_actor(library.find("walker.pedestrian.0001"), carla.Transform(corner))
    walker.apply_control(carla.WalkerControl(carla.Vector3D(0, 1, 0), 1.5, False))
    for _ in range(20):
        town.tick()
    assert walker.get_velocity().y == pytest.approx(1.5)
    assert walker.get_location().y == pytest.approx(corner.y + 1.5, abs=0.15)
    walker.apply_control(carla.WalkerControl(carla.Vector3D(0, 1, 0), 0.0, False))
    controller = town.spawn_actor(library.find("controller.ai.walker"), carla.Transform(), attach_to=walker)
    town.tick()
    controller.start()
    places = set()
    for _ in range(1200):
        town.tick()
        places.add(round(walker.get_location().x) * 1000 + round(walker.get_location().y))
    assert len(places) > 5
    assert controller.destroy()
    assert walker.destroy()


@pytest.mark.carla
def test_client_loads_worlds(client: carla.Client, town: carla.World) -> None:
    put(town)
    town.tick()
    before = town.id
    reloaded = client.reload_world(False)
    assert reloaded.id != before
    assert reloaded.get_settings().synchronous_mode
    reloaded.tick()
    assert not reloaded.get_actors().filter("vehicle.*")
    ring = client.load_world("ring-3", False)
    assert ring.get_map().to_opendrive() == opendrive("ring-3")
    own = client.generate_opendrive_world(opendrive("curves-2"), carla.OpendriveGenerationParameters(), False)
    assert own.get_map().name.endswith("OpenDriveMap")
    assert own.get_map().to_opendrive() == opendrive("curves-2")
    put(own)
    own.tick()
    assert len(own.get_actors().filter("vehicle.*")) == 1
    with pytest.raises(RuntimeError, match="parsed"):
        client.generate_opendrive_world("<OpenDRIVE><road/></OpenDRIVE>")
    with pytest.raises(RuntimeError):
        client.load_world("Town99")
    for number in range(10):
        again = client.load_world(f"grid-{1 + number % 2}", False)
        assert again.get_map().name.endswith(f"grid-{1 + number % 2}")
        assert again.get_snapshot().find(again.get_spectator().id) is not None


@pytest.mark.carla
def test_a_second_client_finds_the_first_ones_world(standin: Standin, town: carla.World) -> None:
    ego = put(town)
    town.tick()
    second = carla.Client("127.0.0.1", standin.port)
    second.set_timeout(10.0)
    world = second.get_world()
    assert world.id == town.id
    assert [actor.id for actor in world.get_actors().filter("vehicle.*")] == [ego.id]


TRAFFIC = """
    import hashlib, json, os, socket, struct, sys
    import carla
    client = carla.Client("127.0.0.1", int(sys.argv[1]))
    client.set_timeout(20.0)
    world, ticks = client.get_world(), int(sys.argv[2])
    world.apply_settings(carla.WorldSettings(True, False, 0.05))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    manager = client.get_trafficmanager(port)
    manager.set_synchronous_mode(True)
    manager.set_random_device_seed(3)
    command, town = carla.command, world.get_map()
    blueprint = world.get_blueprint_library().find("vehicle.tesla.model3")
    spots = town.get_spawn_points()
    drive = command.SetAutopilot(command.FutureActor, True, port)
    batch = [command.SpawnActor(blueprint, spot).then(drive) for spot in spots[:: len(spots) // 20][:20]]
    cars = [answer.actor_id for answer in client.apply_batch_sync(batch, False) if not answer.error]
    digest, aside, travelled, ran = hashlib.sha256(), 0.0, 0.0, 0
    lights = world.get_actors().filter("traffic.traffic_light")
    for tick in range(ticks):
        world.tick()
        snapshot = world.get_snapshot()
        for actor in snapshot:
            place, speed = actor.get_transform(), actor.get_velocity()
            numbers = (place.location.x, place.location.y, place.rotation.yaw, speed.x, speed.y)
            digest.update(struct.pack("<I5d", actor.id, *numbers))
        digest.update(bytes(int(light.get_state()) for light in lights))
        if tick % 20 == 0:
            for number in cars:
                seen = snapshot.find(number)
                if seen is not None:
                    place = seen.get_transform().location
                    aside = max(aside, place.distance(town.get_waypoint(place).transform.location))
                    travelled += seen.get_velocity().length()
    alive = sum(snapshot.find(number) is not None for number in cars)
    print(json.dumps([digest.hexdigest(), len(cars), alive, aside, travelled]))
    sys.stdout.flush()
    os._exit(0)
"""


def traffic(ticks: int) -> list[Any]:
    """Lets the client's own Traffic Manager drive twenty cars, in a network of its own where it may."""
    alone = ["unshare", "--user", "--net", "--map-root-user"]
    shell = 'ip link set lo up 2>/dev/null; exec "$@"'
    try:
        allowed = (
            subprocess.run(
                [*alone, "sh", "-c", "ip link set lo up"], capture_output=True, check=False
            ).returncode
            == 0
        )
    except OSError:
        allowed = False
    runner = textwrap.dedent(
        f"""
        import subprocess, sys, os
        server = subprocess.Popen(
            [sys.executable, "-m", "rlagents_envs.carla.standin", "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        port = server.stdout.readline().rsplit(":", 1)[1].strip()
        try:
            script = {textwrap.dedent(TRAFFIC)!r}
            subprocess.run([sys.executable, "-c", script, port, "{ticks}"], check=True, timeout=500)
        finally:
            server.terminate()
            server.wait(10)
        """
    )
    command = [sys.executable, "-c", runner]
    done = subprocess.run(
        [*alone, "sh", "-c", shell, "sh", *command] if allowed else command,
        capture_output=True,
        text=True,
        check=False,
        timeout=520,
        env=os.environ | {"PYTHONPATH": str(ROOT / "envs")},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.carla
def test_the_clients_own_traffic_manager_drives_and_repeats_itself() -> None:
    first = traffic(1000)
    _, cars, alive, aside, metres = first
    assert cars == alive == 20
    assert aside < 1.75
    assert metres > 20 * 50 * 2
    assert first == traffic(1000) == traffic(1000)

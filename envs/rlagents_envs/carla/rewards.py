"""What a moment of driving is worth: three rewards, each a function from a moment to its named terms.

The one idea: everything that is judged, by rewards, ends, metrics and scripted drivers alike, stands in one
`Moment` in metres, seconds and radians. A reward is the sum of its terms, so that a picture can show them.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

FAILURES = (
    "collision_walker",
    "collision_vehicle",
    "collision_static",
    "red_light",
    "off_road",
    "off_route",
    "wrong_way",
    "blocked",
)
SUCCESS, TIMEOUT = "success", "timeout"
_CREEPING = 1.0  # m/s too fast, where one must stand, that are as wrong as can be
_END = 10.0  # what the end of a route pays, and a mistake costs: as much as ten perfect steps
BRAKING = 3.0  # m/s^2 with which one comfortably stops for something ahead


class Moment(NamedTuple):
    """What is known after a decision has been carried out."""

    time: float  # s since the episode began
    seconds: float  # since the decision before
    x: float
    y: float
    yaw: float
    speed: float  # m/s
    forward: float  # m/s along the car
    yaw_rate: float  # rad/s, to the right
    limit: float  # m/s that may be driven here
    throttle: float
    steer: float  # to the right
    brake: float
    steer_before: float
    lateral: float  # m to the right of the route
    heading: float  # rad, of the car minus the route
    width: float  # m of the lane
    progress: float  # m along the route since the decision before
    driven: float  # m along the route
    length: float  # m of the route
    gap: float  # m from the front bumper to what stands or drives ahead on the route; inf: nothing in 40 m
    closing: float  # m/s at which that gap shrinks
    light: str  # of the next stop line within 40 m: "", "red", "yellow" or "green"
    light_distance: float  # m from the front bumper to that line, negative past it; inf without one
    reason: str = ""  # why the episode ended: one of FAILURES, SUCCESS, TIMEOUT, or nothing
    pace: float = math.inf  # m/s that the bends of the route allow here

    @property
    def failed(self) -> bool:
        """Whether the episode ended by a mistake."""
        return self.reason in FAILURES


def ways_to_stop(moment: Moment) -> tuple[float, float]:
    """Returns the metres in which one must stop for the light and for what is ahead; inf without it.

    To 1 m before a red or yellow stop line; to 3 m before what is ahead plus its own way to brake. Not
    above 0 where it is too late.
    """
    light = moment.light_distance - 1.0 if moment.light in ("red", "yellow") else math.inf
    if moment.gap == math.inf:
        return light, math.inf
    leader = max(0.0, moment.speed - moment.closing)
    return light, moment.gap - 3.0 + leader**2 / (2 * BRAKING)


def target_speed(moment: Moment) -> float:
    """Returns the speed (m/s) at which one still comfortably stops for what is ahead, at most the limit.

    sqrt(2 a d), with a = 3 m/s^2 and d of `ways_to_stop`; and no faster than the bends of the route allow.
    """
    way = max(0.0, min(ways_to_stop(moment)))
    return min(moment.limit, moment.pace, math.sqrt(2 * BRAKING * way))


def shaped(moment: Moment) -> dict[str, float]:
    """Returns dense terms; their sum is cut to -1 .. 1 by a last one, and an end pays +10 or -10 alone.

        0.5 (1 - |v - v*| / s) + 0.5 min(progress / dt, v*) / v* - 0.25 |lateral| / 2 m - 0.25 |heading|
        - 0.02 |change of steering|

    v* is `target_speed`; s is the limit, or max(v*, 1 m/s) where v is above v*: to creep up to where one must
    stand costs as much as to race. Below 1 m/s of v*, what is missing of it counts as driven: to stand where
    one must pays as much as to drive where one may. After Toromanoff et al. 2020 and Zhang et al. 2021
    (Roach). Departures: progress is added, none of it for what is driven too fast; to stand where one could
    drive earns nothing for the speed; ends weigh as much as ten steps, so that no mistake is worth a try and
    the end of the route is not put off.
    """
    if moment.failed:
        return {"end": -_END}
    if moment.reason == SUCCESS:
        return {"end": _END}
    limit = max(moment.limit, 1.0)
    wanted = target_speed(moment)
    scale = limit if moment.speed <= wanted else max(wanted, _CREEPING)
    match = 1 - min(1.0, abs(moment.speed - wanted) / scale)
    terms = {
        "speed": 0.5 * match,
        "progress": 0.5
        * (min(moment.progress / moment.seconds, wanted) + max(0.0, 1.0 - wanted))
        / max(wanted, 1.0),
        "lane": -0.125 * abs(moment.lateral),
        "heading": -0.25 * abs(moment.heading),
        "steering": -0.02 * abs(moment.steer - moment.steer_before),
    }
    if moment.speed < 0.5 and wanted > 1.0:
        terms["speed"] = 0.0
    total = sum(terms.values())
    terms["cut"] = min(1.0, max(-1.0, total)) - total
    return terms


def simple(moment: Moment) -> dict[str, float]:
    """Returns the part of the route driven, in percent, times soft factors; -1 for a mistake at its end.

    Jaeger et al. 2025 (CaRL). Factors: speeding, linear from 1 to 0 over 2.23 m/s; 0.5 where more than 0.5 m
    off the lane's centre (there after 3 s), 0 outside the lane.
    """
    percent = 100 * moment.progress / max(moment.length, 1.0)
    speeding = 1 - min(1.0, max(0.0, moment.speed - moment.limit) / 2.23)
    aside = abs(moment.lateral)
    lane = 0.0 if aside > moment.width / 2 else 0.5 if aside > 0.5 else 1.0
    terms = {"progress": percent * speeding * lane}
    if moment.failed:
        terms["end"] = -1.0
    return terms


def gym_carla(moment: Moment) -> dict[str, float]:
    """Returns the terms of gym-carla (Chen 2020): made for 8 m/s.

    200 r_collision + v_lon + 10 r_fast + r_out - 5 steer^2 - 0.2 |steer| v_lon^2 - 0.1, where the r are -1 or
    0; fast is above 8 m/s, out is more than 2 m off the lane's centre.
    """
    return {
        "collision": -200.0 * moment.reason.startswith("collision"),
        "speed": moment.forward,
        "fast": -10.0 * (moment.forward > 8),
        "out": -1.0 * (abs(moment.lateral) > 2),
        "steering": -5 * moment.steer**2,
        "swerving": -0.2 * abs(moment.steer) * moment.forward**2,
        "time": -0.1,
    }


REWARDS: dict[str, Callable[[Moment], dict[str, float]]] = {
    "shaped": shaped,
    "simple": simple,
    "gym-carla": gym_carla,
}

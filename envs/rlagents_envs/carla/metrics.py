"""How well an episode was driven, in the terms of the field.

Success, route completion and driving score as in the CARLA Leaderboard 2.0 and 2.1, infractions, and comfort
within nuPlan's bounds. What a score knows of here: collisions, red lights and metres outside the lane; stop
signs, scenarios and the least speed of the leaderboard are not part of these tasks.
"""

import math
from collections.abc import Iterable, Mapping

from rlagents_envs.carla.rewards import FAILURES, SUCCESS, TIMEOUT, Moment

INFRACTIONS = (*FAILURES, TIMEOUT)
FACTORS = {  # Leaderboard 2.0: each infraction multiplies the score
    "collision_walker": 0.50,
    "collision_vehicle": 0.60,
    "collision_static": 0.65,
    "red_light": 0.70,
}
WEIGHTS = {  # Leaderboard 2.1: the score is divided by 1 + their sum
    "collision_walker": 1.0,
    "collision_vehicle": 0.70,
    "collision_static": 0.60,
    "red_light": 0.40,
}


def driving_score(completion: float, counts: Mapping[str, int], outside: float, version: str) -> float:
    """Returns a driving score in percent.

    Args:
        completion: of the route, in percent.
        counts: how often each infraction happened.
        outside: share of the driven metres outside the lane, 0 to 1.
        version: "2.0", completion * product of factors * (1 - outside), or "2.1",
            completion / (1 + sum of weights) * (1 - outside).
    """
    if version == "2.0":
        return completion * math.prod(FACTORS.get(k, 1.0) ** n for k, n in counts.items()) * (1 - outside)
    return completion / (1 + sum(WEIGHTS.get(k, 0.0) * n for k, n in counts.items())) * (1 - outside)


class Record:
    """What is counted in the course of one episode."""

    def __init__(self) -> None:
        self._seconds = self._metres = self._outside = self._aside = 0.0
        self._decisions = self._comfortable = 0
        self._before: tuple[float, float, float, float] | None = None  # speed, accelerations, yaw rate
        self._last: Moment | None = None

    def add(self, moment: Moment) -> None:
        """Takes note of one decision."""
        metres = moment.speed * moment.seconds
        self._seconds += moment.seconds
        self._metres += metres
        self._aside += abs(moment.lateral)
        self._outside += metres * (abs(moment.lateral) > moment.width / 2)
        self._decisions += 1
        self._comfortable += self._comfort(moment)
        self._last = moment

    def _comfort(self, moment: Moment) -> bool:
        """Whether a decision keeps to nuPlan's bounds, by finite differences between decisions."""
        seconds = moment.seconds
        sideways = moment.speed * moment.yaw_rate
        if self._before is None:
            self._before = (moment.speed, 0.0, sideways, moment.yaw_rate)
            return True
        speed, along, before, yaw_rate = self._before
        acceleration = (moment.speed - speed) / seconds
        jerk, side_jerk = (acceleration - along) / seconds, (sideways - before) / seconds
        yaw_acceleration = (moment.yaw_rate - yaw_rate) / seconds
        self._before = (moment.speed, acceleration, sideways, moment.yaw_rate)
        return (
            abs(jerk) < 4.13
            and math.hypot(jerk, side_jerk) < 8.37
            and -4.05 < acceleration < 2.40
            and abs(sideways) < 4.89
            and abs(moment.yaw_rate) < 0.95
            and abs(yaw_acceleration) < 1.93
        )

    def metrics(self) -> dict[str, float]:
        """Returns the episode's numbers; percentages run to 100, infractions are counts."""
        last = self._last
        if last is None:
            raise ValueError("metrics need an episode of at least one decision, got none")
        reason = last.reason
        completion = 100.0 if reason == SUCCESS else 100 * min(1.0, last.driven / max(last.length, 1e-9))
        counts = {name: int(name == reason) for name in INFRACTIONS}
        outside = self._outside / self._metres if self._metres else 0.0
        return {
            "success": 100.0 * (reason == SUCCESS),
            "route_completion": completion,
            "driving_score_2.0": driving_score(completion, counts, outside, "2.0"),
            "driving_score_2.1": driving_score(completion, counts, outside, "2.1"),
            **{name: float(count) for name, count in counts.items()},
            "outside_lane": 100 * outside,
            "kilometres": self._metres / 1000,
            "seconds": self._seconds,
            "mean_speed": self._metres / self._seconds if self._seconds else 0.0,  # m/s
            "lane_error": self._aside / self._decisions,  # m
            "comfort": 100 * self._comfortable / self._decisions,
        }


def summary(episodes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Returns the means over episodes, and each infraction per kilometre of all driven kilometres.

    Raises:
        ValueError: there are no episodes.
    """
    episodes = list(episodes)
    if not episodes:
        raise ValueError("a summary needs at least one episode, got none")
    kilometres = sum(episode["kilometres"] for episode in episodes)
    means = {
        name: sum(episode[name] for episode in episodes) / len(episodes)
        for name in episodes[0]
        if name not in (*INFRACTIONS, "kilometres", "mean_speed")
    }
    seconds = sum(episode["seconds"] for episode in episodes)
    rates = {
        f"{name}_per_km": sum(episode[name] for episode in episodes) / max(kilometres, 1e-9)
        for name in INFRACTIONS
    }
    return {
        "episodes": float(len(episodes)),
        **means,
        "mean_speed": 1000 * kilometres / max(seconds, 1e-9),
        **rates,
        "kilometres": kilometres,
    }

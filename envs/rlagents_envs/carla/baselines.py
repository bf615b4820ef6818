"""Scripted drivers to compare with: random, cruise, and one that keeps to the rules.

They choose among the same actions as the agent, and know what the state vector tells: the route ahead, the
light, the gap.
"""

import math
from collections.abc import Callable, Sequence

from rlagents_envs.carla.planner import STEP, Floats
from rlagents_envs.carla.rewards import Moment, target_speed

_GAIN = 1.2  # of steering, per radian between the car's heading and the point it aims at
_DAMPING = 0.15  # of steering, per rad/s that the car turns already

Table = Sequence[tuple[float, float, float]]


def steer(moment: Moment, ahead: Floats) -> float:
    """Returns steering (to the right) towards a point of the route half a second and 4 m away.

    A proportional and derivative controller of the angle to that point.

    Args:
        moment: where the car is.
        ahead: the route from there on, [P, 2].
    """
    x, y = ahead[min(len(ahead) - 1, round((4.0 + 0.5 * moment.speed) / STEP))]
    angle = math.atan2(y - moment.y, x - moment.x) - moment.yaw
    angle = (angle + math.pi) % (2 * math.pi) - math.pi
    return min(1.0, max(-1.0, _GAIN * angle - _DAMPING * moment.yaw_rate))


def nearest(table: Table, wanted: float, speed: float, target: float) -> int:
    """Returns the action that steers most as wanted and brings the speed towards a target (both m/s)."""
    low = [brake for _, _, brake in table]
    if speed > target + 0.5 or target < 0.1:
        pedal = max(((t, b) for t, _, b in table), key=lambda pair: pair[1] - pair[0])
    else:
        gas = sorted({t for t, _, b in table if not b})
        strong = speed < target - 2
        soft = gas[1] if gas[0] == 0 and len(gas) > 2 else gas[0] if gas[0] > 0 or speed > target else gas[-1]
        pedal = (gas[-1] if strong else soft, min(low))
    choices = [i for i, (t, _, b) in enumerate(table) if (t, b) == pedal]
    return min(choices, key=lambda i: abs(table[i][1] - wanted))


def cruise(table: Table, moment: Moment, ahead: Floats) -> int:
    """Follows the route at its speed, blind to lights and to everybody else."""
    return nearest(table, steer(moment, ahead), moment.speed, min(moment.limit, moment.pace))


def rules(table: Table, moment: Moment, ahead: Floats) -> int:
    """Follows the route, stops for lights and for what is ahead, and brakes hard where it gets close."""
    target = target_speed(moment)
    if moment.gap < 4.0 + max(0.0, moment.closing) ** 2 / 8:
        target = 0.0
    return nearest(table, steer(moment, ahead), moment.speed, target)


DRIVERS: dict[str, Callable[[Table, Moment, Floats], int]] = {"cruise": cruise, "rules": rules}

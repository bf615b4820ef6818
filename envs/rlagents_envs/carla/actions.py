"""The tables of discrete actions: every pair of a pedal position and a steering angle."""

STEERS = {  # to the right, of -1 .. 1
    "27": (-0.7, -0.35, -0.15, -0.05, 0.0, 0.05, 0.15, 0.35, 0.7),
    "21": (-0.8, -0.5, -0.2, 0.0, 0.2, 0.5, 0.8),
    "9": (-0.2, 0.0, 0.2),
}
PEDALS = {  # throttle and brake
    "27": ((0.0, 1.0), (0.3, 0.0), (0.7, 0.0)),
    "21": ((0.0, 1.0), (0.25, 0.0), (0.75, 0.0)),
    "9": ((0.0, 0.375), (0.0, 0.0), (1.0, 0.0)),  # accelerations of -3, 0 and 3, divided by -8 and 3
}


def table(name: str) -> list[tuple[float, float, float]]:
    """Returns throttle, steer and brake of every action of a table."""
    return [(throttle, steer, brake) for throttle, brake in PEDALS[name] for steer in STEERS[name]]


def names(name: str) -> tuple[str, ...]:
    """Returns a few words for every action of a table."""

    def pedal(throttle: float, brake: float) -> str:
        return f"gas {throttle:g}" if throttle else f"brake {brake:g}" if brake else "coast"

    def wheel(steer: float) -> str:
        return f" {'left' if steer < 0 else 'right'} {abs(steer):g}" if steer else ""

    return tuple(pedal(throttle, brake) + wheel(steer) for throttle, steer, brake in table(name))

"""`python -m rlagents_envs.carla check [host:port]`: is there a server, and does it drive?

`drive` lets a scripted driver drive episodes and prints how it did.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rlagents_envs.carla.connection import ServerError
from rlagents_envs.config import Carla

_METRES = 10.0
_DECISIONS = 200


def check(server: str, launch: str, town: str, picture: Path | None) -> None:
    """Connects, drives ten metres, and prints what it found.

    Raises:
        ServerError: what is wrong, in one line.
        ValueError: there is no carla package, or an address is none.
    """
    from rlagents_envs.carla.env import CarlaEnv

    begun = time.perf_counter()
    config = Carla(count=1, server=server, launch=launch, towns=(town,) if town else ())
    env = CarlaEnv(config, render_mode="rgb_array")
    try:
        env.reset(seed=0)
        link = env.connection
        what = "connected to" if server else "started"
        _say("server", f"{what} {link.host}:{link.port} in {time.perf_counter() - begun:.1f} s")
        _say("versions", f"client {link.versions['client']}, server {link.versions['server']}")
        _say(
            "map",
            f"{link.world.get_map().name}: {len(link.lanes.lanes)} lanes, {len(link.roads.lights)} lights",
        )
        begun, ticks = time.perf_counter(), 0
        for _ in range(_DECISIONS):
            # Lights are nothing to this test, nor is the end of the road.
            _, _, terminated, truncated, info = env.step(np.int64(env.scripted("cruise")))
            ticks += config.ticks
            assert env.moment is not None
            if info.get("lost"):
                raise ServerError(f"the car drove {env.moment.driven:.1f} m, then: {info['reason']}")
            if env.moment.driven >= _METRES:
                break
            if terminated or truncated:
                raise ServerError(f"the car drove {env.moment.driven:.1f} m, then: {info['reason']}")
        else:
            raise ServerError(
                f"the car must drive {_METRES:g} m in {_DECISIONS * config.ticks} ticks, "
                f"got {env.moment.driven if env.moment else 0:.1f} m: its controls have no effect"
            )
        _say("driven", f"{env.moment.driven:.1f} m, now at {3.6 * env.moment.speed:.0f} km/h")
        _say(
            "ticks", f"{ticks / (time.perf_counter() - begun):,.0f} a second, with a camera of 448x336 pixels"
        )
        if picture is not None:
            from PIL import Image

            image = env.render()
            assert image is not None
            Image.fromarray(image).save(picture)
            _say("picture", str(picture))
    finally:
        env.close()


def drive(driver: str, episodes: int, seed: int, fields: dict[str, Any]) -> None:
    """Lets a scripted driver drive, and prints the summary of its metrics."""
    from rlagents_envs.carla.env import CarlaEnv
    from rlagents_envs.carla.metrics import summary

    env = CarlaEnv(Carla.model_validate({"count": 1, **fields}))
    done: list[dict[str, float]] = []
    begun, steps = time.perf_counter(), 0
    try:
        env.reset(seed=seed)
        while len(done) < episodes:
            _, _, terminated, truncated, info = env.step(np.int64(env.scripted(driver)))
            steps += 1
            if terminated or truncated:
                if not info.get("lost"):
                    done.append(info["episode_metrics"])
                env.reset()
    finally:
        env.close()
    for name, value in summary(done).items():
        _say(name, f"{value:.2f}", 26)
    _say("env steps a second", f"{steps / (time.perf_counter() - begun):,.0f}", 26)


def _say(name: str, text: str, width: int = 10) -> None:
    sys.stdout.write(f"{name:{width}} {text}\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 with one line on stderr if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m rlagents_envs.carla", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checks = commands.add_parser("check", help="connect, drive ten metres, say what is wrong")
    checks.add_argument(
        "server", nargs="?", default="", help="host:port; none: the stand-in server is started"
    )
    checks.add_argument("--launch", default="", metavar="CarlaUE4.sh", help="start this server")
    checks.add_argument("--town", default="", help="a map of the server, or one of ours such as grid-1")
    checks.add_argument("--picture", type=Path, default=None, metavar="FILE.png")
    drives = commands.add_parser("drive", help="let a scripted driver drive and print its metrics")
    drives.add_argument("driver", choices=["random", "cruise", "rules"])
    drives.add_argument("--server", default="")
    drives.add_argument("--town", default="")
    for name, default in (("episodes", 10), ("seed", 0), ("vehicles", 0), ("walkers", 0)):
        drives.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    towns = (given.town,) if given.town else ()
    try:
        if given.command == "check":
            check(given.server, given.launch, given.town, given.picture)
        else:
            fields = {
                "server": given.server,
                "towns": towns,
                "vehicles": given.vehicles,
                "walkers": given.walkers,
            }
            drive(given.driver, given.episodes, given.seed, fields)
    except (ServerError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

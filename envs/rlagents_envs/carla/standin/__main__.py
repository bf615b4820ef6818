"""Starts the stand-in server: `python -m rlagents_envs.carla.standin --town grid-1 --port 2000`."""

import argparse
import random
import signal
import sys


def main() -> int:
    """Serves until it is told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rlagents_envs.carla.standin",
        description="A small stand-in for the CARLA simulator, for the real carla client.",
    )
    parser.add_argument("--town", default="grid-1", help="family-seed, such as grid-1, or an .xodr file")
    parser.add_argument(
        "--port", type=int, default=2000, help="for requests, and the next one for streams; 0: free"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; the default is this machine only"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--version", default="0.9.16", help="of CARLA, whose messages are spoken")
    parser.add_argument(
        "--parent", type=int, default=0, help="stop when the process with this number is gone"
    )
    parser.add_argument("--streams", type=int, default=0, help="number of the first stream; 0: a random one")
    options = parser.parse_args()
    if not 0 <= options.port <= 65534 or options.seed < 0 or not 0 <= options.streams < 2**31:
        parser.error("port must lie between 0 and 65534, seed and streams must not be negative")
    try:
        from rlagents_envs.carla.standin.server import Server
    except ModuleNotFoundError as error:
        missing = f"the stand-in server needs {error.name}: pip install 'rlagents[carla]'"
        print(f"{missing} (Linux or Windows on x86-64, Python 3.10 to 3.12)", file=sys.stderr)  # noqa: T201
        return 1
    try:
        server = Server(
            options.town,
            host=options.host,
            port=options.port,
            seed=options.seed,
            version=options.version,
            streams=options.streams or random.SystemRandom().randrange(1, 2**31),
        )
    except (ValueError, OSError, OverflowError) as error:
        print(f"the stand-in server could not start: {error}", file=sys.stderr)  # noqa: T201
        return 1

    def stop(number: int, frame: object) -> None:
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    ready = f"stand-in for CARLA {options.version}: town {options.town} ready at {server.host}:{server.port}"
    print(ready, flush=True)  # noqa: T201
    server.run(options.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())

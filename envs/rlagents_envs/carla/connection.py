"""The way to a server: found or started, checked, watched, and built up again when it is lost.

The one idea: CARLA's client waits out its time-out in silence, never connects again, and hands out old data
when its server is gone. So the port is asked first, every tick is checked for progress, and after any failure
the client and all that came from it are thrown away and made anew.
"""

import contextlib
import functools
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rlagents_envs.config import PORT, Carla

if TYPE_CHECKING:
    from rlagents_envs.carla.planner import Lanes
    from rlagents_envs.carla.roads import Roads

SUPPORTED = "Linux on x86-64 and Windows with Python 3.10 to 3.12"
_START = {"standin": 120.0, "launch": 180.0}  # seconds that a server may take to answer; less if it ends
_GRACE = 5.0  # seconds that the real server needs after it first answers
_LOAD = 60.0  # seconds that a real server may take to load a world
_PROBE = 0.8  # seconds
_ANSWER = 2.0  # seconds


class ServerError(RuntimeError):
    """Something is wrong with a server or the way to it: one line, with what to do."""


class LostError(ServerError):
    """A server that was there is not there any more, or is no longer ours."""


def library() -> Any:
    """Returns the `carla` module.

    Raises:
        ValueError: it is not installed; says where it can be.
    """
    try:
        import carla
    except ImportError as error:
        raise ValueError(
            f"kind carla needs the carla package, which exists for {SUPPORTED}; "
            'install it there with: pip install "rlagents[carla]"'
        ) from error
    return carla


def address(text: str) -> tuple[str, int]:
    """Returns host and port of `host`, `host:port` or `:port`; ValueError if it is none of these."""
    host, _, port = text.strip().rpartition(":") if ":" in text else (text.strip(), "", "")
    if port and not (port.isdecimal() and 0 < int(port) < 65_535):
        raise ValueError(f"env.server must be host:port with a port from 1 to 65534, got {text!r}")
    return host or "127.0.0.1", int(port or PORT)


def probe(host: str, port: int) -> None:
    """Returns if something listens at a port.

    Raises:
        ServerError: nothing does, said within a second.
    """
    try:
        socket.create_connection((host, port), timeout=_PROBE).close()
    except socket.gaierror as error:
        raise ServerError(f"no CARLA server at {host}:{port}: the name {host!r} is not known") from error
    except OSError as error:
        why = (
            "it does not answer"
            if isinstance(error, TimeoutError)
            else (error.strerror or str(error)).lower()
        )
        raise ServerError(
            f"no CARLA server at {host}:{port} ({why}); start one, or leave env.server out for the stand-in"
        ) from error


def free_port(count: int = 1) -> int:
    """Returns the first of so many consecutive ports that nobody listens at now."""
    for _ in range(100):
        with contextlib.ExitStack() as stack:
            first = 0
            try:
                for offset in range(count):
                    one = stack.enter_context(socket.socket())
                    one.bind(("127.0.0.1", first + offset if first else 0))
                    first = first or one.getsockname()[1]
            except (OSError, OverflowError):
                continue
            return first
    raise ServerError(f"no {count} free ports in a row were found")


class Server:
    """A server process of our own, in a process group of its own; ending it ends all that it started.

    Args:
        command: what to run.
        port: where it will listen; None: it says so in its first line.
        patience: seconds that it may take to say so.

    Raises:
        ServerError: it could not be started, or ended at once.
        LostError: somebody ended it.
    """

    def __init__(self, command: Sequence[str], port: int | None, patience: float) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if port is None else subprocess.DEVNULL,
                stderr=self._errors if port is None else subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": paths},
            )
        except OSError as error:
            self._errors.close()
            raise ServerError(f"{command[0]} could not be started: {error.strerror}") from error
        self._finalizer = weakref.finalize(self, _end, self.process)  # at exit, too
        try:
            self.port = self._ready(patience) if port is None else port
        except BaseException:
            self.end()
            raise

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    @property
    def megabytes(self) -> float:
        """Memory that it takes up; 0 where that cannot be known."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return 0.0

    def end(self) -> None:
        """Ends the process group, by force: there is nothing in it to save."""
        self._finalizer()
        self._errors.close()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _ready(self, patience: float) -> int:
        """Waits for the first line; returns the port in it."""
        assert self.process.stdout is not None
        stdout, said = self.process.stdout, [b""]
        reader = threading.Thread(target=lambda: said.append(stdout.readline()), daemon=True)
        reader.start()
        reader.join(patience)
        line = said[-1]
        found = re.findall(rb"\d+", line.rsplit(b":", 1)[-1]) or re.findall(rb"\d+", line)
        if not found:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
            if self.process.returncode is not None and self.process.returncode < 0:
                raise LostError(f"the stand-in server was ended by signal {-self.process.returncode}")
            self._errors.seek(0)
            errors = self._errors.read().decode(errors="replace").strip().splitlines()
            why = errors[-1] if errors else f"nothing was heard of it for {patience:g} s"
            raise ServerError(f"the stand-in server did not start: {why}")
        return int(found[0])


def _end(process: "subprocess.Popen[bytes]") -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


class Connection:
    """A client and its world, in synchronous mode, with the ground it stands on.

    Args:
        config: where the server is, or how to start it.
        index: of the environment: each has a server of its own.
        patient: wait for a server that does not answer, as one that is being started again.
        pictures: whether there will be a camera for people.
        seed: of the stand-in server.

    Attributes:
        carla: the module.
        client: a `carla.Client`.
        world: a `carla.World`.
        roads: the ground.
        lanes: the graph of lanes.
        versions: of client and server.

    Raises:
        ServerError: there is none, or it does not fit; one line.
    """

    def __init__(
        self, config: Carla, index: int, *, seed: int = 0, patient: bool = False, pictures: bool = False
    ) -> None:
        self.carla = library()
        self.config = config
        self.server: Server | None = None
        self.client: Any = None
        self.world: Any = None
        self._town = config.towns[index % len(config.towns)] if config.towns else ""
        self.ticking = math.inf  # since when, by time.monotonic
        self._frame = -1
        self._pictures = pictures
        self._original: Any = None
        try:
            self._open(index, seed, patient)
        except BaseException:
            if self.server is not None:
                self.server.end()
            raise

    def _open(self, index: int, seed: int, patient: bool) -> None:
        config, wait = self.config, 0.0
        if config.server:
            host, self.port = address(config.server.split(",")[index])
            wait = config.patience if patient else 0.0
        elif config.launch:
            host, self.port = "127.0.0.1", config.port_of(index)
            self.server = Server(launch_command(config, self.port), self.port, 0.0)
            wait = _START["launch"]
        else:
            host = "127.0.0.1"
            command = standin_command(self._town or "grid-1", config.port_of(index), seed)
            self.server = Server(command, None, _START["standin"])
            self.port = self.server.port
        self.host = host
        self._reach(wait)
        self.client = self.carla.Client(host, self.port)
        self.client.set_timeout(config.timeout)
        with self.guard("connecting"):
            self._agree()
            if config.server or config.launch:
                self.client.set_timeout(max(config.timeout, _LOAD))
            self.world = self._prepared(self.client.get_world())
            self.client.set_timeout(config.timeout)
            text = self.world.get_map().to_opendrive()
        try:
            self.roads, self.lanes = ground(text)
        except ValueError as error:
            raise ServerError(f"the map of {host}:{self.port} cannot be driven: {error}") from error

    def _reach(self, wait: float) -> None:
        """Waits until the port answers."""
        until = time.monotonic() + wait
        while True:
            try:
                probe(self.host, self.port)
                break
            except ServerError:
                if self.server is not None and not self.server.alive:
                    what = self.config.launch or "the stand-in server"
                    raise ServerError(f"{what} ended before it answered at port {self.port}") from None
                if time.monotonic() >= until:
                    raise
                time.sleep(0.5)
        if self.server is not None and self.config.launch:
            time.sleep(_GRACE)

    def _agree(self) -> None:
        client, server = self.client.get_client_version(), self.client.get_server_version()
        self.versions = {"client": str(client), "server": str(server)}
        if client != server and not self.config.any_version:
            raise ServerError(
                f"the server at {self.host}:{self.port} must be CARLA {client} as the carla package is, "
                f"got {server}; install carla=={server}, or set env.any_version=true to try"
            )

    def _prepared(self, world: Any) -> Any:
        """Makes a world synchronous, of the right town, with nobody in it."""
        carla, config = self.carla, self.config
        if self.server is None:
            self._original = world.get_settings()
        settings = world.get_settings()
        settings.synchronous_mode = True
        settings.fixed_delta_seconds = 1 / config.physics_rate
        settings.substepping, settings.max_substep_delta_time, settings.max_substeps = True, 0.01, 10
        cameras = "camera" in config.observations or self._pictures
        settings.no_rendering_mode = bool(config.launch) and not cameras
        world.apply_settings(settings)
        here = world.get_map().name.rsplit("/", 1)[-1]
        if config.server and self._town and self._town != here:
            world = self._load(self._town)
        elif self.server is None:
            world.tick(config.timeout)
            if any(
                actor.type_id.startswith(("vehicle.", "walker.", "sensor.")) for actor in world.get_actors()
            ):
                world = self.client.reload_world(False)
        world.set_weather(getattr(carla.WeatherParameters, config.weather))
        world.tick(config.timeout)
        return world

    def _load(self, town: str) -> Any:
        """Loads a town: one that the server has, or one of ours."""
        names = [name.rsplit("/", 1)[-1] for name in self.client.get_available_maps()]
        if town in names:
            return self.client.load_world(town, False)
        from rlagents_envs.carla.towns import opendrive

        return self.client.generate_opendrive_world(opendrive(town), reset_settings=False)

    @contextlib.contextmanager
    def guard(self, what: str) -> Generator[None]:
        """Turns what the client library raises into a LostError in one line."""
        try:
            yield
        except ServerError:
            raise
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise LostError(f"{what} failed at {self.host}:{self.port}: {text}") from error

    def answers(self) -> bool:
        """Whether the server is still there, and not frozen."""
        if self.server is not None and not self.server.alive:
            return False
        try:
            client = self.carla.Client(self.host, self.port, 1)  # the other one may be at work in a tick
            client.set_timeout(_ANSWER)
            client.get_server_version()
        except RuntimeError:
            return False
        return True

    def tick(self) -> Any:
        """Makes one physics step; returns the snapshot of the world after it.

        Raises:
            LostError: the server is gone or frozen, started again, or someone else ticks it.
        """
        if self.server is not None and not self.server.alive:
            raise LostError(f"the server at port {self.port} ended (exit {self.server.process.returncode})")
        self.ticking = time.monotonic()
        try:
            with self.guard("a tick"):
                frame = self.world.tick(self.config.timeout)
                snapshot = self.world.get_snapshot()
        finally:
            self.ticking = math.inf
        if snapshot.frame != frame or (self._frame >= 0 and frame != self._frame + 1):
            raise LostError(
                f"the server at {self.host}:{self.port} must advance by one frame per tick, got frames "
                f"{self._frame}, {frame} and {snapshot.frame}: it was restarted, or another client ticks it"
            )
        self._frame = frame
        return snapshot

    def close(self, *, lost: bool = False) -> None:
        """Gives a server that is not ours back as it was; ends one that is."""
        if self.server is not None:
            self.server.end()
        elif not lost and self._original is not None:
            with contextlib.suppress(RuntimeError):
                self.world.apply_settings(self._original)
        self.world = self.client = None


@functools.lru_cache(maxsize=4)
def ground(text: str) -> "tuple[Roads, Lanes]":
    """Returns the ground and the lanes of an OpenDRIVE text, read once per process."""
    from rlagents_envs.carla.planner import Lanes, StopLine
    from rlagents_envs.carla.roads import cached_roads

    roads = cached_roads(text)
    rad = 3.141592653589793 / 180
    lines = [
        StopLine(light.signal, stop.x, stop.y, stop.yaw * rad, stop.width)
        for light in roads.lights
        for stop in light.stops
    ]
    return roads, Lanes(roads.map, lines)


def standin_command(town: str, port: int, seed: int) -> list[str]:
    """Returns what starts the stand-in server; port 0 lets it choose."""
    here = ["--parent", str(os.getpid())]
    server = [sys.executable, "-m", "rlagents_envs.carla.standin"]
    return [*server, "--town", town, "--port", str(port), "--seed", str(seed), *here]


def launch_command(config: Carla, port: int) -> list[str]:
    """Returns what starts the real server, off screen.

    Raises:
        ServerError: it is not there.
    """
    if not Path(config.launch).is_file():
        raise ServerError(f"env.launch must be the path of CarlaUE4.sh, got {config.launch!r}")
    flags = ["-RenderOffScreen", "-nosound", "-quality-level=Low"]
    ports = [f"-carla-rpc-port={port}", f"-carla-streaming-port={port + 1}"]
    return [config.launch, *flags, *ports, *config.launch_options]

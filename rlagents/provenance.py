"""Whose a run is: a run folder may be a stranger's, and what it names would be imported with one's rights.

The one idea: who made a run here signed its configuration with a key that only this user can read. Any other
run must be trusted explicitly before code that it names is imported, or a program started.
"""

import hashlib
import hmac
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from rlagents.config import Experiment
from rlagents.errors import RunError
from rlagents_envs.config import Carla, Gymnasium

CONFIG, _SIGNATURE = "config.toml", "signature"


def imports(experiment: Experiment) -> list[str]:
    """Returns what an experiment names of code that is not rlagents' own, or hands arguments to."""
    env = experiment.env
    if isinstance(env, Carla) and env.launch:
        return [env.launch]
    if not isinstance(env, Gymnasium):
        return []
    named = [name for name in (env.id, *env.wrappers) if ":" in name]
    return [*named, f"{env.id} with {env.kwargs}"] if env.kwargs else named


def require(experiment: Experiment, run: Path, *, trust: bool = False) -> None:
    """Checks that the run was made here, if its experiment names code to be imported or started.

    Raises:
        RunError: it was not, and nobody said that it shall be trusted.
    """
    if (names := imports(experiment)) and not trust and not _signed(run):
        does = "start" if isinstance(experiment.env, Carla) else "import"
        raise RunError(
            f"{run} was not made here by you, and would {does} {', '.join(names)}, which runs with your "
            "rights: look at that code, then say --trust"
        )


def sign(run: Path, config: bytes) -> None:
    """Marks a run as made here, where that can be: without a mark it must be trusted, where that matters."""
    with suppress(OSError, RunError):
        (run / _SIGNATURE).write_text(_mac(config), "utf-8")


def _signed(run: Path) -> bool:
    try:
        signature = (run / _SIGNATURE).read_bytes()[:128]
        return hmac.compare_digest(signature, _mac((run / CONFIG).read_bytes()).encode())
    except OSError:
        return False


def _mac(config: bytes) -> str:
    """Returns what only who has this user's key can make of a configuration."""
    return hmac.new(_key(), b"rlagents run\0" + config, hashlib.sha256).hexdigest()


def _key() -> bytes:
    """Returns this user's key, made when it is first asked for.

    Raises:
        RunError: others can read it, or it is not one.
        OSError: there is no place for it.
    """
    file = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rlagents" / "key"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent) as beside:  # of mode 0600
            beside.write(secrets.token_bytes(32))
            beside.flush()
            with suppress(FileExistsError):  # another process was first
                os.link(beside.name, file)
    key, mode = file.read_bytes(), file.stat().st_mode & 0o777
    if mode & 0o077 or len(key) != 32:
        raise RunError(
            f"{file} must hold 32 bytes and be of mode 0600, got {len(key)} and {mode:04o}; remove it: "
            "a new one is made, and older runs want --trust"
        )
    return key

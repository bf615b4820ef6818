"""Checkpoints: folders that appear whole or not at all, and the replay's rows beside them, written once.

A checkpoint is weights and other tensors as safetensors, everything else as JSON, and a manifest with
versions and checksums. It is written to a folder beside its place and renamed. The rows of the replay never
change, so each checkpoint adds the segment of those that are new; those that none needs are removed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from rlagents.errors import RunError
from rlagents.machine import versions
from rlagents.replay import Ring
from rlagents.types import State

SCHEMA = 1
_MANIFEST = "manifest.json"


class Stateful(Protocol):
    """Something that can be saved and brought back."""

    def state_dict(self) -> State:
        """Returns nested dictionaries of tensors, numbers, strings and lists."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        ...


class DamagedError(RunError):
    """A checkpoint that is not as it was written."""


@dataclass(frozen=True)
class Saved:
    """One checkpoint on disk, checked."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Env steps at which it was taken."""
        return int(self.manifest["step"])

    def restore(self, **objects: Stateful) -> None:
        """Hands each object the state that was saved under its name.

        Raises:
            RunError: the state is not that of such objects.
        """
        try:
            flat: dict[str, Any] = json.loads((self.folder / "state.json").read_text("utf-8"))
            for name in self.manifest["files"]:
                if name.endswith(".safetensors"):
                    part = name.removesuffix(".safetensors")
                    tensors = load_file(self.folder / name)
                    flat |= {f"{part.replace('.', '/')}/{key}": value for key, value in tensors.items()}
            state = _nest(flat)
            for name, stateful in objects.items():
                stateful.load_state_dict(state[name])
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            reason = str(error).strip().splitlines()[0]
            raise RunError(f"{self.folder} does not fit this experiment, or is damaged: {reason}") from error


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run's folder.
        keep: how many of the newest stay, beside the best.
    """

    def __init__(self, run: Path, keep: int = 2) -> None:
        self.folder, self._segments, self._keep = run / "checkpoints", run / "replay", keep
        self._rows = 0  # time up to which the replay's rows are on disk

    def save(self, step: int, replay: Ring | None, *, best: bool = False, **objects: Stateful) -> Path:
        """Writes a checkpoint of env step `step`, and removes those that are no longer kept.

        Args:
            step: env steps so far.
            replay: its rows, if there is one.
            best: whether `best` shall name this one from now on.
            objects: what to save, by name.
        """
        state = {name: stateful.state_dict() for name, stateful in objects.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        place, beside = self.folder / f"{step:012d}", self.folder / f".{step:012d}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        files: dict[str, dict[str, Any]] = {}
        plain: dict[str, Any] = {}
        tensors: dict[str, dict[str, Tensor]] = {}
        for path, value in _flatten(state):
            if isinstance(value, Tensor):
                # A file for each part: weights can be had without the rest, as agent.policy.safetensors.
                owner, part, key = path.split("/", 2) if path.count("/") > 1 else (*path.split("/"), "")
                name = f"{owner}.{part}" if key else owner
                tensors.setdefault(name, {})[key or part] = value.detach().cpu().contiguous()
            else:
                plain[path] = value
        for part, named in tensors.items():
            _save_tensors(named, beside / f"{part}.safetensors")
        (beside / "state.json").write_text(json.dumps(plain, indent=1), "utf-8")
        for file in sorted(beside.iterdir()):
            files[file.name] = _fingerprint(file)
        manifest = {
            "schema": SCHEMA,
            "step": step,
            "versions": versions(),
            "files": files,
            "replay": [] if replay is None else self._save_rows(replay),
        }
        _write(beside / _MANIFEST, json.dumps(manifest, indent=1))
        if place.exists():
            shutil.rmtree(place)
        beside.rename(place)
        _sync(self.folder)
        if best:
            _write(self.folder / "best.json", json.dumps({"step": step}))
        self._prune()
        return place

    def _save_rows(self, replay: Ring) -> list[dict[str, Any]]:
        """Writes the rows that are not on disk yet; returns the segments that make up the ring."""
        self._segments.mkdir(exist_ok=True)
        oldest = max(0, replay.time - replay.rows)
        start = max(self._rows, oldest)
        if start < replay.time:
            name = f"{start:012d}-{replay.time:012d}.safetensors"
            beside = self._segments / f".{name}.tmp"
            _save_tensors(replay.window(start, replay.time), beside)
            beside.rename(self._segments / name)
            _sync(self._segments)
            entry = {"start": start, "stop": replay.time, **_fingerprint(self._segments / name)}
            _write(self._segments / f"{name}.json", json.dumps(entry))
            self._rows = replay.time
        entries: list[dict[str, Any]] = []
        for file in sorted(self._segments.glob("*.safetensors")):
            entry = json.loads(file.with_name(file.name + ".json").read_text("utf-8"))
            if entry["stop"] > oldest:
                entries.append({"file": file.name, **entry})
        return entries

    def _prune(self) -> None:
        best = self._best()
        kept = self.steps()[-self._keep :]
        for step in self.steps():
            if step not in kept and step != best:
                shutil.rmtree(self._place(step))
        needed = {entry["file"] for step in kept for entry in self._segments_of(step)}
        for file in self._segments.glob("*.safetensors"):
            if file.name not in needed:
                file.unlink()
                file.with_name(file.name + ".json").unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """Returns the env steps of the checkpoints on disk, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(f.name) for f in self.folder.iterdir() if f.is_dir() and f.name.isdigit())

    def _place(self, step: int) -> Path:
        return self.folder / f"{step:012d}"

    def _best(self) -> int | None:
        try:
            return int(json.loads((self.folder / "best.json").read_text("utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _segments_of(self, step: int) -> list[dict[str, Any]]:
        try:
            return json.loads((self._place(step) / _MANIFEST).read_text("utf-8"))["replay"]
        except (OSError, ValueError, KeyError, TypeError):
            return []  # a damaged checkpoint needs no rows

    def find(self, which: str | int = "latest") -> Saved:
        """Returns a checkpoint after checking every byte of it.

        Raises:
            RunError: there is no such checkpoint, or it is damaged.
        """
        steps = self.steps()
        if not steps:
            raise RunError(f"{self.folder.parent} has no checkpoint")
        step = self._best() if which == "best" else steps[-1] if which == "latest" else int(which)
        if step is None:
            raise RunError(f"{self.folder.parent} has no best checkpoint: it was never evaluated")
        if step not in steps:
            known = ", ".join(map(str, steps))
            raise RunError(f"{self.folder.parent} has no checkpoint of env step {step}; it has {known}")
        return self._checked(self._place(step))

    def _checked(self, folder: Path) -> Saved:
        try:
            manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
            schema, files = manifest["schema"], manifest["files"]
            if schema > SCHEMA:
                raise RunError(
                    f"{folder} has schema {schema}; this rlagents reads up to {SCHEMA}: install a newer one"
                )
            for name, expected in files.items():
                _check(folder / Path(name).name, expected)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{folder} is damaged: {error}") from error
        return Saved(folder, manifest)

    def newest(self) -> Saved:
        """Returns the newest checkpoint that is whole, for a resume; puts damaged newer ones aside.

        Raises:
            RunError: there is none.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self._checked(self._place(step))
            except DamagedError as error:
                problems.append(str(error))
                aside = self._place(step).with_suffix(".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                self._place(step).rename(aside)
        raise RunError("; ".join(problems) or f"{self.folder.parent} has no checkpoint")

    def restore_rows(self, saved: Saved, replay: Ring) -> None:
        """Reads the replay's rows back.

        Raises:
            RunError: a segment is missing or damaged.
        """
        for entry in saved.manifest["replay"]:
            file = self._segments / Path(entry["file"]).name
            try:
                _check(file, entry)
                replay.restore(int(entry["start"]), load_file(file))
            except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
                raise RunError(f"{file} is damaged: {error}") from error
        replay.reopen()
        self._rows = replay.time
        for file in self._segments.glob("*.safetensors"):  # of a run that died between rows and manifest
            if int(file.name.split("-")[0]) >= replay.time:
                file.unlink()


def _flatten(state: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in state.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if not value:
                yield path + "/", None
            yield from _flatten(value, path + "/")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield path, value


def _nest(flat: Mapping[str, Any]) -> State:
    nested: State = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        here = nested
        for folder in folders:
            here = here.setdefault(folder, {})
        if name:
            here[name] = value
    return nested


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Writes tensors and waits until they are on the disk; a full disk is an OSError, as for other files."""
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    _sync(file)


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _check(file: Path, expected: Mapping[str, Any]) -> None:
    if not file.is_file() or file.is_symlink():
        raise ValueError(f"{file.name} is missing")
    if file.stat().st_size != expected["size"]:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes, not {expected['size']}")
    if _fingerprint(file)["sha256"] != expected["sha256"]:
        raise ValueError(f"{file.name} differs from its checksum")


def _write(file: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    beside = file.with_name(f".{file.name}.tmp")
    beside.write_text(text, "utf-8")
    _sync(beside)
    beside.replace(file)


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

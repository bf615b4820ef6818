"""Checkpoints: folders that appear whole or not at all, and the replay's rows beside them, written once.

A checkpoint is weights and other tensors as safetensors, everything else as JSON, and a manifest with
versions and checksums. It is written to a folder beside its place and renamed. The rows of the replay never
change, so each checkpoint adds the segment of those that are new; those that none needs are removed. What
is read was perhaps damaged, or made by a stranger: nothing is believed before its size and checksum.
"""

import hashlib
import json
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import torch as safetensors
from torch import Tensor

from rlagents import disk, machine
from rlagents.errors import RunError
from rlagents.replay import Ring
from rlagents.types import State

SCHEMA = 2  # 1: a manifest without a checksum of its own, the best one named in a file beside
_MANIFEST, _SEAL, _STATE = "manifest.json", "manifest.sha256", "state.json"
_PIECE = 128 << 20  # bytes of rows in one file at most: what saving and reading take beside the replay
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    skipped: tuple[str, ...] = ()  # what is wrong with newer ones, a line each

    @property
    def step(self) -> int:
        """Env steps at which it was taken."""
        return int(self.manifest["step"])

    def state(self) -> dict[str, Any]:
        """Returns everything that it holds but the replay's rows, by names as `agent/policy/head.weight`."""
        flat: dict[str, Any] = {}
        for name, expected in self.manifest["files"].items():
            content = disk.read(self.folder, name, expected)
            if name == _STATE:
                flat |= json.loads(content)
            else:
                part = name.removesuffix(".safetensors").replace(".", "/")
                flat |= {f"{part}/{key}": value for key, value in safetensors.load(content).items()}
        return flat

    def restore(self, **objects: Stateful) -> None:
        """Hands each object the state that was saved under its name.

        Raises:
            RunError: the state is not that of such objects.
        """
        try:
            state = _nest(self.state())
            for name, stateful in objects.items():
                stateful.load_state_dict(state[name])
        except Exception as error:  # whatever a stranger's bytes lead to
            raise RunError(
                f"{self.folder} does not fit this experiment, or is damaged: {_reason(error)}"
            ) from error


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run's folder.
        keep: how many of the newest stay, beside the best.
        experiment: what a checkpoint must have been made with to be gone on with: nested tables.
        compress: write the rows of the replay compressed.
        device: on which the agent computes, for the record.
    """

    def __init__(
        self,
        run: Path,
        keep: int = 2,
        *,
        experiment: Mapping[str, Any] | None = None,
        compress: bool = False,
        device: str = "cpu",
    ) -> None:
        self.device = device
        self.folder, self._segments, self._keep = run / "checkpoints", run / "replay", keep
        settings = _flatten(experiment or {})
        self._experiment = {path.replace("/", "."): value for path, value in settings}
        self._compress = compress
        self._best: int | None = None  # env steps of the best checkpoint
        self._entries: list[dict[str, Any]] = []  # the segments on disk, oldest first, without a gap
        self._writer: threading.Thread | None = None
        self._failed: Exception | None = None

    def save(
        self,
        step: int,
        replay: Ring | None,
        *,
        best: bool = False,
        background: bool = False,
        **objects: Stateful,
    ) -> Path:
        """Writes a checkpoint of env step `step`, and removes those that are no longer kept.

        Args:
            step: env steps so far.
            replay: its rows, if there is one.
            best: whether `best` shall name this one from now on.
            background: return once everything is copied, and write in a thread of its own. At most some
                bytes of rows are copied (`_PIECE`); more are written before.
            objects: what to save, by name.

        Raises:
            OSError: it cannot be written; those before it stay. With `background`, by `wait`, or here if the
                one before failed.
        """
        self.wait()
        plain: dict[str, Any] = {}
        tensors: dict[str, dict[str, Tensor]] = {}
        for path, value in _flatten({name: stateful.state_dict() for name, stateful in objects.items()}):
            if isinstance(value, Tensor):
                # A file for each part: weights can be had without the rest, as agent.policy.safetensors.
                owner, part, key = path.split("/", 2) if path.count("/") > 1 else (*path.split("/"), "")
                name = f"{owner}.{part}" if key else owner
                copied = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
                tensors.setdefault(f"{name}.safetensors", {})[key or part] = copied
            else:
                plain[path] = value
        self.folder.mkdir(parents=True, exist_ok=True)
        disk.sync(self.folder.parent)
        rows = [] if replay is None else self._rows(replay)
        for write in rows[:-1]:
            write()
        known = {"schema": SCHEMA, "step": step, "best": step if best else self._best}
        state = json.dumps(plain, indent=1).encode()
        job = partial(self._write, known, state, tensors, rows[-1:])
        if not background:
            job()
            return self._place(step)
        self._writer = threading.Thread(target=self._try, args=(job,), daemon=True)
        self._writer.start()
        return self._place(step)

    def made_with(self) -> dict[str, str]:
        """Returns what the bits of a result depend on beside the experiment."""
        return {**machine.versions(), "threads": str(torch.get_num_threads()), "device": self.device}

    @property
    def writing(self) -> bool:
        """Whether the background is still at it."""
        return self._writer is not None and self._writer.is_alive()

    def wait(self) -> None:
        """Waits for what is written in the background; raises the OSError that it failed with."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _try(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self._failed = error

    def _write(
        self,
        known: dict[str, Any],
        state: bytes,
        tensors: Mapping[str, dict[str, Tensor]],
        rows: Iterable[Callable[[], None]],
    ) -> None:
        """Writes everything beside its place, then moves it there."""
        for write in rows:
            write()
        place = self._place(known["step"])
        beside, former = place.with_name(f".{place.name}.tmp"), place.with_name(f".{place.name}.old")
        for leftover in (beside, former):
            shutil.rmtree(leftover, ignore_errors=True)
        beside.mkdir()
        files = {name: disk.write(beside / name, safetensors.save(named)) for name, named in tensors.items()}
        files[_STATE] = disk.write(beside / _STATE, state)
        manifest = {
            **known,
            "versions": self.made_with(),
            "experiment": self._experiment,
            "files": files,
            "replay": self._entries,
        }
        sealed = disk.write(beside / _MANIFEST, json.dumps(manifest, indent=1).encode())
        disk.write(beside / _SEAL, sealed["sha256"].encode())
        disk.sync(beside)
        if place.exists():  # a Ctrl-C where no environment acted, or before an evaluation
            place.rename(former)
        beside.rename(place)
        disk.sync(self.folder)
        self._best = known["best"]
        with suppress(OSError, DamagedError):  # what cannot be removed now goes after the next one
            self._prune()

    def _rows(self, replay: Ring) -> list[Callable[[], None]]:
        """Returns what writes the rows that are not on disk yet, piece by piece; the last piece is copied."""
        oldest = max(0, replay.time - replay.rows)
        self._entries = [entry for entry in self._entries if entry["stop"] > oldest]
        start = max(self._entries[-1]["stop"] if self._entries else 0, oldest)
        length = max(1, _PIECE // (replay.nbytes // replay.rows))
        pieces = [(first, min(first + length, replay.time)) for first in range(start, replay.time, length)]
        if not pieces:
            return []
        self._segments.mkdir(exist_ok=True)
        *before, last = pieces
        later = [partial(self._write_rows, *piece, partial(replay.window, *piece)) for piece in before]
        copied = replay.window(*last)
        return [*later, partial(self._write_rows, *last, lambda: copied)]

    def _write_rows(self, start: int, stop: int, window: Callable[[], dict[str, Tensor]]) -> None:
        content = safetensors.save(window())
        entry: dict[str, Any] = {
            "file": f"{start:012d}-{stop:012d}.safetensors",
            "start": start,
            "stop": stop,
        }
        if self._compress:
            entry |= {"file": entry["file"] + ".zlib", "bytes": len(content)}
            content = zlib.compress(content, 1)
        entry |= disk.write(self._segments / entry["file"], content)
        disk.sync(self._segments)
        self._entries = [*self._entries, entry]

    def _prune(self) -> None:
        steps = self.steps()
        newest = steps[-self._keep :]
        for step in steps:
            if step not in newest and step != self._best:
                self._place(step).rename(self._place(step).with_name(f".{step:012d}.tmp"))
        for leftover in [*self.folder.glob(".*.tmp"), *self.folder.glob(".*.old")]:
            shutil.rmtree(leftover)
        manifests = [self._manifest(self._place(step)) for step in newest]
        needed = {entry["file"] for manifest in manifests for entry in manifest["replay"]}
        for file in self._segments.iterdir() if self._segments.is_dir() else ():
            if file.name not in needed:
                file.unlink()

    def steps(self) -> list[int]:
        """Returns the env steps of the checkpoints on disk, oldest first."""
        if not self.folder.is_dir():
            return []
        named = (file.name for file in self.folder.iterdir() if file.is_dir() and not file.is_symlink())
        return sorted(int(name) for name in named if re.fullmatch("[0-9]{12,15}", name))

    def _place(self, step: int) -> Path:
        return self.folder / f"{step:012d}"

    def _best_of(self, manifest: Mapping[str, Any]) -> int | None:
        if manifest["schema"] > 1:
            return manifest.get("best")
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads((self.folder / "best.json").read_bytes())["step"])
        return None

    def find(self, which: str | int = "latest") -> Saved:
        """Returns a checkpoint after checking every byte of it, but not the replay's rows.

        `latest` is the newest that is whole, and `best` what that one names: what is wrong with newer ones is
        told. A checkpoint asked for by its env steps, or the best, must be whole itself.

        Raises:
            RunError: there is no such checkpoint, or it is damaged.
        """
        if which not in ("latest", "best"):
            step, skipped = int(which), ()
        else:
            newest = self._newest_whole()
            if which == "latest":
                return newest
            step, skipped = self._best_of(newest.manifest), newest.skipped
            if step is None:
                raise RunError(f"{self.folder.parent} has no best checkpoint: it was never evaluated")
        if step not in (steps := self.steps()):
            known = f"no checkpoint of env step {step}; it has {', '.join(map(str, steps))}"
            raise RunError(f"{self.folder.parent} has {known if steps else 'no checkpoint'}")
        return replace(self._checked(self._place(step)), skipped=skipped)

    def _newest_whole(self, check: Callable[[Saved], None] = lambda saved: None) -> Saved:
        """Returns the newest checkpoint that is whole and that `check` does not find damaged.

        Raises:
            RunError: there is none, or what `check` raises.
        """
        skipped: list[str] = []
        for step in reversed(self.steps()):
            try:
                saved = self._checked(self._place(step))
                check(saved)
            except DamagedError as error:
                skipped.append(str(error))
                continue
            return replace(
                saved, skipped=tuple(f"{problem}; the one before it is used" for problem in skipped)
            )
        raise RunError("; ".join(skipped) or f"{self.folder.parent} has no checkpoint")

    def _checked(self, folder: Path) -> Saved:
        """Returns a checkpoint whose every file, but not its rows, is as it was written."""
        manifest = self._manifest(folder)
        try:
            for name, expected in manifest["files"].items():
                disk.read(folder, name, expected)
        except Exception as error:  # whatever a stranger's bytes lead to
            raise DamagedError(f"{folder} is damaged: {_reason(error)}") from error
        return Saved(folder, manifest)

    def _manifest(self, folder: Path) -> dict[str, Any]:
        """Returns a manifest that is as it was written, and names nothing outside its folder."""
        try:
            content = disk.read_small(folder / _MANIFEST)
            sealed = (folder / _SEAL).exists()
            if sealed and disk.read_small(folder / _SEAL) != hashlib.sha256(content).hexdigest().encode():
                raise ValueError(f"{_MANIFEST} differs from its checksum")
            manifest = json.loads(content)
            schema = manifest["schema"]
            if schema > SCHEMA:
                raise RunError(
                    f"{folder} has schema {schema}; this rlagents reads up to {SCHEMA}: install a newer one"
                )
            if schema > 1 and not sealed:
                raise ValueError(f"{_SEAL} is missing")
            if manifest["step"] != int(folder.name):
                raise ValueError(f"{_MANIFEST} is of env step {manifest['step']}")
            for name in [*manifest["files"], *(entry["file"] for entry in manifest["replay"])]:
                if not _NAME.fullmatch(name):
                    raise ValueError(f"{name!r} is no name of a file in it")
            return manifest | {key: dict(manifest.get(key, {})) for key in ("experiment", "versions")}
        except RunError:
            raise
        except Exception as error:  # whatever a stranger's bytes lead to
            raise DamagedError(f"{folder} is damaged: {_reason(error)}") from error

    def newest(self, replay: Ring | None = None) -> Saved:
        """Returns the newest checkpoint that is whole, for a resume; puts damaged newer ones aside.

        Args:
            replay: gets its rows back; they can be sampled once it is reopened.

        Raises:
            RunError: there is none, or it is of another experiment.
        """
        for former in self.folder.glob(".*.old"):  # killed while it was being replaced
            place = former.with_name(former.stem.removeprefix("."))
            if not place.exists():
                former.rename(place)

        def check(saved: Saved) -> None:
            self._require_same_experiment(saved)
            if replay is not None:
                self._restore_rows(saved, replay)

        saved = self._newest_whole(check)
        for bad in [step for step in self.steps() if step > saved.step]:
            aside = self._place(bad).with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            self._place(bad).rename(aside)
        self._best = self._best_of(saved.manifest)
        self._entries = [] if replay is None else list(saved.manifest["replay"])
        return saved

    def _require_same_experiment(self, saved: Saved) -> None:
        there = saved.manifest["experiment"]
        for name, value in self._experiment.items():
            if name in there and there[name] != value:
                raise RunError(
                    f"{saved.folder} is of another experiment: {name} is {json.dumps(there[name])} there and "
                    f"{json.dumps(value)} in config.toml; put the former value back"
                )

    def _restore_rows(self, saved: Saved, replay: Ring) -> None:
        """Reads the replay's rows back; DamagedError if a segment is missing or damaged.

        While one segment is copied, a thread reads and checks the next one into memory that is used again.
        """
        replay.forget()
        entries = saved.manifest["replay"]
        rooms = [disk.NO_ROOM, disk.NO_ROOM]

        def fetch(number: int) -> memoryview:
            entry, room = entries[number], rooms[number % 2]
            content = disk.read_into(self._segments, entry["file"], entry, room)
            rooms[number % 2] = max(content, room, key=len)
            return disk.inflate(content, entry["bytes"]) if entry["file"].endswith(".zlib") else content

        with ThreadPoolExecutor(1) as reader:
            coming = [reader.submit(fetch, number) for number in range(len(entries[:1]))]
            for number, entry in enumerate(entries):
                name = entry["file"]
                try:
                    content = coming.pop().result()
                    if number + 1 < len(entries):
                        coming.append(reader.submit(fetch, number + 1))
                    parts = disk.tensors(content)
                    start, times = entry["start"], len(parts["final"])
                    if start < 0 or (number and start != replay.time) or entry["stop"] - start != times:
                        raise ValueError(f"it does not hold rows {replay.time} to {entry['stop']}")
                    replay.restore(start, parts)
                except Exception as error:  # whatever a stranger's bytes lead to
                    raise DamagedError(
                        f"{saved.folder} lacks {self._segments / name}, which is damaged: {_reason(error)}"
                    ) from error


def write_tensors(file: Path, named: Mapping[str, Any]) -> None:
    """Writes tensors, and dictionaries of them, as safetensors."""
    flat = {path: value.detach().cpu().contiguous() for path, value in _flatten(named)}
    disk.write(file, safetensors.save(flat))


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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

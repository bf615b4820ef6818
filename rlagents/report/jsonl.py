"""The numbers of a run as a file of JSON lines: the record that every other tool can read."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast


class JsonLines:
    """Appends one JSON object per write: `step` and the values; NaN and infinities become null.

    A disk that is full stops nothing: what could not be written is kept, and goes before the next line.

    Opening mends the file first: a last line torn by a crash goes, and so does everything after `resume`,
    since a run resumed at that step writes it again.

    Args:
        path: the file; it need not exist.
        resume: env steps at which the run goes on; None: keep every whole line.
    """

    def __init__(self, path: Path, *, resume: int | None = None) -> None:
        if path.exists():
            _mend(path, resume)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._pending = b""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line."""
        row = {
            "step": step,
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }
        self._pending += json.dumps(row, allow_nan=False).encode() + b"\n"
        with suppress(OSError):
            self._flush()

    def sync(self) -> None:
        """Waits until every line is on the disk; OSError where one cannot be written."""
        self._flush()
        os.fsync(self._file.fileno())

    def _flush(self) -> None:
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]

    def video(self, step: int, path: Path) -> None:
        """Nothing: the file holds numbers."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a file, also while a run is still writing it."""
    rows = [_row(line) for line in path.read_bytes().splitlines(keepends=True)]
    return [row for row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    """Returns the object in a line, or None where the line is torn."""
    try:
        row: Any = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    known = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
    return known if isinstance(known.get("step"), int) else None


def _mend(path: Path, resume: int | None) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    rows = [_row(line) for line in lines]
    kept = [
        line
        for line, row in zip(lines, rows, strict=True)
        if row is not None and (resume is None or row["step"] <= resume)
    ]
    if len(kept) < len(lines):
        mended = path.with_name(path.name + ".part")
        mended.write_bytes(b"".join(kept))
        mended.replace(path)

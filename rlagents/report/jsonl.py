"""The numbers of a run as a file of JSON lines: the record that every other tool can read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast


class JsonLines:
    """Appends one JSON object per write: `step` and the values; NaN and infinities become null.

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
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line and flushes it."""
        row = {
            "step": step,
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

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
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if isinstance(row, dict) and "step" in row:
        return cast("dict[str, Any]", row)
    return None


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

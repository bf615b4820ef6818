"""Finds an experiment by its name or path.

The one idea: the user's own come first, in `./experiments`; then those of a checkout; then those that were
installed with the package.
"""

import difflib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rlagents import toml
from rlagents.config import Experiment
from rlagents.errors import UsageError


def find(experiment: str | Path) -> Path:
    """Returns the file of an experiment.

    Args:
        experiment: A name; or a path, which contains a separator, ends with `.toml` or is a run directory.

    Raises:
        UsageError: There is none; says the nearest names.
    """
    path, text = Path(experiment), str(experiment)
    if text and (path / "config.toml").is_file():
        return path / "config.toml"
    if isinstance(experiment, Path) or {"/", os.sep} & set(text) or text.endswith(".toml"):
        if path.is_file():
            return path
        what = "is a folder without config.toml" if path.is_dir() else "does not exist"
        raise UsageError(f"experiment must be a name or a TOML file: {text} {what}{_nearest(path.stem)}")
    for folder in _folders():
        if (folder / f"{text}.toml").is_file():
            return folder / f"{text}.toml"
    raise UsageError(f'experiment must be a name or a TOML file, got "{text}"{_nearest(text)}')


def names() -> dict[str, str]:
    """Returns every experiment found by name, with the comment in its first line."""
    files = {file.stem: file for folder in reversed(_folders()) for file in folder.glob("*.toml")}
    return {name: _comment(files[name]) for name in sorted(files)}


def load(experiment: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Returns the experiment of a name or path, with KEY=VALUE applied.

    Raises:
        UsageError: There is none, or something in it is wrong: one line each.
    """
    return toml.load(find(experiment), overrides)


def _folders() -> list[Path]:
    """Returns where names are looked up, first to last."""
    beside = Path(__file__).resolve().parents[1]
    checkout = [beside / "experiments"] if (beside / "pyproject.toml").is_file() else []
    return [Path("experiments"), *checkout, Path(str(resources.files("rlagents") / "_experiments"))]


def _comment(file: Path) -> str:
    """Returns the comment in a file's first line; an unreadable file must not hide the others."""
    first = file.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _nearest(name: str) -> str:
    """Returns the hint to the experiments whose names are like this one."""
    known = list(names())
    within = [other for other in known if len(name) > 2 and name in other]
    near = difflib.get_close_matches(name, known) or within
    return f"; did you mean {' or '.join(near[:3])}?" if near else "; see `rlagents list experiments`"

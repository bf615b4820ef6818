"""An experiment as TOML: `load` merges a file with KEY=VALUE, `dump` writes every field with its description.

The one idea: whatever is wrong is told at once, each thing in one line with its dotted path, and nothing here
lists keys or kinds: nearest keys, choices and comments all come from the models.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args

import tomlkit
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rlagents.config import Experiment
from rlagents.errors import UsageError
from rlagents_envs.config import Model

Table: TypeAlias = dict[str, Any]

_REQUIREMENTS = {  # where pydantic speaks of Python
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "tuple_type": "must be an array",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}


def load(source: Path | Mapping[str, Any] | Experiment, overrides: Sequence[str] = ()) -> Experiment:
    """Returns the experiment that a file, or what one holds, describes.

    Where `run.name` does not say what it is called, it is called as its file.

    Args:
        source: A TOML file, its content, or an experiment to change.
        overrides: Settings as `agent.learning_rate=1e-4`: a dotted path and a TOML value, or a bare string.
            Later ones win. One that changes a `kind` drops what the file says of the former kind alone.

    Raises:
        UsageError: One line for each thing that is wrong.
    """
    table: Table = {"run": {}, "env": {}, **_read(source)}
    problems = _merge(table, overrides)
    _name_kinds(Experiment, table)
    try:
        experiment = Experiment.model_validate(table)
    except ValidationError as error:
        problems += [_complaint(details, table) for details in error.errors(include_url=False)]
        raise UsageError("\n".join(problems)) from error
    if problems:
        raise UsageError("\n".join(problems))
    if experiment.run.name:
        return experiment
    name = source.stem if isinstance(source, Path) else ""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "experiment"
    return experiment.model_copy(update={"run": experiment.run.model_copy(update={"name": name})})


def dump(experiment: Experiment) -> str:
    """Returns the TOML of every field with its description; `load` brings an equal experiment back."""
    fields = Experiment.model_fields.items()
    tables = (_lines(name, field, getattr(experiment, name)) for name, field in fields)
    return "\n".join("\n".join(lines) + "\n" for lines in tables)


def _lines(path: str, field: FieldInfo, model: Model) -> Iterator[str]:
    """Yields one model's TOML: its plain fields, `kind` first and comments aligned, then its tables."""
    yield f"[{path}]  # {str(model.__doc__).splitlines()[0].rstrip('.')}"
    rows: list[tuple[str, str]] = []
    tables: list[Iterator[str]] = []
    fields = type(model).model_fields
    for name in sorted(fields, key=lambda name: name != "kind"):
        value = getattr(model, name)
        if isinstance(value, Model):
            tables.append(_lines(f"{path}.{name}", fields[name], value))
            continue
        choices = " | ".join(_choices(field if name == "kind" else fields[name]))
        comment = "; ".join(filter(None, (choices, fields[name].description)))
        rows.append((f"{name} = {_text(value)}", comment))
    width = max((len(text) for text, _ in rows if len(text) <= 40), default=0)  # a long row has its own
    for text, comment in rows:
        yield f"{text:{width}}  # {comment}" if comment else text
    for lines in tables:
        yield ""
        yield from lines


def _text(value: Any) -> str:
    """Returns a value as TOML, always on one line."""
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, Any]", value).items()
        entries = (f"{tomlkit.key(key).as_string()} = {_text(inner)}" for key, inner in pairs)
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(inner) for inner in cast("Sequence[Any]", value)) + "]"
    return cast("str", tomlkit.item(value).as_string())  # pyright: ignore[reportUnknownMemberType]


def _read(source: Path | Mapping[str, Any] | Experiment) -> Table:
    """Returns the tables of an experiment, a copy that may be written to."""
    try:
        if isinstance(source, Path):
            return tomllib.loads(source.read_text(encoding="utf-8"))
        if isinstance(source, Experiment):
            return tomllib.loads(dump(source))
        return tomllib.loads(f"content = {_text(source)}")["content"]
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} must be UTF-8, got byte {error.object[error.start]:#04x}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source} must be TOML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{source} must not nest as deep as this") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"an experiment must hold only what TOML can: {error}") from error


def _merge(table: Table, overrides: Iterable[str]) -> list[str]:
    """Writes KEY=VALUE into the tables; returns what is wrong with them."""
    problems: list[str] = []
    given: dict[tuple[str, ...], Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            problems.append(f"an override must be KEY=VALUE, got {_shown(override)}")
            continue
        given.pop(path, None)  # the last one comes last
        given[path] = _value(text.strip())
    for path in sorted((path for path in given if path[-1] == "kind"), key=len):
        _switch(table, path[:-1], given[path])
    for path, value in given.items():
        inner = table
        for depth, name in enumerate(path[:-1], start=1):
            if (below := _within(inner, name)) is None:
                parent, got = ".".join(path[:depth]), _shown(inner[name])
                problems.append(f"{parent} must be a table to set {'.'.join(path)}, got {got}")
                break
            inner[name] = inner = below
        else:
            inner[path[-1]] = value
    return problems


def _value(text: str) -> Any:
    """Returns what a text is in TOML, or else the text: `env.game=breakout` needs no quotes."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return text if len(parsed) > 1 or isinstance(parsed["value"], date | time) else parsed["value"]


def _switch(table: Table, path: tuple[str, ...], kind: Any) -> None:
    """Makes the table at a path one of another kind; what only its former kind has is dropped."""
    if found := _descend(table, path):
        field, inner = found
        former, new = _chosen(field, inner), _chosen(field, {"kind": kind})
        if former and new:
            for name in former.model_fields.keys() - new.model_fields.keys():
                inner.pop(name, None)
            inner["kind"] = kind


def _within(table: Table, name: str) -> Table | None:
    """Returns the table of a name, empty if absent; None where something else has the name."""
    inner = table.get(name, {})
    return cast("Table", inner) if isinstance(inner, dict) else None


def _descend(table: Table, path: Sequence[str]) -> tuple[FieldInfo, Table] | None:
    """Returns the field and the content of the table at a path; None where it is not one of ours."""
    model: type[Model] | None = Experiment
    found = None
    for name in path:
        field, inner = model.model_fields.get(name) if model else None, _within(table, name)
        if field is None or inner is None:
            return None
        found, model, table = (field, inner), _chosen(field, inner), inner
    return found


def _members(field: FieldInfo) -> list[type[Model]]:
    """Returns the models that a field may hold: one, several told apart by `kind`, or none."""
    parts = get_args(field.annotation) or (field.annotation,)
    return [part for part in parts if isinstance(part, type) and issubclass(part, Model)]


def _choices(field: FieldInfo) -> list[str]:
    """Returns the words among which a field chooses, if it does: kinds, or those of a Literal."""
    words = [_kind(model) for model in _members(field)] or get_args(field.annotation)
    return [word for word in words if isinstance(word, str)] if len(words) > 1 else []


def _chosen(field: FieldInfo, table: Table) -> type[Model] | None:
    """Returns the model that a table is of: by its `kind`, or else the default's."""
    members = _members(field)
    kind = table.get("kind", getattr(field.default, "kind", None))
    return next((model for model in members if len(members) == 1 or _kind(model) == kind), None)


def _kind(model: type[Model]) -> str | None:
    """Returns what a model's `kind` says, if it has one."""
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def _name_kinds(model: type[Model], table: Table) -> None:
    """Writes the default's `kind` where a table leaves it out, so that `sync_every = 500` alone is enough."""
    for name, field in model.model_fields.items():
        inner = _within(table, name)
        if inner and (chosen := _chosen(field, inner)):
            if kind := _kind(chosen):
                inner.setdefault("kind", kind)
            _name_kinds(chosen, inner)


def _keys(model: type[Model], table: Table, prefix: str = "") -> Iterator[str]:
    """Yields every dotted key that the tables may have, their kinds being what they are."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = _within(table, name)
        if inner is not None and (chosen := _chosen(field, inner)):
            yield from _keys(chosen, inner, f"{prefix}{name}.")


def _complaint(error: ErrorDetails, table: Table) -> str:
    """Returns one line: dotted path, requirement, value and, where there is one, the nearest valid choice."""
    path, value, context = _dotted(error["loc"], table), error["input"], error.get("ctx", {})
    match error["type"]:
        case "value_error":
            return f"{path}: {context['error']}" if path else str(context["error"])
        case "extra_forbidden":
            return f"{path} is not a key, got {_shown(value)}{_nearest_key(path, table)}"
        case "missing":
            field = _field(path, table)
            return f"{path} must be given" + (f": {field.description}" if field and field.description else "")
        case "union_tag_invalid" | "union_tag_not_found":
            field = _field(path, table)
            return _one_of(f"{path}.kind", _choices(field) if field else [], value.get("kind"))
        case "literal_error":
            field = _field(path, table)
            return _one_of(path, list(map(str, get_args(field.annotation))) if field else [], value)
        case "int_type" if isinstance(value, float) and value.is_integer():
            return f"{path} must be an integer, got {value}; write {int(value):_}"
        case kind:
            requirement = _REQUIREMENTS.get(kind) or re.sub("^.*? should ", "must ", error["msg"])
            return f"{path} {requirement}, got {_shown(value)}"


def _dotted(location: Iterable[int | str], table: Table) -> str:
    """Returns where an error is as a user would write it: without the kinds that pydantic puts in between."""
    path, value, tagged = "", cast("Any", table), False
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not tagged and isinstance(value, dict) and part == cast("Table", value).get("kind"):
            tagged = True
        else:
            path += f".{part}" if path else part
            value, tagged = cast("Table", value).get(part) if isinstance(value, dict) else None, False
    return path


def _one_of(path: str, choices: Sequence[str], value: Any) -> str:
    """Returns the complaint about a value that is none of several, or not the only one."""
    got = "" if value is None else f", got {_shown(value)}"
    near = difflib.get_close_matches(str(value), choices, n=1)
    several = "one of " if len(choices) > 1 else ""
    return f"{path} must be {several}{', '.join(choices)}{got}" + (
        f"; did you mean {near[0]}?" if near else ""
    )


def _nearest_key(path: str, table: Table) -> str:
    """Returns the hint to what was meant: this key of another kind, of another table, or one like it."""
    parent, _, name = path.rpartition(".")
    if found := _descend(table, parent.split(".")):
        for model in _members(found[0]):
            if name in model.model_fields:
                return f'; {parent}.kind = "{_kind(model)}" has it'
    keys = [(key, *key.rpartition(".")[::2]) for key in _keys(Experiment, table)]
    here = {last: key for key, folder, last in keys if folder == parent}
    anywhere = {last: key for key, _, last in reversed(keys)}  # the outermost of each name
    for names, likeness in ((anywhere, 1), (here, 0.6), (anywhere, 0.6)):
        if near := difflib.get_close_matches(name, names, n=1, cutoff=likeness):
            return f"; did you mean {names[near[0]]}?"
    return ""


def _field(path: str, table: Table) -> FieldInfo | None:
    """Returns the field at a dotted path, whether or not the tables say anything there."""
    parent, _, name = path.rpartition(".")
    if not parent:
        return Experiment.model_fields.get(name)
    found = _descend(table, parent.split("."))
    model = _chosen(*found) if found else None
    return model.model_fields.get(name) if model else None


def _shown(value: Any) -> str:
    """Returns a value on one line, shortened."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

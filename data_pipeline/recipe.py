"""Recipes: one flat TOML file a job, read as data, overridden by `--set a.b=c`, checked section by section.

Each package owns its sections as frozen pydantic models that forbid unknown keys; this module only reads, overrides, parses and
reports. All faults of a section are listed at once.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from data_pipeline.errors import InputError

SECTIONS = ("name", "source", "analysis", "nature", "ensemble", "periods", "model", "training", "forecast", "verification")

STAMP = r"\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?)?"


def _hours(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,4}h", text):
        raise ValueError(f"{text!r}: expected whole hours, for example 6h, 12h or 24h")
    return text


def _stamp(text: str) -> str:
    if not _is_stamp(text):
        raise ValueError(f"{text!r}: expected an ISO stamp in UTC without a zone, for example 2001-01-01T12")
    return text


def _is_stamp(text: str) -> bool:
    if not re.fullmatch(STAMP, text):  # other forms of ISO 8601 are read differently by numpy, or not at all
        return False
    try:
        return 1678 <= dt.datetime.fromisoformat(text).year <= 2261  # what nanoseconds can hold
    except ValueError:
        return False


Hours = Annotated[str, AfterValidator(_hours)]
Stamp = Annotated[str, AfterValidator(_stamp)]


class Section(BaseModel):
    """Base of every section: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


SectionT = TypeVar("SectionT", bound=Section)


def read_recipe(path: str | Path, overrides: Sequence[str] = (), sections: Sequence[str] = SECTIONS) -> dict[str, Any]:
    """The recipe as nested dicts, with `a.b=value` overrides applied (value in TOML, or a bare string).

    Raises InputError for a missing file, TOML syntax, an override that is not key=value, an unknown section, or a name
    that is none.
    """
    path = Path(path)
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"recipe {path} not found; the packaged ones are in recipes/") from None
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} is not valid TOML: {error}") from None
    raw.setdefault("name", path.stem)
    for override in overrides:
        _apply(raw, override)
    raw = _dates_as_text(raw)
    if not isinstance(raw["name"], str) or not re.fullmatch(r"\w[^/]*", raw["name"]):
        raise InputError(f"recipe {path}: name {raw['name']!r}; expected a text that can name a folder, as planet")
    unknown = sorted(set(raw) - set(sections))
    if unknown:
        raise InputError(f"recipe {path}: unknown section {', '.join(unknown)}; expected some of {', '.join(sections)}")
    return raw


def section(recipe: Mapping[str, Any], name: str, model: type[SectionT]) -> SectionT:
    """Section `name` of a recipe as `model`. Raises InputError listing every fault with its key."""
    try:
        return model.model_validate(recipe.get(name, {}))
    except ValidationError as error:
        known = ", ".join(sorted(model.model_fields))
        lines = []
        for fault in error.errors():
            key = ".".join([name, *map(str, fault["loc"])])
            if fault["type"] == "extra_forbidden":
                lines.append(f"  - {key}: unknown key; [{name}] knows {known}")
            else:
                lines.append(f"  - {key}: {fault['msg']}")
        raise InputError(f"recipe {recipe.get('name', '?')!r}, section [{name}]:\n" + "\n".join(lines)) from None


def fingerprint(parts: Mapping[str, Any]) -> str:
    """A short hash of plain data, independent of key order: equal recipes have equal fingerprints."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Lines `a.b: old -> new` for every leaf in which two nested mappings differ."""
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {before!r} -> {after!r}"


def _dates_as_text(value: Any) -> Any:
    """TOML reads an unquoted 2001-02-28 as a date; sections and fingerprints want the text."""
    if isinstance(value, dict):
        return {key: _dates_as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_dates_as_text(item) for item in value]
    return value.isoformat() if isinstance(value, dt.date) else value


def _apply(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise InputError(f"--set {override!r}: expected key=value, for example training.minutes=30")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, leaf = key.strip().split(".")
    table = raw
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override!r}: {parent!r} is a value, not a section")
    table[leaf] = value

"""TOML, overrides laid over it, and validation whose complaint is one line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..blocks.families import family_names
from ..errors import InputError

T = TypeVar("T", bound=BaseModel)


def lay_over(raw: dict[str, Any], overrides: Sequence[str] | Mapping[str, object]) -> None:
    """Put overrides into the tables of a TOML file: `key=value` texts, or a mapping of values as they are.

    The value of a text is read as TOML where it is TOML, else as text: `--set name=mine`.
    """
    values = overrides if isinstance(overrides, Mapping) else dict(map(_parsed_override, overrides))
    for key, value in values.items():
        _lay_over(raw, key, value)


def read_text(field: str, path: str | Path) -> str:
    """A small text file; InputError naming `field` and path."""
    try:
        return Path(path).read_text("utf-8-sig")  # Windows' editors begin a file with a byte order mark
    except FileNotFoundError:
        raise InputError(field, str(path), "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(field, str(path), f"not a readable text file ({type(error).__name__})") from None


def parsed_toml(field: str, path: str | Path, text: str) -> dict[str, Any]:
    """The TOML that was read from `path`; InputError naming `field` and path."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(field, str(path), f"not valid TOML: {error}") from None
    except RecursionError:
        raise InputError(field, str(path), "not valid TOML: nested too deeply") from None


def validated(kind: type[T], raw: object) -> T:
    """Validate with pydantic and turn the first complaint into one line naming field, value and rule."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise _readable(error) from None


def validated_json(kind: type[T], text: str) -> T:
    """As `validated`, from JSON text."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise _readable(error) from None


def _readable(error: ValidationError) -> InputError:
    families = family_names()
    first = error.errors(include_url=False)[0]
    # A union's tag is no field: model.vit.layers is model.layers.
    field = ".".join(str(part) for part in first["loc"] if part not in families)
    if first["type"] == "rule":
        broken = first["ctx"]
        return InputError(f"{field}.{broken['field']}".lstrip("."), broken["value"], broken["rule"])
    if first["type"] == "union_tag_invalid":
        found = first["ctx"]
        tag = f"{field}.{found['discriminator'].strip(chr(39))}".lstrip(".")
        return InputError(tag, found["tag"], f"expected one of {found['expected_tags'].replace(chr(39), '')}")
    rule = {"extra_forbidden": "unknown field"}.get(
        first["type"], first["msg"][:1].lower() + first["msg"][1:]
    )
    return InputError(field or "settings", first["input"], rule)


def _parsed_override(override: str) -> tuple[str, object]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError("--set", override, "expected key=value, as in --set privacy.epsilon=3")
    try:
        return key, tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return key, text


def _lay_over(raw: dict[str, Any], key: str, value: object) -> None:
    *parents, last = key.split(".")
    table = raw
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise InputError("--set", f"{key}={value}", f"{parent} is a value, not a table")
    table[last] = value

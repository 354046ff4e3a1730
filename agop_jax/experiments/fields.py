"""From values of a config file or the command line to the fields of frozen dataclasses, checked for their types."""

import ast
import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from agop_jax.core.errors import UserError, unknown_name

URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def unpack(section: type, values: Mapping[str, Any], name: str = "") -> Any:
    """A frozen dataclass from a dictionary; a dictionary within it becomes the field's own dataclass.

    Args:
      section: the dataclass.
      values: by field.
      name: of the section in the config, for messages.

    Raises:
      UserError: a field that the dataclass lacks, or a value of another type.
    """
    hints = typing.get_type_hints(section)
    if unknown := [key for key in values if key not in hints]:
        raise unknown_name(f"field of config{f'.{name}' if name else ''}", unknown[0], hints)
    fields = {}
    for key, value in values.items():
        path = f"{name}.{key}".strip(".")
        nested = dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping)
        fields[key] = unpack(hints[key], value, path) if nested else converted(path, value, hints[key])
    try:
        return section(**fields)
    except UserError as error:
        raise error if str(error).startswith("config.") or not name else UserError(f"config.{name}: {error}") from None


def converted(path: str, value: Any, kind: Any) -> Any:
    """A value as the type of its field: a list of words or numbers, parted by commas, becomes a tuple."""
    if dataclasses.is_dataclass(kind):
        return value
    if isinstance(kind, types.UnionType):  # of class indices or a name
        return _indices(path, value)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        items = value if isinstance(value, tuple | list) else (value,)
        return tuple(_scalar(path, word, item) for word in _words(items))
    return _scalar(path, value, kind)


def _words(items: Iterable[Any]) -> Iterable[Any]:
    for item in items:
        yield from (word.strip() for word in item.split(",") if word.strip()) if isinstance(item, str) else [item]


def _indices(path: str, value: Any) -> str | tuple[int, ...]:
    """'logits', 'loss' or class indices, which the command line gives as text."""
    items = [str(item) for item in value] if isinstance(value, tuple | list) else [str(value)]
    words = [word.strip() for item in items for word in item.strip("()[] ").split(",") if word.strip()]
    if not words or not all(re.fullmatch(r"-?\d+", word) for word in words):
        return words[0] if len(words) == 1 else ", ".join(words)
    return tuple(map(int, words))


def _scalar(path: str, value: Any, kind: type) -> Any:
    """A number may be written as text, and a whole number stand for any; nothing else is converted."""
    if isinstance(value, str) and kind in (int, float):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise _misfit(path, value, kind) from None
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise _misfit(path, value, kind)
    if type(value) is not kind:
        raise _misfit(path, value, kind)
    return value


def _misfit(path: str, value: Any, kind: type) -> UserError:
    names = {int: "a whole number", float: "a finite number", str: "text", bool: "True or False"}
    return UserError(f"config.{path}: wanted {names.get(kind, kind.__name__)}, got {value!r}")


def hashable(value: Any) -> Any:
    """Lists as tuples: a network's fields must be hashable."""
    return tuple(value) if isinstance(value, list) else value


def require(path: str, value: Any, holds: bool, domain: str) -> None:
    """A `UserError` that names the field where the condition does not hold."""
    if not holds:
        raise UserError(f"config.{path}: wanted {domain}, got {value!r}")


def require_numbers(name: str, section: Any, fields: Iterable[str], least: int) -> None:
    """Refuses fields of a section below this value."""
    prefix = "" if name == "config" else f"{name}."
    for key in fields:
        require(f"{prefix}{key}", getattr(section, key), getattr(section, key) >= least, f"{least} or more")


def require_pattern(path: str, pattern: str) -> None:
    """Refuses what is not a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"config.{path}: {pattern!r} is not a regular expression: {error}") from None


def require_local(values: Mapping[str, Any], prefix: str = "config") -> None:
    """Refuses a URL in place of a file or directory: nothing here reads or writes buckets."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            require_local(value, f"{prefix}.{key}")
        elif isinstance(value, str) and key != "question" and URL.search(value):
            raise url_error(f"{prefix}.{key}", value)


def url_error(field: str, url: str) -> UserError:
    """The error for a URL in place of a path."""
    return UserError(f"{field}: wanted a path on this machine, got the URL {url!r}: mount the bucket or copy it here")

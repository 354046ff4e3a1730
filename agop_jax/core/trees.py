"""Parameters by path: 'block/Conv_0/kernel' instead of nested dictionaries."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from flax import traverse_util

from agop_jax.core.errors import UserError


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries to one, keys joined by '/'."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def select(paths: Iterable[str], pattern: str) -> list[str]:
    """The paths that a regular expression matches in full; an error that lists all when it matches none."""
    paths = list(paths)
    if not isinstance(pattern, str):
        raise UserError(f"layers: needed a regular expression for whole paths as text, got {type(pattern).__name__}")
    try:
        chosen = [path for path in paths if re.fullmatch(pattern, path)]
    except re.error as error:
        raise UserError(f"layers={pattern!r} is not a regular expression: {error}") from None
    if not chosen:
        raise UserError(f"layers={pattern!r} matches no layer. Layers: {', '.join(paths) or 'none'}.")
    return chosen

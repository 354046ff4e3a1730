"""Parameters by path: 'block/Conv_0/kernel' instead of nested dictionaries."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import traverse_util

from agop_jax.core.errors import UserError

KERNEL = "kernel"


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries to one, keys joined by '/'."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def join(*parts: str) -> str:
    """A path from its parts; the root module's own path is empty."""
    return "/".join(part for part in parts if part)


def kernels(params: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Every leaf called 'kernel', by the path of the layer that owns it."""
    suffix = f"/{KERNEL}"
    leaves = {f"/{path}": leaf for path, leaf in flatten(params).items()}
    return {path.removesuffix(suffix).removeprefix("/"): leaf for path, leaf in leaves.items() if path.endswith(suffix)}


def select(paths: Iterable[str], pattern: str) -> list[str]:
    """The paths that a regular expression matches in full; an error that lists all when it matches none."""
    paths = list(paths)
    try:
        chosen = [path for path in paths if re.fullmatch(pattern, path)]
    except re.error as error:
        raise UserError(f"layers={pattern!r} is not a regular expression: {error}") from None
    if not chosen:
        raise UserError(f"layers={pattern!r} matches no layer. Layers: {', '.join(paths) or 'none'}.")
    return chosen


def replace_kernels(params: Mapping[str, Any], new: Mapping[str, jax.Array]) -> dict[str, Any]:
    """`params` with the kernels of these layers exchanged; shapes must stay, dtypes are kept."""
    flat = flatten(params)
    for path, kernel in new.items():
        name = join(path, KERNEL)
        if name not in flat:
            raise UserError(f"layer {path!r} has no kernel. Layers: {', '.join(kernels(params))}.")
        if flat[name].shape != kernel.shape:
            raise UserError(f"layer {path!r}: wanted a kernel of shape {flat[name].shape}, got {kernel.shape}")
        flat[name] = kernel.astype(flat[name].dtype)
    return unflatten(flat)

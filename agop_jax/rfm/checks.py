"""Bad input, refused in one line before anything is computed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from agop_jax.core.errors import UserError, unknown_name
from agop_jax.rfm.solvers import METHODS

DTYPES = ("float32", "float64")
KERNELS = ("arc_cosine", "radial")  # of patches
PADDINGS = ("SAME", "VALID")


def require_finite(name: str, array: np.ndarray) -> None:
    """Refuses NaN and infinity, by the first row that has one."""
    rows = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
    if len(rows):
        what = "NaN" if np.isnan(array[rows[0]]).any() else "infinity"
        raise UserError(
            f"{name}: needed finite numbers, row {rows[0]} has {what}: leave {len(rows)} rows out or impute"
        )


def require_targets(name: str, targets: Any) -> None:
    """Refuses to fit without targets, in the words that scikit-learn looks for."""
    if targets is None:
        raise UserError(f"{name} requires y to be passed, but the target y is None")


def require_rows(count: int) -> None:
    """Refuses what nothing can be learned from."""
    if count < 2:
        raise UserError(f"X: needed 2 rows or more, got n_samples={count}: give more examples")


def require_same_length(inputs: np.ndarray, targets: np.ndarray) -> None:
    """Refuses another number of targets than of inputs."""
    if len(inputs) != len(targets):
        raise UserError(f"y: needed one target a row of X, got {len(targets)} for {len(inputs)} rows")


def require_variation(targets: np.ndarray) -> None:
    """Refuses targets of which each column is constant."""
    if not (targets != targets[:1]).any():
        raise UserError("y: needed targets that differ, all are the same: there is nothing to fit")


def require_classes(classes: np.ndarray) -> None:
    """Refuses labels of one class."""
    if len(classes) < 2:
        raise UserError(
            f"y: needed labels of 2 classes or more, got 1 class, {str(classes[0])!r}: add examples of another"
        )


def require_distinct(inputs: np.ndarray, ridge: int | float) -> None:
    """Refuses repeated rows where no ridge keeps their kernel matrix from being singular."""
    flat = inputs.reshape(len(inputs), -1)
    if ridge == 0 and len(np.unique(flat, axis=0)) < len(flat):
        raise UserError("ridge: needed more than 0, since X has rows that are repeated: set ridge, or drop them")


def require_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuses numbers out of range and names that are not known."""
    limits = {
        "bandwidth": ("above 0", lambda value: value > 0),
        "exponent": ("above 0 and at most 2", lambda value: 0 < value <= 2),
        "ridge": ("0 or more", lambda value: value >= 0),
        "iterations": ("a whole number from 0", lambda value: value >= 0 and value == int(value)),
        "memory": ("above 0, or None", lambda value: value is None or value > 0),
        "rank": ("1 or more", lambda value: value >= 1),
        "tolerance": ("above 0", lambda value: value > 0),
        "steps": ("1 or more", lambda value: value >= 1),
        "kernel_size": ("1 or more", lambda value: value >= 1),
        "stride": ("1 or more", lambda value: value >= 1),
        "positions": ("1 or more", lambda value: value >= 1),
    }
    for name, (limit, holds) in limits.items():
        if name in parameters and not holds(parameters[name]):
            raise UserError(f"{name}: needed {limit}, got {parameters[name]!r}")
    for name, known in (("solver", METHODS), ("dtype", DTYPES), ("kernel", KERNELS), ("padding", PADDINGS)):
        if name in parameters and parameters[name] not in known:
            raise unknown_name(name, str(parameters[name]), known)

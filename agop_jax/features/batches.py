"""Examples in batches of one shape, so that one compiled step serves them all."""

import inspect
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agop_jax.core import hosts
from agop_jax.core.errors import UserError

Batch = tuple[Any, np.ndarray, np.ndarray]  # inputs, labels, weights (1 for an example, 0 for padding)
Batches = Iterable  # of Batch, unsubscripted: to check the type of its items a run-time checker would use one up


class BatchStream:
    """Inputs cut into batches, each padded to one length with copies of weight zero.

    Args:
      inputs: an array with a leading axis of examples, or a dictionary of such; or an iterable of either, or of
        (inputs, labels) pairs.
      labels: (n,), of inputs that are no iterable; or None.
      batch_size: the most examples in a batch. Where there are fewer in all, or in the first element of an iterable, a
        batch is no larger than they are.
      parts: the length is a multiple of this, such as the number of devices.

    Attributes:
      batch_size: of this process, without padding.
      total: number of batches, or None where only the iterable knows.

    Raises:
      UserError: a batch size that is no whole number above 0, inputs that are no arrays of numbers, are not finite or
        have other numbers of examples than labels, no example at all, or labels beside an iterable.
    """

    def __init__(self, inputs: Any, labels: Any, batch_size: Any, parts: int = 1) -> None:
        if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
            raise UserError(f"batch_size: needed a whole number of 1 or more, got {batch_size!r}")
        whole = _is_one_batch(inputs)
        if labels is not None and not whole:
            raise UserError("labels: an iterable of inputs brings its own, as (inputs, labels) pairs")
        pieces = iter([(inputs, labels)] if whole else map(_pair, inputs))
        first = next(pieces, None)
        if first is None or not num_examples(first[0]):
            raise UserError("inputs: needed at least one example, got none")
        count = num_examples(first[0])
        # several processes need batches of one length, and know only their own examples
        self.batch_size: int = int(batch_size if hosts.several() else min(batch_size, count))
        self.total: int | None = -(-count // self.batch_size) if whole else None
        self._length = -(-self.batch_size // parts) * parts
        self._pieces = itertools.chain([first], pieces)

    def __iter__(self) -> Iterator[Batch]:
        for inputs, labels in self._pieces:
            for start in range(0, num_examples(inputs), self.batch_size):
                cut = slice(start, start + self.batch_size)
                piece = jax.tree.map(lambda leaf: leaf[cut], inputs)  # noqa: B023
                yield _padded(piece, None if labels is None else labels[cut], self._length)


def num_examples(inputs: Any) -> int:
    """Length of the leading axis that all arrays of the inputs share."""
    leaves = [np.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    lengths = {shape[0] if shape else None for shape in leaves}
    if len(lengths) != 1 or None in lengths:
        raise UserError(f"inputs: needed arrays with one leading axis of examples, got the shapes {leaves}")
    return leaves[0][0]


def warn_of_bytes(inputs: Any) -> None:
    """Pictures as they are stored have whole numbers from 0 to 255, which few networks are trained on."""
    if any(getattr(leaf, "dtype", None) == np.uint8 for leaf in jax.tree.leaves(inputs)):
        warnings.warn(
            "inputs of uint8: features are right only if the model normalises images itself; else normalise these as "
            "in its training, such as (images / 255 - mean) / std",
            UserWarning,
            stacklevel=_caller(),
        )


def _caller() -> int:
    """The stack level, as seen from whoever calls this, of the first function outside of the package."""
    package = str(Path(__file__).parent.parent)
    own = itertools.takewhile(lambda frame: frame.filename.startswith(package), inspect.stack(0)[1:])
    return 1 + len(list(own))


def _is_one_batch(inputs: Any) -> bool:
    if hasattr(inputs, "shape") or isinstance(inputs, Mapping):
        return True
    if not isinstance(inputs, Iterable):
        raise UserError(
            f"inputs: needed an array (n, ...), a dictionary of such or an iterable, got {type(inputs).__name__}"
        )
    return False


def _pair(element: Any) -> tuple[Any, Any]:
    return tuple(element) if isinstance(element, tuple | list) and len(element) == 2 else (element, None)


def _padded(inputs: Any, labels: Any, length: int) -> Batch:
    inputs, count = jax.tree.map(_numbers, inputs), num_examples(inputs)
    labels = np.full(count, -1) if labels is None else np.asarray(labels)
    if labels.shape != (count,):
        raise UserError(f"labels: needed one for each of {count} examples, (n,), got shape {labels.shape}")
    missing = length - count
    weights = np.r_[np.ones(count), np.zeros(missing)].astype(np.float32)
    repeat = lambda array: np.concatenate([array, np.repeat(array[:1], missing, axis=0)])
    return jax.tree.map(repeat, inputs), repeat(labels), weights


def _numbers(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufcV":  # V: bfloat16 and its like
        raise UserError(f"inputs: needed arrays of numbers, got one of type {array.dtype}")
    if array.dtype.kind in "fcV" and not np.isfinite(array.astype(np.float32)).all():
        raise UserError("inputs: they hold NaN or infinity: clean them, or check their normalisation")
    return array


def labelled(batches: Batches, num_classes: int) -> Iterator[Batch]:
    """The batches, their labels checked: one that is missing is -1 here, and the loss would clip it in silence."""
    for inputs, labels, weights in batches:
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= num_classes:
            raise UserError(
                f"outputs='loss' needs labels, whole numbers from 0 to {num_classes - 1}: extract(..., labels=labels), "
                "or an iterable of (inputs, labels)"
            )
        yield inputs, labels, weights

"""Images in batches of one shape, so that one compiled step serves them all."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from agop_jax.core.errors import UserError

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # images, labels, weights (1 for an image, 0 for padding)
Batches = Iterable  # of Batch, unsubscripted: to check the type of its items a run-time checker would use one up


def stream(images: Any, labels: Any, batch_size: int, length: int) -> Iterator[Batch]:
    """Arrays are cut into batches of `batch_size`, each padded to `length` with copies of weight zero."""
    for pieces in [(images, labels)] if hasattr(images, "shape") else map(_pair, images):
        for start in range(0, len(pieces[0]), batch_size):
            cut = slice(start, start + batch_size)
            yield _padded(pieces[0][cut], None if pieces[1] is None else pieces[1][cut], length)


def _pair(element: Any) -> tuple[Any, Any]:
    return tuple(element) if isinstance(element, tuple | list) else (element, None)


def _padded(images: Any, labels: Any, length: int) -> Batch:
    images = np.asarray(images)
    labels = np.full(len(images), -1) if labels is None else np.asarray(labels)
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise UserError(f"extract: wanted images (n, h, w, c) and labels (n,), got {images.shape} and {labels.shape}")
    if not np.isfinite(images).all():
        raise UserError("extract: the images hold NaN or infinity: clean them, or check their normalisation")
    missing = length - len(images)
    weights = np.r_[np.ones(len(images)), np.zeros(missing)].astype(np.float32)
    repeat = lambda array: np.concatenate([array, np.repeat(array[:1], missing, axis=0)])
    return repeat(images), repeat(labels), weights


def labelled(batches: Batches, num_classes: int) -> Iterator[Batch]:
    """The batches, their labels checked: one that is missing is -1 here, and the loss would clip it in silence."""
    for images, labels, weights in batches:
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= num_classes:
            raise UserError(
                f"outputs='loss' needs labels, whole numbers from 0 to {num_classes - 1}: extract(..., labels=labels), "
                "or an iterable of (images, labels)"
            )
        yield images, labels, weights

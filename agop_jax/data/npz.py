"""A file of arrays as a data set."""

# pyright: reportArgumentType=false

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.files import UNREADABLE, unreadable_reason
from agop_jax.data.labels import KINDS
from agop_jax.data.splits import VALIDATION_NAMES, Source, Split, only_one

SMALL = 8  # pixels: below this a shape does not tell a short side from a number of channels
Arrays = Mapping[str, np.ndarray]


def read_npz(argument: str, size: int, limit: int) -> Source:
    """The arrays train_images, train_labels, test_images, test_labels; or images, labels, of which a test is split off.

    val_images and val_labels (or valid_*, validation_*) are the validation split; where they are there, the test arrays
    may be missing.
    """
    if not argument:
        raise UserError("data set 'npz' needs a file: npz:/path/to/file.npz")
    path = Path(argument).expanduser()
    arrays = _read(path, limit)
    train = _train_prefix(path, arrays)
    validation = only_one(str(path), [f"{name}_" for name in VALIDATION_NAMES if _holds(arrays, f"{name}_")])
    test = "test_" if _holds(arrays, "test_") or (train and not validation) else None
    prefixes = {"train": train, "validation": validation, "test": test}
    prefixes = {part: prefix for part, prefix in prefixes.items() if prefix is not None}
    used = [f"{prefix}{kind}" for prefix in prefixes.values() for kind in ("images", "labels")]
    if missing := [name for name in used if name not in arrays]:
        raise UserError(
            f"data set: {str(path)!r} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}"
        )
    splits = {part: _split(path, arrays, prefix) for part, prefix in prefixes.items()}
    origins = {part: f"{prefix}images" for part, prefix in prefixes.items()}
    return Source(**splits, origins=origins, unused=tuple(sorted(arrays.keys() - set(used))))


def _read(path: Path, limit: int) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            _require_memory(path, sum(entry.file_size for entry in file.zip.infolist()), limit)
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"data set: no file {str(path)!r}") from None
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"data set: {str(path)!r} is no readable .npz file ({unreadable_reason(error)})") from None


def _require_memory(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise UserError(
            f"data set: {str(path)!r} takes {size / 2**30:.2g} GiB, wanted {limit / 2**30:.2g} at most: raise "
            "config.data.memory, or store the images as pictures (folder:DIR), which can be streamed"
        )


def _holds(arrays: Arrays, prefix: str) -> bool:
    return f"{prefix}images" in arrays or f"{prefix}labels" in arrays


def _train_prefix(path: Path, arrays: Arrays) -> str:
    """'train_', or nothing where the training arrays are called images and labels."""
    if "images" in arrays and "train_images" in arrays:
        raise UserError(f"data set: {str(path)!r} holds both images and train_images: wanted one of them")
    return "" if {"images", "labels"} <= set(arrays) else "train_"


def _split(path: Path, arrays: Arrays, prefix: str) -> Split:
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    _require_order(path, images.shape, labels.shape)
    if images.dtype != np.uint8:
        raise UserError(f"data set: {str(path)!r}: wanted uint8 images (0 to 255), got {images.dtype}")
    if labels.dtype.kind not in KINDS:
        raise UserError(f"data set: {str(path)!r}: wanted integer labels or names, got {labels.dtype}")
    return Split(images[..., None] if images.ndim == 3 else images, labels)


def _require_order(path: Path, shape: tuple[int, ...], labels: tuple[int, ...]) -> None:
    """Images first and channels last. Another order would be taken for pictures of many channels."""
    order = _transpose(shape, math.prod(labels))
    if order:
        raise UserError(
            f"data set: {str(path)!r}: images of shape {shape} seem to be in another order, wanted (n, height, width, "
            f"channels): store np.transpose(images, {order})"
        )


def _transpose(shape: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """The axes of images first and channels last, where the shape tells that they are elsewhere."""
    if len(shape) == 3:
        return (2, 0, 1) if shape[2] == count != shape[0] else None
    if len(shape) != 4:
        return None
    if shape[3] == count and (shape[0] != count or shape[2] <= 4 < count):
        return (3, 1, 2, 0) if _channels_first(*shape[:3]) else (3, 0, 1, 2)
    return (0, 2, 3, 1) if shape[0] == count and _channels_first(*shape[1:]) else None


def _channels_first(first: int, second: int, third: int) -> bool:
    """Whether a picture of this shape is more likely (c, h, w) than (h, w, c).

    It is where the first axis is the short one by far, or where the others are the sides of a square. A true picture
    of 1 x 40 with 13 channels can be stored as one of 40 x 1.
    """
    square, short = second == third, min(second, third)
    if short < SMALL:
        return square and third > 4 and first in (1, 3)
    return first < short if square else 2 * first <= short

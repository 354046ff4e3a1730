"""Data sets by name. Every source yields uint8 images (n, h, w, c) and integer labels; here they are split in three."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agop_jax.core import hosts
from agop_jax.core.errors import UserError, unknown_name
from agop_jax.core.files import UNREADABLE
from agop_jax.data import prepared
from agop_jax.data.folder import read_folder
from agop_jax.data.splits import (
    AnySplit,
    Split,
    balanced_order,
    check_splits,
    decoded_bytes,
    memory_bytes,
    split_off_test,
)

SAMPLE = 10_000  # images of a streamed training split that mean and std are taken of
GIB = 2**30
AT_ONCE = 2**23  # bytes of images that are summed up in one go


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in three splits.

    Attributes:
      name: as it was asked for.
      train, validation, test: the splits.
      num_classes: labels run from 0 to num_classes - 1.
      mean, std: per channel over `measured(train)`, in units of pixel / 255.
    """

    name: str
    train: AnySplit
    validation: AnySplit
    test: AnySplit
    num_classes: int
    mean: np.ndarray
    std: np.ndarray


def load(name: str, *, validation: float = 0.1, seed: int = 0, size: int = 0, memory: float = 0.0) -> Dataset:
    """Reads a data set and splits it.

    Pictures of 'folder' and 'tfds' that take more than `memory` stay on disk: the splits are `StoredSplit`s of the same
    images in the same order, and `mean` and `std` are those of the first 10,000 training images, whose order is random
    with every class in proportion.

    Args:
      name: a key of `SOURCES`, with ':' and an argument where the source takes one: 'npz:FILE', 'folder:DIR',
        'tfds:cifar10'. 'tfds:' may be left out before the names in `prepared.NAMES`.
      validation: fraction of the training images kept for choices, drawn with every class in proportion.
      seed: of that draw.
      size: side of the squares that pictures are brought to as they are decoded ('folder' and 'tfds'); 0: as they are.
      memory: GiB that the decoded images may take; 0: half of this machine's, since a CPU device holds a copy.

    Raises:
      UserError: unknown source, unreadable file, wrong shapes or types, a fraction outside (0, 1), or an .npz file of
        more than `memory`.
    """
    source, _, argument = f"tfds:{name}".partition(":") if name in prepared.NAMES else name.partition(":")
    if source not in SOURCES:
        raise unknown_name("data set", source, (*SOURCES, *prepared.NAMES))
    if size < 0 or (size and source not in PICTURES):
        raise UserError(
            f"config.data.size: wanted 0, or the side of decoded pictures for {' and '.join(PICTURES)}, got {size} for "
            f"{source!r}: config.data.resize is for any source"
        )
    if not 0 < validation < 1:
        raise UserError(f"validation: wanted a fraction between 0 and 1, got {validation}")
    if memory < 0:
        raise UserError(f"config.data.memory: wanted GiB, 0 for half of this machine's, got {memory}")
    limit = int(memory * GIB) or int(hosts.least(memory_bytes() / GIB) * GIB) // 2
    train, test = SOURCES[source](argument, size, limit)
    check_splits(name, train, test)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    order = balanced_order(train.labels, seed)
    held_out = max(1, round(validation * len(order)))
    if held_out == len(order):
        raise UserError(f"validation: {validation} of {len(order)} images leaves none to train on")
    train, validation_split = train.take(order[held_out:]), train.take(order[:held_out])
    splits = train, validation_split, test
    if sum(map(decoded_bytes, splits)) <= limit:
        train, validation_split, test = (split.load(progress=True) for split in splits)
    return Dataset(name, train, validation_split, test, classes, *_mean_and_deviation(measured(train)))


def measured(train: AnySplit) -> AnySplit:
    """The training images whose mean and deviation normalise a data set: all of them, of a streamed split a sample."""
    return train if isinstance(train, Split) else train.take(np.arange(min(SAMPLE, len(train.labels))))


def _mean_and_deviation(split: AnySplit) -> tuple[np.ndarray, np.ndarray]:
    """Per channel, from exact sums of integers; `np.std` would hold all pixels in float64."""
    size, pieces = len(split.labels), max(1, decoded_bytes(split) // AT_ONCE)
    sums = np.zeros((2, split.shape[-1]), np.int64)
    for indices in tqdm(np.array_split(np.arange(size), pieces), "mean and deviation", leave=False, delay=1):
        pixels = split.take(indices).load().images.reshape(-1, split.shape[-1])
        sums[0] += np.einsum("pc->c", pixels, dtype=np.int64, casting="unsafe")
        sums[1] += np.einsum("pc,pc->c", pixels, pixels, dtype=np.int64, casting="unsafe")
    mean, mean_square = sums / (size * math.prod(split.shape[:2]))
    variance = mean_square - mean**2
    std = np.sqrt(np.where(variance > 1e-6, variance, 255**2))  # a constant channel carries nothing
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


def _digits(argument: str, size: int, limit: int) -> tuple[AnySplit, AnySplit]:
    """1,797 grey 8 x 8 digits bundled with scikit-learn (UCI optdigits test set, values 0 to 16)."""
    if argument:
        raise UserError(f"data set 'digits' takes no argument, got {argument!r}")
    from sklearn.datasets import load_digits  # takes a second, which every import of the package would pay

    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    return split_off_test("digits", Split(images, digits.target.astype(np.int32)))


def _npz(argument: str, size: int, limit: int) -> tuple[AnySplit, AnySplit]:
    """A file of arrays train_images, train_labels, test_images, test_labels; or images, labels, to be split."""
    if not argument:
        raise UserError("data set 'npz' needs a file: npz:/path/to/file.npz")
    path = Path(argument).expanduser()
    try:
        with np.load(path, allow_pickle=False) as file:
            _require_memory(path, sum(entry.file_size for entry in file.zip.infolist()), limit)
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"data set: no file {str(path)!r}") from None
    except UNREADABLE as error:
        raise UserError(f"data set: {str(path)!r} is no readable .npz file ({error})") from None
    if {"images", "labels"} <= set(arrays):
        return split_off_test(path, _as_split(path, arrays["images"], arrays["labels"]))
    wanted = ("train_images", "train_labels", "test_images", "test_labels")
    if missing := [name for name in wanted if name not in arrays]:
        raise UserError(
            f"data set: {str(path)!r} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}"
        )
    return _as_split(path, *(arrays[n] for n in wanted[:2])), _as_split(path, *(arrays[n] for n in wanted[2:]))


def _require_memory(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise UserError(
            f"data set: {str(path)!r} takes {size / 2**30:.2g} GiB, wanted {limit / 2**30:.2g} at most: raise "
            "config.data.memory, or store the images as pictures (folder:DIR), which can be streamed"
        )


def _as_split(path: Path, images: np.ndarray, labels: np.ndarray) -> Split:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8:
        raise UserError(f"data set: {str(path)!r}: wanted uint8 images (0 to 255), got {images.dtype}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"data set: {str(path)!r}: wanted integer labels, got {labels.dtype}")
    return Split(images, labels.astype(np.int32))


SOURCES: dict[str, Callable[[str, int, int], tuple[AnySplit, AnySplit]]] = {
    "digits": _digits,
    "npz": _npz,
    "folder": read_folder,
    "tfds": prepared.read_prepared,
}
PICTURES = ("folder", "tfds")  # sources that decode, and can make pictures smaller on the way

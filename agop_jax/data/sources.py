"""Where images come from. Every source yields uint8 images (n, h, w, c) and integer labels, split in three."""

import dataclasses
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from agop_jax.errors import UserError, unknown_name

TEST_FRACTION = 0.2  # of a source that has no test split of its own
# what NumPy raises for a file that is none of its own, of arrays of objects, cut short or changed
UNREADABLE = (ValueError, TypeError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
TEST_SEED = 0  # part of such a data set, not of an experiment: the test images never change


class Split(NamedTuple):
    """Images (n, h, w, c) uint8 and labels (n,) int32."""

    images: np.ndarray
    labels: np.ndarray

    def take(self, indices: np.ndarray) -> "Split":
        """The rows at these indices, in this order."""
        return Split(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in three splits.

    Attributes:
      name: as it was asked for.
      train, validation, test: the splits.
      num_classes: labels run from 0 to num_classes - 1.
      mean, std: per channel over the training split, in units of pixel / 255.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    mean: np.ndarray
    std: np.ndarray


def load(name: str, *, validation: float = 0.1, seed: int = 0) -> Dataset:
    """Reads a data set and splits it.

    Args:
      name: a key of `SOURCES`, with ':' and an argument where the source takes one: 'npz:FILE'.
      validation: fraction of the training images kept for choices, drawn with every class in proportion.
      seed: of that draw.

    Raises:
      UserError: unknown source, unreadable file, wrong shapes or types, a fraction outside (0, 1).
    """
    source, _, argument = name.partition(":")
    if source not in SOURCES:
        raise unknown_name("data set", source, SOURCES)
    if not 0 < validation < 1:
        raise UserError(f"validation: wanted a fraction between 0 and 1, got {validation}")
    train, test = SOURCES[source](argument)
    _check(name, train, test)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    order = balanced_order(train.labels, seed)
    held_out = max(1, round(validation * len(order)))
    if held_out == len(order):
        raise UserError(f"validation: {validation} of {len(order)} images leaves none to train on")
    validation_split, train = train.take(order[:held_out]), train.take(order[held_out:])
    return Dataset(name, train, validation_split, test, classes, *_mean_and_deviation(train.images))


def _mean_and_deviation(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per channel, from exact sums of integers; `np.std` would hold all pixels in float64."""
    pixels = images.reshape(-1, images.shape[-1])
    exact = {"dtype": np.int64, "casting": "unsafe"}
    mean = np.einsum("pc->c", pixels, **exact) / len(pixels)
    variance = np.einsum("pc,pc->c", pixels, pixels, **exact) / len(pixels) - mean**2
    std = np.sqrt(np.where(variance > 1e-6, variance, 255**2))  # a constant channel carries nothing
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order of which every prefix holds the classes in their proportions.

    To within one image a class where classes are of one size, and little more where they are not.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        mine = shuffled[labels[shuffled] == label]
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return shuffled[np.argsort(place[shuffled], kind="stable")]


def _digits(argument: str) -> tuple[Split, Split]:
    """1,797 grey 8 x 8 digits bundled with scikit-learn (UCI optdigits test set, values 0 to 16)."""
    if argument:
        raise UserError(f"data set 'digits' takes no argument, got {argument!r}")
    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    return _split("digits", Split(images, digits.target.astype(np.int32)))


def _npz(argument: str) -> tuple[Split, Split]:
    """A file of arrays train_images, train_labels, test_images, test_labels; or images, labels, to be split."""
    if not argument:
        raise UserError("data set 'npz' needs a file: npz:/path/to/file.npz")
    path = Path(argument).expanduser()
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"data set: no file {str(path)!r}") from None
    except UNREADABLE as error:
        raise UserError(f"data set: {str(path)!r} is no readable .npz file ({error})") from None
    if {"images", "labels"} <= set(arrays):
        return _split(path, _as_split(path, arrays["images"], arrays["labels"]))
    wanted = ("train_images", "train_labels", "test_images", "test_labels")
    if missing := [name for name in wanted if name not in arrays]:
        raise UserError(
            f"data set: {str(path)!r} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}"
        )
    return _as_split(path, *(arrays[n] for n in wanted[:2])), _as_split(path, *(arrays[n] for n in wanted[2:]))


def _as_split(path: Path, images: np.ndarray, labels: np.ndarray) -> Split:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8:
        raise UserError(f"data set: {str(path)!r}: wanted uint8 images (0 to 255), got {images.dtype}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"data set: {str(path)!r}: wanted integer labels, got {labels.dtype}")
    return Split(images, labels.astype(np.int32))


def _split(name: str | Path, whole: Split) -> tuple[Split, Split]:
    _check_split(name, "images and labels", whole)
    order = balanced_order(whole.labels, TEST_SEED)
    cut = round(TEST_FRACTION * len(order))
    return whole.take(order[cut:]), whole.take(order[:cut])


def _check(name: str, train: Split, test: Split) -> None:
    for part, split in (("train", train), ("test", test)):
        _check_split(name, part, split)
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = f"{train.images.shape[1:]} and {test.images.shape[1:]}"
        raise UserError(f"data set {name!r}: wanted training and test images of one shape (h, w, c), got {shapes}")


def _check_split(name: str | Path, part: str, split: Split) -> None:
    if split.images.ndim != 4 or split.labels.shape != split.images.shape[:1] or not len(split.labels):
        shapes = f"{split.images.shape} and {split.labels.shape}"
        raise UserError(f"data set {str(name)!r}, {part}: wanted images (n, h, w, c) and labels (n,), got {shapes}")
    if split.labels.min() < 0 or len(np.unique(split.labels)) < 2:
        raise UserError(f"data set {str(name)!r}, {part}: wanted labels from 0 on, of two classes or more")


SOURCES: dict[str, Callable[[str], tuple[Split, Split]]] = {"digits": _digits, "npz": _npz}

"""What every source of images yields: uint8 images with integer labels, in splits."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agop_jax.errors import UserError

TEST_FRACTION = 0.2  # of a source that has no test split of its own
TEST_SEED = 0  # part of such a data set, not of an experiment: the test images never change


class Split(NamedTuple):
    """Images (n, h, w, c) uint8 and labels (n,) int32."""

    images: np.ndarray
    labels: np.ndarray

    def take(self, indices: np.ndarray) -> "Split":
        """The rows at these indices, in this order."""
        return Split(self.images[indices], self.labels[indices])


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


def split_off_test(name: str | Path, whole: Split) -> tuple[Split, Split]:
    """Training and test images of a source that has no test split of its own."""
    check_split(name, "images and labels", whole)
    order = balanced_order(whole.labels, TEST_SEED)
    cut = round(TEST_FRACTION * len(order))
    return whole.take(order[cut:]), whole.take(order[:cut])


def check_splits(name: str | Path, train: Split, test: Split) -> None:
    """What training can rely on; anything else is a `UserError`."""
    for part, split in (("train", train), ("test", test)):
        check_split(name, part, split)
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = f"{train.images.shape[1:]} and {test.images.shape[1:]}"
        raise UserError(f"data set {str(name)!r}: wanted training and test images of one shape (h, w, c), got {shapes}")


def check_split(name: str | Path, part: str, split: Split) -> None:
    """One split by itself: images and as many labels, from 0 on, of two classes or more."""
    if split.images.ndim != 4 or split.labels.shape != split.images.shape[:1] or not len(split.labels):
        shapes = f"{split.images.shape} and {split.labels.shape}"
        raise UserError(f"data set {str(name)!r}, {part}: wanted images (n, h, w, c) and labels (n,), got {shapes}")
    if split.labels.min() < 0 or len(np.unique(split.labels)) < 2:
        raise UserError(f"data set {str(name)!r}, {part}: wanted labels from 0 on, of two classes or more")


def require_memory(name: str | Path, count: int, shape: tuple[int, ...]) -> None:
    """Refuses what the machine cannot hold decoded, before anything is decoded.

    The limit is half of the memory: while a data set is split there are two copies of it.
    """
    needed, present = count * int(np.prod(shape)), memory()
    if 2 * needed > present:
        raise UserError(
            f"data set {str(name)!r}: {count} images of {' x '.join(map(str, shape))} take {needed / 2**30:.1f} GiB "
            f"decoded, and data sets are held in memory: wanted half of this machine's {present / 2**30:.1f} GiB at "
            "most: choose a smaller config.data.size"
        )


def memory() -> int:
    """Bytes of this machine's main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

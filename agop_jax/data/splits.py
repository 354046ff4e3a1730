"""What every source of images yields: uint8 images with integer labels, in splits, in memory or on disk."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agop_jax.core import containers
from agop_jax.core.errors import UserError
from agop_jax.core.progress import bar

TEST_FRACTION = 0.2  # of a source that has no test split of its own
TEST_SEED = 0  # part of such a data set, not of an experiment: the test images never change
PIECE = 8  # images that a thread decodes in one go
VALIDATION_NAMES = ("val", "valid", "validation")  # of a folder, or of arrays


class Split(NamedTuple):
    """Images (n, h, w, c) uint8 and labels (n,) int32, in memory; a source may have any integers or text as labels."""

    images: np.ndarray
    labels: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w, c) of an image."""
        return self.images.shape[1:]

    def take(self, indices: np.ndarray) -> "Split":
        """The rows at these indices, in this order."""
        return Split(self.images[indices], self.labels[indices])

    def relabelled(self, labels: np.ndarray) -> "Split":
        """The same images with these labels (n,)."""
        return self._replace(labels=labels)

    def load(self, *, progress: bool = False) -> "Split":
        """Itself: it is in memory."""
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class StoredSplit:
    """Images that stay on disk, encoded, and are decoded where they are needed; their labels are in memory.

    Attributes:
      read: (h, w, c) uint8, the decoded picture of a row of the source; called by several threads at a time.
      rows: (n,) of the source.
      labels: (n,) int32; those of a source may be any integers or text.
      shape: (h, w, c) of an image.
    """

    read: Callable[[int], np.ndarray]
    rows: np.ndarray
    labels: np.ndarray
    shape: tuple[int, ...]

    def take(self, indices: np.ndarray) -> "StoredSplit":
        """The rows at these indices, in this order; nothing is decoded."""
        return dataclasses.replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def relabelled(self, labels: np.ndarray) -> "StoredSplit":
        """The same images with these labels (n,)."""
        return dataclasses.replace(self, labels=labels)

    def load(self, *, progress: bool = False) -> Split:
        """All of its images, decoded by as many threads as there are cores and some more, which wait for the disk.

        Raises:
          UserError: a picture that cannot be read, or is of another shape than the rest.
        """
        images = np.empty((len(self.rows), *self.shape), np.uint8)

        def decode(start: int) -> int:
            rows = self.rows[start : start + PIECE]
            for place, row in enumerate(rows, start):
                picture = self.read(int(row))
                if picture.shape != self.shape:
                    raise UserError(
                        f"data set: picture {row} has the shape {picture.shape}, wanted {self.shape}: it was changed "
                        "since its data set was opened"
                    )
                images[place] = picture
            return len(rows)

        count_bar = bar(desc="read pictures", total=len(images), unit="image", show=progress)
        with count_bar, ThreadPoolExecutor() as threads:
            for count in threads.map(decode, range(0, len(images), PIECE)):  # an error cancels what has not begun
                count_bar.update(count)
        return Split(images, self.labels)


AnySplit = Split | StoredSplit


def decoded_bytes(split: AnySplit) -> int:
    """What the images of a split take in memory."""
    return len(split.labels) * math.prod(split.shape)


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


@dataclasses.dataclass(frozen=True)
class Source:
    """What a source holds, with the labels as they are there.

    Attributes:
      train: all images to train on and, where there is no `validation`, to choose by.
      test, validation: None where the source has none of its own.
      origins: split -> what the source calls it.
      unused: what else lies there.
      class_names: names of the integer labels from 0 on, where the source has any.
    """

    train: AnySplit
    test: AnySplit | None = None
    validation: AnySplit | None = None
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def only_one(place: str, names: Sequence[str]) -> str | None:
    """The name of the validation split, if there is one."""
    if len(names) > 1:
        raise UserError(f"data set: {place!r} holds {' and '.join(names)}: wanted one validation split")
    return names[0] if names else None


def split_off_test(name: str | Path, whole: AnySplit) -> tuple[AnySplit, AnySplit]:
    """Training and test images of a source that has no test split of its own."""
    check_split(name, "images and labels", whole)
    order = balanced_order(whole.labels, TEST_SEED)
    cut = round(TEST_FRACTION * len(order))
    return whole.take(order[cut:]), whole.take(order[:cut])


def check_splits(name: str | Path, splits: Mapping[str, AnySplit]) -> None:
    """What training can rely on; anything else is a `UserError`."""
    for part, split in splits.items():
        check_split(name, part, split)
        if split.shape != splits["train"].shape:
            shapes = f"{splits['train'].shape} and {split.shape}"
            raise UserError(f"data set {str(name)!r}: wanted training and {part} images of one shape, got {shapes}")


def check_split(name: str | Path, part: str, split: AnySplit) -> None:
    """One split by itself: images and as many labels, of two classes or more."""
    images = split.images.shape if isinstance(split, Split) else (len(split.rows), *split.shape)
    if len(images) != 4 or split.labels.shape != images[:1] or not len(split.labels):
        shapes = f"{images} and {split.labels.shape}"
        raise UserError(f"data set {str(name)!r}, {part}: wanted images (n, h, w, c) and labels (n,), got {shapes}")
    if len(np.unique(split.labels)) < 2:
        raise UserError(f"data set {str(name)!r}, {part}: wanted labels of two classes or more, got one class")


def memory_bytes() -> int | float:
    """Bytes of this machine's main memory, or of the container's share where that is less."""
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), containers.limit_bytes())

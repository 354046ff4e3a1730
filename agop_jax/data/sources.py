"""Data sets by name. Every source yields uint8 images (n, h, w, c) and integer labels; here they are split in three."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np
from absl import logging

from agop_jax.core import hosts
from agop_jax.core.errors import UserError, unknown_name
from agop_jax.core.progress import bar
from agop_jax.data import prepared
from agop_jax.data.folder import read_folder
from agop_jax.data.labels import number_classes
from agop_jax.data.npz import read_npz
from agop_jax.data.splits import (
    TEST_FRACTION,
    AnySplit,
    Source,
    Split,
    balanced_order,
    check_splits,
    decoded_bytes,
    memory_bytes,
    split_off_test,
)

SAMPLE = 10_000  # images of a streamed training split that mean and std are taken of
GIB = 2**30
SHOWN = 5  # names of a longer list that a message gives
AT_ONCE = 2**23  # bytes of images that are summed up in one go


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in three splits.

    Attributes:
      name: as it was asked for.
      train, validation, test: the splits; labels run from 0 to num_classes - 1.
      num_classes: how many distinct labels the training images had.
      mean, std: per channel over `measured(train)`, in units of pixel / 255.
      classes: the names of the classes, in the order of the labels.
      origins: split -> which of the source's images it holds.
      unused: what the source holds besides, and no split does.
    """

    name: str
    train: AnySplit
    validation: AnySplit
    test: AnySplit
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    classes: tuple[str, ...] = ()
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()


def load(name: str, *, validation: float = 0.1, seed: int = 0, size: int = 0, memory: float = 0.0) -> Dataset:
    """Reads a data set and splits it.

    Labels may be any integers, or names: the distinct ones of the training images, sorted, are the classes.

    Pictures of 'folder' and 'tfds' that take more than `memory` stay on disk: the splits are `StoredSplit`s of the same
    images in the same order, and `mean` and `std` are those of the first 10,000 training images, whose order is random
    with every class in proportion.

    Args:
      name: a key of `SOURCES`, with ':' and an argument where the source takes one: 'npz:FILE', 'folder:DIR',
        'tfds:cifar10'. 'tfds:' may be left out before the names in `prepared.NAMES`.
      validation: fraction of the training images kept for choices, drawn with every class in proportion. A source
        with validation images of its own keeps all training images to train on, and 0 will do.
      seed: of that draw.
      size: side of the squares that pictures are brought to as they are decoded ('folder' and 'tfds'); 0: as they are.
      memory: GiB that the decoded images may take; 0: half of this machine's, since a CPU device holds a copy.

    Raises:
      UserError: unknown source, unreadable file, wrong shapes or types, a label that no training image has, a fraction
        outside (0, 1), or an .npz file of more than `memory`.
    """
    kind, _, argument = f"tfds:{name}".partition(":") if name in prepared.NAMES else name.partition(":")
    _check_arguments(kind, validation, size, memory)
    limit = int(memory * GIB) or int(hosts.least(memory_bytes() / GIB) * GIB) // 2
    source = SOURCES[kind](argument, size, limit)
    splits = _with_test(name, source)
    check_splits(name, splits)
    splits, classes = number_classes(name, splits, source.class_names)
    splits = _with_validation(splits, validation, seed)
    if source.unused:
        logging.warning("data set %r: not used: %s", name, ", ".join(source.unused[:SHOWN]))
    if sum(map(decoded_bytes, splits.values())) <= limit:
        splits = {part: split.load(progress=True) for part, split in splits.items()}
    constants = _mean_and_deviation(measured(splits["train"]))
    three = splits["train"], splits["validation"], splits["test"]
    return Dataset(name, *three, len(classes), *constants, classes, _origins(source, validation, seed), source.unused)


def _check_arguments(kind: str, validation: float, size: int, memory: float) -> None:
    if kind not in SOURCES:
        raise unknown_name("data set", kind, (*SOURCES, *prepared.NAMES))
    if size < 0 or (size and kind not in PICTURES):
        raise UserError(
            f"config.data.size: wanted 0, or the side of decoded pictures for {' and '.join(PICTURES)}, got {size} for "
            f"{kind!r}: config.data.resize is for any source"
        )
    if not 0 <= validation < 1:
        raise _no_fraction(validation)
    if memory < 0:
        raise UserError(f"config.data.memory: wanted GiB, 0 for half of this machine's, got {memory}")


def _no_fraction(validation: float) -> UserError:
    return UserError(f"validation: wanted a fraction between 0 and 1, got {validation}")


def _with_test(name: str, source: Source) -> dict[str, AnySplit]:
    """The splits that the source has; a fixed fifth of its training images is the test split where it has none."""
    train, test = (source.train, source.test) if source.test is not None else split_off_test(name, source.train)
    validation = {} if source.validation is None else {"validation": source.validation}
    return {"train": train, **validation, "test": test}


def _with_validation(splits: Mapping[str, AnySplit], fraction: float, seed: int) -> dict[str, AnySplit]:
    """Training images in a balanced order, and the source's validation images or those that the seed draws."""
    train = splits["train"]
    if fraction == 0 and "validation" not in splits:
        raise _no_fraction(fraction)
    order = balanced_order(train.labels, seed)
    held_out = 0 if "validation" in splits else max(1, round(fraction * len(order)))
    if held_out == len(order):
        raise UserError(f"validation: {fraction} of {len(order)} images leaves none to train on")
    return {"validation": train.take(order[:held_out]), **splits, "train": train.take(order[held_out:])}


def _origins(source: Source, fraction: float, seed: int) -> dict[str, str]:
    """Which of the source's images each split holds."""
    whole = source.origins["train"]
    drawn = {
        "test": f"{100 * TEST_FRACTION:g} % of {whole}, the same in every experiment",
        "validation": f"{100 * fraction:g} % of the training images, drawn by seed {seed}",
    }
    missing = drawn.keys() - source.origins.keys()
    rest = f"what the other splits leave of {whole}" if missing else whole
    return {**drawn, **source.origins, "train": rest}


def measured(train: AnySplit) -> AnySplit:
    """The training images whose mean and deviation normalise a data set: all of them, of a streamed split a sample."""
    return train if isinstance(train, Split) else train.take(np.arange(min(SAMPLE, len(train.labels))))


def _mean_and_deviation(split: AnySplit) -> tuple[np.ndarray, np.ndarray]:
    """Per channel, from exact sums of integers; `np.std` would hold all pixels in float64."""
    size, pieces = len(split.labels), max(1, decoded_bytes(split) // AT_ONCE)
    sums = np.zeros((2, split.shape[-1]), np.int64)
    for indices in bar(np.array_split(np.arange(size), pieces), "mean and deviation", unit="piece"):
        pixels = split.take(indices).load().images.reshape(-1, split.shape[-1])
        sums[0] += np.einsum("pc->c", pixels, dtype=np.int64, casting="unsafe")
        sums[1] += np.einsum("pc,pc->c", pixels, pixels, dtype=np.int64, casting="unsafe")
    mean, mean_square = sums / (size * math.prod(split.shape[:2]))
    variance = mean_square - mean**2
    std = np.sqrt(np.where(variance > 1e-6, variance, 255**2))  # a constant channel carries nothing
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


def _digits(argument: str, size: int, limit: int) -> Source:
    """1,797 grey 8 x 8 digits bundled with scikit-learn (UCI optdigits, values 0 to 16); of '5-9' these alone."""
    chosen = re.fullmatch("(?:([0-9])-([0-9]))?", argument)
    if chosen is None or (first := int(chosen[1] or 0)) >= (last := int(chosen[2] or 9)):
        raise UserError(f"data set 'digits': needed two digits or more after the colon, such as 5-9, got {argument!r}")
    from sklearn.datasets import load_digits  # takes a second, which every import of the package would pay

    digits = load_digits()
    kept = (first <= digits.target) & (digits.target <= last)
    images = np.round(digits.images[kept][..., None] * (255 / 16)).astype(np.uint8)
    return Source(Split(images, digits.target[kept]), origins={"train": "scikit-learn's digits"})


SOURCES: dict[str, Callable[[str, int, int], Source]] = {
    "digits": _digits,
    "npz": read_npz,
    "folder": read_folder,
    "tfds": prepared.read_prepared,
}
PICTURES = ("folder", "tfds")  # sources that decode, and can make pictures smaller on the way

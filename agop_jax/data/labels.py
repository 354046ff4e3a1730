"""Labels of any integers or names become the numbers of classes, from 0 on."""

from collections.abc import Mapping, Sequence

import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.data.splits import AnySplit

KINDS = "iubU"  # of NumPy's types: integers, truth values, text


def number_classes(
    name: str, splits: Mapping[str, AnySplit], class_names: Sequence[str] = ()
) -> tuple[dict[str, AnySplit], tuple[str, ...]]:
    """The splits with labels from 0 to k - 1, and the names of the k classes.

    The distinct labels of the training images, sorted, are the classes.

    Args:
      name: of the data set, for messages.
      splits: 'train' and others, with integers or text as labels (n,).
      class_names: where the source names its integers, the name of each from 0 on; a label is its own name elsewhere.

    Raises:
      UserError: a label that no training image has.
    """
    labels = np.unique(splits["train"].labels).tolist()  # Python's integers: NumPy compares uint64 and int64 as floats
    numbers = {label: number for number, label in enumerate(labels)}
    numbered = {part: _numbered(name, part, split, numbers) for part, split in splits.items()}
    names = dict(enumerate(class_names))
    return numbered, tuple(names.get(label, str(label)) for label in labels)


def _numbered(name: str, part: str, split: AnySplit, numbers: Mapping[int | str, int]) -> AnySplit:
    distinct, places = np.unique(split.labels, return_inverse=True)
    own = distinct.tolist()
    if unknown := [label for label in own if label not in numbers]:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"data set {name!r}: the label {unknown[0]!r}{more} occurs only among the {part} images, wanted labels of "
            f"the {len(numbers)} classes of the training images: remove these images"
        )
    return split.relabelled(np.array([numbers[label] for label in own], np.int32)[places])

"""Data sets that tensorflow-datasets (TFDS) has prepared on this machine. Reading needs no TensorFlow and no network.

What is on disk is looked for first: TFDS by itself would go to the network, and retry there for minutes.
"""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from agop_jax.core.errors import UserError, first_line, unknown_name
from agop_jax.core.progress import bar
from agop_jax.data.images import decode
from agop_jax.data.splits import Source, StoredSplit

NAMES = ("cifar10", "cifar100", "fashion_mnist", "mnist", "oxford_flowers102", "svhn_cropped", "tiny_imagenet")
FORMAT = "array_record"  # the format that can be read without TensorFlow


def data_dir() -> Path:
    """TFDS's own rule: the environment variable TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def find(name: str, directory: Path) -> Path | None:
    """The directory of the newest prepared version of a data set, or None."""
    versions = [path.parent for path in (directory / name).glob("[0-9]*.[0-9]*.[0-9]*/dataset_info.json")]
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def read_prepared(name: str, size: int, limit: int) -> Source:
    """The splits 'train' and 'test' of a prepared data set; of its pictures nothing is decoded yet.

    A split 'validation' joins the training images, from which every experiment draws its own validation images; where
    there is no 'test' (Tiny-ImageNet publishes no labels of its test images), it is the test split.
    """
    directory = find(name, data_dir())
    if directory is None and name in NAMES:
        raise UserError(
            f"data set {name!r} is not prepared in {str(data_dir())!r} (environment variable TFDS_DATA_DIR): run "
            f"python -m agop_jax.data.prepare {name} once, on a machine with network or with --manual_dir=FOLDER"
        )
    if directory is None:
        raise unknown_name("TFDS data set", name, NAMES)
    builder = _builder(directory)
    roles = dict(zip(("train", "test"), _roles(builder.info.splits), strict=False))
    return Source(
        **{part: _stored(builder, splits, size) for part, splits in roles.items()},
        origins={part: " and ".join(splits) for part, splits in roles.items()},
        unused=tuple(sorted(set(builder.info.splits) - {name for splits in roles.values() for name in splits})),
        class_names=tuple(getattr(builder.info.features["label"], "names", None) or ()),
    )


def _roles(splits: Collection[str]) -> list[list[str]]:
    """Which stored splits are training and test images."""
    if "test" in splits:
        return [[name for name in ("train", "validation") if name in splits], ["test"]]
    return [["train"], ["validation"]] if "validation" in splits else [["train"]]


def _builder(directory: Path) -> Any:
    """TFDS's view of a prepared data set, if it is one that can be read here."""
    builder = _open(directory)
    if builder.info.file_format.value != FORMAT:
        raise UserError(
            f"{str(directory)!r} was prepared in the format {builder.info.file_format.value!r}, wanted {FORMAT!r}: "
            f"prepare it anew with python -m agop_jax.data.prepare {builder.name} --data_dir=ANOTHER"
        )
    if not {"image", "label"} <= set(builder.info.features) or builder.info.features["image"].shape[-1] not in (1, 3):
        raise UserError(f"{str(directory)!r}: wanted pictures with labels, got {', '.join(builder.info.features)}")
    return builder


def _open(directory: Path) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError("reading TFDS data sets needs an extra: pip install 'agop_jax[tfds]'") from None
    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # of many kinds, by what is damaged
        raise _damaged(directory, error) from error


def _stored(builder: Any, splits: list[str], size: int) -> StoredSplit:
    """The stored pictures, of several splits one after another; the labels are read, all records once."""
    *sides, channels = builder.info.features["image"].shape
    if None in sides and not size:
        raise UserError(
            f"data set {builder.name!r}: its pictures are of many sizes: state the side of the squares they shall be "
            "brought to, --config.data.size=64"
        )
    record = _reader(builder, splits)
    count = sum(builder.info.splits[split].num_examples for split in splits)
    rows = bar(range(count), f"read labels of {builder.name}", unit="image")
    labels = np.array([record(row)["label"] for row in rows])
    shape = (*((size, size) if size else sides), channels)
    return StoredSplit(lambda row: decode(record(row)["image"], channels, size), np.arange(count), labels, shape)


def _reader(builder: Any, splits: list[str]) -> Callable[[int], Any]:
    """Records by number, their pictures encoded: Pillow decodes them, as it does any other picture."""
    import tensorflow_datasets as tfds

    try:
        source = builder.as_data_source("+".join(splits), decoders={"image": tfds.decode.SkipDecoding()})
    except Exception as error:  # TFDS and array_record raise errors of many kinds, by what is damaged
        raise _damaged(Path(builder.data_path), error) from error

    def read(row: int) -> Any:
        try:
            return source[row]
        except Exception as error:
            raise _damaged(Path(builder.data_path), error) from error

    return read


def _damaged(directory: Path, error: Exception) -> UserError:
    """What the system refuses, such as one more open file or a file of another user, says nothing of the data."""
    reason = first_line(error)
    if isinstance(error, (OSError, MemoryError, ImportError, NotImplementedError)):
        return UserError(f"{str(directory)!r} cannot be read ({reason}): its files may well be whole")
    return UserError(f"{str(directory)!r} cannot be read ({reason}): delete it and prepare it anew")

"""A folder of pictures with a folder per class, as in torchvision's ImageFolder."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from agop_jax.core.errors import UserError
from agop_jax.data.images import common_shape, decode, read_header
from agop_jax.data.splits import AnySplit, StoredSplit, split_off_test

Listed = list[tuple[Path, int]]  # pictures with their labels


def read_folder(argument: str, size: int, limit: int) -> tuple[AnySplit, AnySplit]:
    """Pictures in DIR/train/CLASS/ and DIR/test/CLASS/, or in DIR/CLASS/, of which a fifth becomes the test split.

    Nothing is decoded yet, but every picture's header is read.

    Labels number the classes of the training pictures in alphabetical order. Pictures may be of any format that Pillow
    reads; names with a leading dot are passed over. `size`: see `images.common_shape`.
    """
    if not argument:
        raise UserError("data set 'folder' needs a folder: folder:/path/to/pictures")
    root = Path(argument).expanduser()
    if not root.is_dir():
        raise UserError(f"data set: no folder {str(root)!r}")
    parts = [root / "train", root / "test"] if (root / "train").is_dir() or (root / "test").is_dir() else [root]
    if missing := [part for part in parts if not part.is_dir()]:
        raise UserError(f"data set: no folder {str(missing[0])!r}: wanted train/ and test/, or neither")
    classes = [path.name for path in _visible(parts[0]) if path.is_dir()]
    if len(classes) < 2:
        raise UserError(f"data set: {str(parts[0])!r}: wanted two classes or more, a folder each, got {len(classes)}")
    listed = [_listed(part, classes) for part in parts]
    paths = [path for part in listed for path, _ in part]
    bar = tqdm(paths, "look at pictures", unit="image", leave=False, delay=1)
    shape = common_shape(root, [read_header(path) for path in bar], size)
    splits = [_stored(part, shape, size) for part in listed]
    return (splits[0], splits[1]) if len(splits) == 2 else split_off_test(root, splits[0])


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _listed(folder: Path, classes: list[str]) -> Listed:
    found = []
    for path in _visible(folder):
        if not path.is_dir():
            raise UserError(f"data set: {str(path)!r} is in no class: wanted pictures in a folder per class")
        if path.name not in classes:
            raise UserError(f"data set: {str(path)!r}: the training pictures have no such class")
        pictures = _visible(path)
        if not pictures:
            raise UserError(f"data set: {str(path)!r} is an empty folder: wanted pictures of this class")
        found += [(picture, classes.index(path.name)) for picture in pictures]
    return found


def _stored(listed: Listed, shape: tuple[int, int, int], size: int) -> StoredSplit:
    labels = np.array([label for _, label in listed], np.int32)
    return StoredSplit(lambda row: decode(listed[row][0], shape[-1], size), np.arange(len(listed)), labels, shape)

"""A folder of pictures with a folder per class, as in torchvision's ImageFolder."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.progress import bar
from agop_jax.data.images import common_shape, decode, read_header
from agop_jax.data.splits import VALIDATION_NAMES, Source, StoredSplit, only_one

Listed = list[tuple[Path, int]]  # pictures with their labels
INSIDE = "images"  # a folder in a class's folder that holds its pictures, beside other files


def read_folder(argument: str, size: int, limit: int) -> Source:
    """Pictures in DIR/train/CLASS/ and DIR/test/CLASS/, or in DIR/CLASS/, of which a fifth becomes the test split.

    DIR/val/CLASS/ (or valid/, validation/) beside train/ is the validation split; test/ may then be missing. A class's
    pictures may lie in folders of its own folder; where one of these is called 'images', they are the pictures in it.

    Nothing is decoded yet, but every picture's header is read.

    Labels number the classes of the training pictures in alphabetical order. Pictures may be of any format that Pillow
    reads; names with a leading dot are passed over. `size`: see `images.common_shape`.
    """
    if not argument:
        raise UserError("data set 'folder' needs a folder: folder:/path/to/pictures")
    root = Path(argument).expanduser()
    if not root.is_dir():
        raise UserError(f"data set: no folder {str(root)!r}")
    folders = _folders(root)
    classes = _classes(folders["train"])
    listings = {part: _listing(folder, classes) for part, folder in folders.items()}
    paths = [path for listing in listings.values() for path, _ in listing]
    looked_at = bar(paths, "look at pictures", unit="image")
    shape = common_shape(root, [read_header(path) for path in looked_at], size)
    return Source(
        **{part: _stored(listing, shape, size) for part, listing in listings.items()},
        origins={part: f"{folder.name}/" for part, folder in folders.items()},
        unused=tuple(_unused(root, folders)),
        class_names=tuple(classes),
    )


def _folders(root: Path) -> dict[str, Path]:
    """{split: directory of its pictures}."""
    if not (root / "train").is_dir() and not (root / "test").is_dir():
        return {"train": root}
    if (root / "val" / "val_annotations.txt").is_file():
        raise UserError(
            f"data set: {str(root)!r} is Tiny-ImageNet's own tree, whose val/ has no class folders: run "
            f"python -m agop_jax.data.prepare tiny_imagenet --manual_dir={str(root)!r} once, then name tiny_imagenet"
        )
    validation = only_one(str(root), [name for name in VALIDATION_NAMES if (root / name).is_dir()])
    names = {"train": "train", "validation": validation, "test": "test"}
    folders = {part: root / name for part, name in names.items() if name}
    if validation and not folders["test"].is_dir():
        del folders["test"]
    if missing := [folder for folder in folders.values() if not folder.is_dir()]:
        raise UserError(f"data set: no folder {str(missing[0])!r}: wanted train/ and test/, or neither")
    return folders


def _classes(folder: Path) -> list[str]:
    classes = [path.name for path in _visible(folder) if path.is_dir()]
    if len(classes) < 2:
        raise UserError(f"data set: {str(folder)!r}: wanted two classes or more, a folder each, got {len(classes)}")
    return classes


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _listing(folder: Path, classes: list[str]) -> Listed:
    """The pictures of a split."""
    numbers, listing = {name: number for number, name in enumerate(classes)}, []
    entries = _visible(folder)
    if not any(path.name in numbers and path.is_dir() for path in entries):
        raise UserError(
            f"data set: {str(folder)!r} has no folder of a training class, so that its pictures have no labels: sort "
            "them into class folders, or move the folder away"
        )
    for path in entries:
        if not path.is_dir():
            raise UserError(f"data set: {str(path)!r} is in no class: wanted pictures in a folder per class")
        if path.name not in numbers:
            raise UserError(f"data set: {str(path)!r}: the training pictures have no such class")
        pictures = list(_pictures(path / INSIDE if (path / INSIDE).is_dir() else path))
        if not pictures:
            raise UserError(f"data set: {str(path)!r} is an empty folder: wanted pictures of this class")
        listing += [(picture, numbers[path.name]) for picture in pictures]
    return listing


def _pictures(folder: Path) -> Iterator[Path]:
    """All files, those in deeper folders included."""
    for path in _visible(folder):
        if path.is_dir():
            yield from _pictures(path)
        else:
            yield path


def _unused(root: Path, folders: Mapping[str, Path]) -> Iterator[str]:
    """What lies beside the folders of the splits, and beside a class's images/."""
    if root not in folders.values():
        yield from (path.name for path in _visible(root) if path not in folders.values())
    for folder in folders.values():
        for own in _visible(folder):
            if (own / INSIDE).is_dir():
                yield from (str(path.relative_to(root)) for path in _visible(own) if path.name != INSIDE)


def _stored(listing: Listed, shape: tuple[int, int, int], size: int) -> StoredSplit:
    labels = np.array([label for _, label in listing], np.int32)
    return StoredSplit(lambda row: decode(listing[row][0], shape[-1], size), np.arange(len(listing)), labels, shape)

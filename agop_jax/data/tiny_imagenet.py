"""Tiny-ImageNet (Stanford CS231n) for tensorflow-datasets, from the published zip file or its tree. No TensorFlow.

The images are read inside the archive, or in the folder to which a user has unzipped it; nothing is unpacked here.
`prepare.py` is the way to run it.
"""

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from agop_jax.core.errors import UserError
from agop_jax.data.images import UNREADABLE, upright

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ARCHIVE = "tiny-imagenet-200.zip"
ROOT = "tiny-imagenet-200"
SIDE = 64
Listing = Mapping[str, list[tuple[str, str]]]  # split -> (name in the archive, WordNet id)


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """100,000 training and 10,000 validation images of 64 x 64 in 200 classes; the test images have no labels.

    Classes are numbered in the order of their WordNet ids. Grey images are stored as RGB; the others keep their bytes.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, archive: str, **kwargs: Any) -> None:
        self.archive = Path(archive)
        self.listing = read_listing(self.archive)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        classes = sorted({wnid for _, wnid in self.listing["train"]})
        features = {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 3)),
            "label": tfds.features.ClassLabel(names=classes),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiny-ImageNet: 200 classes of ImageNet at 64 x 64.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(images) for split, images in self.listing.items()}

    def _generate_examples(self, images: list[tuple[str, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
        with opened(self.archive) as (_, read):
            for name, wnid in images:
                yield name, {"image": io.BytesIO(as_rgb(name, read(name))), "label": wnid}


@contextlib.contextmanager
def opened(archive: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The names in the archive, and what reads the contents of one; the same for the tree that is in it."""
    if archive.is_dir():
        paths = {f"{ROOT}/{path.relative_to(archive).as_posix()}": path for path in archive.rglob("*")}
        yield list(paths), lambda name: paths[name].read_bytes()
    else:
        with zipfile.ZipFile(archive) as file:
            yield file.namelist(), file.read


def is_tree(folder: Path) -> bool:
    """Whether it is the folder 'tiny-imagenet-200', under whatever name."""
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def read_listing(archive: Path) -> Listing:
    """Which images the archive holds, by split, after a check of all its names.

    Args:
      archive: the zip file, or the folder 'tiny-imagenet-200' that is in it.

    Raises:
      UserError: no archive, a truncated one, one of another layout, or one with a name that points out of it.
    """
    try:
        with opened(archive) as (names, read):
            _require_inside(archive, names)
            annotations = read(f"{ROOT}/val/val_annotations.txt").decode()
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no file {str(archive)!r}: download it from {URL}") from None
    except OSError as error:
        raise UserError(f"{str(archive)!r} cannot be read ({error}): make it readable") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{str(archive)!r} is no whole zip file ({error}): download it again from {URL}") from None
    except (KeyError, ValueError) as error:
        raise _layout(archive, str(error)) from None
    split_names = [PurePosixPath(name).parts for name in names]
    train = [("/".join(p), p[2]) for p in split_names if _is_image(p, 5) and p[1] == "train" and p[3] == "images"]
    wnids = dict(line.split("\t")[:2] for line in annotations.splitlines() if "\t" in line)
    validation = [
        ("/".join(p), wnids.get(p[3], "")) for p in split_names if _is_image(p, 4) and p[1:3] == ("val", "images")
    ]
    if unknown := {wnid for _, wnid in validation} - {wnid for _, wnid in train}:
        raise _layout(archive, f"validation images of class {min(unknown)!r}, which has no training images")
    if not train or not validation:
        raise _layout(archive, f"{len(train)} training and {len(validation)} validation images")
    return {"train": sorted(train), "validation": sorted(validation)}


def as_rgb(name: str, data: bytes) -> bytes:
    """The bytes of a 64 x 64 RGB image; a grey one (of the published there are some 1,800) becomes a PNG in RGB."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.size != (SIDE, SIDE):
                raise UserError(f"{name!r}: wanted an image of {SIDE} x {SIDE}, got {image.width} x {image.height}")
            if image.mode == "RGB":
                return data
            converted = io.BytesIO()
            upright(image).convert("RGB").save(converted, "PNG")  # which keeps no EXIF data
            return converted.getvalue()
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"{name!r} is no readable picture ({error})") from None


def _require_inside(archive: Path, names: list[str]) -> None:
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name.partition("/")[0]:
            raise UserError(f"{str(archive)!r} is not to be trusted: its entry {name!r} points out of the archive")


def _is_image(parts: tuple[str, ...], depth: int) -> bool:
    return len(parts) == depth and parts[0] == ROOT and parts[-1].upper().endswith(".JPEG")


def _layout(archive: Path, contents: str) -> UserError:
    layout = f"{ROOT}/train/WNID/images/*.JPEG, {ROOT}/val/images/*.JPEG and {ROOT}/val/val_annotations.txt"
    return UserError(f"{str(archive)!r}: wanted {layout}, got {contents}")

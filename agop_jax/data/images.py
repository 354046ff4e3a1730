"""Encoded pictures (JPEG, PNG, ...) as uint8 arrays of one size."""

import io
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from agop_jax.core.errors import UserError

# what Pillow raises for a file that is no picture, cut short, changed or suspiciously large
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
GREY = {"1", "L", "LA"}
COLOUR = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"}  # of 8 bits: those of 16 would be cut off


class Header(NamedTuple):
    """What a picture's first bytes tell."""

    height: int
    width: int
    grey: bool


def read_header(path: Path) -> Header:
    """Size and kind of a picture, without decoding it."""
    try:
        with Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    if mode not in GREY | COLOUR:
        raise UserError(f"data set: {str(path)!r}: wanted 8 bits a channel, got a picture of Pillow's mode {mode!r}")
    return Header(height, width, mode in GREY)


def decode(file: Path | bytes, channels: int, size: int = 0) -> np.ndarray:
    """A picture as an array (h, w, channels).

    Args:
      file: its path or its contents.
      channels: 1 for grey, 3 for RGB; transparency is dropped.
      size: side of the square it is brought to by `fit`; 0 to leave it as it is.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            picture = image.convert("L" if channels == 1 else "RGB")
    except UNREADABLE as error:
        raise _unreadable("a stored picture" if isinstance(file, bytes) else file, error) from None
    array = np.asarray(fit(picture, size) if size else picture)
    return array.reshape(*array.shape[:2], channels)


def fit(picture: Image.Image, size: int) -> Image.Image:
    """The largest centred square of a picture, resized bilinearly (antialiased): resize and centre crop in one."""
    return ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)


def common_shape(name: str | Path, headers: list[Header], size: int) -> tuple[int, int, int]:
    """(h, w, c) of the arrays of a data set: RGB unless all pictures are grey; `size` where it is not 0."""
    channels = 1 if all(header.grey for header in headers) else 3
    shapes = {header[:2] for header in headers}
    if size:
        return size, size, channels
    if len(shapes) > 1:
        found = ", ".join(f"{h} x {w}" for h, w in sorted(shapes)[:3])
        raise UserError(
            f"data set {str(name)!r}: its pictures have {len(shapes)} sizes ({found}, ...): state the side of the "
            "squares they shall be brought to, --config.data.size=64"
        )
    return *shapes.pop(), channels


def _unreadable(what: Path | str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"data set: {str(what)!r} is no readable picture ({reason}): mend or remove it")

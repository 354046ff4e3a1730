"""Encoded pictures (JPEG, PNG, ...) as uint8 arrays of one size."""

import io
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from agop_jax.core.errors import UserError

# what Pillow raises for a file that is no picture, cut short, changed or suspiciously large
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
GREY = {"1", "L", "LA"}
COLOUR = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"}  # of 8 bits: those of 16 would be cut off


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's code of the orientation


class Header(NamedTuple):
    """What a picture's first bytes tell of it, upright."""

    height: int
    width: int
    grey: bool


def read_header(path: Path) -> Header:
    """Size and kind of an upright picture, without decoding it."""
    try:
        with Image.open(path) as image:
            mode, (width, height) = image.mode, _upright_size(image)
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    if mode not in GREY | COLOUR:
        raise UserError(f"data set: {str(path)!r}: wanted 8 bits a channel, got a picture of Pillow's mode {mode!r}")
    return Header(height, width, mode in GREY)


def decode(file: Path | bytes, channels: int, size: int = 0) -> np.ndarray:
    """A picture as an array (h, w, channels), upright: as its EXIF data say that it was taken.

    Args:
      file: its path or its contents.
      channels: 1 for grey, 3 for RGB; transparency is dropped.
      size: side of the square it is brought to by `fit`; 0 to leave it as it is.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            picture = upright(image).convert("L" if channels == 1 else "RGB")
    except UNREADABLE as error:
        raise _unreadable("a stored picture" if isinstance(file, bytes) else file, error) from None
    array = np.asarray(fit(picture, size) if size else picture)
    return array.reshape(*array.shape[:2], channels)


def read_photograph(file: str | Path) -> np.ndarray:
    """A single picture of any kind as an array (h, w, 3) uint8, upright and without transparency.

    Raises:
      UserError: a file that is no picture, or whose numbers have no known range: 32 bits, or floating point.
    """
    path = Path(file).expanduser()
    try:
        with Image.open(path) as image:
            picture = upright(image)
    except UNREADABLE as error:
        raise UserError(f"{str(path)!r} is no readable picture ({_reason(error)}): choose another") from None
    if picture.mode.startswith("I;16"):
        grey = np.round(np.asarray(picture).astype(np.float64) / 257).astype(np.uint8)  # 65535 becomes 255
        return np.repeat(grey[..., None], 3, axis=-1)
    if picture.mode not in GREY | COLOUR:
        raise UserError(f"{str(path)!r}: wanted 8 or 16 bits a channel, got Pillow's mode {picture.mode!r}")
    return np.asarray(picture.convert("RGB"))


def upright(image: Image.Image) -> Image.Image:
    """A picture turned as its EXIF data say."""
    image.load()  # Pillow turns a TIFF by itself, then
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) once it is upright; Pillow may have turned a TIFF's already, by its version."""
    if _orientation(image) < 5:
        return image.size
    width, height = image.size
    return upright(image).size if image.format == "TIFF" else (height, width)


def _orientation(image: Image.Image) -> int:
    """EXIF's code, 1 to 8; 1 (as it is) where the data are damaged, which Pillow's own function does not survive."""
    try:
        code = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of many kinds, by what is damaged
        return 1
    return code if code in TURNS else 1


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
        sizes = ", ".join(f"{h} x {w}" for h, w in sorted(shapes)[:3])
        raise UserError(
            f"data set {str(name)!r}: its pictures have {len(shapes)} sizes ({sizes}, ...): state the side of the "
            "squares they shall be brought to, --config.data.size=64"
        )
    return *shapes.pop(), channels


def _unreadable(what: Path | str, error: Exception) -> UserError:
    return UserError(f"data set: {str(what)!r} is no readable picture ({_reason(error)}): mend it or move it away")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

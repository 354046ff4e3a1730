"""Arrays by name in one `.safetensors` file, which PyTorch, NumPy and other languages read. Nothing is pickled.

What the arrays are stands in the file's own metadata, under 'agop_jax', as JSON. The format knows no other values than
text, and 'format' is what other libraries look for.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from agop_jax.core.errors import UserError, first_line
from agop_jax.core.files import write_new

SUFFIX = ".safetensors"
OWN, SEAL = "agop_jax", "agop_jax_checksum"  # keys of a file's metadata: what this package says, and its CRC-32
CHECKSUM = "checksum"  # of the arrays


def is_tensor_file(path: str | os.PathLike) -> bool:
    """Whether a path names such a file and no directory, by its suffix."""
    return Path(path).suffix == SUFFIX and not Path(path).expanduser().is_dir()


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes a new file, whole or not at all; of several processes the first writes.

    Args:
      path: must not exist.
      tensors: arrays by name.
      about: JSON values, which `read_tensors` gives back.

    Raises:
      UserError: the path exists.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    text = json.dumps({**about, CHECKSUM: _checksum(arrays)})
    stated = {"format": "pt", OWN: text, SEAL: str(zlib.crc32(text.encode()))}
    write_new(path, lambda temporary: save_file(arrays, temporary, stated))


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and what `write_tensors` was told of them, checked by their checksum.

    Raises:
      UserError: no such file, one that is damaged or was changed, or one that this package did not write.
    """
    file = Path(path).expanduser()
    about = read_about(file)
    with safe_open(file, framework="np") as opened:
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if about.pop(CHECKSUM, None) != _checksum(arrays):
        raise UserError(f"{str(file)!r} was changed since it was written: restore it, or make it anew")
    return arrays, about


def read_about(path: str | os.PathLike) -> dict[str, Any]:
    """What `write_tensors` was told of a file's arrays, without reading these."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no file {str(file)!r}")
    try:
        with safe_open(file, framework="np") as opened:
            about = stated_in(opened.metadata())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{str(file)!r} is no readable {SUFFIX} file ({first_line(error)})") from None
    if about is None:
        raise UserError(f"{str(file)!r} was not written by agop_jax: it does not say what its arrays are")
    return about


def stated_in(metadata: Mapping[str, str] | None) -> dict[str, Any] | None:
    """What this package wrote into a file's metadata; None where another program wrote the file.

    Raises:
      ValueError: the metadata were changed.
    """
    own = (metadata or {}).get(OWN)
    if own is None:
        return None
    if (metadata or {}).get(SEAL) != str(zlib.crc32(own.encode())):
        raise ValueError("its metadata were changed")
    return json.loads(own)


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of names, types, shapes and bytes, in the order of the names."""
    checksum = 0
    for name in sorted(arrays):
        array = arrays[name]
        checksum = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1).view(np.uint8).data, checksum)
    return checksum

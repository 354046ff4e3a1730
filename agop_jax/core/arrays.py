"""Everything that goes to disk as arrays, through Orbax.

A saved directory holds `arrays/` (Orbax) and `metadata.json` (shapes, versions, size and checksum of every file, its
own checksum). It is written under a temporary name and renamed, so that it is whole or absent. Nothing is pickled.
"""

import json
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from agop_jax.core import hosts, trees
from agop_jax.core.errors import UserError

FORMAT = 1


METADATA, ARRAYS = "metadata.json", "arrays"


def load_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The `metadata` given to `save_features` or `save_arrays`, and under 'versions' what wrote it."""
    described = _read_metadata(absolute(path))
    return {**described["metadata"], "versions": described["versions"]}


def save_arrays(path: str | os.PathLike, tree: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes nested dictionaries of arrays, such as a model's variables, as a new directory; see `save_features`."""
    path = absolute(path)
    described = {
        "format": FORMAT,
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "orbax": ocp.__version__},
        "shapes": {name: [list(array.shape), str(array.dtype)] for name, array in trees.flatten(tree).items()},
        "metadata": dict(metadata),
    }

    def write(temporary: Path) -> None:
        arrays = (
            jax.device_get(tree) if jax.process_count() > 1 else tree
        )  # one process cannot save what others take part in
        with _checkpointer() as checkpointer:
            checkpointer.save(temporary / ARRAYS, arrays)
        (temporary / METADATA).write_text(_sealed({**described, "files": _checksums(temporary)}))

    write_directory(path, write)


def load_arrays(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tree and the metadata that `save_arrays` wrote, checked file by file."""
    path = absolute(path)
    described = _read_metadata(path)
    _check_files(path, described["files"])
    shapes = {name: (tuple(shape), dtype) for name, (shape, dtype) in described["shapes"].items()}
    wanted = trees.unflatten({name: jax.ShapeDtypeStruct(*what) for name, what in shapes.items()})
    try:
        with _checkpointer() as checkpointer:
            _check_shapes(path, wanted, checkpointer.metadata(path / ARRAYS).item_metadata.tree)
            found = checkpointer.restore(path / ARRAYS, wanted)
    except UserError:
        raise
    except Exception as error:  # Orbax, TensorStore: ValueError, KeyError, JSONDecodeError, FileNotFoundError, ...
        raise UserError(f"{str(path)!r} cannot be read ({_first_line(error)}): delete it and make it anew") from error
    # committed to a device, as Orbax returns them, they would make whatever was compiled for fresh arrays compile again
    return jax.tree.map(lambda array: jnp.asarray(np.asarray(array)), found), described["metadata"]


def _checkpointer() -> ocp.StandardCheckpointer:
    """Orbax for this process: by itself it would wait for all of them."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    several = jax.process_count() > 1
    return ocp.StandardCheckpointer(multiprocessing_options=alone) if several else ocp.StandardCheckpointer()


def absolute(path: str | os.PathLike) -> Path:
    """With the user's home in place of '~'."""
    return Path(path).expanduser().absolute()  # Orbax takes no relative path


def write_directory(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary directory and renames it to `path` when done; of several processes the first."""
    if hosts.is_first():
        _write_here(path, write)
    hosts.wait(f"written {path.name}")


def _write_here(path: Path, write: Callable[[Path], None]) -> None:
    if path.exists():
        raise UserError(f"{str(path)!r} exists already: delete it or choose another path")
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _checksums(directory: Path) -> dict[str, list[int]]:
    """[size in bytes, CRC-32] of every file, by relative path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        path.relative_to(directory).as_posix(): [path.stat().st_size, zlib.crc32(path.read_bytes())] for path in files
    }


def _check_files(path: Path, wanted: Mapping[str, list[int]]) -> None:
    """Before Orbax reads: it passes over some damage and meets the rest with pages of asynchronous tracebacks."""
    found = _checksums(path)
    for name, (size, checksum) in wanted.items():
        if name not in found:
            raise UserError(f"{str(path / name)!r} is missing: restore it, or delete {str(path)!r} and make it anew")
        if found[name] != [size, checksum]:
            state = "was changed" if found[name][0] == size else f"has {found[name][0]} bytes, wanted {size}"
            raise UserError(f"{str(path / name)!r} {state}: restore it, or delete {str(path)!r} and make it anew")


def _check_shapes(path: Path, wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Before Orbax reads: it cuts or pads some arrays to the shape asked for, and fails asynchronously at others."""
    stated, found = ({name: array.shape for name, array in trees.flatten(tree).items()} for tree in (wanted, stored))
    for name in sorted(stated.keys() | found.keys()):
        if stated.get(name) != found.get(name):
            what = f"wanted {name} of shape {stated.get(name, 'none')}, got {found.get(name, 'none')}"
            raise UserError(f"{str(path)!r}: {what}: delete it and make it anew")


def _read_metadata(path: Path) -> dict[str, Any]:
    file = path / METADATA
    try:
        described = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{str(file)!r} is missing: nothing was saved there, or not by this program") from None
    except (ValueError, OSError) as error:
        raise UserError(
            f"{str(file)!r} is damaged ({_first_line(error)}): delete the directory and make it anew"
        ) from None
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else type(described).__name__
        raise UserError(f"{str(file)!r}: wanted format {FORMAT}, got {found}: delete the directory and make it anew")
    if described.pop("checksum", None) != _checksum(described):
        raise UserError(f"{str(file)!r} was changed: delete the directory and make it anew")
    return described


def _sealed(described: Mapping[str, Any]) -> str:
    """As JSON with a checksum of the values, which do not depend on spaces and line ends."""
    return json.dumps({**described, "checksum": _checksum(described)}, indent=1)


def _checksum(described: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(described).encode())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

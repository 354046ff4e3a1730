"""Everything that goes to disk as arrays, through Orbax.

A saved directory holds `arrays/` (Orbax) and `metadata.json` (shapes, versions, size and checksum of every file, its
own checksum). It is written under a temporary name and renamed, so that it is whole or absent. Nothing is pickled.
"""

import contextlib
import json
import os
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import orbax.checkpoint as ocp

from agop_jax.core import hosts, tensors, trees
from agop_jax.core.errors import UserError, first_line
from agop_jax.core.files import ROOM, writing_to

FORMAT = 1
MIB = 2**20
METADATA, ARRAYS = "metadata.json", "arrays"
RESTORE = "restore it, or delete its directory and make it anew"  # said of proven damage alone
# By default, Orbax makes directories in the background, and its other threads wait for a signal that they are there.
# Where a directory cannot be made, the signal never comes, and the process does not end for 20 minutes. The signals
# bear the number of the save. Each process counts its own saves, so that after a save of one process alone the others
# wait for the signals of another save, or for none.
DIRECTORIES_FIRST = ocp.AsyncOptions(create_directories_asynchronously=False)
PATTERN_CHARACTERS = frozenset("[]*?\\")  # Orbax takes a path with some of these for a pattern, which nothing matches


def load_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The `metadata` given to `save_features` or `save_arrays`, and under 'versions' what wrote it.

    Of a directory, or of a `.safetensors` file.
    """
    if tensors.is_tensor_file(path):
        about = tensors.read_about(path)
        return {**about["metadata"], "versions": about["versions"]}
    described = _read_metadata(absolute(path))
    return {**described["metadata"], "versions": described["versions"]}


def save_arrays(path: str | os.PathLike, tree: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes nested dictionaries of arrays, such as a model's variables, as a new directory; see `save_features`.

    Raises:
      UserError: the path exists, or there is no space for it.
    """
    path = absolute(path)
    described = {
        "format": FORMAT,
        "versions": versions(),
        "shapes": {name: [list(array.shape), str(array.dtype)] for name, array in trees.flatten(tree).items()},
        "metadata": dict(metadata),
    }

    def write(temporary: Path) -> None:
        require_space(temporary, tree)
        arrays = (
            jax.device_get(tree) if jax.process_count() > 1 else tree
        )  # one process cannot save what others take part in
        with plain_path(temporary) as plain, _checkpointer() as checkpointer:
            checkpointer.save(plain / ARRAYS, arrays)
        (temporary / METADATA).write_text(_sealed({**described, "files": _checksums(temporary)}))

    write_directory(path, write)


def require_space(directory: Path, tree: Any) -> None:
    """Refuses to begin with arrays for which the disk has no space.

    Args:
      directory: that they are to be written to; it need not exist yet.
      tree: of the arrays.

    Raises:
      UserError: with both sizes.
    """
    size = MIB + sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # Orbax adds files of a tenth of a MiB
    free = shutil.disk_usage(next(path for path in (directory, *directory.parents) if path.exists())).free
    if size > free:
        raise UserError(
            f"{str(directory)!r} needs {size / MIB:.1f} MiB, its disk has {free / MIB:.1f} MiB left: {ROOM}"
        )


def versions() -> dict[str, str]:
    """Versions of the libraries that write arrays."""
    return {"jax": jax.__version__, "flax": flax.__version__, "orbax": ocp.__version__}


def load_arrays(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tree and the metadata that `save_arrays` wrote, checked file by file.

    The arrays may have been written on other devices, or spread over several: they come to the default device of this
    process, and are committed to none.

    Raises:
      UserError: a file that is missing or was changed, or one that cannot be read here.
    """
    path = absolute(path)
    described = _read_metadata(path)
    _check_files(path, described["files"])
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = {name: jax.ShapeDtypeStruct(*shape, sharding=here) for name, shape in described["shapes"].items()}
    stated = trees.unflatten(shapes)
    try:
        with plain_path(path) as plain, _checkpointer() as checkpointer:
            _check_shapes(path, stated, checkpointer.metadata(plain / ARRAYS).item_metadata.tree)
            stored = checkpointer.restore(plain / ARRAYS, stated)
    except UserError:
        raise
    except Exception as error:  # Orbax, TensorStore: ValueError, KeyError, JSONDecodeError, FileNotFoundError, ...
        raise _unreadable(path, described, error) from error
    # Orbax returns arrays that are committed to a device. A jitted function compiles anew for those, so they are
    # copied to uncommitted ones here.
    return jax.tree.map(lambda array: jax.device_put(jax.device_get(array)), stored), described["metadata"]


def _unreadable(path: Path, described: Mapping[str, Any], error: Exception) -> UserError:
    """The files are as they were written, by their checksums: they are not to be thrown away."""
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    return UserError(
        f"{str(path)!r} cannot be read here ({first_line(error)}), though its files are whole: read it with the "
        f"versions that wrote it, {versions}"
    )


def _checkpointer() -> ocp.StandardCheckpointer:
    """Orbax for this process: by itself it would wait for all of them."""
    if jax.process_count() == 1:
        return ocp.StandardCheckpointer(async_options=DIRECTORIES_FIRST)
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    return ocp.StandardCheckpointer(async_options=DIRECTORIES_FIRST, multiprocessing_options=alone)


def absolute(path: str | os.PathLike) -> Path:
    """With the user's home in place of '~'."""
    return Path(path).expanduser().absolute()  # Orbax takes no relative path


@contextlib.contextmanager
def plain_path(directory: Path) -> Iterator[Path]:
    """A path to an existing directory for libraries that take paths for patterns: a link where that is necessary."""
    if not PATTERN_CHARACTERS & set(str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "directory"
        link.symlink_to(directory, target_is_directory=True)
        yield link


def write_directory(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary directory and renames it to `path` when done; of several processes the first."""
    if hosts.is_first():
        _write_here(path, write)
    hosts.wait(f"written {path.name}")


def _write_here(path: Path, write: Callable[[Path], None]) -> None:
    if path.exists():
        raise UserError(f"{str(path)!r} exists already: choose another path, or move it away")
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        with writing_to(path.parent):
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


def _check_files(path: Path, stated: Mapping[str, list[int]]) -> None:
    """Before Orbax reads: it passes over some damage and meets the rest with pages of asynchronous tracebacks."""
    try:
        there = _checksums(path)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({first_line(error)}): make its files readable") from None
    for name, (size, checksum) in stated.items():
        if name not in there:
            raise UserError(f"{str(path / name)!r} is missing: {RESTORE}")
        if there[name] != [size, checksum]:
            state = "was changed" if there[name][0] == size else f"has {there[name][0]} bytes, wanted {size}"
            raise UserError(f"{str(path / name)!r} {state}: {RESTORE}")


def _check_shapes(path: Path, stated: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Before Orbax reads: it cuts or pads some arrays to the shape asked for, and fails asynchronously at others."""
    shapes_of = lambda tree: {name: array.shape for name, array in trees.flatten(tree).items()}
    expected, actual = shapes_of(stated), shapes_of(stored)
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            what = f"wanted {name} of shape {expected.get(name, 'none')}, got {actual.get(name, 'none')}"
            raise UserError(f"{str(path)!r}: {what}: {METADATA} and {ARRAYS} are of different saves, restore either")


def _read_metadata(path: Path) -> dict[str, Any]:
    file = path / METADATA
    try:
        described = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{str(file)!r} is missing: nothing was saved there, or not by this program") from None
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be read ({first_line(error)}): make it readable") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is no JSON ({first_line(error)}): {RESTORE}") from None
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        got = described.get("format") if isinstance(described, dict) else type(described).__name__
        raise UserError(
            f"{str(file)!r}: wanted format {FORMAT}, got {got}: read it with the version of agop_jax that wrote it"
        )
    if described.pop("checksum", None) != _checksum(described):
        raise UserError(f"{str(file)!r} was changed: {RESTORE}")
    return described


def _sealed(described: Mapping[str, Any]) -> str:
    """As JSON with a checksum of the values, which do not depend on spaces and line ends."""
    return json.dumps({**described, "checksum": _checksum(described)}, indent=1)


def _checksum(described: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(described).encode())

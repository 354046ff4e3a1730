"""Files as a whole or not at all: text, JSON and CSV tables whose columns have types.

A file is written under a temporary name and then renamed, so that a reader never meets half of one.
"""

import contextlib
import csv
import errno
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agop_jax.core import hosts
from agop_jax.core.errors import UserError

# what NumPy raises for a file that is none of its own, of arrays of objects, cut short or changed
UNREADABLE = (ValueError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
# what the system says of a full disk and of a used-up quota; TensorStore and safetensors quote it
FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
ROOM = "make room there; what is saved stays, and the same command goes on from it"
Row = dict[str, Any]


Columns = Mapping[str, Callable[[str], Any]]


def unreadable_reason(error: Exception) -> str:
    """Why NumPy cannot read a file, in one line. NumPy's own advice, to load pickled objects, is not passed on."""
    if "pickle" in str(error):
        return "it holds Python objects, which are never loaded, or is of another kind"
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """Within it, the error of a full disk becomes one line.

    Raises:
      UserError: the disk is full, or the user's quota is used up.
    """
    try:
        yield
    except Exception as error:  # OSError; ValueError of TensorStore, SafetensorError
        if not any(reason in str(error) for reason in FULL):
            raise
        raise UserError(f"{str(directory)!r} cannot be written, its disk or your quota is full: {ROOM}") from None


def atomic_write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write the whole file under a temporary name beside it, then rename; makes missing folders.

    Of several processes the first writes, for all of them.
    """
    if not hosts.is_first():
        return
    with _temporary(Path(path)) as temporary:
        temporary.write_bytes(data)
        os.replace(temporary, path)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A hidden name beside a path, in its folder, which is made if need be; nothing of that name is left at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def require_new(path: str | os.PathLike) -> Path:
    """The path of a file that is to be written, with the user's home in place of '~'.

    Raises:
      UserError: something is there already.
    """
    path = Path(path).expanduser()
    if path.exists() or path.is_symlink():
        raise UserError(f"{str(path)!r} exists already: choose another path, or move it away")
    return path


def write_new(path: str | os.PathLike, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary name and renames the file when it is whole; makes missing folders.

    Of several processes the first writes, for all of them.

    Raises:
      UserError: the path exists.
    """
    if not hosts.is_first():
        return
    path = require_new(path)
    with _temporary(path) as temporary:
        write(temporary)
        require_new(path)
        os.rename(temporary, path)


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """`atomic_write_bytes` in UTF-8, with the line ends as given."""
    atomic_write_bytes(path, text.encode())


def write_rows(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """A CSV file with the columns of the first row; None becomes an empty cell. No rows: an empty file."""
    rows = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    if rows:
        writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, text.getvalue())


def read_text(path: str | os.PathLike) -> str:
    """A UTF-8 file, or a `UserError` that names it."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the experiment that writes it has not finished here") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def read_header(path: str | os.PathLike) -> list[str]:
    """The columns of a CSV file."""
    return next(csv.reader(io.StringIO(read_text(path), newline="")), [])


def read_table(path: str | os.PathLike, columns: Columns) -> list[Row]:
    """A CSV file's rows with each of `columns` converted; further columns stay text.

    Raises:
      UserError: names the file and, where there is one, the line and the column.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: wanted the columns {', '.join(columns)}; missing: {', '.join(missing)}")
    try:
        return [_converted(row, columns, f"{path}, line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def read_optional_table(path: str | os.PathLike, columns: Columns) -> list[Row]:
    """`read_table`, or no rows where there is no such file."""
    return read_table(path, columns) if Path(path).exists() else []


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A file with one JSON object."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: wanted a JSON object, found {type(content).__name__}")
    return content


def _converted(row: Mapping[str, str | None], columns: Columns, place: str) -> Row:
    if None in row or None in row.values():
        raise UserError(f"{place}: wanted {len(row) - (None in row)} cells, found another number; the file is damaged")
    return {name: _cell(text or "", columns.get(name, str), f"{place}, column {name}") for name, text in row.items()}


def _cell(text: str, convert: Callable[[str], Any], place: str) -> Any:
    """An empty cell of a float column is nan."""
    try:
        return math.nan if convert is float and not text else convert(text)
    except ValueError:
        raise UserError(f"{place}: wanted {convert.__name__}, found {text!r}") from None

"""The work directory's tidy files: one place that knows their columns, reads them and writes them whole.

A file is written under a temporary name and then renamed, so that a reader never meets half of one.
"""

import csv
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agop_jax import hosts
from agop_jax.errors import UserError

Row = dict[str, Any]
Recipient = tuple[str, int, float, int]  # init, train_size, width, seed
Kernels = tuple[np.ndarray, np.ndarray]  # first layer before and after training, (kh, kw, cin, cout)
Columns = Mapping[str, Callable[[str], Any]]
Curves = Mapping[Recipient, list[Row]]

# One recipient a row. Accuracies are fractions; accuracy_at_P is on validation after P % of the step budget.
RESULT_COLUMNS: Columns = {
    "init": str,
    "seed": int,
    "train_size": int,
    "width": float,
    "learning_rate": float,
    "test_accuracy": float,
    "test_loss": float,
    "validation_accuracy": float,
    "validation_loss": float,
    "train_accuracy": float,
    "train_loss": float,
    "accuracy_at_5": float,
    "accuracy_at_20": float,
    "accuracy_at_100": float,
    "steps": int,
    "seconds": float,
    "images_per_second": float,
    "diverged": int,
}
# The grid on validation data; chosen is 1 for the rate the recipients were trained with.
RATE_COLUMNS: Columns = {
    "init": str,
    "train_size": int,
    "width": float,
    "learning_rate": float,
    "seed": int,
    "validation_accuracy": float,
    "validation_loss": float,
    "chosen": int,
}
# R^2 of the regression that carries the donor's basis from one layer to the next.
FIT_COLUMNS: Columns = {
    "init": str,
    "seed": int,
    "train_size": int,
    "width": float,
    "layer": str,
    "explained_variance": float,
}
POOR_FIT = 0.2  # explained variance below which a coupled layer is hardly better than an independent one
# Of the donor's feature matrices ('nfm', 'agop'), largest eigenvalue first.
SPECTRUM_COLUMNS: Columns = {"layer": str, "matrix": str, "index": int, "eigenvalue": float}
# NFM against powers of the AGOP, as `ansatz.ansatz_report` explains; empty where a comparison has no such number.
ANSATZ_COLUMNS: Columns = {
    "layer": str,
    "comparison": str,
    "power": float,
    "fitted": int,
    "power_low": float,
    "power_high": float,
    "pearson": float,
    "null_pearson_mean": float,
    "null_pearson_95": float,
    "cosine": float,
    "null_cosine_mean": float,
    "null_cosine_95": float,
}

METRIC_NAMES = ("step", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")


def recipient_name(init: str, train_size: int, width: float, seed: int) -> str:
    """The stem of a recipient's own files, such as 'he_nfm_n500_w1_s0'; ':' is not allowed in names on every system."""
    return f"{init.replace(':', '-')}_n{train_size}_w{width:g}_s{seed}"


def atomic_write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write the whole file under a temporary name beside it, then rename; makes missing folders.

    Of several processes the first writes, for all of them.
    """
    if not hosts.is_first():
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def read_results(path: str | os.PathLike) -> list[Row]:
    """`results.csv`: one recipient a row, at least one row, none twice; accuracies are finite after divergence too."""
    rows = read_table(path, RESULT_COLUMNS)
    if not rows:
        raise UserError(f"{path}: wanted one row a recipient, found none")
    seen = set()
    for row in rows:
        name = recipient_name(*_recipient(row))
        if name in seen:
            raise UserError(f"{path}: recipient {name} is there twice, in the columns init, train_size, width, seed")
        seen.add(name)
        for column in ("test_accuracy", "validation_accuracy"):
            if not math.isfinite(row[column]):
                raise UserError(f"{path}: recipient {name}, column {column}: wanted a number, found {row[column]}")
    return rows


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A file with one JSON object."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: wanted a JSON object, found {type(content).__name__}")
    return content


def read_metrics(path: str | os.PathLike) -> list[Row]:
    """A recipient's curves, one dict a line, by step; null (stored for a number that is not finite) becomes nan."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            values = json.loads(line)
            row = {name: math.nan if values[name] is None else float(values[name]) for name in METRIC_NAMES}
            rows.append(row | {"step": int(row["step"])})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}, line {number}: wanted {', '.join(METRIC_NAMES)} ({error!r})") from error
    return rows


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


@dataclass(frozen=True)
class Work:
    """What a finished experiment left in its directory; what it did not write is empty."""

    path: Path
    config: Row
    environment: Row
    results: list[Row]
    curves: Curves
    donor: Row
    donor_curve: list[Row]
    rates: list[Row]
    fits: list[Row]
    spectra: list[Row]
    ansatz: list[Row]
    gallery: list[Row]
    filters: dict[str, Kernels]


def read_work(path: str | os.PathLike) -> Work:
    """Everything the report needs, or a `UserError` that names the file that is damaged."""
    path = Path(path)
    rows = read_results(path / "results.csv")
    return Work(
        path=path,
        config=read_json(path / "config.json"),
        environment=read_json(path / "environment.json"),
        results=rows,
        curves={_recipient(row): _optional_metrics(path, recipient_name(*_recipient(row))) for row in rows},
        donor=read_json(path / "donor.json") if (path / "donor.json").exists() else {},
        donor_curve=_optional_metrics(path, "donor"),
        rates=read_optional_table(path / "learning_rates.csv", RATE_COLUMNS),
        fits=read_optional_table(path / "fits.csv", FIT_COLUMNS),
        spectra=read_optional_table(path / "spectra.csv", SPECTRUM_COLUMNS),
        gallery=read_json(path / "gallery.json")["entries"] if (path / "gallery.json").exists() else [],
        ansatz=read_optional_table(path / "ansatz.csv", ANSATZ_COLUMNS),
        filters=_read_filters(path, rows),
    )


def _recipient(row: Row) -> Recipient:
    return row["init"], row["train_size"], row["width"], row["seed"]


def _optional_metrics(path: Path, name: str) -> list[Row]:
    file = path / "metrics" / f"{name}.jsonl"
    return read_metrics(file) if file.exists() else []


def _read_filters(path: Path, rows: Sequence[Row]) -> dict[str, Kernels]:
    """By init, of its first recipient that has any."""
    found: dict[str, Kernels] = {}
    for row in rows:
        file = path / "filters" / f"{recipient_name(*_recipient(row))}.npz"
        if row["init"] in found or not file.exists():
            continue
        try:
            with np.load(file, allow_pickle=False) as arrays:
                found[row["init"]] = arrays["initial"], arrays["trained"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{file}: wanted the arrays 'initial' and 'trained' ({error})") from error
    return found

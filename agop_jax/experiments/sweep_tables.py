"""What a sweep has measured so far: its tables in the work directory, kept whole whoever adds to them."""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agop_jax.core import files
from agop_jax.experiments.workdir import FITS, RATES, RESULTS
from agop_jax.results import tables


@dataclass(frozen=True)
class Cell:
    """One init in one setting; `seed` and learning rate vary within it."""

    init: str
    train_size: int
    width: float

    def name(self, seed: int) -> str:
        """Of a recipient's files."""
        return tables.recipient_name(self.init, self.train_size, self.width, seed)


class SweepTables:
    """`results.csv`, `learning_rates.csv` and `fits.csv`: read once, written after each addition.

    Recipients may be trained at once, in threads. Rows are in the order of the cells and seeds, whoever came first.
    """

    def __init__(self, workdir: Path, cells: Sequence[Cell]) -> None:
        self._workdir = workdir
        self._order = {cell: place for place, cell in enumerate(cells)}
        self._lock = threading.Lock()
        self.results = files.read_optional_table(workdir / RESULTS, tables.RESULT_COLUMNS)
        self.rates = files.read_optional_table(workdir / RATES, tables.RATE_COLUMNS)
        self.fits = files.read_optional_table(workdir / FITS, tables.FIT_COLUMNS)

    def seeds_done(self, cell: Cell) -> set[int]:
        """Of the recipients that have their row."""
        return {row["seed"] for row in self.results if _cell_of(row) == cell}

    def rates_tried(self, cell: Cell) -> set[tuple[float, int]]:
        """Learning rate and seed of each run of the grid that is done."""
        return {(row["learning_rate"], row["seed"]) for row in self.rates if _cell_of(row) == cell}

    def add_rate(self, cell: Cell, rate: float, seed: int, last: Mapping[str, Any]) -> None:
        """A run of the grid with the last record of its history."""
        row = {**vars(cell), "learning_rate": rate, "seed": seed, "chosen": 0}
        row |= {name: last[name] for name in ("validation_accuracy", "validation_loss")}
        with self._lock:
            self.rates.append(row)
            self._write(RATES, self.rates, tables.RATE_COLUMNS)

    def choose_rate(self, cell: Cell, rates: Sequence[float]) -> float:
        """The rate of the best mean validation accuracy over the tuning seeds; on a tie of the smaller loss."""
        mine = [row for row in self.rates if _cell_of(row) == cell]

        def merit(rate: float) -> tuple[float, float]:
            rows = [row for row in mine if row["learning_rate"] == rate]
            losses = [row["validation_loss"] if math.isfinite(row["validation_loss"]) else math.inf for row in rows]
            return float(np.mean([row["validation_accuracy"] for row in rows])), -float(np.mean(losses))

        best = max(rates, key=merit)
        with self._lock:
            for row in mine:
                row["chosen"] = int(row["learning_rate"] == best)
            self._write(RATES, self.rates, tables.RATE_COLUMNS)
        return best

    def add_result(self, row: dict[str, Any]) -> None:
        """A recipient."""
        with self._lock:
            self.results.append(row)
            self._write(RESULTS, self.results, tables.RESULT_COLUMNS)

    def add_fits(self, cell: Cell, seed: int, explained_variance: Mapping[str, float]) -> None:
        """Replaces the rows of this recipient, which an interrupted run may have written before."""
        mine = {**vars(cell), "seed": seed}
        with self._lock:
            self.fits = [row for row in self.fits if any(row[name] != value for name, value in mine.items())]
            self.fits += [{**mine, "layer": path, "explained_variance": r2} for path, r2 in explained_variance.items()]
            if self.fits:
                self._write(FITS, self.fits, tables.FIT_COLUMNS)

    def _write(self, name: str, rows: list[dict[str, Any]], columns: Iterable[str]) -> None:
        """Rows of cells that this config no longer has come first."""
        rows.sort(key=lambda row: (self._order.get(_cell_of(row), -1), row["seed"]))
        files.write_rows(self._workdir / name, [{column: row[column] for column in columns} for row in rows])


def _cell_of(row: Mapping[str, Any]) -> Cell:
    return Cell(row["init"], row["train_size"], row["width"])

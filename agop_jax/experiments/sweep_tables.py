"""What a sweep has measured so far: its tables in the work directory, kept whole whoever adds to them."""

import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agop_jax.core import files
from agop_jax.experiments import tuning
from agop_jax.experiments.settings import Config
from agop_jax.experiments.workdir import FITS, RATES, RESULTS
from agop_jax.results import tables
from agop_jax.results.tables import Setting


@dataclass(frozen=True)
class Cell:
    """One init in one setting; `seed` and learning rate vary within it."""

    init: str
    setting: Setting

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that a cell has in a table's row."""
        return {"init": self.init, **self.setting._asdict()}

    @property
    def start(self) -> "Cell":
        """The cell without its budget, on which a recipient's start does not depend."""
        return Cell(self.init, self.setting._replace(budget=0))

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Cell":
        """The one that a row belongs to."""
        return cls(row["init"], Setting.of(row))


def sweep_cells(config: Config, images: int) -> list[Cell]:
    """The cells in the order of their training; a training-set size of 0 in the config means all images."""
    recipients = config.recipients
    sizes = dict.fromkeys(size or images for size in recipients.train_sizes)
    settings = itertools.starmap(Setting, itertools.product(sizes, recipients.widths, config.budgets))
    return [Cell(init, setting) for setting in settings for init in recipients.inits]


class SweepTables:
    """`results.csv`, `learning_rates.csv` and `fits.csv`: read once, written after each addition.

    Recipients may be trained at once, in threads. Rows are in the order of the cells and seeds, whoever came first. The
    last column of the first two files names the environment that a row was computed in. `donor` and `budget` are those
    of rows whose file names none, as versions that knew one of each wrote them.
    """

    def __init__(
        self, workdir: Path, cells: Sequence[Cell], environment: str = "", donor: int = 0, budget: int = 0
    ) -> None:
        self._workdir, self._environment = workdir, environment
        self._order = {cell: place for place, cell in enumerate(cells)}
        self._order |= {cell.start: place for place, cell in reversed([*enumerate(cells)])}
        self._lock = threading.Lock()
        self.results = tables.read_optional_results(workdir / RESULTS, donor, budget)
        self.rates = tables.read_optional_rates(workdir / RATES, budget)
        self.fits = files.read_optional_table(workdir / FITS, tables.FIT_COLUMNS)

    def seeds_done(self, cell: Cell) -> set[int]:
        """The seeds of the recipients that have their row."""
        return {row["seed"] for row in self.results if Cell.of(row) == cell}

    def rates_tried(self, cell: Cell) -> set[tuple[float, int]]:
        """Learning rate and seed of each run of the grid that is done."""
        return {(row["learning_rate"], row["seed"]) for row in self.rates if Cell.of(row) == cell}

    def add_rate(self, cell: Cell, rate: float, seed: int, last: Mapping[str, Any]) -> None:
        """A run of the grid with the last record of its history."""
        row = {**cell.columns, "learning_rate": rate, "seed": seed, "chosen": 0}
        row |= {name: last[name] for name in ("validation_accuracy", "validation_loss")}
        row[tables.ENVIRONMENT] = self._environment
        with self._lock:
            self.rates.append(row)
            self._write(RATES, self.rates, tables.RATE_COLUMNS)

    def choose_rate(self, cell: Cell, rates: Sequence[float], seeds: Sequence[int]) -> float:
        """The best rate of the grid by the runs of these seeds; its rows are marked."""
        own = [row for row in self.rates if Cell.of(row) == cell and row["seed"] in seeds]
        best = tuning.best_rate(own, rates)
        if len(rates) > 1:
            with self._lock:
                for row in own:
                    row["chosen"] = int(row["learning_rate"] == best)
                self._write(RATES, self.rates, tables.RATE_COLUMNS)
        return best

    def add_result(self, row: dict[str, Any]) -> None:
        """A recipient."""
        with self._lock:
            self.results.append({**row, tables.ENVIRONMENT: self._environment})
            self._write(RESULTS, self.results, tables.RESULT_COLUMNS)

    def add_fits(self, cell: Cell, seed: int, explained_variance: Mapping[str, float]) -> None:
        """Replaces the rows of this start, which another budget or an interrupted run may have written before."""
        mine = {name: cell.columns[name] for name in ("init", "train_size", "width")} | {"seed": seed}
        with self._lock:
            self.fits = [row for row in self.fits if any(row[name] != value for name, value in mine.items())]
            self.fits += [{**mine, "layer": path, "explained_variance": r2} for path, r2 in explained_variance.items()]
            if self.fits:
                self._write(FITS, self.fits, tables.FIT_COLUMNS)

    def _write(self, name: str, rows: list[dict[str, Any]], columns: Iterable[str]) -> None:
        """Rows of cells that this config no longer has come first."""
        rows.sort(key=lambda row: (self._order.get(Cell.of(row), -1), row["seed"]))
        stated = [] if name == FITS else [tables.ENVIRONMENT]  # rows of older versions lack it
        lines = [{column: row.get(column, "") for column in (*columns, *stated)} for row in rows]
        files.write_rows(self._workdir / name, lines)

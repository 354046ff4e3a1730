"""The columns of a work directory's tables, and their readers."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from agop_jax.core.errors import UserError
from agop_jax.core.files import (
    Columns,
    Row,
    read_header,
    read_table,
    read_text,
)


class Setting(NamedTuple):
    """What recipients must share to be compared.

    Attributes:
      train_size: training images.
      width: factor on the number of channels.
      budget: training steps; 0 where a row names none.
    """

    train_size: int
    width: float
    budget: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Setting":
        """The setting of a row of any table."""
        return cls(row["train_size"], row["width"], row.get("budget", 0))

    def stem(self, own: int) -> str:
        """In names of files, such as 'n500_w1' or 'n500_w1_t1000'; `own` is the budget that goes without saying."""
        steps = "" if self.budget in (0, own) else f"_t{self.budget}"
        return f"n{self.train_size}_w{self.width:g}{steps}"


Recipient = tuple[str, Setting, int]  # init, setting, seed
Curves = Mapping[Recipient, list[Row]]

# One recipient a row. Accuracies are fractions; accuracy_at_P is on validation after P % of the budget, the number of
# training steps, of which a run that diverged took fewer. donor is the seed of its donor. probe_accuracy is that of a
# linear probe before training; nearest_cosine says how near its new filters are to the donor's, 1 for copies;
# draw_seconds what its start took, with a machine's fits where there are any.
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
    "donor": int,
    "probe_accuracy": float,
    "nearest_cosine": float,
    "draw_seconds": float,
    "budget": int,
}
# Columns that older versions did not write, and what stands for them.
LATER_COLUMNS = {"donor": 0, "probe_accuracy": math.nan, "nearest_cosine": math.nan, "draw_seconds": math.nan}
# What can be compared over recipients, and whether more of it is better.
HIGHER_IS_BETTER = {
    "test_accuracy": True,
    "test_loss": False,
    "validation_accuracy": True,
    "validation_loss": False,
    "train_accuracy": True,
    "train_loss": False,
    "accuracy_at_5": True,
    "accuracy_at_20": True,
    "accuracy_at_100": True,
    "seconds": False,
    "images_per_second": True,
    "diverged": False,
    "probe_accuracy": True,
}
# The grid on validation data; chosen is 1 for the rate the recipients were trained with.
RATE_COLUMNS: Columns = {
    "init": str,
    "train_size": int,
    "width": float,
    "budget": int,
    "learning_rate": float,
    "seed": int,
    "validation_accuracy": float,
    "validation_loss": float,
    "chosen": int,
}
# R^2 of the regression that carries the donor's basis from one layer to the next; the same for every budget.
FIT_COLUMNS: Columns = {
    "init": str,
    "seed": int,
    "train_size": int,
    "width": float,
    "layer": str,
    "explained_variance": float,
}
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

ENVIRONMENT = "environment"  # last column of results and rates: the key of a line of `environments.jsonl`
METRIC_NAMES = ("step", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")


def recipient_of(row: Row) -> Recipient:
    """The recipient that a row is about."""
    return row["init"], Setting.of(row), row["seed"]


def recipient_name(init: str, setting: Setting, seed: int, own: int = 0) -> str:
    """The stem of a recipient's own files, such as 'he_nfm_n500_w1_s0'; ':' is not allowed in names on every system.

    Args:
      init: its name.
      setting: of the recipient.
      seed: of the recipient.
      own: the budget `config.train.steps`, which goes without saying.
    """
    return f"{init.replace(':', '-')}_{setting.stem(own)}_s{seed}"


def read_optional_results(path: str | os.PathLike, donor: int = 0, budget: int = 0) -> list[Row]:
    """`results.csv` where it is, of this version or an older one, which knew one donor and one budget.

    Args:
      path: of the file.
      donor: of rows that name none.
      budget: of rows that name none; 0 for the most steps that any of them took.
    """
    rows = _read_versions(path, RESULT_COLUMNS, LATER_COLUMNS | {"donor": donor})
    most = budget or max((row["steps"] for row in rows), default=0)
    return [row if "budget" in row else {**row, "budget": most} for row in rows]


def read_optional_rates(path: str | os.PathLike, budget: int) -> list[Row]:
    """`learning_rates.csv` where it is, of this version or an older one, whose rows have no budget."""
    return [{"budget": budget} | row for row in _read_versions(path, RATE_COLUMNS, {})]


def _read_versions(path: str | os.PathLike, columns: Columns, later: Row) -> list[Row]:
    """The rows of a table, if it is there, with what stands for `later` columns; `budget` may be missing."""
    if not Path(path).exists():
        return []
    known = read_header(path)
    own = {name: kind for name, kind in columns.items() if name in known or name not in {*later, "budget"}}
    return [later | row for row in read_table(path, own)]


def read_results(path: str | os.PathLike, budget: int = 0) -> list[Row]:
    """`results.csv`: one recipient a row, at least one row, none twice; accuracies are finite after divergence too.

    `budget` is that of rows that name none, see `read_optional_results`.
    """
    rows = read_optional_results(path, budget=budget) or read_table(path, RESULT_COLUMNS)
    if not rows:
        raise UserError(f"{path}: wanted one row a recipient, found none")
    seen = set()
    for row in rows:
        name = recipient_name(*recipient_of(row), budget)
        if name in seen:
            raise UserError(
                f"{path}: recipient {name} is there twice, in the columns init, train_size, width, budget, seed"
            )
        seen.add(name)
        for column in ("test_accuracy", "validation_accuracy"):
            if not math.isfinite(row[column]):
                raise UserError(f"{path}: recipient {name}, column {column}: wanted a number, found {row[column]}")
    return rows


def read_metrics(path: str | os.PathLike) -> list[Row]:
    """A recipient's curves, one dict a line, by step; null (stored for a number that is not finite) becomes nan."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            values = json.loads(line)
            row = {name: math.nan if values[name] is None else float(values[name]) for name in METRIC_NAMES}
            curve = values.get("curve_accuracy", values["validation_accuracy"])  # versions before evaluated one set
            rows.append(row | {"step": int(row["step"]), "curve_accuracy": float(curve)})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}, line {number}: wanted {', '.join(METRIC_NAMES)} ({error!r})") from error
    return rows

"""Several finished work directories -> one page, figures and tidy tables of initialisations x settings."""

import math
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agop_jax.core import files
from agop_jax.core.files import Row
from agop_jax.results import comparison_figures, comparison_words, figures, html, matrix, pictures
from agop_jax.results.intervals import NAN, Interval
from agop_jax.results.matrix import LSUV, Cell, Column, Overall
from agop_jax.results.pictures import Picture
from agop_jax.results.runs import Run
from agop_jax.results.summary import BASELINE

# of a line of a run's own summary, in the order of the columns
LINE = (
    "n",
    "donors",
    "diverged",
    "learning_rate",
    "test_accuracy",
    "low",
    "high",
    "probe_accuracy",
    "nearest_cosine",
    "he_difference",
    "he_low",
    "he_high",
    "he_verdict",
    "donor_deviation",
)
PAGE, CELLS, OVERALL, DONORS = "comparison.html", "comparison.csv", "overall.csv", "donors.csv"


def write_comparison(runs: Sequence[Run], folder: str | os.PathLike, donor_free: Container[str] = ()) -> Path:
    """Write comparison.html, comparison.csv, overall.csv, donors.csv (of several donors) and figures into a folder.

    Args:
      runs: as `read_runs` gives them.
      folder: made if need be.
      donor_free: inits on which no donor has any influence.

    Returns:
      The page.
    """
    folder, columns = Path(folder), matrix.columns(runs, donor_free)
    lines = matrix.overall(columns)
    files.write_rows(folder / CELLS, _cell_rows(columns))
    files.write_rows(folder / OVERALL, [_overall_row(line) for line in lines])
    if donors := _donor_rows(columns):
        files.write_rows(folder / DONORS, donors)
    page = html.template("comparison.html.j2").render(
        runs=runs,
        columns=columns,
        inits=[line.init for line in lines],
        overall=lines,
        lsuv=LSUV,
        has_lsuv=_has_lsuv(columns),
        ranked=[line.init for line in lines if line.rank],
        words=comparison_words.in_short(columns, lines),
        matrix=_matrix(folder, columns, lines),
        over_settings=_over_settings(folder, lines) if len(columns) > 1 else [],
        courses=_courses(folder, columns, lines),
        donors=[column for column in columns if column.donors],
        tables=[CELLS, OVERALL, *([DONORS] if donors else [])],
    )
    files.atomic_write_text(folder / PAGE, page)
    return folder / PAGE


def _has_lsuv(columns: Sequence[Column]) -> bool:
    return any(LSUV in column.cells for column in columns)


def _cell_rows(columns: Sequence[Column]) -> list[Row]:
    facts = list(dict.fromkeys(name for column in columns for name in column.facts if "." not in name))
    return [
        {
            "run": column.run,
            "setting": column.name,
            **{name: column.facts.get(name, "") for name in facts},
            "train_size": cell.line.train_size,
            "width_factor": cell.line.width,
            "budget_steps": column.setting.budget,
            "init": init,
            **{name: _blank(getattr(cell.line, name)) for name in LINE},
            **_lsuv_row(cell),
        }
        for column in columns
        for init, cell in column.cells.items()
    ]


def _lsuv_row(cell: Cell) -> Row:
    """The difference from lsuv and the part of copy's gain over it."""
    difference, part = cell.lsuv, cell.recovered
    ends = {"lsuv_difference": "mean", "lsuv_low": "low", "lsuv_high": "high", "lsuv_verdict": "verdict"}
    parts = {"copy_recovered": "fraction", "copy_recovered_low": "low", "copy_recovered_high": "high"}
    return {name: _blank(getattr(difference, field, None)) for name, field in ends.items()} | {
        name: _blank(getattr(part, field, None)) for name, field in parts.items()
    }


def _overall_row(line: Overall) -> Row:
    row: Row = {"init": line.init, "settings": line.settings}
    for name, interval in (("over_he", line.over_he), ("over_lsuv", line.over_lsuv), ("rank", line.rank)):
        row |= {
            name: _blank(getattr(interval, "mean", None)),
            **{f"{name}_{end}": _blank(getattr(interval, end, None)) for end in ("low", "high")},
        }
    return row | {"copy_recovered": _blank(line.recovered)}


def _donor_rows(columns: Sequence[Column]) -> list[Row]:
    """The difference from He of each donor's recipients, where a run has several donors."""
    return [
        {"run": column.run, "setting": column.name, "init": init, "donor": donor, "he_difference": difference}
        for column in columns
        if column.donors
        for init, differences in column.donors.differences.items()
        for donor, difference in differences.items()
    ]


def _blank(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _matrix(folder: Path, columns: Sequence[Column], lines: Sequence[Overall]) -> Picture:
    against, figure = differences_figure(columns, lines)
    caption = (
        f"Test accuracy less that of {against}, in points, paired by seed: an initialisation a row, a setting a "
        "column. Blue: better; orange: worse. A triangle: the corrected interval excludes 0. Empty: not tried there, "
        "or it does not train."
    )
    alt = f"Differences from {against} by initialisation and setting; the table below gives the same numbers."
    return pictures.picture(folder, "matrix", figure, caption, alt)


def differences_figure(columns: Sequence[Column], lines: Sequence[Overall]) -> tuple[str, Figure]:
    """The baseline, lsuv where every setting has it and else He, and the picture of all differences from it."""
    against = LSUV if all(LSUV in column.cells for column in columns) else BASELINE
    inits = [line.init for line in lines if line.init != against]
    cells = {(i, j): column.cells.get(init) for i, init in enumerate(inits) for j, column in enumerate(columns)}
    values, verdicts = np.full((len(inits), len(columns)), NAN), {}
    for place, cell in cells.items():
        if cell and cell.line.trains:
            values[place], verdicts[place] = _against(cell, against)
    names = [column.name for column in columns]
    return against, comparison_figures.difference_matrix(inits, names, values, verdicts)


def _against(cell: Cell, against: str) -> tuple[float, str]:
    if against == BASELINE:
        return cell.line.he_difference, cell.line.he_verdict
    return (cell.lsuv.mean, cell.lsuv.verdict) if cell.lsuv else (NAN, "")


def _over_settings(folder: Path, lines: Sequence[Overall]) -> list[Picture]:
    chances: dict[str, list[Interval | None]] = {LSUV: [line.over_lsuv for line in lines]}
    chances = {name: own for name, own in chances.items() if any(own)} | {"He": [line.over_he for line in lines]}
    ranks = [line.rank for line in lines]
    figure = comparison_figures.over_settings([line.init for line in lines], chances, ranks)
    caption = (
        "Left: the probability that a recipient of this initialisation beats one of the baseline's, mean over the "
        "settings that have both; dashed: one half. Right: mean rank, of the initialisations that all settings have. "
        "Bars: 95 % intervals by a bootstrap over seeds within settings."
    )
    return [
        pictures.picture(folder, "over_settings", figure, caption, "Winning chances and ranks; see the table below.")
    ]


def _courses(folder: Path, columns: Sequence[Column], lines: Sequence[Overall]) -> list[Picture]:
    """Accuracy against budget, for each group of settings that differ in it alone."""
    courses = []
    for course in dict.fromkeys(column.course for column in columns):
        own = {column.setting.budget: column for column in columns if column.course == course}
        if len(own) > 1:
            courses.append(
                _course(folder, f"budget_{len(courses)}", course, [own[budget] for budget in sorted(own)], lines)
            )
    return courses


def _course(folder: Path, name: str, course: str, columns: Sequence[Column], lines: Sequence[Overall]) -> Picture:
    curves = {}
    for line in lines:
        cells = [(column.setting.budget, cell.line) for column in columns if (cell := column.cells.get(line.init))]
        if len(cells) > 1:
            values = [[getattr(cell, field) for _, cell in cells] for field in ("test_accuracy", "low", "high")]
            curves[line.init] = figures.Curve([budget for budget, _ in cells], *values)
    figure = figures.small_multiples(curves, BASELINE, "training steps", "test accuracy", points=True)
    caption = (
        f"Test accuracy against the number of training steps{f', {course}' if course else ''}. Each number of steps "
        "has a schedule and a choice of learning rates of its own. Dots: mean over seeds; band: its 95 % t interval; "
        "grey: He."
    )
    return pictures.picture(folder, name, figure, caption, "Accuracy against budget, one panel an initialisation.")

"""A finished work directory -> figures, summary.csv and one self-contained report.html."""

import json
import math
import os
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agop_jax.core import files
from agop_jax.core.files import Row
from agop_jax.results import by_donor, ending, html, pictures, summary, summary_words
from agop_jax.results.by_donor import DonorTable
from agop_jax.results.data_words import data_words, evaluation_words, facts_in_brief
from agop_jax.results.moderation import RESOLUTION, ROWS
from agop_jax.results.pictures import Picture
from agop_jax.results.summary import Summary
from agop_jax.results.tables import Setting
from agop_jax.results.work import Work, read_work

Key = tuple[str, Setting]  # init, setting


@dataclass(frozen=True)
class Section:
    """What the page shows of one setting."""

    title: str
    lines: list[Summary]
    text: list[tuple[str, str]]
    pictures: list[Picture]
    donors: DonorTable | None


@dataclass(frozen=True)
class Pivot:
    """Means over seeds: a line for each init and setting, a column for each learning rate or layer."""

    columns: list[Any]
    lines: dict[Key, dict[Any, float]]


def write_report(
    workdir: str | os.PathLike,
    describe: Callable[[str], str],
    poor_fit: float = 0.0,
    donor_free: Container[str] = (),
) -> str:
    """Write figures/*.png, figures/*.svg, summary.csv and report.html into `workdir`.

    Args:
      workdir: what the experiment runner wrote; only config.json and results.csv must be there.
      describe: init -> one line about it, '' where nothing is known of it.
      poor_fit: explained variance of a coupled layer below which the page warns.
      donor_free: inits on which no donor has any influence.

    Returns:
      A plain-text table for the terminal, with a short summary.

    Raises:
      UserError: a file is missing or damaged; the message names it.
    """
    work = read_work(workdir)
    lines = summary.summarise(work.results, work.curves, **work.judged, donor_free=donor_free)
    files.write_rows(work.path / "summary.csv", [_blank_nan(asdict(line)) for line in lines])
    files.atomic_write_text(work.path / "report.html", _page(work, lines, describe, poor_fit))
    return f"{summary_words.terminal_table(lines)}\n\n{ending.in_brief(lines, work.path, work.test_images)}"


def _blank_nan(row: Row) -> Row:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _page(work: Work, lines: Sequence[Summary], describe: Callable[[str], str], poor_fit: float) -> str:
    settings = {line.setting: [other for other in lines if other.setting == line.setting] for line in lines}
    rates = _pivot(sorted(work.rates, key=lambda row: row["learning_rate"]), "learning_rate", "validation_accuracy")
    chosen = {(*_key(row), row["learning_rate"]) for row in work.rates if row["chosen"]}
    return html.template("report.html.j2").render(
        question=str(work.config.get("question") or "Which initialisation is best?"),
        facts=facts_in_brief(work),
        sections=[_section(work, group) for group in settings.values()],
        overall=summary_words.in_every_setting(lines, work.margin, work.test_images) if len(settings) > 1 else [],
        trends=pictures.trends(work, lines),
        donor=pictures.donor(work),
        ansatz=pictures.ansatz(work),
        ansatz_words=pictures.ansatz_words(work.ansatz),
        gallery=pictures.gallery(work),
        gallery_note=pictures.gallery_note(work),
        data=data_words(work.data),
        donor_accuracies=_donor_accuracies(work),
        moderated=work.judged["variance"] == "moderated",
        moderated_rows=ROWS,
        margin=work.margin,
        evaluation=evaluation_words(work.config),
        donor_seconds=next((row["seconds"] for row in work.donors.values() if row.get("source") == "rfm:"), None),
        filters=pictures.filters(work, lines),
        rates=rates,
        chosen=chosen,
        edge=_rates_at_the_edge(rates, chosen),
        fits=(fits := _pivot(work.fits, "layer", "explained_variance")),
        poorly_fitted=_poorly_fitted(fits, poor_fit),
        poor_fit=poor_fit,
        descriptions={init: describe(init) for init in sorted({line.init for line in lines})},
        config=json.dumps(work.config, indent=2, ensure_ascii=False),
        environments=work.environments,
    )


def _section(work: Work, lines: list[Summary]) -> Section:
    title = summary_words.setting_name(lines[0].setting)
    words = summary_words.in_words(lines, work.margin, work.test_images)
    spread = by_donor.spread_table(work.results, lines)
    return Section(title, lines, words, pictures.of_setting(work, lines), spread)


def _donor_accuracies(work: Work) -> dict[int, float]:
    """{seed: test accuracy} of the donors whose classes are those of their data."""
    return {seed: row["test_accuracy"] for seed, row in work.donors.items() if "test_accuracy" in row}


def _key(row: Row) -> Key:
    return row["init"], Setting.of(row)


def _pivot(rows: Sequence[Row], column: str, value: str) -> Pivot:
    cells: dict[Key, dict[Any, list[float]]] = {}
    for row in rows:
        cells.setdefault(_key(row), {}).setdefault(row[column], []).append(row[value])
    means = {key: {name: float(np.mean(numbers)) for name, numbers in line.items()} for key, line in cells.items()}
    return Pivot(list(dict.fromkeys(row[column] for row in rows)), means)


def _rates_at_the_edge(rates: Pivot, chosen: set[tuple]) -> list[str]:
    """Inits whose chosen rate lies at an end of the grid and beats its neighbour there: rates beyond may be better."""
    at_edge = []
    for key, line in rates.lines.items():
        grid = sorted(line)
        ends = ((grid[0], grid[1]), (grid[-1], grid[-2])) if len(grid) > 1 else ()
        if any((*key, end) in chosen and line[end] > line[inner] + RESOLUTION for end, inner in ends):
            at_edge.append(key[0])
    return list(dict.fromkeys(at_edge))


def _poorly_fitted(fits: Pivot, poor_fit: float) -> list[str]:
    """Inits with a layer whose basis was hardly carried along."""
    return list(dict.fromkeys(key[0] for key, line in fits.lines.items() if min(line.values()) < poor_fit))

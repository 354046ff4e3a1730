"""Initialisations x settings: what several experiments say of each, side by side and over all settings."""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

from agop_jax.core.files import Row
from agop_jax.results import bootstrap, by_donor, setting_names, statistics, summary
from agop_jax.results.bootstrap import Task
from agop_jax.results.by_donor import DonorTable
from agop_jax.results.intervals import NAN, Interval
from agop_jax.results.runs import Run
from agop_jax.results.setting_names import Facts
from agop_jax.results.statistics import Recovered
from agop_jax.results.summary import BASELINE, COPIES, Summary
from agop_jax.results.tables import Setting
from agop_jax.results.verdicts import Difference

LSUV = "lsuv"  # the stronger baseline, which knows no donor either


@dataclass(frozen=True)
class Cell:
    """One init in one setting.

    Attributes:
      line: as in that run's own summary.
      lsuv: its paired difference from lsuv; None where there is none.
      recovered: of copy's gain over lsuv.
    """

    line: Summary
    lsuv: Difference | None
    recovered: Recovered | None


@dataclass(frozen=True)
class Column:
    """One setting of one run.

    Attributes:
      name: tells it from all others.
      course: the same without the budget; settings of one course differ in their budget alone.
      run: the name of its work directory.
      facts: what it is.
      setting: within its run.
      cells: by init, best first.
      task: its accuracies.
      donors: None with one donor.
      test_images: of the run; 0 where unknown.
    """

    name: str
    course: str
    run: str
    facts: Facts
    setting: Setting
    cells: dict[str, Cell]
    task: Task
    donors: DonorTable | None
    test_images: int


@dataclass(frozen=True)
class Overall:
    """One init over the settings that have it.

    Attributes:
      settings: how many.
      over_he: probability of improvement over He; None for He.
      over_lsuv: over lsuv; None for lsuv, and where no setting has both.
      rank: mean rank among the inits that all settings have; None for others.
      recovered: mean over settings of the part of copy's gain over lsuv; nan where no setting tells it.
    """

    init: str
    settings: int
    over_he: Interval | None
    over_lsuv: Interval | None
    rank: Interval | None
    recovered: float


def columns(runs: Sequence[Run], donor_free: Container[str] = ()) -> list[Column]:
    """Every setting of every run, in their order.

    Args:
      runs: read already.
      donor_free: inits on which no donor has any influence.
    """
    parts = [part for run in runs for part in _settings(run, donor_free)]
    facts = [facts for _, facts, *_ in parts]
    courses = [{name: words for name, words in own.items() if name != "budget"} for own in facts]
    run_names = [run.name for run, *_ in parts]
    named = zip(setting_names.names(facts, run_names), _course_names(courses), parts, strict=True)
    return [Column(name, course, run.name, *rest) for name, course, (run, *rest) in named]


def _settings(run: Run, donor_free: Container[str]) -> list[tuple]:
    judged = run.work.judged | {"donor_free": donor_free}
    lines = summary.summarise(run.work.results, run.work.curves, **judged)
    parts = []
    for setting in dict.fromkeys(line.setting for line in lines):
        rows = [row for row in run.work.results if Setting.of(row) == setting]
        own = [line for line in lines if line.setting == setting]
        facts, cells = setting_names.facts(run.work.config, setting), _cells(rows, own, judged)
        donors, images = by_donor.spread_table(rows, own), run.work.test_images
        parts.append((run, facts, setting, cells, _task(rows), donors, images))
    return parts


def _cells(rows: Sequence[Row], lines: Sequence[Summary], judged: dict) -> dict[str, Cell]:
    from_lsuv = {one.init: one for one in statistics.compare(rows, baseline=LSUV, controls=(), **judged)}
    copies = [copy for copy in COPIES if copy in {row["init"] for row in rows}][:1]
    recovered = {
        one.init: one for copy in copies for one in statistics.recovered_fraction(rows, baseline=LSUV, reference=copy)
    }
    return {line.init: Cell(line, from_lsuv.get(line.init), recovered.get(line.init)) for line in lines}


def _task(rows: Sequence[Row]) -> Task:
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        values.setdefault(row["init"], {})[row["seed"]] = row["test_accuracy"]
    return Task(values, {row["seed"]: row["donor"] for row in rows})


def _course_names(courses: Sequence[Facts]) -> list[str]:
    """Short names; the same for settings that differ in their budget alone."""
    different = list({tuple(own.items()): own for own in courses}.values())
    short = setting_names.names(different, ["all"] * len(different)) if len(different) > 1 else [""]
    return [short[different.index(own)] for own in courses]


def overall(columns: Sequence[Column]) -> list[Overall]:
    """Every init, by its probability of improvement over lsuv, then over He, then by its rank."""
    tasks = [column.task for column in columns]
    common = bootstrap.common_inits(tasks)
    ranks = bootstrap.mean_ranks(tasks, common)
    inits = dict.fromkeys(init for column in columns for init in column.cells)
    lines = [
        Overall(
            init,
            sum(init in column.cells for column in columns),
            _improvement(tasks, init, BASELINE),
            _improvement(tasks, init, LSUV),
            ranks.get(init),
            _mean_recovered(columns, init),
        )
        for init in inits
    ]
    chance = lambda interval: interval.mean if interval else 0.5
    rank = lambda line: line.rank.mean if line.rank else math.inf
    return sorted(lines, key=lambda line: (-chance(line.over_lsuv), -chance(line.over_he), rank(line), line.init))


def _improvement(tasks: Sequence[Task], init: str, against: str) -> Interval | None:
    return None if init == against else bootstrap.improvement_probability(tasks, init, against)


def _mean_recovered(columns: Sequence[Column], init: str) -> float:
    parts = [cell.recovered.fraction for column in columns if (cell := column.cells.get(init)) and cell.recovered]
    parts = [part for part in parts if math.isfinite(part)]
    return sum(parts) / len(parts) if parts else NAN

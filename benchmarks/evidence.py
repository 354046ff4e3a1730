"""Tables and picture of docs/evidence.md from the runs of configs/study: python -m benchmarks.evidence [--runs=DIR]

DIR holds finished work directories. Of each one, docs/evidence keeps the config and the tables of results, from which
the page, the picture and the README's bullets are made, and of `cifar_transfer` the table of docs/initialisations.md.
Without --runs they are made anew from what is kept.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.initializers.drawn import Drawn
from agop_jax.initializers.registry import donor_free, get_method
from agop_jax.results import comparison, figures, matrix, statistics, summary
from agop_jax.results.comparison_figures import MARKS
from agop_jax.results.intervals import Interval
from agop_jax.results.matrix import LSUV, Column, Overall
from agop_jax.results.runs import Run, read_runs
from agop_jax.results.summary import BASELINE, Summary
from agop_jax.results.summary_words import points
from agop_jax.results.verdicts import Difference
from benchmarks.tables import replace_section

ROOT = Path(__file__).parent.parent
FIRST = "transfer_2000"  # the setting of which the others are variations
QUESTIONS = {  # runs with a table of their own, and what their inits are compared with
    "rainbow_mixing": LSUV,
    "selected_parts": "selected",
    "half_width": LSUV,
    "double_width": LSUV,
}
CHOICE = "cifar_transfer"  # the run whose table helps to choose an initialisation
KEPT = ("config.json", "results.csv", "learning_rates.csv", "fits.csv", "donor.json", "environments.jsonl")
TOLD = {  # in the README: an init, and what leads to it
    "copy": "**Copy a well-trained donor where shapes allow**: `copy`",
    "selected": "**For new filters of a donor, select**: `selected`",
    "whitened": "**Without a donor, whiten**: `whitened`, which needs a few unlabelled images,",
    "nfm": "**Drawing each layer on its own from the NFM does not help**: `nfm`",
}


def main(arguments: list[str] | None = None) -> None:
    """Keeps finished runs where `--runs` names them, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, metavar="DIR", help="finished work directories, to be kept anew")
    folder = ROOT / "docs" / "evidence"
    if runs := parser.parse_args(arguments).runs:
        keep(runs, folder)
    write(ROOT, folder)


def keep(runs: Path, folder: Path) -> None:
    """Copies config and tables of each finished run into a folder of its name.

    Raises:
      UserError: there are none.
    """
    finished = sorted(path.parent for path in runs.glob("*/report.html"))
    if not finished:
        raise UserError(f"{str(runs)!r}: no finished work directory in it; finish an experiment first")
    for run in finished:
        for path in (path for name in KEPT for path in (*run.glob(name), *run.glob(f"donors/*/{name}"))):
            target = folder / run.name / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def write(root: Path, folder: Path) -> None:
    """The sections of `root`'s evidence page and README, and the picture, from what `folder` keeps."""
    runs = kept_runs(folder)
    columns = study(runs)
    replace_section(root / "docs" / "evidence.md", page_section(runs), "evidence")
    replace_section(root / "README.md", readme_section(columns), "evidence")
    (choice,) = (run for run in runs if run.name == CHOICE)
    replace_section(root / "docs" / "initialisations.md", choice_section(choice), "transfer")
    _, figure = comparison.differences_figure(columns, matrix.overall(columns))
    figures.save(figure, folder / "matrix")


def kept_runs(folder: Path) -> list[Run]:
    """What `keep` has left, the first setting of the study first."""
    names = sorted((path.parent.name for path in folder.glob("*/results.csv")), key=lambda name: (name != FIRST, name))
    return read_runs([folder / name for name in names])


def settings(runs: Sequence[Run]) -> list[Run]:
    """Those of the study, which are compared with one another."""
    return [run for run in runs if run.name not in (*QUESTIONS, CHOICE)]


def study(runs: Sequence[Run]) -> list[Column]:
    """The columns of the settings."""
    runs = settings(runs)
    return matrix.columns(runs, donor_free({row["init"] for run in runs for row in run.work.results}))


def page_section(runs: Sequence[Run]) -> str:
    """All tables of the evidence page."""
    columns = study(runs)
    overall = matrix.overall(columns)
    parts = [settings_table(runs, columns), differences_table(columns, overall), overall_table(overall)]
    return "\n".join([*parts, *(question_table(run) for run in runs if run.name in QUESTIONS)])


def readme_section(columns: Sequence[Column]) -> str:
    """What the settings say together of a few inits, a line each."""
    return "".join(f"- {lead} {tally(columns, init)}.\n" for init, lead in TOLD.items())


def tally(columns: Sequence[Column], init: str) -> str:
    """Verdicts and differences from lsuv over the settings that have both."""
    differences = [cell.lsuv for column in columns if (cell := column.cells.get(init)) and cell.lsuv]
    better, worse = (sum(one.verdict == verdict for one in differences) for verdict in ("better", "worse"))
    means = [one.mean for one in differences]
    mean, low, high = (points(value) for value in (sum(means) / len(means), min(means), max(means)))
    return (
        f"is better in {better or 'none'} of {len(means)} settings and worse in {worse or 'none'}: {mean} on average, "
        f"{low} to {high}"
    )


def settings_table(runs: Sequence[Run], columns: Sequence[Column]) -> str:
    """What the settings are, and how their donors and baselines do."""
    donors = {run.name: [row["test_accuracy"] for row in run.work.donors.values()] for run in runs}
    rows = [
        [
            f"`{column.run}`",
            column.name,
            f"{100 * float(np.mean(donors[column.run])):.1f}",
            *(_accuracy(column.cells[init].line) for init in (BASELINE, LSUV)),
        ]
        for column in columns
    ]
    return _table(["setting", "what differs", "donors, %", "He, %", "lsuv, %"], rows)


def _accuracy(line: Summary) -> str:
    return f"{100 * line.test_accuracy:.1f} ± {50 * (line.high - line.low):.1f}"


def differences_table(columns: Sequence[Column], overall: Sequence[Overall]) -> str:
    """Points above lsuv, by init and setting; a triangle where the interval excludes 0."""
    rows = [[f"`{line.init}`", *(_difference(column, line.init) for column in columns)] for line in _others(overall)]
    return _table(["against `lsuv`, points", *(f"`{column.run}`" for column in columns)], rows)


def _others(overall: Sequence[Overall]) -> list[Overall]:
    return [line for line in overall if line.init != LSUV]


def _difference(column: Column, init: str) -> str:
    cell = column.cells.get(init)
    return _points(cell.lsuv if cell else None)


def _points(one: Difference | None) -> str:
    if one is None:
        return ""
    return f"{points(one.mean)} ± {50 * (one.high - one.low):.1f} {MARKS.get(one.verdict, '')}".strip()


def overall_table(overall: Sequence[Overall]) -> str:
    """Over all settings."""
    rows = [
        [
            f"`{line.init}`",
            str(line.settings),
            _share(line.over_lsuv),
            _share(line.over_he),
            f"{line.rank.mean:.1f} ({line.rank.low:.1f} to {line.rank.high:.1f})" if line.rank else "",
            f"{round(100 * line.recovered)}".replace("-", "\N{MINUS SIGN}") if line.recovered == line.recovered else "",
        ]
        for line in overall
    ]
    header = ["", "settings", "beats lsuv, % of pairs", "beats He, % of pairs", "mean rank", "part of copy's gain, %"]
    return _table(header, rows)


def _share(interval: Interval | None) -> str:
    return f"{100 * interval.mean:.0f} ({100 * interval.low:.0f} to {100 * interval.high:.0f})" if interval else ""


def question_table(run: Run) -> str:
    """Of a run with a question of its own: probe before training, accuracy after it, difference from one init."""
    against = QUESTIONS[run.name]
    lines, differences = _judged(run, against)
    rows = [
        [f"`{line.init}`", f"{100 * line.probe_accuracy:.1f}", _accuracy(line), _points(differences.get(line.init))]
        for line in lines
    ]
    return _table(
        [f"`{run.name}`", "probe before training, %", "test accuracy, %", f"against `{against}`, points"], rows
    )


def choice_section(run: Run) -> str:
    """What each init needs, what it gives, and how near its filters are to the donor's."""
    lines, differences = _judged(run, LSUV)
    rows = [
        [
            f"`{line.init}`",
            needs(line.init),
            _accuracy(line),
            _points(differences.get(line.init)),
            f"{100 * line.probe_accuracy:.1f}",
            f"{line.nearest_cosine:.2f}",
        ]
        for line in lines
    ]
    header = ["method", "needs", "test accuracy, %", f"against `{LSUV}`, points", "probe before training, %"]
    return _table([*header, "cosine to the donor's filters"], rows)


def needs(init: str) -> str:
    """Such as 'donor, images'."""
    method = get_method(init)
    labels = isinstance(method.source, Drawn)
    words = {"donor": method.uses_donor, "images": method.needs_examples or labels, "labels": labels}
    return ", ".join(word for word, is_needed in words.items() if is_needed) or "nothing"


def _judged(run: Run, against: str) -> tuple[list[Summary], dict[str, Difference]]:
    """A line for each init, the best first, and by init the difference from one of them."""
    results = run.work.results
    judged = run.work.judged | {"donor_free": donor_free({row["init"] for row in results})}
    differences = statistics.compare(results, baseline=against, controls=(), **judged)
    return summary.summarise(results, run.work.curves, **judged), {one.init: one for one in differences}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)

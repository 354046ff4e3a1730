"""Results in a tracker of experiments, Weights & Biases or trackio: one writer, since both are called alike.

Neither is a dependency, and each is imported only when it is asked for. Both work without a network: trackio is local
by itself, Weights & Biases with `WANDB_MODE=offline`.
"""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from agop_jax.core.errors import UserError, first_line
from agop_jax.core.files import read_table
from agop_jax.core.progress import say
from agop_jax.results import tables
from agop_jax.results.work import Work, read_work

TRACKERS = ("wandb", "trackio")
PROJECT = "agop_jax"
CURVES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
PAGE = "report.html"


def tracker(name: str) -> ModuleType | None:
    """The module of a tracker, None for ''.

    Raises:
      UserError: it is not installed here.
    """
    if not name:
        return None
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"config.track={name!r} needs the package {name}: pip install {name}") from None


def track(module: ModuleType, workdir: Path) -> None:
    """Logs what is in a finished work directory as one run, called like the directory.

    Curves are 'RECIPIENT/METRIC' and 'donor/METRIC' over steps. 'results' is the table of recipients, 'summary' the one
    of initialisations, 'report' the page. The results are on disk already: a tracker that fails is told in one line.
    """
    try:
        _log(module, workdir, read_work(workdir))
    except Exception as error:  # of the tracker, by what is wrong with it, its server or its settings
        say(f"config.track: {module.__name__} failed ({first_line(error)}); the results are in {workdir}")


def _log(module: ModuleType, workdir: Path, work: Work) -> None:
    run = module.init(project=PROJECT, name=workdir.name, config=dict(work.config))
    try:
        for step, values in _curves(work):
            run.log(values, step=step)
        summary = read_table(workdir / "summary.csv", {})
        for name, rows in (("results", work.results), ("summary", summary)):
            run.log(
                {name: module.Table(columns=list(rows[0]), data=[[_plain(v) for v in row.values()] for row in rows])}
            )
        run.log({"report": module.Html(str(workdir / PAGE))})
    finally:
        module.finish()


def _curves(work: Work) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and values of all networks, ordered by step, since trackers take no earlier step after a later one."""
    curves = {tables.recipient_name(*recipient, work.budget): curve for recipient, curve in work.curves.items()}
    by_step: dict[int, dict[str, float]] = {}
    for name, curve in {"donor": work.donor_curve, **curves}.items():
        for row in curve:
            values = {f"{name}/{metric}": row[metric] for metric in CURVES if math.isfinite(row[metric])}
            by_step.setdefault(row["step"], {}).update(values)
    yield from sorted(by_step.items())


def _plain(value: Any) -> Any:
    """A cell as a number where it is one; JSON has none for what is not finite."""
    try:
        number = float(value)
    except ValueError:
        return value or None
    return value if isinstance(value, int) else number if math.isfinite(number) else None

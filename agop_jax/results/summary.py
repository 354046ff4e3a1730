"""The table of summaries: one line for each initialisation and setting. Accuracies and differences are fractions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agop_jax.core.files import Row
from agop_jax.results import statistics
from agop_jax.results.intervals import Interval, mean_interval, steps_to_reach, student_test
from agop_jax.results.samples import Sample
from agop_jax.results.tables import Curves, Setting
from agop_jax.results.verdicts import Difference, General

BASELINE = "kaiming_normal"
COPIES = ("copy", "copy_tiled", "copy_spaced")  # what the fraction of the gain recovered is measured by
IDLE = "does not train"
TOO_SHORT = "too short to tell"  # of runs after which no init has left chance
NAN = math.nan


@dataclass(frozen=True)
class Summary:
    """A line of summary.csv. nan or None, or '' for a name or verdict, where there is nothing to compare with.

    Attributes:
      n: seeds; `diverged` of them did.
      trains: 0 if every seed diverged or the mean accuracy is at chance.
      too_short: 1 if the mean accuracy is at chance, and so is that of every init that began there: then the runs were
        too short, or of a wrong learning rate, to tell an init that does not train from one that does.
      test_accuracy: mean over seeds, with `low` and `high` its 95 % t interval, as far as it lies between 0 and 1.
      probe_accuracy: of a linear probe before training, mean over seeds.
      nearest_cosine: of new filters to the donor's nearest ones, mean over seeds.
      draw_seconds: that a start took, median over seeds, since the first one compiles.
      he_difference: mean of the paired differences from He, with the interval, verdict and equivalence of
        `statistics.compare`.
      control: the matched control made for it, the better one of two, with the same differences from it.
      copy_recovered: (accuracy - He) / (copy of the donor - He).
      steps_to_he: median over seeds of the steps until validation reaches He's last accuracy of that seed; inf: never.
      seeds_for_one_point: seeds needed to see a difference of one point from He.
      donors: how many; with several, `donor_deviation` is the spread of the donors' effects on the difference from He,
        and `general_low`, `general_high` and `general_verdict` are what holds of it for donors in general.
    """

    init: str
    train_size: int
    width: float
    budget: int
    n: int
    diverged: int
    trains: int
    too_short: int
    test_accuracy: float
    low: float
    high: float
    he_difference: float
    he_low: float
    he_high: float
    he_verdict: str
    he_equivalence: str
    control: str
    control_difference: float
    control_low: float
    control_high: float
    control_verdict: str
    control_equivalence: str
    copy_recovered: float
    steps_to_he: float
    seeds_for_one_point: int | None
    learning_rate: str
    probe_accuracy: float
    nearest_cosine: float
    draw_seconds: float
    donors: int
    donor_deviation: float
    general_low: float
    general_high: float
    general_verdict: str

    @property
    def setting(self) -> Setting:
        """What recipients must share to be compared."""
        return Setting(self.train_size, self.width, self.budget)

    @property
    def idle(self) -> str:
        """What is said of it where `trains` is 0."""
        return TOO_SHORT if self.too_short else IDLE


def summarise(results: Sequence[Row], curves: Curves, **judged: Any) -> list[Summary]:
    """One line for each init and setting, ordered by setting and then by mean accuracy, best first.

    Args:
      results: rows of `results.csv`.
      curves: of their training.
      judged: `variance`, `margin`, `resolution` and `donor_free` of `statistics.compare`.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in results:
        groups.setdefault((row["init"], Setting.of(row)), []).append(row)
    differences = {
        (difference.init, Setting.of(vars(difference)), difference.against == BASELINE): difference
        for difference in statistics.compare(results, **judged)
    }
    recovered = {
        (r.init, Setting.of(vars(r))): r.fraction
        for copy in reversed(COPIES)
        for r in statistics.recovered_fraction(results, reference=copy)
    }
    chance = _chance(curves)
    learners = {setting for (_, setting), rows in groups.items() if _left_chance(rows, curves, chance)}
    lines = [
        Summary(
            init,
            *setting,
            **_accuracy(rows, chance, told=setting in learners),
            **_difference("he", differences.get((init, setting, True))),
            **_difference("control", differences.get((init, setting, False))),
            **_general(rows, differences.get((init, setting, True))),
            **{name: _mean(rows, name) for name in ("probe_accuracy", "nearest_cosine")},
            draw_seconds=float(np.median([row.get("draw_seconds", NAN) for row in rows])),
            copy_recovered=recovered.get((init, setting), NAN),
            steps_to_he=_steps_to_baseline(rows, curves),
            seeds_for_one_point=getattr(differences.get((init, setting, True)), "seeds_for_one_point", None),
            learning_rate="/".join(f"{rate:g}" for rate in sorted({row["learning_rate"] for row in rows})),
        )
        for (init, setting), rows in groups.items()
    ]
    return sorted(lines, key=lambda line: (*line.setting, -line.test_accuracy, line.init))


def _chance(curves: Curves) -> float:
    """The accuracy of untrained networks, as measured: the median over recipients at step 0; 0 if unknown.

    Where most recipients are copies that start far above chance, it is the median over He's recipients.
    """
    groups = curves, {recipient: curve for recipient, curve in curves.items() if recipient[0] == BASELINE}
    starts = [[x for x in map(_start, own.values()) if x is not None and math.isfinite(x)] for own in groups]
    return float(min((np.median(own) for own in starts if own), default=0.0))


def _left_chance(rows: Sequence[Row], curves: Curves, chance: float) -> bool:
    """Whether training brought this init from chance to more; a copy may be above it from the start."""
    starts = [_start(curves.get((row["init"], Setting.of(row), row["seed"]), [])) for row in rows]
    began = all(start is None or _at_chance(start, chance) for start in starts)
    return began and not _at_chance(float(np.mean([row["test_accuracy"] for row in rows])), chance)


def _start(curve: Sequence[Row]) -> float | None:
    return curve[0]["validation_accuracy"] if curve and curve[0]["step"] == 0 else None


def _at_chance(accuracy: float, chance: float) -> bool:
    return not accuracy > chance + min(0.02, 0.5 * chance)


def _accuracy(rows: Sequence[Row], chance: float, told: bool) -> dict[str, Any]:
    interval = _accuracy_interval(rows)
    diverged = sum(row["diverged"] for row in rows)
    idle = diverged == len(rows) or _at_chance(interval.mean, chance)
    return {
        "n": len(rows),
        "diverged": diverged,
        "trains": int(not idle),
        "too_short": int(idle and diverged < len(rows) and not told),
        "test_accuracy": interval.mean,
        "low": float(np.clip(interval.low, 0, 1)),
        "high": float(np.clip(interval.high, 0, 1)),
    }


def _accuracy_interval(rows: Sequence[Row]) -> Interval:
    """The interval of the mean test accuracy; of several donors, the spread is that within donors."""
    donors = {row["seed"]: row["donor"] for row in rows}
    if len(set(donors.values())) == 1:
        return mean_interval([row["test_accuracy"] for row in rows])
    sample = Sample({row["seed"]: row["test_accuracy"] for row in rows}, donors)
    return student_test(sample, sample.own_spread, 0.05)[0]


def _mean(rows: Sequence[Row], column: str) -> float:
    """The mean over the seeds that have a number in this column; rows of older versions lack some."""
    values = [row[column] for row in rows if math.isfinite(row[column])]
    return float(np.mean(values)) if values else NAN


def _difference(prefix: str, difference: Difference | None) -> dict[str, Any]:
    names = ("difference", "low", "high", "verdict", "equivalence")
    values = (NAN, NAN, NAN, "", "")
    if difference is not None:
        values = (difference.mean, difference.low, difference.high, difference.verdict, difference.equivalence)
    fields: dict[str, Any] = {f"{prefix}_{name}": value for name, value in zip(names, values, strict=True)}
    return fields if prefix == "he" else fields | {"control": difference.against if difference else ""}


def _general(rows: Sequence[Row], difference: Difference | None) -> dict[str, Any]:
    general = difference.general if difference else General()
    return {
        "donors": len({row["donor"] for row in rows}),
        "donor_deviation": general.deviation,
        "general_low": general.low,
        "general_high": general.high,
        "general_verdict": general.verdict,
    }


def _steps_to_baseline(rows: Sequence[Row], curves: Curves) -> float:
    steps = []
    for row in rows:
        place = Setting.of(row), row["seed"]
        own, baseline = curves.get((row["init"], *place)), curves.get((BASELINE, *place))
        if own and baseline:
            target = baseline[-1]["curve_accuracy"]
            course = ((point["step"], point["curve_accuracy"]) for point in own)
            reached = steps_to_reach(course, target)
            steps.append(math.inf if reached is None else reached)
    return float(np.median(steps)) if steps else NAN

"""One line per initialisation and setting, and the same in plain words.

Accuracies and their differences are fractions; words and tables show per cent and points.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agop_jax.core.files import Row
from agop_jax.results import statistics
from agop_jax.results.intervals import Interval, mean_interval, steps_to_reach, student_test
from agop_jax.results.samples import Sample
from agop_jax.results.tables import Curves, Setting
from agop_jax.results.verdicts import POINT, Difference, General

BASELINE = "kaiming_normal"
COPIES = ("copy", "copy_tiled", "copy_spaced")  # what the fraction of the gain recovered is measured by
IDLE = "does not train"
TOO_SHORT = "too short to tell"  # of runs after which no init has left chance
NAN = math.nan
NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Summary:
    """A line of summary.csv. nan or None, or '' for a name or verdict, where there is nothing to compare with.

    Attributes:
      n: seeds; `diverged` of them did.
      trains: 0 if every seed diverged or the mean accuracy is at chance.
      too_short: 1 if the mean accuracy is at chance, and so is that of every init that began there: then the runs were
        too short, or of a wrong learning rate, to tell an init that does not train from one that does.
      test_accuracy: mean over seeds, with `low` and `high` its 95 % t interval.
      probe_accuracy: of a linear probe before training, mean over seeds.
      nearest_cosine: of new filters to the donor's nearest ones, mean over seeds.
      draw_seconds: that a start took, median over seeds, since the first one compiles.
      he_difference: mean of the paired differences from He, with the interval, verdict and equivalence of
        `statistics.compare`.
      control: the better of the matched controls, with the same differences from it.
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
    """By setting, and within it by mean accuracy, best first.

    Args:
      results: rows of `results.csv`.
      curves: of their training.
      judged: `variance`, `margin` and `donor_free` of `statistics.compare`.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in results:
        groups.setdefault((row["init"], Setting.of(row)), []).append(row)
    differences = {
        (found.init, Setting.of(vars(found)), found.against == BASELINE): found
        for found in statistics.compare(results, **judged)
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
    """The accuracy of untrained networks, as measured: the median over recipients at step 0; 0 if unknown."""
    starts = [start for start in map(_start, curves.values()) if start is not None and math.isfinite(start)]
    return float(np.median(starts)) if starts else 0.0


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
        "low": interval.low,
        "high": interval.high,
    }


def _accuracy_interval(rows: Sequence[Row]) -> Interval:
    """Of several donors, over the seeds of these."""
    donors = {row["seed"]: row["donor"] for row in rows}
    if len(set(donors.values())) == 1:
        return mean_interval([row["test_accuracy"] for row in rows])
    sample = Sample({row["seed"]: row["test_accuracy"] for row in rows}, donors)
    return student_test(sample, sample.own_spread, 0.05)[0]


def _mean(rows: Sequence[Row], column: str) -> float:
    """Over the seeds for which there is a number; older rows lack some."""
    values = [row[column] for row in rows if math.isfinite(row[column])]
    return float(np.mean(values)) if values else NAN


def _difference(prefix: str, found: Difference | None) -> dict[str, Any]:
    names = ("difference", "low", "high", "verdict", "equivalence")
    values = (NAN, NAN, NAN, "", "")
    if found is not None:
        values = (found.mean, found.low, found.high, found.verdict, found.equivalence)
    fields: dict[str, Any] = {f"{prefix}_{name}": value for name, value in zip(names, values, strict=True)}
    return fields if prefix == "he" else fields | {"control": found.against if found else ""}


def _general(rows: Sequence[Row], found: Difference | None) -> dict[str, Any]:
    general = found.general if found else General()
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


def setting_name(setting: Setting) -> str:
    """Such as '500 images, width 1, 250 steps'."""
    steps = f", {setting.budget:,} steps" if setting.budget else ""
    return f"{setting.train_size:,} images, width {setting.width:g}{steps}"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def in_words(lines: Sequence[Summary], margin: float = POINT) -> list[tuple[str, str]]:
    """What one setting shows and does not show: (a few words that lead in, the rest of the sentence).

    Args:
      lines: of the setting.
      margin: the difference that does not matter, as a fraction.
    """
    trained = [line for line in lines if line.trains and line.init != BASELINE]
    parts = [
        ("", _what_was_done(lines)),
        *_verdicts("he", "He", trained),
        *_equivalences(trained, margin),
        *_over_donors(trained),
        *_verdicts("control", "the better matched control", trained),
        ("Better than He, but not than the control, so that scale or spectrum may explain it", _only_scale(trained)),
        ("Did not train at all (diverged or stayed at chance)", _names(x for x in lines if not x.trains | x.too_short)),
        ("Too short to tell, since no init that began at chance has left it", _names(x for x in lines if x.too_short)),
        ("", _power(trained)),
    ]
    return [(lead, text) for lead, text in parts if text]


def in_every_setting(lines: Sequence[Summary]) -> list[tuple[str, str]]:
    """The same for several settings: what holds in all of them."""
    settings = {line.setting for line in lines}
    parts = []
    for prefix, against in (("he", "He"), ("control", "the better matched control")):
        for verdict in ("better", "worse"):
            found = [line.init for line in lines if line.trains and getattr(line, f"{prefix}_verdict") == verdict]
            names = [init for init in dict.fromkeys(found) if found.count(init) == len(settings)]
            lead = f"{verdict.capitalize()} than {against} in all {len(settings)} settings"
            parts.append((lead, ", ".join(names) or "none"))
    return parts


def _what_was_done(lines: Sequence[Summary]) -> str:
    seeds = sorted({line.n for line in lines})
    seeds_text = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    text = f"{len(lines)} initialisations were trained on {setting_name(lines[0].setting)}, with {seeds_text} seed"
    text += "." if seeds == [1] else "s each."
    baseline = next((line for line in lines if line.init == BASELINE), None)
    if baseline is None:
        return f"{text} He ({BASELINE}) is not among them, so there is nothing to compare them with."
    return f"{text} He ({BASELINE}) gets {100 * baseline.test_accuracy:.1f}{NBSP}% of the test set right."


def _verdicts(prefix: str, against: str, lines: Sequence[Summary]) -> list[tuple[str, str]]:
    """A part for each verdict that occurs; `prefix` is that of the fields to read."""
    leads = {
        "better": f"Better than {against} (points)",
        "worse": f"Worse than {against} (points)",
        "no difference seen": f"No difference from {against} seen",
        "too few seeds": f"Too few seeds to tell from {against}",
    }
    parts = []
    for verdict, lead in leads.items():
        found = [line for line in lines if getattr(line, f"{prefix}_verdict") == verdict]
        parts.append((lead, _names(found, f"{prefix}_difference" if verdict in ("better", "worse") else "")))
    return parts


def _equivalences(lines: Sequence[Summary], margin: float) -> list[tuple[str, str]]:
    """Of the inits that are not told apart from He, those that a margin says something of."""
    near, leads = f"{100 * margin:g} point{'s' if margin != POINT else ''}", {}
    leads["equivalent"] = f"Equivalent to He, within {near} either way"
    leads["no worse"] = f"No worse than He by more than {near}"
    leads["no better"] = f"No better than He by more than {near}"
    alike = [line for line in lines if line.he_verdict == "no difference seen"]
    return [(lead, _names(line for line in alike if line.he_equivalence == told)) for told, lead in leads.items()]


def _over_donors(lines: Sequence[Summary]) -> list[tuple[str, str]]:
    """What holds for donors in general, where there are several."""
    donors = max((line.donors for line in lines), default=1)
    if donors == 1:
        return []
    told = [
        (f"{verdict.capitalize()} than He for donors in general, not these {donors} alone", _names(found))
        for verdict in ("better", "worse")
        if (found := [line for line in lines if line.general_verdict == verdict])
    ]
    few = " Two cannot tell it, since one degree of freedom is left: see the spread below." if donors == 2 else ""
    return told or [("For donors in general", f"nothing is told from {donors} donors.{few}")]


def _names(lines: Iterable[Summary], difference: str = "") -> str:
    """The names, each with its points in the field `difference` if there is to be any."""
    names = (f"{line.init}{NBSP}{points(getattr(line, difference))}" if difference else line.init for line in lines)
    return ", ".join(names)


def _only_scale(lines: Sequence[Summary]) -> str:
    return _names(x for x in lines if x.he_verdict == "better" and x.control_verdict not in ("", "better"))


def _power(lines: Sequence[Summary]) -> str:
    """How much a verdict of 'no difference seen' is worth."""
    if not any(line.he_verdict for line in lines):
        return ""
    if all(line.he_verdict in ("", "too few seeds") for line in lines):
        return "So few seeds support no conclusion about differences."
    widths = [(line.he_high - line.he_low) / 2 for line in lines if math.isfinite(line.he_high - line.he_low)]
    seeds = [line.seeds_for_one_point for line in lines if line.seeds_for_one_point is not None]
    text = (
        f"A difference from He is known here to about ±{100 * np.median(widths):.1f} points (median), so smaller ones"
    )
    text += " may well exist unseen."
    return text + (f" To see one point would take about {np.median(seeds):.0f} seeds an init." if seeds else "")


def terminal_table(lines: Iterable[Summary]) -> str:
    """A block a setting: mean test accuracy and half its 95 % interval in per cent, points from He, verdict."""
    blocks: dict[Setting, list[tuple[str, ...]]] = {}
    for line in lines:
        half = f" ± {50 * (line.high - line.low):.1f}" if math.isfinite(line.high - line.low) else ""
        accuracy = f"{100 * line.test_accuracy:.1f}{half}"
        difference = points(line.he_difference) if line.trains and math.isfinite(line.he_difference) else ""
        verdict = line.he_verdict if line.trains else line.idle
        blocks.setdefault(line.setting, []).append((line.init, accuracy, str(line.n), difference, verdict))
    header = ("init", "test %", "n", "vs He", "verdict")
    return "\n\n".join(f"{setting_name(key)}\n{_aligned([header, *rows])}" for key, rows in blocks.items())


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i in (0, 4) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)

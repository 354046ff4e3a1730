"""Which initialisation is better, from results over paired seeds: intervals, verdicts and the seeds it would take.

A pair is two recipients of one seed, training-set size and width; only differences within pairs are judged, so that
what a seed does to both cancels. Intervals are Student's t: they take differences to be roughly normal over seeds,
which a recipient that diverges now and then breaks. Each difference has its own standard deviation, since
initialisations differ in theirs.

Many comparisons: Bonferroni (Dunn 1961, Journal of the American Statistical Association 56, 52). Of m comparisons each
interval is taken at 1 - (1 - confidence) / m and each p-value times m, whatever their dependence (all share a
baseline). Holm would reject a little more, but has no intervals that agree with its verdicts; here the verdict is read
off the interval.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agop_jax.core.errors import UserError, unknown_name
from agop_jax.results.intervals import (
    Interval,
    paired_test,
    ratio_interval,
    same,
    seeds_to_see,
)
from agop_jax.results.tables import HIGHER_IS_BETTER

SELECTED_BY = "validation_accuracy"
POINT = 0.01  # one percentage point of accuracy

Row = Mapping[str, Any]
Setting = tuple[int, float]  # train_size, width
BySeed = dict[int, float]


@dataclass(frozen=True)
class Difference:
    """`init` minus `against`, in the metric's units (fractions for accuracy).

    Attributes:
      mean: over `n` paired seeds.
      low: end of the interval corrected for the number of comparisons, like `high`; nan where the seeds support none.
      p_value: two-sided, corrected; nan if n = 1.
      verdict: 'better' or 'worse', by the direction of the metric, if the interval excludes 0; else 'no difference
        seen'; 'too few seeds' without an interval.
      seeds_for_one_point: paired seeds, in all, to see a true difference of `POINT` with probability `POWER` and the
        same correction. It takes the standard deviation of these n differences for the true one: with n = 5 the right
        number may be 0.4 to 8 times it (chi-squared, 95 %). None if there is none: n = 1, or all differences the same.
    """

    init: str
    against: str
    train_size: int
    width: float
    mean: float
    low: float
    high: float
    n: int
    p_value: float
    verdict: str
    seeds_for_one_point: int | None


@dataclass(frozen=True)
class Recovered:
    """The part of the reference's gain over the baseline that `init` has: 0 none, 1 all; nan where no gain is seen.

    `low` and `high` are not corrected for the number of initialisations.
    """

    init: str
    train_size: int
    width: float
    fraction: float
    low: float
    high: float
    n: int


def paired_difference(
    a: BySeed,
    b: BySeed,
    *,
    init: str,
    against: str,
    setting: Setting,
    comparisons: int = 1,
    confidence: float = 0.95,
    higher_is_better: bool = True,
) -> Difference:
    """`a` minus `b` (seed -> value) over the seeds both have, as one of `comparisons`.

    Raises:
      UserError: no seed in common.
    """
    seeds = a.keys() & b.keys()
    if not seeds:
        raise UserError(f"{init} and {against} have no seed in common: {sorted(a)} and {sorted(b)}")
    differences = _differences(a, b, seeds)
    level = (1 - confidence) / comparisons
    interval, p_value = paired_test(differences, level)
    p_value = min(p_value * comparisons, 1.0)  # in this order nan stays nan
    needed = None if same(differences) else seeds_to_see(POINT, float(differences.std(ddof=1)), level)
    parts = (p_value, _verdict(interval, higher_is_better), needed)
    return Difference(init, against, *setting, interval.mean, interval.low, interval.high, interval.n, *parts)


def compare(
    rows: Iterable[Row],
    *,
    baseline: str = "kaiming_normal",
    controls: Sequence[str] = ("matched_isotropic", "matched_spectrum"),
    metric: str = "test_accuracy",
    confidence: float = 0.95,
) -> list[Difference]:
    """Every initialisation against the baseline and against the better of its matched controls, by setting.

    A setting is a training-set size and a width; `metric` is a key of `tables.HIGHER_IS_BETTER`. 'matched_isotropic:X'
    is the control made for X; if X has such, plain controls are passed over. The better control is the one of higher
    mean validation accuracy, so that the choice does not see the test set. Controls are compared with the baseline
    only. Where baseline or controls are missing or share no seed with the initialisation, there is no such difference.

    Two families are corrected for in each setting: all differences from the baseline (those of controls too), and all
    from controls; one with a single seed has no verdict and does not count. So in a setting the chance of any false
    verdict is at most 5 % against the baseline and as much against controls; ten settings are ten such chances. The
    control that looks better was partly lucky, on the test set too: between equals a false 'better' becomes rarer and
    a false 'worse' commoner, together still within the 5 % (simulated in the tests).

    Raises:
      UserError: a value is missing or not finite, or a recipient is there twice.
    """
    rows = list(rows)
    selection = _by_setting((row for row in rows if _is_control(row["init"], controls)), SELECTED_BY)
    found = []
    for setting, values in _by_setting(rows, metric).items():
        others = [init for init in values if init != baseline]
        family = functools.partial(_family, values=values, setting=setting, confidence=confidence, metric=metric)
        found += family([(init, baseline) for init in others])
        judged = {init: values[init] for init in others if not _is_control(init, controls)}
        best = {init: _better_control(init, own, selection.get(setting, {}), controls) for init, own in judged.items()}
        found += family([(init, control) for init, control in best.items() if control])
    return found


def recovered_fraction(
    rows: Iterable[Row],
    *,
    baseline: str = "kaiming_normal",
    reference: str = "copy",
    metric: str = "test_accuracy",
    confidence: float = 0.95,
) -> list[Recovered]:
    """(init - baseline) / (reference - baseline) of the means over the seeds all three have, by setting.

    nan unless the reference is better than the baseline by its own t interval at `confidence`: a ratio to a gain that
    may be zero, or to a loss, says nothing.
    """
    found, sign = [], 1 if higher_is_better(metric) else -1
    for setting, values in _by_setting(rows, metric).items():
        none, whole = values.get(baseline, {}), values.get(reference, {})
        for init, own in values.items():
            seeds = own.keys() & none.keys() & whole.keys()
            if seeds and init not in (baseline, reference):
                gain, full = sign * _differences(own, none, seeds), sign * _differences(whole, none, seeds)
                ratio = ratio_interval(gain, full, 1 - confidence)
                found.append(Recovered(init, *setting, ratio.mean, ratio.low, ratio.high, ratio.n))
    return found


def _differences(a: BySeed, b: BySeed, seeds: Iterable[int]) -> np.ndarray:
    return np.array([a[seed] - b[seed] for seed in sorted(seeds)])


def _verdict(interval: Interval, higher_is_better: bool) -> str:
    if math.isnan(interval.low):
        return "too few seeds"
    above, below = ("better", "worse") if higher_is_better else ("worse", "better")
    return above if interval.low > 0 else below if interval.high < 0 else "no difference seen"


def higher_is_better(metric: str) -> bool:
    """The direction of a metric; an error that lists the metrics where it is none."""
    if metric not in HIGHER_IS_BETTER:
        raise unknown_name("metric", metric, HIGHER_IS_BETTER)
    return HIGHER_IS_BETTER[metric]


def _by_setting(rows: Iterable[Row], metric: str) -> dict[Setting, dict[str, BySeed]]:
    """setting -> init -> seed -> value of the metric."""
    higher_is_better(metric)
    found: dict[Setting, dict[str, BySeed]] = {}
    for row in rows:
        if metric not in row:
            raise unknown_name("metric", metric, row)
        init, seed, value = row["init"], row["seed"], row[metric]
        values = found.setdefault((row["train_size"], row["width"]), {}).setdefault(init, {})
        if seed in values:
            raise UserError(f"init {init!r}, seed {seed}: two results of one training-set size and width, wanted one")
        if not math.isfinite(value):
            raise UserError(f"init {init!r}, seed {seed}: {metric} is {value}, wanted a finite number")
        values[seed] = float(value)
    return found


def _is_control(init: str, controls: Sequence[str]) -> bool:
    """Also one made for an init, 'matched_isotropic:X', or with options, 'matched_isotropic@lsuv'."""
    return init.partition("@")[0].partition(":")[0] in controls


def _better_control(init: str, values: BySeed, selection: dict[str, BySeed], controls: Sequence[str]) -> str | None:
    """Of the init's own controls, else of the plain ones, the best on validation over the seeds shared with it."""
    own = [name for name in (f"{control}:{init}" for control in controls) if name in selection]
    means = {}
    for name in own or [name for name in controls if name in selection]:
        scores = [score for seed, score in selection[name].items() if seed in values]
        if scores:
            means[name] = math.fsum(scores) / len(scores)
    return max(means, key=lambda name: means[name], default=None)


def _family(
    pairs: Iterable[tuple[str, str]], values: dict[str, BySeed], setting: Setting, confidence: float, metric: str
) -> list[Difference]:
    """The differences corrected for together: (init, against); those of no seed in common are left out."""
    shared = {(a, b): len(values[a].keys() & values.get(b, {}).keys()) for a, b in pairs}
    m = max(1, sum(n > 1 for n in shared.values()))
    options = {"setting": setting, "comparisons": m, "confidence": confidence}
    options["higher_is_better"] = higher_is_better(metric)
    return [paired_difference(values[a], values[b], init=a, against=b, **options) for (a, b), n in shared.items() if n]

"""Which initialisation is better, from results over paired seeds: intervals, verdicts and the seeds it would take.

A pair is two recipients of one seed and setting; only differences within pairs are judged, so that
what a seed does to both cancels. Intervals are Student's t: they take differences to be roughly normal over seeds,
which a recipient that diverges now and then breaks. Each difference has its own standard deviation, since
initialisations differ in theirs; by default it is moderated by those of the other rows (`moderation.py`), which with 5
seeds and 20 rows of one spread makes intervals 0.65 times as wide.

Many comparisons: Bonferroni (Dunn 1961, Journal of the American Statistical Association 56, 52). Of m comparisons each
interval is taken at 1 - (1 - confidence) / m and each p-value times m, whatever their dependence (all share a
baseline). Holm would reject a little more, but has no intervals that agree with its verdicts; here every verdict is
read off the interval, that of equivalence too.

Several donors: intervals and verdicts are about these donors; `Difference.general` says what holds for donors in
general (`samples.py`).
"""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agop_jax.core.errors import UserError, unknown_name
from agop_jax.results.controls import CONTROLS, better_control, is_control
from agop_jax.results.intervals import ratio_interval, student_test
from agop_jax.results.moderation import Spread, moderate
from agop_jax.results.samples import ONE, Sample
from agop_jax.results.tables import HIGHER_IS_BETTER, Setting
from agop_jax.results.verdicts import POINT, BySeed, Difference, General, Rule, paired_difference, verdict

SELECTED_BY = "validation_accuracy"

Row = Mapping[str, Any]
Samples = Mapping[tuple[str, str], Sample]  # (init, against) -> differences


@dataclass(frozen=True)
class Recovered:
    """The part of the reference's gain over the baseline that `init` has: 0 none, 1 all; nan where no gain is seen.

    `low` and `high` are not corrected for the number of initialisations.
    """

    init: str
    train_size: int
    width: float
    budget: int
    fraction: float
    low: float
    high: float
    n: int


def compare(
    rows: Iterable[Row],
    *,
    baseline: str = "kaiming_normal",
    controls: Sequence[str] = CONTROLS,
    metric: str = "test_accuracy",
    confidence: float = 0.95,
    variance: str = "moderated",
    margin: float = POINT,
    donor_free: Container[str] = (),
    resolution: float = 0.0,
) -> list[Difference]:
    """Every initialisation against the baseline and against the better of its own matched controls, by setting.

    A setting is a training-set size, a width and a number of training steps; `metric` is a key of
    `tables.HIGHER_IS_BETTER`. 'matched_isotropic:X' is made for X, and 'matched_isotropic' for 'nfm'. No other init is
    compared with them: their scale and spectrum are not its own. The better control is the one of higher mean
    validation accuracy, so that the choice does not see the test set. Controls are compared with the baseline only.
    Where baseline or controls are missing or share no seed with the initialisation, there is no such difference.

    Two families are corrected for in each setting: all differences from the baseline (those of controls too), and all
    from controls; one with a single seed has no verdict and does not count. So in a setting the chance of any false
    verdict is at most 5 % against the baseline and as much against controls; ten settings are ten such chances. The
    control that looks better was partly lucky, on the test set too: between equals a false 'better' becomes rarer and
    a false 'worse' commoner, together still within the 5 % (simulated in the tests).

    Args:
      rows: of `results.csv`; `donor`, where there is such a column, is the seed of the recipient's donor.
      baseline: init to compare with.
      controls: kinds of control, the part of their names before ':'.
      metric: what is compared.
      confidence: that all intervals of a family hold at once.
      variance: 'moderated' by the other rows of the family, or each row's 'own'.
      margin: the largest difference that does not matter, in the metric's units.
      donor_free: inits that use no donor; of two of these nothing is said about donors in general.
      resolution: of the metric, 1 / number of test images; 0 where unknown (`Rule`).

    Raises:
      UserError: a value is missing or not finite, or a recipient is there twice.
    """
    rows = list(rows)
    rule = Rule(confidence, variance, margin, higher_is_better(metric), resolution)
    selection = _by_setting((row for row in rows if is_control(row["init"], controls)), SELECTED_BY)
    differences = []
    for setting, values in _by_setting(rows, metric).items():
        family = _Family(values, setting, rule, _donors(rows), donor_free)
        others = [init for init in values if init != baseline]
        differences += family.differences([(init, baseline) for init in others])
        judged = {init: values[init] for init in others if not is_control(init, controls)}
        best = {init: better_control(init, own, selection.get(setting, {}), controls) for init, own in judged.items()}
        differences += family.differences([(init, control) for init, control in best.items() if control])
    return differences


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
    rows = list(rows)
    fractions, sign, donors = [], 1 if higher_is_better(metric) else -1, _donors(rows)
    for setting, values in _by_setting(rows, metric).items():
        none, whole = values.get(baseline, {}), values.get(reference, {})
        for init, own in values.items():
            seeds = own.keys() & none.keys() & whole.keys()
            if seeds and init not in (baseline, reference):
                gain, full = (
                    Sample({seed: sign * (upper[seed] - none[seed]) for seed in sorted(seeds)}, donors)
                    for upper in (own, whole)
                )
                ratio = ratio_interval(gain, full, 1 - confidence)
                fractions.append(Recovered(init, *setting, ratio.mean, ratio.low, ratio.high, ratio.n))
    return fractions


def higher_is_better(metric: str) -> bool:
    """The direction of a metric; an error that lists the metrics where it is none."""
    if metric not in HIGHER_IS_BETTER:
        raise unknown_name("metric", metric, HIGHER_IS_BETTER)
    return HIGHER_IS_BETTER[metric]


def _by_setting(rows: Iterable[Row], metric: str) -> dict[Setting, dict[str, BySeed]]:
    """setting -> init -> seed -> value of the metric."""
    higher_is_better(metric)
    settings: dict[Setting, dict[str, BySeed]] = {}
    for row in rows:
        if metric not in row:
            raise unknown_name("metric", metric, row)
        init, seed, value = row["init"], row["seed"], row[metric]
        values = settings.setdefault(Setting.of(row), {}).setdefault(init, {})
        if seed in values:
            raise UserError(
                f"init {init!r}, seed {seed}: two results of one training-set size, width and budget, wanted one"
            )
        if not math.isfinite(value):
            raise UserError(f"init {init!r}, seed {seed}: {metric} is {value}, wanted a finite number")
        values[seed] = float(value)
    return settings


def _donors(rows: Iterable[Row]) -> dict[int, int]:
    """seed -> donor; no seed has recipients of two donors."""
    donors: dict[int, int] = {}
    for row in rows:
        seed, donor = row["seed"], row.get("donor", ONE)
        if donors.setdefault(seed, donor) != donor:
            raise UserError(f"seed {seed} belongs to the donors {donors[seed]} and {donor}, wanted one")
    return donors


@dataclass(frozen=True)
class _Family:
    """One setting's values, of which some differences are corrected for together."""

    values: dict[str, BySeed]
    setting: Setting
    rule: Rule
    donors: Mapping[int, int]
    donor_free: Container[str]

    def differences(self, pairs: Iterable[tuple[str, str]]) -> list[Difference]:
        """The differences of pairs (init, against). A pair without a seed in common is left out."""
        every = {pair: Sample.of(self.values[pair[0]], self.values.get(pair[1], {}), self.donors) for pair in pairs}
        samples = {pair: sample for pair, sample in every.items() if sample.n}
        spreads, general = self._spreads(samples), self._general(samples)
        comparisons = max(1, sum(sample.df > 0 for sample in samples.values()))
        return [
            replace(self._difference(pair, comparisons, spread), general=general.get(pair, General()))
            for pair, spread in spreads.items()
        ]

    def _difference(self, pair: tuple[str, str], comparisons: int, spread: Spread) -> Difference:
        (a, b), options = pair, {"setting": self.setting, "rule": self.rule, "donors": self.donors}
        names = {"init": a, "against": b}
        return paired_difference(
            self.values[a], self.values[b], **names, **options, comparisons=comparisons, spread=spread
        )

    def _spreads(self, samples: Samples) -> dict[tuple[str, str], Spread]:
        if self.rule.variance == "own":
            return {pair: sample.own_spread for pair, sample in samples.items()}
        rows = [(sample.residuals, sample.df) for sample in samples.values()]
        return dict(zip(samples, moderate(rows), strict=True))

    def _general(self, samples: Samples) -> dict[tuple[str, str], General]:
        """What holds for donors in general: one family of the pairs that use a donor and have several."""
        using = {pair: sample for pair, sample in samples.items() if not all(init in self.donor_free for init in pair)}
        over = {pair: sample.over_donors for pair, sample in using.items() if len(sample.means) > 1}
        spreads, level = self._spreads(over), (1 - self.rule.confidence) / max(1, len(over))
        general = {}
        for pair, sample in over.items():
            interval, _ = student_test(sample, spreads[pair], level)
            words = verdict(interval, self.rule).replace("seeds", "donors")
            general[pair] = General(sample.n, using[pair].donor_deviation, interval.low, interval.high, words)
        return general

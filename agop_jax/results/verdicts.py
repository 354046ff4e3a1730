"""A paired difference and what its interval says: better, worse, no difference seen, equivalent."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from agop_jax.core.errors import UserError, unknown_name
from agop_jax.results.intervals import NAN, Interval, seeds_to_see, student_test
from agop_jax.results.moderation import RESOLUTION, Spread, constant
from agop_jax.results.samples import Sample
from agop_jax.results.tables import Setting

VARIANCES = ("moderated", "own")
POINT = 0.01  # one percentage point of accuracy

BySeed = dict[int, float]


@dataclass(frozen=True)
class Rule:
    """How differences are judged.

    Attributes:
      confidence: that all intervals of a family hold at once.
      variance: 'moderated' by the other rows of the family, or each row's 'own'.
      margin: the largest difference that does not matter, in the metric's units.
      higher_is_better: of the metric.
      resolution: the least that the metric of one recipient can change by, 1 / number of test images for a test
        accuracy; 0 where unknown. No smaller margin is judged.

    Raises:
      UserError: an unknown variance, a margin that is not above 0, or a resolution below 0.
    """

    confidence: float = 0.95
    variance: str = "moderated"
    margin: float = POINT
    higher_is_better: bool = True
    resolution: float = 0.0

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise unknown_name("variance", self.variance, VARIANCES)
        if not 0 < self.margin < math.inf:
            raise UserError(f"margin: wanted a number above 0, got {self.margin}")
        if not 0 <= self.resolution < math.inf:
            raise UserError(f"resolution: wanted a number from 0 on, got {self.resolution}")

    def resolves(self, difference: float) -> bool:
        """Whether the metric of one recipient can change by as little as this."""
        return difference >= self.resolution - RESOLUTION


@dataclass(frozen=True)
class General:
    """What holds for donors in general: an interval over the donors' means, corrected as the difference is.

    Attributes:
      donors: how many.
      deviation: of the donors' effects, less what the seeds of a donor give their mean.
      low: end of the interval, like `high`; nan with one donor, and where no donor is used.
      verdict: as `Difference.verdict`, or '' where there is nothing to tell.
    """

    donors: int = 1
    deviation: float = NAN
    low: float = NAN
    high: float = NAN
    verdict: str = ""


@dataclass(frozen=True)
class Difference:
    """`init` minus `against`, in the metric's units (fractions for accuracy).

    Attributes:
      mean: over `n` paired seeds; of several donors, the mean of theirs.
      low: end of the interval corrected for the number of comparisons, like `high`; nan where the seeds support none.
      p_value: two-sided, corrected; nan if n = 1.
      verdict: 'better' or 'worse', by the direction of the metric, if the interval excludes 0; else 'no difference
        seen'; 'too few seeds' without an interval.
      seeds_for_one_point: paired seeds, in all, to see a true difference of `POINT` with probability `POWER` and the
        same correction. It takes the standard deviation of these n differences for the true one: with n = 5 the right
        number may be 0.4 to 8 times it (chi-squared, 95 %). None if there is none: n = 1, all differences the same, or
        a resolution above `POINT`.
      equivalence: what the same interval says of the margin: 'equivalent' if it lies between minus the margin and the
        margin (two one-sided tests, Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657), 'no worse' or
        'no better' if one side of the margin is excluded, else ''. Each one-sided test has half the level of the
        interval, so these claims hold together with all verdicts. It says nothing of a margin below the resolution, nor
        where neither init differs over seeds, as at a ceiling: then no spread was seen that could bound a difference.
      general: for donors in general.
    """

    init: str
    against: str
    train_size: int
    width: float
    budget: int
    mean: float
    low: float
    high: float
    n: int
    p_value: float
    verdict: str
    seeds_for_one_point: int | None
    equivalence: str = ""
    general: General = field(default_factory=General)


def paired_difference(
    a: BySeed,
    b: BySeed,
    *,
    init: str,
    against: str,
    setting: Setting,
    comparisons: int = 1,
    rule: Rule = Rule(),
    donors: Mapping[int, int] | None = None,
    spread: Spread | None = None,
) -> Difference:
    """`a` minus `b` (seed -> value) over the seeds both have, as one of `comparisons`.

    Args:
      a, b: seed -> value.
      init, against, setting: names of what is compared.
      comparisons: that are corrected for.
      rule: how to judge; `variance` is that of `spread`.
      donors: seed -> donor, where there are several.
      spread: of one difference, from many rows; by default from these differences alone.

    Raises:
      UserError: no seed in common.
    """
    sample = Sample.of(a, b, donors or {})
    if not sample.n:
        raise UserError(f"{init} and {against} have no seed in common: {sorted(a)} and {sorted(b)}")
    spread, level = spread or sample.own_spread, (1 - rule.confidence) / comparisons
    interval, p_value = student_test(sample, spread, level)
    p_value = min(p_value * comparisons, 1.0)  # in this order nan stays nan
    hopeless = sample.n == 1 or sample.constant or not rule.resolves(POINT)
    needed = None if hopeless else seeds_to_see(POINT, spread, sample.df, level)
    fixed = all(constant({seed: values[seed] for seed in sample.differences}) for values in (a, b))
    parts = (p_value, verdict(interval, rule), needed, "" if fixed else equivalence(interval, rule))
    return Difference(init, against, *setting, interval.mean, interval.low, interval.high, interval.n, *parts)


def verdict(interval: Interval, rule: Rule) -> str:
    """Read off an interval; 'too few seeds' where there is none."""
    if math.isnan(interval.low):
        return "too few seeds"
    above, below = ("better", "worse") if rule.higher_is_better else ("worse", "better")
    return above if interval.low > 0 else below if interval.high < 0 else "no difference seen"


def equivalence(interval: Interval, rule: Rule) -> str:
    """What an interval says of the margin; '' where it says nothing."""
    if not rule.resolves(rule.margin):
        return ""
    above, below = interval.low > -rule.margin, interval.high < rule.margin  # nan: neither
    if not rule.higher_is_better:
        above, below = below, above
    return "equivalent" if above and below else "no worse" if above else "no better" if below else ""

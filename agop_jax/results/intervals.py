"""Intervals of means, of paired differences and of ratios, from a few seeds."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import special

from agop_jax.core.errors import UserError
from agop_jax.results.moderation import RESOLUTION, Spread
from agop_jax.results.samples import Sample

POWER = 0.8
NAN = math.nan


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds with its two-sided Student t interval; n = 1: no interval, `low` and `high` are nan."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Mean and Student t interval of the mean the values were drawn around."""
    values = np.asarray(list(values), np.float64)
    n = len(values)
    if n == 0:
        raise UserError("wanted at least one value for a mean, found none")
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, NAN, NAN, n)
    half = _critical(n, 1 - confidence) * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def steps_to_reach(curve: Iterable[tuple[int, float]], target: float) -> int | None:
    """The first step at which a curve of (step, accuracy) is at `target` or above; None: never.

    Linear between evaluations, rounded up; evaluations that are nan are left out. The first crossing of a noisy curve
    comes earlier than that of its mean.
    """
    before = None
    for step, accuracy in curve:
        if accuracy >= target:
            if before is None:
                return step
            slope = (accuracy - before[1]) / (step - before[0])
            return math.ceil(before[0] + (target - before[1]) / slope - RESOLUTION)
        if not math.isnan(accuracy):
            before = step, accuracy
    return None


def _critical(n: int, level: float) -> float:
    """Student's t of n - 1 degrees of freedom exceeded on either side with probability `level`."""
    return float(special.stdtrit(n - 1, 1 - level / 2))


def student_test(sample: Sample, spread: Spread, level: float) -> tuple[Interval, float]:
    """The interval and two-sided p-value of a mean difference at an already corrected `level`.

    Args:
      sample: the differences.
      spread: of one difference, from this sample alone or from many.
      level: of the interval, and of the sign test.

    n > 1 differences that are all the same would have a t interval of no width and p = 0, and those of accuracies on a
    few hundred images do agree now and then. Unless other rows tell a variance, they are judged by the sign test: p =
    2^(1 - n), and no interval until that is within `level` (6 seeds for one comparison at 5 %, 9 for ten). If all are
    zero it is [0, 0].
    """
    mean, n = sample.mean, sample.n
    if not sample.df:
        return Interval(mean, NAN, NAN, n), NAN
    if math.sqrt(spread.variance) <= RESOLUTION:
        return _sign_test(sample, level)
    error = math.sqrt(spread.variance / sample.seeds)
    half = float(special.stdtrit(spread.df, 1 - level / 2)) * error
    return Interval(mean, mean - half, mean + half, n), float(2 * special.stdtr(spread.df, -abs(mean) / error))


def _sign_test(sample: Sample, level: float) -> tuple[Interval, float]:
    n, ends = sample.n, (min(sample.differences.values()), max(sample.differences.values()))
    if max(map(abs, ends)) <= RESOLUTION:
        return Interval(0.0, 0.0, 0.0, n), 1.0
    p_value = 2.0 ** (1 - n) if ends[0] * ends[1] > 0 else 1.0
    low, high = ends if p_value <= level else (NAN, NAN)
    return Interval(sample.mean, low, high, n), p_value


def seeds_to_see(difference: float, spread: Spread, df: int, level: float) -> int:
    """The least n with which a paired t test at `level` finds a true `difference` with probability `POWER`.

    Power by the non-central t distribution (Cohen 1988, Statistical Power Analysis, ch. 2), from the n that would do if
    the variance were known, which is never too large.

    Args:
      difference: to be seen.
      spread: of one difference; what its degrees of freedom have beyond `df` comes from other rows and stays.
      df: of this row alone.
      level: of the test.
    """
    sd, borrowed = math.sqrt(spread.variance), spread.df - df
    known_sd = (special.ndtri(1 - level / 2) + special.ndtri(POWER)) * sd / difference
    n = max(2, math.ceil(known_sd**2))
    while True:
        own = n - 1 + borrowed
        missed = special.nctdtr(own, math.sqrt(n) * difference / sd, special.stdtrit(own, 1 - level / 2))
        if missed <= 1 - POWER:
            return n
        n += 1


def ratio_interval(gain: Sample, whole: Sample, level: float) -> Interval:
    """mean(gain) / mean(whole) of pairs, with the interval of Fieller 1954 (J. R. Stat. Soc. B 16, 175).

    It holds those ratios r for which the t interval of the mean of gain - r * whole has 0 in it: the roots of
    a r^2 - 2 b r + c. Unlike a bootstrap it holds its level with 3 or 5 seeds.
    """
    n, x, y = gain.n, gain.mean, whole.mean
    if not student_test(whole, whole.own_spread, level)[0].low > 0:
        return Interval(NAN, NAN, NAN, n)
    residuals = np.array([[sample.residuals[seed] for seed in sorted(gain.differences)] for sample in (gain, whole)])
    covariance = residuals @ residuals.T / gain.df
    (xx, xy), (_, yy) = covariance * special.stdtrit(gain.df, 1 - level / 2) ** 2 / gain.seeds
    a, b, c = y * y - yy, x * y - xy, x * x - xx
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval(x / y, float(b - root) / a, float(b + root) / a, n)

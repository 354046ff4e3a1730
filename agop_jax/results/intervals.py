"""Intervals of means, of paired differences and of ratios, from a few seeds."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import special

from agop_jax.core.errors import UserError

POWER = 0.8
# Differences closer than this are the same: float32 noise is below it, one image of any test set above.
RESOLUTION = 1e-6
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


def same(differences: np.ndarray) -> bool:
    """No spread was seen, as with a single pair; accuracies are multiples of 1 / images, so it happens by chance."""
    return bool(np.ptp(differences) <= RESOLUTION)


def paired_test(differences: np.ndarray, level: float) -> tuple[Interval, float]:
    """The interval and two-sided p-value of a mean difference at an already corrected `level`.

    n > 1 differences that are all the same would have a t interval of no width and p = 0, and those of accuracies on a
    few hundred images do agree now and then. They are judged by the sign test instead: p = 2^(1 - n), and no interval
    until that is within `level` (6 seeds for one comparison at 5 %, 9 for ten). If all are zero it is [0, 0].
    """
    interval, n = mean_interval(differences, 1 - level), len(differences)
    if n == 1:
        return interval, NAN
    if not same(differences):
        t = interval.mean / (float(differences.std(ddof=1)) / math.sqrt(n))
        return interval, float(2 * special.stdtr(n - 1, -abs(t)))
    if abs(interval.mean) <= RESOLUTION:
        return Interval(0.0, 0.0, 0.0, n), 1.0
    p_value = 2.0 ** (1 - n)
    end = interval.mean if p_value <= level else NAN
    return Interval(interval.mean, end, end, n), p_value


def seeds_to_see(difference: float, sd: float, level: float) -> int:
    """The least n with which a paired t test at `level` finds a true `difference` with probability `POWER`.

    Power by the non-central t distribution (Cohen 1988, Statistical Power Analysis, ch. 2), from the n that would do if
    `sd` were known, which is never too large.
    """
    known_sd = (special.ndtri(1 - level / 2) + special.ndtri(POWER)) * sd / difference
    n = max(2, math.ceil(known_sd**2))
    while special.nctdtr(n - 1, math.sqrt(n) * difference / sd, _critical(n, level)) > 1 - POWER:
        n += 1
    return n


def ratio_interval(gain: np.ndarray, whole: np.ndarray, level: float) -> Interval:
    """mean(gain) / mean(whole) of pairs, with the interval of Fieller 1954 (J. R. Stat. Soc. B 16, 175).

    It holds those ratios r for which the t interval of the mean of gain - r * whole has 0 in it: the roots of
    a r^2 - 2 b r + c. Unlike a bootstrap it holds its level with 3 or 5 seeds.
    """
    n, x, y = len(gain), float(gain.mean()), float(whole.mean())
    if not paired_test(whole, level)[0].low > 0:
        return Interval(NAN, NAN, NAN, n)
    (xx, xy), (_, yy) = np.cov(gain, whole) * _critical(n, level) ** 2 / n
    a, b, c = y * y - yy, x * y - xy, x * x - xx
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval(x / y, float(b - root) / a, float(b + root) / a, n)

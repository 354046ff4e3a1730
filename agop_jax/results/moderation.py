"""Variances that learn from one another: few seeds and many initialisations know more of the spread than one row does.

A row of a table is an initialisation, its paired differences from a common partner a sample of n seeds. Smyth 2004
(Statistical Applications in Genetics and Molecular Biology 3, 3; `squeezeVar` of limma) takes the rows' true variances
for draws from a scaled inverse chi-squared distribution with d0 degrees of freedom around s0^2. Both come from the
moments of log s^2, and a row's variance becomes (d0 s0^2 + d s^2) / (d0 + d), with d0 + d degrees of freedom.

Taken as it is this does not hold its level here, by simulation (20 rows, 5 seeds, family of 95 %): 94 % with equal
variances, but 87 to 93 % with unequal ones. Four changes make it hold; `docs/statistics.md` has the figures.

- Rows share a partner, so their sample variances are correlated. With r^2 the mean squared correlation of the rows'
  residuals, the logs scatter by (1 - r^2) trigamma(d / 2) where all true variances are equal, and the mean of m
  variances has m d / (1 + (m - 1) r^2) degrees of freedom (Box 1954, Annals of Mathematical Statistics 25, 290), which
  bounds those of any row.
- A variance is raised towards the common one and never lowered: a row that is truly less steady than the others keeps
  its own.
- d0 is an estimate, so half of it counts as degrees of freedom.
- Below `ROWS` rows, or with fewer than 3 seeds, nothing is borrowed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

RESOLUTION = (
    1e-6  # differences closer than this are the same: float32 noise is below it, one image of any test set above
)
ROWS = 6  # at least, to learn a common variance from
COUNTED = 0.5  # share of the prior's degrees of freedom that counts
EQUAL = 1e-3  # excess of the scatter of log variances below which they count as equal: d0 is then 2,000

Residuals = Mapping[int, float]  # seed -> difference less the mean


@dataclass(frozen=True)
class Spread:
    """The variance of one paired difference, and the degrees of freedom that it is known with."""

    variance: float
    df: float


@dataclass(frozen=True)
class Prior:
    """What the rows have in common: variance s0^2, degrees of freedom d0, and the most that any row may have."""

    variance: float
    df: float
    most: float


def own_spread(residuals: Residuals, df: int) -> Spread:
    """The variance of one row alone; nan without degrees of freedom."""
    square = math.fsum(value * value for value in residuals.values())
    return Spread(square / df if df else math.nan, float(df))


def moderate(rows: Sequence[tuple[Residuals, int]]) -> list[Spread]:
    """The spread of every row, each with its residuals and their degrees of freedom."""
    own = [own_spread(*row) for row in rows]
    told = [row for row in rows if row[1] >= 2 and not constant(row[0])]
    if len(told) < ROWS:
        return own
    prior = common_prior([own_spread(*row) for row in told], shared_part([row[0] for row in told], told[0][1]))
    return [_raised(spread, prior) for spread in own]


def constant(values: Mapping[int, float]) -> bool:
    """No spread was seen; accuracies are multiples of 1 / images, so it happens by chance."""
    return bool(np.ptp(list(values.values())) <= RESOLUTION)


def shared_part(rows: Sequence[Residuals], df: int) -> float:
    """The mean squared correlation over pairs of rows, 0 to 1, without what chance adds to it.

    Of two uncorrelated rows the expected square is 1 / df, so (df r^2 - 1) / (df - 1) has the mean 0, and 1 for r = 1.
    Pairs are compared on the seeds that both have.
    """
    seeds = sorted(set().union(*rows))
    present = np.array([[seed in row for seed in seeds] for row in rows], np.float64)
    values = np.array([[row.get(seed, 0.0) for seed in seeds] for row in rows])
    powers = values**2 @ present.T  # of a row, on the seeds that the other has
    powers, pairs = powers * powers.T, ~np.eye(len(rows), dtype=bool)
    squares = ((values @ values.T) ** 2)[pairs & (powers > 0)] / powers[pairs & (powers > 0)]
    return float(np.clip((df * squares.mean() - 1) / (df - 1), 0, 1)) if len(squares) else 1.0


def common_prior(spreads: Sequence[Spread], shared: float) -> Prior:
    """s0^2 and d0 by the first two moments of log s^2 (Smyth 2004, section 6.2), for correlated rows.

    Args:
      spreads: of the rows, each by itself.
      shared: mean squared correlation of the rows' residuals.
    """
    half = np.array([spread.df for spread in spreads]) / 2
    logs = np.log([spread.variance for spread in spreads]) - special.digamma(half) + np.log(half)
    excess = logs.var(ddof=1) - (1 - shared) * special.polygamma(1, half).mean()
    df = 2 * inverse_trigamma(max(excess, EQUAL))
    variance = math.exp(logs.mean() + special.digamma(df / 2) - math.log(df / 2))
    return Prior(variance, df, 2 * half.sum() / (1 + (len(spreads) - 1) * shared))


def inverse_trigamma(value: float) -> float:
    """y with trigamma(y) = value, by Newton's method on 1 / trigamma, which is convex (Smyth 2004, appendix)."""
    y = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, y))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, y))
        y += step
        if abs(step) < 1e-10 * y:
            break
    return y


def _raised(own: Spread, prior: Prior) -> Spread:
    if own.df < 2:
        return own
    moderated = (prior.df * prior.variance + own.df * own.variance) / (prior.df + own.df)
    df = min(own.df + COUNTED * prior.df, max(prior.most, own.df))
    return Spread(max(own.variance, moderated), df)

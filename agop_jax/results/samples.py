"""Paired differences of two initialisations over seeds, where seeds may belong to several donors.

With several donors every recipient seed belongs to one of them. The difference of seed s of donor d is

    y_ds = mu + D_d + e_ds,    D_d ~ (0, sigma_D^2) the donor's effect,  e_ds ~ (0, sigma^2) the seed's.

The mean is that of the donors' means. It has two readings, with two variances:

- *These donors*: D_d is fixed. Var = sigma^2 / K^2 sum_d 1 / n_d, where sigma^2 is known from the scatter within
  donors, with N - K degrees of freedom. With one donor it is the paired t interval.
- *Donors in general*: D_d is random. The donors' means are K independent numbers of variance sigma_D^2 + sigma^2 / n,
  so that Student's t on them, with K - 1 degrees of freedom, holds exactly whatever the two components are.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from agop_jax.results.moderation import Residuals, Spread, constant, own_spread

ONE = 0  # the donor of seeds for which none is named


@dataclass(frozen=True)
class Sample:
    """Differences by seed, and the donor of each seed; seeds that `donors` lacks belong to one donor."""

    differences: Mapping[int, float]
    donors: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, a: Mapping[int, float], b: Mapping[int, float], donors: Mapping[int, int]) -> "Sample":
        """`a` minus `b` over the seeds that both have."""
        return cls({seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}, donors)

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.differences)

    @functools.cached_property
    def groups(self) -> dict[int, np.ndarray]:
        """donor -> differences of its seeds."""
        groups: dict[int, list[float]] = {}
        for seed, value in self.differences.items():
            groups.setdefault(self.donors.get(seed, ONE), []).append(value)
        return {donor: np.array(values, np.float64) for donor, values in sorted(groups.items())}

    @functools.cached_property
    def means(self) -> dict[int, float]:
        """donor -> mean of its seeds."""
        return {donor: float(values.mean()) for donor, values in self.groups.items()}

    @property
    def mean(self) -> float:
        """The mean of the donors' means."""
        return float(np.mean(list(self.means.values())))

    @property
    def df(self) -> int:
        """Degrees of freedom within donors."""
        return self.n - len(self.groups)

    @functools.cached_property
    def residuals(self) -> Residuals:
        """seed -> difference less the mean of its donor."""
        return {seed: value - self.means[self.donors.get(seed, ONE)] for seed, value in self.differences.items()}

    @property
    def seeds(self) -> float:
        """The seeds that the mean is worth: Var(mean) is the variance of one difference over this number."""
        return len(self.groups) ** 2 / math.fsum(1 / len(values) for values in self.groups.values())

    @property
    def own_spread(self) -> Spread:
        """Within donors, of this sample alone."""
        return own_spread(self.residuals, self.df)

    @property
    def constant(self) -> bool:
        """No spread was seen within donors."""
        return constant(self.residuals)

    @property
    def over_donors(self) -> "Sample":
        """The donors' means, as a sample of donors."""
        return Sample(self.means)

    @property
    def donor_deviation(self) -> float:
        """sigma_D: the spread of the donors' means less what seeds alone give it; nan for one donor."""
        if len(self.means) < 2 or not self.df:
            return math.nan
        seeds = self.own_spread.variance * np.mean([1 / len(values) for values in self.groups.values()])
        return math.sqrt(max(0.0, float(np.var(list(self.means.values()), ddof=1)) - float(seeds)))

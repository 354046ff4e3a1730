"""How often an initialisation wins, and where it ranks, over several settings: with stratified bootstrap intervals.

Agarwal et al. 2021 (*Deep reinforcement learning at the edge of the statistical precipice*, NeurIPS 34, section 4.3)
define the probability of improvement of X over Y in one task by its runs x_1..x_n and y_1..y_m,

    P(X > Y) = 1 / (n m) sum_ij S(x_i, y_j),    S = 1 if x_i > y_j, 1/2 if they are equal, 0 else,

which is Mann and Whitney's U over n m, and over several tasks as its mean. It counts wins, so that no setting weighs
more for its larger differences. A stratified bootstrap (section 4.1) draws the runs of every task anew, with
replacement, task by task, and gives percentile intervals. The settings themselves are fixed: nothing is said about
others.

Here a task is a setting, a stratum the recipients of one donor in it, and three things differ from the paper. Runs are
paired: the recipients of a seed are drawn together, for all initialisations. A donor's recipients are compared among
themselves, and donors count alike. Of n seeds n - 1 are drawn, since n draws have (n - 1) / n times the variance that a
mean of n has (McCarthy & Snowden 1985), which is a fifth too little for 5 seeds. `docs/statistics.md` has the coverage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from agop_jax.results.intervals import NAN, Interval
from agop_jax.results.samples import ONE
from agop_jax.results.verdicts import BySeed

RESAMPLES = 2000
SEED = 0  # of the bootstrap: the same results give the same page


@dataclass(frozen=True)
class Task:
    """One setting: `values` by init and seed, higher is better; seeds that `donors` lacks belong to one donor."""

    values: Mapping[str, BySeed]
    donors: Mapping[int, int] = field(default_factory=dict)

    def strata(self, inits: Sequence[str]) -> list[np.ndarray]:
        """For each donor, (init, seed) over the seeds that all these inits have."""
        common = set.intersection(*(set(self.values[init]) for init in inits))
        by_donor: dict[int, list[int]] = {}
        for seed in sorted(common):
            by_donor.setdefault(self.donors.get(seed, ONE), []).append(seed)
        values = lambda seeds: np.array([[self.values[init][seed] for seed in seeds] for init in inits], np.float64)
        return [values(seeds) for _, seeds in sorted(by_donor.items())]


def improvement_probability(
    tasks: Sequence[Task], init: str, against: str, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Interval | None:
    """P(init > against) over the settings that have a seed of both, and its interval.

    Returns:
      `n` is the number of settings; the ends are nan where no donor has two seeds. None without any such setting.
    """
    strata = [task.strata((init, against)) for task in tasks if {init, against} <= task.values.keys()]
    strata = [groups for groups in strata if groups]
    if not strata:
        return None
    rng = np.random.default_rng(SEED)
    wins = lambda group: (np.sign(group[0][:, None] - group[1]) + 1) / 2
    share = lambda group, weights: np.einsum("ri,ij,rj->r", weights, wins(group), weights, optimize=True)
    means = np.mean([_over_donors(groups, share, rng, resamples) for groups in strata], axis=0)
    return _interval(means, strata, confidence)


def mean_ranks(
    tasks: Sequence[Task], inits: Sequence[str], confidence: float = 0.95, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """The rank of each init's mean among these inits, 1 the best, mean over settings; equal means share their ranks.

    Args:
      tasks: each with all of the inits.
      inits: to rank.
      confidence: of the percentile intervals.
      resamples: of the bootstrap.

    Returns:
      By init; nothing where some setting has no seed that all inits share.
    """
    strata, rng = [task.strata(inits) for task in tasks], np.random.default_rng(SEED)
    if not all(strata):
        return {}
    means = lambda group, weights: weights @ group.T
    accuracies = np.array([_over_donors(groups, means, rng, resamples) for groups in strata])  # (task, resample, init)
    ranks = stats.rankdata(-accuracies, axis=-1).mean(axis=0)
    return {init: _interval(ranks[:, place], strata, confidence) for place, init in enumerate(inits)}


def common_inits(tasks: Sequence[Task]) -> list[str]:
    """Those that every setting has, in the order of the first."""
    return [init for init in (tasks[0].values if tasks else ()) if all(init in task.values for task in tasks)]


def _over_donors(groups, statistic, rng, resamples) -> np.ndarray:
    """The mean over donors of `statistic(group, weights of seeds)`: first of all seeds alike, then of each resample."""
    return np.mean([statistic(group, _weights(group.shape[1], rng, resamples)) for group in groups], axis=0)


def _weights(seeds: int, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """(1 + resamples, seeds): how often each seed is drawn, over the number of draws."""
    alike, draws = np.full((1, seeds), 1 / seeds), max(1, seeds - 1)
    return np.concatenate([alike, rng.multinomial(draws, alike[0], resamples) / draws])


def _interval(values: np.ndarray, strata: Sequence[Sequence[np.ndarray]], confidence: float) -> Interval:
    told = any(group.shape[1] > 1 for groups in strata for group in groups)
    ends = np.quantile(values[1:], [(1 - confidence) / 2, (1 + confidence) / 2]) if told else (NAN, NAN)
    return Interval(float(values[0]), float(ends[0]), float(ends[1]), len(strata))

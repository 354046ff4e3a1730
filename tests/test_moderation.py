"""Moderated variances: the moments that define them, what they may not do, and the coverage that decided their use."""

import math

import numpy as np
import pytest
from scipy import special, stats
from test_statistics import HE, table

from agop_jax.results import moderation
from agop_jax.results.moderation import ROWS, Spread, common_prior, inverse_trigamma, moderate, own_spread, shared_part
from agop_jax.results.samples import Sample
from agop_jax.results.statistics import compare

MANY = 20
# standard deviation of the baseline, and of the rows
CASES = {
    "equal": (1, np.ones(MANY)),
    "from 1 to 10": (1, np.geomspace(1, 10, MANY)),
    "from 1 to 10, unsteady baseline": (3, np.geomspace(1, 10, MANY)),
    "one ten times as large": (1, np.r_[np.ones(MANY - 1), 10]),
    "one three times as large": (1, np.r_[np.ones(MANY - 1), 3]),
    "half five times as large": (1, np.r_[np.ones(MANY // 2), 5 * np.ones(MANY // 2)]),
    "steady baseline, half steady": (0.1, np.r_[0.1 * np.ones(MANY // 2), np.ones(MANY // 2)]),
}


def rows_of(differences):
    """(m, n) differences as residuals with their degrees of freedom."""
    samples = [Sample(dict(enumerate(row))) for row in differences]
    return [(sample.residuals, sample.df) for sample in samples]


def experiment(rng, baseline, deviations, seeds=5):
    """Accuracies of a baseline and rows without any true difference, in points."""
    values = {HE: rng.normal(0, baseline, seeds)}
    return values | {f"init_{i}": rng.normal(0, sd, seeds) for i, sd in enumerate(deviations)}


def coverage(case, repeats, seeds=5, rows=None):
    """How often all intervals of a family hold 0, moderated and own, and the ratio of their mean half-widths."""
    baseline, deviations = CASES[case]
    deviations = deviations if rows is None else deviations[:: MANY // rows]
    rng, held, widths = np.random.default_rng(seeds), np.zeros(2), np.zeros(2)
    for _ in range(repeats):
        found = table({init: 0.01 * v for init, v in experiment(rng, baseline, deviations, seeds).items()})
        for i, variance in enumerate(("moderated", "own")):
            intervals = np.array([(one.low, one.high) for one in compare(found, variance=variance)])
            held[i] += np.all((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0))
            widths[i] += np.mean(intervals[:, 1] - intervals[:, 0])
    return *(held / repeats), widths[0] / widths[1]


@pytest.mark.parametrize("value", [1e-3, 0.0123, 0.6449340668482264, 1.0, 40.0])
def test_inverse_trigamma(value):
    assert float(special.polygamma(1, inverse_trigamma(value))) == pytest.approx(value, rel=1e-9)


def test_inverse_trigamma_by_hand():
    """trigamma(1) = pi^2 / 6, trigamma(1 / 2) = pi^2 / 2."""
    assert inverse_trigamma(math.pi**2 / 6) == pytest.approx(1)
    assert inverse_trigamma(math.pi**2 / 2) == pytest.approx(0.5)


@pytest.mark.parametrize(("df", "variance"), [(3.0, 1.0), (8.0, 0.04)])
def test_a_planted_prior_is_found(df, variance):
    """True variances from a scaled inverse chi-squared distribution, and samples of independent rows around them."""
    rng = np.random.default_rng(0)
    true = variance * df / rng.chisquare(df, 20_000)
    found = common_prior([Spread(s2 * c / 4, 4.0) for s2, c in zip(true, rng.chisquare(4, 20_000), strict=True)], 0.0)
    assert found.df == pytest.approx(df, rel=0.1)
    assert found.variance == pytest.approx(variance, rel=0.03)


def test_a_row_with_two_seeds_neither_gives_nor_takes():
    rows = rows_of(np.random.default_rng(0).normal(size=(8, 5)))
    short = Sample({0: 0.1, 1: 0.3})
    spreads = moderate([*rows, (short.residuals, short.df)])
    assert spreads == [*moderate(rows), Spread(pytest.approx(0.02), 1.0)]
    assert spreads[0] != own_spread(*rows[0])


def test_moderated_variance_by_hand():
    """Six rows of one variance: nothing exceeds chance, so d0 is the largest that there is and all rows share s0^2."""
    signs = np.array([[1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]] * 2, float)
    d0 = 2 * inverse_trigamma(moderation.EQUAL)
    half = 1.5 + np.zeros(6)
    s0 = (4 / 3) * math.exp(-special.digamma(1.5) + math.log(1.5) + special.digamma(d0 / 2) - math.log(d0 / 2))
    rows = rows_of(signs)
    shared = shared_part([row[0] for row in rows], 3)
    assert shared == pytest.approx((3 * 3 / 15 - 1) / 2 if 3 * 3 / 15 > 1 else 0)  # 3 of 15 pairs have r^2 = 1
    for spread in moderate(rows):
        assert spread.variance == pytest.approx((d0 * s0 + 3 * 4 / 3) / (d0 + 3))
        assert spread.df == pytest.approx(2 * half.sum())


def test_rows_that_are_copies_of_one_another_know_no_more_than_one():
    row = np.array([0.1, 0.4, -0.2, 0.3, 0.0])
    rows = rows_of([row * sign for sign in (1, -1, 1, 1, -1, 1, 1)])
    assert shared_part([residuals for residuals, _ in rows], 4) == pytest.approx(1)
    assert all(spread.df == pytest.approx(4) for spread in moderate(rows))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_shared_part_is_near_the_squared_correlation(correlation):
    """Exact in the mean at 0, and always at 1; between them up to 0.1 too small. By numpy's correlations."""
    rng = np.random.default_rng(1)
    squares = []
    for _ in range(400):
        common = rng.normal(size=5)
        rows = [math.sqrt(correlation) * common + math.sqrt(1 - correlation) * rng.normal(size=5) for _ in range(8)]
        residuals = [row for row, _ in rows_of(rows)]
        x = np.array([list(row.values()) for row in residuals])
        r2 = np.corrcoef(x) ** 2
        mean = (r2.sum() - 8) / 56
        squares.append((4 * mean - 1) / 3)
        assert shared_part(residuals, 4) == pytest.approx(min(1, max(0, squares[-1])))
    assert np.mean(squares) == pytest.approx(correlation**2, abs=0.1)


def test_a_variance_is_never_lowered():
    rng = np.random.default_rng(2)
    rows = rows_of(rng.normal(size=(20, 5)) * np.geomspace(1, 10, 20)[:, None])
    for (residuals, df), spread in zip(rows, moderate(rows), strict=True):
        assert spread.variance >= own_spread(residuals, df).variance
        assert spread.df >= df


@pytest.mark.parametrize("shape", [(ROWS - 1, 5), (20, 2)])
def test_few_rows_and_two_seeds_borrow_nothing(shape):
    rows = rows_of(np.random.default_rng(3).normal(size=shape))
    assert moderate(rows) == [own_spread(*row) for row in rows]


def test_rows_without_spread_take_the_common_variance():
    """Of coarse accuracies, whose differences agree by chance."""
    values = np.random.default_rng(4).normal(size=(10, 4))
    rows = rows_of([*values, np.full(4, 0.3)])
    assert own_spread(*rows[-1]).variance == pytest.approx(0, abs=1e-12)
    assert moderate(rows)[-1].variance > 0.1
    assert moderate(rows)[:-1] == moderate(rows[:-1])


def test_missing_seeds_are_no_obstacle():
    rng = np.random.default_rng(5)
    values = {f"init_{i}": rng.normal(0.5, 0.01, 5) for i in range(8)} | {HE: rng.normal(0.5, 0.01, 5)}
    rows = [row for row in table(values) if (row["init"], row["seed"]) != ("init_3", 4)]
    found = {one.init: one for one in compare(rows)}
    assert (found["init_3"].n, found["init_2"].n) == (4, 5)
    assert all(math.isfinite(one.low) for one in found.values())


def test_own_variances_are_the_paired_t_test():
    rng = np.random.default_rng(6)
    values = experiment(rng, 1, np.ones(10))
    for one in compare(table(values), variance="own"):
        expected = stats.ttest_rel(values[one.init], values[HE]).confidence_interval(1 - 0.05 / 10)
        np.testing.assert_allclose([one.low, one.high], expected)


def test_unknown_variance_is_refused():
    with pytest.raises(ValueError, match="unknown variance 'moderate'. Did you mean 'moderated'"):
        compare([], variance="moderate")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["equal", "one three times as large"])
def test_family_coverage_and_width(case):
    moderated, _, ratio = coverage(case, 150)
    assert moderated > 0.94 - 3 * math.sqrt(0.94 * 0.06 / 150)
    assert case != "equal" or ratio < 0.67


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_family_coverage_and_width_in_full(case):
    """What `docs/statistics.md` states: 20 rows and 5 seeds."""
    moderated, own, ratio = coverage(case, 3000)
    print(f"{case}: {moderated:.3f}, own {own:.3f}, width {ratio:.2f}")
    assert moderated >= 0.94
    assert case != "equal" or ratio <= 0.65


@pytest.mark.long
@pytest.mark.parametrize(("seeds", "rows"), [(3, 10), (3, 20), (5, 10), (10, 20)])
@pytest.mark.parametrize("case", CASES)
def test_family_coverage_of_other_sizes(case, seeds, rows):
    moderated, own, ratio = coverage(case, 2000, seeds, rows)
    print(f"{case}, {seeds} seeds, {rows} rows: {moderated:.3f}, own {own:.3f}, width {ratio:.2f}")
    assert moderated >= 0.94 - 2 * math.sqrt(0.94 * 0.06 / 2000)

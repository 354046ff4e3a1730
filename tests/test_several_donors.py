"""Intervals over recipients nested in donors, and the program with two of them."""

import math

import numpy as np
import pytest
from scipy import stats
from test_statistics import HE

from agop_jax.core.errors import UserError
from agop_jax.experiments.keys import recipient_seeds
from agop_jax.results.intervals import student_test
from agop_jax.results.samples import Sample
from agop_jax.results.statistics import compare


def nested(values):
    """donor -> differences, as a sample with seeds of its own for each donor."""
    seeds = {donor: recipient_seeds(donor, 0, len(own)) for donor, own in values.items()}
    differences = {s: d for donor, own in values.items() for s, d in zip(seeds[donor], own, strict=True)}
    return Sample(differences, {s: donor for donor, own in seeds.items() for s in own})


def rows_of(values):
    """Rows of results.csv from init -> donor -> accuracies."""
    rows = []
    for init, by_donor in values.items():
        for donor, own in by_donor.items():
            for seed, accuracy in zip(recipient_seeds(donor, 0, len(own)), own, strict=True):
                place = {"init": init, "seed": seed, "donor": donor, "train_size": 500, "width": 1.0}
                rows.append({**place, "test_accuracy": accuracy, "validation_accuracy": accuracy})
    return rows


def test_no_two_donors_share_a_seed():
    seeds = [seed for donor in range(50) for seed in recipient_seeds(donor, 7, 1000)]
    assert len(set(seeds)) == len(seeds)
    assert recipient_seeds(7, 7, 3) == range(3)  # the experiment's own donor, as it was before there were several


def test_two_donors_by_hand():
    """1, 2, 3 and 5, 7, 9: means 2 and 7; within donors 2 + 8 over 4 degrees of freedom; Var = 2.5 (1/3 + 1/3) / 4."""
    sample = nested({0: [1.0, 2.0, 3.0], 5: [5.0, 7.0, 9.0]})
    assert (sample.mean, sample.df, sample.own_spread.variance) == (4.5, 4, 2.5)
    assert sample.seeds == pytest.approx(6)
    interval, p_value = student_test(sample, sample.own_spread, 0.05)
    half = stats.t.ppf(0.975, 4) * math.sqrt(2.5 / 6)
    assert [interval.low, interval.high] == pytest.approx([4.5 - half, 4.5 + half])
    assert p_value == pytest.approx(2 * stats.t.sf(4.5 / math.sqrt(2.5 / 6), 4))
    assert sample.donor_deviation == pytest.approx(math.sqrt(12.5 - 2.5 / 3))
    assert sample.over_donors.differences == {0: 2.0, 5: 7.0}


def test_one_donor_is_the_paired_t_test():
    values = [0.1, 0.3, 0.2, 0.6]
    interval, p_value = student_test(nested({0: values}), nested({0: values}).own_spread, 0.05)
    expected = stats.ttest_1samp(values, 0)
    assert p_value == pytest.approx(expected.pvalue)
    assert [interval.low, interval.high] == pytest.approx(list(expected.confidence_interval()))


def test_unequal_numbers_of_seeds_weigh_donors_alike():
    sample = nested({0: [1.0, 2.0, 3.0, 2.0], 1: [4.0, 6.0]})
    assert sample.mean == 3.5
    assert sample.seeds == pytest.approx(4 / (1 / 4 + 1 / 2))


def test_donors_in_general_is_the_t_test_of_their_means():
    values = {HE: {d: [0.5, 0.51, 0.49] for d in range(3)}, "copy": {0: [0.6] * 3, 1: [0.63] * 3, 2: [0.69] * 3}}
    (found,) = compare(rows_of(values))
    expected = stats.ttest_1samp([0.1, 0.13, 0.19], 0).confidence_interval()
    assert [found.general.low, found.general.high] == pytest.approx(list(expected))
    assert (found.general.donors, found.general.verdict, found.n) == (3, "better", 9)


def test_two_inits_without_a_donor_say_nothing_of_donors_in_general():
    values = {init: {d: [0.5 + 0.01 * i, 0.51, 0.49] for d in range(2)} for i, init in enumerate((HE, "lsuv", "copy"))}
    found = {one.init: one.general for one in compare(rows_of(values), donor_free={HE, "lsuv"})}
    assert (found["lsuv"].donors, found["lsuv"].verdict) == (1, "")
    assert found["copy"].donors == 2


def test_a_seed_of_two_donors_is_refused():
    rows = rows_of({HE: {0: [0.5]}, "copy": {0: [0.6]}})
    rows[1]["donor"] = 1
    with pytest.raises(UserError, match="seed 0 belongs to the donors 0 and 1"):
        compare(rows)


def held(donors, deviation, repeats, seeds=5):
    """Coverage of one row's two 95 % intervals, about these donors and in general, where seeds have deviation 1."""
    rng, counts = np.random.default_rng(donors), np.zeros(2)
    for _ in range(repeats):
        effects = rng.normal(0, deviation, donors)
        sample = nested({d: effects[d] + rng.normal(size=seeds) for d in range(donors)})
        these, _ = student_test(sample, sample.own_spread, 0.05)
        general, _ = student_test(sample.over_donors, sample.over_donors.own_spread, 0.05)
        counts += [these.low <= effects.mean() <= these.high, general.low <= 0 <= general.high]
    return counts / repeats


@pytest.mark.parametrize("donors", [2, 3])
@pytest.mark.parametrize("deviation", [0.0, 2.0])
def test_coverage_with_few_donors(donors, deviation):
    """3 standard errors of 95 %."""
    np.testing.assert_allclose(held(donors, deviation, 800), 0.95, atol=0.024)


def family(donors, shared, repeats, rows=20, seeds=5):
    """Family coverage with donors' effects that all rows share in part: these donors, in general; median half-widths.

    Effects and seeds have the deviation 1 point, He's recipients as well.
    """
    rng, counts, widths = np.random.default_rng(donors), np.zeros(2), []
    for _ in range(repeats):
        common = rng.normal(size=donors)
        effects = {
            f"init_{i}": math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.normal(size=donors)
            for i in range(rows)
        }
        values = {HE: {d: 0.01 * rng.normal(size=seeds) for d in range(donors)}}
        for init, own in effects.items():
            values[init] = {d: 0.01 * (own[d] + rng.normal(size=seeds)) for d in range(donors)}
        found = compare(rows_of(values))
        counts[0] += all(one.low <= 0.01 * effects[one.init].mean() <= one.high for one in found)
        counts[1] += all(one.general.low <= 0 <= one.general.high for one in found)
        widths.append(
            [np.mean([x.high - x.low for x in found]), np.mean([x.general.high - x.general.low for x in found])]
        )
    return *(counts / repeats), *(50 * np.nanmedian(widths, axis=0))


@pytest.mark.long
@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("donors", [2, 3, 5])
def test_family_coverage_with_few_donors(donors, shared):
    """What `docs/statistics.md` states."""
    these, general, half, general_half = family(donors, shared, 1000)
    print(f"{donors} donors, shared {shared}: {these:.3f} +- {half:.1f}, general {general:.3f} +- {general_half:.1f}")
    assert min(these, general) >= 0.94 - 2 * math.sqrt(0.94 * 0.06 / 1000)

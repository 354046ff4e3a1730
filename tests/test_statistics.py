"""Planted differences come back, and no others: the rates the module states, by simulation, and answers by hand."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from agop_jax.core.errors import UserError
from agop_jax.initializers.registry import CONTROLLED_BY_DEFAULT, CONTROLS, get_method
from agop_jax.results import controls
from agop_jax.results.intervals import mean_interval, steps_to_reach
from agop_jax.results.statistics import compare, recovered_fraction
from agop_jax.results.tables import Setting
from agop_jax.results.verdicts import paired_difference

HE, ISOTROPIC, SPECTRUM = "kaiming_normal", "matched_isotropic", "matched_spectrum"
TEN = [f"init_{i}" for i in range(10)]
NAN = math.nan


def table(values, validation=None, train_size=500, width=1.0):
    """Rows of results.csv from init -> accuracies of seeds 0, 1, ...; validation is the same unless given."""
    return [
        {
            "init": init,
            "seed": seed,
            "train_size": train_size,
            "width": width,
            "test_accuracy": accuracy,
            "validation_accuracy": (validation or values)[init][seed],
        }
        for init, accuracies in values.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def simulated(rng, gains, seeds, sd=0.01, images=None):
    """Accuracies that share a large effect of the seed, as pairs do, with one standard deviation `sd` for each init."""
    common = 0.5 + rng.normal(0, 0.03, seeds)
    values = {init: common + gain + rng.normal(0, sd, seeds) for init, gain in gains.items()}
    return {init: np.round(v * images) / images if images else v for init, v in values.items()}


def difference(values, against=0.0, **options):
    """Of seeds 0, 1, ..., from a constant."""
    a, b = dict(enumerate(values)), dict.fromkeys(range(len(values)), against)
    return paired_difference(a, b, init="a", against="b", setting=Setting(500, 1.0), **options)


def assert_verdict_agrees(found, confidence=0.95):
    """What a reader sees: verdict, interval and p-value."""
    expected = "too few seeds" if math.isnan(found.low) else "no difference seen"
    expected = "better" if found.low > 0 else "worse" if found.high < 0 else expected
    assert found.verdict == expected
    assert (found.p_value < 1 - confidence) == (expected in ("better", "worse"))


def false_verdicts(gains, seeds, repeats, role, images=None):
    """Fractions of experiments under the null with any 'better', any 'worse', either; role: is it against He?"""
    rng, counts = np.random.default_rng(seeds), np.zeros(3)
    for _ in range(repeats):
        found = compare(table(simulated(rng, gains, seeds, images=images)))
        verdicts = {one.verdict for one in found if (one.against == HE) == role}
        assert verdicts
        counts += ["better" in verdicts, "worse" in verdicts, bool(verdicts & {"better", "worse"})]
    return counts / repeats


def at_most(rate, repeats):
    """The largest fraction that chance makes of `rate`: 3 standard errors above."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / repeats)


# Answers by hand, from the table of Student's t: 2.776445 and, at 0.05 / 10, 5.597568 with 4 degrees of freedom.
def test_mean_interval_by_hand():
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (found.mean, found.n) == (3, 5)
    np.testing.assert_allclose([found.low, found.high], [3 - half, 3 + half], atol=1e-5)


def test_mean_interval_agrees_with_scipy():
    values = np.random.default_rng(0).normal(size=7)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    found = mean_interval(values, 0.9)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-12)


def test_mean_of_one_has_no_interval_and_of_none_is_refused():
    found = mean_interval([0.5])
    assert (found.mean, found.n) == (0.5, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    with pytest.raises(UserError, match="at least one value"):
        mean_interval([])


def test_paired_difference_by_hand_corrected_for_ten():
    a, b = {0: 0.51, 1: 0.62, 2: 0.73, 3: 0.84, 4: 0.95, 9: 0.1}, {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8, 4: 0.9, 8: 0.0}
    found = paired_difference(a, b, init="a", against="b", setting=Setting(500, 2.0), comparisons=10)
    half = 5.597568 * math.sqrt(0.00025 / 5)
    np.testing.assert_allclose([found.mean, found.low, found.high], [0.03, 0.03 - half, 0.03 + half], atol=1e-7)
    assert found.p_value == pytest.approx(10 * stats.ttest_1samp([1, 2, 3, 4, 5], 0).pvalue)
    assert (found.init, found.against, found.train_size, found.width, found.n) == ("a", "b", 500, 2.0, 5)
    assert found.verdict == "no difference seen"  # alone it would have been 'better'
    assert paired_difference(a, b, init="a", against="b", setting=Setting(500, 2.0)).verdict == "better"


def test_no_seed_in_common_is_refused():
    with pytest.raises(UserError, match="no seed in common"):
        paired_difference({0: 1.0}, {1: 1.0}, init="a", against="b", setting=Setting(500, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_cover_a_planted_difference(seeds):
    rng, gains, repeats = np.random.default_rng(seeds), {HE: 0.0, "planted": 0.02}, 4000
    found = [compare(table(simulated(rng, gains, seeds)))[0] for _ in range(repeats)]
    covered = np.mean([one.low <= 0.02 <= one.high for one in found])
    assert abs(covered - 0.95) < 0.015
    assert np.mean([one.mean for one in found]) == pytest.approx(0.02, abs=0.001)
    assert not any(one.verdict == "worse" and one.mean > 0 for one in found)


@pytest.mark.slow
def test_intervals_of_ten_hold_at_once():
    rng, repeats = np.random.default_rng(1), 600
    gains = {HE: 0.0} | {init: 0.01 * (i - 4) for i, init in enumerate(TEN)}
    held, wrong = 0, 0
    for _ in range(repeats):
        found = compare(table(simulated(rng, gains, 5)))
        held += all(one.low <= gains[one.init] <= one.high for one in found)
        wrong += any(one.verdict == ("worse" if gains[one.init] > 0 else "better") for one in found)
        for one in found:
            assert_verdict_agrees(one)
    assert 1 - held / repeats <= at_most(0.05, repeats)
    assert wrong / repeats <= at_most(0.05, repeats)


@pytest.mark.slow
def test_false_verdicts_of_ten_inits_and_five_seeds_against_the_baseline():
    either = false_verdicts(dict.fromkeys([HE, *TEN], 0.0), 5, 1500, role=True)[2]
    assert 0.01 < either <= at_most(0.05, 1500)  # 0: the test would see nothing


def test_without_correction_the_rate_would_be_missed():
    rng, repeats = np.random.default_rng(0), 300
    samples = [[difference(rng.normal(0, 0.01, 5)).verdict for _ in TEN] for _ in range(repeats)]
    assert np.mean([bool({"better", "worse"} & set(verdicts)) for verdicts in samples]) > 0.25


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 20])
def test_false_verdicts_against_the_better_control(seeds):
    """At its worst: the choice sees the very numbers that are then compared."""
    made = [f"{control}:{init}" for control in (ISOTROPIC, SPECTRUM) for init in TEN[:5]]
    gains = dict.fromkeys([HE, *TEN[:5], *made], 0.0)
    better, _, either = false_verdicts(gains, seeds, 800, role=False)
    assert better <= at_most(0.025, 800)
    assert 0.01 < either <= at_most(0.05, 800)


@pytest.mark.parametrize("seeds", [2, 3])
def test_coarse_accuracies_that_agree_by_chance_are_not_better(seeds):
    """On 100 images the differences of 2 seeds are often the same, which gives a t interval of no width."""
    either = false_verdicts(dict.fromkeys([HE, *TEN[:3]], 0.0), seeds, 1000, role=True, images=100)[2]
    assert either <= at_most(0.05, 1000)


@pytest.mark.parametrize(
    ("values", "comparisons", "verdict", "interval", "p_value"),
    [
        ([0.02] * 5, 1, "too few seeds", (NAN, NAN), 0.0625),
        ([0.02] * 6, 1, "better", (0.02, 0.02), 0.03125),
        ([-0.02] * 6, 1, "worse", (-0.02, -0.02), 0.03125),
        ([0.02] * 8, 10, "too few seeds", (NAN, NAN), 0.078125),
        ([0.02] * 9, 10, "better", (0.02, 0.02), 0.0390625),
        ([0.0] * 2, 10, "no difference seen", (0.0, 0.0), 1.0),
        ([0.02], 10, "too few seeds", (NAN, NAN), NAN),
    ],
)
def test_differences_without_spread(values, comparisons, verdict, interval, p_value):
    found = difference(values, comparisons=comparisons)
    assert (found.verdict, found.n, found.seeds_for_one_point) == (verdict, len(values), None)
    np.testing.assert_allclose([found.low, found.high, found.p_value], [*interval, p_value])
    assert_verdict_agrees(found)


def test_rounding_is_not_spread():
    a = dict(enumerate(np.float32([0.9, 0.8, 0.7]).tolist()))
    b = dict(enumerate(np.float32([0.8, 0.7, 0.6]).tolist()))
    assert len({a[seed] - b[seed] for seed in a}) > 1
    assert paired_difference(a, b, init="a", against="b", setting=Setting(500, 1.0)).verdict == "too few seeds"


def of_sd(sd, n=10):
    values = np.random.default_rng(n).normal(size=n)
    return sd * (values - values.mean()) / values.std(ddof=1)


@pytest.mark.parametrize(("sd", "seeds"), [(0.05, 199), (0.02, 34), (0.0125, 15), (0.01, 10)])
def test_seeds_for_one_point_as_in_power_tables(sd, seeds):
    """Paired t test, 5 % two-sided, power 80 %, effect sizes 0.2, 0.5, 0.8 and 1 (G*Power 3.1)."""
    assert difference(of_sd(sd)).seeds_for_one_point == seeds


@pytest.mark.parametrize(("sd", "comparisons"), [(0.02, 1), (0.02, 10), (0.006, 10)])
def test_seeds_for_one_point_have_the_power(sd, comparisons):
    seeds = difference(of_sd(sd), comparisons=comparisons).seeds_for_one_point
    powers = []
    for n in (seeds - 1, seeds):
        samples = np.random.default_rng(n).normal(0.01, sd, (20_000, n))
        p_values = stats.ttest_1samp(samples, 0, axis=1).pvalue
        powers.append(np.mean(comparisons * p_values < 0.05))
    assert 0.79 < powers[1] < 0.87
    assert powers[0] < 0.81


@pytest.mark.slow
def test_power_through_compare():
    """Planted: one point, with the seeds asked for at the true standard deviation of the differences."""
    seeds = difference(of_sd(0.01 * math.sqrt(2))).seeds_for_one_point
    rng, gains = np.random.default_rng(0), {HE: 0.0, "planted": 0.01}
    verdicts = [compare(table(simulated(rng, gains, seeds)))[0].verdict for _ in range(2000)]
    assert verdicts.count("better") / 2000 == pytest.approx(0.8, abs=0.04)


def pairs(found):
    return [(one.init, one.against) for one in found]


FLAT = [0.5, 0.51, 0.52]


def test_who_is_compared_with_whom():
    """Every init with the control made for it: a bare control is nfm's, options belong to both, in any order."""
    made = {
        "nfm": ISOTROPIC,
        "agop": f"{SPECTRUM}:agop",
        "nfm@lsuv": f"{SPECTRUM}@lsuv",
        "coupled_nfm@noise=0.5@mixed=1": f"{SPECTRUM}:coupled_nfm@mixed=1@noise=0.5",
    }
    without = ["he_nfm", "coupled_nfm", "coupled_nfm@mixed=1", "copy", "whitened", "lsuv", "agop@lsuv"]
    inits = [*made, *without, *made.values()]
    found = compare(table(dict.fromkeys([HE, *inits], FLAT)))
    assert pairs(found) == [*((init, HE) for init in inits), *made.items()]


def test_what_a_bare_control_is_made_for_is_what_it_draws_from():
    assert list(CONTROLS) == list(controls.CONTROLS)
    assert controls.CONTROLLED_BY_DEFAULT == CONTROLLED_BY_DEFAULT
    for name in (
        *CONTROLS,
        "matched_isotropic:he_agop",
        "matched_spectrum:coupled_nfm@mixed=1",
        "matched_spectrum@lsuv",
    ):
        drawn = get_method(name).matched
        assert drawn
        assert dataclasses.replace(get_method(controls.controlled(name)), description="") == (
            dataclasses.replace(drawn, description="")
        )


@pytest.mark.parametrize("suffix", ["", ":nfm"])
def test_control_is_chosen_on_validation_not_test(suffix):
    isotropic, spectrum = ISOTROPIC + suffix, SPECTRUM + suffix
    values = {"nfm": FLAT, isotropic: [0.9] * 3, spectrum: [0.1] * 3}
    validation = {"nfm": FLAT, isotropic: [0.1] * 3, spectrum: [0.2] * 3}
    assert pairs(compare(table(values, validation))) == [("nfm", spectrum)]


def test_families_are_counted_apart_and_by_setting():
    rng = np.random.default_rng(0)
    gains = dict.fromkeys([HE, "nfm", "agop", SPECTRUM], 0.0)
    rows = table(simulated(rng, gains, 5)) + table(simulated(rng, gains, 5), train_size=50, width=2.0)
    found = compare(rows)
    assert len(found) == 8
    for one in found:
        a, b = (
            np.array([row["test_accuracy"] for row in rows if (row["init"], row["width"]) == (name, one.width)])
            for name in (one.init, one.against)
        )
        expected = stats.ttest_rel(a, b).confidence_interval(1 - 0.05 / (3 if one.against == HE else 1))
        np.testing.assert_allclose([one.low, one.high], expected)


def test_single_seeds_do_not_dilute_the_others():
    rows = table({HE: [0.5, 0.51, 0.5], "nfm": [0.6, 0.63, 0.61], "agop": [0.7]})
    nfm, agop = compare(rows)
    np.testing.assert_allclose([nfm.low, nfm.high], stats.ttest_1samp([0.1, 0.12, 0.11], 0).confidence_interval())
    assert (agop.n, agop.verdict) == (1, "too few seeds")


def test_missing_baseline_controls_or_pairs_give_no_rows():
    assert compare(table({"nfm": FLAT, "agop": FLAT})) == []
    assert pairs(compare(table({HE: FLAT, "nfm": FLAT}))) == [("nfm", HE)]
    rows = table({HE: [0.5], "nfm": FLAT, SPECTRUM: [0.5]})
    unpaired = [row for row in rows if row["init"] != "nfm" or row["seed"] > 0]
    assert pairs(compare(unpaired)) == [(SPECTRUM, HE)]
    assert recovered_fraction(unpaired, reference=SPECTRUM) == []


@pytest.mark.parametrize("function", [compare, recovered_fraction])
def test_bad_rows_are_refused_by_name(function):
    rows = table({HE: FLAT, "copy": FLAT, "nfm": [0.5, 0.5, NAN]})
    with pytest.raises(UserError, match=r"'nfm', seed 2.*nan"):
        function(rows)
    with pytest.raises(UserError, match=r"'kaiming_normal', seed 0: two results"):
        function([*rows[:3], rows[0]])
    with pytest.raises(UserError, match="Did you mean 'test_accuracy'"):
        function(rows, metric="test_acuracy")


def test_recovered_fraction_by_hand():
    """The interval holds just those ratios r with 0 in the t interval of gain - r * whole."""
    he, copy, nfm = (
        np.array([0.5, 0.52, 0.49, 0.5]),
        np.array([0.7, 0.71, 0.7, 0.69]),
        np.array([0.55, 0.6, 0.53, 0.56]),
    )
    (found,) = recovered_fraction(table({HE: he, "copy": copy, "nfm": nfm}))
    assert (found.init, found.train_size, found.width, found.n) == ("nfm", 500, 1.0, 4)
    assert found.fraction == pytest.approx((0.56 - 0.5025) / (0.7 - 0.5025))
    for ratio in (found.low, found.high):
        assert stats.ttest_1samp(nfm - he - ratio * (copy - he), 0).pvalue == pytest.approx(0.05)
    assert found.low < found.fraction < found.high


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_a_planted_fraction(seeds):
    rng, gains = np.random.default_rng(seeds), {HE: 0.0, "copy": 0.3, "nfm": 0.12}
    found = [recovered_fraction(table(simulated(rng, gains, seeds)))[0] for _ in range(4000)]
    assert all(math.isfinite(one.fraction) for one in found)
    assert abs(np.mean([one.low <= 0.4 <= one.high for one in found]) - 0.95) < 0.015
    assert np.median([one.fraction for one in found]) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("copy", [[0.51, 0.49, 0.53], [0.4, 0.41, 0.42], [0.6, 0.61, 0.62]])
def test_no_fraction_of_a_gain_not_seen(copy):
    """Noise, a loss, and one that is the same on 3 seeds."""
    (found,) = recovered_fraction(table({HE: FLAT, "copy": copy, "nfm": [0.6, 0.6, 0.61]}))
    assert all(math.isnan(value) for value in (found.fraction, found.low, found.high))
    assert found.n == 3


def test_what_equals_the_copy_recovers_all_of_it():
    copy = [0.6, 0.62, 0.64]
    (found,) = recovered_fraction(table({HE: FLAT, "copy": copy, "nfm": copy}))
    np.testing.assert_allclose([found.fraction, found.low, found.high], 1, atol=1e-6)
    assert recovered_fraction(table({HE: FLAT, "nfm": copy})) == []


@pytest.mark.parametrize(
    ("curve", "target", "step"),
    [
        ([(0, 0.1), (100, 0.5), (200, 0.7)], 0.6, 150),
        ([(0, 0.1), (100, 0.5), (200, 0.7)], 0.7, 200),
        ([(0, 0.1), (100, 0.5), (200, 0.7)], 0.71, None),
        ([(0, 0.1), (100, 0.4)], 0.2, 34),  # 33.3 rounded up
        ([(0, 0.1), (100, 0.4)], 0.1, 0),
        ([(10, 0.3), (20, 0.4)], 0.2, 10),
        ([(0, 0.1), (1000, 0.7)], 0.28, 300),  # not 301: in floats it comes to 300.00000000000006
        ([(0, 0.1), (100, 0.5), (200, 0.3), (300, 0.9)], 0.5, 100),
        ([(0, 0.1), (100, NAN), (200, 0.5)], 0.3, 100),
        ([(0, NAN), (100, 0.5)], 0.3, 100),
        ([(0, 0.1), (100, 0.5)], NAN, None),
        ([], 0.5, None),
    ],
)
def test_steps_to_reach(curve, target, step):
    assert steps_to_reach(curve, target) == step


LOSSES = {
    HE: [2.0, 2.1, 1.9, 2.05],
    "copy": [1.0, 1.05, 0.92, 1.0],
    "nfm": [1.5, 1.6, 1.42, 1.55],
    "bad": [4.0, 4.3, 3.9, 4.1],
}


@pytest.mark.parametrize(("metric", "lower"), [("test_loss", True), ("seconds", True), ("images_per_second", False)])
def test_every_metric_has_a_direction(metric, lower):
    """A loss that is twice as large is worse, and a copy that halves it is a gain to be recovered."""
    rows = [{**row, metric: row["test_accuracy"]} for row in table(LOSSES)]
    verdicts = {one.init: (one.verdict, one.mean > 0) for one in compare(rows, metric=metric)}
    up, down = ("worse", "better") if lower else ("better", "worse")
    assert verdicts == {"copy": (down, False), "nfm": (down, False), "bad": (up, True)}
    reference = "copy" if lower else "bad"
    fractions = {one.init: one.fraction for one in recovered_fraction(rows, metric=metric, reference=reference)}
    he, nfm, best = 2.0125, 1.5175, {"copy": 0.9925, "bad": 4.075}[reference]
    assert fractions["nfm"] == pytest.approx((nfm - he) / (best - he), rel=1e-3)


def test_what_is_no_metric_is_refused():
    """A column that says how a recipient was made has no better or worse."""
    rows = [{**row, "learning_rate": 0.1} for row in table({HE: FLAT, "copy": FLAT})]
    with pytest.raises(UserError, match="unknown metric 'learning_rate'.*Known: .*test_accuracy, test_loss"):
        compare(rows, metric="learning_rate")

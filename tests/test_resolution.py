"""What a test set cannot tell: margins below one image, starts at the ceiling, intervals beyond 0 and 1."""

import json
import re

import numpy as np
import pytest
from test_report import Tags, read_summary, recipient, short_run, write_minimal

from agop_jax import compare
from agop_jax.core import files
from agop_jax.core.errors import UserError
from agop_jax.results import resolution, statistics, verdicts
from agop_jax.results.page import write_report
from agop_jax.results.summary_words import setting_name
from agop_jax.results.tables import Setting

HE = "kaiming_normal"


def difference(a, b, images=0, **options):
    rule = verdicts.Rule(resolution=1 / images if images else 0.0)
    pair = [dict(enumerate(values)) for values in (a, b)]
    return verdicts.paired_difference(*pair, init="a", against="b", setting=Setting(50, 1.0), rule=rule, **options)


@pytest.mark.parametrize(("images", "told"), [(0, True), (36, False), (99, False), (100, True), (10_000, True)])
def test_no_equivalence_and_no_seeds_below_one_image(images, told):
    """The margin and the difference that seeds are asked for are one point; one of 100 images is just that."""
    found = difference([0.5, 0.601, 0.7], [0.5, 0.6, 0.701], images)
    assert found.equivalence == ("equivalent" if told else "")
    assert (found.seeds_for_one_point is not None) == told
    assert found.verdict == "no difference seen"


@pytest.mark.parametrize(
    ("a", "b", "equivalence"),
    [
        ([1.0] * 6, [1.0] * 6, ""),
        ([0.0] * 6, [0.0] * 6, ""),
        ([1.0] * 9, [0.995] * 9, ""),  # 'better' by the sign test, within the margin, and no spread seen
        ([0.7, 0.8, 0.9], [0.7, 0.8, 0.9], "equivalent"),  # the seeds differ, the inits never do
    ],
)
def test_accuracies_that_no_seed_changes_are_not_equivalent(a, b, equivalence):
    assert difference(a, b, 10_000).equivalence == equivalence


def test_other_rows_lend_no_variance_to_a_ceiling():
    """Moderated by six rows that differ, the interval of a row at the ceiling has a width, but no evidence."""
    rng, seeds = np.random.default_rng(0), range(5)
    values = {HE: [1.0] * 5, "full": [1.0] * 5}
    values |= {f"init_{i}": (1 - rng.uniform(0, 0.001, 5)).tolist() for i in range(6)}
    rows = [
        {"init": init, "seed": s, "train_size": 50, "width": 1.0, "test_accuracy": own[s], "validation_accuracy": 1.0}
        for init, own in values.items()
        for s in seeds
    ]
    found = {one.init: one for one in statistics.compare(rows, resolution=1e-4)}
    assert found["full"].high > found["full"].low
    assert found["full"].equivalence == ""
    assert found["init_0"].equivalence == "equivalent"


def test_a_resolution_below_zero_is_refused():
    with pytest.raises(UserError, match="resolution: wanted a number from 0 on, got -1.0"):
        verdicts.Rule(resolution=-1.0)


def run(path, accuracies, images, train_sizes=(50,)):
    """A work directory of these accuracies by init and seed, with a test set of so many images; 0: unknown."""
    rows = [
        recipient(init, seed) | {"test_accuracy": value, "train_size": size}
        for size in train_sizes
        for init, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    write_minimal(path, rows)
    if images:
        splits = {"train": 115, "validation": 29, "test": images}
        files.atomic_write_text(path / "data.json", json.dumps({"name": "shapes", "images": splits}))
    return write_report(path, str)


def words(path):
    page = (path / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\s+", " ", "".join(Tags(page).text))


FULL = {HE: [1.0] * 3, "nfm": [1.0] * 3, "copy": [1.0, 35 / 36, 35 / 36]}
EASY = "This task cannot tell these starts apart"


def test_at_the_ceiling_nothing_is_told_and_ties_are_named(tmp_path):
    table, page = run(tmp_path, FULL, 36), words(tmp_path)
    assert "Best: kaiming_normal, nfm (2 tie), 100.0 % of the test set in the mean of 3 seeds" in table
    assert f"3 of 3 initialisations get every test image right, or all but one. {EASY}" in table
    assert page.index(EASY) < page.index("3 initialisations were trained")
    assert "The test set has 36 images, so one is 2.8 points." in page
    assert not [
        wrong
        for wrong in ("Equivalent to He", "No worse than He", "±0.0", "± 0.0", "+0.0 to +0.0", "To see one point")
        if wrong in page
    ]
    summary = read_summary(tmp_path)
    assert {row["he_equivalence"] for row in summary.values()} == {""}
    assert summary["copy", 50, 1.0]["seeds_for_one_point"] == ""


def test_of_an_unknown_test_set_only_what_is_all_right_is_at_the_ceiling(tmp_path):
    run(tmp_path, FULL, 0)
    assert f"2 of 3 initialisations get every test image right. {EASY}" in words(tmp_path)
    assert "The test set has" not in words(tmp_path)


def test_a_coarse_test_set_off_the_ceiling(tmp_path):
    """30 to 33 of 36 images: differences are bounded, and no number of seeds makes an image smaller."""
    run(tmp_path, {HE: [30 / 36, 31 / 36, 33 / 36], "nfm": [31 / 36, 31 / 36, 30 / 36]}, 36)
    page = words(tmp_path)
    assert EASY not in page
    assert "That is more than the margin of 1 point, so no start is called equivalent or no worse." in page
    assert "To see one point takes more test images: more seeds would not do." in page
    assert "seeds an init" not in page


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_accuracies_that_are_all_one_number_are_no_evidence(tmp_path, level):
    """Nothing right, and one class of two for all images."""
    table = run(tmp_path, {HE: [level] * 3, "nfm": [level] * 3}, 1000)
    assert read_summary(tmp_path)["nfm", 50, 1.0]["he_equivalence"] == ""
    assert "±0.0" not in words(tmp_path)
    assert "better" not in table


@pytest.mark.parametrize("images", [1, 2, 0])
def test_tiny_test_sets(tmp_path, images):
    """One wrong image of one or two is far from the ceiling."""
    run(tmp_path, {HE: [1.0, 0.0, 1.0], "nfm": [1.0, 1.0, 0.0], "copy": [1.0, 1.0, 1.0]}, images)
    assert EASY not in words(tmp_path)
    assert (f"The test set has {images} image" in words(tmp_path)) == bool(images)


def test_an_interval_of_an_accuracy_stays_between_0_and_1(tmp_path):
    """t of two degrees of freedom: 4.303 * 0.01604 / sqrt(3) is 4 points beyond 98.1 %."""
    table = run(tmp_path, FULL | {"lsuv": [0.0, 0.0, 1 / 36], "agop": [0.4, 0.5, 0.6]}, 36)
    summary = {init: row for (init, *_), row in read_summary(tmp_path).items()}
    ends = [float(row[end]) for row in summary.values() for end in ("low", "high")]
    assert (min(ends), max(ends)) == (0, 1)
    assert (float(summary["copy"]["high"]), float(summary["lsuv"]["low"])) == (1, 0)
    low = 100 * float(summary["copy"]["low"])
    assert f"98.1 {low:.1f} to 100.0" in table
    assert re.search(r"agop +50\.0 ± 24\.8", table)  # 4.303 * 10 / sqrt(3)
    assert re.search(r"nfm +100\.0 in each seed", table)
    assert f"98.1 {low:.1f} to 100.0" in words(tmp_path)


def test_several_settings_say_where_the_ceiling_is(tmp_path):
    run(tmp_path, FULL, 36, train_sizes=(50, 100))
    short = words(tmp_path).partition("In short")[2]
    settings = [setting_name(Setting(size, 1.0, 250)) for size in (50, 100)]
    assert f"At the ceiling: {'; '.join(settings)}." in short
    assert "The test set has 36 images" in short.partition("Test accuracy after")[0]


def test_the_comparison_knows_the_test_set(tmp_path):
    easy = {HE: [1.0] * 3, "lsuv": [1.0, 1.0, 35 / 36], "nfm": [1.0, 1.0, 1.0]}
    for name, images in (("coarse", 36), ("unknown", 0)):
        run(tmp_path / name, {init: [x * 0.7 for x in own] for init, own in easy.items()}, images)
    run(tmp_path / "easy", easy, 36)
    page = compare.compare([str(tmp_path / name) for name in ("coarse", "unknown", "easy")], str(tmp_path / "out"))
    text = re.sub(r"\s+", " ", "".join(Tags(page.read_text(encoding="utf-8")).text))
    assert "Most starts are at the ceiling, so that the task cannot tell them apart: easy" in text
    assert "± 0.0" not in text


@pytest.mark.parametrize(("images", "accuracy", "full"), [(36, 35 / 36, True), (36, 34 / 36, False), (0, 0.999, False)])
def test_within_one_image_of_the_ceiling(tmp_path, images, accuracy, full):
    run(tmp_path, {HE: [accuracy] * 2, "nfm": [accuracy] * 2}, images)
    assert (EASY in words(tmp_path)) == full


def test_size_in_points():
    assert [resolution.size_in_points(x) for x in (1.0, 1 / 36, 1 / 359, 1e-4)] == ["100.0", "2.8", "0.28", "0.01"]


def test_chance_is_not_that_of_copies(tmp_path):
    """Three of four inits start at 97 % and end at 98 %, where no more is to be gained: they train all the same."""
    ends = {HE: 0.5, "copy": 0.98, "coupled_nfm": 0.98, "he_nfm": 0.98}
    table = short_run(tmp_path, ends, starts={init: 0.97 for init in ends if init != HE})
    assert "does not train" not in table
    assert "too short to tell" not in table

"""Several work directories on one page: statistics against their definitions, names, refusals, the page's files."""

import csv
import itertools
import json
import math
import re

import numpy as np
import pytest
from scipy import stats
from test_report import Tags

from agop_jax import compare
from agop_jax.core import files
from agop_jax.experiments.experiment import run
from agop_jax.experiments.sections import DonorConfig, ModelConfig, RecipientConfig
from agop_jax.experiments.settings import Config
from agop_jax.initializers.registry import donor_free
from agop_jax.results import setting_names, tables
from agop_jax.results.bootstrap import Task, common_inits, improvement_probability, mean_ranks
from agop_jax.results.tables import Setting
from agop_jax.training import Settings

HE = "kaiming_normal"
HALF = "resnet20 \N{MULTIPLICATION SIGN} 0.5"
GAINS = {HE: 0.0, "lsuv": 0.02, "copy": 0.12, "whitened": 0.08, "nfm": -0.04}


def result(init, seed, accuracy, **changes):
    row = dict.fromkeys(tables.RESULT_COLUMNS, 0.3)
    row |= {"init": init, "seed": seed, "train_size": 500, "width": 1.0, "test_accuracy": accuracy}
    return row | {"validation_accuracy": accuracy, "steps": 250, "diverged": 0, "donor": 0, "budget": 250} | changes


def recipients(inits=GAINS, donors=(0,), seeds=4, level=0.4, **changes):
    """Rows whose differences from He are the gains, up to half a point that differs by seed and init."""
    rows = []
    for init, donor, seed in itertools.product(inits, donors, range(seeds)):
        own = seed if donor == 0 else 1000 * (donor + 1) + seed
        noise = 0.01 * math.sin(3 * own) + 0.005 * math.sin(own + sum(map(ord, init)))
        accuracy = level + GAINS[init] + noise + 0.01 * donor * (init == "copy")
        rows.append(result(init, own, accuracy, donor=donor, **changes))
    return rows


def write_run(path, rows, config=None):
    config = config or Config(train=Settings(steps=250))
    files.write_rows(path / "results.csv", rows)
    files.atomic_write_text(path / "config.json", json.dumps(config.to_dict()))
    return path


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Three runs: two donors; four times the steps; another network that lacks an init."""
    path = tmp_path_factory.mktemp("compared")
    longer, resnet = Settings(steps=1000), ModelConfig("resnet20", {"width": 0.5})
    write_run(path / "short", recipients(donors=(0, 1)))
    write_run(path / "long", recipients(level=0.5, budget=1000), Config(train=longer))
    rows = recipients([HE, "lsuv", "copy", "nfm"])
    write_run(path / "resnet", rows, Config(model=resnet, train=Settings(steps=250)))
    runs = [str(path / name) for name in ("short", "long", "resnet")]
    return compare.compare(runs, str(path / "out")).parent


def read(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


# --- statistics -------------------------------------------------------------------------------------------------------


def mann_whitney(x, y):
    """U over n m, from SciPy, which counts ties as a half."""
    return stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))


def test_probability_of_improvement_is_the_mean_of_mann_whitneys_u():
    rng = np.random.default_rng(0)
    blocks = [
        rng.integers(0, 6, (2, seeds)).astype(float).tolist() for seeds in (3, 5, 4)
    ]  # whole numbers, so that some are equal
    tasks = [Task({"x": dict(enumerate(x)), "y": dict(enumerate(y))}) for x, y in blocks]
    found = improvement_probability(tasks, "x", "y")
    assert found.mean == pytest.approx(np.mean([mann_whitney(x, y) for x, y in blocks]))
    assert found.n == 3
    assert found.low < found.mean < found.high
    other = improvement_probability(tasks, "y", "x")
    assert [1 - other.high, 1 - other.mean, 1 - other.low] == pytest.approx([found.low, found.mean, found.high])


def test_recipients_of_one_donor_are_compared_among_themselves():
    """Donor 1 is better for both: over all pairs x would win 3 of 4 times, within donors always."""
    task = Task({"x": {0: 0.2, 1: 0.6}, "y": {0: 0.1, 1: 0.5}}, {0: 0, 1: 1})
    assert improvement_probability([task], "x", "y").mean == 1
    assert improvement_probability([Task(task.values)], "x", "y").mean == 0.75


def test_settings_and_seeds_without_a_pair_do_not_count():
    tasks = [
        Task({"x": {0: 0.3, 1: 0.4}, "y": {1: 0.2, 2: 0.9}}),
        Task({"x": {0: 0.1}}),
        Task({"x": {0: 1.0}, "y": {1: 0.0}}),
    ]
    found = improvement_probability(tasks, "x", "y")
    assert (found.mean, found.n) == (1, 1)
    assert math.isnan(found.low)
    assert improvement_probability(tasks[1:], "x", "y") is None


def test_mean_ranks_by_hand():
    """Means .5, .4, .4 and .1, .3, .2: ranks 1, 2.5, 2.5 and 3, 1, 2."""
    tasks = [
        Task({"a": {0: 0.4, 1: 0.6}, "b": {0: 0.4, 1: 0.4}, "c": {0: 0.3, 1: 0.5}}),
        Task({"b": {7: 0.3}, "a": {7: 0.1, 8: 0.9}, "c": {7: 0.2}, "d": {7: 0.0}}),
    ]
    inits = common_inits(tasks)
    assert inits == ["a", "b", "c"]
    ranks = mean_ranks(tasks, inits)
    assert [ranks[init].mean for init in inits] == [2, 1.75, 2.25]
    assert all(rank.low <= rank.mean <= rank.high for rank in ranks.values())
    assert mean_ranks([Task({"a": {0: 1.0}, "b": {1: 1.0}})], ["a", "b"]) == {}


def coverage(settings, donors, seeds, gap, repeats):
    """How often the interval holds the true probability, with a part that all inits of a seed share.

    Two recipients of one seed differ by a normal number of variance 2, of two seeds by one of variance 4.
    """
    rng, count = np.random.default_rng(settings), donors * seeds
    truth = (stats.norm.cdf(gap / math.sqrt(2)) + (seeds - 1) * stats.norm.cdf(gap / 2)) / seeds
    held = 0
    for _ in range(repeats):
        values = rng.normal(size=(settings, 3, count))
        x, y = gap + values[:, 0] + values[:, 2], values[:, 1] + values[:, 2]
        of_seed = {seed: seed // seeds for seed in range(count)}
        tasks = [Task({"x": dict(enumerate(a)), "y": dict(enumerate(b))}, of_seed) for a, b in zip(x, y, strict=True)]
        found = improvement_probability(tasks, "x", "y", resamples=400)
        held += found.low <= truth <= found.high
    return held / repeats


def test_coverage_of_the_bootstrap():
    """Three standard errors below what 2,000 experiments gave."""
    assert coverage(settings=4, donors=1, seeds=5, gap=1, repeats=200) >= 0.94 - 3 * math.sqrt(0.94 * 0.06 / 200)


@pytest.mark.long
@pytest.mark.parametrize("gap", [0, 1, 2])
@pytest.mark.parametrize("donors", [1, 3])
@pytest.mark.parametrize("settings", [3, 6, 10])
def test_coverage_in_full(settings, donors, gap):
    """What `docs/statistics.md` states."""
    held = coverage(settings, donors, 5, gap, 2000)
    print(f"{settings} settings, {donors} donors, gap {gap}: {held:.3f}")
    assert held >= 0.88


# --- names ------------------------------------------------------------------------------------------------------------


def names(*configs, sizes=None, budgets=None):
    sizes, budgets = sizes or [500] * len(configs), budgets or [250] * len(configs)
    each = zip(configs, sizes, budgets, strict=True)
    facts = [setting_names.facts(config.to_dict(), Setting(size, 1.0, budget)) for config, size, budget in each]
    return setting_names.names(facts, [f"run{i}" for i in range(len(configs))])


def test_a_name_says_what_differs_and_nothing_else():
    plain = Config()
    resnet = Config(model=ModelConfig("resnet20", {"width": 0.5}))
    assert names(plain, resnet) == ["small_cnn", HALF]
    assert names(plain, plain, sizes=[500, 2000]) == ["n = 500", "n = 2,000"]
    assert names(plain, plain, budgets=[250, 1000]) == ["250 steps", "1,000 steps"]
    adamw = Config(train=Settings(steps=250, optimizer="adamw", batch_size=32))
    assert names(Config(train=Settings(steps=250)), adamw) == ["sgd, batch_size 64", "adamw, batch_size 32"]
    decay = Config(train=Settings(steps=250, optimizer="adamw", weight_decay=0.01))
    assert names(Config(train=Settings(steps=250)), decay) == ["sgd", "adamw (decay 0.01)"]
    other = Config(donor=DonorConfig(data="npz:/data/cifar100.npz", train=Settings(steps=40)))
    assert names(plain, other) == ["digits, donor 400 steps", "cifar100 → digits, donor 40 steps"]
    control = Config(donor=DonorConfig(random_labels=True))
    assert names(plain, control) == ["donor 400 steps", "donor 400 steps on random labels"]
    more = Config(question="Why?", recipients=RecipientConfig(seeds=9, learning_rates=(0.1, 0.2)))
    assert names(plain, more) == ["run0", "run1"]  # which results are there is no other setting


def test_names_of_one_setting_are_those_of_the_runs():
    plain, resnet = Config(), Config(model=ModelConfig("resnet20"))
    assert names(plain, plain, resnet) == ["small_cnn (run0)", "small_cnn (run1)", "resnet20"]


def test_a_field_that_an_older_config_lacks_is_no_difference():
    old = Config().to_dict()
    del old["rfm"], old["features"]["num_images"]
    facts = [setting_names.facts(config, Setting(500, 1.0, 250)) for config in (old, Config(seed=1).to_dict())]
    assert setting_names.names(facts, ["a", "b"]) == ["seed 0", "seed 1"]


# --- the page and its tables ------------------------------------------------------------------------------------------


def test_the_tables_hold_the_numbers(compared):
    cells = {(row["run"], row["init"]): row for row in read(compared / "comparison.csv")}
    assert len(cells) == 14
    for gain, row in ((GAINS[init], row) for (name, init), row in cells.items() if name == "long" and init != HE):
        assert float(row["he_difference"]) == pytest.approx(gain, abs=0.011)
        assert row["lsuv_difference"] == "" or float(row["lsuv_difference"]) == pytest.approx(gain - 0.02, abs=0.011)
    assert cells["short", "copy"]["donors"] == "2"
    assert {row["budget_steps"] for row in cells.values()} == {"250", "1000"}
    assert cells["resnet", "copy"]["model"] == HALF
    rows = recipients(["copy", "whitened", "lsuv"], seeds=4, level=0.5)
    copy, whitened, lsuv = np.reshape([row["test_accuracy"] for row in rows], (3, 4)).mean(axis=1)
    part = (whitened - lsuv) / (copy - lsuv)
    assert float(cells["long", "whitened"]["copy_recovered"]) == pytest.approx(part)


def test_over_all_settings(compared):
    rows = {row["init"]: row for row in read(compared / "overall.csv")}
    assert [rows[init]["settings"] for init in ("copy", "whitened")] == ["3", "2"]
    assert float(rows["copy"]["over_lsuv"]) == 1
    assert float(rows["copy"]["rank"]) == 1
    assert rows["whitened"]["rank"] == rows[HE]["over_he"] == rows["lsuv"]["over_lsuv"] == ""
    assert float(rows["nfm"]["rank"]) == 4  # of those that all settings have


def test_donors_are_told_apart(compared):
    rows = [row for row in read(compared / "donors.csv") if row["init"] == "copy"]
    assert {row["run"] for row in rows} == {"short"}
    first, second = (float(row["he_difference"]) for row in rows)
    assert second - first == pytest.approx(0.01, abs=0.005)


def test_the_page_stands_alone(compared):
    page = (compared / "comparison.html").read_text(encoding="utf-8")
    tags = Tags(page).found
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe", "object")]
    sources = [attributes["src"] for _, attributes in tags if "src" in attributes]
    assert len(sources) == 3
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import", page)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {path.stem for path in (compared / "figures").glob("*.png")} == {"matrix", "over_settings", "budget_0"}
    text = " ".join(" ".join(Tags(page).text).split())
    assert "Better than He in every setting that has both: copy (3)" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Against the budget" in text
    assert "Between donors" in text


def test_one_run_without_lsuv_or_copy(tmp_path):
    write_run(tmp_path / "one", recipients([HE, "nfm"], seeds=1))
    page = compare.compare([str(tmp_path / "one")], str(tmp_path / "out")).read_text(encoding="utf-8")
    assert "1 setting of 1 run" in page
    assert not (tmp_path / "out" / "donors.csv").exists()


def test_a_method_of_ones_own_may_use_a_donor():
    assert donor_free([HE, "lsuv", "whitened", "copy", "nobody_knows_me"]) == {HE, "lsuv", "whitened"}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["nowhere"], "no such directory"),
        (["folder"], "no work directory"),
        (["young"], "has no results yet"),
        (["good", "bare"], "no recipient of 'kaiming_normal'"),
        (["good", "partly"], "no recipient of 'kaiming_normal'"),
        (["good", "good/"], "is there 2 times"),
        (["good", "--out=good"], "is a work directory"),
        (["good", "--out=file"], "is a file"),
        (["good", "--what"], "unrecognized arguments"),
        ([], "required"),
    ],
)
def test_refused_in_one_line_before_anything_is_written(tmp_path, monkeypatch, capsys, runs, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "good", recipients([HE, "nfm"]))
    write_run(tmp_path / "bare", recipients(["lsuv", "nfm"]))
    write_run(tmp_path / "partly", recipients([HE, "nfm"]) + recipients(["nfm"], train_size=900))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    files.atomic_write_text(tmp_path / "young" / "config.json", json.dumps(Config().to_dict()))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        compare.main(runs)
    line = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in line
    assert line.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        write_run(tmp_path / folder / "run", recipients([HE, "nfm"]))
    compare.compare([str(tmp_path / folder / "run") for folder in ("a", "b")], str(tmp_path / "out"))
    assert {row["run"] for row in read(tmp_path / "out" / "comparison.csv")} == {"a/run", "b/run"}


@pytest.mark.long
def test_two_runs_of_the_digits_job(tmp_path):
    """As the program itself leaves them."""
    from test_configs import CONFIGS
    from test_configs import read as read_config

    for steps in (10, 20):
        config = read_config(CONFIGS[0].with_name("digits.py"), "quick")
        config.train.steps, config.ansatz.draws, config.pictures.enabled = steps, 0, False
        run(config, tmp_path / f"digits_{steps}")
    runs = [str(tmp_path / f"digits_{steps}") for steps in (10, 20)]
    compare.compare(runs, str(tmp_path / "out"))
    rows = read(tmp_path / "out" / "comparison.csv")
    assert {row["setting"] for row in rows} == {"10 steps", "20 steps"}
    assert {row["init"] for row in rows} == {HE, "he_nfm", "matched_isotropic"}

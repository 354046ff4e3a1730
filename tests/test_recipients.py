"""The comparison runner: pairing, the choice of learning rates, compilations."""

import csv

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax import data, models
from agop_jax.core import files, trees
from agop_jax.core.errors import UserError
from agop_jax.data import Pipeline
from agop_jax.experiments import donors, recipients, tuning
from agop_jax.experiments.config import experiment_config
from agop_jax.experiments.outlines import kernel_shapes
from agop_jax.experiments.settings import Config
from agop_jax.experiments.sweep import Sweep
from agop_jax.experiments.sweep_tables import Cell, SweepTables
from agop_jax.initializers import model
from agop_jax.results import tables
from agop_jax.results.tables import Setting
from agop_jax.training import Settings, Trainer

TWELVE = (
    "kaiming_normal",
    "default",
    "orthogonal",
    "lsuv",
    "nfm",
    "agop",
    "he_nfm@lsuv",
    "matched_isotropic",
    "spatial",
    "first_layer_nfm",
    "coupled_nfm",
    "copy",
)


@pytest.fixture(scope="module")
def make_sweep(tmp_path_factory):
    """Sweeps over tiny recipients of one untrained donor, each in a new directory."""
    config = experiment_config()
    config.model.features = (4, 6)
    config.features.num_images, config.recipients.num_images = 32, 64
    config.train.steps = 4
    dataset = data.load("digits", validation=0.2)
    untrained = donors.untrained_donor(Config.of(config), dataset)
    donor = donors.donor_network(Config.of(config), dataset, untrained, tmp_path_factory.mktemp("donor") / "features")

    def make(steps=4, path=None, **fields) -> Sweep:
        changed = config.copy_and_resolve_references()
        changed.train.steps = steps
        changed.recipients.update(fields)
        path = path or tmp_path_factory.mktemp("sweep")
        return Sweep(path, Config.of(changed), dataset, {0: {"trained": donor, "untrained": donor}})

    return make


def start(sweep: Sweep, cell: Cell, seed: int):
    return recipients.start(sweep.comparison, cell, seed, sweep.places[0].trainer(cell))


@pytest.mark.slow
def test_twelve_inits_times_five_seeds_compile_the_training_step_once(make_sweep):
    sweep = make_sweep(inits=TWELVE, seeds=5)
    sweep.run()
    assert len(sweep.tables.results) == 60
    assert sweep.places[0].trainers[1.0, 4].traces == 1  # compiled ahead of time, once for each trace


def test_recipients_of_one_seed_differ_in_the_selected_layers_only(make_sweep):
    sweep = make_sweep(inits=("kaiming_normal", "nfm", "coupled_nfm"), seeds=2)
    starts = {cell.init: trees.flatten(start(sweep, cell, 1).variables["params"]) for cell in sweep.cells}
    he = starts["kaiming_normal"]
    for init in ("nfm", "coupled_nfm"):
        for path, leaf in starts[init].items():
            same = np.array_equal(leaf, he[path])
            drawn = "kernel" in path or init == "coupled_nfm"  # which has the donor's biases, mixed like its filters
            assert same == (not (path.startswith("Conv_") and drawn)), (init, path)
    other = trees.flatten(start(sweep, sweep.cells[0], 0).variables["params"])
    assert not np.array_equal(other["Dense_0/kernel"], he["Dense_0/kernel"])


def test_draws_that_look_at_examples_are_kept_until_their_recipient_is_done(make_sweep, monkeypatch):
    """One draw for the check before training, a grid of two rates, and a result; a damaged file is drawn anew."""
    calls = []
    monkeypatch.setattr(
        recipients, "initialization", lambda *a, **o: calls.append(a[4]) or model.initialization(*a, **o)
    )
    sweep = make_sweep(inits=("lsuv", "kaiming_normal"), seeds=1, learning_rates=(0.01, 0.05))
    cell, path = sweep.cells[0], next((sweep.comparison.workdir / "draws").iterdir())
    first = start(sweep, cell, 0)
    assert calls.count("lsuv") == 1
    path.write_bytes(b"damaged")
    jax.tree.map(np.testing.assert_array_equal, first.variables, start(sweep, cell, 0).variables)
    assert calls.count("lsuv") == 2
    sweep.run()
    assert calls.count("lsuv") == 2
    assert not path.exists()


def test_learning_rate_is_the_best_on_validation_and_the_test_set_is_read_after(make_sweep, monkeypatch):
    sweep = make_sweep(inits=("kaiming_normal",), seeds=3, tuning_seeds=2, learning_rates=(0.001, 0.05, 1e9))
    trainer, read = sweep.places[0].trainers[1.0, 4], []
    evaluate = trainer.evaluate
    monkeypatch.setattr(
        trainer,
        "evaluate",
        lambda v, split, *n: read.append(split is sweep.places[0].data.test) or evaluate(v, split, *n),
    )
    sweep.run()
    assert len(sweep.tables.rates) == 6
    means = {
        rate: np.mean([row["validation_accuracy"] for row in sweep.tables.rates if row["learning_rate"] == rate])
        for rate in (0.001, 0.05, 1e9)
    }
    chosen = {row["learning_rate"] for row in sweep.tables.rates if row["chosen"]}
    assert chosen == {max(means, key=means.get)}
    assert {row["learning_rate"] for row in sweep.tables.results} == chosen
    assert sum(read) == 3  # once a recipient


@pytest.mark.parametrize(
    ("rates", "best", "outer"),
    [
        ((0.1, 0.02, 0.05), 0.1, 0.2),
        ((0.1, 0.02, 0.05), 0.02, 0.008),
        ((0.1, 0.02, 0.05), 0.05, None),
        ((0.3, 0.1), 0.3, 0.9),
        ((0.1, 0.3), 0.1, 0.0333),
    ],
)
def test_outer_rate_goes_on_by_the_ratio_of_the_last_two(rates, best, outer):
    assert tuning.outer_rate(rates, best) == outer


def test_grid_of_rates_grows_beyond_the_end_where_the_best_lies(make_sweep, monkeypatch):
    """Validation accuracy is 1 - |rate - 0.9|: rates of 0.1 and 0.3 lead to 0.9, and 2.7 shows that it is best."""
    rows = SweepTables.add_rate

    def add_rate(tables, cell, rate, seed, last):
        rows(tables, cell, rate, seed, {**last, "validation_accuracy": 1 - abs(rate - 0.9)})

    monkeypatch.setattr(SweepTables, "add_rate", add_rate)
    options = {"inits": ("kaiming_normal",), "seeds": 2, "tuning_seeds": 2, "learning_rates": (0.1, 0.3)}
    sweep = make_sweep(**options, outer_rates=5)
    sweep.run()
    assert [(row["learning_rate"], row["seed"]) for row in sweep.tables.rates] == [
        (rate, seed) for seed in (0, 1) for rate in (0.1, 0.3, 0.9, 2.7)
    ]
    assert {row["learning_rate"] for row in sweep.tables.rates if row["chosen"]} == {0.9}
    assert [row["learning_rate"] for row in sweep.tables.results] == [0.9, 0.9]
    bounded = make_sweep(**options, outer_rates=1)  # another directory
    bounded.run()
    assert sorted({row["learning_rate"] for row in bounded.tables.rates}) == [0.1, 0.3, 0.9]


def test_sweep_that_was_stopped_goes_on_with_the_outer_rates_it_has_tried(make_sweep, monkeypatch):
    options = {"inits": ("kaiming_normal",), "seeds": 1, "learning_rates": (0.01, 0.05), "outer_rates": 2}
    sweep = make_sweep(**options)
    sweep.run()
    tried, chosen = sweep.tables.rates_tried(sweep.cells[0]), sweep.tables.results[0]["learning_rate"]
    sweep.tables.results.clear()
    sweep.run()
    assert sweep.tables.rates_tried(sweep.cells[0]) == tried
    assert len(sweep.tables.rates) == len(tried)  # none twice
    assert sweep.tables.results[0]["learning_rate"] == chosen


def test_a_run_of_the_grid_is_the_same_when_trained_again(make_sweep):
    """What lets the grid's runs at the chosen rate be reused: a sweep that was stopped in between trains them anew."""
    sweep = make_sweep(inits=("nfm",), seeds=1, learning_rates=(0.01, 0.05))
    sweep.run()
    again = make_sweep(inits=("nfm",), seeds=1, learning_rates=(sweep.tables.results[0]["learning_rate"],))
    again.run()
    for name in ("test_accuracy", "test_loss", "validation_loss", "train_loss"):
        assert again.tables.results[0][name] == sweep.tables.results[0][name]


def test_recipient_that_starts_from_nan_is_a_row_that_says_so(make_sweep, monkeypatch):
    sweep = make_sweep(inits=("kaiming_normal",), seeds=1)
    healthy = start(sweep, sweep.cells[0], 0)
    broken = healthy._replace(variables=jax.tree.map(lambda leaf: leaf * np.nan, healthy.variables))
    monkeypatch.setattr(recipients, "start", lambda *arguments: broken)
    sweep.run()
    (row,) = sweep.tables.results
    assert (row["diverged"], row["steps"], row["test_accuracy"], row["images_per_second"]) == (1, 0, 0.0, 0.0)


def test_sizes_and_widths(make_sweep):
    sweep = make_sweep(inits=("kaiming_normal",), seeds=1, train_sizes=(0, 100), widths=(1.0, 2.0))
    everything = len(sweep.comparison.dataset.train.labels)
    settings = [Setting(size, width, 4) for size in (everything, 100) for width in (1.0, 2.0)]
    assert sweep.cells == [Cell("kaiming_normal", setting) for setting in settings]
    sweep.run()
    kernels = [start(sweep, cell, 0).variables["params"]["Conv_1"]["kernel"].shape for cell in sweep.cells]
    assert kernels == [(3, 3, 4, 6), (3, 3, 8, 12)] * 2
    assert len({(row["train_size"], row["width"]) for row in sweep.tables.results}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inits": ("kaiming_normal", "he_nmf")}, "unknown init 'he_nmf'.*Did you mean 'he_nfm'"),
        ({"layers": "conv.*"}, "matches no layer. Layers: Conv_0, Conv_1, Dense_0"),
        (
            {"inits": ("copy",), "widths": (2.0,)},
            "layer 'Conv_0': .*'copy' needs the same; 'copy_spaced'",
        ),
        ({"inits": ("nfm",), "widths": (2.0,)}, r"layer 'Conv_1': the donor's kernel is \(3, 3, 4, 6\)"),
        ({"train_sizes": (10**6,)}, "train_size: wanted 1 to 1150"),
        ({"seeds": 0}, "seeds >= 1"),
        ({"tuning_seeds": 9}, "tuning_seeds <= seeds"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_trained(change, message, make_sweep):
    with pytest.raises(UserError, match=message):
        make_sweep(**{"inits": ("kaiming_normal",), **change})


def test_head_may_be_selected_too(make_sweep):
    sweep = make_sweep(inits=("he_nfm",), layers=".*", seeds=1)
    drawn = start(sweep, sweep.cells[0], 0).variables["params"]["Dense_0"]["kernel"]
    assert float((drawn**2).sum()) / 10 == pytest.approx(2, rel=0.6)  # E|w|^2 = 2 over 10 filters of 6 weights
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(np.isfinite(leaf).all()), drawn))


@pytest.mark.parametrize(
    ("name", "first", "channels"), [("resnet20", "Conv_0", 16), ("resnet18", "Conv_0", 64), ("vit_tiny", "Conv_0", 192)]
)
def test_the_first_filters_are_those_of_the_first_call(name, first, channels):
    """Of a ResNet, whose blocks come before its stem by name."""
    dataset = data.load("digits")
    trainer = Trainer(models.create(name, 10), Pipeline.of(dataset, rgb=True, resize=32), Settings(steps=1))
    shapes = kernel_shapes(trainer.model, trainer.pipeline, (8, 8, 1))
    assert next(iter(shapes)) == first
    fresh = jax.eval_shape(lambda: models.own_variables(trainer.model, jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), fresh)
    variables["params"][first]["kernel"] *= 0
    filters = recipients.first_filters(trainer, dataset, variables)
    assert filters.shape[-2:] == (3, channels)
    assert (filters == 0).all()


def test_a_network_without_convolutions_has_no_first_filters():
    class Perceptron(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(x.reshape(len(x), -1))

    dataset = data.load("digits")
    trainer = Trainer(Perceptron(), Pipeline.of(dataset), Settings(steps=1))
    assert (
        recipients.first_filters(
            trainer, dataset, {"params": {"Dense_0": {"kernel": np.ones((64, 10)), "bias": np.ones(10)}}}
        )
        is None
    )


TIMES = ("seconds", "images_per_second", "draw_seconds")  # of no two runs the same


def measured(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.fixture(scope="module")
def two_budgets(make_sweep):
    """Two inits, rates and seeds with 3 and 6 steps in one sweep."""
    sweep = make_sweep(inits=("kaiming_normal", "coupled_nfm"), seeds=2, learning_rates=(0.01, 0.5), budgets=(3, 6))
    sweep.run()
    return sweep


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 6])
def test_two_budgets_are_two_runs(make_sweep, two_budgets, steps):
    """Each with its own schedule and choice of rate: the same rows, bit for bit."""
    inits = ("kaiming_normal", "coupled_nfm")
    alone = make_sweep(steps=steps, inits=inits, seeds=2, learning_rates=(0.01, 0.5))
    alone.run()
    for name in ("results", "rates"):
        together = [row for row in getattr(two_budgets.tables, name) if row["budget"] == steps]
        assert measured(together) == measured(getattr(alone.tables, name))
    assert {row["steps"] for row in alone.tables.results} == {steps}
    assert two_budgets.tables.fits == alone.tables.fits  # of the start, which is the same
    assert not list((two_budgets.comparison.workdir / "draws").iterdir())


def without(path, column):
    """A table as versions before this column wrote it."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    files.write_rows(path, [{name: value for name, value in row.items() if name != column} for row in rows])


@pytest.mark.slow
def test_an_older_directory_gets_another_budget(make_sweep, two_budgets):
    """What is there stays; the page reads the older tables as well."""
    options = {"inits": ("kaiming_normal", "coupled_nfm"), "seeds": 2, "learning_rates": (0.01, 0.5)}
    first = make_sweep(steps=3, **options)
    first.run()
    path = first.comparison.workdir
    for name in ("results.csv", "learning_rates.csv"):
        without(path / name, "budget")
    assert {row["budget"] for row in tables.read_results(path / "results.csv")} == {3}
    curves = sorted((path / "metrics").iterdir())
    before = [curve.read_bytes() for curve in curves]
    again = make_sweep(steps=3, path=path, budgets=(3, 6), **options)
    assert {cell.setting.budget for cell in again.cells if again._missing_seeds(0, cell)} == {6}
    again.run()
    assert measured(again.tables.results) == measured(two_budgets.tables.results)
    assert [curve.read_bytes() for curve in curves] == before
    assert len(list((path / "metrics").iterdir())) == 2 * len(curves)

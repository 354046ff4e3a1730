"""The linear probe against normal equations, last features against captured activations, and how new filters are."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax import data
from agop_jax.analysis.novelty import nearest_cosine
from agop_jax.analysis.probe import PENALTIES, last_features, linear_probe, ridge
from agop_jax.core.files import write_rows
from agop_jax.core.networks import open_network
from agop_jax.experiments import donors, recipients
from agop_jax.experiments.config import experiment_config
from agop_jax.experiments.settings import Config
from agop_jax.experiments.sweep import Sweep
from agop_jax.experiments.workdir import claim
from agop_jax.features.layer import LayerFeatures
from agop_jax.results import tables


@pytest.mark.parametrize("shape", [(30, 5), (6, 20)])
def test_ridge_solves_the_normal_equations(shape):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=shape), rng.normal(size=(shape[0], 3))
    for penalty, found in zip((1e-3, 10.0), ridge(x, y, (1e-3, 10.0)), strict=True):
        gram = x.T @ x + len(x) * penalty * np.mean(x**2) * np.eye(shape[1])
        np.testing.assert_allclose(found, np.linalg.solve(gram, x.T @ y), atol=1e-9)


def clusters(rng, n, noise):
    labels = rng.integers(0, 3, n)
    return 5 + np.eye(3)[labels] @ np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 1.0]]) + noise * rng.normal(
        size=(n, 4)
    ), labels


def test_probe_is_that_of_the_best_penalty_on_validation():
    rng = np.random.default_rng(1)
    train, validation, test = (clusters(rng, n, 0.8) for n in (25, 60, 80))
    accuracies = {}
    for penalty in PENALTIES:  # with the intercept as a column that is not penalised
        centred = train[0] - train[0].mean(0)
        x = np.c_[train[0], np.ones(25)]
        penalties = 25 * penalty * np.mean(centred**2) * np.diag([1, 1, 1, 1, 0])
        weights = np.linalg.solve(x.T @ x + penalties, x.T @ np.eye(3)[train[1]])
        score = lambda split, w=weights: np.mean((np.c_[split[0], np.ones(len(split[0]))] @ w).argmax(1) == split[1])
        accuracies[penalty] = score(validation), score(test)
    best = max(PENALTIES, key=lambda penalty: (accuracies[penalty][0], penalty))
    found = linear_probe(train, validation, test, 3)
    assert (found.penalty, found.validation_accuracy, found.test_accuracy) == (best, *accuracies[best])
    assert len({accuracy for accuracy, _ in accuracies.values()}) > 1  # or the choice would be none


def test_features_that_are_not_finite_have_no_accuracy():
    bad = (np.array([[1.0], [math.inf]]), np.array([0, 1]))
    assert math.isnan(linear_probe(bad, bad, bad, 2).test_accuracy)


class Pooled(nn.Module):
    """With the head declared first, so that names do not tell the order."""

    @nn.compact
    def __call__(self, x):
        head = nn.Dense(3, name="A_head")
        x = nn.relu(nn.Conv(5, (3, 3), name="B_body")(x)).mean((1, 2))
        return head(x)


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3), name="body")(x))
        return nn.Conv(3, (1, 1), name="head")(x).mean((1, 2))


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(5, name="body")(x.reshape(len(x), -1, 2)))
        return nn.Dense(3, name="head")(x).mean(1)


@pytest.mark.parametrize("model", [Pooled(), Convolutional(), Tokens()])
def test_last_features_are_what_the_last_layer_sees(model):
    images = jax.random.normal(jax.random.key(0), (4, 6, 6, 2))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    network = open_network(model, variables)
    found = last_features(network, images)(network.params, network.others, images)
    name = "B_body" if isinstance(model, Pooled) else "body"
    captured = model.apply(variables, images, capture_intermediates=True)[1]["intermediates"][name]["__call__"][0]
    expected = nn.relu(captured).mean(tuple(range(1, captured.ndim - 1)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def layer(*filters, path="a"):
    return LayerFeatures(jnp.array(filters, jnp.float32).T, None, 1, path)


def test_nearest_cosine_by_hand():
    donor = {"a": layer([3, 0, 0], [0, 1, 0], [0, 0, 0]), "b": layer([1, 2])}
    new = {"a": layer([-2, 0, 0], [1, 1, 0], [0, 0, 5]), "b": layer([1, 2, 0]), "c": layer([1])}
    assert nearest_cosine(new, donor) == pytest.approx((1 + math.sqrt(0.5) + 0) / 3, abs=1e-6)
    assert nearest_cosine(donor | {"a": layer([1, 0, 0], [0, 2, 0])}, donor) == pytest.approx(1)
    assert math.isnan(nearest_cosine({"b": layer([1, 2, 0])}, donor))


@pytest.fixture(scope="module")
def make_sweep(tmp_path_factory):
    """Sweeps over tiny recipients of two untrained donors; the experiment's own seed is 0."""
    config = experiment_config()
    config.model.features = (4, 4)
    config.features.num_images = config.recipients.num_images = 16
    config.train.steps, config.recipients.probe = 4, 100
    config.recipients.train_sizes = (64,)
    dataset, root = data.load("digits", validation=0.2), tmp_path_factory.mktemp("donors")
    networks = {}
    for seed in (0, 3):
        config.seed = seed
        frozen = Config.of(config)
        donor = donors.donor_network(frozen, dataset, donors.untrained_donor(frozen, dataset), root / str(seed))
        networks[seed] = {"trained": donor, "untrained": donor}
    config.seed = 0

    def make(of, path=None, **fields) -> Sweep:
        changed = config.copy_and_resolve_references()
        changed.recipients.update(fields)
        path = path or tmp_path_factory.mktemp("sweep")
        return Sweep(path, Config.of(changed), dataset, {seed: networks[seed] for seed in of})

    return make


UNTIMED = [name for name in tables.RESULT_COLUMNS if name not in ("seconds", "images_per_second", "draw_seconds")]


def timeless(rows):
    return [{name: row[name] for name in UNTIMED} for row in rows]


@pytest.mark.slow
def test_further_donors_add_recipients_and_change_none(make_sweep):
    one, two = (make_sweep(of, inits=("kaiming_normal", "copy"), seeds=2) for of in ((0,), (0, 3)))
    one.run()
    two.run()
    rows = two.tables.results
    assert timeless([row for row in rows if row["donor"] == 0]) == timeless(one.tables.results)
    assert sorted((row["donor"], row["seed"]) for row in rows if row["init"] == "copy") == [
        (0, 0),
        (0, 1),
        (3, 4000),
        (3, 4001),
    ]
    for donor, seed in ((0, 0), (3, 4000)):  # each is of its own donor
        start = recipients.start(two.comparisons[donor], two.cells[1], seed, two.places[0].trainer(two.cells[1]))
        kernel = start.variables["params"]["Conv_1"]["kernel"]
        same = [np.array_equal(kernel, two.comparisons[d].donors["trained"].features["Conv_1"].kernel) for d in (0, 3)]
        assert same == [donor == 0, donor == 3]
    for row in rows:
        assert (
            row["nearest_cosine"] == pytest.approx(1, abs=1e-5)
            if row["init"] == "copy"
            else row["nearest_cosine"] < 0.98
        )
        assert 0.1 < row["probe_accuracy"] < 1


def test_every_donor_has_a_choice_of_rates_of_its_own(make_sweep):
    sweep = make_sweep((0, 3), inits=("kaiming_normal",), seeds=2, learning_rates=(0.001, 0.05))
    sweep.run()
    assert sorted((row["seed"], row["learning_rate"]) for row in sweep.tables.rates) == [
        (0, 0.001),
        (0, 0.05),
        (4000, 0.001),
        (4000, 0.05),
    ]
    for donor, seed in ((0, 0), (3, 4000)):
        (chosen,) = (row["learning_rate"] for row in sweep.tables.rates if row["seed"] == seed and row["chosen"])
        assert {row["learning_rate"] for row in sweep.tables.results if row["donor"] == donor} == {chosen}


def test_no_probe_is_an_empty_cell(make_sweep):
    sweep = make_sweep((0,), inits=("kaiming_normal",), seeds=1, probe=0)
    sweep.run()
    assert math.isnan(tables.read_results(sweep.comparison.workdir / "results.csv")[0]["probe_accuracy"])


def test_a_directory_of_an_older_version_goes_on(make_sweep):
    """Its table lacks the later columns, its config the later fields; what is there stays."""
    sweep = make_sweep((0,), inits=("kaiming_normal",), seeds=1)
    sweep.run()
    path, config = sweep.comparison.workdir, sweep.comparison.config
    old = [{k: v for k, v in row.items() if k not in tables.LATER_COLUMNS} for row in sweep.tables.results]
    write_rows(path / "results.csv", old)
    fields = config.to_dict()
    earlier = {name: fields[name] for name in fields if name != "statistics"}
    earlier["donor"] = {k: v for k, v in fields["donor"].items() if k != "seeds"}
    earlier["train"] = {k: v for k, v in fields["train"].items() if k != "evaluation_share"}
    (path / "config.json").write_text(json.dumps(earlier))
    claim(path, fields, {})  # is no other config
    again = make_sweep((0, 3), path, inits=("kaiming_normal",), seeds=2)
    again.run()
    found = {(row["donor"], row["seed"]): row for row in again.tables.results}
    assert found.keys() == {(0, 0), (0, 1), (3, 4000), (3, 4001)}
    assert found[0, 0]["test_accuracy"] == old[0]["test_accuracy"]
    assert math.isnan(found[0, 0]["probe_accuracy"])
    assert not math.isnan(found[0, 1]["probe_accuracy"])

"""Features during training: extracted at the steps asked for, and summarised by known numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax import extract, models
from agop_jax.analysis.evolution import FeatureEvolution, effective_rank
from agop_jax.core.errors import UserError
from agop_jax.data import Pipeline, load, subset
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.results import feature_figures
from agop_jax.training import Run, Settings, Trainer, train
from agop_jax.training.device_data import DeviceData


@pytest.fixture(scope="module")
def course():
    dataset = load("digits")
    pipeline = Pipeline.of(dataset)
    model = models.create("small_cnn", num_classes=10, features=(4,))
    start = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    images = np.asarray(pipeline(jnp.asarray(dataset.test.images[:32])))
    evolution = FeatureEvolution(model, start, images, steps=(2, 5), layers="Conv.*")
    trainer = Trainer(model, pipeline, Settings(steps=5))
    data, indices = DeviceData.of(dataset, trainer.mesh), subset(dataset.train, None, 0)
    run = train(trainer, Run(trainer.start(start)), data, indices, learning_rate=0.1, seed=0, on_step=evolution)
    return model, start, images, run, evolution


def test_features_are_those_of_the_step(course):
    model, start, images, run, evolution = course
    assert list(evolution.features) == [0, 2, 5]
    for step, variables in ((0, start), (5, run.state.variables)):
        expected = extract(model, variables, images, progress=False)["Conv_0"]
        found = evolution.features[step]["Conv_0"]
        np.testing.assert_array_equal(found.kernel, expected.kernel)
        np.testing.assert_allclose(found.gradient_gram, expected.gradient_gram, rtol=1e-4)


def test_rows_end_at_the_last_features(course):
    rows = course[-1].rows()
    assert [(row["step"], row["layer"], row["matrix"]) for row in rows[:2]] == [
        (0, "Conv_0", "nfm"),
        (0, "Conv_0", "agop"),
    ]
    last = [row for row in rows if row["step"] == 5]
    assert [row["pearson"] for row in last] == pytest.approx([1, 1], abs=1e-5)
    assert all(row["pearson"] < 1 - 1e-6 for row in rows if row["step"] == 0)
    assert len(feature_figures.evolution(rows).axes) == 2


def test_a_callback_that_was_never_called_says_so(course):
    model, start, images, _, _ = course
    with pytest.raises(UserError, match="pass it as on_step"):
        FeatureEvolution(model, start, images, steps=(3,)).rows()


@pytest.mark.parametrize(
    ("values", "rank"), [([2.0, 2.0, 2.0], 3), ([5.0, 0.0, 0.0], 1), ([0.0, 0.0, 0.0], 0), ([1.0, 1.0, 0.0], 2)]
)
def test_effective_rank(values, rank):
    assert effective_rank(FeatureMatrix(jnp.eye(5)[:, :3], jnp.array(values))) == pytest.approx(rank)

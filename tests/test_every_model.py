"""Every model with the feature methods: features of all layers, a start from them, one training step, all finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax import models
from agop_jax.data import Pipeline, Split
from agop_jax.features.extraction import extract
from agop_jax.initializers.model import initialize
from agop_jax.training import Settings, Trainer

CLASSES, BATCH = 2, 2
# the smallest images of each model, and fields that keep it quick
SMALL = {
    "lenet5": (16, {}),
    "small_cnn": (8, {}),
    "alexnet": (63, {"width": 0.02}),
    **{name: (32, {"width": 0.05}) for name in models.MODELS if name.startswith("vgg")},
    **{name: (16, {"width": 0.07}) for name in models.MODELS if name.startswith("resnet")},
    "vit_tiny": (8, {"width": 0.07, "patch_size": 4, "depth": 2}),
}


# of each family the smaller ones in every run; these are built from the same blocks
LARGER = {"vgg13", "vgg16", "vgg19", "vgg13_bn", "vgg16_bn", "vgg19_bn", "resnet34", "resnet50"}
LARGER |= {"resnet32", "resnet44", "resnet56"}
QUICK = {"lenet5", "small_cnn"}
PARAMS = [
    pytest.param(name, marks=pytest.mark.long if name in LARGER else () if name in QUICK else pytest.mark.slow)
    for name in (*models.MODELS, "vgg11 classic", "resnet18 cifar")
]


@pytest.fixture(scope="module", params=PARAMS)
def network(request):
    """The model's name, images, trainer and the features of an untrained donor of other width."""
    name, _, variant = request.param.partition(" ")
    size, fields = SMALL[name]
    fields = {**fields, **{"classic": {"head": "classic"}, "cifar": {"stem": "cifar"}, "": {}}[variant]}
    model = models.create(name, CLASSES, **fields)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    trainer = Trainer(model, Pipeline((0.5,) * 3, (0.25,) * 3), Settings(steps=2, batch_size=BATCH))
    sample = trainer.pipeline(jnp.asarray(images))
    variables = models.own_variables(model, jax.random.key(0), sample)
    variables = initialize(model, variables, sample, None, "kaiming_normal", key=0)
    features = extract(model, variables, np.asarray(sample), outputs=[0], batch_size=BATCH, progress=False)
    return images, sample, trainer, features


@pytest.mark.parametrize("method", ["nfm", "agop", "he_nfm"])
def test_trains_one_step_from_the_features_of_all_layers(network, method):
    images, sample, trainer, features = network
    variables = models.own_variables(trainer.model, jax.random.key(1), sample)
    variables = initialize(trainer.model, variables, sample, features, method, key=2)
    before = jax.tree.map(np.array, variables["params"])
    split = Split(jnp.asarray(images), jnp.arange(BATCH) % CLASSES)
    state = trainer.step(trainer.start(variables), split, np.arange(BATCH), 0.01, 0)
    assert np.isfinite(float(state.loss_sum))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, state.variables["params"])
    assert max(jax.tree.leaves(moved)) > 0
    assert all(
        layer.gradient_gram is not None and np.isfinite(layer.gradient_gram).all() for layer in features.values()
    )

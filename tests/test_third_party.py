"""Networks of other people, as they come from PyPI and unmodified: covered, right, and drawn anew."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agop_jax
from agop_jax.core.networks import open_network
from agop_jax.features import grams
from agop_jax.features.coverage import uncovered
from agop_jax.features.taps import tap

pytestmark = pytest.mark.long

CLASSES = 3


def images(side):
    return np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)


def jax_resnet():
    """Linen: https://github.com/n2cholas/jax-resnet."""
    package = pytest.importorskip("jax_resnet")
    norm = lambda *args, **kwargs: package.resnet.nn.BatchNorm(*args, **{**kwargs, "use_running_average": True})
    model = package.ResNet18(n_classes=CLASSES, norm_cls=norm)
    return model, model.init(jax.random.key(0), images(32)), images(32)


def flaxmodels():
    """Linen, its own loader and normalisation: https://github.com/matthias-wright/flaxmodels."""
    package = pytest.importorskip("flaxmodels")
    model = package.ResNet18(output="logits", pretrained=None, num_classes=CLASSES, normalize=False)
    return model, model.init(jax.random.key(0), images(32), train=False), images(32)


def haiku():
    """A function of parameters: https://github.com/google-deepmind/dm-haiku."""
    hk = pytest.importorskip("haiku")
    forward = lambda x, is_training: hk.nets.ResNet18(CLASSES, resnet_v2=True)(x, is_training)
    network = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = network.init(jax.random.key(0), images(32), True)
    return lambda params, x: network.apply(params, state, x, False)[0], _head(params), images(32)


def _head(params):
    """Haiku's head starts at zero, behind which no gradient is seen."""
    return jax.tree.map(lambda leaf: leaf + 0.01 if not leaf.any() else leaf, params)


def jax_image_models():
    """NNX: https://github.com/pythoncrazy/jimm."""
    jimm, nnx = pytest.importorskip("jimm"), pytest.importorskip("flax.nnx")
    sizes = {"img_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 12, "hidden_size": 8}
    model = jimm.VisionTransformer(num_classes=CLASSES, in_channels=3, rngs=nnx.Rngs(0), **sizes)
    return model, None, images(16)


NETWORKS = [jax_resnet, flaxmodels, haiku, jax_image_models]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda make: make.__name__)
def network(request):
    """(model, variables, inputs, features)."""
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh) if request.param is jax_image_models else contextlib.nullcontext():  # it asks for one
        model, variables, inputs = request.param()
        yield model, variables, inputs, agop_jax.extract(model, variables, inputs, progress=False)


def test_every_matrix_is_a_layer_or_told(network):
    model, variables, inputs, features = network
    opened = open_network(model, variables)
    taps = tap(opened, inputs)
    told = uncovered(taps, opened.params) or ""
    flow, leaves = taps.dataflow, jax.tree.leaves(opened.params)
    axes = {number: leaf.ndim - flow.stacks.get(number, 0) for number, leaf in enumerate(leaves)}  # of one step
    matrices = {number for number in axes if axes[number] >= 2 and number not in flow.biases.values()}
    assert len(features) + told.count(" (") == len(matrices), told


def test_features_are_the_definition(network):
    """In float32, the first and the last layer."""
    model, variables, inputs, features = network
    opened = open_network(model, variables)
    paths = [next(iter(features)), list(features)[-1]]
    single = tap(opened, jnp.asarray(inputs[:1]))
    output, pair = grams.output_function("logits"), (opened.params, opened.others)
    for path in paths:
        one = (jnp.zeros(1, int), jnp.ones(1))
        definition = jax.jit(lambda x, path=path, one=one: grams.patch_agop(single, output, pair, x, *one, path))
        expected = sum(np.asarray(definition(jnp.asarray(inputs[i : i + 1])), np.float64) for i in range(2)) / 2
        error = np.linalg.norm(features[path].agop.dense() - expected) / np.linalg.norm(expected)
        assert error <= 1e-5, path


@pytest.mark.parametrize("method", ["kaiming_normal", "he_nfm"])
def test_draws_have_the_stated_norm(network, method):
    """E|w|^2 = 2, over all filters of the network and as many draws as make 1,500 of them."""
    model, variables, inputs, features = network
    norms, filters, seed = 0.0, 0, 0
    while filters < 1500:
        drawn = agop_jax.initialize(model, variables, inputs, features, method, key=seed)
        opened = open_network(drawn, None) if variables is None else open_network(model, drawn)
        taps = tap(opened, jnp.asarray(inputs))
        for path, kernel in taps.kernels(opened.params, opened.others).items():
            assert jnp.isfinite(kernel).all()
            norms += float((kernel**2).sum())
            filters += kernel.size // int(np.prod(kernel.shape[taps.first(path).stacked : -1]))
        seed += 1
    assert norms / filters == pytest.approx(2, rel=0.03)
    assert np.isfinite(np.asarray(opened.apply(opened.params, opened.others, jnp.asarray(inputs)))).all()


def test_a_copy_onto_itself_changes_nothing(network):
    model, variables, inputs, features = network
    before = open_network(model, variables)
    copied = agop_jax.initialize(model, variables, inputs, features, "copy", key=0)
    after = open_network(copied, None) if variables is None else open_network(model, copied)
    outputs = [opened.apply(opened.params, opened.others, jnp.asarray(inputs)) for opened in (before, after)]
    np.testing.assert_allclose(*outputs, atol=1e-5)

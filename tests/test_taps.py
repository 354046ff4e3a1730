"""Taps by themselves: what they find, that they change nothing, and that they sit where they should."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import nnx

from agop_jax.features import taps, taps_nnx
from agop_jax.features.taps import LayerSpec

pytestmark = pytest.mark.usefixtures("quick_compilation")


def tapped(model):
    variables, images = networks.random_variables(model), jnp.asarray(networks.images())
    return taps.tap(model, variables, images), variables, images


@pytest.fixture(scope="module")
def shared():
    """One module called twice, at two sizes."""
    return tapped(networks.NETWORKS["shared"])


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_taps_do_not_change_the_outputs(name):
    model = networks.NETWORKS[name]
    found, variables, images = tapped(model)
    expected = jax.jit(model.apply)(variables, images)
    zeros = found.zero_perturbations(variables, images)
    for perturbations in (None, zeros):
        logits, records = jax.jit(found.apply)(variables, perturbations, images)
        np.testing.assert_allclose(logits, expected, atol=1e-6)
    shapes = {path: [call.outputs.shape for call in calls] for path, calls in records.items()}
    assert {path: [zero.shape for zero in calls] for path, calls in zeros.items()} == shapes
    assert not any(zero.any() for calls in zeros.values() for zero in calls)


def test_a_record_holds_what_the_call_saw_and_did(shared):
    found, variables, images = shared
    _, records = found.apply(variables, None, images)
    first, second = records["Conv_0"]
    conv = nn.Conv(4, (3, 3))
    layer = {"params": variables["params"]["Conv_0"]}
    np.testing.assert_array_equal(first.inputs, images)
    np.testing.assert_array_equal(first.kernel, layer["params"]["kernel"])
    np.testing.assert_array_equal(first.bias, layer["params"]["bias"])
    np.testing.assert_allclose(first.outputs, conv.apply(layer, images), atol=1e-6)
    pooled = nn.avg_pool(nn.tanh(first.outputs), (2, 2), (2, 2))
    np.testing.assert_allclose(second.inputs, pooled, atol=1e-6)
    np.testing.assert_allclose(second.outputs, conv.apply(layer, pooled), atol=1e-6)


@pytest.mark.parametrize("call", [0, 1])
def test_a_perturbation_is_added_to_the_output_of_its_own_call(shared, call):
    """Against the network written out, with the shift in its place."""
    found, variables, images = shared
    shift = [0.0, 0.0]
    shift[call] = np.random.default_rng(0).normal(size=(3, 6, 7, 4) if call == 0 else (3, 3, 3, 4)).astype(np.float32)
    zeros = found.zero_perturbations(variables, images)
    given = {**zeros, "Conv_0": [zero + move for zero, move in zip(zeros["Conv_0"], shift, strict=True)]}

    params = variables["params"]
    conv = lambda x: nn.Conv(4, (3, 3)).apply({"params": params["Conv_0"]}, x)
    x = nn.avg_pool(nn.tanh(conv(images) + shift[0]), (2, 2), (2, 2))
    x = nn.tanh(conv(x) + shift[1]).mean((1, 2))
    expected = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(found.apply(variables, given, images)[0], expected, atol=1e-5)


def test_specs_tell_the_geometry_of_a_convolution():
    options = {"features": 6, "kernel_size": (3, 2), "strides": 2, "padding": [1, (0, 2)], "kernel_dilation": (1, 2)}
    found, *_ = tapped(networks.OneConv({**options, "feature_group_count": 2}))
    expected = LayerSpec(4, 2, (3, 2), (2, 2), ((1, 1), (0, 2)), (1, 2), (1, 1))
    assert found.specs == {"Conv_0": expected}


def test_specs_of_the_other_kinds_of_layer():
    assert tapped(networks.NETWORKS["tokens"])[0].specs["Dense_1"] == LayerSpec(kernel_ndim=2)
    one_axis = LayerSpec(3, 1, (3,), (2,), ((1, 1),), (1,), (1,))
    assert tapped(networks.NETWORKS["conv_1d"])[0].specs["Conv_0"] == one_axis
    stacked = {path: spec.stacked for path, spec in tapped(networks.NETWORKS["scan"])[0].specs.items()}
    assert stacked == {"ScanBlock_0/Conv_0": 1, "ScanBlock_0/Dense_0": 1, "Dense_0": 0}


def test_linen_and_nnx_layers_have_one_spec():
    options = {"strides": 2, "padding": "VALID", "kernel_dilation": (1, 2), "feature_group_count": 2}
    found, *_ = tapped(networks.OneConv({"features": 6, "kernel_size": (3, 2), **options}))
    twin = nnx.Conv(4, 6, (3, 2), rngs=nnx.Rngs(0), **options)
    _, found_nnx = taps_nnx.tap(nnx.Sequential(twin, lambda x: x.mean((1, 2))), None, jnp.asarray(networks.images()))
    assert found_nnx.specs == {"layers/0": found.specs["Conv_0"]}


def test_a_model_may_be_one_layer():
    found, variables, images = tapped(nn.Dense(3))
    assert list(found.specs) == [""]
    assert [call.outputs.shape for call in found.apply(variables, None, images)[1][""]] == [(3, 6, 7, 3)]


class Switch(nn.Module):
    """Doubles its output when it trains; for each name that the switch goes by, a subclass."""

    def run(self, x, off):
        return nn.Dense(2)(x.mean((1, 2))) * (1 if off else 2)


class Train(Switch):
    @nn.compact
    def __call__(self, x, train):
        return self.run(x, not train)


class IsTraining(Switch):
    @nn.compact
    def __call__(self, x, is_training=True):
        return self.run(x, not is_training)


class Deterministic(Switch):
    @nn.compact
    def __call__(self, x, *, deterministic=False):
        return self.run(x, deterministic)


SWITCHES = [
    (Train(), {"train": True}),
    (IsTraining(), {"is_training": True}),
    (Deterministic(), {"deterministic": False}),
]


@pytest.mark.parametrize(("model", "training"), SWITCHES, ids=lambda value: type(value).__name__)
def test_the_usual_switches_are_set_to_inference_unless_told_otherwise(model, training):
    images = jnp.asarray(networks.images())
    variables = model.init(jax.random.key(0), images, **training)
    outputs = model.apply(variables, images, **training)
    np.testing.assert_allclose(2 * taps.tap(model, variables, images).apply(variables, None, images)[0], outputs)
    np.testing.assert_allclose(
        taps.tap(model, variables, images, **training).apply(variables, None, images)[0], outputs
    )


def test_layers_that_are_not_called_are_not_listed():
    """An NNX model owns layers that a call may never reach."""

    class Unused(nnx.Module):
        def __init__(self):
            self.used, self.unused = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.used(x.mean((1, 2)))

    _, found = taps_nnx.tap(Unused(), None, jnp.asarray(networks.images()))
    assert list(found.specs) == ["used"]

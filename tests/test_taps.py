"""Taps by themselves: what they find, that they change nothing, and that they sit where they should."""

import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import nnx

from agop_jax.core.errors import UserError
from agop_jax.core.networks import open_network
from agop_jax.features import extraction
from agop_jax.features.coverage import uncovered
from agop_jax.features.taps import tap


def tapped(model, inputs=None, variables=None, **kwargs):
    """(taps, (params, others), inputs) of a model with random variables."""
    inputs = jnp.asarray(networks.images()) if inputs is None else inputs
    if isinstance(model, nn.Module) and variables is None:
        variables = networks.random_variables(model)
    network = open_network(model, variables, apply_kwargs=kwargs)
    return tap(network, inputs), (network.params, network.others), inputs


@pytest.fixture(scope="module")
def shared():
    """One module called twice, at two sizes."""
    return tapped(networks.NETWORKS["shared"])


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_taps_do_not_change_the_outputs(name):
    model = networks.NETWORKS[name]
    taps, (params, others), images = tapped(model)
    expected = jax.jit(model.apply)({"params": params, **others}, images)
    zeros = taps.zeros(params, others, images)
    for added in ({}, zeros):
        logits, records = jax.jit(taps.apply)(params, others, added, images)
        np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert {place: zero.shape for place, zero in zeros.items()} == {p: r.outputs.shape for p, r in records.items()}
    assert not any(zero.any() for zero in zeros.values())


def test_a_record_holds_what_the_product_saw_and_did(shared):
    taps, (params, others), images = shared
    _, records = taps.apply(params, others, {}, images)
    first, second = (records[place] for place in taps.layers["Conv_0"])
    layer = {"params": params["Conv_0"]}
    conv = lambda x: nn.Conv(4, (3, 3)).apply(layer, x)
    np.testing.assert_array_equal(first.inputs, images)
    np.testing.assert_array_equal(first.kernel, params["Conv_0"]["kernel"])
    np.testing.assert_allclose(first.outputs + params["Conv_0"]["bias"], conv(images), atol=1e-6)
    pooled = nn.avg_pool(nn.tanh(conv(images)), (2, 2), (2, 2))
    np.testing.assert_allclose(second.inputs, pooled, atol=1e-6)


@pytest.mark.parametrize("call", [0, 1])
def test_a_tap_is_added_to_the_output_of_its_own_call(shared, call):
    """Against the network written out, with the shift in its place."""
    taps, (params, others), images = shared
    shift = [0.0, 0.0]
    shift[call] = np.random.default_rng(0).normal(size=(3, 6, 7, 4) if call == 0 else (3, 3, 3, 4)).astype(np.float32)
    added = {taps.layers["Conv_0"][call]: shift[call]}
    conv = lambda x: nn.Conv(4, (3, 3)).apply({"params": params["Conv_0"]}, x)
    x = nn.avg_pool(nn.tanh(conv(images) + shift[0]), (2, 2), (2, 2))
    x = nn.tanh(conv(x) + shift[1]).mean((1, 2))
    expected = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(taps.apply(params, others, added, images)[0], expected, atol=1e-5)


def test_a_site_tells_the_geometry_of_a_convolution():
    options = {"features": 6, "kernel_size": (3, 2), "strides": 2, "padding": [1, (0, 2)], "kernel_dilation": (1, 2)}
    site = tapped(networks.OneConv({**options, "feature_group_count": 2}))[0].first("Conv_0")
    assert (site.groups, site.kernel_size, site.stacked) == (2, (3, 2), 0)
    assert site.params["window_strides"] == (2, 2)
    assert site.params["padding"] == ((1, 1), (0, 2))
    assert site.params["rhs_dilation"] == (1, 2)


def test_kernels_of_a_scan_lead_with_its_steps():
    taps, variables, _ = tapped(networks.NETWORKS["scan"])
    stacked = {layer: taps.first(layer).stacked for layer in taps.layers}
    assert stacked == {"ScanBlock_0/Conv_0": 1, "ScanBlock_0/Dense_0": 1, "Dense_0": 0}
    kernels = taps.kernels(*variables)
    np.testing.assert_array_equal(kernels["ScanBlock_0/Conv_0"], variables[0]["ScanBlock_0"]["Conv_0"]["kernel"])
    biases = taps.biases(variables[0], kernels)
    np.testing.assert_array_equal(biases["ScanBlock_0/Dense_0"], variables[0]["ScanBlock_0"]["Dense_0"]["bias"])


def test_a_model_may_be_one_layer():
    taps, variables, images = tapped(nn.Dense(3))
    assert list(taps.layers) == ["kernel"]
    (record,) = taps.apply(*variables, {}, images)[1].values()
    assert record.outputs.shape == (3, 6, 7, 3)


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


class NnxTrain(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(4, 2, rngs=nnx.Rngs(0))

    def __call__(self, x, train):
        return self.dense(x.mean((1, 2))) * (2 if train else 1)


SWITCHES = [
    (Train(), {"train": True}),
    (IsTraining(), {"is_training": True}),
    (Deterministic(), {"deterministic": False}),
    (NnxTrain(), {"train": True}),
]


@pytest.mark.parametrize(("model", "training"), SWITCHES, ids=lambda value: type(value).__name__)
def test_the_usual_switches_are_set_to_inference_unless_told_otherwise(model, training):
    images = jnp.asarray(networks.images())
    variables = model.init(jax.random.key(0), images, **training) if isinstance(model, nn.Module) else None
    outputs = model(images, **training) if variables is None else model.apply(variables, images, **training)
    for kwargs, factor in (({}, 2), (training, 1)):
        taps, own, _ = tapped(model, images, variables, **kwargs)
        np.testing.assert_allclose(factor * taps.apply(*own, {}, images)[0], outputs, rtol=1e-5)


def test_layers_that_are_not_called_are_not_listed_but_told():
    """An NNX model owns layers that a call may never reach."""

    class Unused(nnx.Module):
        def __init__(self):
            self.used, self.unused = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.used(x.mean((1, 2)))

    taps, (params, _), _ = tapped(Unused())
    assert list(taps.layers) == ["used"]
    assert uncovered(taps, params) == "without features, since no layer holds them: unused/kernel (it meets no input)"


def test_what_no_layer_holds_is_told_with_its_reason():
    """An embedding, positions that are added, an array that the function closes over; a bias is no such thing."""
    hidden = jnp.ones((4, 4))

    def model(params, tokens):
        x = params["embedding"][tokens] + params["positions"]
        x = x @ params["w"] + jnp.zeros((5, 3)) @ params["state"]
        x = jnp.tanh(x @ hidden)
        return (x * params["gains"]).mean(1) @ params["head"] + params["b"]

    shapes = {
        "embedding": (7, 4),
        "positions": (5, 4),
        "w": (4, 4),
        "b": (1, 2),
        "state": (3, 4),
        "gains": (5, 4),
        "head": (4, 2),
    }
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    tokens = jnp.arange(10).reshape(2, 5) % 7
    taps, (params, _), _ = tapped(model, tokens, params)
    assert list(taps.layers) == ["w", "head"]
    told = uncovered(taps, params)
    assert "embedding (an embedding lookup)" in told
    assert "positions (added to the data)" in told
    assert "gains (multiplied with the data entry by entry)" in told
    assert "an array of shape (4, 4) that the function closes over" in told
    assert "state (" in told
    assert told.count("(") == told.count(")")
    assert " b " not in told
    assert "head" not in told


def test_a_second_call_traces_nothing_and_models_can_be_collected():
    traces = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            traces.append(None)
            return nn.Dense(2)(nn.relu(nn.Conv(3, (2, 2))(x)).mean((1, 2)))

    model = Counted()
    variables = networks.random_variables(model)
    extraction.extract(model, variables, networks.images(), progress=False)
    before = len(traces)
    extraction.extract(model, jax.tree.map(lambda leaf: 2 * leaf, variables), networks.images(), progress=False)
    assert len(traces) == before
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize("kind", ["function", "nnx"])
def test_other_kinds_of_model_are_traced_once_too(kind):
    traces = []

    class Module(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(4, 2, rngs=nnx.Rngs(0))

        def __call__(self, x):
            traces.append(None)
            return self.dense(x.mean((1, 2)))

    def function(params, x):
        traces.append(None)
        return x.mean((1, 2)) @ params["w"]

    model, variables = (function, {"w": jnp.ones((4, 2))}) if kind == "function" else (Module(), None)
    extraction.extract(model, variables, networks.images(), progress=False)
    before = len(traces)
    extraction.extract(model, variables, networks.images(), progress=False)
    assert len(traces) == before
    watched = weakref.ref(model)
    del model, function, Module
    gc.collect()
    assert watched() is None


def test_a_drawn_kernel_is_the_one_that_is_used():
    """Whatever stands between the parameter and the product: casts, transposes, slices, scans."""
    for name in set(networks.NETWORKS) - {"weight_norm"}:
        taps, (params, others), _ = tapped(networks.NETWORKS[name])
        kernels = taps.kernels(params, others)
        drawn = {layer: jax.random.normal(jax.random.key(1), kernel.shape) for layer, kernel in kernels.items()}
        used = taps.kernels(taps.with_kernels(params, others, drawn), others)
        for layer, kernel in drawn.items():
            np.testing.assert_array_equal(used[layer], kernel, err_msg=f"{name} {layer}")


def test_slices_of_one_parameter_are_layers_of_their_own():
    """Queries and keys from one array, in one call each; the third slice stays as it is."""

    def model(params, x):
        q, k = x @ params["qkv"][:, :3], x @ params["qkv"][:, 3:6]
        return jnp.tanh(q * k) @ params["out"].T

    params = {"qkv": jnp.asarray(np.random.default_rng(0).normal(size=(4, 9)), jnp.float32), "out": jnp.ones((2, 3))}
    x = jnp.ones((5, 4))
    taps, (params, others), _ = tapped(model, x, params)
    assert list(taps.layers) == ["qkv/0", "qkv/1", "out"]
    drawn = taps.with_kernels(params, others, {"qkv/1": jnp.full((4, 3), 7.0)})["qkv"]
    np.testing.assert_array_equal(drawn[:, 3:6], 7.0)
    np.testing.assert_array_equal(drawn[:, [0, 1, 2, 6, 7, 8]], params["qkv"][:, [0, 1, 2, 6, 7, 8]])


def test_a_bias_is_a_parameter_that_is_added_as_it_is():
    """What is subtracted, scaled or computed would not do as -mean of a layer's outputs."""
    params = {"kernel": jnp.eye(3), "shift": jnp.ones(3), "more": jnp.ones(3)}
    forms = {
        "added": (lambda y, p: y + p["shift"], True),
        "added in another type and shape": (lambda y, p: y + p["shift"].astype(jnp.float16)[None], True),
        "added to": (lambda y, p: p["shift"] + y, True),
        "added after another": (lambda y, p: y + p["shift"] + p["more"], True),
        "subtracted": (lambda y, p: y - p["shift"], False),
        "subtracted from": (lambda y, p: p["shift"] - y, False),
        "scaled": (lambda y, p: y + 0.1 * p["shift"], False),
        "negated": (lambda y, p: y + -p["shift"], False),
        "squared": (lambda y, p: y + p["shift"] ** 2, False),
        "of two": (lambda y, p: y + (p["shift"] + p["more"]), False),
    }
    for name, (form, known) in forms.items():
        function = lambda p, x, form=form: form(x @ p["kernel"], p)
        layer = extraction.extract(function, params, np.ones((2, 3), np.float32), progress=False)["kernel"]
        assert (layer.bias is not None) == known, name


def test_a_kernel_that_is_computed_is_not_drawn():
    taps, (params, others), _ = tapped(networks.NETWORKS["weight_norm"])
    kernels = taps.kernels(params, others)
    with pytest.raises(UserError, match=r"layer 'Conv_0': its kernel is computed from its parameters"):
        taps.with_kernels(params, others, {"Conv_0": kernels["Conv_0"]})


def test_two_parameters_of_one_place_are_two_layers():
    """Without the last parts of their paths both would be called 'block'."""

    def model(params, x):
        return jnp.tanh(x @ params["block"]["w"]) @ params["block"]["kernel"]

    params = {"block": {"w": jnp.ones((4, 3)), "kernel": jnp.ones((3, 2))}}
    assert list(tapped(model, jnp.ones((5, 4)), params)[0].layers) == ["block/w", "block/kernel"]

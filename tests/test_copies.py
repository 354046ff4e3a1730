"""Copies to the donor's width and to others: the same function, down to the normalisations, or a refusal."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_every_model import SMALL

import agop_jax
from agop_jax import models
from agop_jax.initializers import arguments
from agop_jax.initializers.registry import get_method

CLASSES = 3
REFUSED = {  # channels that a copy to another width cannot follow
    "resnet20": "BasicBlock_3/Conv_0|BasicBlock_4/Conv_0",  # shortcuts padded with zeros
    "vit_tiny": "ViTBlock_0/Dense_0",  # tokens joined to the image's
}


def trained(name, width, seed=0):
    """A network whose biases, scales and statistics are not those of a fresh one."""
    size, fields = SMALL[name]
    model = models.create(name, CLASSES, **{**fields, "width": width})
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, size, size, 3)), jnp.float32)
    rng = np.random.default_rng(seed)
    move = lambda leaf: leaf + 0.1 * rng.uniform(-1, 1, size=leaf.shape).astype(np.float32)
    return model, jax.tree.map(move, models.own_variables(model, jax.random.key(seed), images)), images


@contextlib.contextmanager
def full_compilation():
    """XLA with all of its passes: its quick compilation makes NaN of the gradients of `vgg11_bn`."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


@functools.cache
def donor(name):
    """A network of this name with its features; compiled once for all tests."""
    model, variables, images = trained(name, SMALL[name][1].get("width", 1.0))
    with full_compilation() if name == "vgg11_bn" else contextlib.nullcontext():
        features = agop_jax.extract(model, variables, images, outputs=0, progress=False)
    return model, variables, images, features


LARGE = [pytest.param(name, marks=pytest.mark.long) for name in ("resnet18", "resnet20", "alexnet", "vit_tiny")]


@pytest.mark.parametrize(
    "name", ["small_cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lenet5", "vgg11_bn")), *LARGE]
)
def test_a_widened_copy_computes_what_the_donor_computes(name):
    model, variables, images, features = donor(name)
    wide, own, _ = trained(name, 2 * SMALL[name][1].get("width", 1.0), seed=1)
    copy = lambda: agop_jax.initialize(wide, own, images, features, "copy_tiled", key=0)
    if name in REFUSED:
        with pytest.raises(agop_jax.UserError, match=rf"layer '({REFUSED[name]})': a copy to another width"):
            copy()
        return
    expected = model.apply(variables, images)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(wide.apply(copy(), images) / scale, expected / scale, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11_bn", LARGE[0], "resnet20"])
def test_copy_takes_normalisations_along(name):
    """Below the head: the head is not selected, so the logits of the copy are the head's own of the same features."""
    model, variables, images, features = donor(name)
    _, own, _ = trained(name, SMALL[name][1]["width"], seed=1)
    copied = agop_jax.initialize(model, own, images, features, "copy", key=0)
    for collection in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, copied[collection], variables[collection])
    convolutions = agop_jax.initialize(model, own, images, features, "copy", key=0, layers=".*Conv_.*")
    np.testing.assert_array_equal(convolutions["params"]["Dense_0"]["kernel"], own["params"]["Dense_0"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, convolutions["batch_stats"], variables["batch_stats"])


@pytest.mark.slow
def test_companions_are_stored(tmp_path):
    features = donor("vgg11_bn")[-1]
    assert {name.rpartition("/")[2] for name in features["Conv_0"].companions} <= {"scale", "bias", "mean", "var"}
    assert len(features["Conv_0"].companions) >= 3  # the normalisation's bias is the layer's, if it has none
    agop_jax.save_features(tmp_path / "features", features)
    stored = agop_jax.load_features(tmp_path / "features")
    jax.tree.map(np.testing.assert_array_equal, dict(stored["Conv_0"].companions), dict(features["Conv_0"].companions))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.sgd(0.05), optax.adam(0.01)], ids=["sgd", "adam"])
def test_tiled_copies_part_in_training(optimizer):
    """With equal shares of the outgoing weights they would stay bit for bit the same."""
    _, _, images, features = donor("lenet5")
    wide, own, _ = trained("lenet5", 2.0, seed=1)
    params = agop_jax.initialize(wide, own, images, features, "copy_tiled", key=0)["params"]
    half = params["Conv_0"]["kernel"].shape[-1] // 2
    halves = lambda params: np.split(np.asarray(params["Conv_0"]["kernel"]), [half], axis=-1)
    np.testing.assert_array_equal(*halves(params))
    labels, state = jnp.arange(len(images)) % CLASSES, optimizer.init(params)

    @jax.jit
    def step(params, state):
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(
            wide.apply({"params": p}, images), labels
        ).mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    for _ in range(50):
        params, state = step(params, state)
    one, other = halves(params)
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


class Biased(nn.Module):
    """Layers with biases of their own, one of them used twice, in a list."""

    @nn.compact
    def __call__(self, x):
        bias = nn.initializers.normal(1.0)
        x = nn.relu(nn.Conv(8, (3, 3), bias_init=bias)(x))
        again = nn.Conv(8, (3, 3), bias_init=bias)
        x = nn.relu(again(nn.relu(again(x))))
        return nn.Sequential([nn.Dense(5, bias_init=bias), nn.relu, nn.Dense(CLASSES)])(x.mean((1, 2)))


def test_lsuv_gives_every_product_unit_variance():
    """Without the bias, which no scaling of the kernel could make up for."""
    from agop_jax.core.networks import open_network
    from agop_jax.features.taps import tap

    images = jax.random.normal(jax.random.key(0), (32, 8, 8, 3))
    variables = agop_jax.initialize(
        Biased(), jax.jit(Biased().init)(jax.random.key(1), images), images, None, "lsuv", key=0
    )
    network = open_network(Biased(), variables)
    taps = tap(network, images)
    _, records = taps.apply(network.params, network.others, {}, images)
    for layer, places in taps.layers.items():
        assert float(records[places[0]].outputs.std()) == pytest.approx(1, abs=2e-3), layer


def test_coupled_methods_take_modules_with_lists():
    images = jax.random.normal(jax.random.key(0), (32, 8, 8, 3))
    model = nn.Sequential(
        [nn.Conv(6, (3, 3)), nn.relu, nn.Conv(5, (3, 3)), lambda x: x.mean((1, 2)), nn.Dense(CLASSES)]
    )
    variables = jax.jit(model.init)(jax.random.key(1), images)
    features = agop_jax.extract(model, variables, images, outputs=0, progress=False)
    donor = agop_jax.Donor(model, variables, images)
    for method in ("lsuv", "coupled_nfm", "coupled_agop"):
        drawn = agop_jax.initialize(model, variables, images, features, method, key=0, donor=donor)
        assert np.isfinite(model.apply(drawn, images)).all()


@pytest.mark.parametrize("method", ["he_agop", "coupled_agop", "matched_isotropic:he_agop", "he_sqrt_agop"])
def test_a_dead_layer_is_named(method):
    """Behind a scale of zero no output depends on the layer: its AGOP is zero."""
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    model = nn.Sequential(
        [nn.Conv(6, (3, 3)), nn.BatchNorm(True), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(CLASSES)]
    )
    variables = jax.jit(model.init)(jax.random.key(1), images)
    variables["params"]["layers_1"]["scale"] = jnp.zeros(6)
    features = agop_jax.extract(model, variables, images, outputs=0, progress=False)
    donor = agop_jax.Donor(model, variables, images)
    with pytest.raises(agop_jax.UserError, match=r"layer 'layers_0': its .*agop is zero.*'he_nfm'"):
        agop_jax.initialize(model, variables, images, features, method, key=0, donor=donor)


def test_layers_without_weights_or_inputs_are_named():
    """Nothing can be drawn from a matrix of zeros, and nothing be fitted to inputs of zeros."""
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    model = nn.Sequential(
        [nn.Conv(6, (3, 3)), nn.relu, nn.Conv(5, (3, 3)), lambda x: x.mean((1, 2)), nn.Dense(CLASSES)]
    )
    variables = jax.jit(model.init)(jax.random.key(1), images)

    def refused(method, leaf, value):
        changed = jax.tree.map(lambda leaf: leaf, variables)
        changed["params"]["layers_0"][leaf] += value - changed["params"]["layers_0"][leaf]
        features = agop_jax.extract(model, changed, images, outputs=0, progress=False)
        donor = agop_jax.Donor(model, changed, images)
        with pytest.raises(agop_jax.UserError) as error:
            agop_jax.initialize(model, variables, images, features, method, key=0, donor=donor)
        return str(error.value)

    for method in ("he_nfm", "coupled_nfm", "spatial", "matched_spectrum:he_nfm"):
        said = refused(method, "kernel", 0.0)
        assert said.startswith("layer 'layers_0': its nfm is zero, as all its weights are")
        assert "'he_nfm'" not in said
    said = refused("coupled_nfm", "bias", -1e4)  # no ReLU behind it is ever on
    assert said.startswith("layer 'layers_2': its inputs are zero in the donor for all examples")


def test_wrong_calls_are_one_line():
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    model = Biased()
    variables = jax.jit(model.init)(jax.random.key(1), images)
    features = agop_jax.extract(model, variables, images, outputs=1, progress=False)

    calls = {
        r"kernel_init: needed the features of one layer, such as features\['Conv_0'\], got str": lambda: (
            agop_jax.kernel_init("Conv_0", "nfm")
        ),
        "'copy' needs the same; 'copy_spaced' copies to fewer channels, 'copy_tiled' to more": lambda: (
            agop_jax.kernel_init(features["Conv_1"], "copy")(jax.random.key(0), (3, 3, 8, 16))
        ),
        "for extraction, which is exact, got method": lambda: agop_jax.ansatz_report(
            model, variables, images, method="probe"
        ),
        r"a Linen model needs \{'params'": lambda: agop_jax.extract(model, variables["params"], images),
        "donor: needed the same examples in Donor and in initialize, got 6 and 8: pass the same batch": lambda: (
            agop_jax.initialize(
                model,
                variables,
                images,
                features,
                "coupled_nfm",
                key=0,
                donor=agop_jax.Donor(model, variables, images[:6]),
            )
        ),
    }
    for message, call in calls.items():
        with pytest.raises(agop_jax.UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    same = agop_jax.extract(model, variables, images, outputs=np.arange(1, 2), progress=False)
    np.testing.assert_allclose(same["Conv_0"].gradient_gram, features["Conv_0"].gradient_gram)


def test_arguments_of_other_types_are_one_line():
    """The types of the public signature are checked in tests before the package can, hence the functions behind it."""
    keys = jax.random.split(jax.random.key(0))
    images, method = np.zeros((8, 4)), get_method("coupled_nfm")
    calls = {
        "method: needed a name such as 'he_nfm' or a Method, got NoneType": lambda: arguments.method_of(None),
        "key: needed one key of jax.random or a whole number, got float": lambda: arguments.key_of(1.5),
        "key: needed one key .*, got None": lambda: arguments.key_of(None),
        r"key: needed one key .* of shape \(2,\)": lambda: arguments.key_of(keys),
        "features: needed those of layers by path": lambda: arguments.require_donor("nfm", method, [1], None, images),
        r"donor: needed Donor\(model, variables, inputs\), got tuple": lambda: arguments.require_donor(
            "coupled_nfm", method, {}, (1, 2, images), images
        ),
    }
    for message, call in calls.items():
        with pytest.raises(agop_jax.UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    for key in (3, np.int64(3), jax.random.key(3)):
        assert arguments.key_of(key) == jax.random.key(3)
    np.testing.assert_array_equal(arguments.key_of(jax.random.PRNGKey(3)), jax.random.PRNGKey(3))

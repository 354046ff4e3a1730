"""Every registered method: its distribution, its scale, its errors."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agop_jax
from agop_jax.initializers.registry import CONTROLS, METHODS, Covariance, get_method

COVARIANCES = [name for name, method in METHODS.items() if isinstance(method.source, Covariance) and method.layerwise]
CONTROLS_OF_HE_AGOP = [f"{control}:he_agop" for control in CONTROLS]
PLAIN_TRACES = {  # E|w|^2 = fan_in * variance, from the formulas of PyTorch's documentation, by fan_in and fan_out
    "default": lambda fan_in, fan_out: 1 / 3,
    "zeros": lambda fan_in, fan_out: 0,
    "normal": lambda fan_in, fan_out: fan_in * 0.01**2,
    "uniform": lambda fan_in, fan_out: fan_in * 0.01**2 / 12,
    "xavier_normal": lambda fan_in, fan_out: fan_in * 4 / (fan_in + fan_out),
    "kaiming_uniform": lambda fan_in, fan_out: 2,
    "kaiming_normal": lambda fan_in, fan_out: 2,
    "orthogonal": lambda fan_in, fan_out: (
        2 * min(1, fan_in / (fan_out / 9))
    ),  # no more than fan_in filters are orthogonal
}


def layer(kernel_shape, groups=1, seed=0) -> agop_jax.LayerFeatures:
    """A donor's layer with random weights and a random gradient Gram matrix."""
    kernel_key, gram_key = jax.random.split(jax.random.key(seed))
    filters = kernel_shape[-1] // groups
    root = jax.random.normal(gram_key, (groups, filters, filters))
    gram = root @ jnp.swapaxes(root, -1, -2)
    return agop_jax.LayerFeatures(
        jax.random.normal(kernel_key, kernel_shape),
        gram if groups > 1 else gram[0],
        count=5,
        path="Conv_0",
        groups=groups,
    )


LAYERS = {
    "full rank": layer((3, 3, 1, 16)),
    "rank deficient": layer((3, 3, 4, 6)),
    "1x1": layer((1, 1, 1, 1)),
    "pointwise": layer((1, 1, 8, 4)),
    "dense": layer((12, 5)),
}


def dense_sigma(name: str, donor: agop_jax.LayerFeatures) -> np.ndarray:
    """The k x k target, from the published formulas and by dense eigendecompositions in numpy."""
    w = np.asarray(donor.kernel, np.float64).reshape(-1, donor.kernel.shape[-1])
    s = np.asarray(donor.gradient_gram, np.float64)
    nfm, agop, k = w @ w.T, w @ s @ w.T, len(w)

    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def positive(matrix):  # the original adds 1e-6 (and the rounding error) to the eigenvalues of a singular matrix
        return matrix + 1e-6 * np.eye(k) if k > w.shape[1] else matrix

    unit = lambda matrix: matrix / np.trace(matrix)
    return {
        "nfm": lambda: unit(positive(nfm)),
        "agop": lambda: unit(positive(root(11 * agop))),
        "kaiming_nfm": lambda: positive(nfm) * math.sqrt(2 / k),
        "kaiming_agop": lambda: positive(root(11 * agop)) / 100 * math.sqrt(2 / k),
        "he_nfm": lambda: 2 * unit(nfm),
        "he_agop": lambda: 2 * unit(agop),
        "he_sqrt_agop": lambda: 2 * unit(root(agop)),
    }[name]()


@pytest.mark.parametrize("donor", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("name", COVARIANCES)
def test_covariance_is_the_published_formula(name, donor):
    np.testing.assert_allclose(
        agop_jax.covariance(donor, name).dense(),
        dense_sigma(name, donor),
        rtol=1e-3,
        atol=3e-5 * np.abs(donor.kernel).max(),
    )


@pytest.mark.parametrize("donor", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("name", [*COVARIANCES, *CONTROLS, *CONTROLS_OF_HE_AGOP])
def test_samples_have_the_target_covariance(name, donor):
    """1e5 filters. The empirical covariance of N(0, S) errs by (tr S^2 + (tr S)^2) / n in mean squared Frobenius norm
    (moments of the Wishart distribution); the bound is 3 times its root."""
    num, key = 100_000, jax.random.key(7)
    shape = (*donor.kernel.shape[:-1], num)
    kernel = jax.jit(agop_jax.kernel_init(donor, name), static_argnums=(1, 2))(key, shape, jnp.float32)
    filters = np.asarray(kernel, np.float64).reshape(-1, num)
    sigma = agop_jax.covariance(
        donor, name, jax.random.split(key)[0]
    )  # kernel_init draws the basis from the first half
    target = np.asarray(sigma.dense(), np.float64)
    bound = 3 * math.sqrt((np.sum(target**2) + np.trace(target) ** 2) / num)
    assert np.linalg.norm(filters @ filters.T / num - target) < bound
    assert np.linalg.norm(filters.mean(1)) < 4 * math.sqrt(np.trace(target) / num)


@pytest.mark.parametrize(
    ("name", "trace"), [("nfm", 1), ("agop", 1), ("he_nfm", 2), ("he_agop", 2), ("he_sqrt_agop", 2)]
)
@pytest.mark.parametrize("donor", LAYERS.values(), ids=LAYERS)
def test_promised_trace(name, trace, donor):
    for method in (name, f"matched_isotropic:{name}", f"matched_spectrum:{name}"):
        assert float(agop_jax.covariance(donor, method, jax.random.key(0)).trace) == pytest.approx(trace, rel=1e-5)


@pytest.mark.parametrize("name", PLAIN_TRACES)
def test_plain_methods_have_the_published_scale(name):
    shape = (3, 3, 16, 512)
    kernel = agop_jax.kernel_init(None, name)(jax.random.key(0), shape, jnp.float32)
    found = float((kernel**2).sum()) / shape[-1]
    assert found == pytest.approx(PLAIN_TRACES[name](144, 9 * 512), rel=0.02, abs=1e-12)


def test_controls_keep_what_they_claim():
    donor = LAYERS["rank deficient"]
    sigma = agop_jax.covariance(donor, "he_agop")
    spectrum = agop_jax.covariance(donor, "matched_spectrum:he_agop", jax.random.key(0))
    isotropic = agop_jax.covariance(donor, "matched_isotropic:he_agop")
    np.testing.assert_allclose(spectrum.values, sigma.values, rtol=1e-6)
    np.testing.assert_allclose(spectrum.vectors.T @ spectrum.vectors, np.eye(6), atol=1e-5)
    assert abs(float(spectrum.correlate(sigma).cosine)) < 0.95
    np.testing.assert_allclose(isotropic.dense(), np.eye(36) * float(sigma.trace) / 36, rtol=1e-5)


def test_grouped_layer_draws_each_group_from_its_own_matrix():
    donor = layer((3, 3, 2, 8), groups=4)
    kernel = agop_jax.kernel_init(donor, "he_nfm")(jax.random.key(0), (3, 3, 2, 40_000), jnp.float32)
    per_group = np.asarray(kernel).reshape(18, 4, 10_000).transpose(1, 0, 2)
    empirical = per_group @ per_group.transpose(0, 2, 1) / 10_000
    np.testing.assert_allclose(empirical, agop_jax.covariance(donor, "he_nfm").dense(), atol=0.05)


class Net(nn.Module):
    width: int = 8
    kernel: int = 3

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(self.width, (self.kernel, self.kernel))(x))
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def donor_features():
    images = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))
    variables = jax.jit(Net().init)(jax.random.key(1), images)
    return images, agop_jax.extract(Net(), variables, images, progress=False)


@pytest.mark.parametrize("name", [*agop_jax.INITIALIZERS, "matched_spectrum:he_agop"])
def test_every_registered_name_initialises_a_model(name, donor_features):
    images, features = donor_features
    donor = agop_jax.Donor(Net(), jax.jit(Net().init)(jax.random.key(1), images), images)
    own = jax.jit(Net().init)(jax.random.key(7), images)
    draw = lambda key: agop_jax.initialize(Net(), own, images, features, name, key=key, layers="Conv_1", donor=donor)
    init = jax.jit(draw) if get_method(name).layerwise else draw
    first, again, other = init(jax.random.key(0)), init(jax.random.key(0)), init(jax.random.key(1))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(first))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    np.testing.assert_array_equal(first["params"]["Conv_0"]["kernel"], own["params"]["Conv_0"]["kernel"])
    redrawn = first["params"]["Conv_1"]["kernel"]
    assert not np.allclose(redrawn, own["params"]["Conv_1"]["kernel"])
    if name not in ("zeros", "convrfm", "whitened", "whitened_first") and not name.startswith("copy"):
        assert not np.allclose(redrawn, other["params"]["Conv_1"]["kernel"])


def test_closure_in_a_module_equals_its_own_call(donor_features):
    images, features = donor_features
    init = agop_jax.kernel_init(features["Conv_0"], "he_nfm")
    conv = nn.Conv(64, (3, 3), kernel_init=init)
    kernel = conv.init(jax.random.key(3), images)["params"]["kernel"]
    assert kernel.shape == (3, 3, 3, 64)
    assert float((kernel**2).sum()) / 64 == pytest.approx(2, rel=0.3)


@pytest.mark.parametrize(
    ("model", "method", "layers", "message"),
    [
        (Net(), "he_nmf", ".*", r"unknown init 'he_nmf'\. Did you mean 'he_nfm'\?.*kaiming_normal"),
        (Net(), "matched_spectrum:zeros", ".*", "method to control.*he_agop"),
        (Net(), "nfm", "conv.*", r"matches no layer\. Layers: Conv_0, Conv_1, Dense_0"),
        (Net(), "nfm", "Conv_(", "not a regular expression"),
        (Net(width=16), "nfm", ".*", r"layer 'Conv_1'.*\(3, 3, 8, 8\).*recipient's \(3, 3, 16, 8\)"),
        (Net(kernel=5), "nfm", ".*", r"layer 'Conv_0'.*recipient's \(5, 5, 3, 8\)"),
        (Net(width=2), "delta_orthogonal", "Conv_0", "layer 'Conv_0'.*at least as many filters"),
    ],
)
def test_errors_name_what_is_wrong(model, method, layers, message, donor_features):
    images, features = donor_features
    own = jax.jit(model.init)(jax.random.key(0), images)
    with pytest.raises(agop_jax.UserError, match=message) as caught:
        agop_jax.initialize(model, own, images, features, method, key=0, layers=layers)
    assert "\n" not in str(caught.value)


def test_missing_donor(donor_features):
    images, features = donor_features
    own = jax.jit(Net().init)(jax.random.key(0), images)
    with pytest.raises(agop_jax.UserError, match="needs the features of a donor"):
        agop_jax.initialize(Net(), own, images, None, "nfm", key=0)
    with pytest.raises(agop_jax.UserError, match=r"'Conv_1'.*It has: Conv_0"):
        agop_jax.initialize(Net(), own, images, {"Conv_0": features["Conv_0"]}, "nfm", key=0)
    with pytest.raises(agop_jax.UserError, match="does not draw a layer from its feature matrix"):
        agop_jax.covariance(features["Conv_0"], "zeros")


def test_wider_recipient_of_a_single_layer(donor_features):
    images, features = donor_features
    own = jax.jit(Net(width=20).init)(jax.random.key(0), images)
    variables = agop_jax.initialize(Net(width=20), own, images, features, "he_nfm", key=0, layers="Conv_0")
    assert variables["params"]["Conv_0"]["kernel"].shape == (3, 3, 3, 20)


def test_registry_describes_every_name_in_one_line():
    for name, description in agop_jax.INITIALIZERS.items():
        assert description
        assert "\n" not in description
        assert get_method(name)


@pytest.mark.parametrize(
    ("name", "uses"), [("convrfm@lsuv", False), ("whitened", False), ("lsuv", False), ("nfm", True), ("copy", True)]
)
def test_which_methods_a_donor_influences(name, uses):
    """Recursive feature machines learn from the recipient's own images and labels."""
    assert get_method(name).uses_donor == uses

"""Convolutional and deep recursive feature machines, and networks that start from them."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax import FeatureMatrix, initialize, load_features, save_features
from agop_jax.core.errors import UserError
from agop_jax.models.layers import Conv
from agop_jax.rfm import ConvRFM, ConvRFMClassifier, deep_features
from agop_jax.rfm.convolutional import spaced


def edges(seed, count):
    """Noise; images of class 1 have a vertical edge in the first of two channels somewhere, those of class 0 in it."""
    random = np.random.default_rng(seed)
    images, labels = random.normal(0, 0.3, (count, 8, 8, 2)), random.integers(0, 2, count)
    for image, label in zip(images, labels, strict=True):
        row, column = random.integers(1, 6, 2)
        image[row : row + 2, column : column + 2, 0] += 2 * np.array([1, -1]) * (1 if label else -1)
    return images.astype(np.float32), labels


class Net(nn.Module):
    """Two convolutions, pooling, a head."""

    features: tuple[int, int] = (4, 6)

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(self.features[0], (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(self.features[1], (3, 3), strides=2)(x)).mean((1, 2))
        return nn.Dense(2)(x)


@pytest.fixture(scope="module")
def network():
    images, labels = edges(0, 60)
    model = Net()
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    machine = ConvRFMClassifier(positions=16, iterations=1)
    return model, variables, images, labels, deep_features(model, variables, images, labels, key=0, machine=machine)


@pytest.mark.parametrize("kernel", ["arc_cosine", "radial"])
def test_features_of_patches_are_found(kernel):
    """Of two channels one matters: its share of diag(M) is 1 / 2 before the first round."""
    images, labels = edges(0, 120)
    fitted = ConvRFMClassifier(kernel=kernel, iterations=2, bandwidth=3).fit(images, labels)
    diagonal = np.diagonal(fitted.M_.dense()).reshape(3, 3, 2).sum((0, 1))
    assert diagonal[0] > 0.7 * diagonal.sum()
    others, truth = edges(1, 80)
    assert fitted.score(others, truth) > 0.8
    np.testing.assert_allclose(fitted.M_.trace, 18, rtol=1e-4)


def test_patches_are_those_of_a_flax_convolution(x64):
    """f(x) of the kernel of one position is the same as by hand from `nn.Conv`'s view of the image."""
    images, labels = edges(0, 12)
    fitted = ConvRFM(iterations=0, positions=1, padding="VALID", dtype="float64").fit(images, labels.astype(float))
    patches = fitted._patches(images.astype(float))
    corner = images[:, 2:5, 2:5].reshape(12, 1, 18)  # of 6 x 6 positions the one in the middle
    np.testing.assert_allclose(patches, corner, rtol=1e-12)


@pytest.mark.parametrize(
    ("space", "limit", "count"), [((8, 8), 64, 64), ((8, 8), 16, 16), ((7, 5), 9, 6), ((3,), 2, 2)]
)
def test_positions_are_spread_evenly(space, limit, count):
    marks = jnp.arange(np.prod(space)).reshape(1, *space, 1)
    assert spaced(marks.astype(float), limit).shape == (1, count, 1)


def test_regression_on_images():
    images, labels = edges(0, 100)
    fitted = ConvRFM(iterations=1).fit(images[:80], 2.0 * labels[:80], (images[80:], 2.0 * labels[80:]))
    assert fitted.score(images[80:], 2.0 * labels[80:]) > 0.1
    assert [row["round"] for row in fitted.history_] == [0, 1]


def test_layers_are_drawn_one_after_another(network):
    """Kernels at He scale; the M of the second layer is that of a machine on what the first, as drawn, gives."""
    _, variables, images, labels, features = network
    assert list(features) == ["Conv_0", "Conv_1"]
    for path, layer in features.items():
        assert layer.kernel.shape == variables["params"][path]["kernel"].shape
        np.testing.assert_allclose(layer.agop.trace, 2, rtol=1e-3)
    first = {
        "params": {
            **variables["params"],
            "Conv_0": {**variables["params"]["Conv_0"], "kernel": features["Conv_0"].kernel},
        }
    }
    relu = lambda x: nn.max_pool(nn.relu(x), (2, 2), (2, 2))
    hidden = relu(nn.Conv(4, (3, 3)).apply({"params": first["params"]["Conv_0"]}, images))
    alone = ConvRFMClassifier(stride=2, positions=16, iterations=1).fit(np.asarray(hidden), labels)
    similarity = FeatureMatrix.correlate(alone.M_, features["Conv_1"].agop)
    assert similarity.pearson > 0.9999


class Coarse(nn.Module):
    """Two convolutions, of which the second sees 2 x 2 pixels."""

    convolution: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(self.convolution(4, (3, 3), name="a")(x)), (4, 4), (4, 4))
        return nn.Dense(2)(nn.relu(self.convolution(3, (3, 3), name="b")(x)).mean((1, 2)))


def test_a_product_over_patches_is_drawn_as_a_convolution():
    """The package's own convolution multiplies patches of small images; Flax's, with the same filters, does not."""
    images, labels = edges(0, 40)
    plain, patches = (Coarse(convolution) for convolution in (nn.Conv, Conv))
    variables = plain.init(jax.random.key(0), images[:1])
    one, other = (deep_features(model, variables, images, labels, key=1) for model in (plain, patches))
    assert list(one) == list(other) == ["a", "b"]
    np.testing.assert_allclose(other["b"].kernel, one["b"].kernel, atol=1e-3 * np.abs(one["b"].kernel).max())


def test_filters_come_from_the_covariance():
    """Of 4,000 filters of the first layer; their mean outer product is M to its standard error, some 3 %."""
    images, labels = edges(0, 40)
    model = Net((4000, 2))
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    machine = ConvRFMClassifier(positions=16, iterations=1)
    layer = deep_features(model, variables, images, labels, key=1, layers="Conv_0", machine=machine)["Conv_0"]
    drawn = FeatureMatrix.from_factor(layer.matrix).scale(1 / 4000)
    assert drawn.correlate(layer.agop).cosine > 0.99


def test_a_network_starts_from_them(network, tmp_path):
    """By `initialize`, with lsuv and after a round trip to disk."""
    model, variables, images, _, features = network
    save_features(tmp_path / "features", features)
    stored = load_features(tmp_path / "features")
    draw = lambda method: initialize(model, variables, images, stored, method, key=0, layers="Conv_.*")["params"]
    for path, layer in features.items():
        np.testing.assert_allclose(draw("convrfm")[path]["kernel"], layer.kernel)
        np.testing.assert_array_equal(draw("convrfm")[path]["bias"], variables["params"][path]["bias"])
    scaled = draw("convrfm@lsuv")["Conv_0"]["kernel"] / features["Conv_0"].kernel
    np.testing.assert_allclose(scaled, scaled.ravel()[0], rtol=1e-4)
    wide = Net((8, 6))
    others = jax.jit(wide.init)(jax.random.key(0), images[:1])
    with pytest.raises(UserError, match="layer 'Conv_0': .*convrfm.* drawn for a kernel of"):
        initialize(wide, others, images, stored, "convrfm", key=0, layers="Conv_0")


BAD = {
    "needed images as numbers (n, h, w, c)": (edges(0, 9)[0][..., 0], edges(0, 9)[1]),
    "got 1 class": (edges(0, 9)[0], np.zeros(9)),
    "row 0 has NaN": (np.full((9, 8, 8, 2), np.nan), edges(0, 9)[1]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_images_are_refused_in_one_line(message):
    with pytest.raises(UserError) as error:
        ConvRFMClassifier().fit(*BAD[message])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_images_of_another_size_are_refused():
    images, labels = edges(0, 9)
    fitted = ConvRFMClassifier(iterations=0).fit(images, labels)
    with pytest.raises(UserError, match=r"needed images of \(8, 8, 2\), as those of fit, got \(8, 7, 2\)"):
        fitted.predict(images[:, :, :7])


def test_a_network_without_convolutions_is_refused():
    model = nn.Dense(2)
    images, labels = edges(0, 9)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    with pytest.raises(UserError, match="needed a convolution without groups and scans"):
        deep_features(model, variables, images, labels, key=0)

"""Image transforms against explicit patches, and what a trained network's first layer shows of a photograph."""

import os
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_sample_image

from agop_jax import extract, models
from agop_jax.analysis import transforms
from agop_jax.core.errors import UserError
from agop_jax.core.networks import open_network
from agop_jax.data import Pipeline
from agop_jax.features import taps
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.models import pretrained
from agop_jax.results import feature_figures

OPTIONS = {
    "strided": {"kernel_size": (3, 3), "strides": 2, "padding": 1},
    "grouped": {"kernel_size": (2, 3), "feature_group_count": 2, "padding": "VALID"},
    "dilated": {"kernel_size": (3, 3), "kernel_dilation": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("matrix", "power"), [("agop", 0.5), ("nfm", 1.0)])
def test_is_the_norm_of_every_patch_through_the_power(options, matrix, power):
    model = networks.OneConv({"features": 6, **options})
    variables, images = networks.random_variables(model), jnp.asarray(networks.images(2))
    features = extract(model, variables, np.asarray(images), progress=False)
    found = transforms.image_transforms(model, variables, images, features, matrix=matrix, power=power)["Conv_0"]
    tapped = taps.tap(open_network(model, variables), images)
    record = tapped.apply(variables["params"], {}, {}, images)[1][tapped.layers["Conv_0"][0]]
    patches = tapped.first("Conv_0").patches(record.inputs)  # (n * positions, groups, k)
    patches = patches if patches.ndim == 3 else patches[:, None]
    root = getattr(features["Conv_0"], matrix).power(power).dense()
    root = root if root.ndim == 3 else root[None]
    expected = jnp.sqrt((jnp.einsum("gij,pgj->pgi", root, patches) ** 2).sum((1, 2)))
    assert found.shape == record.outputs.shape[:3]
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=2e-3, atol=2e-4 * float(expected.max()))


def test_feature_maps_are_the_layers_outputs():
    model = nn.Sequential([nn.Conv(3, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(2)])
    images = jnp.asarray(networks.images())
    variables = jax.jit(model.init)(jax.random.key(0), images)
    found = transforms.feature_maps(model, variables, images)
    kernel, bias = (variables["params"]["layers_0"][name] for name in ("kernel", "bias"))
    expected = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert list(found) == ["layers_0"]
    np.testing.assert_allclose(found["layers_0"], expected + bias, atol=1e-5)


def test_eigenvector_patches_are_in_kernel_order():
    """The leading eigenvector of w w^T is w."""
    kernel = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    matrix = FeatureMatrix.from_factor(jnp.asarray(kernel.reshape(-1, 1)))
    patch = transforms.eigenvector_patches(matrix, (3, 2, 4))[..., 0]
    np.testing.assert_allclose(np.abs(patch), np.abs(kernel) / np.linalg.norm(kernel), atol=1e-6)


def test_bad_input_says_what_was_wanted():
    model = networks.OneConv({"features": 2, "kernel_size": (3, 3)})
    variables, images = networks.random_variables(model), jnp.asarray(networks.images())
    for options, said in (
        ({"matrix": "ntk"}, "needed 'nfm' or 'agop'"),
        ({"layers": "Dense"}, "matches no layer"),
        ({}, "no features"),
    ):
        with pytest.raises(UserError, match=said):
            transforms.image_transforms(model, variables, images, {}, **options)


def test_first_layer_of_a_trained_network_shows_edges():
    """Of the public ResNet-20, on scikit-learn's photograph, against the Sobel magnitude of its grey values."""
    folder = Path(os.environ.get("AGOP_JAX_DATA", ""))
    if not ((folder / "resnet20_cifar10.npz").is_file() and (folder / "cifar10.npz").is_file()):
        pytest.skip("set AGOP_JAX_DATA to a folder with resnet20_cifar10.npz and cifar10.npz")
    donor = pretrained.load_pretrained("resnet20", f"npz:{folder / 'resnet20_cifar10.npz'}")
    pipeline = Pipeline(donor.mean, donor.std)
    with np.load(folder / "cifar10.npz") as file:
        images = np.asarray(pipeline(jnp.asarray(file["test_images"][:64])))
    features = extract(donor.model, donor.variables, images, progress=False)
    picture = load_sample_image("china.jpg")
    shown = pipeline(jnp.asarray(picture)[None])
    (edges,) = transforms.image_transforms(donor.model, donor.variables, shown, features, "Conv_0")["Conv_0"]
    grey = picture.mean(-1)
    sobel = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    inner = slice(2, -2)  # padding makes edges of its own
    assert np.corrcoef(edges[inner, inner].ravel(), sobel[inner, inner].ravel())[0, 1] > 0.5


def test_pictures_show_what_they_are_given():
    """Numbers of panels and pixels; how they look is for the eye."""
    model = models.create("small_cnn", num_classes=3, features=(4, 12))
    images = jnp.asarray(networks.images()[..., :3])
    variables = jax.jit(model.init)(jax.random.key(0), images)
    features = extract(model, variables, np.asarray(images), progress=False)
    assert len(feature_figures.heat_maps(features).axes) == 2 * len(features)
    seen = transforms.image_transforms(model, variables, images, features)
    figure = feature_figures.transform_grid(np.asarray(images[0]) > 0, {k: np.asarray(v[0]) for k, v in seen.items()})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["picture", "Conv_0", "Conv_1"]
    maps = {path: np.asarray(found[0]) for path, found in transforms.feature_maps(model, variables, images).items()}
    titles = [axes.get_title(loc="left") for axes in feature_figures.feature_maps(maps).axes]
    assert titles[:4] == [str(i) for i in np.argsort(-maps["Conv_0"].var((0, 1)))]  # 4 channels, then 8 of 12
    assert len(titles) == 12


def test_a_large_matrix_is_shown_by_block_means(monkeypatch):
    monkeypatch.setattr(feature_figures, "PIXELS", 3)
    factor = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32))
    shown = feature_figures.block_means(FeatureMatrix.from_factor(factor))
    expected = np.asarray(factor @ factor.T).reshape(3, 2, 3, 2).mean((1, 3))
    np.testing.assert_allclose(shown, expected, atol=1e-5)

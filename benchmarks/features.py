"""Features in the shapes of VGG11's, for the suites that store them and draw from them; their values do not matter."""

from collections import Counter
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from agop_jax import LayerFeatures
from benchmarks import networks

SIZE, OUTPUTS = 32, 10
FULL, QUICK = 1.0, 1 / 16  # widths

Features = Mapping[str, LayerFeatures]


def vgg11(width: float) -> dict[str, LayerFeatures]:
    """8 convolutions and a Dense layer: random kernels, and for S a matrix of full rank."""
    _, variables = networks.create("vgg11", SIZE, OUTPUTS, width)
    random = np.random.default_rng(1)

    def layer(path: str, kernel: jnp.ndarray, bias: jnp.ndarray) -> LayerFeatures:
        filters = kernel.shape[-1]
        gradients = random.normal(size=(filters, 2 * filters)) / filters
        gram = jnp.asarray(gradients @ gradients.T, jnp.float32)
        return LayerFeatures(kernel=kernel, gradient_gram=gram, count=1, path=path, bias=bias)

    return {path: layer(path, own["kernel"], own["bias"]) for path, own in variables["params"].items()}


def convolutions(features: Features) -> list[LayerFeatures]:
    """In the order of the network."""
    return [layer for path, layer in features.items() if path.startswith("Conv_")]


def counted(features: Features) -> Counter[tuple[int, int]]:
    """(k, filters) -> number of convolutions; a peer is timed on one of each, and counted as often."""
    return Counter(layer.matrix.shape for layer in convolutions(features))


def by_size(features: Features) -> dict[int, LayerFeatures]:
    """k -> the first convolution whose feature matrices are k x k."""
    return {len(layer.matrix): layer for layer in reversed(convolutions(features))}


def covariance(layer: LayerFeatures) -> np.ndarray:
    """AGOP^(1/2) with unit trace as a k x k matrix: what the peer keeps in CSV and draws from."""
    return np.asarray(layer.agop.power(0.5).normalize().dense())

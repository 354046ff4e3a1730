"""What a layer sees in a picture: the picture through M^(1/2) of a layer, and the layer's feature maps.

The image transform is that of Beaglehole et al. 2023 (arXiv 2309.00570): every patch x of the layer's input becomes
|M^(1/2) x|, one number a position. Bright is what the layer amplifies. With M = V D V^T it is the norm over the
channels of a convolution with the kernel V D^(1/2).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from agop_jax.core import devices, trees
from agop_jax.core.compilation import jit
from agop_jax.core.errors import UserError
from agop_jax.core.networks import open_network
from agop_jax.core.types import Array, Float, Images
from agop_jax.features.evaluation import Record
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.features.patches import matrix_to_kernel
from agop_jax.features.sites import Site
from agop_jax.features.taps import tap

EVERY = ".*"  # also of a network without convolutions


@devices.on_purpose
def image_transforms(
    model: Any,
    variables: Any,
    images: Images,
    features: Mapping[str, LayerFeatures],
    layers: str = EVERY,
    matrix: str = "agop",
    power: float = 0.5,
    **apply_kwargs: Any,
) -> dict[str, Float[Array, "n h2 w2"]]:
    """|M^power x| at every position of the chosen convolutions, for the user's own pictures.

    Args:
      model, variables: as for `extract`.
      images: (n, h, w, c), normalised as the network expects, of any size that the network takes.
      features: of the same network.
      layers: regular expression on layer paths; Dense layers have no positions and are left out.
      matrix: 'nfm' or 'agop'.
      power: of M; 0.5 as in the papers.

    Returns:
      {layer path: (n, h2, w2)} with h2 and w2 those of the layer's output.

    Raises:
      UserError: no convolution of two dimensions matches; features of another network.
    """
    if matrix not in ("nfm", "agop"):
        raise UserError(f"matrix: needed 'nfm' or 'agop', got {matrix!r}")
    transforms = {}
    for path, (site, record, _) in _convolutions(model, variables, images, layers, apply_kwargs).items():
        if path not in features:
            raise UserError(f"layer {path!r} has no features. Layers: {', '.join(features)}.")
        layer = features[path]
        transforms[path] = _transform(site, record, layer.kernel.shape, getattr(layer, matrix).power(2 * power))
    return transforms


@devices.on_purpose
def feature_maps(
    model: Any, variables: Any, images: Images, layers: str = EVERY, **apply_kwargs: Any
) -> dict[str, Float[Array, "n h2 w2 cout"]]:
    """The outputs of the chosen convolutions, before any nonlinearity; of a layer called twice, of its first call."""
    chosen = _convolutions(model, variables, images, layers, apply_kwargs)
    return {
        path: site.outputs_channels_last(record.outputs) + (0 if bias is None else bias)
        for path, (site, record, bias) in chosen.items()
    }


def _convolutions(
    model: Any, variables: Any, images: Images, layers: str, apply_kwargs: Mapping[str, Any]
) -> dict[str, tuple[Site, Record, Array | None]]:
    """{layer: (site, record, bias) of its first product}, of the chosen layers with a kernel (kh, kw, cin, cout)."""
    network, images = open_network(model, variables, apply_kwargs=apply_kwargs), jnp.asarray(images)
    tapped = tap(network, images)
    kernels = tapped.kernels(network.params, network.others)
    biases = tapped.biases(network.params, kernels)
    two_dimensional = [path for path in tapped.layers if kernels[path].ndim == 4 and not tapped.first(path).stacked]
    chosen = trees.select(two_dimensional, layers) if two_dimensional or layers != EVERY else []
    _, records = jit(lambda params, others, x: tapped.apply(params, others, {}, x))(*network[1:3], images)
    return {path: (tapped.first(path), records[tapped.layers[path][0]], biases[path]) for path in chosen}


def _transform(site: Site, record: Record, shape: tuple[int, ...], squared: FeatureMatrix) -> Float[Array, "n h2 w2"]:
    """The norm of each patch under M^(2 power): a convolution with the scaled eigenvectors, squared and added up."""
    vectors = squared.vectors * jnp.sqrt(squared.values)[..., None, :]
    kernel = matrix_to_kernel(vectors, (*shape[:-1], -1))
    positions = site.outputs_channels_last(record.outputs).shape[:-1]
    along = site.product(record.inputs.astype(kernel.dtype), kernel, positions)
    return jnp.sqrt((along**2).sum(-1))


def eigenvector_patches(matrix: FeatureMatrix, shape: tuple[int, int, int], num: int = 8) -> np.ndarray:
    """The top eigenvectors of a convolution's matrix as filters, (kh, kw, cin, num), largest eigenvalue first.

    Args:
      shape: (kh, kw, cin) of the layer's kernel.
      num: how many; fewer where the rank is lower.
    """
    if matrix.vectors.ndim != 2 or matrix.size != int(np.prod(shape)):
        raise UserError(
            f"eigenvector_patches: wanted one matrix of size {int(np.prod(shape))}, got {matrix.vectors.shape}"
        )
    return np.asarray(matrix.vectors[:, :num]).reshape(*shape, -1)

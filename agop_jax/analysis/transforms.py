"""What a layer sees in a picture: the picture through M^(1/2) of a layer, and the layer's feature maps.

The image transform is that of Beaglehole et al. 2023 (arXiv 2309.00570): every patch x of the layer's input becomes
|M^(1/2) x|, one number a position. Bright is what the layer amplifies. With M = V D V^T it is the norm over the
channels of a convolution with the kernel V D^(1/2).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core import trees
from agop_jax.core.compilation import jit
from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float, Images, Variables
from agop_jax.features.extraction import tap
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.features.patches import matrix_to_kernel
from agop_jax.features.taps import LayerSpec, Record

EVERY = ".*"  # also of a network without convolutions


def image_transforms(
    model: Any,
    variables: Variables | None,
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
        raise UserError(f"matrix: wanted 'nfm' or 'agop', got {matrix!r}")
    records, specs = _records(model, variables, images, **apply_kwargs)
    found = {}
    for path in _convolutions(specs, layers):
        if path not in features:
            raise UserError(f"layer {path!r} has no features. Layers: {', '.join(features)}.")
        found[path] = _transform(records[path], specs[path], getattr(features[path], matrix).power(2 * power))
    return found


def feature_maps(
    model: Any, variables: Variables | None, images: Images, layers: str = EVERY, **apply_kwargs: Any
) -> dict[str, Float[Array, "n h2 w2 cout"]]:
    """The outputs of the chosen convolutions, before any nonlinearity; of a layer called twice, of its first call."""
    records, specs = _records(model, variables, images, **apply_kwargs)
    return {path: records[path].outputs for path in _convolutions(specs, layers)}


def _records(
    model: Any, variables: Variables | None, images: Images, **apply_kwargs: Any
) -> tuple[dict[str, Record], dict[str, LayerSpec]]:
    variables, tapped = tap(model, variables, jnp.asarray(images), **apply_kwargs)
    _, records = jit(lambda v, x: tapped.apply(v, None, x))(variables, images)
    return {path: calls[0] for path, calls in records.items()}, tapped.specs


def _convolutions(specs: Mapping[str, LayerSpec], layers: str) -> list[str]:
    two_dimensional = [path for path, spec in specs.items() if len(spec.kernel_size) == 2 and not spec.stacked]
    return trees.select(two_dimensional, layers) if two_dimensional or layers != EVERY else []


def _transform(record: Record, spec: LayerSpec, squared: FeatureMatrix) -> Float[Array, "n h2 w2"]:
    """The norm of each patch under M^(2 power): a convolution with the scaled eigenvectors, squared and added up."""
    if isinstance(spec.padding, str) and spec.padding.upper() not in ("SAME", "VALID"):
        raise UserError(f"image transforms need padding 'SAME', 'VALID' or numbers, got {spec.padding!r}")
    vectors = squared.vectors * jnp.sqrt(squared.values)[..., None, :]
    kernel = matrix_to_kernel(vectors, (*record.kernel.shape[:-1], -1))
    along = _convolve(record.inputs.astype(kernel.dtype), kernel, spec)
    return jnp.sqrt((along**2).sum(-1))


@partial(jax.jit, static_argnames="spec")
def _convolve(inputs: Array, kernel: Array, spec: LayerSpec) -> Array:
    """As the layer itself would, with another number of filters."""
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        spec.strides,
        spec.padding,
        lhs_dilation=spec.input_dilation,
        rhs_dilation=spec.kernel_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
        precision=jax.lax.Precision.HIGHEST,
    )


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

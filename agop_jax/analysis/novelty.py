"""How new drawn filters are: a copy should not be called a draw."""

from collections.abc import Mapping

import jax.numpy as jnp

from agop_jax.core.types import Array, Float
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import HIGHEST


def nearest_cosine(layers: Mapping[str, LayerFeatures], donor: Mapping[str, LayerFeatures]) -> float:
    """The mean over filters of the largest |cosine| with a filter of the donor's layer of that name.

    It is 1 for copies, whatever their scale and sign. Of k inputs and c donor filters, random filters have about
    sqrt(2 log(c) / k): the figure of an init without a donor is the one to compare with.

    Args:
      layers: with the new kernels.
      donor: of the donor; layers that it lacks, whose fan-in differs or whose filters are not known do not count.

    Returns:
      nan if no layer counts.
    """
    known = {path: layer for path, layer in donor.items() if not layer.matrices}
    largest = [_largest(layer.matrix, known[path].matrix) for path, layer in layers.items() if path in known]
    cosines = [values for values in largest if values is not None]
    return float(jnp.concatenate(cosines).mean()) if cosines else float("nan")


def _largest(new: Float[Array, "*a k c"], old: Float[Array, "*b k2 d"]) -> Float[Array, " filters"] | None:
    if new.shape[:-1] != old.shape[:-1]:
        return None
    cosines = jnp.einsum("...kc,...kd->...cd", _unit(new), _unit(old), precision=HIGHEST)
    return jnp.abs(cosines).max(-1).ravel()


def _unit(filters: Float[Array, "*stack k c"]) -> Float[Array, "*stack k c"]:
    """A filter of zeros stays one, near to none."""
    norms = jnp.linalg.norm(filters, axis=-2, keepdims=True)
    return filters / jnp.where(norms > 0, norms, 1)

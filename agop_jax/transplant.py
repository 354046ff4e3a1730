"""A donor's features + a method -> a recipient's initial variables."""

import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from agop_jax import initializers, trees
from agop_jax.errors import UserError
from agop_jax.layer_features import LayerFeatures
from agop_jax.taps import inference_arguments
from agop_jax.types import Array, PRNGKey, Variables


def initialize(
    model: nn.Module,
    key: PRNGKey,
    sample_input: Array,
    features: Mapping[str, LayerFeatures] | None,
    method: str,
    layers: str = ".*",
) -> Variables:
    """The model's own initial variables with the selected kernels drawn anew.

    What is not selected, and what `method` does not touch (biases, normalisation), depends on `key` and the model alone:
    recipients of one key differ only in the selected kernels, so that methods can be compared in pairs.

    Args:
      model: a Linen module, of any width.
      key: for the model's own initialisers and for the draws.
      sample_input: (n, h, w, c), of which only shape and dtype matter.
      features: of the donor, by layer path; may be None for methods without a donor.
      method: a name in `INITIALIZERS`.
      layers: regular expression for the whole path of a layer.

    Raises:
      UserError: unknown method, a pattern that matches no layer, a layer the donor lacks or whose shape does not fit.
    """
    model_key, draw_key = jax.random.split(key)
    variables = dict(model.init(model_key, sample_input, **inference_arguments(type(model).__call__)))
    kernels = trees.kernels(variables["params"])
    new = {}
    for path in trees.select(kernels, layers):
        init = initializers.kernel_init(_donor_layer(features, path, method), method)
        layer_key = jax.random.fold_in(draw_key, zlib.crc32(path.encode()))
        new[path] = _named(path, init, layer_key, kernels[path])
    return {**variables, "params": trees.replace_kernels(variables["params"], new)}


def _donor_layer(features: Mapping[str, LayerFeatures] | None, path: str, method: str) -> LayerFeatures | None:
    if isinstance(initializers.get_method(method), initializers.Plain):
        return None
    if features is None:
        raise UserError(f"init {method!r} needs the features of a donor, got features=None")
    if path not in features:
        known = ", ".join(features)
        raise UserError(f"layer {path!r}: the donor has no such layer. It has: {known}. Select others with layers=...")
    return features[path]


def _named(path: str, init: initializers.KernelInit, key: PRNGKey, kernel: Any) -> Any:
    """Draws, and names the layer in what went wrong."""
    try:
        return init(key, kernel.shape, kernel.dtype)
    except ValueError as error:
        message = str(error)
        raise UserError(message if f"layer {path!r}" in message else f"layer {path!r}: {message}") from error

"""A donor's features + a method -> a recipient's initial variables."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging

from agop_jax.core import trees
from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, PRNGKey, Variables
from agop_jax.features import taps
from agop_jax.features.layer import LayerFeatures
from agop_jax.initializers import coupling
from agop_jax.initializers.coupling import POOR_FIT, Donor
from agop_jax.initializers.registry import KAIMING_NORMAL, Method, get_method
from agop_jax.initializers.sources import Copy, KernelInit
from agop_jax.initializers.streams import residual_streams


class Transplant(NamedTuple):
    """A recipient's initial variables, and for coupled methods how well each layer's basis was fitted (R^2)."""

    variables: Variables
    explained_variance: dict[str, float]


def initialize(
    model: nn.Module,
    key: PRNGKey,
    sample_input: Array,
    features: Mapping[str, LayerFeatures] | None,
    method: str,
    layers: str = ".*",
    *,
    images: Array | None = None,
    donor: Donor | None = None,
) -> Variables:
    """The model's own initial variables with the selected kernels drawn anew.

    What is not selected, and what `method` does not touch (biases, normalisation), depends on `key` and the model
    alone: recipients of one key differ only in the selected layers, so that methods can be compared in pairs. 'copy'
    takes over the biases of the selected layers too.

    Args:
      model: a Linen module, of any width that the method allows.
      key: for the model's own initialisers and for the draws.
      sample_input: (n, h, w, c), of which only shape and dtype matter.
      features: of the donor, by layer path; may be None for methods without a donor.
      method: a name in `INITIALIZERS`, with options if wanted.
      layers: regular expression for the whole path of a layer.
      images: (n, h, w, c) as the recipient expects them, unlabelled, some 256: for coupled methods and 'lsuv'.
      donor: the donor as a network with the same images as it expects them: for coupled methods.

    Raises:
      UserError: unknown method, a pattern that matches no layer, a layer the donor lacks or whose shape does not fit,
        or images or donor missing where they are needed.
    """
    done = transplant(model, key, sample_input, features, method, layers, images=images, donor=donor)
    for path, explained in done.explained_variance.items():
        if explained < POOR_FIT:
            logging.warning(
                "init %r: only %.0f %% of the donor's input to %r is explained", method, 100 * explained, path
            )
    return done.variables


def transplant(
    model: nn.Module,
    key: PRNGKey,
    sample_input: Array,
    features: Mapping[str, LayerFeatures] | None,
    method: str,
    layers: str = ".*",
    *,
    images: Array | None = None,
    donor: Donor | None = None,
) -> Transplant:
    """`initialize`, with the quality of the fits."""
    found = get_method(method)
    if found.needs_donor and features is None:
        raise UserError(f"init {method!r} needs the features of a donor, got features=None")
    if (found.lsuv or found.coupled) and images is None:
        raise UserError(f"init {method!r} needs a batch of images: initialize(..., images=images)")
    if found.coupled and donor is None:
        raise UserError(f"init {method!r} needs the donor as a network: initialize(..., donor=Donor(...))")
    model_key, draw_key = jax.random.split(key)
    variables = _own_variables(model, model_key, sample_input)
    chosen = trees.select(trees.kernels(variables["params"]), layers)
    if not found.layerwise:
        called = list(taps.tap(model, variables, sample_input).specs)
        chosen = [path for path in called if path in chosen]
    streams = residual_streams(model, variables, sample_input) if found.coupled else {}
    recipient = _Recipient(model, variables, draw_key, features or {}, found, images, donor, tuple(chosen), streams)
    explained = {path: value for path in chosen if (value := recipient.draw(path)) is not None}
    return Transplant(recipient.variables, explained)


def _own_variables(model: nn.Module, key: PRNGKey, sample_input: Array) -> dict[str, Any]:
    """By the model's own initialisers; as one compiled step, where piece by piece they are a hundred small ones."""
    try:
        hash(model)
    except TypeError:  # a field that is an array, say
        return dict(_init(model, key, sample_input))
    return dict(_compiled_init(model, key, sample_input))


def _init(model: nn.Module, key: PRNGKey, sample_input: Array) -> Variables:
    return model.init(key, sample_input, **taps.inference_arguments(type(model).__call__))


_compiled_init = jax.jit(_init, static_argnums=0)


@dataclass
class _Recipient:
    """A recipient whose layers are drawn one after another, from the first to the last."""

    model: nn.Module
    variables: Variables
    key: PRNGKey
    features: Mapping[str, LayerFeatures]
    method: Method
    images: Array | None
    donor: Donor | None
    layers: tuple[str, ...]
    streams: Mapping[str, str]
    scales: dict[str, Array] = field(default_factory=dict)  # of the streams met so far

    def draw(self, path: str) -> float | None:
        """Draws one layer; returns the explained variance if it is coupled."""
        shape = trees.kernels(self.variables["params"])[path].shape
        if self.method.coupled:
            return self._draw_coupled(path, shape)
        kernel = _named(path, self._source(path), self._key(path), shape)
        self._set(path, kernel)
        if isinstance(self.method.source, Copy):
            self._copy_bias(path)
        if self.method.lsuv:
            self._set(path, kernel * self._unit_variance(path))
        return None

    def _draw_coupled(self, path: str, shape: tuple[int, ...]) -> float:
        """Layers of one residual stream share their mixing and their scale."""
        basis, explained = coupling.fit_basis(self._moments(self.donor, path))
        stream = self.streams[path]
        own_key, mixing_key = (jax.random.split(self._key(name))[i] for i, name in enumerate((path, stream)))
        kernel = coupling.coupled_kernel(own_key, mixing_key, self.method, self._layer(path), basis, shape)
        if stream not in self.scales:
            self.scales[stream] = coupling.he_scale(kernel)
            if self.method.lsuv:
                self._set(path, kernel * self.scales[stream])
                self.scales[stream] *= self._unit_variance(path)
        self._set(path, kernel * self.scales[stream])
        return float(explained)

    def _unit_variance(self, path: str) -> Array:
        """The factor that brings the layer's output, as it is now, to variance 1 on the batch."""
        deviation = coupling.output_deviation(self._moments(None, path))
        return jnp.where(deviation > 0, 1 / jnp.where(deviation > 0, deviation, 1), 1)

    def _source(self, path: str) -> KernelInit:
        if self.method.first and path != self.layers[0]:
            return KAIMING_NORMAL.kernel_init(None)
        return self.method.source.kernel_init(self._layer(path) if self.method.needs_donor else None)

    def _moments(self, donor: Donor | None, path: str) -> coupling.Moments:
        return coupling.moments(self.model, self.variables, self.images, donor, self.layers)[path]

    def _layer(self, path: str) -> LayerFeatures:
        if path not in self.features:
            known = ", ".join(self.features)
            raise UserError(
                f"layer {path!r}: the donor has no such layer. It has: {known}. Select others with layers=..."
            )
        return self.features[path]

    def _key(self, path: str) -> PRNGKey:
        return jax.random.fold_in(self.key, zlib.crc32(path.encode()))

    def _set(self, path: str, kernel: Array) -> None:
        self.variables = {**self.variables, "params": trees.replace_kernels(self.variables["params"], {path: kernel})}

    def _copy_bias(self, path: str) -> None:
        flat = trees.flatten(self.variables["params"])
        name, bias = trees.join(path, "bias"), self._layer(path).bias
        if name in flat and bias is not None:
            channels = self.method.source.indices(len(bias), len(flat[name]))
            flat[name] = bias[channels].astype(flat[name].dtype)
            self.variables = {**self.variables, "params": trees.unflatten(flat)}


def _named(path: str, init: KernelInit, key: PRNGKey, shape: Any) -> Array:
    """Draws, and names the layer in what went wrong."""
    try:
        return init(key, shape)
    except ValueError as error:
        message = str(error)
        raise UserError(message if f"layer {path!r}" in message else f"layer {path!r}: {message}") from error

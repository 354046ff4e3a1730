"""A donor's features + a method -> initial parameters of a whole model."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from agop_jax.core import devices, trees
from agop_jax.core.errors import UserError
from agop_jax.core.networks import Network, open_network
from agop_jax.core.types import Array, PRNGKey
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.taps import Tapped, tap
from agop_jax.initializers import arguments, coupling
from agop_jax.initializers.coupling import POOR_FIT, Donor, Passes
from agop_jax.initializers.registry import KAIMING_NORMAL, Method
from agop_jax.initializers.sources import Copy, KernelInit, Plain
from agop_jax.initializers.streams import residual_streams

ROUNDS = 20  # at most, of scaling a kernel that is used more than once to unit variance
TOLERANCE = 1e-3  # of that variance's root


class Initialization(NamedTuple):
    """Initial variables of a model, and for coupled methods how well each layer's basis was fitted (R^2)."""

    variables: Any
    explained_variance: dict[str, float]


def initialize(
    model: Any,
    variables: Any,
    inputs: Any,
    features: Mapping[str, LayerFeatures] | None,
    method: str | Method,
    *,
    key: PRNGKey | int,
    layers: str = ".*",
    donor: Donor | None = None,
    apply_kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """The model with the kernels of the selected layers drawn anew: parameters in, parameters out.

    Everything else stays as it is, so that recipients of the same variables and key differ in the selected layers
    alone, and methods can be compared in pairs. Copies also take over what works on the channels of the selected
    layers: biases, and scale, bias and statistics of normalisations.

    Args:
      model, variables, apply_kwargs: as for `extract`, of any width that the method allows.
      inputs: a batch as the model expects it. Of most methods only its shape matters; methods with 'lsuv' and coupled
        ones look at its examples, some 256 without labels.
      features: of the donor, by layer path; may be None for methods without a donor.
      method: a name in `INITIALIZERS`, with options if need be, or a `Method`.
      key: of the draws, or the seed of one.
      layers: regular expression for the whole path of a layer.
      donor: the donor as a network, with the same examples as it expects them: for coupled methods.

    Returns:
      What `variables` are: such a dictionary of a Linen model, such a pytree of a function's parameters, a new module
      of the same class for NNX and Equinox.

    Raises:
      UserError: unknown method, a pattern that matches no layer, a layer that the donor lacks or whose shape does not
        fit, a kernel that is computed from its parameters, a donor missing where it is needed.
    """
    done = initialization(
        model, variables, inputs, features, method, key=key, layers=layers, donor=donor, apply_kwargs=apply_kwargs
    )
    for path, explained in done.explained_variance.items():
        if explained < POOR_FIT:
            logging.warning(
                "init %r: only %.0f %% of the donor's input to %r is explained", method, 100 * explained, path
            )
    return done.variables


@devices.on_purpose
def initialization(
    model: Any,
    variables: Any,
    inputs: Any,
    features: Mapping[str, LayerFeatures] | None,
    method: str | Method,
    *,
    key: PRNGKey | int,
    layers: str = ".*",
    donor: Donor | None = None,
    apply_kwargs: Mapping[str, Any] | None = None,
) -> Initialization:
    """`initialize`, with the quality of the fits."""
    name, method = arguments.method_of(method)
    arguments.require_donor(name, method, features, donor, inputs)
    key = arguments.key_of(key)
    network = open_network(model, variables, apply_kwargs=apply_kwargs)
    tapped = tap(network, jax.tree.map(lambda leaf: leaf[:1], inputs))
    selected = tuple(trees.select(tapped.layers, layers))
    passes = _passes(model, variables, inputs, selected, donor if method.needs_network else None, apply_kwargs)
    draw = lambda method: _Recipient(network, tapped, selected, key, features or {}, method, passes).drawn()
    recipient = draw(method)
    if method.matched is not None:
        recipient.match(draw(method.matched).kernels())
    return Initialization(network.rebuild(recipient.params, recipient.others), recipient.explained_variance)


def _passes(
    model: Any, variables: Any, inputs: Any, layers: tuple[str, ...], donor: Donor | None, apply_kwargs: Any
) -> Passes:
    """The recipient as it will be trained, and its donor as it was: with statistics of the batch, and with its own."""
    network = open_network(model, variables, training=True, apply_kwargs=apply_kwargs)
    if donor is None:
        return Passes(network, inputs, layers)
    return Passes(network, inputs, layers, open_network(donor.model, donor.variables), donor.inputs)


@dataclass
class _Recipient:
    """A recipient whose layers are drawn one after another, from the first to the last."""

    network: Network
    tapped: Tapped
    layers: tuple[str, ...]
    key: PRNGKey
    features: Mapping[str, LayerFeatures]
    method: Method
    passes: Passes
    params: Any = None
    others: Any = None
    explained_variance: dict[str, float] = field(default_factory=dict)
    scales: dict[str, Array] = field(default_factory=dict)  # of the residual streams that were met so far

    def drawn(self) -> "_Recipient":
        """Draws every layer."""
        self.params, self.others = self.network.params, self.network.others
        shapes = {path: kernel.shape for path, kernel in self.kernels().items()}
        if self.method.coupled:
            streams = residual_streams(self.tapped)
            for path in self.layers:
                self._draw_coupled(path, shapes[path], streams[path])
        elif self.method.lsuv:
            for path in self.layers:
                self._set({path: self._kernel(path, shapes[path])})
                self._scale_to_unit_variance(path)
        else:
            self._set({path: self._kernel(path, shapes[path]) for path in self.layers})
        if isinstance(self.method.source, Copy):
            self._copy_biases()
        return self

    def kernels(self) -> dict[str, Array]:
        """Of the selected layers, as they are now."""
        every = self.tapped.kernels(self.params, self.network.others)
        return {path: every[path] for path in self.layers}

    def match(self, controlled: Mapping[str, Array]) -> None:
        """Gives each layer's filters the mean squared norm of those that they are the control of."""
        square = lambda kernel: (kernel**2).mean()
        scales = {path: jnp.sqrt(square(controlled[path]) / square(kernel)) for path, kernel in self.kernels().items()}
        self._set({path: scales[path] * kernel for path, kernel in self.kernels().items()})

    def _kernel(self, path: str, shape: tuple[int, ...]) -> Array:
        init, key = self._source(path, shape), self._key(path)
        if isinstance(self.method.source, Plain):
            init = _each(init, self.tapped.first(path).stacked)
        return _named(path, init, key, shape)

    def _draw_coupled(self, path: str, shape: tuple[int, ...], stream: str) -> None:
        """Layers of one residual stream share their mixing and their scale."""
        variables = self.params, self.network.others
        moments = [self.passes.moments(variables, held_out)[path] for held_out in (False, True)]
        coupling.require_signal(path, moments[0])
        basis, explained = coupling.fit_basis(*moments)
        own_key, mixing_key = (jax.random.split(self._key(name))[i] for i, name in enumerate((path, stream)))
        kernel = coupling.coupled_kernel(own_key, mixing_key, self.method, self._layer(path), basis, shape)
        if stream not in self.scales:
            self.scales[stream] = coupling.he_scale(kernel)
            if self.method.lsuv:
                self._set({path: kernel * self.scales[stream]})
                self.scales[stream] *= self._unit_variance(path)
        self._set({path: kernel * self.scales[stream]})
        self.explained_variance[path] = float(explained)

    def _scale_to_unit_variance(self, path: str) -> None:
        """Once, since the product is linear in its kernel; again where the kernel makes its own later inputs."""
        repeated = len(self.tapped.layers[path]) > 1 or self.tapped.first(path).depth > 0
        for _ in range(ROUNDS if repeated else 1):
            factor, kernel = self._unit_variance(path), self.kernels()[path]
            self._set({path: kernel * factor.reshape(*factor.shape, *(1,) * (kernel.ndim - factor.ndim))})
            if not (jnp.abs(factor - 1) > TOLERANCE).any():
                return

    def _unit_variance(self, path: str) -> Array:
        """The factor that brings the layer's product, as it is now, to variance 1 on the batch; for each step."""
        deviation = self.passes.spreads((self.params, self.network.others))[path].deviation
        return jnp.where(deviation > 0, 1 / jnp.where(deviation > 0, deviation, 1), 1)

    def _source(self, path: str, shape: tuple[int, ...]) -> KernelInit:
        if self.method.first and path != self.layers[0]:
            return KAIMING_NORMAL.kernel_init(None)
        source = self.method.source
        if not self.method.needs_donor:
            return source.kernel_init(None)
        layer = self._layer(path)
        if isinstance(source, Copy) and source.channels != "same" and self._other_width(path, shape):
            return source.kernel_init(layer, self._rows(path, shape))
        return source.kernel_init(layer)

    def _other_width(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether the layer differs from the donor's, or a layer whose outputs come into it.

        A sum over channels has one size in every width, and doubles where all channels are there twice.
        """
        feeders = {
            self.tapped.sites[place].layer for place in self.tapped.dataflow.feeders[self.tapped.layers[path][0]]
        }
        kernels = self.kernels()
        changed = (kernels[name].size != self._layer(name).kernel.size for name in feeders & kernels.keys())
        return math.prod(shape) != self._layer(path).kernel.size or any(changed)

    def _rows(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        """Which row of the donor's matrix each row of a wider or narrower recipient's is.

        The rows of a layer are the channels that come into it, of one layer or several, once a position in its window
        or in what was flattened before it.
        """
        layer, site = self._layer(path), self.tapped.first(path)
        segments, donor, period = self.tapped.dataflow.channels[self.tapped.layers[path][0]], [], 0
        for place, count in segments or ():
            own = self._layer(self.tapped.sites[place].layer).kernel.shape[-1] if place else count
            donor.append(period + self.method.source.indices(own, count))
            period += own
        rows, ours = math.prod(layer.kernel.shape[:-1]), math.prod(shape[:-1])
        number = sum(map(len, donor))
        if not number or site.groups > 1 or site.stacked or ours % number or ours // number * period != rows:
            raise UserError(
                f"layer {path!r}: a copy to another width needs to know which channels come into it, and cannot tell: "
                "leave the layer out with layers=..., or copy to the donor's width"
            )
        return (np.arange(ours // number)[:, None] * period + np.concatenate(donor)).ravel()

    def _layer(self, path: str) -> LayerFeatures:
        if path not in self.features:
            known = ", ".join(self.features)
            raise UserError(
                f"layer {path!r}: the donor has no such layer. It has: {known}. Select others with layers=..."
            )
        return self.features[path]

    def _key(self, path: str) -> PRNGKey:
        return jax.random.fold_in(self.key, zlib.crc32(path.encode()))

    def _set(self, kernels: Mapping[str, Array]) -> None:
        self.params = self.tapped.with_kernels(self.params, self.network.others, kernels)

    def _copy_biases(self) -> None:
        """Also what normalises the channels of a layer: without it, a copy is not the donor's function."""
        params, structure = jax.tree.flatten(self.params)
        others, other_structure = jax.tree.flatten(self.others)
        leaves = {"params": params, "others": others}
        for path in self.layers:
            layer, bias = self._layer(path), self.tapped.first(path).bias
            if bias is not None and layer.bias is not None:
                self._copy_channels(params, bias, layer.bias)
            for name, (kind, index) in self.tapped.companions(path).items():
                if name in layer.companions:
                    self._copy_channels(leaves[kind], index, layer.companions[name])
        self.params, self.others = jax.tree.unflatten(structure, params), jax.tree.unflatten(other_structure, others)

    def _copy_channels(self, leaves: list[Array], index: int, values: Array) -> None:
        leaf = leaves[index]
        channels = self.method.source.indices(values.shape[-1], leaf.size * values.shape[-1] // values.size)
        leaves[index] = values[..., channels].reshape(leaf.shape).astype(leaf.dtype)


def _each(init: KernelInit, stacked: int) -> KernelInit:
    """An initialiser for each of a stack of kernels, whose fan-in is that of one."""

    def stack(key: PRNGKey, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        if not stacked:
            return init(key, shape, dtype)
        lead = shape[:stacked]
        keys = jax.random.split(key, lead)
        one = lambda key: init(key, shape[stacked:], dtype)
        for _ in lead:
            one = jax.vmap(one)
        return one(keys)

    return stack


def _named(path: str, init: KernelInit, key: PRNGKey, shape: Any) -> Array:
    """Draws, and names the layer in what went wrong."""
    try:
        return init(key, shape)
    except ValueError as error:
        message = str(error)
        raise UserError(message if f"layer {path!r}" in message else f"layer {path!r}: {message}") from error

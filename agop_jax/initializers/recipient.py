"""A recipient whose layers are drawn one after another, from the first to the last."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.progress import bar
from agop_jax.core.types import Array, PRNGKey
from agop_jax.features.layer import LayerFeatures
from agop_jax.initializers import coupling, scaling, whitening
from agop_jax.initializers.candidates import keep
from agop_jax.initializers.copies import Copy
from agop_jax.initializers.methods import Method
from agop_jax.initializers.passes import Passes, require_one_matrix
from agop_jax.initializers.plan import Plan, donor_layer
from agop_jax.initializers.sources import KernelInit, Plain
from agop_jax.initializers.state import State
from agop_jax.initializers.streams import residual_streams
from agop_jax.initializers.whitening import Whitened

ROUNDS = 20  # at most, of scaling a kernel that makes its own later inputs, in a scan
TOLERANCE = 1e-3  # of the scale that these rounds seek


@dataclass
class Recipient:
    """What is drawn so far.

    Attributes:
      state: the parameters.
      layers: those to draw.
      key: of the draws.
      features: of the donor.
      method: of drawing.
      passes: over the examples, where the method needs them.
      explained_variance: of the fits of a coupled method, by layer.
    """

    state: State
    layers: tuple[str, ...]
    key: PRNGKey
    features: Mapping[str, LayerFeatures]
    method: Method
    passes: Passes | None = None
    explained_variance: dict[str, float] = field(default_factory=dict)
    _factors: dict[Any, np.ndarray] = field(default_factory=dict)  # of the residual streams that were met
    _mixings: dict[Any, np.ndarray] = field(default_factory=dict)  # xi, likewise

    def __post_init__(self) -> None:
        self._tapped = self.state.tapped
        source = self.method.source
        self._plan = Plan(source, self._tapped, self.features) if isinstance(source, Copy) else None
        self._streams = residual_streams(self._tapped)

    def drawn(self) -> "Recipient":
        """Draws every layer; where the method looks at examples, as a walk over them comes to it."""
        if not self.method.needs_examples:
            for path in self.layers:
                self._draw(path)
            return self
        order = self._walks.in_order(self.layers)
        for path in bar(order, "draw", unit="layer"):
            self._walks.reach(path, self.state.variables)
            self._draw(path)
            self._scale(path)
        return self

    @property
    def _walks(self) -> Passes:
        if self.passes is None:
            raise ValueError(f"{self.method.description!r} looks at examples")
        return self.passes

    def kernels(self) -> dict[str, Array]:
        """The present kernels of the layers to draw."""
        return {path: self.state.kernel(path) for path in self.layers}

    def match(self, controlled: Mapping[str, Array]) -> None:
        """Gives each layer's filters the mean squared norm of those that they are the control of."""
        for path, kernel in self.kernels().items():
            scale = jnp.sqrt((controlled[path] ** 2).mean() / (kernel**2).mean())
            bias = self.state.bias(path) if path in self.state.biased else None
            self.state = self.state.having(path, scale * kernel, None if bias is None else scale * bias)

    def _draw(self, path: str) -> None:
        rest, source = self.method.first and path != self.layers[0], self.method.source
        shape = self.state.kernel(path).shape
        if rest:
            self.state = self.state.having(path, self._plain(path, self.method.rest, shape))
        elif self.method.coupled:
            self.state = self.state.having(path, *self._coupled(path, shape))
        elif isinstance(source, Whitened):
            self.state = self.state.having(path, *self._whitened(path, shape))
        elif isinstance(source, Plain):
            self.state = self.state.having(path, self._plain(path, source, shape))
        else:
            init = self._of_donor(path, shape)
            self.state = self.state.having(path, _named(path, init, self._key(path), shape))
        if self._plan and not rest:
            self.state = self._plan.with_channels(self.state, path)

    def _plain(self, path: str, source: Plain, shape: tuple[int, ...]) -> Array:
        return _named(path, _each(source.kernel_init(None), self._tapped.first(path).stacked), self._key(path), shape)

    def _of_donor(self, path: str, shape: tuple[int, ...]) -> KernelInit:
        layer, source = donor_layer(self.features, path), self.method.source
        if self._plan and source.channels != "same" and self._other_width(path, shape):
            return source.kernel_init(layer, self._plan.rows(path, shape), self._plan.columns(path, shape[-1]))
        return source.kernel_init(layer)

    def _other_width(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether the layer differs from the donor's, or a layer whose outputs come into it.

        A sum over channels has one size in every width, and doubles where all channels are there twice.
        """
        tapped = self._tapped
        feeders = {tapped.sites[place].layer for place in tapped.dataflow.feeders[tapped.layers[path][0]]}
        size = lambda name: donor_layer(self.features, name).kernel.size
        changed = (self.state.kernel(name).size != size(name) for name in feeders & {*self.layers})
        return math.prod(shape) != size(path) or any(changed)

    def _coupled(self, path: str, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Layers of one residual stream share their mixing, unless the method says otherwise."""
        method, layer, stream = self.method, donor_layer(self.features, path), self._stream(path)
        coupling.require_kernel_size(path, layer.kernel.shape, shape)
        fit = self._fit(path)
        own_key, mixing_key = (jax.random.split(self._key(name))[i] for i, name in enumerate((path, stream)))
        shuffle_key, basis_key = jax.random.split(own_key)
        fit = coupling.shuffled(fit, shuffle_key) if method.shuffled else fit
        mixture = coupling.mixture(basis_key, mixing_key, method, layer, method.candidates * shape[-1])

        def in_shape(mixture: coupling.Mixture) -> tuple[Array, Array]:
            kernel, bias = mixture.kernel(fit)
            return kernel.reshape(shape), bias

        shared = stream, layer.groups, layer.kernel.shape[-1], shape[-1]
        if shared in self._mixings:
            mixture = mixture._replace(xi=self._mixings[shared])
        elif method.candidates > 1:
            blocks = [in_shape(block) for block in mixture.blocks(method.candidates)]
            mixture = mixture.kept(keep(self._walks, self.state, path, blocks, layer))
        self._mixings[shared] = mixture.xi
        return in_shape(mixture)

    def _stream(self, path: str) -> str:
        return self._streams[path] if self.method.coupled and self.method.shared else path

    def _fit(self, path: str) -> coupling.Fit:
        """The donor's input to a layer from the recipient's, with an intercept where something can hold it."""
        passes, site = self._walks, self._tapped.first(path)
        require_one_matrix(path, site)
        passes.reach_donor(path)
        sides = zip(passes.walks, passes.donors, strict=True)
        parts = [coupling.moments(walk.channels(), donor.channels(), path, site.groups) for walk, donor in sides]
        shifts = site.bias is not None or self._tapped.has_channelwise_norm(path)
        intercept = self.method.fit == "ridge" and shifts
        own = passes.of_chunks(parts, False), passes.of_chunks(parts, True)
        coupling.require_signal(path, own[0])
        fit = coupling.fit_basis(*own, self.method.fit, intercept)
        self.explained_variance[path] = fit.explained
        return fit

    def _whitened(self, path: str, shape: tuple[int, ...]) -> tuple[Array, Array]:
        site = self._tapped.first(path)
        if site.depth:
            raise UserError(f"layer {path!r}: 'whitened' takes no scanned layer: leave it out with layers=...")
        try:
            return whitening.layer(self._walks, path, self.state.variables, site, shape, self._key(path))
        except UserError as error:
            raise UserError(f"layer {path!r}: {error}") from None

    def _scale(self, path: str) -> None:
        """Once, since a product is linear in its kernel; again where a kernel in a scan makes its own later inputs."""
        filters, scanned = self.state.kernel(path).shape[-1], self._tapped.first(path).depth > 0
        # a stream whose channels are padded holds layers of several widths: one scale is that of all, one a channel not
        shared = self._stream(path), filters if self.method.standardised else None
        if shared in self._factors:
            self.state = self.state.times(path, np.resize(self._factors[shared], filters))
        else:
            self._factors[shared] = np.ones(())
            for _ in range(ROUNDS if scanned else 1):
                factors = self._seek(path)
                self._factors[shared] = self._factors[shared] * factors
                self.state = self.state.times(path, factors)
                if (np.abs(factors - 1) <= TOLERANCE).all():
                    break
        if self.method.standardised:
            self.state = self.state.having_bias(path, -self._statistics(path).mean)

    def _seek(self, path: str) -> np.ndarray:
        """What each filter is multiplied by, from its product as it is now."""
        site = self._tapped.first(path)
        if self.method.standardised:
            return scaling.standardising_factors(self._statistics(path))
        if self.method.lsuv:
            statistics, bias = self._statistics(path), self.state.bias(path) if path in self.state.biased else None
            if bias is not None:
                statistics = statistics._replace(mean=statistics.mean + np.asarray(bias, np.float64))
            return scaling.lsuv_factors(statistics, len(site.stack)) * self._share(path)
        kernel = self.state.kernel(path)
        return np.full((*kernel.shape[: site.stacked], kernel.shape[-1]), scaling.he_factor(kernel))

    def _share(self, path: str) -> float:
        """A whitened layer's share of the deviation of its residual stream; see `whitening.py`."""
        if not isinstance(self.method.source, Whitened):
            return 1.0
        return 1 / math.sqrt(sum(stream == self._streams[path] for stream in self._streams.values()))

    def _statistics(self, path: str) -> scaling.Statistics:
        return scaling.merge(self._walks.measure(path, scaling.statistics, self.state.variables))

    def _key(self, path: str) -> PRNGKey:
        return jax.random.fold_in(self.key, zlib.crc32(path.encode()))


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

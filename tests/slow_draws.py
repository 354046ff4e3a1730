"""The plain definition of drawing layer after layer: before each layer, all of both networks anew, chunk by chunk.

The twin of `initializers/recipient.py`, with numpy for what it measures and the package's own draws.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.networks import open_network
from agop_jax.features.taps import tap
from agop_jax.initializers import coupling
from agop_jax.initializers.passes import divide
from agop_jax.initializers.recipient import Recipient
from agop_jax.initializers.registry import get_method
from agop_jax.initializers.state import State


class SlowPasses:
    """All records of both networks at every call."""

    def __init__(self, model: Any, variables: Any, inputs: Any, donor: Any) -> None:
        chunks = divide(len(inputs))
        self.held = [held for _, held in chunks]
        self.network = open_network(model, variables, training=True)
        self.inputs = [inputs[chunk] for chunk, _ in chunks]
        self.donor = open_network(donor.model, donor.variables)
        self.theirs = [donor.inputs[chunk] for chunk, _ in chunks]

    def products(self, layer: str, variables: Any) -> np.ndarray:
        """(positions, filters) of all chunks, without the bias."""
        rows = []
        for inputs in self.inputs:
            tapped = tap(self.network, inputs)
            record = tapped.records(variables, inputs)[tapped.layers[layer][0]]
            rows.append(np.asarray(tapped.first(layer).rows(record.outputs), np.float64))
        return np.concatenate(rows)

    def sides(self, layer: str, variables: Any) -> list[tuple[Any, Any]]:
        """The input of recipient and donor, of each chunk."""
        pairs = []
        for inputs, theirs in zip(self.inputs, self.theirs, strict=True):
            ours, other = tap(self.network, inputs), tap(self.donor, theirs)
            own = ours.records(variables, inputs)[ours.layers[layer][0]]
            donor = other.records((self.donor.params, self.donor.others), theirs)[other.layers[layer][0]]
            sites = ours.first(layer), other.first(layer)
            pairs.append((sites[0].channel_rows(own.inputs), sites[1].channel_rows(donor.inputs)))
        return pairs


def coupled(model, variables, inputs, features, name, key, layers, donor) -> Any:
    """What `initialize` returns of a coupled method with lsuv or standardised channels, without candidates."""
    method, passes = get_method(name), SlowPasses(model, variables, inputs, donor)
    network = open_network(model, variables)
    state = State(tap(network, inputs[:1]), network.params, network.others)
    drawer, scales = Recipient(state, tuple(layers), key, features, method), {}
    for layer in layers:
        site = state.tapped.first(layer)
        sides = passes.sides(layer, state.variables)
        parts = [coupling.moments(ours, theirs, layer, site.groups) for ours, theirs in sides]
        own = ([p for p, held in zip(parts, passes.held, strict=True) if held == flag] for flag in (False, True))
        shifts = site.bias is not None or bool(state.tapped.companions(layer))
        fit = coupling.fit_basis(*own, method.fit, shifts and method.fit == "ridge")
        stream = drawer._stream(layer)
        own_key, mixing_key = (jax.random.split(drawer._key(n))[i] for i, n in enumerate((layer, stream)))
        shape = state.kernel(layer).shape
        drawn = coupling.mixture(jax.random.split(own_key)[1], mixing_key, method, features[layer], shape[-1])
        kernel, bias = drawn.kernel(fit)
        state = state.having(layer, kernel.reshape(shape), bias)
        products = passes.products(layer, state.variables)
        if method.standardised:
            factors = scales.setdefault((stream, shape[-1]), 1 / products.std(0))
            state = state.times(layer, factors)
            state = state.having_bias(layer, -passes.products(layer, state.variables).mean(0))
        else:
            offset = np.asarray(state.bias(layer)) if site.bias is not None else 0.0
            factor = scales.setdefault(stream, 1 / (products + offset).std())
            state = state.times(layer, np.full(shape[-1], factor))
    return network.rebuild(*state.variables)


def lsuv(model, variables, inputs, key, layers, donor) -> Any:
    """What `initialize` returns of 'lsuv'."""
    passes, network = SlowPasses(model, variables, inputs, donor), open_network(model, variables)
    state = State(tap(network, inputs[:1]), network.params, network.others)
    drawer = Recipient(state, tuple(layers), key, {}, get_method("orthogonal"))
    for layer in layers:
        shape = state.kernel(layer).shape
        state = state.having(layer, drawer._plain(layer, get_method("orthogonal").source, shape))
        deviation = passes.products(layer, state.variables).std()
        state = state.having(layer, state.kernel(layer) / jnp.float32(deviation))
    return network.rebuild(*state.variables)

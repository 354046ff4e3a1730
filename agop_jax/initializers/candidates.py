"""What candidates for a layer's filters hand on to the next layer, and which of them to keep.

The filters of a layer are evaluated as many at a time as the layer has, by the recipient's own computation: what comes
between this product and the next, whatever it is (bias, normalisation, ReLU, pooling), gives the input of the next
layer, one channel for each candidate. It is compared with the donor's input to that layer.

Where the computation is not of this kind, the rectified pre-activations of both networks are compared instead, position
by position; standardised channel by channel if a normalisation follows. That is so if

- the layer's channels, and they alone, are not the channels of the next product's input: at the end of a residual
  branch, before a shortcut's convolution, with channels that are not the last axis, inside a scan;
- the next product sees fewer positions than there are candidates, as behind a mean over positions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array
from agop_jax.features.layer import LayerFeatures
from agop_jax.initializers.passes import Passes, outputs
from agop_jax.initializers.selection import ROWS, pursuit
from agop_jax.initializers.state import State

Block = tuple[Array, Array]  # a kernel with as many filters as the layer has, and its bias


def keep(passes: Passes, state: State, path: str, blocks: Sequence[Block], donor: LayerFeatures) -> np.ndarray:
    """Which candidates a layer keeps: (groups, filters of a group), counted through the blocks.

    Args:
      passes: standing before the layer.
      state: of the recipient.
      path: of the layer.
      blocks: candidates.
      donor: the donor's layer.
    """
    states = [state.having(path, *block) for block in blocks]
    chunks = _next_inputs(passes, path, states, donor) or _rectified(passes, path, states, donor)
    activations, targets = (np.concatenate(part).astype(np.float64) for part in chunks)
    groups = donor.groups
    activations = activations.reshape(len(activations), len(blocks), groups, -1)
    targets = targets.reshape(len(targets), groups, -1)
    number = activations.shape[-1]
    own = lambda group: activations[:, :, group].reshape(len(activations), -1)
    return np.stack([pursuit(own(group), targets[:, group], number) for group in range(groups)])


def _next_inputs(
    passes: Passes, path: str, states: Sequence[State], donor: LayerFeatures
) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """The next layer's input, of candidates (rows, all candidates) and donor (rows, channels), of each chunk."""
    filters = states[0].kernel(path).shape[-1]
    reader = passes.walks[0].reader(path, filters)
    if reader is None or reader not in passes.donors[0].tapped.layers:
        return None
    parts = [_some(passes, [walk.next_channels(state.variables) for walk in passes.walks], filters) for state in states]
    if sum(map(len, parts[0])) < len(states) * filters:
        return None
    passes.reach_donor(reader)
    targets = _some(passes, [walk.channels() for walk in passes.donors], donor.kernel.shape[-1])
    if [len(part) for part in targets] != [len(part) for part in parts[0]]:
        raise UserError(f"layer {reader!r}: a selection needs a donor whose inputs have the recipient's positions")
    return [np.concatenate(chunk, axis=1) for chunk in zip(*parts, strict=True)], targets


def _rectified(
    passes: Passes, path: str, states: Sequence[State], donor: LayerFeatures
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    normalised = states[0].tapped.has_channelwise_norm(path)
    parts = []
    for state in states:
        products = passes.measure(path, outputs, state.variables)
        bias = state.bias(path)
        parts.append(_activated(_some(passes, products, products[0].shape[-1]), bias, normalised))
    theirs = passes.measure_donor(path, outputs)
    targets = _activated(_some(passes, theirs, theirs[0].shape[-1]), donor.bias, normalised)
    return [np.concatenate(chunk, axis=1) for chunk in zip(*parts, strict=True)], targets


def _activated(products: list[np.ndarray], bias: Any, normalised: bool) -> list[np.ndarray]:
    whole = np.concatenate(products)
    if normalised:
        deviation = whole.std(0)
        return [np.maximum(part - whole.mean(0), 0) / np.where(deviation > 0, deviation, 1) for part in products]
    return [np.maximum(part + (0 if bias is None else np.asarray(bias)), 0) for part in products]


def _some(passes: Passes, arrays: Sequence[Array], width: int) -> list[np.ndarray]:
    """(rows, width) of each chunk: `ROWS` positions in all, the same at every call."""
    limit = ROWS // len(passes.walks)
    return [_rows(array.reshape(-1, width), limit) for array in arrays]


def _rows(array: Array, limit: int) -> np.ndarray:
    if len(array) > limit:
        array = array[np.sort(np.random.default_rng(0).choice(len(array), limit, replace=False))]
    return np.asarray(array)

"""How a whole network is copied to another width: the channels of each layer, followed through the computation."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.features.tapped import Tapped
from agop_jax.initializers.copies import Copy
from agop_jax.initializers.state import State
from agop_jax.initializers.streams import residual_streams


@dataclass(frozen=True)
class Plan:
    """Which of the donor's channels go where.

    Attributes:
      source: the kind of copy.
      tapped: the recipient.
      features: of the donor.
    """

    source: Copy
    tapped: Tapped
    features: Mapping[str, LayerFeatures]

    def layer(self, path: str) -> LayerFeatures:
        """The donor's."""
        return donor_layer(self.features, path)

    def columns(self, path: str, number: int) -> np.ndarray:
        """The donor's channels for a layer's filters; layers of one residual stream take the same channels."""
        donor = self.layer(path).kernel.shape[-1]
        scores = self.scores.get(self._streams[path]) if self.source.channels == "ranked" else None
        return self.source.indices(donor, number, scores)

    def rows(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        """The donor's rows for what comes into a layer.

        The rows of a layer are the channels that come into it, of one layer or several, once a position in its window
        or in what was flattened before it.
        """
        layer, site = self.layer(path), self.tapped.first(path)
        segments, parts, sizes, ours = self.tapped.dataflow.channels[self.tapped.layers[path][0]], [], [], 0
        for place, count in segments or ():
            writer = self.tapped.sites[place].layer if place else None
            sizes.append(self.layer(writer).kernel.shape[-1] if writer else count)
            parts.append(self.columns(writer, count) if writer else self.source.indices(count, count))
            ours += count
        rows, own = layer.kernel.size // layer.kernel.shape[-1], int(np.prod(shape[:-1]))
        if not ours or site.groups > 1 or site.stacked or own % ours or own // ours * sum(sizes) != rows:
            raise self._refusal(path)
        return self.source.blocks(parts, sizes, own // ours)

    def _refusal(self, path: str) -> UserError:
        site, lost = self.tapped.first(path), self.tapped.dataflow.lost.get(self.tapped.layers[path][0])
        other = "" if site.stacked else "draw it with 'selected', "  # which takes no scans and heads either
        if site.groups > 1 or site.stacked:
            cause = f"and it has {'groups' if site.groups > 1 else 'a matrix for each step or head'}"
        else:
            cause = f"and they are lost at {lost}" if lost else "and the donor's layer has other ones"
        return UserError(
            f"layer {path!r}: a copy to another width needs to know which channels come into it, {cause}: "
            f"{other}leave the layer out with layers=..., or copy to the donor's width"
        )

    def with_channels(self, state: State, path: str) -> State:
        """The state with the donor's bias and normalisation of a layer, without which a copy is another function.

        A transform along the channels has no meaning for normalisations, which stay as they are.
        """
        layer, site = self.layer(path), self.tapped.first(path)
        leaves, structure = jax.tree.flatten(state.variables)
        starts = {"params": 0, "others": len(self.tapped.paths)}
        if site.bias is not None and layer.bias is not None:
            self._put(leaves, site.bias, layer.bias, path)
        for name, (kind, index) in self.tapped.companions(path).items():
            if name in layer.companions and self.source.channels != "dct":
                self._put(leaves, starts[kind] + index, layer.companions[name], path)
        params, others = jax.tree.unflatten(structure, leaves)
        biased = state.biased | ({path} if site.bias is not None else set())
        return replace(state, params=params, others=others, biased=biased)

    def _put(self, leaves: list[Any], index: int, values: Array, path: str) -> None:
        leaf, donor = leaves[index], values.shape[-1]
        columns = self.columns(path, leaf.size * donor // values.size)
        leaves[index] = self.source.channels_of(values, columns).reshape(leaf.shape).astype(leaf.dtype)

    @cached_property
    def _streams(self) -> dict[str, str]:
        return residual_streams(self.tapped)

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """{residual stream: how much each of its channels matters}.

        By norm: the squared norms of the filters that write it. By AGOP: the diagonal of the AGOPs of the layers that
        read it; where no features are known of any, such as of a head that is not selected, the diagonal of S, the
        gradients at the output of the layers that write it.
        """
        scores: dict[str, np.ndarray] = {}
        if self.source.by == "agop":
            for path in self.tapped.layers:
                for stream, share in self._read(path):
                    scores[stream] = scores.get(stream, 0) + share
        known = set(scores)
        for path, stream in self._streams.items():
            if path in self.features and stream not in known:
                scores[stream] = scores.get(stream, 0) + self._written(self.features[path])
        return scores

    def _read(self, path: str) -> list[tuple[str, np.ndarray]]:
        segments = self.tapped.dataflow.channels[self.tapped.layers[path][0]]
        if path not in self.features or not segments or None in (place for place, _ in segments):
            return []
        writers = [self.tapped.sites[place].layer for place, _ in segments if place]
        if any(writer not in self.features for writer in writers) or self.features[path].stacked:
            return []
        sizes = [self.features[writer].kernel.shape[-1] for writer in writers]
        diagonal = _diagonal(self.features[path].agop)
        grouped = diagonal.reshape(self.features[path].groups, -1, sum(sizes) // self.features[path].groups)
        parts = np.split(grouped.sum(1).ravel(), np.cumsum(sizes)[:-1])
        return [(self._streams[writer], part) for writer, part in zip(writers, parts, strict=True)]

    def _written(self, layer: LayerFeatures) -> np.ndarray:
        if self.source.by == "norm" or layer.gradient_gram is None:
            return (np.asarray(layer.kernel, np.float64) ** 2).reshape(-1, layer.kernel.shape[-1]).sum(0)
        return np.diagonal(np.asarray(layer.gradient_gram, np.float64), axis1=-2, axis2=-1).ravel()


def _diagonal(matrix: FeatureMatrix) -> np.ndarray:
    values, vectors = np.asarray(matrix.values, np.float64), np.asarray(matrix.vectors, np.float64)
    floor = 0.0 if matrix.floor is None else np.asarray(matrix.floor, np.float64)[..., None]
    return (vectors**2 * values[..., None, :]).sum(-1) + floor


def donor_layer(features: Mapping[str, LayerFeatures], path: str) -> LayerFeatures:
    """The donor's features of a layer.

    Raises:
      UserError: it has none of this name.
    """
    if path not in features:
        known = ", ".join(features)
        raise UserError(f"layer {path!r}: the donor has no such layer. It has: {known}. Select others with layers=...")
    return features[path]

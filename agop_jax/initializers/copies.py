"""The donor's own filters, to any width: which channels a narrower or wider recipient takes.

    same     all of them, to the same width
    spaced   uniformly spaced ones: weight selection (Xu et al., ICLR 2024)
    ranked   those that matter most: by the diagonal of the AGOP of the layers that read them, or by the norm of their
             filters, as weight subcloning does (Samragh et al. 2023, arXiv 2312.09299; the rank by AGOP is ours)
    tiled    each again and again, with outgoing weights that add up to the donor's: Net2WiderNet (Chen, Goodfellow &
             Shlens, ICLR 2016)
    dct      the lowest frequencies of the discrete cosine transform along both channel axes, cut or padded with zeros:
             FRONT (arXiv 2603.07523)

A copy needs the donor's features, which hold its kernels and biases. It needs no labels, and no examples unless lsuv
rescales it. It costs nothing to speak of.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.linalg

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float, Kernel, PRNGKey
from agop_jax.features.layer import LayerFeatures
from agop_jax.initializers.sources import KernelInit, check_fit

CHANNELS = ("same", "spaced", "ranked", "tiled", "dct")
RANKS = ("agop", "norm")


@dataclass(frozen=True)
class Copy:
    """The donor's own filters.

    Attributes:
      channels: one of `CHANNELS`.
      by: of ranked channels, one of `RANKS`.
      even: of tiled channels, whether all copies give the same share: then they get the same gradients and stay the
        same for ever.
    """

    channels: str = "same"
    by: str = "agop"
    even: bool = False

    def kernel_init(
        self, layer: LayerFeatures, rows: np.ndarray | None = None, columns: np.ndarray | None = None
    ) -> KernelInit:
        """The random key shares out what tiled channels give; else it is not used.

        Args:
          layer: of the donor.
          rows: which row of the donor's matrix each row of the recipient's is, or for 'dct' the matrix that makes these
            from those; None for a layer by itself, whose input channels are those of one layer before it.
          columns: the same for its filters.
        """

        def init(key: PRNGKey, shape: Sequence[int], dtype=jnp.float32) -> Kernel:
            layer.require("filters")
            kernel = layer.kernel
            if self.channels == "same" or layer.groups > 1 or layer.stacked:
                self._require_fit(layer, shape)
                return kernel.astype(dtype)
            check_fit(layer, (*shape[:-2], *kernel.shape[-2:]))
            own = self._rows(kernel.shape, shape) if rows is None else rows
            outgoing = self.indices(kernel.shape[-1], shape[-1]) if columns is None else columns
            matrix = kernel.reshape(-1, kernel.shape[-1])
            if self.channels == "dct":
                return _transformed(own, matrix, outgoing).reshape(shape).astype(dtype)
            shares = self._shares(key, own, shape[-1]) if self.channels == "tiled" else 1
            return (matrix[own][:, outgoing] * shares).reshape(shape).astype(dtype)

        return init

    def _require_fit(self, layer: LayerFeatures, shape: Sequence[int]) -> None:
        if tuple(shape) != layer.kernel.shape:
            raise UserError(
                f"layer {layer.path!r}: the donor's kernel is {layer.kernel.shape}, the recipient's {tuple(shape)}: "
                "'copy' needs the same; 'copy_spaced' copies to fewer channels, 'copy_tiled' to more"
            )

    def _rows(self, donor: Sequence[int], recipient: Sequence[int]) -> np.ndarray:
        window = math.prod(donor[:-2])
        cin = self.indices(donor[-2], recipient[-2])
        return self.blocks([cin], [donor[-2]], window)

    def indices(self, donor: int, recipient: int, scores: np.ndarray | None = None) -> np.ndarray:
        """Which of the donor's channels each channel of the recipient is; for 'dct' the matrix that makes these.

        Args:
          donor, recipient: numbers of channels.
          scores: of the donor's channels, for 'ranked'; without them the first are taken.
        """
        if self.channels == "dct":
            return transform(donor, recipient)
        if self.channels == "tiled" or donor == recipient:
            return np.arange(recipient) % donor
        if recipient > donor:
            raise UserError(
                f"'copy_{self.channels}' needed at most the donor's {donor} channels, got {recipient}: use 'copy_tiled'"
            )
        if self.channels == "ranked":
            order = np.arange(donor) if scores is None else np.argsort(-scores, kind="stable")
            return np.sort(order[:recipient])
        return np.round(np.linspace(0, donor - 1, recipient)).astype(int)

    def blocks(self, parts: Sequence[np.ndarray], sizes: Sequence[int], times: int) -> np.ndarray:
        """`indices` for the rows of a layer: its input channels, of one layer or several, once a position.

        Args:
          parts: `indices` of each layer that these channels are of.
          sizes: the donor's channels of each.
          times: positions, in a window or in what was flattened.
        """
        if self.channels == "dct":
            # a sum over channels of equal values stays what it was
            scaled = [part * (part.shape[1] / part.shape[0]) for part in parts]
            return np.kron(np.eye(times), np.asarray(scipy.linalg.block_diag(*scaled)))
        starts = np.cumsum([0, *sizes[:-1]])
        channels = np.concatenate([start + part for start, part in zip(starts, parts, strict=True)])
        return (np.arange(times)[:, None] * sum(sizes) + channels).ravel()

    def channels_of(self, values: Array, indices: np.ndarray) -> Array:
        """Biases and the like, with the donor's channels last, for the recipient's channels."""
        return jnp.asarray(np.asarray(values) @ indices.T) if self.channels == "dct" else values[..., indices]

    def _shares(self, key: PRNGKey, rows: np.ndarray, filters: int) -> Float[Array, "k filters"]:
        """What each copy of a channel gives to each filter: 1 in sum over the copies; random unless even."""
        weights = jax.random.uniform(key, (len(rows), filters), minval=0.5, maxval=1.5)
        weights = jnp.ones_like(weights) if self.even else weights
        total = jnp.zeros((rows.max() + 1, filters)).at[rows].add(weights)
        return weights / total[rows]


def _transformed(rows: np.ndarray, matrix: Array, columns: np.ndarray) -> Array:
    return jnp.asarray(rows, matrix.dtype) @ matrix @ jnp.asarray(columns.T, matrix.dtype)


def transform(donor: int, recipient: int) -> np.ndarray:
    """(recipient, donor): channels from the lowest frequencies of the donor's; channels of equal values stay equal."""
    low = min(donor, recipient)
    cosines = np.asarray(scipy.fft.dct(np.eye(donor), axis=0, norm="ortho"))[:low]
    back = np.asarray(scipy.fft.idct(np.eye(recipient), axis=0, norm="ortho"))[:, :low]
    return math.sqrt(recipient / donor) * back @ cosines

"""A layer's output on a batch, brought to unit variance: as a whole (lsuv) or channel by channel (standardised).

`lsuv` (Mishkin & Matas, ICLR 2016) scales a kernel so that its product has variance 1 over examples, positions and
filters. A bias that the method drew is part of that output and is scaled along; one that it left alone is neither.
`standardised` gives each filter's product variance 1 and, where the layer has a bias, mean 0: the statistics
that BatchNorm (Ioffe & Szegedy, ICML 2015) would have at the start, folded into filters and biases. Both ask for some
unlabelled examples and one product more for each layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.types import Array
from agop_jax.features.evaluation import Record
from agop_jax.features.sites import Site

DEAD = 1e-6  # of the layer's deviation: a channel that varies less is left as it is


class Statistics(NamedTuple):
    """Statistics of each filter's product over examples and positions, (*stack, filters)."""

    count: Any
    mean: Any
    square: Any  # sum of squared deviations from the mean


def statistics(site: Site, record: Record) -> Statistics:
    """The statistics of one chunk; steps of a scan that do not slice the kernel count as positions."""
    dtype = jnp.promote_types(record.outputs.dtype, jnp.float32)
    function = lambda outputs: _filters_last(site, site.rows(outputs.astype(dtype)))
    for _ in range(site.depth):
        function = jax.vmap(function)
    products = function(record.outputs)  # (*levels, *heads, positions, filters)
    shared = [level for level in range(site.depth) if level not in site.stack]
    kept = [axis for axis in range(products.ndim - 1) if axis not in shared and axis != products.ndim - 2]
    products = products.transpose(*kept, *shared, products.ndim - 2, products.ndim - 1)
    products = products.reshape(*products.shape[: len(kept)], -1, products.shape[-1])
    mean = products.mean(-2)
    square = ((products - mean[..., None, :]) ** 2).sum(-2)
    return Statistics(np.float32(products.shape[-2]), mean, square)


def _filters_last(site: Site, rows: Array) -> Array:
    return rows.reshape(len(rows), -1) if site.groups > 1 else rows


def merge(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of all chunks together, in float64 (Chan, Golub & LeVeque 1979)."""
    parts = [Statistics(*(np.asarray(part, np.float64) for part in chunk)) for chunk in jax.device_get(list(parts))]
    count = sum(part.count for part in parts)
    mean = sum(part.count * part.mean for part in parts) / count
    return Statistics(count, mean, sum(part.square + part.count * (part.mean - mean) ** 2 for part in parts))


def lsuv_factors(moments: Statistics, steps: int) -> np.ndarray:
    """1 / the layer's deviation, for each filter: the same for all of one step of so many scans."""
    axes = tuple(range(steps, moments.mean.ndim))
    centre = moments.mean.mean(axes, keepdims=True)
    variance = (moments.square / moments.count + (moments.mean - centre) ** 2).mean(axes, keepdims=True)
    return np.broadcast_to(_inverse(np.sqrt(variance), 0), moments.mean.shape)


def standardising_factors(moments: Statistics) -> np.ndarray:
    """1 / each filter's deviation; 1 for a filter whose product does not vary."""
    deviation = np.sqrt(moments.square / moments.count)
    return _inverse(deviation, DEAD * deviation.max(-1, keepdims=True))


def _inverse(deviation: np.ndarray, least: Any) -> np.ndarray:
    alive = deviation > least
    return np.where(alive, 1 / np.where(alive, deviation, 1), 1.0)


def he_factor(kernel: Array) -> float:
    """What gives a kernel's filters |w|^2 = 2 in the mean."""
    return float(jnp.sqrt(2 * kernel.shape[-1] / jnp.maximum((kernel**2).sum(), np.finfo(np.float32).tiny)))

"""Deep convolutional recursive feature machines: a network whose every layer is drawn from the M of a machine."""

import time
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from agop_jax.core import devices, trees
from agop_jax.core.compilation import jit
from agop_jax.core.errors import UserError
from agop_jax.core.networks import Cache, Network, open_network
from agop_jax.core.types import Array, Float, PRNGKey
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.features.sites import Site
from agop_jax.features.taps import tap
from agop_jax.rfm.convolutional import CHUNK, ConvolutionalMachine, ConvRFMClassifier, spaced
from agop_jax.rfm.estimators import Classification

HE = 2.0  # E|w|^2 of a filter before a ReLU
_CUTS = Cache()


class OnPatches(Classification, ConvolutionalMachine):
    """A convolutional machine that is given patches (n, positions, k) in place of images."""

    def _inputs(self, X: Any, reset: bool) -> np.ndarray:
        return X

    def _patches(self, inputs: np.ndarray) -> Float[Array, "n positions k"]:
        return jnp.asarray(inputs, self.dtype)


@devices.on_purpose
def deep_features(
    model: Any,
    variables: Any,
    inputs: Any,
    labels: Any,
    *,
    key: PRNGKey | int,
    layers: str = ".*",
    machine: ConvRFMClassifier | None = None,
    apply_kwargs: Any = None,
) -> dict[str, LayerFeatures]:
    """Convolutions drawn one after another, each from N(0, M) of a machine fitted to what comes into it.

    The images go through the layers drawn so far, with all that the network does between them; at the next convolution
    a machine is fitted to its patches and the labels, and its filters are drawn from N(0, M) at He scale, E|w|^2 = 2.
    No network is trained. Beaglehole, Radhakrishnan, Pandit, Belkin, arXiv 2309.00570, algorithm 2.

    Args:
      model, variables, apply_kwargs: as for `extract`, of any width; parameters of other layers are used as they are.
      inputs: (n, h, w, c), normalised as the model expects them.
      labels: (n,).
      key: of the draws, or the seed of one.
      layers: regular expression for the whole path of a layer; of the layers that match, convolutions without groups
        and scans are drawn.
      machine: an unfitted `ConvRFMClassifier` with the options of the fits; its geometry is that of each layer.

    Returns:
      {path: features} of the drawn layers: `kernel` is the draw and `agop` is M, scaled to trace 2. Method 'convrfm'
      of `initialize` puts these kernels into the model.

    Raises:
      UserError: no convolution among the layers, or what the machine refuses.
    """
    machine = machine or ConvRFMClassifier(positions=16, iterations=1, progress=False)
    network = open_network(model, variables, training=True, apply_kwargs=apply_kwargs)
    tapped = tap(network, jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), inputs))
    chosen = [path for path in trees.select(tapped.layers, layers) if _is_drawn(tapped.first(path))]
    if not chosen:
        raise UserError(f"layers={layers!r}: needed a convolution without groups and scans, got {list(tapped.layers)}")
    key = jax.random.key(key) if isinstance(key, int) else key
    params, features = network.params, {}
    for path in chosen:
        start = time.perf_counter()
        patches = _patches(network, path, params, inputs, machine.positions)
        fitted = OnPatches(**machine.get_params()).fit(patches, labels)
        shape = tapped.kernels(params, network.others)[path].shape
        features[path] = _drawn(path, fitted.M_.normalize(HE), len(patches), key, shape)
        params = tapped.with_kernels(params, network.others, {path: features[path].kernel})
        logging.info("%s: %d positions, %.1f s", path, patches.shape[1], time.perf_counter() - start)
    return features


def _is_drawn(site: Site) -> bool:
    """Whether a layer is a convolution, be it written as a product over patches, without groups and scans."""
    windows = site.is_convolution or len(site.unflattened or ()) > 2
    return windows and site.groups == 1 and not site.depth and not site.stacked


def _drawn(path: str, covariance: FeatureMatrix, count: int, key: PRNGKey, shape: tuple[int, ...]) -> LayerFeatures:
    draws = covariance.sample(jax.random.fold_in(key, zlib.crc32(path.encode())), shape[-1])
    return LayerFeatures(draws.T.reshape(shape), None, count, path, patch_agop=covariance.dense())


def _patches(
    network: Network, path: str, params: Any, inputs: Any, positions: int
) -> Float[np.ndarray, "n positions k"]:
    """What a layer sees of all inputs, at some of its positions; on the host, some hundred examples at a time."""
    chunks = (jnp.asarray(inputs[start : start + CHUNK]) for start in range(0, len(inputs), CHUNK))
    steps = ((_cut(network, path, chunk, positions), chunk) for chunk in chunks)
    return np.concatenate([np.asarray(cut(params, network.others, chunk)) for cut, chunk in steps])


def _cut(network: Network, path: str, inputs: Array, positions: int) -> Any:
    """(params, others, inputs) -> patches of a layer, for inputs of this shape."""
    tapped = tap(network, inputs)
    place = tapped.layers[path][0]
    site = tapped.sites[place]

    def cut(params: Any, others: Any, inputs: Any) -> Array:
        record = tapped.records((params, others), inputs)[place]
        space = site.outputs_channels_last(record.outputs).shape[1:-1]
        patches = site.patches(record.inputs)
        return spaced(patches.reshape(-1, *space, patches.shape[-1]), positions)

    return _CUTS.get(network, (path, positions, id(tapped)), lambda: jit(cut))

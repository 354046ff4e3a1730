"""Features of every layer of a trained network: model + variables + inputs -> {path: LayerFeatures}."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core import devices, hosts, trees
from agop_jax.core.errors import UserError, unknown_name
from agop_jax.core.networks import open_network, path_name
from agop_jax.core.progress import bar
from agop_jax.core.types import Array, PRNGKey
from agop_jax.features import grams
from agop_jax.features.batches import Batch, BatchStream, labelled, warn_of_bytes
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.steps import Steps, add, steps_of

METHODS = ("gram", "probe", "patch_jacobian")


@devices.on_purpose
def extract(
    model: Any,
    variables: Any,
    inputs: Any,
    *,
    method: str = "gram",
    outputs: grams.Outputs = "logits",
    labels: Any = None,
    layers: str = ".*",
    batch_size: int = 64,
    num_probes: int = 2,
    key: PRNGKey | int | None = None,
    apply_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, LayerFeatures]:
    """NFM and AGOP, in factored form, of every layer of a network.

    A layer is a product of data with parameters, wherever it stands in the computation: a convolution, a matrix
    product, an einsum, a projection of attention. A second call for the same model, shapes and method compiles nothing.

    Args:
      model: a Linen, NNX or Equinox module, or any function f(params, inputs) of a batch. An output may depend on its
        own example only; the usual switches (`train`, `deterministic`, ...) are set to inference.
      variables: of a Linen module its parameters and statistics, of a function its parameters; of an NNX module None or
        an `nnx.State`, of an Equinox module None.
      inputs: an array (n, ...) as the network expects it, images normalised as in its training; or a dictionary of
        such; or an iterable of either, or of (inputs, labels) pairs. Of several processes, each gives its own.
      method: 'gram' (exact, one reverse pass an output), 'probe' (unbiased, `num_probes` reverse passes whatever the
        number of outputs) or 'patch_jacobian' (the definition, slow and memory-hungry, one layer after another).
      outputs: 'logits', a class index or several, 'loss' (cross-entropy with `labels`), or a function of what the model
        returns that gives (n, m).
      labels: (n,) classes, for 'loss'.
      layers: regular expression for the whole path of a layer.
      batch_size: examples in one compiled step of a process, divided over its devices; what does not fill them is
        padded and masked. Never more than there are.
      num_probes: random +-1 cotangents an example (`grams.balanced_cotangents`); two or more for a standard error.
      key: for 'probe', or the seed of one; `jax.random.key(0)` if None.
      apply_kwargs: further arguments of the model's call.
      progress: show a bar.

    Returns:
      {layer path: LayerFeatures}, in the order of the computation: sums in float32 or better, divided by n.

    Raises:
      UserError: unknown method or output, no example, numbers that are not finite, outputs that depend on other
        examples, a regular expression that matches no layer.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if method == "probe" and num_probes < 1:
        raise UserError(f"num_probes: needed 1 or more, got {num_probes}")
    extractor = Extractor(
        model, variables, inputs, outputs=outputs, labels=labels, batch_size=batch_size, apply_kwargs=apply_kwargs
    )
    chosen = trees.select(extractor.layers, layers)
    batches = bar(extractor.stream(), f"extract ({method})", total=extractor.total, unit="batch", show=progress)
    features = extractor.sums(method, batches, num_probes, key)
    return {path: features[path] for path in chosen}


class Extractor:
    """`extract` for one network on the same inputs again and again, such as at many steps of its training.

    Args:
      model, variables, inputs, outputs, labels, batch_size, apply_kwargs: as for `extract`. The features are those of
        the variables of each call.
    """

    @devices.on_purpose
    def __init__(
        self,
        model: Any,
        variables: Any,
        inputs: Any,
        *,
        outputs: grams.Outputs = "logits",
        labels: Any = None,
        batch_size: int = 64,
        apply_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        grams.output_function(outputs)
        self._mesh, self._outputs = devices.mesh(), outputs
        self._network = open_network(model, variables, apply_kwargs=apply_kwargs)
        stream = BatchStream(inputs, labels, batch_size, len(self._mesh.local_devices))
        self._batch_size, self.total, self._stream = stream.batch_size, stream.total, iter(stream)
        self._first = next(self._stream)
        warn_of_bytes(self._first[0])
        self._steps = steps_of(self._network, self._first[0], outputs, self._mesh)
        self._kept: list[Batch] | None = None

    @property
    def layers(self) -> list[str]:
        """Paths of all layers, in the order of the computation."""
        return list(self._steps.tapped.layers)

    @property
    def variables(self) -> tuple[Any, Any]:
        """Parameters and other variables that the extractor was made with."""
        return self._network.params, self._network.others

    def stream(self) -> Iterator[Batch]:
        """The batches, once. Each process yields as many as any other.

        A process that has run out of examples repeats its last batch with weight zero.
        """
        batches: Iterator[Batch] = iter(self._checked(self._all()))
        last: Any = None
        while hosts.any_of((batch := next(batches, None)) is not None)[0]:
            last = batch or (*last[:2], np.zeros_like(last[2]))
            yield last

    def _all(self) -> Iterator[Batch]:
        yield self._first
        yield from self._stream

    def _checked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if self._outputs != "loss":
            return batches
        return labelled(batches, self._steps.num_classes or 0)

    @devices.on_purpose
    def batches(self, variables: Any = None) -> list[dict[str, LayerFeatures]]:
        """The features of each batch by itself, exact; `merge` puts them together."""
        if self._kept is None:
            self._kept = list(self.stream())
        return [self.sums("gram", [batch], variables=variables) for batch in self._kept]

    def __call__(self, variables: Any = None) -> dict[str, LayerFeatures]:
        """What `extract(model, variables, inputs)` returns."""
        return merge(self.batches(variables))

    def sums(
        self, method: str, batches: Any, num_probes: int = 0, key: PRNGKey | int | None = None, variables: Any = None
    ) -> dict[str, LayerFeatures]:
        """The features over some batches, by one of `METHODS`."""
        pair = self.variables if variables is None else self._network.with_variables(variables)
        _require_finite(pair)
        kernels, placed = self._steps.kernels(*pair), devices.replicate(pair, self._mesh)
        sums = _SUMS[method](self, placed, num_probes, key)
        total, count = None, 0
        for number, batch in enumerate(batches):
            total = add(total, sums(number, batch))
            count += int(batch[-1].sum())
        total, count = devices.collect(total, self._mesh), hosts.total(count)
        return _features(self._steps, kernels, count, method, total)

    def _exact(self, variables: Any, num_probes: int, key: Any):
        return lambda number, batch: self._steps.exact(variables, batch)

    def _definition(self, variables: Any, num_probes: int, key: Any):
        return lambda number, batch: self._steps.by_definition(self._network, variables, batch)

    def _probes(self, variables: Any, num_probes: int, key: PRNGKey | int | None):
        key = jax.random.key(key or 0) if key is None or isinstance(key, int) else key
        implementation, stride = jax.random.key_impl(key), hosts.part()[1] * self._batch_size
        # raw numbers, since typed keys cannot be sent to processes
        keys = np.asarray(jax.random.key_data(jax.random.split(key, num_probes)))
        return lambda number, batch: self._steps.probe(
            variables, batch, number * stride, self._batch_size, keys, implementation
        )


_SUMS = {"gram": Extractor._exact, "probe": Extractor._probes, "patch_jacobian": Extractor._definition}


def merge(parts: Sequence[Mapping[str, LayerFeatures]]) -> dict[str, LayerFeatures]:
    """The features over all examples from those of disjoint parts, weighted by their numbers of examples.

    A standard error is left out: of parts with one key the errors are not independent.

    Raises:
      UserError: a part has no gradient Gram matrices, as of method 'patch_jacobian'.
    """
    count = sum(next(iter(part.values())).count for part in parts)
    return {
        path: layer.replace(
            gradient_gram=sum(jnp.asarray(part[path].required_gram) * (part[path].count / count) for part in parts),
            count=count,
            standard_error=None,
        )
        for path, layer in parts[0].items()
    }


def _require_finite(variables: Any) -> None:
    """A NaN in a weight need not reach a gradient: behind it a ReLU is never active and passes back zeros."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf, np.float64)).all():
            name = path_name(path[1:])
            raise UserError(f"variable {name!r} holds NaN or infinity: did the donor's training diverge?")


def _features(
    steps: Steps, kernels: Mapping[str, Any], count: int, method: str, total: Mapping[str, Array]
) -> dict[str, LayerFeatures]:
    features = {}
    total = total if method == "probe" else _divided(total, count)
    for path in steps.tapped.layers:  # in their order, which results of jit have lost
        (kernel, bias, companions), site = kernels[path], steps.tapped.first(path)
        static = {"count": count, "path": path, "groups": site.groups, "stacked": site.stacked}
        layer = LayerFeatures(kernel=kernel, gradient_gram=None, bias=bias, companions=companions, **static)
        features[path] = layer.replace(**_means(layer, method, total[path]))
    for path, finite in jax.device_get(_finite(total)).items():
        if not finite:
            raise UserError(f"layer {path!r}: the gradients hold NaN or infinity: did the donor's training diverge?")
    return features


@jax.jit
def _divided(total: Mapping[str, Array], count: Any) -> dict[str, Array]:
    """The matrices of all layers over the count, in one compiled call."""
    return {path: matrix / count for path, matrix in total.items()}


@jax.jit
def _finite(matrices: Mapping[str, Array]) -> dict[str, Array]:
    return {path: jnp.isfinite(matrix).all() for path, matrix in matrices.items()}


def _means(layer: LayerFeatures, method: str, total: Array) -> dict[str, Array]:
    """The fields of a layer that a mean over examples gives; of `probe` the sums of its passes."""
    if method == "patch_jacobian":
        return {"patch_agop": total}
    if method == "gram":
        return {"gradient_gram": total}
    with jax.debug_nans(False):  # NaN is said on purpose, of a single pass
        error = jnp.sqrt(grams.probe_variance(layer.matrix, total)) / layer.count
    return {"gradient_gram": jnp.asarray(total.mean(0) / layer.count), "standard_error": error}

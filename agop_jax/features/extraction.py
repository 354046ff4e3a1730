"""Features of every layer of a trained network: model + variables + images -> {path: LayerFeatures}."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from agop_jax.core import devices, hosts
from agop_jax.core.compilation import TooLarge, jit, within_memory
from agop_jax.core.errors import UserError, unknown_name
from agop_jax.core.types import Array, PRNGKey, Variables
from agop_jax.features import grams, taps, taps_nnx
from agop_jax.features.batches import Batch, Batches, labelled, stream
from agop_jax.features.layer import LayerFeatures

METHODS = ("gram", "probe", "patch_jacobian")
MAX_UNROLLED = 16  # reverse passes in one compiled step: more only lengthen compilation


def extract(
    model: Any,
    variables: Variables | None,
    images: Any,
    *,
    method: str = "gram",
    outputs: grams.Outputs = "logits",
    labels: Any = None,
    batch_size: int = 64,
    num_probes: int = 2,
    key: PRNGKey | None = None,
    apply_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, LayerFeatures]:
    """NFM and AGOP, in factored form, of every Conv and Dense layer of a network.

    Args:
      model: a Linen module, or an NNX module with `variables=None`. Its outputs may depend on their own image only; the
        usual switches (`train`, `deterministic`, ...) are set to inference.
      variables: the Linen module's parameters and statistics.
      images: (n, h, w, c), already normalised as the network expects; or an iterable of such arrays, or of
        (images, labels) pairs. Of several processes, each gives its own.
      method: 'gram' (exact, one reverse pass an output), 'probe' (unbiased, `num_probes` reverse passes whatever the
        number of outputs) or 'patch_jacobian' (the definition, slow and memory-hungry, one layer after another).
      outputs: 'logits', a list of class indices, or 'loss' (cross-entropy with `labels`).
      labels: (n,) classes, for 'loss'.
      batch_size: images in one compiled step of a process, divided over its devices; what does not fill them is padded
        and masked.
      num_probes: random +-1 cotangents an image (`agop.balanced_cotangents`); two or more for a standard error.
      key: for 'probe'; `jax.random.key(0)` if not given.
      apply_kwargs: further arguments of the model's call.
      progress: show a bar.

    Returns:
      {layer path: LayerFeatures}, in the order of the network; sums in float32 at highest precision, divided by n.

    Raises:
      UserError: unknown method or output, no images, images or gradients that are not finite, batch statistics in use.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    output = grams.output_function(outputs)
    if batch_size < 1:
        raise UserError(f"batch_size: wanted 1 or more, got {batch_size}")
    mesh = devices.mesh()
    batches = stream(images, labels, batch_size, devices.round_up(batch_size, len(mesh.local_devices)))
    first = next(batches, None)
    if first is None:
        raise UserError("extract: wanted at least one image, got none")
    variables, tapped = tap(model, variables, jnp.asarray(first[0]), **(apply_kwargs or {}))
    _require_finite(variables)
    num_classes = _num_classes(tapped, variables, first[0])
    batches = itertools.chain([first], batches)
    batches = labelled(batches, num_classes) if outputs == "loss" else batches
    total = math.ceil(len(images) / batch_size) if hasattr(images, "shape") else None
    bar = tqdm(
        batches, f"extract ({method})", total, unit="batch", disable=not (progress and hosts.is_first()), leave=False
    )
    kernels = _kernel_step(tapped)(variables, jnp.asarray(first[0][:1]))
    variables, bar = devices.replicate(variables, mesh), _on_every_process(bar)
    if method == "patch_jacobian":
        return _by_definition(tapped, kernels, output, variables, bar, mesh)
    if method == "gram":
        return _exact(tapped, kernels, output, variables, bar, mesh)
    key = jax.random.key(0) if key is None else key
    return _probed(tapped, kernels, output, variables, bar, mesh, batch_size, num_probes, key)


def _on_every_process(batches: Batches) -> Iterator[Batch]:
    """As many batches on each: one without further images repeats its last, with weights of zero."""
    last: Any = None
    batches = iter(batches)
    while hosts.any_of((batch := next(batches, None)) is not None)[0]:
        last = batch or (*last[:2], np.zeros_like(last[2]))
        yield last


class Extractor:
    """`extract` by reverse passes for one network on the same images again and again: compiled once.

    Args:
      model, variables, images, outputs, labels, batch_size, apply_kwargs: as for `extract`; images as one array, of
        several processes as many batches as each other has.
        `variables` give shapes only, and the features are those of the variables of each call.
    """

    def __init__(
        self,
        model: Any,
        variables: Variables | None,
        images: Any,
        *,
        outputs: grams.Outputs = "logits",
        labels: Any = None,
        batch_size: int = 64,
        apply_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        output, self._mesh = grams.output_function(outputs), devices.mesh()
        length = devices.round_up(batch_size, len(self._mesh.local_devices))
        self._batches = list(stream(images, labels, batch_size, length))
        if not self._batches:
            raise UserError("extract: wanted at least one image, got none")
        first, labels, _ = self._batches[0]
        self.variables, self._tapped = tap(model, variables, jnp.asarray(first), **(apply_kwargs or {}))
        if outputs == "loss":
            self._batches = list(labelled(self._batches, _num_classes(self._tapped, self.variables, first)))
        self._kernels, self._step = _kernel_step(self._tapped), _GramStep(self._tapped, output, self._mesh)

    def batches(self, variables: Variables) -> list[dict[str, LayerFeatures]]:
        """The features of each batch of images by itself; `merge` puts them together."""
        _require_finite(variables)
        kernels = self._kernels(variables, jnp.asarray(self._batches[0][0][:1]))
        placed, found = devices.replicate(variables, self._mesh), []
        for batch in self._batches:
            count = int(batch[-1].sum())
            sums = {path: gram / count for path, gram in devices.collect(self._step(placed, batch), self._mesh).items()}
            found.append(_finish(self._tapped, kernels, count, gradient_gram=sums))
        return found

    def __call__(self, variables: Variables) -> dict[str, LayerFeatures]:
        """What `extract(model, variables, images)` returns."""
        return merge(self.batches(variables))


def merge(parts: Sequence[Mapping[str, LayerFeatures]]) -> dict[str, LayerFeatures]:
    """The features over all images from those of disjoint parts, weighted by their numbers of images."""
    count = sum(next(iter(part.values())).count for part in parts)
    return {
        path: layer.replace(
            gradient_gram=sum(jnp.asarray(part[path].gradient_gram) * (part[path].count / count) for part in parts),
            count=count,
        )
        for path, layer in parts[0].items()
    }


def _require_finite(variables: Variables) -> None:
    """A NaN in a weight need not reach a gradient: behind it a ReLU is never active and passes back zeros."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf)).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"variable {name!r} holds NaN or infinity: did the donor's training diverge?")


def tap(model: Any, variables: Variables | None, images: Array, **kwargs: Any) -> tuple[Variables, taps.TappedModel]:
    """Of a Linen or NNX model, with the variables to apply it to: an NNX model's own where None are given."""
    if isinstance(model, nnx.Module):
        return taps_nnx.tap(model, variables, images, **kwargs)
    if variables is None:
        raise UserError("extract: a Linen model needs its variables: extract(model, variables, images)")
    return variables, taps.tap(model, variables, images, **kwargs)


def _kernel_step(tapped: taps.TappedModel) -> Callable[..., dict[str, tuple[Array, Array | None]]]:
    """Kernels and biases as the layers use them: masked, or transformed by a wrapper such as `nn.WeightNorm`."""

    def used(variables: Variables, images: Array) -> dict[str, tuple[Array, Array | None]]:
        _, records = tapped.apply(variables, None, images)
        return {path: (calls[0].kernel, calls[0].bias) for path, calls in records.items()}

    return jit(used)


class _GramStep:
    """The gradient Gram matrices of a batch, summed over its images; as many outputs at a time as memory allows."""

    def __init__(self, tapped: taps.TappedModel, output: grams.OutputFunction, mesh: Mesh) -> None:
        self._tapped, self._output, self._mesh = tapped, output, mesh
        self._unrolled = MAX_UNROLLED

        def step(variables, images, labels, weights, rows):
            cotangents = rows[:, None, :] * weights[None, :, None]
            return grams.gradient_grams(tapped, output, variables, images, labels, cotangents)

        placed = _placed(mesh, 1)
        self._step = within_memory(step, "one reverse pass of a batch", "lower batch_size", **placed)

    def __call__(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        arrays = devices.divide(batch, self._mesh)
        num_outputs = _num_outputs(self._tapped, self._output, variables, *arrays[:2])
        while True:
            chunks = _identity_chunks(num_outputs, self._unrolled)
            try:  # added up one by one: for 1000 outputs of a wide layer the parts would fill the memory
                return functools.reduce(_add, (self._step(variables, *arrays, rows) for rows in chunks))
            except TooLarge:
                if len(chunks[0]) == 1:
                    raise
                self._unrolled = len(chunks[0]) // 2


def _placed(mesh: Mesh, further: int) -> dict[str, Any]:
    """Where the arguments of a step lie, (variables, images, labels, weights, *further), and its results."""
    whole, divided = devices.whole(mesh), devices.divided(mesh)
    return {"in_shardings": (whole, *(3 * [divided]), *(further * [whole])), "out_shardings": whole}


def _exact(tapped, kernels, output, variables, batches: Batches, mesh: Mesh) -> dict[str, LayerFeatures]:
    step = _GramStep(tapped, output, mesh)
    total: Any = None
    count = 0
    for batch in batches:
        total = _add(total, step(variables, batch))
        count += int(batch[-1].sum())
    total, count = devices.collect(total, mesh), hosts.total(count)
    sums = {path: gram / count for path, gram in total.items()}
    return _finish(tapped, kernels, count, gradient_gram=sums)


def _probed(
    tapped, kernels, output, variables, batches: Batches, mesh: Mesh, batch_size: int, num_probes: int, key: PRNGKey
) -> dict[str, LayerFeatures]:
    if num_probes < 1:
        raise UserError(f"num_probes: wanted 1 or more, got {num_probes}")

    implementation, (_, parts) = jax.random.key_impl(key), hosts.part()

    def passes(variables, images, labels, weights, first, keys):
        num_outputs = _num_outputs(tapped, output, variables, images, labels)
        block, row = jnp.divmod(jnp.arange(len(images)), len(images) // parts)  # of a process, padding at its end
        places = first + block * batch_size + row
        signs = jax.vmap(lambda key: grams.balanced_cotangents(key, places, num_outputs))(
            jax.random.wrap_key_data(keys, impl=implementation)
        )
        cotangents = signs * weights[None, :, None]
        return grams.gradient_grams(tapped, output, variables, images, labels, cotangents, keep_passes=True)

    what = f"{num_probes} reverse passes of a batch"
    step = within_memory(passes, what, "lower batch_size or num_probes", **_placed(mesh, 2))
    keys = np.asarray(jax.random.key_data(jax.random.split(key, num_probes)))  # typed keys cannot be sent to processes
    total: Any = None
    count = 0
    for index, batch in enumerate(batches):
        arrays = devices.divide(batch, mesh)
        total = _add(total, step(variables, *arrays, np.int32(index * parts * batch_size), keys))
        count += int(batch[-1].sum())
    total, count = devices.collect(total, mesh), hosts.total(count)
    matrices = {path: layer.matrix for path, layer in _finish(tapped, kernels, 0).items()}
    sums = {path: passes.mean(0) / count for path, passes in total.items()}
    errors = {path: jnp.sqrt(grams.probe_variance(matrices[path], passes)) / count for path, passes in total.items()}
    return _finish(tapped, kernels, count, gradient_gram=sums, standard_error=errors)


def _by_definition(tapped, kernels, output, variables, batches: Batches, mesh: Mesh) -> dict[str, LayerFeatures]:
    placed = _placed(mesh, 0)
    steps = {path: jit(partial(grams.patch_agop, tapped, output, path=path), **placed) for path in tapped.specs}
    total: Any = None
    count = 0
    for batch in batches:
        arrays = devices.divide(batch, mesh)
        total = _add(total, {path: step(variables, *arrays) for path, step in steps.items()})
        count += int(batch[-1].sum())
    total, count = devices.collect(total, mesh), hosts.total(count)
    agops = {path: matrix / count for path, matrix in total.items()}
    return _finish(tapped, kernels, count, patch_agop=agops)


def _num_classes(tapped, variables, images) -> int:
    shape = jax.eval_shape(lambda v, x: tapped.apply(v, None, x)[0], variables, images).shape
    if len(shape) != 2:
        raise UserError(f"the network must return logits (n, classes), got shape {shape}")
    return shape[1]


def _num_outputs(tapped, output, variables, images, labels) -> int:
    return jax.eval_shape(lambda v, x, y: output(tapped.apply(v, None, x)[0], y), variables, images, labels).shape[1]


def _identity_chunks(num_outputs: int, unrolled: int) -> list[np.ndarray]:
    """Rows of the identity in equal parts; rows of zeros fill the last, so that one compiled step serves all."""
    parts = math.ceil(num_outputs / unrolled)
    rows = math.ceil(num_outputs / parts)
    return np.split(np.eye(rows * parts, num_outputs, dtype=np.float32), parts)


def _add(total: Any, part: Any) -> Any:
    return part if total is None else jax.tree.map(jnp.add, total, part)


def _finish(
    tapped: taps.TappedModel, kernels: dict[str, tuple[Array, Array | None]], count: int, **sums: Any
) -> dict[str, LayerFeatures]:
    features = {}
    for path, spec in tapped.specs.items():
        found = {name: values[path] for name, values in sums.items()}
        for name in {"gradient_gram", "patch_agop"} & set(found):
            found[name] = jnp.asarray(found[name] if spec.groups > 1 else found[name].squeeze(-3))
            if not bool(jnp.isfinite(found[name]).all()):
                raise UserError(
                    f"layer {path!r}: the gradients hold NaN or infinity: did the donor's training diverge?"
                )
        kernel, bias = kernels[path]
        static = {"count": count, "path": path, "groups": spec.groups, "stacked": spec.stacked}
        features[path] = LayerFeatures(**{"gradient_gram": None, "kernel": kernel, "bias": bias, **static, **found})
    return features

"""Sums over a batch: the gradient Gram matrix `S` by reverse passes, and the AGOP by its definition.

`gradient_grams` is the fast path: one reverse pass per output (or per random cotangent) yields the gradients at the
outputs of *all* layers. `patch_agop` is the plain definition for one layer, explicit patches and their Jacobian, with
which the first is tested. Both add up over a batch; division by the number of images is left to `extract.py`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float, Images, Int, Labels, PRNGKey, Variables
from agop_jax.features.matrix import HIGHEST
from agop_jax.features.patches import extract_patches, kernel_to_matrix
from agop_jax.features.taps import LayerSpec, Record, TappedModel

Outputs = str | Sequence[int]
OutputFunction = Callable[[Float[Array, "n classes"], Labels], Float[Array, "n m"]]


def output_function(outputs: Outputs) -> OutputFunction:
    """What is differentiated: 'logits' (all), a list of class indices, or 'loss' (cross-entropy, needs labels)."""
    if isinstance(outputs, str):
        if outputs not in ("logits", "loss"):
            raise UserError(f"outputs: wanted 'logits', 'loss' or a list of class indices, got {outputs!r}")
        return _loss if outputs == "loss" else lambda logits, labels: logits
    chosen = tuple(int(index) for index in outputs)
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"outputs: wanted at least one class index and none twice, got {list(outputs)}")
    return partial(_subset, chosen)


def _loss(logits: Float[Array, "n classes"], labels: Labels) -> Float[Array, "n 1"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)[:, None]


def _subset(chosen: tuple[int, ...], logits: Float[Array, "n classes"], labels: Labels) -> Float[Array, "n m"]:
    if min(chosen) < 0 or max(chosen) >= logits.shape[-1]:
        raise UserError(f"outputs: wanted class indices from 0 to {logits.shape[-1] - 1}, got {list(chosen)}")
    return logits[:, jnp.array(chosen)]


def gradient_grams(
    tapped: TappedModel,
    output: OutputFunction,
    variables: Variables,
    images: Images,
    labels: Labels,
    cotangents: Float[Array, "m n outputs"],
    *,
    keep_passes: bool = False,
) -> dict[str, Float[Array, "..."]]:
    """Sum over images and positions of delta delta^T for every layer, delta = d(cotangent . output) / d(its output).

    With the rows of the identity as cotangents, the same for every image, this is `count * S` exactly; with random
    ones of E[v v^T] = I its mean is. A zero cotangent leaves an image out, which is how padding is masked.

    The reverse passes are unrolled: inside a loop of XLA the CPU backend runs each operation on one thread (a
    `fori_loop` took 3 to 5 times as long for VGG11), and under `vmap` it was twice as slow.

    Args:
      keep_passes: keep the m passes apart, as a first axis, instead of adding them up.

    Returns:
      {path: (groups, filters, filters)} with leading axes of a scan, if any, in front of the groups.
    """
    forward = lambda taps: output(tapped.apply(variables, taps, images)[0], labels)
    with jax.default_matmul_precision("highest"):
        values, pullback = jax.vjp(forward, tapped.zero_perturbations(variables, images))
        passes = []
        for cotangent in cotangents:
            (deltas,) = pullback(cotangent.astype(values.dtype))
            passes.append({path: layer_gram(calls, tapped.specs[path]) for path, calls in deltas.items()})
    return jax.tree.map(lambda *grams: jnp.stack(grams) if keep_passes else sum(grams), *passes)


def layer_gram(deltas: list[Array], spec: LayerSpec) -> Float[Array, "*stack groups filters filters"]:
    """delta delta^T summed over images, positions and calls, in float32 or better."""

    def call_gram(delta: Array) -> Array:
        delta = delta.astype(jnp.promote_types(delta.dtype, jnp.float32))
        if spec.groups == 1:  # without an axis for groups: on a CPU a batched product takes up to three times as long
            rows = delta.reshape(*delta.shape[: spec.stacked], -1, delta.shape[-1])
            return jnp.expand_dims(jnp.einsum("...ri,...rj->...ij", rows, rows, precision=HIGHEST), -3)
        rows = delta.reshape(*delta.shape[: spec.stacked], -1, spec.groups, delta.shape[-1] // spec.groups)
        return jnp.einsum("...rgi,...rgj->...gij", rows, rows, precision=HIGHEST)

    return jnp.stack([call_gram(delta) for delta in deltas]).sum(0)


def patch_agop(
    tapped: TappedModel,
    output: OutputFunction,
    variables: Variables,
    images: Images,
    labels: Labels,
    weights: Float[Array, "n"],
    path: str,
) -> Float[Array, "*stack groups k k"]:
    """Sum over images of J^T J, J the Jacobian of the outputs with respect to the explicit patches of one layer.

    The definition (Radhakrishnan et al. 2024, eq. 3; for patches Beaglehole et al. 2023, "Mechanism of feature
    learning in convolutional neural networks", eq. 4): the layer's output is replaced by `patches @ W + bias`, with
    every patch an input of its own. Costs a Jacobian of size outputs x positions x k an image: for tests and small
    layers.
    """
    spec = tapped.specs[path]

    def one_image(image: Array, label: Array) -> Array:
        image, label = image[None], label[None]
        zeros = tapped.zero_perturbations(variables, image)
        _, records = tapped.apply(variables, None, image)

        def one_call(call: int) -> Array:
            record = records[path][call]

            def network(patches: Array) -> Array:
                replaced = {**zeros, path: list(zeros[path])}
                replaced[path][call] = outputs_of_patches(patches, record, spec) - record.outputs
                return output(tapped.apply(variables, replaced, image)[0], label)[0]

            jacobian = jax.jacrev(network)(patches_of(record, spec))
            return jnp.einsum("m...pgi,m...pgj->...gij", jacobian, jacobian, precision=HIGHEST)

        return jnp.stack([one_call(call) for call in range(len(records[path]))]).sum(0)

    with jax.default_matmul_precision("highest"):
        agops = jax.vmap(one_image)(images, labels)
    return jnp.tensordot(weights, agops, axes=1, precision=HIGHEST)


def patches_of(record: Record, spec: LayerSpec) -> Float[Array, "*stack p groups k"]:
    """The patches of one call of a layer, images and positions as one axis."""
    seen = record.inputs.astype(jnp.result_type(record.inputs, record.kernel))  # integer images, as the layer sees them
    if not spec.kernel_size:
        return seen.reshape(*seen.shape[: spec.stacked], -1, 1, seen.shape[-1])

    def extract(inputs: Array) -> Array:
        inputs = inputs.reshape(-1, *inputs.shape[-len(spec.kernel_size) - 1 :])
        geometry = (spec.kernel_size, spec.strides, spec.padding, spec.kernel_dilation, spec.input_dilation)
        patches = extract_patches(inputs, *geometry, groups=spec.groups)
        return patches.reshape(-1, *patches.shape[-2:])

    return over_stack(extract, spec)(seen)


def outputs_of_patches(patches: Float[Array, "*stack p groups k"], record: Record, spec: LayerSpec) -> Array:
    """What the layer makes of its patches, in the shape of its output."""
    matrix = over_stack(partial(kernel_to_matrix, groups=spec.groups), spec)(record.kernel)
    matrix = matrix if spec.groups > 1 else jnp.expand_dims(matrix, -3)
    outputs = jnp.einsum("...pgk,...gkc->...pgc", patches, matrix, precision=HIGHEST).reshape(record.outputs.shape)
    if record.bias is None:
        return outputs
    bias = record.bias
    return outputs + bias.reshape(*bias.shape[:-1], *(1,) * (outputs.ndim - bias.ndim), bias.shape[-1])


def over_stack(function: Callable, spec: LayerSpec) -> Callable:
    """`function` mapped over the leading axes of a scanned layer."""
    for _ in range(spec.stacked):
        function = jax.vmap(function)
    return function


def balanced_cotangents(key: PRNGKey, places: Int[Array, "n"], num_outputs: int) -> Float[Array, "n outputs"]:
    """Random cotangents of +-1 with E[v v^T] = I for each image, which add up to I over many images.

    Rows of a Hadamard matrix, (-1)^(bits that i and j share), in random order and with random signs of its columns. Its
    order is the power of two from `num_outputs` on. Over so many images the sum of v v^T is exactly a multiple of I, so
    that what their Jacobians have in common adds no error: near the output that is nearly all. Independent signs
    would add it in full.

    Args:
      key: of one pass over all images, the same for each batch.
      places: of the images in that pass, from 0 on.
      num_outputs: of the network.
    """
    order = 1 << (num_outputs - 1).bit_length()
    rows_key, signs_key = jax.random.split(key)
    rows = jax.random.permutation(rows_key, order)[places % order]
    odd = jax.lax.population_count(rows[:, None] & jnp.arange(num_outputs)) & 1
    return (1 - 2 * odd) * jax.random.rademacher(signs_key, (num_outputs,), jnp.float32)


def probe_variance(
    matrix: Float[Array, "*stack k filters"], passes: Float[Array, "m *groups filters filters"]
) -> Array:
    """Variance of the mean over m independent passes of W S W^T, summed over all k x k entries (its trace).

    From the factors: |W D W^T|_F^2 = tr(D K D K) with K = W^T W. NaN for m = 1, which says nothing of its own spread.
    """
    m = len(passes)
    if m < 2:
        return jnp.full((), math.nan)
    deviations = passes - passes.mean(0)
    gram = jnp.einsum("...ki,...kj->...ij", matrix, matrix, precision=HIGHEST).reshape(passes.shape[1:])
    products = jnp.einsum("m...ij,...jk->m...ik", deviations, gram, precision=HIGHEST)
    return jnp.einsum("m...ij,m...ji->", products, products, precision=HIGHEST) / (m * (m - 1))

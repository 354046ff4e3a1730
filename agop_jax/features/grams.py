"""Sums over a batch: the gradient Gram matrix `S` by reverse passes, and the AGOP by its definition.

`gradient_grams` is the fast path: one reverse pass per output (or per random cotangent) yields the gradients at the
outputs of *all* layers. `patch_agop` is the plain definition for one layer, explicit patches and their Jacobian, with
which the first is tested. Both add up over a batch; `extraction.py` divides by the number of examples.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float, Int, Labels, PRNGKey
from agop_jax.features.evaluation import Record
from agop_jax.features.matrix import HIGHEST
from agop_jax.features.patches import kernel_to_matrix
from agop_jax.features.sites import Site
from agop_jax.features.tapped import Tapped

Outputs = str | int | Sequence[int] | np.ndarray | Callable[[Any], Array]
OutputFunction = Callable[[Any, Labels], Float[Array, "n m"]]  # of what the model returns, and labels


def output_function(outputs: Any) -> OutputFunction:
    """What is differentiated.

    Args:
      outputs: 'logits' (all), a class index or several, 'loss' (cross-entropy, needs labels), or a function of what the
        model returns that gives (n, m).

    Raises:
      UserError: none of these.
    """
    if callable(outputs):
        return lambda returned, labels: _matrix(outputs(returned), "the function given as outputs")
    if isinstance(outputs, str):
        if outputs not in ("logits", "loss"):
            raise UserError(
                f"outputs: needed 'logits', 'loss', class indices or a function of the model's result, got {outputs!r}"
            )
        return _loss if outputs == "loss" else lambda returned, labels: _logits(returned)
    indices = np.atleast_1d(np.asarray(outputs))
    if indices.dtype.kind not in "iu" or indices.ndim != 1 or not len(indices) or len(set(indices)) < len(indices):
        raise UserError(f"outputs: needed at least one class index and none twice, got {outputs!r}")
    return partial(_subset, tuple(map(int, indices)))


def _logits(returned: Any) -> Float[Array, "n classes"]:
    return _matrix(returned, "the model")


def _matrix(returned: Any, what: str) -> Float[Array, "n m"]:
    if not hasattr(returned, "shape"):
        raise UserError(
            f"{what} returns a {type(returned).__name__}, needed one array (n, m): choose from it, such as "
            "outputs=lambda returned: returned[0]"
        )
    if len(returned.shape) != 2:
        raise UserError(
            f"{what} returns shape {tuple(returned.shape)}, needed (n, m): give outputs=, a function of what the model "
            "returns, such as outputs=lambda returned: returned.mean(1)"
        )
    return returned


def _loss(returned: Any, labels: Labels) -> Float[Array, "n 1"]:
    return optax.softmax_cross_entropy_with_integer_labels(_logits(returned), labels)[:, None]


def _subset(indices: tuple[int, ...], returned: Any, labels: Labels) -> Float[Array, "n m"]:
    logits = _logits(returned)
    if min(indices) < 0 or max(indices) >= logits.shape[-1]:
        raise UserError(f"outputs: needed class indices from 0 to {logits.shape[-1] - 1}, got {list(indices)}")
    return logits[:, jnp.array(indices)]


def gradient_grams(
    tapped: Tapped,
    output: OutputFunction,
    variables: tuple[Any, Any],
    inputs: Any,
    labels: Labels,
    cotangents: Float[Array, "m n outputs"],
    *,
    keep_passes: bool = False,
) -> dict[str, Float[Array, "..."]]:
    """Sum over examples and positions of delta delta^T for every layer, delta = d(cotangent . output) / d(its output).

    With the rows of the identity as cotangents, the same for every example, this is `count * S` exactly; with random
    ones of E[v v^T] = I its mean is. A zero cotangent leaves an example out, which is how padding is masked.

    The reverse passes are unrolled: inside a loop of XLA the CPU backend runs each operation on one thread (a
    `fori_loop` took 3 to 5 times as long for VGG11), and under `vmap` it was twice as slow.

    Args:
      variables: parameters and others of the network.
      keep_passes: keep the m passes apart, as a first axis, instead of adding them up.

    Returns:
      {layer: (*stack, *groups, filters, filters)}; see `LayerFeatures.gradient_gram`.
    """
    forward = lambda taps: output(tapped.apply(*variables, taps, inputs)[0], labels)
    with jax.default_matmul_precision("highest"):
        values, pullback = jax.vjp(forward, tapped.zeros(*variables, inputs))
        passes = []
        for cotangent in cotangents:
            (deltas,) = pullback(cotangent.astype(values.dtype))
            grams = {place: site_gram(tapped.sites[place], delta) for place, delta in deltas.items()}
            passes.append({layer: sum(grams[place] for place in places) for layer, places in tapped.layers.items()})
    return jax.tree.map(lambda *grams: jnp.stack(grams) if keep_passes else sum(grams), *passes)


def site_gram(site: Site, delta: Array) -> Float[Array, "..."]:
    """delta delta^T of one product, summed over examples and positions, in float32 or better."""

    def gram(delta: Array) -> Array:
        rows = site.rows(delta.astype(jnp.promote_types(delta.dtype, jnp.float32)))
        # without an axis for groups where there are none: on a CPU a batched product takes up to three times as long
        axes = "rgi,rgj->gij" if site.groups > 1 else "...ri,...rj->...ij"
        return jnp.einsum(axes, rows, rows, precision=HIGHEST)

    return _over_scans(site, gram)(delta)


def _over_scans(site: Site, function: Callable[..., Array]) -> Callable[..., Array]:
    """`function` of one step, for all steps of the scans around a product; summed where the steps share a kernel."""
    for _ in range(site.depth):
        function = jax.vmap(function)
    shared = tuple(level for level in range(site.depth) if level not in site.stack)
    return lambda *arrays: function(*arrays).sum(shared)


def patch_agop(
    tapped: Tapped,
    output: OutputFunction,
    variables: tuple[Any, Any],
    inputs: Any,
    labels: Labels,
    weights: Float[Array, "n"],
    layer: str,
) -> Float[Array, "*stack k k"]:
    """Sum over examples of J^T J, J the Jacobian of the outputs with respect to the explicit patches of one layer.

    The definition (Radhakrishnan et al. 2024, eq. 3; for patches Beaglehole et al. 2023, "Mechanism of feature
    learning in convolutional neural networks", eq. 4): the product is replaced by `patches @ W`, with every patch an
    input of its own. Costs a Jacobian of size outputs x positions x k an example: for tests and small layers.
    """

    def one_example(example: Any, label: Array) -> Array:
        batch, label = jax.tree.map(lambda leaf: leaf[None], example), label[None]
        _, records = tapped.apply(*variables, {}, batch)

        def one_product(place: str) -> Array:
            site, record = tapped.sites[place], records[place]

            def network(patches: Array) -> Array:
                difference = _outputs_of_patches(site, patches, record) - record.outputs
                return output(tapped.apply(*variables, {place: difference}, batch)[0], label)[0]

            return _products_of_jacobian(site, jax.jacrev(network)(_patches(site, record)))

        return sum((one_product(place) for place in tapped.layers[layer][1:]), one_product(tapped.layers[layer][0]))

    with jax.default_matmul_precision("highest"):
        agops = jax.vmap(one_example)(inputs, labels)
    return jnp.tensordot(weights, agops, axes=1, precision=HIGHEST)


def _patches(site: Site, record: Record) -> Float[Array, "..."]:
    patches = site.patches
    for _ in range(site.depth):
        patches = jax.vmap(patches)
    return patches(record.inputs.astype(jnp.result_type(record.inputs, record.kernel, jnp.float32)))


def _outputs_of_patches(site: Site, patches: Array, record: Record) -> Array:
    """What the product makes of its patches, in the shape and type of its output."""

    def outputs(patches: Array, operand: Array, like: Array) -> Array:
        kernel = site.kernel(operand)
        matrix = kernel if site.heads else kernel_to_matrix(kernel, site.groups)
        axes = "pgk,gkc->pgc" if site.groups > 1 else "...pk,...kc->...pc"
        rows = jnp.einsum(axes, patches, matrix, precision=HIGHEST)
        return site.outputs(rows, like.shape).astype(like.dtype)

    for _ in range(site.depth):
        outputs = jax.vmap(outputs)
    return outputs(patches, record.kernel, record.outputs)


def _products_of_jacobian(site: Site, jacobian: Float[Array, "m ..."]) -> Float[Array, "*stack k k"]:
    axes = "mpgi,mpgj->gij" if site.groups > 1 else "m...pi,m...pj->...ij"
    product = lambda steps: jnp.einsum(axes, steps, steps, precision=HIGHEST)
    return _over_scans(site, product)(jnp.moveaxis(jacobian, 0, site.depth))


def balanced_cotangents(key: PRNGKey, places: Int[Array, "n"], num_outputs: int) -> Float[Array, "n outputs"]:
    """Random cotangents of +-1 with E[v v^T] = I for each image, which add up to I over many images.

    The signs are rows of a Hadamard matrix, (-1)^(number of bits that i and j share), in random order and with random
    signs of its columns. The order of the matrix is the smallest power of two that is at least `num_outputs`. Over as
    many images as the matrix has rows, the v v^T add up to a multiple of I. What the Jacobians of these images have in
    common then adds no error. Near the output they have nearly everything in common, and independent signs would leave
    that error whole.

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

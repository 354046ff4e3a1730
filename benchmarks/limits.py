"""What the hardware and XLA allow: the same work without anything that this project adds."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from agop_jax.core.compilation import jit
from agop_jax.core.types import Array, Variables
from benchmarks.timing import Work

SIDE = 2048
PRODUCT_OPERATIONS = 2 * SIDE**3
Passes = Callable[[Variables, Array, Array], Any]


def reverse_passes(model: nn.Module, variables: Variables, images: np.ndarray, outputs: int, form: str) -> Work:
    """One forward pass, and one reverse pass to the images for each of the first `outputs` outputs, in one jitted call.

    Args:
      model, variables, images: as for `agop_jax.extract`.
      outputs: number of reverse passes.
      form: a key of `FORMS`.
    """
    rows = jnp.eye(outputs, model.num_classes)
    passes, on_device = jit(FORMS[form](model)), jnp.asarray(images)
    return lambda: passes(variables, on_device, rows)


def _pullback(model: nn.Module, variables: Variables, images: Array) -> Callable[[Array], Array]:
    """(classes,) -> gradients at the images, of the output that this row of the identity chooses."""
    logits, pull = jax.vjp(lambda images: model.apply(variables, images), images)
    return lambda row: pull(jnp.broadcast_to(row, logits.shape))[0]


def _unrolled(model: nn.Module) -> Passes:
    def passes(variables: Variables, images: Array, rows: Array) -> Array:
        pull = _pullback(model, variables, images)
        return jnp.stack([jnp.sum(pull(row)) for row in rows])

    return passes


def _vmapped(model: nn.Module) -> Passes:
    def passes(variables: Variables, images: Array, rows: Array) -> Array:
        pull = _pullback(model, variables, images)
        return jax.vmap(lambda row: jnp.sum(pull(row)))(rows)

    return passes


def _looped(model: nn.Module) -> Passes:
    def passes(variables: Variables, images: Array, rows: Array) -> Array:
        pull = _pullback(model, variables, images)
        return jax.lax.map(lambda row: jnp.sum(pull(row)), rows)

    return passes


FORMS: dict[str, Callable[[nn.Module], Passes]] = {"unrolled": _unrolled, "vmapped": _vmapped, "looped": _looped}


def training_step(model: nn.Module, learning_rate: float, momentum: float, decay: float) -> Callable[..., Any]:
    """(state of `training_start`, images, labels) -> state, loss: SGD written out, jitted, buffers donated."""

    def loss_fn(params: Any, statistics: Any, images: Array, labels: Array) -> tuple[Array, Any]:
        switch = {"train": True} if statistics else {}
        variables = {"params": params, **statistics}
        logits, statistics = model.apply(variables, images, mutable=list(statistics), **switch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), statistics

    def step(state: tuple[Any, Any, Any], images: Array, labels: Array) -> tuple[tuple[Any, Any, Any], Array]:
        params, momenta, statistics = state
        (loss, statistics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, statistics, images, labels)
        momenta = jax.tree.map(lambda m, g, p: momentum * m + g + decay * p, momenta, gradient, params)
        return (jax.tree.map(lambda p, m: p - learning_rate * m, params, momenta), momenta, statistics), loss

    return jit(step, donate_argnums=0)


def training_start(variables: Variables) -> tuple[Any, Any, Any]:
    """Parameters, momenta of zero and BatchNorm's statistics, as copies."""
    statistics = jax.tree.map(jnp.array, dict(variables))
    params = statistics.pop("params")
    return params, jax.tree.map(jnp.zeros_like, params), statistics


def product() -> Work:
    """One product of two square matrices in float32."""
    matrix = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    multiply = jax.jit(lambda matrix: jnp.dot(matrix, matrix, precision="highest"))
    return lambda: multiply(matrix)


def normals(number: int) -> Work:
    """As many i.i.d. normal numbers, drawn in one jitted call, and one pass over the memory."""
    draw = jax.jit(lambda key: jax.random.normal(key, (number,)))
    scale = jax.jit(lambda numbers: 2 * numbers)
    key = jax.random.key(0)
    return lambda: scale(draw(key))

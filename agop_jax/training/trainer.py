"""The compiled steps of training and evaluation.

Everything a run depends on is an argument: the initial variables, the images' indices, the learning rate and the seed.
The compiled step takes them as data, so that all initialisations, seeds and learning rates of one network share it.
"""

# pyright: reportArgumentType=false

import contextlib
import functools
import math
from collections.abc import Callable, Generator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from agop_jax.core import devices, hosts
from agop_jax.core.compilation import compile_within_memory, jit, traced
from agop_jax.core.networks import switches_of
from agop_jax.core.types import Array, Variables
from agop_jax.data import AnySplit, Pipeline, Split, batch_indices, stored_batches
from agop_jax.training.settings import Settings, optimizer_of

EVALUATION_BATCH = 500  # images, and no more pixels than this many of 224 x 224: forward passes have to fit, too
EVALUATION_PIXELS = 64 * 224 * 224
AMPLE_BYTES = 2**30  # of a step: VGG11 at 32 x 32 takes a fifth of it, at 224 x 224 five times as much
Selection = tuple[Split, np.ndarray | None]  # images by their indices in a split, or a split whole


@struct.dataclass
class TrainState:
    """All that a run carries from step to step; saved whole, so that a resumed run is the same run.

    The leaves are arrays, or what tree operations (shapes, paths) put in their place.

    Attributes:
      step: () int32.
      variables: the network's.
      optimizer: the state of optax.
      loss_sum, correct: () float32, of the mini-batches since the last evaluation.
    """

    step: Any
    variables: Any
    optimizer: Any
    loss_sum: Any
    correct: Any


class Trainer:
    """Compiled steps for one network, pipeline and settings.

    Mini-batches are divided over the devices of `mesh`, and the result is that of one device. `traces` counts how often
    the training step was traced, which is how often it was compiled.

    Args:
      model: a Linen module.
      pipeline: from a split's images to what the network sees.
      settings: of the run.
      mesh: the devices; None for as many as divide the mini-batches evenly.

    Attributes:
      batch_sums: (variables, split, indices, weights) -> sums of losses and hits; the step of `evaluate`.
    """

    def __init__(self, model: nn.Module, pipeline: Pipeline, settings: Settings, mesh: Mesh | None = None) -> None:
        self.model, self.pipeline, self.settings = model, pipeline, settings
        self.mesh = mesh or devices.mesh_for(settings.batch_size)
        self.traces = 0
        self._inference = switches_of(type(model).__call__)
        self._optimizer = optax.inject_hyperparams(
            optimizer_of, static_args=("settings",), hyperparam_dtype=jnp.float32
        )(learning_rate=0.0, settings=settings)
        self._optimizer_start = jax.jit(self._optimizer.init)  # constants of a jitted function are no transfers
        self._compiled: Callable[..., TrainState] | None = None
        self._whole, self._divided = devices.whole(self.mesh), devices.divided(self.mesh)
        placed = {"in_shardings": (self._whole, None, self._whole, self._whole), "out_shardings": self._whole}
        self.batch_sums = jit(self._evaluate_batch, **placed)
        self._step_options = {
            "donate_argnums": 0,
            "in_shardings": (self._whole, None, *(3 * [self._whole])),  # where a split lies is its own affair
            "out_shardings": self._whole,
        }

    def start(self, variables: Variables) -> TrainState:
        """The state before the first step."""
        variables = jax.tree.map(jnp.array, dict(variables))  # a copy: the step donates its buffers
        sums = np.zeros(2, np.float32)
        state = TrainState(np.int32(0), variables, self._optimizer_start(variables["params"]), *sums)
        return devices.replicate(state, self.mesh)

    def batches(self, split: AnySplit, indices: np.ndarray, seed: int, done: int) -> Generator[Selection]:
        """The mini-batches of a run from a step on, for `step`: the same ones wherever the images are.

        Args:
          split: on the devices, or on disk; then each process reads its part of every batch, ahead of time.
          indices: which of its images to use.
          seed: of the order.
          done: steps that the run has behind it.
        """
        size, steps = self.settings.batch_size, self.settings.steps
        if isinstance(split, Split):
            yield from ((split, batch_indices(indices, size, step, seed)) for step in range(done, steps))
            return
        part, parts = hosts.part()
        stored = stored_batches(split, indices, size, seed, steps=steps, start=done, part=part, parts=parts)
        with contextlib.closing(stored) as read:
            for batch in read:
                yield self._divide(batch), None

    def _divide(self, batch: Split) -> Split:
        """This process's part of a batch, onto its devices."""
        return Split(*devices.divide(tuple(batch), self.mesh))

    def step(
        self, state: TrainState, split: Split, indices: np.ndarray | None, learning_rate: float, seed: int
    ) -> TrainState:
        """One mini-batch; the buffers of `state` are given up. Compiled at the first call, for its shapes.

        Args:
          state: of the run.
          split: on the devices.
          indices: of the mini-batch in the split; None if the split is the mini-batch.
          learning_rate: peak of the schedule.
          seed: of augmentation and dropout.

        Raises:
          UserError: at the first call, if the step needs more memory than the device has free.
        """
        numbers = (indices, np.float32(learning_rate), np.uint32(seed))
        arguments = (state, split, *(devices.place(numbers, self.mesh) if hosts.several() else numbers))
        if self._compiled is None:
            what = f"a training step of {self.settings.batch_size} images"
            self._compiled = compile_within_memory(
                self._step,
                arguments,
                what,
                "lower batch_size",
                AMPLE_BYTES,
                **self._step_options,
            )
        with jax.transfer_guard_host_to_device("allow"):  # of the numbers: placed one by one they cost more time
            return self._compiled(*arguments)

    def trace_step(self, state: TrainState, split: Split, indices: Any) -> jax.stages.Traced:
        """The traced training step for arguments of these shapes, which can be lowered for any kind of device."""
        number = functools.partial(jax.ShapeDtypeStruct, ())
        arguments = (state, split, indices, number(jnp.float32), number(jnp.uint32))
        return traced(self._step, arguments, **self._step_options)

    def _take(self, split: Split, indices: Array | np.ndarray | None) -> tuple[Array, Array]:
        """Images, divided over the devices wherever they lay, and labels."""
        if indices is None:
            return jnp.asarray(split.images), jnp.asarray(split.labels)
        return jax.lax.with_sharding_constraint(split.images[indices], self._divided), split.labels[indices]

    def _step(
        self,
        state: TrainState,
        split: Split,
        indices: Array | np.ndarray | None,
        learning_rate: Array | np.float32,
        seed: Array | np.uint32,
    ) -> TrainState:
        self.traces += 1
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, dropout_key = jax.random.split(key)
        images, labels = self._take(split, indices)
        images = self.pipeline(self.pipeline.augment(images, augment_key))
        others = {name: value for name, value in state.variables.items() if name != "params"}

        def loss_fn(params):
            logits, changed = self.model.apply(
                {"params": self._cast(params), **others},
                self._cast(images),
                mutable=list(others),
                rngs={"dropout": dropout_key},
                **{name: not value for name, value in self._inference.items()},
            )
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, (changed, (logits.argmax(-1) == labels).mean())

        (loss, (others, accuracy)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.variables["params"])
        rates = {**state.optimizer.hyperparams, "learning_rate": learning_rate * self._decay(state.step)}
        optimizer = state.optimizer._replace(hyperparams=rates)
        updates, optimizer = self._optimizer.update(gradient, optimizer, state.variables["params"])
        params = optax.apply_updates(state.variables["params"], updates)
        new = TrainState(
            step=state.step + 1,
            variables={"params": params, **others},
            optimizer=optimizer,
            loss_sum=state.loss_sum + loss,
            correct=state.correct + accuracy,
        )
        # whatever JAX's default types are, the state keeps its own: the next step is compiled for them
        return jax.tree.map(lambda leaf, before: jnp.asarray(leaf, before.dtype), new, state)

    def _cast(self, tree: Any) -> Any:
        """To the precision of the passes; the gradient comes back in that of the parameters."""
        if self.settings.precision == "float32":
            return tree
        return jax.tree.map(lambda leaf: leaf.astype(self.settings.precision), tree)

    def _decay(self, step: Array) -> Array:
        if self.settings.schedule == "constant":
            return jnp.ones(())
        return 0.5 * (1 + jnp.cos(jnp.pi * step / self.settings.steps))

    def _evaluate_batch(
        self, variables: Variables, split: Split, indices: Array | None, weights: Array
    ) -> tuple[Array, Array]:
        images, labels = self._take(split, indices)
        logits = self.model.apply(variables, self.pipeline(images), **self._inference)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        hits = (logits.argmax(-1) == labels) & jnp.isfinite(losses)  # a network of NaN is right about nothing
        return jnp.sum(jnp.where(weights, losses, 0)), jnp.sum(hits * weights)

    def evaluate(self, variables: Variables, split: AnySplit, images: int | None = None) -> tuple[float, float]:
        """Mean loss and accuracy over a split on the devices or on disk, without augmentation.

        Args:
          variables: of the network.
          split: on the devices or on disk.
          images: how many of its images to use, evenly spaced, since a set may be in the order of its classes; None
            for all.
        """
        total, size = np.zeros(2), min(len(split.labels), images or len(split.labels))
        side = self.pipeline.resize
        pixels = side * side or math.prod(split.shape[:2])
        most = EVALUATION_BATCH if size == len(split.labels) else min(EVALUATION_BATCH, size)
        batch_size = devices.round_up(max(1, min(most, EVALUATION_PIXELS // pixels)), self.mesh.size)
        chosen = np.arange(size) * len(split.labels) // size
        for start in range(0, size, batch_size):
            indices = np.arange(start, start + batch_size)
            batch, rows = self._selected(split, chosen[np.minimum(indices, size - 1)])
            rows, weights = devices.place((rows, indices < size), self.mesh)
            total += np.array(jax.device_get(self.batch_sums(variables, batch, rows, weights)))
        return float(total[0] / size), float(total[1] / size)

    def _selected(self, split: AnySplit, indices: np.ndarray) -> Selection:
        if isinstance(split, Split):
            return split, indices
        part, parts = hosts.part()
        return self._divide(split.take(np.split(indices, parts)[part]).load()), None

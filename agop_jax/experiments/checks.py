"""Everything that shapes tell about a config, before anything is trained: every init on every width in seconds."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from agop_jax.core import trees
from agop_jax.core.errors import UserError, first_line
from agop_jax.data import Dataset, Pipeline
from agop_jax.experiments import outlines
from agop_jax.experiments.donors import pipeline_for
from agop_jax.experiments.machines import SOURCE
from agop_jax.experiments.outlines import Shape
from agop_jax.experiments.places import device_groups
from agop_jax.experiments.settings import Config
from agop_jax.features.grams import output_function
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.initializers.drawn import Drawn
from agop_jax.initializers.methods import Method
from agop_jax.initializers.registry import get_method
from agop_jax.initializers.whitening import Whitened


@dataclass(frozen=True)
class Outline:
    """A network by its shapes.

    Attributes:
      kernels: shape by layer, in the order of the first calls.
      inputs: (h, w, c) of an image as the network sees it.
      num_classes: logits.
    """

    kernels: Mapping[str, Shape]
    inputs: Shape
    num_classes: int


def outline(model: nn.Module, pipeline: Pipeline, shape: Sequence[int], num_classes: int) -> Outline:
    """The outline of a network that sees stored images (h, w, c) through a pipeline.

    Raises:
      UserError: the network does not take such images.
    """
    inputs = outlines.input_shape(pipeline, shape)
    try:
        kernels = outlines.kernel_shapes(model, pipeline, shape)
    except UserError:
        raise
    except Exception as error:  # of JAX and Flax, by what does not fit
        raise UserError(f"{type(model).__name__} does not take images of {inputs} ({first_line(error)})") from error
    return Outline(kernels, inputs, num_classes)


def check_training(config: Config, dataset: Dataset, donor_dataset: Dataset) -> None:
    """Sizes of training sets and batches, and devices."""
    present = len(dataset.train.labels)
    for size in config.recipients.train_sizes:
        if size > present:
            raise UserError(f"train_size: wanted 1 to {present} (what the validation split leaves), got {size}")
        _check_batch("train", config.train.batch_size, size or present)
    if not (config.donor.source or config.features.source):
        _check_batch("donor.train", config.donor.train.batch_size, len(donor_dataset.train.labels))
    device_groups(config.recipients.devices)


def _check_batch(section: str, batch_size: int, images: int) -> None:
    if batch_size > images:
        raise UserError(f"config.{section}: batch_size {batch_size} is larger than the training set of {images} images")


def check_donor(config: Config, donor: Outline) -> None:
    """Class indices and the layers that are to be shown and drawn."""
    if not isinstance(config.features.outputs, str):
        logits = jax.ShapeDtypeStruct((1, donor.num_classes), jnp.float32)
        jax.eval_shape(output_function(config.features.outputs), logits, jax.ShapeDtypeStruct((1,), jnp.int32))
    trees.select(donor.kernels, config.recipients.layers)
    if convolutions := [path for path, shape in donor.kernels.items() if len(shape) == 4]:
        trees.select(convolutions, config.pictures.layers)


def check_recipients(config: Config, dataset: Dataset, donor: Outline | None) -> None:
    """Every init on every width.

    Args:
      config: of the experiment.
      dataset: the recipients'.
      donor: None where only the donor's features are known; then their own checks have to do.
    """
    pipeline = pipeline_for(config, dataset)
    for width in config.recipients.widths:
        model = config.model.network(dataset.num_classes, width)
        recipient = outline(model, pipeline, dataset.train.shape, dataset.num_classes)
        for init in config.recipients.inits:
            _check_method(config, init)
            _check_init(init, recipient, donor, trees.select(recipient.kernels, config.recipients.layers))


def _check_init(init: str, recipient: Outline, donor: Outline | None, chosen: Sequence[str]) -> None:
    method = get_method(init)
    if isinstance(method.source, Drawn):
        return _check_drawn(init, recipient, chosen)
    if method.needs_network and donor:
        _check_inputs(init, recipient.inputs, donor.inputs)
    for path in chosen[:1] if method.first else chosen:
        if method.needs_donor and donor and path not in donor.kernels:
            known = ", ".join(donor.kernels)
            raise UserError(
                f"init {init!r}, layer {path!r}: the donor has no such layer. It has: {known}. Select others with "
                "config.recipients.layers"
            )
        try:
            _draw_by_shapes(method, path, recipient.kernels[path], donor.kernels.get(path) if donor else None)
        except ValueError as error:  # of JAX's initialisers, too
            message = str(error) if f"layer {path!r}" in str(error) else f"layer {path!r}: {error}"
            raise UserError(f"init {init!r}: {message}") from error


def _check_method(config: Config, init: str) -> None:
    """Coupled inits need a factor of the AGOP, which the definition of it does not give."""
    method = get_method(init)
    matrix = getattr(method.source, "matrix", "nfm")
    coupled = method.coupled or (method.matched and method.matched.coupled)
    if config.features.source or matrix == "nfm" or not coupled:
        return
    if config.donor.source == SOURCE:
        raise UserError(f"init {init!r} needs gradient Gram matrices, which a donor from {SOURCE!r} has not: train one")
    if config.features.method == "patch_jacobian":
        raise UserError(
            f"init {init!r} needs gradient Gram matrices, which config.features.method 'patch_jacobian' does not give: "
            "use 'gram'"
        )


def _check_drawn(init: str, recipient: Outline, chosen: Sequence[str]) -> None:
    """Checks the layers of a recursive feature machine, which draws convolutions alone."""
    for path in chosen:
        if len(recipient.kernels[path]) < 3:
            raise UserError(
                f"init {init!r}, layer {path!r}: it draws convolutions alone: select them with config.recipients.layers"
            )


def _check_inputs(init: str, recipient: Shape, donor: Shape) -> None:
    """Checks the inputs of a coupled init, which compares activations of donor and recipient by position."""
    if recipient[-1] != donor[-1]:
        wants = f"wants {donor[-1]} channels, got {recipient[-1]}"
        raise UserError(f"init {init!r} shows its images to the donor, which {wants}")
    if recipient != donor:
        sizes = f"the donor {donor[:2]}, the recipient {recipient[:2]}"
        raise UserError(f"init {init!r} needs one size of images for both, got {sizes}: set config.donor.resize")


def _draw_by_shapes(method: Method, path: str, shape: Shape, donor_shape: Shape | None) -> None:
    """Draws a kernel without computing it."""
    if isinstance(method.source, Whitened):  # fits any layer
        return
    if not method.needs_donor:
        jax.eval_shape(lambda key: method.source.kernel_init(None)(key, shape), jax.random.key(0))
    elif donor_shape is None:
        return
    elif not method.coupled:
        source, kernel = method.source, jax.ShapeDtypeStruct(donor_shape, jnp.float32)
        layer = lambda kernel: _LayerShape(kernel, None, 1, path)
        jax.eval_shape(lambda key, kernel: source.kernel_init(layer(kernel))(key, shape), jax.random.key(0), kernel)


class _LayerShape(LayerFeatures):
    """A layer of the right shapes, whose matrices have one eigenvalue so that they cost nothing."""

    @functools.cached_property
    def nfm(self) -> FeatureMatrix:
        size = self.kernel.size // self.kernel.shape[-1]
        return FeatureMatrix(jnp.ones((size, 1)), jnp.ones(1))

    @functools.cached_property
    def agop(self) -> FeatureMatrix:
        return self.nfm

"""Networks by name: `create('small_cnn', num_classes=10, features=(32, 64))`."""

# pyright: reportArgumentType=false

import dataclasses
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from agop_jax.core.errors import UserError, unknown_name
from agop_jax.core.networks import switches_of
from agop_jax.core.types import PRNGKey
from agop_jax.models.alexnet import AlexNet
from agop_jax.models.cnn import LeNet5, SmallCNN
from agop_jax.models.resnet import CIFARResNet, ResNet
from agop_jax.models.vgg import STAGES, VGG
from agop_jax.models.vit import ViT

MODELS: dict[str, partial[nn.Module]] = {
    "lenet5": partial(LeNet5),
    "small_cnn": partial(SmallCNN),
    "alexnet": partial(AlexNet),
    **{f"vgg{depth}": partial(VGG, depth=depth) for depth in STAGES},
    **{f"vgg{depth}_bn": partial(VGG, depth=depth, batch_norm=True) for depth in STAGES},
    **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in (18, 34, 50)},
    **{f"resnet{depth}": partial(CIFARResNet, depth=depth) for depth in (20, 32, 44, 56)},
    "vit_tiny": partial(ViT),
}


def create(name: str, num_classes: int, width: float = 1.0, **fields: Any) -> nn.Module:
    """The network of this name with fresh, unbound weights.

    Args:
      name: a key of `MODELS`.
      num_classes: logits of its head.
      width: factor on the number of channels of every hidden layer.
      **fields: further fields of the network, such as `features` of 'small_cnn' or `head` of 'vgg11'.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    own = {field.name for field in dataclasses.fields(MODELS[name].func)}
    known = own - {"parent", "name", "num_classes", "width", *MODELS[name].keywords}
    for field in fields:
        if field not in known:
            raise unknown_name(f"field of model {name!r}", field, known)
    if not 0 < width < math.inf:
        raise UserError(f"model width: wanted a factor above 0, got {width}")
    for field, value in fields.items():
        _require_counts(name, field, value)
    return MODELS[name](num_classes=num_classes, width=width, **fields)


def _require_counts(name: str, field: str, value: Any) -> None:
    """Whatever is a number in a network, or a list of such, counts layers, channels, pixels or heads."""
    numbers = value if isinstance(value, tuple | list) else (value,)
    if not numbers or any(isinstance(number, int | float) and number < 1 for number in numbers if number is not False):
        raise UserError(f"model {name!r}: wanted {field} of 1 or more, got {value!r}")


def describe(model: nn.Module) -> dict[str, Any]:
    """The arguments with which `create` makes this network."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    matches = [
        name
        for name, make in MODELS.items()
        if make.func is type(model) and all(fields[key] == value for key, value in make.keywords.items())
    ]
    if not matches:
        raise UserError(f"{type(model).__name__} is none of the models here: {', '.join(MODELS)}")
    name = max(matches, key=lambda match: len(MODELS[match].keywords))  # vgg11_bn is a vgg11 with BatchNorm
    own = fields.keys() - {"parent", "name", *MODELS[name].keywords}
    return {"name": name, **{key: fields[key] for key in sorted(own)}}


def own_variables(model: nn.Module, key: PRNGKey, sample: Any) -> dict[str, Any]:
    """Fresh variables by the model's own initialisers.

    Drawn as one compiled step, where piece by piece they are a hundred small ones.

    Args:
      model: a Linen module.
      key: random.
      sample: a batch of inputs, of which only shape and type matter.
    """
    try:
        hash(model)
    except TypeError:  # a field that is an array or a list
        return dict(_init(model, key, sample))
    return dict(_compiled_init(model, key, sample))


def _init(model: nn.Module, key: PRNGKey, sample: Any) -> Any:
    return model.init(key, sample, **switches_of(type(model).__call__))


_compiled_init = jax.jit(_init, static_argnums=0)

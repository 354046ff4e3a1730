"""Networks by name: `create('small_cnn', num_classes=10, features=(32, 64))`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from agop_jax.errors import UserError, unknown_name
from agop_jax.models.cnn import LeNet5, SmallCNN
from agop_jax.models.vgg import VGG11

MODELS: dict[str, Callable[..., nn.Module]] = {"lenet5": LeNet5, "small_cnn": SmallCNN, "vgg11": VGG11}


def create(name: str, num_classes: int, width: float = 1.0, **fields: Any) -> nn.Module:
    """The network of this name with fresh, unbound weights.

    Args:
      name: a key of `MODELS`.
      num_classes: logits of its head.
      width: factor on the number of channels of every hidden layer.
      **fields: further fields of the network, such as `features` of 'small_cnn'.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    own = {field.name for field in dataclasses.fields(MODELS[name])}
    known = own - {"parent", "name", "num_classes", "width"}
    for field in fields:
        if field not in known:
            raise unknown_name(f"field of model {name!r}", field, known)
    if width <= 0:
        raise UserError(f"model width: wanted a factor above 0, got {width}")
    return MODELS[name](num_classes=num_classes, width=width, **fields)

"""Networks by name, `create('small_cnn', num_classes=10, features=(32, 64))`, and networks trained elsewhere."""

from agop_jax.models.pretrained import Pretrained, load_pretrained, save_pretrained
from agop_jax.models.registry import MODELS, create, describe, own_variables

__all__ = ["MODELS", "Pretrained", "create", "describe", "load_pretrained", "own_variables", "save_pretrained"]

"""Initial weights from the features of a donor, and the rivals and controls beside them."""

from agop_jax.initializers.coupling import Donor
from agop_jax.initializers.model import Initialization, initialization, initialize
from agop_jax.initializers.registry import INITIALIZERS, Method, covariance, get_method, kernel_init, register_method
from agop_jax.initializers.sources import Copy, Covariance, Plain, Spatial

__all__ = [
    "INITIALIZERS",
    "Copy",
    "Covariance",
    "Donor",
    "Initialization",
    "Method",
    "Plain",
    "Spatial",
    "covariance",
    "get_method",
    "initialization",
    "initialize",
    "kernel_init",
    "register_method",
]

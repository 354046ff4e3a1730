"""Initial weights from the features of a donor, and the rivals and controls beside them."""

from agop_jax.initializers.copies import Copy
from agop_jax.initializers.drawn import Drawn
from agop_jax.initializers.methods import Method
from agop_jax.initializers.model import Initialization, initialization, initialize
from agop_jax.initializers.passes import Donor
from agop_jax.initializers.registry import INITIALIZERS, covariance, get_method, kernel_init, register_method
from agop_jax.initializers.sources import Covariance, Plain, Spatial
from agop_jax.initializers.whitening import Whitened

__all__ = [
    "INITIALIZERS",
    "Copy",
    "Covariance",
    "Donor",
    "Drawn",
    "Initialization",
    "Method",
    "Plain",
    "Spatial",
    "Whitened",
    "covariance",
    "get_method",
    "initialization",
    "initialize",
    "kernel_init",
    "register_method",
]

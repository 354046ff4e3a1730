"""Initial weights from the features of a donor, and the rivals and controls beside them."""

from agop_jax.initializers.coupling import Donor
from agop_jax.initializers.model import initialize
from agop_jax.initializers.registry import INITIALIZERS, covariance, kernel_init

__all__ = [
    "INITIALIZERS",
    "Donor",
    "covariance",
    "initialize",
    "kernel_init",
]

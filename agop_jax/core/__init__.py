"""What every package needs and none of the field owns: types, errors, files, devices, hosts, compilation."""

from agop_jax.core.arrays import load_arrays, load_metadata, save_arrays
from agop_jax.core.errors import UserError

__all__ = [
    "UserError",
    "load_arrays",
    "load_metadata",
    "save_arrays",
]

"""What every package needs and none of the field owns: types, errors, files, devices, hosts, compilation."""

from agop_jax.core.arrays import load_arrays, load_metadata, save_arrays
from agop_jax.core.compilation import TooLarge, keep_compiled_code
from agop_jax.core.errors import UserError
from agop_jax.core.files import write_rows

__all__ = [
    "TooLarge",
    "UserError",
    "keep_compiled_code",
    "load_arrays",
    "load_metadata",
    "save_arrays",
    "write_rows",
]

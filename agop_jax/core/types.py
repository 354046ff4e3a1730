"""Names of array axes, used in every signature.

    n        images in a batch              k        kh * kw * cin, the length of a patch and of a filter
    h w      height, width                  r        rank of a factored matrix
    kh kw    kernel height, width           cin cout channels into and out of a layer
    classes  logits of the network          m        outputs or random cotangents, one reverse pass each

A grouped convolution has one matrix per group and a scanned layer one per step: these come as leading axes, written
`*stack`. An ordinary layer has none. Shapes are checked at run time only under pytest (see `tests/conftest.py`).
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Int, Key, Shaped

Device = Any  # of JAX, whose own name for it is a variable to type checkers
Images = Shaped[Array, "n h w c"]
Kernel = Float[Array, "..."]  # (*spatial, cin / groups, cout), as Flax stores it; Dense: (cin, cout)
Labels = Int[Array, "n"]
PRNGKey = Key[Array, ""] | Shaped[Array, "2"]  # new-style typed keys and raw uint32 ones
Scalar = Float[Array, ""]
Variables = Mapping[str, Any]

__all__ = [
    "Array",
    "Device",
    "Float",
    "Images",
    "Int",
    "Kernel",
    "Key",
    "Labels",
    "PRNGKey",
    "Scalar",
    "Shaped",
    "Variables",
]

"""Filters that were drawn for this very model by a recursive feature machine (`agop_jax.rfm.deep_features`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from agop_jax.core.errors import UserError
from agop_jax.core.types import Kernel, PRNGKey
from agop_jax.features.layer import LayerFeatures
from agop_jax.initializers.sources import KernelInit


@dataclass(frozen=True)
class Drawn:
    """The kernels as they are: every layer was drawn for what the layers before it, as drawn, give."""

    def kernel_init(self, layer: LayerFeatures) -> KernelInit:
        """The random key is not used."""

        def init(key: PRNGKey, shape: Sequence[int], dtype=jnp.float32) -> Kernel:
            layer.require("filters")
            if tuple(shape) != layer.kernel.shape:
                raise UserError(
                    f"layer {layer.path!r}: the features for 'convrfm' were drawn for a kernel of "
                    f"{layer.kernel.shape}, the model's is {tuple(shape)}: call deep_features on this model"
                )
            return layer.kernel.astype(dtype)

        return init

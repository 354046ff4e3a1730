"""VGG (Simonyan & Zisserman 2015, configuration A)."""

import flax.linen as nn

from agop_jax.errors import UserError
from agop_jax.models.cnn import scaled
from agop_jax.models.layers import Conv, max_pool
from agop_jax.types import Array, Float

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG11(nn.Module):
    """Eight 3x3 convolutions in five stages, each halved in size at its end; images of 32 x 32 or more.

    The head is a global mean and one Dense, as usual at 32 x 32, so that the input size is free.
    """

    num_classes: int
    width: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of normalised images."""
        if min(x.shape[1:3]) < 32:
            raise UserError(f"vgg11: wanted images of at least 32 x 32, got {x.shape[1]} x {x.shape[2]}")
        for stage in STAGES:
            for features in stage:
                x = nn.relu(Conv(scaled(features, self.width), (3, 3), padding=1)(x))
            x = max_pool(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))

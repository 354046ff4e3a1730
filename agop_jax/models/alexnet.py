"""AlexNet in the form of one tower (Krizhevsky 2014, "One weird trick for parallelizing CNNs"), as in torchvision."""

import flax.linen as nn

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float
from agop_jax.models.layers import Conv, adaptive_mean_pool, max_pool, scaled


class AlexNet(nn.Module):
    """Five convolutions and two Dense layers of 4096 with dropout; made for 224 x 224, takes 63 x 63 or more.

    Attributes:
      num_classes: logits.
      width: factor on the channels of all hidden layers.
    """

    num_classes: int
    width: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n classes"]:
        """Logits of normalised images."""
        if min(x.shape[1:3]) < 63:
            raise UserError(f"alexnet: wanted images of at least 63 x 63, got {x.shape[1]} x {x.shape[2]}")
        x = max_pool(nn.relu(Conv(scaled(64, self.width), (11, 11), 4, padding=2)(x)), 3, 2)
        x = max_pool(nn.relu(Conv(scaled(192, self.width), (5, 5), padding=2)(x)), 3, 2)
        for features in (384, 256, 256):
            x = nn.relu(Conv(scaled(features, self.width), (3, 3), padding=1)(x))
        x = adaptive_mean_pool(max_pool(x, 3, 2), 6)
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.Dropout(0.5, deterministic=not train)(x)
            x = nn.relu(nn.Dense(scaled(4096, self.width))(x))
        return nn.Dense(self.num_classes)(x)

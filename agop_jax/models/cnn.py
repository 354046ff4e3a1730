"""Small networks without normalisation."""

import flax.linen as nn

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float
from agop_jax.models.layers import Conv, max_pool, scaled


class SmallCNN(nn.Module):
    """3x3 convolutions with ReLU, halved in size after each but the last while larger than 1, global mean, one Dense.

    Takes images of any size and number of channels. The default is the network of the transfer experiments.
    """

    num_classes: int
    width: float = 1.0
    features: tuple[int, ...] = (32, 64, 128, 128)

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of normalised images."""
        for index, features in enumerate(self.features):
            x = nn.relu(Conv(scaled(features, self.width), (3, 3))(x))
            if index < len(self.features) - 1 and min(x.shape[1:3]) > 1:
                x = max_pool(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class LeNet5(nn.Module):
    """LeCun et al. 1998 with ReLU and max-pooling, as in today's textbooks; 28 x 28 images are padded to 32 x 32."""

    num_classes: int
    width: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of normalised images."""
        if min(x.shape[1:3]) < 16:
            raise UserError(f"lenet5: wanted images of at least 16 x 16, got {x.shape[1]} x {x.shape[2]}")
        x = max_pool(nn.relu(Conv(scaled(6, self.width), (5, 5), padding=2 if x.shape[1] == 28 else 0)(x)))
        x = max_pool(nn.relu(Conv(scaled(16, self.width), (5, 5), padding="VALID")(x)))
        x = x.reshape(len(x), -1)
        for features in (120, 84):
            x = nn.relu(nn.Dense(scaled(features, self.width))(x))
        return nn.Dense(self.num_classes)(x)

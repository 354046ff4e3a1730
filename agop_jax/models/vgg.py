"""VGG (Simonyan & Zisserman 2015, configurations A, B, D, E), with and without BatchNorm."""

import flax.linen as nn

from agop_jax.core.errors import UserError, unknown_name
from agop_jax.core.types import Array, Float
from agop_jax.models.layers import BatchNorm, Conv, adaptive_mean_pool, max_pool, scaled

FEATURES = (64, 128, 256, 512, 512)  # channels of the five stages
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions in each
HEADS = ("mean", "classic")


class VGG(nn.Module):
    """3x3 convolutions in five stages, each halved in size at its end; images of 32 x 32 or more.

    Attributes:
      num_classes: logits.
      width: factor on the channels of all hidden layers.
      depth: layers with weights in the paper's count: 11, 13, 16 or 19.
      batch_norm: BatchNorm after every convolution.
      head: 'mean' (global mean and one Dense, as usual at 32 x 32) or 'classic' (the paper's for 224 x 224: two Dense
        layers of 4096 with dropout over a 7 x 7 map; maps of other sizes are brought to 7 x 7 by means, as in
        torchvision).
    """

    num_classes: int
    width: float = 1.0
    depth: int = 11
    batch_norm: bool = False
    head: str = "mean"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n classes"]:
        """Logits of normalised images."""
        if min(x.shape[1:3]) < 32:
            raise UserError(f"vgg{self.depth}: wanted images of at least 32 x 32, got {x.shape[1]} x {x.shape[2]}")
        if self.head not in HEADS:
            raise unknown_name("head", self.head, HEADS)
        for features, convolutions in zip(FEATURES, STAGES[self.depth], strict=True):
            for _ in range(convolutions):
                x = Conv(scaled(features, self.width), (3, 3), padding=1)(x)
                x = nn.relu(BatchNorm(use_running_average=not train)(x) if self.batch_norm else x)
            x = max_pool(x)
        x = self._hidden(x, train) if self.head == "classic" else x.mean((1, 2))
        return nn.Dense(self.num_classes)(x)

    def _hidden(self, x: Array, train: bool) -> Array:
        x = adaptive_mean_pool(x, 7)
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(scaled(4096, self.width))(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return x

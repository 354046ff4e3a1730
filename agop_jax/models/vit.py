"""Vision Transformer (Dosovitskiy et al. 2021), of the size of DeiT-Ti (Touvron et al. 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float
from agop_jax.models.layers import scaled

HEAD_FEATURES = 64  # channels of one attention head


class ViTBlock(nn.Module):
    """Attention and a two-layer perceptron, each after LayerNorm and beside the identity.

    Attributes:
      heads: of attention.
      head_features: channels of each.
    """

    heads: int
    head_features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n tokens c"]) -> Float[Array, "n tokens c"]:
        """The tokens after both."""
        x = x + self._attention(nn.LayerNorm(epsilon=1e-6)(x))
        y = nn.Dense(4 * x.shape[-1])(nn.LayerNorm(epsilon=1e-6)(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(y, approximate=False))

    def _attention(self, x: Array) -> Array:
        """One Dense for query, key and value, so that a tap sees it."""
        channels = self.heads * self.head_features
        qkv = nn.Dense(3 * channels)(x).reshape(*x.shape[:2], 3, self.heads, self.head_features)
        y = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
        return nn.Dense(channels)(y.reshape(*x.shape[:2], channels))


class ViT(nn.Module):
    """Patches as tokens, a class token in front, learned positions; the number of tokens is fixed by the images.

    Attributes:
      num_classes: logits.
      width: factor on the channels of a head, and so on all others.
      patch_size: side of a patch; 16 for 224 x 224 images, 4 for 32 x 32.
      depth: blocks.
      heads: of attention, each with 64 channels at width 1.
    """

    num_classes: int
    width: float = 1.0
    patch_size: int = 16
    depth: int = 12
    heads: int = 3

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of normalised images."""
        if x.shape[1] % self.patch_size or x.shape[2] % self.patch_size:
            size = f"{x.shape[1]} x {x.shape[2]}"
            raise UserError(f"vit: wanted images of a multiple of patch_size={self.patch_size} pixels, got {size}")
        head_features = scaled(HEAD_FEATURES, self.width)
        channels, side = self.heads * head_features, (self.patch_size, self.patch_size)
        x = nn.Conv(channels, side, side, padding="VALID")(x).reshape(len(x), -1, channels)
        normal = nn.initializers.normal(0.02)
        token = self.param("class_token", normal, (1, 1, channels))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, channels)), x], axis=1)
        x = x + self.param("positions", normal, (1, x.shape[1], channels))
        for _ in range(self.depth):
            x = ViTBlock(self.heads, head_features)(x)
        return nn.Dense(self.num_classes)(nn.LayerNorm(epsilon=1e-6)(x[:, 0]))

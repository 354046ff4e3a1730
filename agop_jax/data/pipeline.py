"""From uint8 on the device to what the network sees. The host sends indices only."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float, Images, PRNGKey
from agop_jax.data.sources import Dataset
from agop_jax.data.splits import AnySplit, balanced_order


@dataclass(frozen=True)
class Pipeline:
    """Augmentation, then resize and normalisation, to be called inside jit: `pipeline(pipeline.augment(images, key))`.

    Attributes:
      mean, std: per channel of the network's input, in units of pixel / 255.
      pad: pixels of zero padding for a random crop of the original size; 0 for none.
      flip: mirror half of the images, drawn at random.
      resize: side of the square images that the network sees; 0: as they are stored.

    Grey images become three equal channels where `mean` and `std` have three values.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False
    resize: int = 0

    def __post_init__(self) -> None:
        if self.pad < 0 or self.resize < 0:
            raise UserError(f"config.data: wanted pad and resize of 0 or more, got {self.pad} and {self.resize}")

    @classmethod
    def of(cls, dataset: Dataset, *, rgb: bool = False, **fields: Any) -> "Pipeline":
        """The pipeline with the constants of this data set's training split, before any resize.

        Args:
          dataset: what the pipeline is for.
          rgb: make grey images RGB, for networks of colour images.
          **fields: pad, flip, resize.
        """
        channels = 3 if rgb and len(dataset.mean) == 1 else 1
        return cls(tuple(map(float, dataset.mean)) * channels, tuple(map(float, dataset.std)) * channels, **fields)

    def __call__(self, images: Images) -> Float[Array, "n height width channels"]:
        """What the network sees of uint8 images: (pixel / 255 - mean) / std in float32, at the network's size.

        The resize is bilinear and antialiased, as in Pillow and in torchvision's `Resize` of images; unlike these it
        does not round to whole numbers, so that it differs from them by up to one grey level.
        """
        pixels = images.astype(jnp.float32)
        if self.resize:
            n, _, _, c = pixels.shape
            pixels = jax.image.resize(pixels, (n, self.resize, self.resize, c), "bilinear", antialias=True)
        mean, std = (np.array(constants, np.float32).reshape(1, 1, 1, -1) for constants in (self.mean, self.std))
        return (pixels / 255 - mean) / std  # broadcasts one channel to three

    def augment(self, images: Images, key: PRNGKey) -> Images:
        """Pad-crop and mirror, on uint8; the identity where both are off."""
        crop_key, flip_key = jax.random.split(key)
        if self.pad:
            images = _random_crop(images, crop_key, self.pad)
        if self.flip:
            mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
            images = jnp.where(mirrored, images[:, :, ::-1], images)
        return images


def _random_crop(images: Images, key: PRNGKey, pad: int) -> Images:
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * pad + 1)
    crop = lambda image, offset: jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])
    return jax.vmap(crop)(padded, offsets)


def subset(split: AnySplit, size: int | None, seed: int) -> np.ndarray:
    """Indices of `size` images of a split, every class in proportion; all of them for None."""
    if size is not None and not 0 < size <= len(split.labels):
        raise UserError(f"train_size: wanted 1 to {len(split.labels)} (what the validation split leaves), got {size}")
    return balanced_order(split.labels, seed)[:size]


def batch_indices(indices: np.ndarray, batch_size: int, step: int, seed: int) -> np.ndarray:
    """The images of one training step: a function of (seed, epoch), so that a resumed run needs the step alone.

    Every epoch is a fresh permutation; a last, incomplete batch is left out.
    """
    per_epoch = len(indices) // batch_size
    if per_epoch == 0:
        raise UserError(f"batch_size {batch_size} is larger than the training set of {len(indices)} images")
    epoch, place = divmod(step, per_epoch)
    return indices[_epoch_order(len(indices), seed, epoch)[place * batch_size : (place + 1) * batch_size]]


@functools.lru_cache(maxsize=8)  # of several runs at a time, and of streams that read ahead into the next epoch
def _epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng((seed, epoch)).permutation(size)
    order.setflags(write=False)
    return order

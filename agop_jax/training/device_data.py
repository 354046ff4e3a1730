"""A data set where it is trained on: on the devices, or on disk."""

# pyright: reportArgumentType=false

from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from agop_jax.core import devices
from agop_jax.core.compilation import GIB, free_bytes
from agop_jax.core.errors import UserError
from agop_jax.data import AnySplit, Dataset, Split, StoredSplit, decoded_bytes


@dataclass(frozen=True)
class DeviceData:
    """A data set on the devices, as uint8: each has a part of the images and all labels.

    Splits that stay on disk come to the devices a batch at a time.
    """

    train: AnySplit
    validation: AnySplit
    test: AnySplit

    @classmethod
    def of(cls, dataset: Dataset, mesh: Mesh) -> "DeviceData":
        """Copies the three splits once, to the devices of a `Trainer.mesh`."""
        return cls(*(on_devices(split, mesh) for split in (dataset.train, dataset.validation, dataset.test)))


def on_devices(split: AnySplit, mesh: Mesh) -> AnySplit:
    """A split for `train` and `Trainer.evaluate`; its images may be followed by zeros, its labels are not.

    Raises:
      UserError: images that do not fit.
    """
    if isinstance(split, StoredSplit):
        return split
    here = len(mesh.local_devices) if jax.default_backend() == "cpu" else 1  # parts in one memory
    needed, free = here * decoded_bytes(split) / mesh.size, free_bytes()
    if needed > free:
        raise UserError(
            f"data set: {needed / GIB:.2f} GiB of images for the device, {free / GIB:.2f} GiB are free: lower "
            "config.data.memory, so that they stay on disk"
        )
    return Split(devices.spread(split.images, mesh), devices.replicate(split.labels, mesh))

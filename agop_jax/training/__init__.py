"""One training loop for donors and recipients, which may be stopped and goes on to the same result."""

from agop_jax.training.device_data import DeviceData
from agop_jax.training.loop import Run, Settings, Trainer, train
from agop_jax.training.resumable import Stopped, train_resumable

__all__ = [
    "DeviceData",
    "Run",
    "Settings",
    "Stopped",
    "Trainer",
    "train",
    "train_resumable",
]

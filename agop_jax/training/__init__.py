"""One training loop for donors and recipients, which may be stopped and goes on to the same result."""

from agop_jax.training.device_data import DeviceData
from agop_jax.training.loop import Run, train
from agop_jax.training.resumable import Stopped, train_resumable
from agop_jax.training.settings import Settings
from agop_jax.training.trainer import Trainer

__all__ = [
    "DeviceData",
    "Run",
    "Settings",
    "Stopped",
    "Trainer",
    "train",
    "train_resumable",
]

"""From one config to a page: donor, features, recipients, report."""

from agop_jax.experiments.config import experiment_config, shrink
from agop_jax.experiments.experiment import run
from agop_jax.experiments.protocols import few_images, original_vgg11

__all__ = [
    "experiment_config",
    "few_images",
    "original_vgg11",
    "run",
    "shrink",
]

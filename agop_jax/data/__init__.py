"""Data sets by name: `load('digits')`, `load('npz:/path/to/mnist.npz')`, `load('folder:/path')`, `load('cifar10')`."""

from agop_jax.data.pipeline import Pipeline, batch_indices, subset
from agop_jax.data.sources import SOURCES, Dataset, load
from agop_jax.data.splits import Split

__all__ = ["SOURCES", "Dataset", "Pipeline", "Split", "batch_indices", "load", "subset"]

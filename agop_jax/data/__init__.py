"""Data sets by name: `load('digits')`, `load('npz:/path/to/mnist.npz')`."""

from agop_jax.data.pipeline import Pipeline, batch_indices, subset
from agop_jax.data.sources import SOURCES, Dataset, Split, load

__all__ = ["SOURCES", "Dataset", "Pipeline", "Split", "batch_indices", "load", "subset"]

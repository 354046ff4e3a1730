"""Data sets by name: `load('digits')`, `load('npz:/path/to/mnist.npz')`, `load('folder:/path')`, `load('cifar10')`."""

from agop_jax.data.pipeline import Pipeline, batch_indices, subset
from agop_jax.data.sources import SOURCES, Dataset, load, measured
from agop_jax.data.splits import AnySplit, Split, StoredSplit, decoded_bytes
from agop_jax.data.stored import stored_batches

__all__ = [
    "SOURCES",
    "AnySplit",
    "Dataset",
    "Pipeline",
    "Split",
    "StoredSplit",
    "batch_indices",
    "decoded_bytes",
    "load",
    "measured",
    "stored_batches",
    "subset",
]

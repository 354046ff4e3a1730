"""NFM and AGOP of every layer of a trained network, in factored form."""

from agop_jax.features.extraction import METHODS, Extractor, extract, merge
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrices import load_matrices, save_matrices
from agop_jax.features.matrix import Correlation, FeatureMatrix
from agop_jax.features.store import load_features, save_features

__all__ = [
    "METHODS",
    "Correlation",
    "Extractor",
    "FeatureMatrix",
    "LayerFeatures",
    "extract",
    "load_features",
    "load_matrices",
    "merge",
    "save_features",
    "save_matrices",
]

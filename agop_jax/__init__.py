"""Initial weights for neural networks from the features of a trained one, and the evidence of whether they help."""

from agop_jax.analysis import ansatz_report
from agop_jax.core import UserError, load_metadata
from agop_jax.features import (
    FeatureMatrix,
    LayerFeatures,
    extract,
    load_features,
    load_matrices,
    save_features,
    save_matrices,
)
from agop_jax.initializers import INITIALIZERS, Donor, covariance, initialize, kernel_init
from agop_jax.models import Pretrained, load_pretrained, save_pretrained

__all__ = [
    "INITIALIZERS",
    "Donor",
    "FeatureMatrix",
    "LayerFeatures",
    "Pretrained",
    "UserError",
    "ansatz_report",
    "covariance",
    "extract",
    "initialize",
    "kernel_init",
    "load_features",
    "load_matrices",
    "load_metadata",
    "load_pretrained",
    "save_features",
    "save_matrices",
    "save_pretrained",
]

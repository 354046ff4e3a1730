"""Initial weights for CNNs from the feature matrices of a trained CNN, and the evidence of whether they help."""

from agop_jax.ansatz import ansatz_report
from agop_jax.coupling import Donor
from agop_jax.errors import UserError
from agop_jax.extract import extract
from agop_jax.feature_matrix import FeatureMatrix
from agop_jax.initializers import INITIALIZERS, covariance, kernel_init
from agop_jax.layer_features import LayerFeatures
from agop_jax.pretrained import Pretrained, load_pretrained, save_pretrained
from agop_jax.store import export, load_features, load_metadata, save_features
from agop_jax.taps import TAP_COLLECTIONS
from agop_jax.transplant import initialize

__all__ = [
    "INITIALIZERS",
    "TAP_COLLECTIONS",
    "Donor",
    "FeatureMatrix",
    "LayerFeatures",
    "Pretrained",
    "UserError",
    "ansatz_report",
    "covariance",
    "export",
    "extract",
    "initialize",
    "kernel_init",
    "load_features",
    "load_metadata",
    "load_pretrained",
    "save_features",
    "save_pretrained",
]

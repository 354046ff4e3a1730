"""Recursive feature machines: features from kernels and their AGOP, without a network or back-propagation."""

from agop_jax.rfm.convolutional import ConvRFM, ConvRFMClassifier
from agop_jax.rfm.deep import deep_features
from agop_jax.rfm.estimators import RFM, RFMClassifier

__all__ = ["RFM", "ConvRFM", "ConvRFMClassifier", "RFMClassifier", "deep_features"]

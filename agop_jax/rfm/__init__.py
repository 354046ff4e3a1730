"""Recursive feature machines: features from kernels and their AGOP, without a network or back-propagation."""

from agop_jax.rfm.estimators import RFM, RFMClassifier

__all__ = ["RFM", "RFMClassifier"]

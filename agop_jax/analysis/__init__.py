"""What a trained network learned, read off its features."""

from agop_jax.analysis.ansatz import ansatz_report
from agop_jax.analysis.evolution import FeatureEvolution, effective_rank
from agop_jax.analysis.novelty import nearest_cosine
from agop_jax.analysis.probe import Probe, linear_probe
from agop_jax.analysis.theory import DeepLinear, Fact, balanced_start, descend, fact, squared
from agop_jax.analysis.transforms import eigenvector_patches, feature_maps, image_transforms

__all__ = [
    "DeepLinear",
    "Fact",
    "FeatureEvolution",
    "Probe",
    "ansatz_report",
    "balanced_start",
    "descend",
    "effective_rank",
    "eigenvector_patches",
    "fact",
    "feature_maps",
    "image_transforms",
    "linear_probe",
    "nearest_cosine",
    "squared",
]

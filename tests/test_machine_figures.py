"""Pictures of recursive feature machines."""

import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax import FeatureMatrix
from agop_jax.core.errors import UserError
from agop_jax.results import accuracy_by_round, patch_matrices


def test_matrices_stand_beside_their_eigenvectors():
    factor = np.random.default_rng(0).normal(size=(27, 5))
    matrices = {"M": FeatureMatrix.from_factor(jnp.asarray(factor)), "NFM": FeatureMatrix.isotropic(27, 1.0)}
    with pytest.raises(UserError, match="M: needed 12 rows for patches"):
        patch_matrices(matrices, (2, 2, 3))
    left, right = patch_matrices({"M": matrices["M"]}, (3, 3, 3), num=2).axes
    np.testing.assert_allclose(left.images[0].get_array(), factor @ factor.T, rtol=1e-5, atol=1e-5)
    top = np.linalg.eigh(factor @ factor.T)[1][:, -1].reshape(3, 3, 3)
    shown = right.images[0].get_array()[4:24:8, 4:24:8] - 0.5  # the middle of each pixel; grey is zero
    assert abs(np.corrcoef(shown.ravel(), top.ravel())[0, 1]) > 0.999
    assert left.get_title(loc="left") == "M"


def test_accuracy_by_round_shows_every_run_and_their_mean():
    axes = accuracy_by_round([[0.2, 0.3], [0.4, 0.5]]).axes[0]
    lines = [line.get_ydata() for line in axes.lines]
    np.testing.assert_allclose(lines, [[20, 30], [40, 50], [30, 40]])

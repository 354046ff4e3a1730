"""Singular values of a layer's factor and eigenvalues of its matrices: as defined, and faster where that is as exact.

The faster forms work on the host in float64, by numpy alone: XLA's own LAPACK has another pool of threads, and two
pools that take turns wait busily for work in each other's way.
"""

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.blas import few_threads
from agop_jax.core.types import Array, Float

# A product in float64 knows a singular value s to 1e-16 (largest / s)^2: to 1e-6 at this fraction of the largest, where
# a decomposition in float32 is within 1e-2. Vectors are orthogonal to the rounding of float32 down to here.
SMALLEST = 1e-5

Svd = tuple[Float[Array, "*stack k r"], Float[Array, "*stack r"], Float[Array, "*stack r m"]]
Eigen = tuple[Float[Array, "*stack r"], Float[Array, "*stack k r"]]


def thin_svd(factor: Float[Array, "*stack k m"]) -> Svd:
    """U, s, V^T with U diag(s) V^T = factor, s descending and r = min(k, m).

    By an eigenproblem of size r, in 0.6 of the time, where the factor is in float32, of full rank, and known (not
    traced by a transformation).
    """
    return (_known(factor) and svd_by_gram(factor)) or svd(factor)


def svd(factor: Float[Array, "*stack k m"]) -> Svd:
    """Singular value decomposition by `jnp.linalg.svd`: the plain definition."""
    left, singular, right = jnp.linalg.svd(factor, full_matrices=False)
    return left, singular, right


def svd_by_gram(factor: Float[Array, "*stack k m"]) -> Svd | None:
    """Singular value decomposition by the eigenvectors of the smaller of A A^T and A^T A, in float64.

    None if numbers are not finite, or a singular value is so small that the product tells nothing of its vectors.
    """
    a = np.asarray(factor, np.float64)
    wide = a.shape[-1] > a.shape[-2]
    tall = _t(a) if wide else a
    if not np.isfinite(a).all():
        return None
    with few_threads(tall.shape[-1]):
        values, vectors = np.linalg.eigh(_t(tall) @ tall)
    singular, vectors = np.sqrt(np.maximum(values, 0))[..., ::-1], vectors[..., ::-1]
    if (singular[..., -1] <= SMALLEST * singular[..., 0]).any():
        return None
    others = tall @ (vectors / singular[..., None, :])
    left, right = (vectors, _t(others)) if wide else (others, _t(vectors))
    rounded = lambda array: jnp.asarray(array, factor.dtype)
    return rounded(left), rounded(singular), rounded(right)


def product_eigen(factor: Float[Array, "*stack k m"], middle: Float[Array, "*stack m m"]) -> Eigen | None:
    """Eigenvalues, descending, and eigenvectors of W S W^T for a W of full column rank and a symmetric S, in float64.

    With W^T W = L L^T and the eigenvectors Y of L^T S L they are W L^-T Y, orthonormal whatever the rank of S.
    None where the plain way is to be taken: from the singular values of W S^(1/2).
    """
    if not (_known(factor) and _known(middle)) or factor.shape[-1] > factor.shape[-2]:
        return None
    w, s = np.asarray(factor, np.float64), np.asarray(middle, np.float64)
    try:
        lower = np.linalg.cholesky(_t(w) @ w)
    except np.linalg.LinAlgError:
        return None
    inverse = np.linalg.inv(lower)
    condition = np.linalg.norm(lower, axis=(-2, -1)) * np.linalg.norm(inverse, axis=(-2, -1))  # or more
    if not np.isfinite(s).all() or not (condition < 1 / SMALLEST).all():
        return None
    with few_threads(lower.shape[-1]):
        values, vectors = np.linalg.eigh(_t(lower) @ s @ lower)
    vectors = w @ (_t(inverse) @ vectors)
    descending = lambda array: jnp.asarray(array[..., ::-1], factor.dtype)
    return descending(values), descending(vectors)


def _known(array: Array) -> bool:
    return not isinstance(array, jax.core.Tracer) and array.dtype == jnp.float32 and array.size > 0


def _t(matrix: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrix, -1, -2)

"""Positive semidefinite matrices in factored form.

NFM and AGOP have rank at most cout while they are k x k with k = kh * kw * cin, often far larger. Everything this
project asks of them (powers, traces, correlations, Gaussian samples) follows from a thin factorisation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agop_jax.core.types import Array, Float, PRNGKey
from agop_jax.features.decompositions import product_eigen, thin_svd

HIGHEST = jax.lax.Precision.HIGHEST


class Correlation(NamedTuple):
    """Similarity of two matrices over their k * k entries; papers and their codes use either, so both are labelled."""

    pearson: Float[Array, "*stack"]  # entries centred by their mean
    cosine: Float[Array, "*stack"]  # <A, B> / (|A| |B|) in the Frobenius product


@struct.dataclass
class FeatureMatrix:
    """The matrix `vectors @ diag(values) @ vectors.T + floor * I`, never formed unless asked for.

    `np.asarray(matrix)` and `matrix.dense()` form it. There is no arithmetic of two of these: take their arrays.

    Attributes:
      vectors: orthonormal columns, the eigenvectors.
      values: non-negative eigenvalues, largest first; the floor is not included.
      floor: what every eigenvalue is raised by, the null space included. None means zero.

    Leading axes (`*stack`) hold independent matrices, one per group of a grouped convolution or step of a scan.
    """

    vectors: Float[Array, "*stack k r"]
    values: Float[Array, "*stack r"]
    floor: Float[Array, "*stack"] | None = None

    def __repr__(self) -> str:
        if not hasattr(self.vectors, "shape"):  # in a tree of something else than arrays
            return object.__repr__(self)
        floor = "" if self.floor is None else ", floor"
        return f"FeatureMatrix(shape {self.shape}, rank {self.vectors.shape[-1]}, {self.dtype}{floor})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """`dense` as numpy asks for it: `np.asarray(matrix)`.

        Raises:
          ValueError: `copy=False`, since the k x k numbers are not stored.
        """
        if copy is False:
            raise ValueError("a FeatureMatrix is kept in factors: an array of it is always a copy")
        return np.array(self.dense(), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*stack, k, k), of the matrix itself."""
        return (*self.vectors.shape[:-1], self.size)

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return np.dtype(self.values.dtype)

    @classmethod
    def from_factor(cls, factor: Float[Array, "*stack k m"]) -> "FeatureMatrix":
        """`factor @ factor.T`. The singular values are squared, so small eigenvalues keep their relative accuracy."""
        vectors, singular, _ = thin_svd(factor)
        return cls(vectors, singular**2)

    @classmethod
    def from_product(cls, factor: Float[Array, "*stack k m"], middle: Float[Array, "*stack m m"]) -> "FeatureMatrix":
        """`factor @ middle @ factor.T`, with a symmetric positive semidefinite `middle`."""
        if eigen := product_eigen(factor, middle):
            values, vectors = eigen
            return cls(vectors, jnp.maximum(values, 0))
        root = cls.from_dense(middle).power(0.5).dense()
        return cls.from_factor(jnp.einsum("...kc,...cd->...kd", factor, root, precision=HIGHEST))

    @classmethod
    def from_dense(cls, matrix: Float[Array, "*stack k k"]) -> "FeatureMatrix":
        """From a symmetric k x k matrix; eigenvalues that rounding made negative are clipped to zero."""
        values, vectors = jnp.linalg.eigh((matrix + jnp.swapaxes(matrix, -1, -2)) / 2)
        return cls(vectors[..., ::-1], jnp.maximum(values[..., ::-1], 0))

    @classmethod
    def isotropic(cls, size: int, trace: float | Float[Array, "*stack"], dtype=jnp.float32) -> "FeatureMatrix":
        """`trace / size` times the identity."""
        floor = jnp.asarray(trace, dtype) / size
        return cls(jnp.zeros((*floor.shape, size, 0), dtype), jnp.zeros((*floor.shape, 0), dtype), floor)

    @property
    def size(self) -> int:
        """k, the number of rows."""
        return self.vectors.shape[-2]

    @property
    def trace(self) -> Float[Array, "*stack"]:
        """E|w|^2 of a filter w drawn from N(0, M)."""
        return self.values.sum(-1) + self.size * self._floor

    @property
    def _floor(self) -> Float[Array, "*stack"]:
        return jnp.zeros(self.values.shape[:-1], self.values.dtype) if self.floor is None else self.floor

    def dense(self) -> Float[Array, "*stack k k"]:
        """The k x k matrix itself."""
        scaled = self.vectors * self.values[..., None, :]
        low_rank = jnp.einsum("...ir,...jr->...ij", scaled, self.vectors, precision=HIGHEST)
        return low_rank + self._floor[..., None, None] * jnp.eye(self.size, dtype=low_rank.dtype)

    def power(self, exponent: float) -> "FeatureMatrix":
        """M**exponent for exponent > 0, so that the null space stays null."""
        if exponent <= 0:
            raise ValueError(f"power: wanted an exponent above 0, got {exponent}")
        if self.floor is None:
            return self.replace(values=self.values**exponent)
        raised = self.floor**exponent
        return self.replace(values=(self.values + self.floor[..., None]) ** exponent - raised[..., None], floor=raised)

    def scale(self, factor: float | Float[Array, "*stack"]) -> "FeatureMatrix":
        """factor * M, for factor >= 0."""
        factor = jnp.asarray(factor, self.values.dtype)
        floor = None if self.floor is None else self.floor * factor
        return self.replace(values=self.values * factor[..., None], floor=floor)

    def normalize(self, trace: float | Float[Array, "*stack"] = 1.0) -> "FeatureMatrix":
        """The multiple of M that has this trace. A zero matrix has none and stays zero."""
        current = self.trace
        return self.scale(jnp.where(current > 0, trace / jnp.where(current > 0, current, 1), 0.0))

    def add_floor(self, floor: float | Float[Array, "*stack"]) -> "FeatureMatrix":
        """M + floor * I."""
        return self.replace(floor=self._floor + floor)

    def mix(self, alpha: float) -> "FeatureMatrix":
        """alpha * M + (1 - alpha) * the isotropic matrix of the same trace."""
        return self.scale(alpha).add_floor((1 - alpha) * self.trace / self.size)

    def rotate(self, key: PRNGKey) -> "FeatureMatrix":
        """The same eigenvalues with eigenvectors drawn uniformly (Haar): QR of a Gaussian matrix, signs made unique."""
        gaussian = jax.random.normal(key, self.vectors.shape, self.vectors.dtype)
        q, upper = jnp.linalg.qr(gaussian)
        signs = jnp.sign(jnp.diagonal(upper, axis1=-2, axis2=-1))
        return self.replace(vectors=q * signs[..., None, :])

    def inner(self, other: "FeatureMatrix") -> Float[Array, "*stack"]:
        """Frobenius product <A, B> = |L_A^T L_B|^2 from factors L L^T, plus the terms of the floors."""
        left = self.vectors * jnp.sqrt(self.values)[..., None, :]
        right = other.vectors * jnp.sqrt(other.values)[..., None, :]
        cross = jnp.einsum("...kr,...ks->...rs", left, right, precision=HIGHEST)
        floors = self._floor * other.values.sum(-1) + other._floor * self.trace
        return (cross**2).sum((-2, -1)) + floors

    def correlate(self, other: "FeatureMatrix") -> Correlation:
        """Pearson and cosine similarity over all k * k entries, without forming them."""
        if self.size != other.size:
            raise ValueError(f"correlate: wanted two matrices of one size, got {self.size} and {other.size}")
        products = self.inner(self), other.inner(other), self.inner(other)
        mean_a, mean_b = self._sum_of_entries() / self.size, other._sum_of_entries() / self.size
        centred = products[0] - mean_a**2, products[1] - mean_b**2, products[2] - mean_a * mean_b
        return Correlation(_cosine(*centred), _cosine(*products))

    def sample(self, key: PRNGKey, num: int) -> Float[Array, "*stack num k"]:
        """`num` independent draws from N(0, M) per matrix: L xi with Gaussian xi, plus the floor's own noise."""
        low_key, floor_key = jax.random.split(key)
        stack, dtype = self.values.shape[:-1], self.values.dtype
        xi = jax.random.normal(low_key, (*stack, num, self.values.shape[-1]), dtype)
        scaled = xi * jnp.sqrt(self.values)[..., None, :]
        draws = jnp.einsum("...nr,...kr->...nk", scaled, self.vectors, precision=HIGHEST)
        if self.floor is None:
            return draws
        noise = jax.random.normal(floor_key, draws.shape, dtype)
        return draws + jnp.sqrt(self.floor)[..., None, None] * noise

    def _sum_of_entries(self) -> Float[Array, "*stack"]:
        return (self.values * self.vectors.sum(-2) ** 2).sum(-1) + self.size * self._floor


def _cosine(aa: Array, bb: Array, ab: Array) -> Array:
    """ab / sqrt(aa * bb); 0 where a matrix has no variation to correlate."""
    scale = jnp.sqrt(jnp.maximum(aa, 0)) * jnp.sqrt(jnp.maximum(bb, 0))
    return jnp.where(scale > 0, ab / jnp.where(scale > 0, scale, 1), 0.0)

"""Kernels on patches, and the gradients of what is predicted with them, in closed form.

An input is a stack of patches `u_p`, one a position; a plain vector is one patch. The kernel of two inputs is the sum
over positions of a kernel of their patches there, `K(x, z) = sum_p kappa(u_p, v_p)`, and a predictor is
`f_l(x) = sum_i weights[i, l] K(x, x_i)`. Every patch is multiplied by a factor F of `M = F F^T` beforehand, so that
kappa knows no M; a gradient at `F^T x` becomes that at `x` by one more product with F.
"""

import jax
import jax.numpy as jnp
from flax import struct

from agop_jax.core.types import Array, Float, Scalar
from agop_jax.features.matrix import HIGHEST

# Rounding of |u|^2 + |v|^2 - 2 u v, in units of the type's own: what lies nearer counts as one point. In float32 the
# squared distance of a point of 20 to 600 numbers to itself came out below 2 such units.
SAME = 8
COLUMNS = 256  # of one product for gradients: several outputs share it


@struct.dataclass
class Radial:
    """exp(-(|u - v| / L)^q): q = 1 is the Laplace kernel, q = 2 the Gaussian of standard deviation L / sqrt(2).

    Attributes:
      bandwidth: L.
      exponent: q, above 0 and at most 2, where the kernel is positive definite.
    """

    bandwidth: Scalar
    exponent: float = struct.field(pytree_node=False, default=1.0)

    def values(self, u: Float[Array, "b r"], v: Float[Array, "c r"]) -> Float[Array, "b c"]:
        """kappa of every pair."""
        return jnp.exp(-self._power(squared_distances(u, v)))

    def diagonal(self, u: Float[Array, "*b r"]) -> Float[Array, "*b"]:
        """kappa of every patch with itself."""
        return jnp.ones(u.shape[:-1], u.dtype)

    def gradients(
        self, u: Float[Array, "b r"], v: Float[Array, "c r"], weights: Float[Array, "c m"]
    ) -> Float[Array, "m b r"]:
        """Gradients of sum_i weights[i, l] kappa(u, v_i) with respect to u.

        Each is `slope (u - v_i)`. A kernel that has a cusp has no slope at `u = v_i`, where zero stands for it: the
        mean over all directions.
        """
        squared = squared_distances(u, v)
        power = self._power(squared)
        if self.exponent == 2:
            slope = -2 * jnp.exp(-power) / self.bandwidth**2
        else:
            slope = -self.exponent * power * jnp.exp(-power) / jnp.where(squared > 0, squared, 1)

        def one(column: Float[Array, "c"]) -> Float[Array, "b r"]:
            sums = jnp.dot(slope, jnp.concatenate([column[:, None], column[:, None] * v], 1), precision=HIGHEST)
            return sums[:, :1] * u - sums[:, 1:]

        return jax.lax.map(one, weights.T, batch_size=max(1, COLUMNS // v.shape[1]))

    def _power(self, squared: Float[Array, "b c"]) -> Float[Array, "b c"]:
        """(distance / L)^q, with a derivative of zero at zero."""
        scaled = squared / self.bandwidth**2
        if self.exponent == 2:
            return scaled
        apart = jnp.where(scaled > 0, scaled, 1)
        root = jnp.sqrt(apart) if self.exponent == 1 else apart ** (self.exponent / 2)
        return jnp.where(scaled > 0, root, 0)


@struct.dataclass
class ArcCosine:
    """|u| |v| (sin t + (pi - t) cos t) / pi with t the angle between u and v.

    Twice the mean of relu(w u) relu(w v) over w ~ N(0, I): infinitely many filters, ReLU, and a linear map (Cho and
    Saul 2009, degree 1).
    """

    def values(self, u: Float[Array, "b r"], v: Float[Array, "c r"]) -> Float[Array, "b c"]:
        """kappa of every pair."""
        length, other, angle, sine = _angles(u, v)
        return length * other * (sine + (jnp.pi - angle) * jnp.cos(angle)) / jnp.pi

    def diagonal(self, u: Float[Array, "*b r"]) -> Float[Array, "*b"]:
        """kappa of every patch with itself."""
        return (u**2).sum(-1)

    def gradients(
        self, u: Float[Array, "b r"], v: Float[Array, "c r"], weights: Float[Array, "c m"]
    ) -> Float[Array, "m b r"]:
        """Gradients of sum_i weights[i, l] kappa(u, v_i) with respect to u.

        Each is (|v| sin t / |u| u + (pi - t) v) / pi, with the angle t between u and v. At u = 0 the first term is
        zero, the mean over all directions.
        """
        length, other, angle, sine = _angles(u, v)
        own = jnp.where(length > 0, other * sine / jnp.where(length > 0, length, 1), 0) / jnp.pi
        own = jnp.dot(own, weights, precision=HIGHEST).T
        turned = 1 - angle / jnp.pi
        one = lambda column: jnp.dot(turned, column[:, None] * v, precision=HIGHEST)
        return own[..., None] * u + jax.lax.map(one, weights.T, batch_size=max(1, COLUMNS // v.shape[1]))


Kernel = Radial | ArcCosine


def squared_distances(u: Float[Array, "b r"], v: Float[Array, "c r"]) -> Float[Array, "b c"]:
    """|u - v|^2; zero where it is no more than rounding."""
    lengths = (u**2).sum(-1)[:, None] + (v**2).sum(-1)
    squared = lengths - 2 * jnp.dot(u, v.T, precision=HIGHEST)
    return jnp.where(squared > SAME * jnp.finfo(u.dtype).eps * lengths, squared, 0)


def _angles(u: Float[Array, "b r"], v: Float[Array, "c r"]) -> tuple[Array, Array, Array, Array]:
    """|u| as a column, |v| as a row, the angle between u and v and its sine; a right angle where one of them is 0.

    Angles that differ from 0 or pi by rounding alone are 0 or pi. So the sine has a derivative there, zero.
    """
    length, other = (jnp.sqrt((x**2).sum(-1)) for x in (u, v))
    product = length[:, None] * other
    inner = jnp.dot(u, v.T, precision=HIGHEST)
    cosine = jnp.where(product > 0, inner / jnp.where(product > 0, product, 1), 0)
    apart = jnp.abs(cosine) < 1 - SAME * jnp.finfo(u.dtype).eps
    cosine = jnp.where(apart, cosine, jnp.sign(cosine))
    inside = jnp.where(apart, cosine, 0)
    angle = jnp.where(apart, jnp.arccos(inside), jnp.where(cosine > 0, 0, jnp.pi))
    return length[:, None], other[None], angle, jnp.where(apart, jnp.sqrt(1 - inside**2), 0)


def kernel_block(
    kernel: Kernel, rows: Float[Array, "b positions r"], columns: Float[Array, "c positions r"]
) -> Float[Array, "b c"]:
    """K of every pair of inputs: the sum over positions."""
    return _over_positions(lambda u, v: kernel.values(u, v), rows, columns)


def gradient_block(
    kernel: Kernel,
    rows: Float[Array, "b positions r"],
    valid: Float[Array, "b"],
    columns: Float[Array, "c positions r"],
    weights: Float[Array, "c m"],
) -> tuple[Float[Array, "r r"], Float[Array, "m r"]]:
    """Outer products of the gradients, and the gradients, each summed over inputs, positions and (the first) outputs.

    Args:
      kernel, rows, columns: as above.
      valid: 1 for inputs that count, 0 for others.
      weights: of the predictor.
    """

    def moments(u: Array, v: Array) -> tuple[Array, Array]:
        gradients = kernel.gradients(u, v, weights) * valid[:, None]
        flat = gradients.reshape(-1, u.shape[-1])
        return jnp.dot(flat.T, flat, precision=HIGHEST), gradients.sum(1)

    return _over_positions(moments, rows, columns)


def _over_positions(function, rows, columns):
    rows, columns = jnp.moveaxis(rows, 1, 0), jnp.moveaxis(columns, 1, 0)
    if len(rows) == 1:
        return function(rows[0], columns[0])
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, rows[0], columns[0]))
    add = lambda total, pair: (jax.tree.map(jnp.add, total, function(*pair)), None)
    return jax.lax.scan(add, start, (rows, columns))[0]

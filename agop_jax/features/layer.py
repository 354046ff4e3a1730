"""What is known of one layer: its kernel and the gradients at its output. Everything else follows."""

import math
from collections.abc import Mapping
from functools import cached_property, partial

import jax
import jax.numpy as jnp
from flax import struct

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float, Kernel, Scalar
from agop_jax.features.decompositions import thin_svd
from agop_jax.features.matrix import HIGHEST, FeatureMatrix
from agop_jax.features.patches import kernel_to_matrix

NULL = 1e-6  # of the largest singular value: what is below is rounding


@struct.dataclass
class LayerFeatures:
    """A layer of a donor, over `count` examples: a product of its inputs with a kernel.

    A convolution is linear in its patch, so its gradient there is `W delta` with delta the gradient at its output, and

        NFM  = W W^T                (Radhakrishnan et al. 2024, "Mechanism for feature learning", eq. 2, for filters)
        AGOP = W S W^T,  S = (1 / count) sum_images sum_positions sum_outputs delta delta^T

    hold exactly: `kernel` and `gradient_gram` are the whole state. Normaliser: examples only, so that AGOP adds up over
    positions, over outputs, and over the calls of a module that is used more than once.

    Attributes:
      kernel: as the layer used it, (*stack, *spatial, cin / groups, cout); Dense (cin, cout).
      gradient_gram: S, (cout, cout), or per group (groups, cout / groups, cout / groups). None after `patch_jacobian`.
      count: number of examples.
      path: of the layer's parameter, parts joined by '/'.
      groups: `feature_group_count` of the convolution.
      stacked: number of leading axes of the kernel that hold independent matrices: steps of scans, then heads.
      standard_error: root mean square of |estimate - AGOP|_F over the random cotangents of `probe`; else None.
      bias: (cout,) of the layer, if it has one; for copies and coupled methods.
      companions: {name: (cout,)} of what works on the layer's channels besides the bias, such as the scale, bias and
        statistics of a normalisation; for copies.
      patch_agop: the dense k x k AGOP of `patch_jacobian`, which yields no S where W lacks full column rank; else None.
      matrices: of features that were read as matrices (`load_matrices`), which of 'nfm' and 'agop' there are. The
        columns of `kernel` are then factors of the NFM and not the donor's filters. Empty where the network was known.
    """

    kernel: Kernel
    gradient_gram: Float[Array, "*stack filters filters"] | None
    count: int = struct.field(pytree_node=False)
    path: str = struct.field(pytree_node=False, default="")
    groups: int = struct.field(pytree_node=False, default=1)
    stacked: int = struct.field(pytree_node=False, default=0)
    standard_error: Scalar | None = None
    patch_agop: Float[Array, "*stack k k"] | None = None
    bias: Float[Array, "*scan cout"] | None = None
    companions: Mapping[str, Array] = struct.field(default_factory=dict)
    matrices: tuple[str, ...] = struct.field(pytree_node=False, default=())

    def __repr__(self) -> str:
        if not hasattr(self.kernel, "shape"):  # in a tree of something else than arrays
            return object.__repr__(self)
        matrices = " and ".join(name.upper() for name in self.matrices or ("nfm", "agop"))
        stack, k = self.kernel.shape[: self.stacked], math.prod(self.kernel.shape[self.stacked : -1])
        shape = (*stack, *([self.groups] if self.groups > 1 else []), k, k)
        return f"LayerFeatures({self.path!r}, kernel {self.kernel.shape}, {matrices} {shape}, {self.count} examples)"

    def require(self, part: str) -> None:
        """Refuses a layer of which 'nfm', 'agop' or 'filters' is not known.

        Raises:
          UserError: the features were read as matrices, without this part.
        """
        if self.matrices and part not in self.matrices:
            have = " and ".join(self.matrices).upper()
            needed = "the donor's filters" if part == "filters" else f"its {part.upper()}"
            raise UserError(
                f"layer {self.path!r}: needed {needed}, but its features were read from a file with the {have} alone: "
                f"use a method that draws from the {have}, or extract features from the network"
            )

    @property
    def matrix(self) -> Float[Array, "*stack k filters"]:
        """W: one filter a column; (groups, k, cout / groups) for a grouped convolution."""
        to_matrix = partial(kernel_to_matrix, groups=self.groups)
        for _ in range(self.stacked):
            to_matrix = jax.vmap(to_matrix)
        return to_matrix(self.kernel)

    @cached_property
    def nfm(self) -> FeatureMatrix:
        """W W^T."""
        self.require("nfm")
        with jax.ensure_compile_time_eval():  # a tracer in the cache would outlive its trace
            return FeatureMatrix.from_factor(self.matrix)

    @cached_property
    def agop(self) -> FeatureMatrix:
        """W S W^T."""
        self.require("agop")
        with jax.ensure_compile_time_eval():
            if self.patch_agop is not None:
                return FeatureMatrix.from_dense(self.patch_agop)
            return FeatureMatrix.from_product(self.matrix, self.required_gram)

    def factor(self, matrix: str) -> Float[Array, "*stack k filters"]:
        """F with F F^T = 'nfm', 'agop' or 'sqrt_agop', whose columns stay aligned with the donor's filters.

        NFM: W. AGOP: W S^(1/2). AGOP^(1/2): U D^(1/2) V^T where W S^(1/2) = U D V^T.
        """
        self.require("filters")
        if matrix == "nfm":
            return self.matrix
        factor = jnp.einsum("...kc,...cd->...kd", self.matrix, self.gram_root, precision=HIGHEST)
        if matrix == "agop":
            return factor
        left, singular, right = thin_svd(factor)
        return jnp.einsum("...kr,...r,...rc->...kc", left, jnp.sqrt(singular), right, precision=HIGHEST)

    def factor_root(self, matrix: str) -> Float[Array, "*stack filters filters"]:
        """M with F = W M for the factor F of this matrix: what mixes the donor's pre-activations, and its biases."""
        self.require("filters")
        if matrix == "nfm":
            return jnp.broadcast_to(
                jnp.eye(self.matrix.shape[-1]), (*self.matrix.shape[:-2], *self.matrix.shape[-1:] * 2)
            )
        if matrix == "agop":
            return self.gram_root
        root = self.gram_root
        _, singular, right = thin_svd(jnp.einsum("...kc,...cd->...kd", self.matrix, root, precision=HIGHEST))
        alive = singular > NULL * singular[..., :1]
        inverse = jnp.where(alive, 1 / jnp.sqrt(jnp.where(alive, singular, 1)), 0)
        return jnp.einsum("...de,...re,...r,...rc->...dc", root, right, inverse, right, precision=HIGHEST)

    @property
    def gram_root(self) -> Float[Array, "*stack filters filters"]:
        """The symmetric S^(1/2)."""
        return FeatureMatrix.from_dense(self.required_gram).power(0.5).dense()

    @property
    def required_gram(self) -> Float[Array, "*stack filters filters"]:
        """S; a `UserError` after `patch_jacobian`, which gives none."""
        if self.gradient_gram is None:
            raise UserError(f"layer {self.path!r}: method 'patch_jacobian' gives no gradient Gram matrix, use 'gram'")
        return self.gradient_gram

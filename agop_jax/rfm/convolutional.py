"""Recursive feature machines on images, whose M is that of a patch."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float
from agop_jax.features.patches import extract_patches
from agop_jax.rfm import checks
from agop_jax.rfm.estimators import Classification, RecursiveMachine, Regression
from agop_jax.rfm.kernels import ArcCosine, Kernel

CHUNK = 256  # images whose patches are cut out at once


class ConvolutionalMachine(RecursiveMachine):
    """What regressors and classifiers on images have in common."""

    def __init__(
        self,
        kernel_size: int = 3,
        stride: int = 1,
        padding: str = "SAME",
        positions: int = 64,
        kernel: str = "arc_cosine",
        bandwidth: int | float = 10.0,
        exponent: int | float = 1.0,
        ridge: int | float = 1e-3,
        iterations: int = 3,
        diagonal: bool = False,
        centred: bool = False,
        solver: str = "auto",
        rank: int = 1000,
        tolerance: int | float = 1e-3,
        steps: int = 200,
        memory: int | float | None = None,
        dtype: str = "float32",
        random_state: int = 0,
        progress: bool = True,
    ) -> None:
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.positions = positions
        self.kernel = kernel
        super().__init__(
            bandwidth,
            exponent,
            ridge,
            iterations,
            diagonal,
            centred,
            solver,
            rank,
            tolerance,
            steps,
            memory,
            dtype,
            random_state,
            progress,
        )

    def _inputs(self, X: Any, reset: bool) -> np.ndarray:
        images = np.asarray(X)
        if images.ndim != 4 or images.dtype.kind not in "fiu":
            raise UserError(f"X: needed images as numbers (n, h, w, c), got {images.dtype} of shape {images.shape}")
        if not reset and images.shape[1:] != self.shape_:
            raise UserError(f"X: needed images of {self.shape_}, as those of fit, got {images.shape[1:]}")
        images = images.astype(self.dtype, copy=False)
        checks.require_finite("X", images)
        if reset:
            self.shape_ = images.shape[1:]
        return images

    def _patches(self, inputs: np.ndarray) -> Float[Array, "n positions k"]:
        window, strides = (self.kernel_size,) * 2, (self.stride,) * 2
        cut = lambda part: extract_patches(jnp.asarray(part), window, strides, self.padding, (1, 1), (1, 1))
        chunks = (inputs[start : start + CHUNK] for start in range(0, len(inputs), CHUNK))
        return jnp.concatenate([spaced(cut(chunk)[..., 0, :], self.positions) for chunk in chunks])

    def _kernel(self) -> Kernel:
        return ArcCosine() if self.kernel == "arc_cosine" else super()._kernel()


class ConvRFM(Regression, ConvolutionalMachine):
    """A convolutional recursive feature machine for regression on images (n, h, w, c).

    Its kernel is the sum over positions of a kernel of the two images' patches there, both multiplied by M^(1/2): with
    'arc_cosine' that of infinitely many filters from N(0, M), ReLU, and a linear map of all positions. M is the
    identity at first, and after each fit the AGOP with respect to patches, summed over positions and scaled to the
    trace of the identity. Beaglehole, Radhakrishnan, Pandit, Belkin, arXiv 2309.00570.

    Args:
      kernel_size: side of a patch.
      stride: between patches.
      padding: 'SAME' or 'VALID'.
      positions: of an image, at most, spread evenly; time grows with them.
      kernel: of patches: 'arc_cosine', or 'radial' with `bandwidth` and `exponent`.
      bandwidth, exponent, ridge, iterations, diagonal, centred: as of `RFM`.
      solver, rank, tolerance, steps, memory, dtype, random_state, progress: as of `RFM`.

    Attributes:
      M_: of the round that was kept, k x k with k = kernel_size^2 c in the order of a Flax kernel, of trace k.
      machine_, history_, best_round_: as of `RFM`.
      shape_: (h, w, c).
    """


class ConvRFMClassifier(Classification, ConvolutionalMachine):
    """`ConvRFM` for labels: see there. `predict_proba` gives probabilities, `score` the accuracy.

    Attributes:
      classes_: labels, in the order of the columns of `predict_proba`.
    """


def spaced(patches: Float[Array, "n *space k"], positions: int) -> Float[Array, "n positions k"]:
    """Patches on an even grid that has at most so many positions."""
    space = patches.shape[1:-1]
    step = 1
    while math.prod(-(-side // step) for side in space) > positions:
        step += 1
    start = [(side - 1) % step // 2 for side in space]
    grid = (slice(None), *(slice(first, None, step) for first in start))
    return patches[grid].reshape(len(patches), -1, patches.shape[-1])

"""A recipient's parameters as they are so far."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from agop_jax.core.types import Array
from agop_jax.features.tapped import Tapped


@dataclass(frozen=True)
class State:
    """Parameters, of which some layers are drawn.

    Attributes:
      tapped: the network.
      params, others: of it.
      biased: layers whose bias was drawn, too; only these are scaled with their kernels.
    """

    tapped: Tapped
    params: Any
    others: Any
    biased: frozenset[str] = frozenset()

    @property
    def variables(self) -> tuple[Any, Any]:
        """(params, others)."""
        return self.params, self.others

    def kernel(self, path: str) -> Array:
        """As the layer uses it: (*stack, *spatial, cin / groups, cout)."""
        return self.tapped.kernel(path, self.params, self.others)

    def bias(self, path: str) -> Array | None:
        """(*stack, filters), or None."""
        return self.tapped.biases(self.params, {path: self.kernel(path)})[path]

    def having(self, path: str, kernel: Array, bias: Any = None) -> "State":
        """The state with this kernel, and this bias if the layer has one; None leaves the bias as it is."""
        state = replace(self, params=self.tapped.with_kernels(self.params, self.others, {path: kernel}))
        return state if bias is None else state.having_bias(path, bias)

    def having_bias(self, path: str, bias: Any) -> "State":
        """The state with this bias if the layer has one."""
        if self.tapped.first(path).bias is None:
            return self
        params = self.tapped.with_biases(self.params, {path: jnp.asarray(bias, jnp.float32)})
        return replace(self, params=params, biased=self.biased | {path})

    def times(self, path: str, factors: np.ndarray) -> "State":
        """The state with each filter of a layer, and its bias if drawn, times its factor (*stack, filters)."""
        kernel, stacked = self.kernel(path), self.tapped.first(path).stacked
        middle = (1,) * (kernel.ndim - stacked - 1)
        spread = np.asarray(factors).reshape(*kernel.shape[:stacked], *middle, -1)
        bias = np.asarray(self.bias(path)) * factors if path in self.biased else None
        return self.having(path, jnp.asarray(np.asarray(kernel) * spread, kernel.dtype), bias)

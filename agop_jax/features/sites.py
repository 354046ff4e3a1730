"""The geometry of one product of data with a kernel: its matrix W, the gradients at its output, its patches.

A product is a `dot_general` or a `conv_general_dilated` of JAX, whose operands may have their axes in any order. Here
they are brought to the one order that the rest of the package knows:

    kernel   (*heads, k, filters) of a matrix product, (*spatial, cin / groups, cout) of a convolution
    rows     (*heads, positions, filters) or, of a grouped convolution, (positions, groups, cout / groups)
    patches  (*heads, positions, k) or, of a convolution, (positions, groups, k)

`heads` are the batch axes of a matrix product, such as those of attention: each has a matrix of its own. A matrix that
is a parameter of more axes with all but its last flattened, such as a convolution written as a product over patches,
gives a kernel in the shape of that parameter.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.types import Array
from agop_jax.features.patches import extract_patches

MATRIX_PRODUCT, CONVOLUTION = "dot_general", "conv_general_dilated"
PRODUCTS = (MATRIX_PRODUCT, CONVOLUTION)


@dataclass(frozen=True)
class Site:
    """The static side of one product in the computation.

    Attributes:
      layer: name of the layer whose kernel it multiplies with.
      leaf: index of the largest parameter in that kernel, among the leaves of the parameters.
      place: of the kernel among the two operands.
      primitive: of JAX.
      params: of the primitive: dimension numbers, strides, padding, groups.
      kernel_shape: of the operand.
      depth: number of scans around the product.
      stack: those of them, counted from outside, that slice the kernel step by step.
      unflattened: shape of the parameter whose leading axes were flattened to this kernel, or None.
      bias: index of the parameter that is first added to the product, or None.
    """

    layer: str
    leaf: int
    place: int
    primitive: str
    params: Any
    kernel_shape: tuple[int, ...]
    depth: int = 0
    stack: tuple[int, ...] = ()
    unflattened: tuple[int, ...] | None = None
    bias: int | None = None

    @property
    def is_convolution(self) -> bool:
        """Whether the product has positions in space."""
        return self.primitive == CONVOLUTION

    @property
    def groups(self) -> int:
        """`feature_group_count` of a convolution."""
        return self.params["feature_group_count"] if self.is_convolution else 1

    @property
    def filters(self) -> int:
        """Number of filters, of one head."""
        if self.is_convolution:
            return self.kernel_shape[self.params["dimension_numbers"].rhs_spec[0]]
        return math.prod(self.kernel_shape[axis] for axis in self._free(self.place, len(self.kernel_shape)))

    @property
    def heads(self) -> int:
        """Number of batch axes of a matrix product."""
        return 0 if self.is_convolution else len(self._axes(self.place)[1])

    @property
    def stacked(self) -> int:
        """Leading axes of the layer's kernel that hold independent matrices: steps of scans, then heads."""
        return len(self.stack) + self.heads

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Spatial shape of a convolution's kernel; () of a matrix product."""
        if not self.is_convolution:
            return ()
        _, _, *spatial = self.params["dimension_numbers"].rhs_spec
        return tuple(self.kernel_shape[axis] for axis in spatial)

    @property
    def geometry(self) -> tuple[Any, ...]:
        """What tells two products apart that multiply with the same array along different axes."""
        ndim = len(self.kernel_shape)
        if self.is_convolution:
            layout = tuple(self.params["dimension_numbers"].rhs_spec)
            columns = self.groups == 1 and layout == (ndim - 1, ndim - 2, *range(ndim - 2))
            return ("columns",) if columns else (self.primitive, layout, self.groups)
        axes = self._axes(self.place)
        return ("columns",) if ndim == 2 and axes == ((0,), ()) else (self.primitive, *axes)

    @property
    def is_plain(self) -> bool:
        """Whether the operand is the kernel, flattened if need be, with its axes in the order of this module."""
        ndim = len(self.kernel_shape)
        if self.is_convolution:
            return tuple(self.params["dimension_numbers"].rhs_spec) == (ndim - 1, ndim - 2, *range(ndim - 2))
        return ndim == 2 and self._axes(self.place) == ((0,), ())

    def contracts_last(self, ndim: int) -> bool:
        """Whether the channels of the data operand, of so many axes, are its last axis."""
        if self.is_convolution:
            return self.params["dimension_numbers"].lhs_spec[1] == ndim - 1
        return self._axes(1 - self.place) == ((ndim - 1,), ())

    def filters_last(self) -> bool:
        """Whether the filters are the last axis of the output, one by one."""
        if self.is_convolution:
            return self.params["dimension_numbers"].out_spec[1] == len(self.kernel_shape) - 1
        return self.place == 1 and len(self._free(1, len(self.kernel_shape))) == 1

    def kernel(self, operand: Array) -> Array:
        """The operand in the order of this module; in float32 or better."""
        operand = operand.astype(jnp.promote_types(operand.dtype, jnp.float32))
        if self.is_convolution:
            out, cin, *spatial = self.params["dimension_numbers"].rhs_spec
            return operand.transpose(*spatial, cin, out)
        contract, batch = self._axes(self.place)
        heads, k = [operand.shape[a] for a in batch], math.prod(operand.shape[a] for a in contract)
        kernel = operand.transpose(*batch, *contract, *self._free(self.place, operand.ndim))
        return kernel.reshape(self.unflattened or (*heads, k, -1))

    def rows(self, outputs: Array) -> Array:
        """What lies at the output, such as a gradient there."""
        if self.is_convolution:
            n, channel, *spatial = self.params["dimension_numbers"].out_spec
            outputs = outputs.transpose(n, *spatial, channel)
            filters = outputs.shape[-1] // self.groups
            return outputs.reshape(-1, *([self.groups] if self.groups > 1 else []), filters)
        heads, free = len(self._axes(self.place)[1]), len(self._free(self.place, len(self.kernel_shape)))
        lead, rest = outputs.shape[:heads], outputs.shape[heads:]
        if self.place == 1:
            return outputs.reshape(*lead, -1, math.prod(rest[len(rest) - free :]))
        return jnp.swapaxes(outputs.reshape(*lead, math.prod(rest[:free]), -1), -1, -2)

    def outputs(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """Inverse of `rows`."""
        if not self.is_convolution:
            return (rows if self.place == 1 else jnp.swapaxes(rows, -1, -2)).reshape(shape)
        n, channel, *spatial = self.params["dimension_numbers"].out_spec
        order = (n, *spatial, channel)
        return rows.reshape([shape[axis] for axis in order]).transpose(*np.argsort(order))

    def channels_last(self, inputs: Array) -> Array:
        """The data operand as (n, *spatial, cin) of a convolution, (*heads, positions, k) of a matrix product."""
        if self.is_convolution:
            n, channel, *spatial = self.params["dimension_numbers"].lhs_spec
            return inputs.transpose(n, *spatial, channel)
        contract, batch = self._axes(1 - self.place)
        heads, k = [inputs.shape[a] for a in batch], math.prod(inputs.shape[a] for a in contract)
        return inputs.transpose(*batch, *self._free(1 - self.place, inputs.ndim), *contract).reshape(*heads, -1, k)

    def channel_rows(self, inputs: Array) -> Array:
        """The data operand with its channels last, as (n, *spatial, cin) or (positions, cin).

        Of patches, their centres: each position of the input once, where strides and borders leave none out.
        """
        inputs = self.channels_last(inputs)
        if self.unflattened is None:
            return inputs
        *window, cin, _ = self.unflattened
        return inputs.reshape(len(inputs), -1, cin)[:, math.prod(window) // 2]

    def patches(self, inputs: Array) -> Array:
        """What each position of the output sees."""
        inputs = self.channels_last(inputs)
        if not self.is_convolution:
            return inputs
        geometry = [self.params[name] for name in ("window_strides", "padding", "rhs_dilation", "lhs_dilation")]
        patches = extract_patches(inputs, self.kernel_size, *geometry, groups=self.groups)
        return patches.reshape(-1, *patches.shape[-2 if self.groups > 1 else -1 :])

    def outputs_channels_last(self, outputs: Array) -> Array:
        """The product as (n, *spatial, cout) of a convolution; of a matrix product as it is."""
        if not self.is_convolution:
            return outputs
        n, channel, *spatial = self.params["dimension_numbers"].out_spec
        return outputs.transpose(n, *spatial, channel)

    def product(self, inputs: Array, kernel: Array, positions: tuple[int, ...]) -> Array:
        """The product with another kernel, of any number of filters, as (n, *positions, filters).

        Args:
          inputs: the data operand.
          kernel: in the order of this module.
          positions: all but the last axis of the result.
        """
        inputs = self.channels_last(inputs)
        if not self.is_convolution:
            flat = kernel.reshape(-1, kernel.shape[-1])
            return jnp.matmul(inputs, flat, precision=jax.lax.Precision.HIGHEST).reshape(*positions, -1)
        space = tuple(range(1, inputs.ndim - 1))
        last = (0, inputs.ndim - 1, *space)
        layout = jax.lax.ConvDimensionNumbers(last, (inputs.ndim - 1, inputs.ndim - 2, *range(inputs.ndim - 2)), last)
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count")
        options = {name: self.params[name] for name in names}
        highest = jax.lax.Precision.HIGHEST
        return jax.lax.conv_general_dilated(inputs, kernel, dimension_numbers=layout, precision=highest, **options)

    def _axes(self, place: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Contracted and batch axes of an operand."""
        contract, batch = self.params["dimension_numbers"]
        return tuple(contract[place]), tuple(batch[place])

    def _free(self, place: int, ndim: int) -> list[int]:
        contract, batch = self._axes(place)
        return [axis for axis in range(ndim) if axis not in (*contract, *batch)]

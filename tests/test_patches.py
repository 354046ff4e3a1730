"""The order of a patch, and that convolutions are matrix products over patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax.core.errors import UserError
from agop_jax.features.patches import extract_patches, kernel_to_matrix, matrix_to_kernel


def test_a_patch_runs_over_rows_then_columns_then_channels():
    """Pixel (row, column) holds 10 * row + column in channel 0, 100 more in channel 1: an entry tells its place."""
    image = np.add.outer(10 * np.arange(3), np.arange(3))
    image = jnp.asarray(np.stack([image, image + 100], -1)[None], jnp.float32)
    patches = extract_patches(image, (2, 2), (1, 1), "VALID", (1, 1), (1, 1))
    assert patches.shape == (1, 2, 2, 1, 8)
    np.testing.assert_array_equal(patches[0, 0, 0, 0], [0, 100, 1, 101, 10, 110, 11, 111])
    np.testing.assert_array_equal(patches[0, 1, 0, 0], [10, 110, 11, 111, 20, 120, 21, 121])


def test_padding_enters_a_patch_as_zeros():
    image = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)  # 1 2 / 3 4
    patches = extract_patches(image, (2, 2), (2, 2), ((1, 0), (0, 1)), (1, 1), (1, 1))
    np.testing.assert_array_equal(patches.reshape(-1, 4), [[0, 0, 1, 2]])


def test_groups_see_their_own_channels():
    image = jnp.arange(8.0).reshape(1, 1, 2, 4)  # channels 0..3 at the first pixel, 4..7 at the second
    patches = extract_patches(image, (1, 2), (1, 1), "VALID", (1, 1), (1, 1), groups=2)
    np.testing.assert_array_equal(patches[0, 0, 0], [[0, 1, 4, 5], [2, 3, 6, 7]])


def test_a_filter_is_a_column_of_the_kernel_matrix():
    kernel = jnp.arange(2 * 1 * 2 * 3.0).reshape(2, 1, 2, 3)  # rows of 3 filters, in the order of memory
    expected = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    np.testing.assert_array_equal(kernel_to_matrix(kernel), expected)


def test_a_group_owns_a_run_of_filters():
    kernel = jnp.arange(1 * 2 * 1 * 4.0).reshape(1, 2, 1, 4)
    np.testing.assert_array_equal(kernel_to_matrix(kernel, groups=2), [[[0, 1], [4, 5]], [[2, 3], [6, 7]]])


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(3, 2, 5, 8), (3, 5, 4), (5, 8)], ids=["2-D", "1-D", "Dense"])
def test_kernels_survive_the_round_trip(shape, groups):
    kernel = jnp.arange(float(np.prod(shape))).reshape(shape)
    np.testing.assert_array_equal(matrix_to_kernel(kernel_to_matrix(kernel, groups), shape), kernel)


ONES = (1, 1)
GEOMETRIES = {  # kernel size, strides, padding, kernel dilation, input dilation, groups
    "1x1": ((1, 1), ONES, "SAME", ONES, ONES, 1),
    "3x3 SAME": ((3, 3), ONES, "SAME", ONES, ONES, 1),
    "3x5 SAME strided": ((3, 5), (2, 2), "SAME", ONES, ONES, 1),
    "even, lower case": ((2, 4), (2, 1), "same", ONES, ONES, 1),
    "VALID strided": ((3, 5), (2, 3), "VALID", ONES, ONES, 1),
    "asymmetric": ((3, 3), (2, 1), ((2, 0), (1, 3)), ONES, ONES, 1),
    "kernel dilation": ((3, 2), ONES, "SAME", (2, 3), ONES, 1),
    "input dilation": ((3, 3), ONES, ((1, 2), (2, 1)), ONES, (2, 3), 1),
    "all at once": ((3, 2), (2, 3), ((3, 1), (0, 2)), (2, 1), (1, 2), 2),
    "groups": ((3, 3), ONES, "SAME", ONES, ONES, 2),
    "depthwise": ((3, 3), (2, 2), "VALID", ONES, ONES, 4),
    "1-D": ((3,), (2,), "SAME", (2,), (1,), 2),
    "3-D": ((2, 1, 3), (1, 2, 1), "VALID", (1, 1, 1), (1, 1, 1), 1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_patches_times_matrix_is_the_convolution(name):
    size, strides, padding, kernel_dilation, input_dilation, groups = GEOMETRIES[name]
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(2, *(6, 7, 5)[: len(size)], 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*size, 4 // groups, 8)), jnp.float32)

    @jax.jit
    def both(image, kernel):
        patches = extract_patches(image, size, strides, padding, kernel_dilation, input_dilation, groups)
        matrix = kernel_to_matrix(kernel, groups).reshape(groups, -1, 8 // groups)
        product = jnp.einsum("...gk,gkc->...gc", patches, matrix).reshape(*patches.shape[:-2], 8)
        spatial = "DHW"[-len(size) :]
        layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
        return product, jax.lax.conv_general_dilated(
            image, kernel, strides, padding, input_dilation, kernel_dilation, layout, feature_group_count=groups
        )

    found, expected = both(image, kernel)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_padding_that_has_no_explicit_patches_is_refused():
    with pytest.raises(UserError, match="got 'CIRCULAR': use method='gram'"):
        extract_patches(jnp.zeros((1, 4, 4, 1)), (3, 3), ONES, "CIRCULAR", ONES, ONES)

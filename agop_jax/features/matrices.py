"""Dense matrices as CSV, the files of the older PyTorch project: written for its users, and read from them.

A folder holds `layer_{i}.csv`, i counting the 2-D convolutions without groups in the order of the computation: k x k
numbers without a header, patches in PyTorch's order (cin, kh, kw). That project's NFM is `W W^T`, as ours; what it
calls AGOP is the root of the sum over 11 images, where ours is the mean.
"""

# pyright: reportArgumentType=false

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.arrays import absolute, write_directory
from agop_jax.core.errors import UserError, first_line
from agop_jax.core.networks import open_network
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.taps import tap

REFERENCE_IMAGES = 11.0  # that project's AGOP is a sum over so many images; ours is a mean
ASYMMETRY = 1e-4  # of the largest entry: more than rounding in float32 leaves
NEGATIVE = 1e-3  # of the largest eigenvalue, for the same reason; a root turns 1e-7 into 3e-4


def save_matrices(directory: str | os.PathLike, features: Mapping[str, LayerFeatures]) -> None:
    """Dense matrices for users of the older PyTorch project, as a new directory.

    `nfm/layer_{i}.csv` and `agop/layer_{i}.csv`, i counting the ungrouped 2-D convolutions, in that project's
    convention: patches in (cin, kh, kw) order, and for `agop` the root of a sum over 11 images. `dense.npz` holds
    `nfm_{i}` and `agop_{i}` in ours (HWI order, AGOP as a mean, no root) and `paths`.

    Size and time grow with k^2 a layer: 275 MB a file for k = 4608.
    """
    directory = absolute(directory)
    layers = [layer for layer in features.values() if _has_file(layer.kernel, layer.groups, layer.stacked)]
    if not layers:
        raise UserError(f"save_matrices: wanted 2-D convolutions without groups, got {', '.join(features)}")
    write_directory(directory, lambda temporary: _write_dense(temporary, layers))


def _write_dense(directory: Path, layers: list[LayerFeatures]) -> None:
    dense = {"paths": np.array([layer.path for layer in layers])}
    for index, layer in enumerate(layers):
        nfm, agop = np.asarray(layer.nfm.dense()), np.asarray(layer.agop.dense())
        dense |= {f"nfm_{index}": nfm, f"agop_{index}": agop}
        order = _channels_first(layer.kernel.shape)
        root = np.asarray(layer.agop.scale(REFERENCE_IMAGES).power(0.5).dense())
        for name, matrix in (("nfm", nfm), ("agop", root)):
            (directory / name).mkdir(exist_ok=True)
            np.savetxt(directory / name / f"layer_{index}.csv", matrix[np.ix_(order, order)], delimiter=",")
    np.savez(directory / "dense.npz", **dense)


def _channels_first(shape: tuple[int, ...]) -> np.ndarray:
    kh, kw, cin, _ = shape
    return np.arange(kh * kw * cin).reshape(kh, kw, cin).transpose(2, 0, 1).ravel()


def load_matrices(
    model: Any,
    variables: Any,
    inputs: Any,
    *,
    nfm: str | os.PathLike | None = None,
    agop: str | os.PathLike | None = None,
    apply_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, LayerFeatures]:
    """Features from folders of `layer_{i}.csv`, in the older project's convention.

    They know the matrices and not the donor's filters: of use to methods that draw from a matrix ('nfm', 'agop',
    'he_nfm', 'spatial', matched controls, ...). Copies and coupled methods refuse them.

    Args:
      model, variables, apply_kwargs: as for `extract`: the network that the matrices are of, or any of its kernel sizes
        and channels. Only shapes matter.
      inputs: a batch as the model expects it.
      nfm: folder of the NFMs.
      agop: folder of the roots of the AGOPs' sums.

    Returns:
      By path, the model's 2-D convolutions without groups. The AGOP is ours, a mean over images.

    Raises:
      UserError: no folder, a file that is missing, no CSV, of another size, not symmetric or not semidefinite.
    """
    folders = {name: Path(path).expanduser() for name, path in (("nfm", nfm), ("agop", agop)) if path is not None}
    if not folders:
        raise UserError("load_matrices: needed a folder of layer_0.csv, ... as nfm= or agop=, got none")
    network = open_network(model, variables, apply_kwargs=apply_kwargs)
    tapped = tap(network, jax.tree.map(lambda leaf: leaf[:1], inputs))
    kernels = jax.eval_shape(tapped.kernels, network.params, network.others)
    sites = {path: tapped.first(path) for path in tapped.layers}
    own = [path for path, site in sites.items() if _has_file(kernels[path], site.groups, site.stacked)]
    if not own:
        raise UserError(f"load_matrices: wanted a model of 2-D convolutions without groups, got {', '.join(sites)}")
    return {path: _read_layer(folders, index, path, kernels[path].shape) for index, path in enumerate(own)}


def _has_file(kernel: Any, groups: int, stacked: int) -> bool:
    return kernel.ndim == 4 and not stacked and groups == 1


def _read_layer(folders: Mapping[str, Path], index: int, path: str, shape: tuple[int, ...]) -> LayerFeatures:
    files = {name: folder / f"layer_{index}.csv" for name, folder in folders.items()}
    matrices = {name: _read(file, path, shape) for name, file in files.items()}
    factor, agop = np.zeros((int(np.prod(shape[:3])), 1)), None
    if "nfm" in matrices:
        factor = _factor(matrices["nfm"], files["nfm"])
    if "agop" in matrices:
        _require_semidefinite(np.linalg.eigvalsh(matrices["agop"]), files["agop"])
        agop = jnp.asarray(matrices["agop"] @ matrices["agop"] / REFERENCE_IMAGES, jnp.float32)
    kernel = jnp.asarray(factor.reshape(*shape[:3], -1), jnp.float32)
    return LayerFeatures(kernel, None, int(REFERENCE_IMAGES), path, patch_agop=agop, matrices=tuple(matrices))


def _read(file: Path, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A matrix in our order of patches, checked."""
    size = int(np.prod(shape[:3]))
    if not file.is_file():
        raise UserError(
            f"layer {path!r}: no file {str(file)!r}: the model's convolutions are counted from layer_0.csv on"
        )
    try:
        matrix = np.loadtxt(file, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(file)!r}: wanted numbers parted by commas, without a header ({first_line(error)})"
        ) from None
    if matrix.shape != (size, size):
        kh, kw, cin = shape[:3]
        raise UserError(
            f"{str(file)!r}: layer {path!r} wants {size} x {size} ({cin} channels x {kh} x {kw}), got "
            f"{' x '.join(map(str, matrix.shape))}"
        )
    if not np.isfinite(matrix).all():
        raise UserError(f"{str(file)!r}: wanted finite numbers, got NaN or infinity")
    if np.abs(matrix - matrix.T).max() > ASYMMETRY * np.abs(matrix).max():
        raise UserError(f"{str(file)!r}: wanted a symmetric matrix: is it a matrix of another kind?")
    order = np.argsort(_channels_first((*shape[:3], 1)))
    return (matrix + matrix.T)[np.ix_(order, order)] / 2


def _require_semidefinite(values: np.ndarray, file: Path) -> None:
    """By the eigenvalues, smallest first."""
    if values[0] < -NEGATIVE * abs(values[-1]):
        raise UserError(f"{str(file)!r}: wanted no negative eigenvalues, got {values[0]:.3g} beside {values[-1]:.3g}")


def _factor(matrix: np.ndarray, file: Path) -> np.ndarray:
    """F of k rows with F F^T the matrix, without what rounding in float32 adds to its null space."""
    values, vectors = np.linalg.eigh(matrix)
    _require_semidefinite(values, file)
    alive = values > len(values) * np.finfo(np.float32).eps * values[-1]
    return vectors[:, alive] * np.sqrt(values[alive]) if alive.any() else np.zeros((len(values), 1))

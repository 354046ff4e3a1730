"""Features on disk, and as dense matrices for users of the older PyTorch project."""

# pyright: reportArgumentType=false

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agop_jax.core import trees
from agop_jax.core.arrays import absolute, load_arrays, save_arrays, write_directory
from agop_jax.core.errors import UserError
from agop_jax.features.layer import LayerFeatures

REFERENCE_IMAGES = 11.0  # that project's AGOP is a sum over so many images; ours is a mean

ARRAY_FIELDS = ("kernel", "gradient_gram", "standard_error", "patch_agop", "bias")
STATIC_FIELDS = ("path", "count", "groups", "stacked")


def save_features(
    path: str | os.PathLike, features: Mapping[str, LayerFeatures], metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes features as a new directory.

    Args:
      path: must not exist: nothing saved is overwritten.
      features: as `extract` returns them.
      metadata: JSON values worth keeping: model, data, number of images, outputs, method.
    """
    arrays = {str(index): _arrays(layer) for index, layer in enumerate(features.values())}
    layers = [{name: getattr(layer, name) for name in STATIC_FIELDS} for layer in features.values()]
    save_arrays(path, arrays, {**(metadata or {}), "layers": layers})


def load_features(path: str | os.PathLike) -> dict[str, LayerFeatures]:
    """Reads what `save_features` wrote.

    Raises:
      UserError: the directory or a file of it is missing, truncated, changed, of another format or of other shapes.
    """
    arrays, metadata = load_arrays(path)
    if "layers" not in metadata:
        raise UserError(f"{str(path)!r} holds arrays but no features")
    layers = [_layer(static, arrays[str(index)]) for index, static in enumerate(metadata["layers"])]
    return {layer.path: layer for layer in layers}


def _layer(static: Mapping[str, Any], arrays: Mapping[str, Any]) -> LayerFeatures:
    companions = trees.flatten(arrays.get("companions", {}))
    return LayerFeatures(**static, **{"gradient_gram": None, **arrays, "companions": companions})


def export(directory: str | os.PathLike, features: Mapping[str, LayerFeatures]) -> None:
    """Dense matrices for users of the older PyTorch project, as a new directory.

    `nfm/layer_{i}.csv` and `agop/layer_{i}.csv`, i counting the ungrouped 2-D convolutions, in that project's
    convention: patches in (cin, kh, kw) order, and for `agop` the root of a sum over 11 images. `dense.npz` holds
    `nfm_{i}` and `agop_{i}` in ours (HWI order, AGOP as a mean, no root) and `paths`.

    Size and time grow with k^2 a layer: 275 MB a file for k = 4608.
    """
    directory = absolute(directory)
    layers = [
        layer for layer in features.values() if layer.kernel.ndim == 4 and not layer.stacked and layer.groups == 1
    ]
    if not layers:
        raise UserError(f"export: wanted 2-D convolutions without groups, got {', '.join(features)}")
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


def _arrays(layer: LayerFeatures) -> dict[str, Any]:
    arrays = {name: value for name in ARRAY_FIELDS if (value := getattr(layer, name)) is not None}
    return arrays | ({"companions": trees.unflatten(layer.companions)} if layer.companions else {})

"""Features on disk: a directory of Orbax, or one `.safetensors` file for programs in any language."""

# pyright: reportArgumentType=false

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from agop_jax.core import tensors, trees
from agop_jax.core.arrays import load_arrays, save_arrays, versions
from agop_jax.core.errors import UserError
from agop_jax.features.layer import LayerFeatures

ARRAY_FIELDS = ("kernel", "gradient_gram", "standard_error", "patch_agop", "bias")
STATIC_FIELDS = ("path", "count", "groups", "stacked")


def save_features(
    path: str | os.PathLike, features: Mapping[str, LayerFeatures], metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes features as a new directory, or as a new file if the path ends in '.safetensors'.

    In the file a layer's arrays are called 'PATH.kernel' (W), 'PATH.gradient_gram' (S), 'PATH.bias' and so on, by the
    fields of `LayerFeatures`; the file's metadata say which layers there are, their groups and number of examples.

    Args:
      path: must not exist: nothing saved is overwritten.
      features: as `extract` returns them.
      metadata: JSON values worth keeping: model, data, number of images, outputs, method.

    Raises:
      UserError: the path exists, there is no space for it, or two layers of a file have one name.
    """
    layers = [_static(layer) for layer in features.values()]
    if not tensors.is_tensor_file(path):
        arrays = {str(index): _arrays(layer) for index, layer in enumerate(features.values())}
        return save_arrays(path, arrays, {**(metadata or {}), "layers": layers})
    named = [pair for layer in features.values() for pair in _named(layer)]
    if len(named) != len(dict(named)):
        raise UserError("save_features: two layers have one name with dots for slashes: save a directory instead")
    own = [sorted(layer.companions) for layer in features.values()]
    layers = [{**static, "companions": companions} for static, companions in zip(layers, own, strict=True)]
    about = {"versions": versions(), "metadata": {**(metadata or {}), "layers": layers}}
    tensors.write_tensors(path, dict(jax.device_get(named)), about)


def load_features(path: str | os.PathLike) -> dict[str, LayerFeatures]:
    """Reads what `save_features` wrote.

    Raises:
      UserError: the directory or a file of it is missing, truncated, changed, of another format or of other shapes.
    """
    is_file = tensors.is_tensor_file(path)
    arrays, metadata = tensors.read_tensors(path) if is_file else load_arrays(path)
    metadata = metadata.get("metadata", {}) if is_file else metadata
    if "layers" not in metadata:
        raise UserError(f"{str(path)!r} holds arrays but no features")
    read = (lambda static, _: _from_names(static, arrays)) if is_file else (lambda static, i: _layer(static, arrays[i]))
    layers = [read(static, str(index)) for index, static in enumerate(metadata["layers"])]
    return {layer.path: layer for layer in layers}


def _static(layer: LayerFeatures) -> dict[str, Any]:
    static = {name: getattr(layer, name) for name in STATIC_FIELDS}
    return static | ({"matrices": list(layer.matrices)} if layer.matrices else {})  # which older versions do not know


def _layer(static: Mapping[str, Any], arrays: Mapping[str, Any]) -> LayerFeatures:
    companions = trees.flatten(arrays.get("companions", {}))
    static = {**static, "matrices": tuple(static.get("matrices", ()))}
    return LayerFeatures(**static, **{"gradient_gram": None, **arrays, "companions": companions})


def _named(layer: LayerFeatures) -> list[tuple[str, Any]]:
    """Arrays by their names in a file."""
    own = {name: value for name in ARRAY_FIELDS if (value := getattr(layer, name)) is not None}
    companions = {f"companions.{name}": value for name, value in layer.companions.items()}
    return [(f"{layer.path}.{name}", value) for name, value in (own | companions).items()]


def _from_names(static: Mapping[str, Any], arrays: Mapping[str, Any]) -> LayerFeatures:
    static, path = dict(static), static["path"]
    companions = {name: jnp.asarray(arrays[f"{path}.companions.{name}"]) for name in static.pop("companions")}
    own = {name: jnp.asarray(arrays[f"{path}.{name}"]) for name in ARRAY_FIELDS if f"{path}.{name}" in arrays}
    return _layer(static, own).replace(companions=companions)


def _arrays(layer: LayerFeatures) -> dict[str, Any]:
    arrays = {name: value for name in ARRAY_FIELDS if (value := getattr(layer, name)) is not None}
    return arrays | ({"companions": trees.unflatten(layer.companions)} if layer.companions else {})

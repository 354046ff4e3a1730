"""Donors that were trained elsewhere: `load_pretrained('vgg11', 'hub:timm/vgg11.tv_in1k')`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from agop_jax.core import arrays
from agop_jax.core.errors import UserError, unknown_name
from agop_jax.core.files import UNREADABLE
from agop_jax.core.types import Variables
from agop_jax.models import registry
from agop_jax.models.torch_names import from_state_dict

# of ImageNet's training images, in units of pixel / 255: what torchvision, timm and most others normalise with
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HUB_TIMEOUT = 5  # seconds


class Pretrained(NamedTuple):
    """A trained network and how its images are normalised: (pixel / 255 - mean) / std, per channel."""

    model: nn.Module
    variables: Variables
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_pretrained(
    name: str,
    source: str,
    *,
    num_classes: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    **fields: Any,
) -> Pretrained:
    """A network with trained weights.

    Args:
      name: of the network in `registry.MODELS`.
      source: 'orbax:DIR' (the directory `donor` of an experiment), 'npz:FILE' or 'safetensors:FILE' (a PyTorch state
        dict with the names of torchvision or timm) or 'hub:OWNER/NAME' (such a file on the Hugging Face hub).
      num_classes: what is wanted; None for whatever the source has.
      mean, std: how the network's images are normalised; empty for what the source says, or ImageNet's constants
        where it says nothing.
      **fields: of the network, such as `width`; what the source tells by itself (classes, head, stem) comes from there.

    Raises:
      UserError: unknown name or source, an unreadable file, a tensor that is missing, too much or of another shape,
        another number of classes.
    """
    kind, _, argument = source.partition(":")
    if kind not in SOURCES:
        raise unknown_name("donor source", kind, SOURCES)
    if not argument:
        raise UserError(f"donor source {source!r}: wanted {kind}:NAME")
    loaded = SOURCES[kind](name, argument, fields)
    loaded = loaded._replace(mean=tuple(mean) or loaded.mean, std=tuple(std) or loaded.std)
    channels = loaded.variables["params"]["Conv_0"]["kernel"].shape[2]  # the first layer of every model here
    if not len(loaded.mean) == len(loaded.std) == channels:
        found = f"{len(loaded.mean)} and {len(loaded.std)}"
        raise UserError(f"donor {source!r}: wanted a mean and std for each of its {channels} channels, got {found}")
    if num_classes not in (None, loaded.model.num_classes):
        raise UserError(f"donor {source!r} has {loaded.model.num_classes} classes, wanted {num_classes}")
    return loaded


def save_pretrained(path: str | Path, network: Pretrained, metadata: Mapping[str, Any]) -> None:
    """Writes a network as a new directory, which 'orbax:DIR' reads."""
    about = {"model": registry.describe(network.model), "mean": list(network.mean), "std": list(network.std)}
    arrays.save_arrays(path, network.variables, {**metadata, **about})


def _orbax(name: str, path: str, fields: Mapping[str, Any]) -> Pretrained:
    variables, about = arrays.load_arrays(path)
    if not {"model", "mean", "std"} <= set(about):
        raise UserError(f"{path!r} does not say which network it holds: wanted what an experiment leaves in 'donor'")
    if about["model"]["name"] != name:
        raise UserError(f"{path!r} holds a {about['model']['name']!r}, wanted {name!r}")
    model = {key: tuple(value) if isinstance(value, list) else value for key, value in about["model"].items()}
    return Pretrained(registry.create(**model), variables, tuple(about["mean"]), tuple(about["std"]))


def _npz(name: str, path: str, fields: Mapping[str, Any]) -> Pretrained:
    file = Path(path).expanduser()
    try:
        with np.load(file, allow_pickle=False) as arrays:
            state = {tensor: arrays[tensor] for tensor in arrays.files}
    except FileNotFoundError:
        raise UserError(f"donor: no file {str(file)!r}") from None
    except UNREADABLE as error:
        raise UserError(f"donor: {str(file)!r} is no readable .npz file ({error})") from None
    return _of_state(name, state, str(file), fields)


def _safetensors(name: str, path: str, fields: Mapping[str, Any]) -> Pretrained:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"donor: no file {str(file)!r}")
    try:
        state = load_file(file)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:  # the last three: a type NumPy lacks
        raise UserError(f"donor: {str(file)!r} is no readable .safetensors file ({error})") from None
    return _of_state(name, state, str(file), fields)


def _hub(name: str, repository: str, fields: Mapping[str, Any]) -> Pretrained:
    """`model.safetensors` with the normalisation that timm keeps beside it in `config.json`."""
    file, config = (_fetch(repository, file) for file in ("model.safetensors", "config.json"))
    loaded = _safetensors(name, file, fields)
    try:
        about = json.loads(Path(config).read_text()).get("pretrained_cfg", {})
    except ValueError as error:
        raise UserError(f"donor 'hub:{repository}': {config!r} is no readable JSON file ({error})") from None
    return loaded._replace(mean=tuple(about.get("mean", IMAGENET_MEAN)), std=tuple(about.get("std", IMAGENET_STD)))


def _fetch(repository: str, file: str) -> str:
    """The path of a file in the hub's cache, downloaded if it is not there yet."""
    try:
        from huggingface_hub import constants, errors, hf_hub_download, utils
    except ImportError:
        raise UserError("donor source 'hub' needs huggingface_hub: pip install 'agop_jax[hub]'") from None
    try:
        return hf_hub_download(repository, file, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        pass
    except errors.HFValidationError as error:
        raise UserError(f"donor source 'hub:{repository}': wanted OWNER/NAME ({_line(error)})") from None
    try:  # asked once and shortly: the download itself would retry for most of a minute
        utils.get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception as error:  # of whatever HTTP library the installed hub uses
        reason = f"is not cached and {constants.ENDPOINT} cannot be reached ({_line(error)})"
        raise UserError(f"donor 'hub:{repository}': {file} {reason}: download it on a machine that can") from None
    try:
        return hf_hub_download(repository, file)
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"donor 'hub:{repository}': {file} cannot be downloaded ({_line(error)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _of_state(name: str, state: Mapping[str, np.ndarray], where: str, fields: Mapping[str, Any]) -> Pretrained:
    return Pretrained(*from_state_dict(name, state, repr(where), **fields), IMAGENET_MEAN, IMAGENET_STD)


SOURCES: dict[str, Callable[[str, str, Mapping[str, Any]], Pretrained]] = {
    "orbax": _orbax,
    "npz": _npz,
    "safetensors": _safetensors,
    "hub": _hub,
}

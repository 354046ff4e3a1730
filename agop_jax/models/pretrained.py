"""Networks that travel: `load_pretrained('vgg11', 'hub:timm/vgg11.tv_in1k')`, and `save_pretrained` for PyTorch."""

# pyright: reportArgumentType=false

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from agop_jax.core import arrays, files, tensors
from agop_jax.core.errors import UserError, unknown_name
from agop_jax.core.files import UNREADABLE, unreadable_reason
from agop_jax.core.types import Variables
from agop_jax.models import cards, registry
from agop_jax.models.normalisation import Numbers, Stated, normalisation, stated_in
from agop_jax.models.torch_states import from_state_dict, not_floating, to_state_dict

HUB_TIMEOUT = 5  # seconds


class Loaded(NamedTuple):
    """A network from a source, and what the source states of its normalisation."""

    model: nn.Module
    variables: Variables
    stated: Stated = Stated()


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
    mean: Numbers = (),
    std: Numbers = (),
    **fields: Any,
) -> Pretrained:
    """A network with trained weights.

    Args:
      name: of the network in `registry.MODELS`.
      source: 'orbax:DIR' (the directory `donor` of an experiment), 'npz:FILE' or 'safetensors:FILE' (a PyTorch state
        dict with the names of torchvision or timm) or 'hub:OWNER/NAME' (such a file on the Hugging Face hub).
      num_classes: what is wanted; None for whatever the source has.
      mean, std: how the network's images are normalised, in units of pixel / 255; empty for what the source says, or
        ImageNet's constants where it says nothing.
      **fields: of the network, such as `width`; what the source tells by itself (classes, head, stem) comes from there.

    Raises:
      UserError: unknown name or source, an unreadable file, a tensor that is missing, too much, quantised or of another
        shape, constants in other units or of which only one is stated, another number of classes.
    """
    kind, _, argument = source.partition(":")
    if kind not in SOURCES:
        raise unknown_name("donor source", kind, SOURCES)
    if not argument:
        raise UserError(f"donor source {source!r}: wanted {kind}:NAME")
    model, variables, stated = SOURCES[kind](name, argument, fields)
    channels = variables["params"]["Conv_0"]["kernel"].shape[2]  # the first layer of every model here
    constants = normalisation(repr(source), channels, stated, mean, std)
    if num_classes not in (None, model.num_classes):
        raise UserError(f"donor {source!r} has {model.num_classes} classes, wanted {num_classes}")
    return Pretrained(model, variables, *constants)


def save_pretrained(path: str | Path, network: Pretrained, metadata: Mapping[str, Any]) -> None:
    """Writes a network, for JAX or for PyTorch.

    Args:
      path: must not exist. 'NAME.safetensors' becomes a PyTorch state dict with the names of torchvision (of timm for
        the ViT), which 'safetensors:FILE' reads, bit for bit, and beside it 'NAME.md', a model card. Any other path
        becomes a directory, which 'orbax:DIR' reads.
      network: of one of the models here.
      metadata: JSON values worth keeping. The card lists them; 'classes' are the names of the classes.

    Raises:
      UserError: something is at the path, or at that of the card.
    """
    about = _about(network)
    if not tensors.is_tensor_file(path):
        return arrays.save_arrays(path, network.variables, {**metadata, **about})
    card = files.require_new(Path(path).with_suffix(".md"))
    state = write_state(path, network, metadata)
    text = cards.card(Path(path).name, about, state, metadata)
    files.write_new(card, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_state(path: str | Path, network: Pretrained, metadata: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of `save_pretrained` without a card, and what it holds."""
    state = to_state_dict(network.model, network.variables)
    tensors.write_tensors(path, state, {**metadata, **_about(network)})
    return state


def _about(network: Pretrained) -> dict[str, Any]:
    """What `load_pretrained` needs to know besides the arrays."""
    return {"model": registry.describe(network.model), "mean": list(network.mean), "std": list(network.std)}


def _orbax(name: str, path: str, fields: Mapping[str, Any]) -> Loaded:
    variables, about = arrays.load_arrays(path)
    if not {"model", "mean", "std"} <= set(about):
        raise UserError(f"{path!r} does not say which network it holds: wanted what an experiment leaves in 'donor'")
    return Loaded(_stated_model(name, path, about), variables, Stated(about["mean"], about["std"]))


def _stated_model(name: str, path: str, about: Mapping[str, Any]) -> nn.Module:
    """The network that this package says to have written."""
    model = registry.create(**{key: tuple(v) if isinstance(v, list) else v for key, v in about["model"].items()})
    if (stated := registry.describe(model)["name"]) != name:
        raise UserError(f"{path!r} holds a {stated!r}, wanted {name!r}")
    return model


def _npz(name: str, path: str, fields: Mapping[str, Any]) -> Loaded:
    file = Path(path).expanduser()
    try:
        with np.load(file, allow_pickle=False) as arrays:
            state = {tensor: _bfloat16(arrays[tensor]) for tensor in arrays.files}
    except FileNotFoundError:
        raise UserError(f"donor: no file {str(file)!r}") from None
    except UNREADABLE as error:
        raise UserError(f"donor: {str(file)!r} is no readable .npz file ({unreadable_reason(error)})") from None
    return Loaded(*from_state_dict(name, state, repr(str(file)), **fields))


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """NumPy stores bfloat16, the one number of two bytes that it does not know, as two bytes without a type."""
    return array.view(jnp.dtype("bfloat16")) if array.dtype == np.dtype("V2") else array


def _safetensors(name: str, path: str, fields: Mapping[str, Any]) -> Loaded:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"donor: no file {str(file)!r}")
    try:
        with safe_open(file, framework="np") as opened:
            state = {tensor: _tensor(opened, tensor, repr(str(file))) for tensor in opened.keys()}  # noqa: SIM118
            about = tensors.stated_in(opened.metadata())
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"donor: {str(file)!r} is no readable .safetensors file ({_line(error)})") from None
    if about is None or "model" not in about:
        return Loaded(*from_state_dict(name, state, repr(str(file)), **fields))
    model = _stated_model(name, path, about)
    return Loaded(*from_state_dict(name, state, repr(str(file)), model), Stated(about["mean"], about["std"]))


def _tensor(opened: Any, tensor: str, where: str) -> np.ndarray:
    """A tensor of an open file, if NumPy or JAX knows its type; types of 8 bits and fewer are refused."""
    try:
        return opened.get_tensor(tensor)
    except (AttributeError, KeyError, TypeError):
        raise not_floating(where, tensor, opened.get_slice(tensor).get_dtype()) from None


def _hub(name: str, repository: str, fields: Mapping[str, Any]) -> Loaded:
    """`model.safetensors` with the normalisation that timm keeps beside it in `config.json`."""
    file, config = (_fetch(repository, file) for file in ("model.safetensors", "config.json"))
    loaded, where = _safetensors(name, file, fields), repr(f"hub:{repository}")
    try:
        about = json.loads(Path(config).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"donor {where}: {config!r} is no readable JSON file ({_line(error)})") from None
    return loaded._replace(stated=stated_in(about, where))


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


SOURCES: dict[str, Callable[[str, str, Mapping[str, Any]], Loaded]] = {
    "orbax": _orbax,
    "npz": _npz,
    "safetensors": _safetensors,
    "hub": _hub,
}

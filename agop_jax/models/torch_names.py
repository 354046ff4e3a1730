"""PyTorch's names and layouts of the networks here: a state dict becomes a model and its variables.

The names are torchvision's; where timm or another well-known source names a tensor differently, that name is read too.
PyTorch keeps kernels as (cout, cin, kh, kw), Flax as (kh, kw, cin, cout); PyTorch flattens a map as (c, h, w), Flax as
(h, w, c), so that the first Dense layer after a map needs its rows in another order.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core import trees
from agop_jax.core.errors import UserError
from agop_jax.core.types import Variables
from agop_jax.models.alexnet import AlexNet
from agop_jax.models.cnn import LeNet5
from agop_jax.models.registry import MODELS, create
from agop_jax.models.resnet import STAGES as RESNET_STAGES
from agop_jax.models.resnet import CIFARResNet, ResNet
from agop_jax.models.vgg import STAGES as VGG_STAGES
from agop_jax.models.vgg import VGG
from agop_jax.models.vit import ViT

State = Mapping[str, np.ndarray]
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# of PyTorch's BatchNorm and of its averaged models, which nothing here needs
COUNTERS = ("num_batches_tracked", "n_averaged")


class Family(NamedTuple):
    """How PyTorch names one kind of network.

    Attributes:
      names: of a model, Flax path -> PyTorch's name, of layers and of parameters that belong to no layer; the first
        is the layer that sees the image, the last the head.
      aliases: (regular expression, replacement) that bring other sources' names to these.
      flattened: PyTorch's name of the Dense layer after a map, and the side of that map.
      fields: of the model, as far as a state dict tells them.
      size: side of images that the model takes.
    """

    names: Callable[[Any], dict[str, str]]
    aliases: tuple[tuple[str, str], ...] = ()
    flattened: tuple[str, int] = ("", 1)
    fields: Callable[[State], dict[str, Any]] = lambda state: {}
    size: Callable[[State], int] = lambda state: 224


def from_state_dict(name: str, state: State, where: str, **fields: Any) -> tuple[nn.Module, Variables]:
    """A network with the weights of a PyTorch state dict.

    Args:
      name: of the network in `MODELS`.
      state: tensors by PyTorch's names.
      where: the state dict came from, for messages.
      **fields: of the network; what the state dict tells by itself (classes, kind of head or stem) comes from there.

    Raises:
      UserError: a tensor is missing, is not of this network, is quantised, or has another shape.
    """
    blank = create(name, 1, **fields)  # says what is wrong with the name or the fields
    family = _family(name)
    first_layer, *_ = family.names(blank).values()
    files_name = _by_our_names(state, family, f"{first_layer}.weight", where)
    state = {tensor: np.asarray(state[file]) for tensor, file in files_name.items()}
    fields = {**fields, **family.fields(state)}
    *_, head = names = list(family.names(create(name, 1, **fields)).values())
    _require([f"{names[0]}.weight", f"{head}.weight"], state, name, where)
    first = state[f"{names[0]}.weight"]
    size, channels = family.size(state), first.shape[1] if first.ndim > 1 else 1
    model = create(name, len(np.atleast_1d(state[f"{head}.weight"])), **fields)
    leaves = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, channels)))
    wanted = {_tensor(path, family.names(model)): (path, leaf.shape) for path, leaf in trees.flatten(leaves).items()}
    shapes = {tensor: _shapes(shape, _side(tensor, family)) for tensor, (_, shape) in wanted.items()}
    _check(state, shapes, files_name, name, where)
    flat = {path: _convert(state[tensor], shape, _side(tensor, family)) for tensor, (path, shape) in wanted.items()}
    return model, trees.unflatten(flat)


def _family(name: str) -> Family:
    kind = MODELS[name].func
    if kind not in FAMILIES:
        known = ", ".join(sorted(known for known, model in MODELS.items() if model.func in FAMILIES))
        raise UserError(f"model {name!r} has no PyTorch names: load it from 'orbax:DIR'. With names: {known}.")
    return FAMILIES[kind]


def _check(
    state: State, shapes: Mapping[str, list[tuple[int, ...]]], files_name: Mapping[str, str], name: str, where: str
) -> None:
    """All tensors of a model are there, and no others, with numbers and shapes as it wants them."""
    _require(shapes, state, name, where)
    for tensor in shapes:
        dtype = state[tensor].dtype
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 2:
            raise not_floating(where, files_name[tensor], str(dtype))
    if extra := [files_name[tensor] for tensor in state if tensor not in shapes]:
        raise UserError(f"{where} holds the tensor {_some(extra)}, which model {name!r} does not have")
    for tensor, possible in shapes.items():
        if (got := state[tensor].shape) not in possible:
            raise UserError(f"{where}: tensor {files_name[tensor]!r}: model {name!r} wants {possible[0]}, got {got}")


def not_floating(where: str, tensor: str, dtype: str) -> UserError:
    """Quantised weights mean nothing without their scales."""
    return UserError(
        f"{where}: tensor {tensor!r} is of type {dtype}, wanted floating point of 16 bits or more: store its "
        "unquantised values"
    )


def _by_our_names(state: State, family: Family, first: str, where: str) -> dict[str, str]:
    """Our name of each tensor -> the file's; a prefix that all of the file's share is left out.

    DataParallel puts 'module.' there, torch.compile '_orig_mod.', Lightning and others the name of a field.
    """
    tensors = [tensor for tensor in state if not tensor.endswith(COUNTERS)]
    known = any(_canonical(tensor, family) == first for tensor in tensors)
    layers = [tensor.split(".")[:-1] for tensor in tensors]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*layers, strict=False))
    prefix = "" if known else "".join(f"{parts[0]}." for parts in shared)
    names: dict[str, str] = {}
    for tensor in tensors:
        name = _canonical(tensor.removeprefix(prefix), family)
        if name in names:
            raise UserError(f"{where} holds {names[name]!r} and {tensor!r}, which are one tensor of the model")
        names[name] = tensor
    return names


def _canonical(tensor: str, family: Family) -> str:
    for pattern, replacement in family.aliases:
        tensor = re.sub(pattern, replacement, tensor)
    return tensor


def _tensor(path: str, names: Mapping[str, str]) -> str:
    """PyTorch's name of the variable at a path such as 'params/Conv_0/kernel'."""
    layer, _, leaf = path.partition("/")[2].rpartition("/")
    return f"{names[layer]}.{LEAVES[leaf]}" if layer else names[leaf]


def _require(tensors: Any, state: State, name: str, where: str) -> None:
    if missing := [tensor for tensor in tensors if tensor not in state]:
        raise UserError(f"{where} lacks the tensor {_some(missing)} of model {name!r}")


def _some(tensors: list[str]) -> str:
    more = f" (and {len(tensors) - 1} more)" if len(tensors) > 1 else ""
    return f"{tensors[0]!r}{more}"


def _side(tensor: str, family: Family) -> int:
    name, side = family.flattened
    return side if tensor == f"{name}.weight" else 1


def _shapes(shape: tuple[int, ...], side: int) -> list[tuple[int, ...]]:
    """Of a tensor in PyTorch, for a variable of this shape; timm keeps some Dense layers as convolutions."""
    if len(shape) == 4:
        return [(shape[3], shape[2], *shape[:2])]
    if len(shape) == 2:
        return [shape[::-1], (shape[1], shape[0] // side**2, side, side)]
    return [shape]


def _convert(tensor: np.ndarray, shape: tuple[int, ...], side: int) -> jax.Array:
    if len(shape) == 4:
        tensor = tensor.transpose(2, 3, 1, 0)
    elif len(shape) == 2:
        tensor = tensor.reshape(shape[1], -1, side, side).transpose(2, 3, 1, 0).reshape(shape)
    return jnp.asarray(tensor, jnp.float32)


def _sequence(kind: str, *names: str) -> dict[str, str]:
    return {f"{kind}_{index}": name for index, name in enumerate(names)}


def _lenet(model: LeNet5) -> dict[str, str]:
    return _sequence("Conv", "conv1", "conv2") | _sequence("Dense", "fc1", "fc2", "fc3")


def _alexnet(model: AlexNet) -> dict[str, str]:
    convolutions = (f"features.{index}" for index in (0, 3, 6, 8, 10))
    return _sequence("Conv", *convolutions) | _sequence("Dense", *(f"classifier.{index}" for index in (1, 4, 6)))


def _vgg(model: VGG) -> dict[str, str]:
    places, place = [], 0
    for convolutions in VGG_STAGES[model.depth]:
        for _ in range(convolutions):
            places.append(place)
            place += 3 if model.batch_norm else 2  # convolution, (BatchNorm,) ReLU
        place += 1  # pooling
    names = _sequence("Conv", *(f"features.{place}" for place in places))
    names |= _sequence("BatchNorm", *(f"features.{place + 1}" for place in places))
    heads = {"classic": ("classifier.0", "classifier.3", "classifier.6"), "mean": ("classifier",)}
    return names | _sequence("Dense", *heads[model.head])


def _resnet(model: ResNet) -> dict[str, str]:
    block, convolutions = ("BasicBlock", 2) if model.depth < 50 else ("BottleneckBlock", 3)
    return _residual(RESNET_STAGES[model.depth], block, convolutions)


def _cifar_resnet(model: CIFARResNet) -> dict[str, str]:
    return _residual(((model.depth - 2) // 6,) * 3, "BasicBlock", 2)


def _residual(stages: tuple[int, ...], block: str, convolutions: int) -> dict[str, str]:
    places = [f"layer{stage + 1}.{index}" for stage, blocks in enumerate(stages) for index in range(blocks)]
    names = {"Conv_0": "conv1", "BatchNorm_0": "bn1"}
    for number, place in enumerate(places):
        for kind, name, shortcut in (("Conv", "conv", "downsample.0"), ("BatchNorm", "bn", "downsample.1")):
            inner = [*(f"{name}{i + 1}" for i in range(convolutions)), shortcut]
            names |= _sequence(f"{block}_{number}/{kind}", *(f"{place}.{one}" for one in inner))
    return names | {"Dense_0": "fc"}


def _vit(model: ViT) -> dict[str, str]:
    names = {"Conv_0": "patch_embed.proj", "class_token": "cls_token", "positions": "pos_embed"}
    for block in range(model.depth):
        dense = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        names |= _sequence(f"ViTBlock_{block}/Dense", *(f"blocks.{block}.{name}" for name in dense))
        names |= _sequence(f"ViTBlock_{block}/LayerNorm", *(f"blocks.{block}.{name}" for name in ("norm1", "norm2")))
    return names | {"LayerNorm_0": "norm", "Dense_0": "head"}


def _vgg_fields(state: State) -> dict[str, Any]:
    return {"head": "mean" if "classifier.weight" in state else "classic"}


def _resnet_fields(state: State) -> dict[str, Any]:
    small = "conv1.weight" in state and state["conv1.weight"].shape[-1] == 3
    return {"stem": "cifar" if small else "imagenet"}


def _vit_size(state: State) -> int:
    tokens = state["pos_embed"].shape[1] if "pos_embed" in state else 197
    return state["patch_embed.proj.weight"].shape[-1] * math.isqrt(tokens - 1)


TIMM_VGG = (
    (r"^pre_logits\.fc1\.", "classifier.0."),
    (r"^pre_logits\.fc2\.", "classifier.3."),
    (r"^head\.fc\.", "classifier.6."),
)
# CIFAR: github.com/akamaster/pytorch_resnet_cifar10 and github.com/kuangliu/pytorch-cifar
CIFAR_RESNET = ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample."))
TORCHVISION_VIT = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
)

FAMILIES: dict[Any, Family] = {
    LeNet5: Family(_lenet, flattened=("fc1", 5), size=lambda state: 32),
    AlexNet: Family(_alexnet, flattened=("classifier.1", 6)),
    VGG: Family(_vgg, TIMM_VGG, ("classifier.0", 7), _vgg_fields),
    ResNet: Family(_resnet, CIFAR_RESNET, fields=_resnet_fields),
    CIFARResNet: Family(_cifar_resnet, CIFAR_RESNET),
    ViT: Family(_vit, TORCHVISION_VIT, size=_vit_size),
}

"""Taps: the gradient at the output of every layer of any JAX function, found in the computation itself.

The function is traced once to a jaxpr. `dataflow.py` finds every product of data with parameters in it. The jaxpr is
evaluated again with a zero added to each such product: the gradient with respect to that zero is the gradient at the
output of the layer, and the operand that the product multiplies with is the layer's W, as it is used.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from agop_jax.core.errors import UserError, first_line
from agop_jax.core.networks import Cache, Network, signature
from agop_jax.core.types import Array
from agop_jax.features.channels import Lost
from agop_jax.features.dataflow import Dataflow
from agop_jax.features.evaluation import UNKNOWN, Evaluation, Record, Taps
from agop_jax.features.origins import Origin
from agop_jax.features.program import Program
from agop_jax.features.sites import Site
from agop_jax.features.tapped import Tapped

LEAF = re.compile(r"[/.](kernel|weight|w)$")  # of the path of a kernel, no part of its layer's name

_TAPPED = Cache()


def tap(network: Network, inputs: Any) -> Tapped:
    """Taps every product of data with parameters; traced once for each model and shape.

    Args:
      network: from `open_network`.
      inputs: a batch for tracing; only shapes and types matter.

    Raises:
      UserError: the model cannot be called on such inputs, has no such product, or has one inside `lax.cond` or
        `lax.while_loop`.
    """
    return _TAPPED.get(network, signature((network.params, network.others, inputs)), lambda: _tap(network, inputs))


def _tap(network: Network, inputs: Any) -> Tapped:
    shapes = jax.eval_shape(lambda *arguments: arguments, network.params, network.others, inputs)
    closed, outputs = _trace(network, shapes)
    dataflow = Dataflow([leaf.size for leaf in jax.tree.leaves(network.params)])
    dataflow.follow(closed.jaxpr, _origins(*shapes))
    sites = name_layers(dataflow, network.paths)
    if not sites:
        raise UserError("the model multiplies its inputs with no parameter: it has no layer to tap")
    evaluation = Evaluation(closed, sites, dataflow.scopes)
    result = jax.tree.structure(outputs)

    def apply(params: Any, others: Any, taps: Taps, inputs: Any) -> tuple[Any, dict[str, Record]]:
        leaves, records = evaluation(jax.tree.leaves((params, others, inputs)), taps)
        return jax.tree.unflatten(result, leaves), records

    def operands(params: Any, others: Any) -> dict[str, Array]:
        unknown = [UNKNOWN] * len(jax.tree.leaves(shapes[2]))
        known = map(jnp.asarray, jax.tree.leaves((params, others)))
        return evaluation([*known, *unknown], {})[1]

    params, others, inputs = (len(jax.tree.leaves(part)) for part in shapes)
    program = Program(evaluation, (params, others, inputs))
    return Tapped(apply, operands, program, sites, dataflow, network.paths, network.other_paths, outputs)


def _trace(network: Network, shapes: Any) -> tuple[core.ClosedJaxpr, Any]:
    try:
        with jax.default_matmul_precision("highest"):  # a jaxpr keeps the precision that it was traced with
            return jax.make_jaxpr(network.apply, return_shape=True)(*shapes)
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's model raises on inputs that it was not made for
        inputs, message = jax.tree.map(jnp.shape, shapes[2]), first_line(error)
        hint = _leading_axis(network, shapes) or _channels_first(inputs) or _other_size(network, message)
        raise UserError(f"the model cannot be called on inputs of shape {inputs}{hint}: {message}") from error


def _leading_axis(network: Network, shapes: Any) -> str:
    """Four axes are a batch of images: with a fifth, convolutions of Flax take them for several such batches."""
    one = lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
    if any(len(leaf.shape) > 3 for leaf in jax.tree.leaves(shapes[2])):
        return ""
    try:
        jax.eval_shape(network.apply, *shapes[:2], jax.tree.map(one, shapes[2]))
    except Exception:  # nor can it be called on these
        return ""
    return " (one example? inputs[None] has the leading axis of examples)"


def _channels_first(shape: Any) -> str:
    if isinstance(shape, tuple) and len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] > 4:
        return " (channels first? inputs.transpose(0, 2, 3, 1) puts them last)"
    return ""


def _other_size(network: Network, message: str) -> str:
    """A flattened image of another size meets a matrix of other rows, which JAX and Flax name by its shape."""
    for path, leaf in zip(network.paths, jax.tree.leaves(network.params), strict=True):
        if jnp.ndim(leaf) == 2 and f"({len(leaf)}," in message:
            return f" (images of another size? {path!r} of shape {leaf.shape} takes {len(leaf)} numbers an example)"
    return ""


def _origins(params: Any, others: Any, inputs: Any) -> list[Origin]:
    leaves = jax.tree.leaves(params)
    marks = [
        Origin(frozenset([n]), recipe=hash(("parameter", n)), parameter=n, shape=leaf.shape)
        for n, leaf in enumerate(leaves)
    ]
    others = jax.tree.leaves(others)
    marks += [Origin(others=frozenset([n]), recipe=hash(("other", n))) for n in range(len(others))]
    shapes = [leaf.shape for leaf in jax.tree.leaves(inputs)]
    scalar = Lost("an input without axes")
    return marks + [Origin(inputs=True, channels=((None, shape[-1]),) if shape else scalar) for shape in shapes]


def name_layers(dataflow: Dataflow, paths: Sequence[str]) -> dict[str, Site]:
    """The sites with their layers' names, which are paths of parameters.

    A layer is one kernel, however often it is used. Where several kernels are made of one parameter, such as queries,
    keys and values from slices of one array, they are numbered: 'in_proj/0', 'in_proj/1', ... A last part such as
    'kernel' is left out of a name, unless two layers would then have the same.
    """
    short = {leaf: LEAF.sub("", paths[leaf]) for leaf in {site.leaf for site in dataflow.sites.values()}}
    unique = [name for name, count in Counter(short.values()).items() if count == 1]
    by_leaf: dict[int, list[int]] = {}
    for place, site in dataflow.sites.items():
        recipes = by_leaf.setdefault(site.leaf, [])
        if dataflow.recipes[place] not in recipes:
            recipes.append(dataflow.recipes[place])
    sites = {}
    for place, site in dataflow.sites.items():
        name, recipes = short[site.leaf], by_leaf[site.leaf]
        name = name if name in unique else paths[site.leaf]
        number = f"/{recipes.index(dataflow.recipes[place])}" if len(recipes) > 1 else ""
        sites[place] = replace(site, layer=name + number, bias=_bias(dataflow, place))
    return sites


def _bias(dataflow: Dataflow, place: str) -> int | None:
    """The parameter that is first added to a product, if it has a number for each filter (of each step or head)."""
    leaf, site = dataflow.biases.get(place), dataflow.sites[place]
    if leaf is None:
        return None
    fits = dataflow.sizes[leaf] % site.filters == 0 if site.stacked else dataflow.sizes[leaf] == site.filters
    return leaf if fits else None

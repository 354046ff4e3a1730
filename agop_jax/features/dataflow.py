"""What every value of a computation is made of: parameters, inputs, the channels of layers.

A jaxpr is followed once, from its arguments to its results. A product of which one operand holds inputs, and the other
is made of parameters alone, is a layer. The same walk tells which layers write into one residual stream, which
parameter is the bias of a product, and in what else a parameter meets the inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jax.extend import core

from agop_jax.core.errors import UserError
from agop_jax.features.channels import CHANNELWISE, Lost, Segments, Statistic, operation, segments_of
from agop_jax.features.origins import (
    NOTHING,
    Origin,
    is_uneven,
    join,
    leaves_of,
    literal_origin,
    recipe_of,
    result_of,
    settled,
)
from agop_jax.features.sites import CONVOLUTION, PRODUCTS, Site

SUMS = {"add", "add_any", "sub"}
LOOPS = {"while": "lax.while_loop or fori_loop", "cond": "lax.cond or switch"}
CALLS = {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call"}


@dataclass
class Dataflow:
    """What the walk found. A product is named by its place: the index of its equation, after those of calls around it.

    Attributes:
      sites: every product of data with parameters; a layer name is given to each by `name_layers`.
      recipes: of the kernel of each site.
      kernels: which parameters are in the kernel of each site.
      scopes: the calls that hold such a product.
      sums: sets of products whose outputs are added to each other.
      biases: the parameter first added to a product, as it is: not subtracted, and not scaled.
      uses: the primitives in which a parameter meets the inputs without being a layer.
      stacks: the fewest scans that slice a parameter where it meets the inputs.
      closed_over: shapes of closed-over arrays that data is multiplied with.
      channels: of each site, the segments along the channels of its input; None where they are not known.
      lost: of each site where they are not known, at what they were lost.
      feeders: of each site, the products whose outputs come into it, in whatever order.
      companions: what works on the channels of one product alone, such as a normalisation: {(kind, index): place} with
        the kinds 'params' and 'others'.
      normalised: products whose channels met a statistic over channels.
      behind: those of the companions that came after that: of a LayerNorm, say, and not of a BatchNorm.
    """

    sizes: Sequence[int]
    sites: dict[str, Site] = field(default_factory=dict)
    recipes: dict[str, int] = field(default_factory=dict)
    kernels: dict[str, frozenset[int]] = field(default_factory=dict)
    scopes: set[str] = field(default_factory=set)
    sums: set[frozenset[str]] = field(default_factory=set)
    biases: dict[str, int] = field(default_factory=dict)
    uses: dict[int, set[str]] = field(default_factory=dict)
    stacks: dict[int, int] = field(default_factory=dict)
    closed_over: set[tuple[int, ...]] = field(default_factory=set)
    channels: dict[str, Segments | None] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    feeders: dict[str, frozenset[str]] = field(default_factory=dict)
    companions: dict[tuple[str, int], str] = field(default_factory=dict)
    normalised: set[str] = field(default_factory=set)
    behind: set[tuple[str, int]] = field(default_factory=set)

    def follow(self, jaxpr: core.Jaxpr, arguments: Sequence[Origin], scope: str = "", depth: int = 0) -> list[Origin]:
        """Origins of the results of a jaxpr."""
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        for number, var in enumerate(jaxpr.constvars):
            closed_over, recipe = not scope and var.aval.ndim >= 2, hash((scope, number))
            known[var] = Origin(closed_over=closed_over, recipe=recipe, uneven=is_uneven(var))
        read = lambda var: literal_origin(var) if isinstance(var, core.Literal) else known.get(var, NOTHING)
        for index, eqn in enumerate(jaxpr.eqns):
            results = self._equation(eqn, [read(var) for var in eqn.invars], f"{scope}{index}", depth)
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, operands: list[Origin], place: str, depth: int) -> list[Origin]:
        name = eqn.primitive.name
        if name in PRODUCTS:
            return [self._product(eqn, operands, place, depth)]
        if name == "scan":
            return self._scan(eqn, operands, place, depth)
        if name in LOOPS:
            return self._loop(eqn, operands, place, depth)
        if name in CALLS:
            return self._call(eqn, operands, place, depth)
        self._note_uses(name, operands)
        if name in SUMS:
            self._note_sum(name, operands)
        if name in CHANNELWISE:
            self._note_companions(operands)
        return [result_of(eqn, operands, number) for number in range(len(eqn.outvars))]

    def _product(self, eqn: Any, operands: list[Origin], place: str, depth: int) -> Origin:
        lost = next((o.channels for o in operands if isinstance(o.channels, Lost)), Lost(operation(eqn)))
        joined = replace(join(operands), layers=frozenset(), channels=lost, number=None)
        side = next((i for i in (1, 0) if operands[i].is_kernel and operands[1 - i].inputs), None)
        unusual = eqn.primitive.name == CONVOLUTION and (side == 0 or eqn.params["batch_group_count"] > 1)
        if side is None or unusual:
            self._note_uses(eqn.primitive.name, operands)
            if any(operand.inputs for operand in operands):
                sides = zip(eqn.invars, operands, strict=True)
                self.closed_over.update(var.aval.shape for var, operand in sides if operand.closed_over)
            return joined if joined.inputs else replace(joined, channels=(), recipe=recipe_of(eqn, operands))
        kernel, shape = operands[side], eqn.invars[side].aval.shape
        leaf = max(sorted(kernel.params), key=lambda index: self.sizes[index])
        stack = tuple(sorted(kernel.stack))
        unflattened = kernel.shape if kernel.shape and len(kernel.shape) > len(shape) == 2 else None
        self.sites[place] = Site("", leaf, side, eqn.primitive.name, eqn.params, shape, depth, stack, unflattened)
        self.recipes[place], self.kernels[place] = hash((kernel.recipe, self.sites[place].geometry)), kernel.params
        site, data = self.sites[place], operands[1 - side]
        self._note_channels(place, data, site.contracts_last(eqn.invars[1 - side].aval.ndim))
        self.feeders[place], filters = data.feeders, eqn.outvars[0].aval.shape[-1]
        channels = ((place, filters),) if site.filters_last() else Lost(operation(eqn))
        own = frozenset([place])
        return replace(joined, layers=own, feeders=own, product=place, channels=channels)

    def _note_channels(self, place: str, data: Origin, last: bool) -> None:
        known = last and isinstance(data.channels, tuple)
        self.channels[place] = data.channels if known and isinstance(data.channels, tuple) else None
        if isinstance(data.channels, Lost):
            self.lost[place] = data.channels.operation
        elif not last:
            self.lost[place] = "the layer itself, which reads another axis than the last, or several"
        elif not known:
            statistic = isinstance(data.channels, Statistic)
            self.lost[place] = (
                f"the layer itself, which reads {'a sum, mean or maximum over them' if statistic else 'groups'}"
            )

    def _call(self, eqn: Any, operands: list[Origin], place: str, depth: int) -> list[Origin]:
        return self._inside(place, lambda: self.follow(body_of(eqn).jaxpr, operands, f"{place}/", depth))

    def _inside(self, place: str, walk: Any) -> Any:
        results = walk()
        if any(site.startswith(f"{place}/") for site in self.sites):
            self.scopes.add(place)
        return results

    def _scan(self, eqn: Any, operands: list[Origin], place: str, depth: int) -> list[Origin]:
        """The origins of the carry are those at which another step adds nothing."""
        first, last = eqn.params["num_consts"], eqn.params["num_consts"] + eqn.params["num_carry"]
        sliced = [
            replace(o, stack=o.stack | {depth}, recipe=hash((place, o.recipe)), shape=o.shape and o.shape[1:])
            for o in operands[last:]
        ]
        entering = [*operands[:last], *sliced]
        while True:
            walk = lambda: self.follow(eqn.params["jaxpr"].jaxpr, entering, f"{place}/", depth + 1)
            results = self._inside(place, walk)
            carry = [join(pair) for pair in zip(entering[first:last], results[: last - first], strict=True)]
            if settled(entering[first:last], carry):
                return [
                    replace(o, stack=o.stack - {depth}, recipe=hash((place, number)), parameter=None, shape=None)
                    for number, o in enumerate(results)
                ]
            entering[first:last] = carry

    def _loop(self, eqn: Any, operands: list[Origin], place: str, depth: int) -> list[Origin]:
        """Branches and loops without a layer; one with a layer cannot be tapped."""
        joined = join(operands)
        inner = Dataflow(self.sizes)
        for body in eqn.params["branches"] if eqn.primitive.name == "cond" else (eqn.params["body_jaxpr"],):
            inner.follow(body.jaxpr, _arguments(eqn, operands, joined, len(body.jaxpr.invars)), f"{place}/", depth)
        if inner.sites:
            raise UserError(
                f"a layer lies inside {LOOPS[eqn.primitive.name]}, where its gradients cannot be taken: use lax.scan, "
                "or choose the branch outside the traced function"
            )
        self._note_uses(eqn.primitive.name, operands)
        return [result_of(eqn, operands, number) for number in range(len(eqn.outvars))]

    def _note_uses(self, name: str, operands: list[Origin]) -> None:
        if not any(operand.inputs for operand in operands):
            return
        for operand in operands:
            for leaf in operand.params if operand.is_kernel else ():
                self.uses.setdefault(leaf, set()).add(name)
                self.stacks[leaf] = min(self.stacks.get(leaf, len(operand.stack)), len(operand.stack))

    def _note_companions(self, operands: list[Origin]) -> None:
        """Parameters on the channels of one product: on these themselves, or on a statistic that comes back to them."""
        for data, other in (operands, operands[::-1]):
            segments, statistic = segments_of(data.channels), isinstance(other.channels, Statistic)
            if len(segments) != 1 or not (place := segments[0][0]):
                continue
            self.normalised |= {place} if statistic else set()
            own = other.channels.own if isinstance(other.channels, Statistic) else leaves_of(other)
            for leaf in own if isinstance(data.channels, tuple) else ():
                self.companions.setdefault(leaf, place)
                self.behind |= {leaf} if place in self.normalised else set()

    def _note_sum(self, name: str, operands: list[Origin]) -> None:
        if layers := frozenset().union(*(operand.layers for operand in operands)):
            self.sums.add(layers)
        for product, other in (operands, operands[::-1]):
            if name != "sub" and product.product and other.parameter is not None:
                self.biases.setdefault(product.product, other.parameter)


def body_of(eqn: Any) -> core.ClosedJaxpr:
    """What a call computes."""
    body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return body if isinstance(body, core.ClosedJaxpr) else core.ClosedJaxpr(body, ())


def _arguments(eqn: Any, operands: list[Origin], joined: Origin, number: int) -> list[Origin]:
    """Origins of the arguments of a branch or loop body; each carry of a loop has the origin of all operands."""
    if eqn.primitive.name == "cond":
        return operands[1:]
    conditions, constants = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    return [*operands[conditions : conditions + constants], *[joined] * (number - constants)]

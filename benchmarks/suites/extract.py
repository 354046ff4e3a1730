"""Features of all layers of VGG11, 10 outputs, in images a second: agop_jax, its peer and the bare passes."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import torch

from agop_jax.core.networks import open_network
from agop_jax.features import grams
from agop_jax.features.extraction import Extractor
from agop_jax.features.taps import tap
from benchmarks import costs, limits, networks, timing
from benchmarks.peers import extraction
from benchmarks.peers import networks as torch_networks
from benchmarks.run import Options
from benchmarks.tables import Headline, Row, Table, environment
from benchmarks.timing import Spread, Work, spread

OUTPUTS = 10
MODULE = __name__


@dataclass(frozen=True)
class Case:
    """One image size.

    Attributes:
      size: side of the images.
      batch, peer_batch: images of one call.
      repeats: interleaved.
      width: of VGG11.
    """

    size: int
    batch: int
    peer_batch: int
    repeats: int
    width: float = 1.0


CASES = (Case(224, 2, 1, 5), Case(32, 64, 16, 5))
QUICK = (Case(32, 2, 2, 1, 0.0625),)


def run(options: Options) -> Table:
    """The table of this suite."""
    torch.set_num_threads(os.cpu_count() or 1)
    facts = environment(torch=True)
    error = agreement()
    cases = QUICK if options.quick else CASES
    rows = [row for case in cases for row in measure(case, options.quick)]
    notes = [
        "Images a second: median and range of interleaved repeats; ratios are taken repeat by repeat. Random weights; "
        "agop_jax takes the 8 convolutions and the Dense layer, the peer (one patch network a layer, `vmap(jacrev)`, "
        "k x k products) the convolutions alone. Limit: one forward and 10 reverse passes to the images, one jitted "
        "call, in its fastest form. A product's rate: operations (`benchmarks/costs.py`) a second, in units of those "
        f"of one product of two {limits.SIDE} x {limits.SIDE} matrices in float32, about the most that the cores give. "
        "Peak memory: of a fresh process above its imports, compilation included. Before it was timed the peer's AGOP "
        f"was ours to {error:.0e} (relative, Frobenius, float32).",
    ]
    size = f"VGG11 at {cases[0].size} x {cases[0].size}, {OUTPUTS} outputs"
    headline = Headline.of(f"exact AGOP of every layer, {size}", "images / s", rows)
    return Table("extract", f"VGG11, {OUTPUTS} outputs, features of all layers", rows, notes, facts, headline=headline)


def measure(case: Case, quick: bool) -> list[Row]:
    """All sides, interleaved, and their peaks one by one."""
    forms = {form: limit(case.size, case.batch, case.width, form) for form in limits.FORMS}
    form = timing.fastest(forms)
    makers = {"gram": (gram, case.batch), "probe": (probe, case.batch), "peer": (peer, case.peer_batch)}
    makers |= {"one by one": (peer, 1)} if case.peer_batch > 1 else {}
    works = {name: make(case.size, batch, case.width) for name, (make, batch) in makers.items()}
    times = timing.interleave({**works, "limit": forms[form], "product": limits.product()}, case.repeats)
    product = limits.PRODUCT_OPERATIONS / times.pop("product")
    amounts = {name: batch for name, (_, batch) in makers.items()} | {"limit": case.batch}
    rates = {name: amounts[name] / taken for name, taken in times.items()}
    peaks = {} if quick else peaks_of(case, makers, form)
    counted = costs.count(networks.create("vgg11", case.size, OUTPUTS, case.width)[0], case.size)
    operations = {"gram": counted.extraction(1, OUTPUTS), "probe": counted.extraction(1, 1)}
    shares = {name: spread(number * rates[name] / product) for name, number in operations.items()}
    return rows(case, form, rates, peaks, shares)


def peaks_of(case: Case, makers: dict[str, tuple[Callable[..., Work], int]], form: str) -> dict[str, float | None]:
    """MiB of each side."""
    calls = {name: (make.__name__, case.size, batch, case.width) for name, (make, batch) in makers.items()}
    calls["limit"] = ("limit", case.size, case.batch, case.width, form)
    return {name: timing.peak(MODULE, *call) for name, call in calls.items()}


def rows(
    case: Case,
    form: str,
    rates: dict[str, np.ndarray],
    peaks: dict[str, float | None],
    shares: dict[str, Spread],
) -> list[Row]:
    """All sides of one size."""
    against_peer = {name: spread(rate / rates["peer"]) for name, rate in rates.items()}
    over_limit = spread(rates["limit"] / rates["gram"])
    names = {
        "gram": f"`gram`, batch {case.batch}",
        "probe": f"`probe`, one cotangent, batch {case.batch}",
        "peer": f"PyTorch peer, batch {case.peer_batch}",
        "one by one": "PyTorch peer, batch 1",
        "limit": f"limit ({form}), batch {case.batch}",
    }
    return [
        Row(
            f"{case.size} x {case.size}, {names[name]}",
            {
                "images / s": spread(rates[name]),
                "x the peer": against_peer[name] if name != "peer" else "1",
                "x the limit's time": over_limit if name == "gram" else "",
                "x a product's rate": shares.get(name, ""),
                "peak memory, MiB": peaks.get(name),
            },
        )
        for name in names
        if name in rates
    ]


def gram(size: int, batch: int, width: float) -> Work:
    """Every reverse pass, exact; compiled by the first call."""
    model, variables = networks.create("vgg11", size, OUTPUTS, width)
    extractor = Extractor(model, variables, networks.smooth_images(batch, size), batch_size=batch)
    return lambda: {path: layer.gradient_gram for path, layer in extractor(variables).items()}


def probe(size: int, batch: int, width: float, outputs: int = OUTPUTS) -> Work:
    """One random cotangent an image."""
    model, variables = networks.create("vgg11", size, outputs, width)
    images = jnp.asarray(networks.smooth_images(batch, size))
    network = open_network(model, variables)
    tapped, pair = tap(network, images), (network.params, network.others)
    output, labels = grams.output_function("logits"), jnp.zeros(batch, jnp.int32)

    @jax.jit
    def step(variables, images, key):
        cotangents = jax.random.rademacher(key, (1, batch, outputs), jnp.float32)
        return grams.gradient_grams(tapped, output, variables, images, labels, cotangents)

    key = jax.random.key(0)
    return lambda: step(pair, images, key)


def peer(size: int, batch: int, width: float) -> Work:
    """Patch Jacobians of one layer after another."""
    torch.set_num_threads(os.cpu_count() or 1)
    model, variables = networks.create("vgg11", size, OUTPUTS, width)
    network, images = (
        torch_networks.convert(model, variables),
        torch_networks.images(networks.smooth_images(batch, size)),
    )
    return lambda: extraction.all_agops(network, images)


def limit(size: int, batch: int, width: float, form: str) -> Work:
    """The bare reverse passes."""
    model, variables = networks.create("vgg11", size, OUTPUTS, width)
    return limits.reverse_passes(model, variables, networks.smooth_images(batch, size), OUTPUTS, form)


def agreement() -> float:
    """The largest relative Frobenius distance between the peer's AGOP of a layer and ours, on a narrow VGG11."""
    model, variables = networks.create("vgg11", 32, 3, 0.0625)
    images = networks.smooth_images(2, 32)
    ours = Extractor(model, variables, images, batch_size=2)(variables)
    network = torch_networks.convert(model, variables)
    theirs = extraction.all_agops(network, torch_networks.images(images))
    return max(distance(theirs[index], ours[f"Conv_{index}"]) for index in range(len(theirs)))


def distance(theirs: torch.Tensor, layer) -> float:
    """Of the peer's AGOP from that of a layer, whose patches are in another order."""
    order = torch_networks.patch_order(layer.kernel.shape)
    ours = np.asarray(layer.agop.dense())[np.ix_(order, order)]
    return float(np.linalg.norm(theirs.numpy() - ours) / np.linalg.norm(ours))

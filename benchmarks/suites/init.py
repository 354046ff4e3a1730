"""All kernels of VGG11's convolutions from stored features: ours from factors, the peer's from k x k CSV files."""

import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import agop_jax
from benchmarks import features, limits, networks, timing
from benchmarks.features import Features
from benchmarks.peers import storage
from benchmarks.run import Options
from benchmarks.tables import Headline, Row, Table, environment
from benchmarks.timing import Work, spread

MODULE = __name__
METHODS = ("agop", "nfm")
PEER = "MultivariateNormal"
LAYERS = "Conv_.*"
PEER_REPEATS, REPEATS = 2, 7


def run(options: Options) -> Table:
    """The table of this suite."""
    torch.set_num_threads(os.cpu_count() or 1)
    facts, width = environment(torch=True), features.QUICK if options.quick else features.FULL
    layers = features.vgg11(width)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        agop_jax.save_features(path / "features", layers)
        for k, layer in features.by_size(layers).items():
            storage.write_arrow(path / f"{k}.csv", features.covariance(layer))
        from_disk = measure_from_disk(layers, width, path)
        peaks = {} if options.quick else peaks_of(layers, width, path)
    notes = [
        "Seconds for the kernels of all 8 convolutions: median and range of interleaved repeats. From disk: "
        "`load_features` and `initialize`; the peers read AGOP^(1/2) from CSV (pandas' C engine), add 1e-6 I and draw "
        "from `torch.distributions.MultivariateNormal`, or by Cholesky and the one matrix product that this class does "
        "without; timed on one layer of each shape and counted as often as there are such. Second draw: features "
        "loaded and factored before; a whole model by `initialize`, the convolutions alone by `kernel_init`. Limit: as "
        "many i.i.d. normal numbers in one jitted call, and one pass over them. Peak memory: of a fresh process above "
        "its imports; the peers' of the largest layer alone.",
    ]
    rows = [*rows_from_disk(from_disk, peaks), *rows_of_draws(measure_draws(layers, width))]
    headline = Headline.of("every kernel of VGG11 drawn from stored AGOP", "s", rows)
    title = "drawing all kernels of VGG11 from stored features"
    return Table("init", title, rows, notes, facts, headline=headline)


def measure_from_disk(layers: Features, width: float, path: Path) -> dict[str, np.ndarray]:
    """{side: seconds of each repeat}; the peer's first call is timed too: nothing of it is compiled."""
    works: dict[Any, Work] = {method: ours(method, width, str(path)) for method in METHODS}
    for work in works.values():
        work()
    counts = features.counted(layers)
    works |= {(draw, shape): peer(*shape, str(path), draw) for shape in counts for draw in storage.DRAWS}
    times = timing.interleave(works, PEER_REPEATS, left_out=0)
    total = lambda draw: np.sum([count * times[draw, shape] for shape, count in counts.items()], axis=0)
    return {method: times[method] for method in METHODS} | {draw: total(draw) for draw in storage.DRAWS}


def measure_draws(layers: Features, width: float) -> dict[str, np.ndarray]:
    """{side: seconds of each repeat}, features at hand."""
    number = sum(layer.kernel.size for layer in features.convolutions(layers))
    works: dict[str, Work] = {"limit": limits.normals(number)}
    for method in METHODS:
        works[f"`initialize`, `{method}`"] = draw(layers, method, width)
        works[f"`kernel_init`, `{method}`"] = kernels(layers, method)
    return timing.interleave(works, REPEATS)


def ours(method: str, width: float, path: str) -> Work:
    """Features from disk, and a model with its convolutions drawn anew."""
    model, variables = networks.create("vgg11", features.SIZE, features.OUTPUTS, width)
    sample = jnp.zeros((1, features.SIZE, features.SIZE, 3))

    def work() -> Any:
        loaded = agop_jax.load_features(Path(path) / "features")
        return agop_jax.initialize(model, variables, sample, loaded, method, key=0, layers=LAYERS)

    return work


def draw(layers: Features, method: str, width: float) -> Work:
    """A model's convolutions drawn anew from the same features again and again."""
    model, variables = networks.create("vgg11", features.SIZE, features.OUTPUTS, width)
    sample = jnp.zeros((1, features.SIZE, features.SIZE, 3))
    return lambda: agop_jax.initialize(model, variables, sample, layers, method, key=0, layers=LAYERS)


def kernels(layers: Features, method: str) -> Work:
    """The convolutions' kernels alone."""
    inits = [(agop_jax.kernel_init(layer, method), layer.kernel.shape) for layer in features.convolutions(layers)]
    keys = jax.random.split(jax.random.key(0), len(inits))
    return lambda: [init(key, shape) for key, (init, shape) in zip(keys, inits, strict=True)]


def peer(k: int, filters: int, path: str, draw: str) -> Work:
    """One layer's covariance from disk, and its filters."""
    torch.set_num_threads(os.cpu_count() or 1)
    return lambda: storage.DRAWS[draw](storage.read(Path(path) / f"{k}.csv"), filters)


def peaks_of(layers: Features, width: float, path: Path) -> dict[str, float | None]:
    """MiB of each side."""
    calls: dict[str, tuple[Any, ...]] = {method: ("ours", method, width, str(path)) for method in METHODS}
    calls |= {draw: ("peer", *max(features.counted(layers)), str(path), draw) for draw in storage.DRAWS}
    return {side: timing.peak(MODULE, *call) for side, call in calls.items()}


def rows_from_disk(times: dict[str, np.ndarray], peaks: dict[str, float | None]) -> list[Row]:
    """Ours, by method, and the peers."""
    rows = []
    for side, seconds in times.items():
        ratio = spread(times[PEER] / seconds)
        cells = {"s": spread(seconds), "x the peer": "1" if side == PEER else ratio, "x the limit's time": ""}
        name = f"agop_jax, `{side}`" if side in METHODS else f"PyTorch peer, {side}"
        rows.append(Row(f"from disk: {name}", {**cells, "peak memory, MiB": peaks.get(side)}))
    return rows


def rows_of_draws(times: dict[str, np.ndarray]) -> list[Row]:
    """Ours, by call and method, and the limit."""
    rows = []
    for side, seconds in times.items():
        ratio = spread(seconds / times["limit"])
        cells = {"s": spread(seconds), "x the peer": "", "x the limit's time": "1" if side == "limit" else ratio}
        rows.append(Row(f"second draw: {side}", {**cells, "peak memory, MiB": ""}))
    return rows

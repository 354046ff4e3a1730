"""Features of VGG11 on disk: our factors through Orbax, and the peer's pairs of k x k CSV files."""

import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import agop_jax
from benchmarks import features, timing
from benchmarks.features import Features
from benchmarks.peers import extraction, storage
from benchmarks.run import Options
from benchmarks.tables import Row, Table, environment
from benchmarks.timing import Work, spread

MODULE = __name__
MEGABYTE = 1e6
PAIR = 2  # matrices a layer: NFM and AGOP^(1/2)
LARGEST = 3 * 3 * 512  # k of VGG11's last convolutions
REPEATS = 2
NAMES = {
    "ours": "agop_jax, all layers",
    "pandas": "peer: CSV pairs, pandas",
    "pyarrow": "CSV pairs, written by pyarrow",
}


class Measured(NamedTuple):
    """{side: seconds to write and to read all layers, one a repeat}, {side: MB}, {side: seconds of the roots}."""

    write: dict[str, np.ndarray]
    read: dict[str, np.ndarray]
    size: dict[str, float]
    root: dict[str, float]


def run(options: Options) -> Table:
    """The table of this suite."""
    torch.set_num_threads(os.cpu_count() or 1)
    facts = environment(torch=True)
    layers = features.vgg11(features.QUICK if options.quick else features.FULL)
    with tempfile.TemporaryDirectory() as directory:
        measured = measure(layers, Path(directory))
    calls = {side: ("one_layer", side) for side in storage.WRITERS} | {"ours": ("all_layers",)}
    peaks = {} if options.quick else {side: timing.peak(MODULE, *call) for side, call in calls.items()}
    notes = [
        "Seconds and 10^6 bytes for all layers of VGG11: median and range of interleaved repeats; the ratio is that "
        "of writing and reading together. Ours: 8 convolutions and the Dense layer, as `save_features` keeps them. "
        "The peer: NFM and AGOP^(1/2) of the convolutions, k x k, float32, read by pandas' C engine; one matrix of "
        "each k is timed and counted as often as there are such. Root: AGOP^(1/2) of every convolution, the peer's by "
        "the full SVD, once. Peak memory: of a fresh process above its imports; for CSV of the largest matrix alone.",
    ]
    return Table("store", "features of all layers of VGG11 on disk", rows(measured, peaks), notes, facts)


def measure(layers: Features, directory: Path) -> Measured:
    """All sides, interleaved; a side's writing comes before its reading."""
    counts = Counter(dict.fromkeys(features.by_size(layers), 0))
    for (k, _), count in features.counted(layers).items():
        counts[k] += PAIR * count
    root = {"ours": own_roots(layers), "pandas": 0.0}
    works: dict[Any, Work] = dict(zip([("ours", "write"), ("ours", "read")], orbax(layers, directory), strict=True))
    for k, layer in features.by_size(layers).items():
        root["pandas"] += counts[k] / PAIR * full_root(layer)
        for side in storage.WRITERS:
            write, read = csv(side, features.covariance(layer), directory / f"{side}_{k}.csv")
            works |= {(side, "write", k): write, (side, "read", k): read}
    works["ours", "write"](), works["ours", "read"]()
    times = timing.interleave(works, REPEATS, left_out=0)
    total = lambda side, step: sum(count * times[side, step, k] for k, count in counts.items())
    size = lambda side: sum(count * bytes_of(directory / f"{side}_{k}.csv") for k, count in counts.items())
    return Measured(
        *(
            {"ours": times["ours", step], **{side: total(side, step) for side in storage.WRITERS}}
            for step in ("write", "read")
        ),
        {"ours": bytes_of(directory / "0"), **{side: size(side) for side in storage.WRITERS}},
        root,
    )


def orbax(layers: Features, directory: Path) -> tuple[Work, Work]:
    """Ours: writes a new directory 0, 1, ... at each call; reads the last."""
    numbers, last = itertools.count(), {}

    def write() -> None:
        last["path"] = directory / str(next(numbers))
        agop_jax.save_features(last["path"], layers)

    return write, lambda: agop_jax.load_features(last["path"])


def csv(side: str, matrix: np.ndarray, path: Path) -> tuple[Work, Work]:
    """One matrix of the peer's."""
    return lambda: storage.WRITERS[side](path, matrix), lambda: storage.read(path)


def bytes_of(path: Path) -> float:
    """Of a file or of all files in a directory, in 10^6 bytes."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / MEGABYTE


def own_roots(layers: Features) -> float:
    """Seconds for a factor of AGOP^(1/2) of every convolution; a first time, which compiles, is left out."""
    works = {"roots": lambda: [layer.factor("sqrt_agop") for layer in features.convolutions(layers)]}
    return float(timing.interleave(works, 1)["roots"][0])


def full_root(layer: agop_jax.LayerFeatures) -> float:
    """Seconds for the peer's AGOP^(1/2) of one convolution."""
    matrix = torch.tensor(np.asarray(layer.agop.dense()))
    return timing.seconds(lambda: extraction.square_root(matrix))


def all_layers() -> Work:
    """For memory: writing and reading ours."""
    layers = features.vgg11(features.FULL)
    return lambda: _in_turn(lambda directory: orbax(layers, directory))


def one_layer(side: str) -> Work:
    """For memory: writing and reading the peer's largest matrix."""
    matrix = np.random.default_rng(0).standard_normal((LARGEST, LARGEST), np.float32)
    return lambda: _in_turn(lambda directory: csv(side, matrix, directory / "matrix.csv"))


def _in_turn(make: Callable[[Path], tuple[Work, Work]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for work in make(Path(directory)):
            work()


def rows(measured: Measured, peaks: dict[str, float | None]) -> list[Row]:
    """The three sides."""
    return [
        Row(
            NAMES[side],
            {
                "write, s": spread(measured.write[side]),
                "read, s": spread(measured.read[side]),
                "x write + read": "1" if side == "ours" else spread(_both(measured, side) / _both(measured, "ours")),
                "size, MB": measured.size[side],
                "x size": "1" if side == "ours" else measured.size[side] / measured.size["ours"],
                "root, s": measured.root.get(side, ""),
                "peak memory, MiB": peaks.get(side),
            },
        )
        for side in NAMES
    ]


def _both(measured: Measured, side: str) -> np.ndarray:
    return measured.write[side] + measured.read[side]

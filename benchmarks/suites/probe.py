"""Many outputs: how far `probe` is from the AGOP of a set of images, and `gram` on fewer images, pass for pass."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import agop_jax
from agop_jax.core.errors import UserError
from agop_jax.data import Pipeline
from agop_jax.features.extraction import Extractor
from benchmarks import networks, pictures, timing
from benchmarks.run import Options
from benchmarks.suites import extract as extract_suite
from benchmarks.tables import Row, Table, environment
from benchmarks.timing import Spread, spread
from benchmarks.truth import Errors, Features, Truth, grams_of

DATA = "AGOP_JAX_DATA"
COTANGENTS = (1, 2, 4)  # an image, on all images
REFERENCE_COTANGENTS = 8  # of each run whose mean is the reference
FRACTIONS = (4, 2)  # also on this part of the images, with one cotangent each


@dataclass(frozen=True)
class Sizes:
    """What is compared.

    Attributes:
      images, size, outputs: of the set and of the network.
      references: random cotangents an image of the reference.
      width: of VGG11.
      batch: images in one compiled step of `probe`.
      gram_images: that the exact AGOP is computed of.
      timed_outputs: of `gram`, when it is timed, and scaled to all.
      repeats: of the timing.
    """

    images: int
    references: int
    size: int = 64
    outputs: int = 1000
    width: float = 1.0
    batch: int = 50
    gram_images: int = 8
    timed_outputs: int = 100
    repeats: int = 3


def run(options: Options) -> Table:
    """The table of this suite, and its figure."""
    torch.set_num_threads(os.cpu_count() or 1)
    facts, sizes = environment(torch=True), _sizes(options)
    images, source = image_set(sizes)
    model, variables = networks.create("vgg11", sizes.size, sizes.outputs, sizes.width)
    truth = Truth(reference(model, variables, images, sizes))
    probed = [*probe_errors(model, variables, images, sizes, truth), truth.spread(sizes.images * REFERENCE_COTANGENTS)]
    exact = gram_errors(model, variables, images, sizes, truth)
    rates = images_per_second(sizes)
    pictures.save_probe(options.out / "probe", probed, exact, truth.own_error())
    details = {"probe": [one._asdict() for one in probed], "gram": [one._asdict() for one in exact]}
    details["reference_error"] = truth.own_error()
    title = (
        f"VGG11 at {sizes.size} x {sizes.size}, {sizes.outputs} outputs, against the AGOP of {sizes.images} images "
        f"({source})"
    )
    rows = [*error_rows(probed, exact, sizes), *rate_rows(rates, sizes)]
    return Table("probe", title, rows, notes(sizes, truth), facts, "probe.png", details)


def _sizes(options: Options) -> Sizes:
    if options.quick:
        return Sizes(16, 16, 32, 8, 1 / 16, 8, 2, 4, 1)
    if options.references % REFERENCE_COTANGENTS or options.references < 2 * REFERENCE_COTANGENTS:
        raise UserError(f"--references: needed a multiple of 8 from 16, got {options.references}")
    if options.images < Sizes.gram_images:
        raise UserError(f"--images: needed {Sizes.gram_images} or more, got {options.images}")
    return Sizes(options.images, options.references)


def notes(sizes: Sizes, truth: Truth) -> list[str]:
    """How the table was made."""
    worst = max(truth.own_error().values())
    return [
        "Relative Frobenius error of AGOP, median and range of the 8 convolutions (of the last layer S is the "
        "identity). `probe` takes one random cotangent each of more and more images, then more of each; `gram` is "
        "exact, on as many images as the passes allow, root mean square over disjoint groups of "
        f"{sizes.gram_images} images. Reference: `probe` with {sizes.references} cotangents an image in "
        f"{len(truth.runs)} runs of other keys; its own error, at most {worst:.1%} as stated, is taken out (squares "
        "subtracted); the last error of `probe` is the spread of these runs. Stated: by `standard_error`. Images a "
        f"second: median and range of interleaved repeats; `gram` is timed on {sizes.timed_outputs} outputs and the "
        f"peer on {extract_suite.OUTPUTS}, and scaled to {sizes.outputs}."
    ]


def image_set(sizes: Sizes) -> tuple[np.ndarray, str]:
    """Normalised images and what they are: CIFAR-10 where it is at hand, else smooth noise."""
    path = Path(os.environ.get(DATA, "")) / "cifar10.npz"
    if not (os.environ.get(DATA) and path.exists()):
        return networks.smooth_images(sizes.images, sizes.size), "smooth noise"
    with np.load(path, allow_pickle=False) as arrays:
        pixels = arrays["test_images"][: sizes.images]
    mean, std = (
        tuple(map(float, moment)) for moment in ((pixels / 255).mean((0, 1, 2)), (pixels / 255).std((0, 1, 2)))
    )
    pipeline = Pipeline(mean, std, resize=sizes.size)
    return np.asarray(pipeline(jnp.asarray(pixels))), "CIFAR-10, resized"


def _probe(model: Any, variables: Any, images: np.ndarray, sizes: Sizes, cotangents: int, seed: int) -> Features:
    options = {"batch_size": sizes.batch, "num_probes": cotangents, "key": jax.random.key(seed), "progress": False}
    return agop_jax.extract(model, variables, images, method="probe", **options)


def reference(model: Any, variables: Any, images: np.ndarray, sizes: Sizes) -> list[Features]:
    """Independent runs over all images."""
    runs = range(sizes.references // REFERENCE_COTANGENTS)
    return [_probe(model, variables, images, sizes, REFERENCE_COTANGENTS, 100 + run) for run in runs]


def probe_errors(model: Any, variables: Any, images: np.ndarray, sizes: Sizes, truth: Truth) -> list[Errors]:
    """Fewer images with one cotangent each, then all of them with more and more."""
    plan = [(len(images) // fraction, 1) for fraction in FRACTIONS] + [(len(images), m) for m in COTANGENTS]
    errors = []
    for seed, (number, cotangents) in enumerate(plan):
        features = _probe(model, variables, images[:number], sizes, cotangents, seed)
        stated = truth.stated(features) if cotangents > 1 else None
        errors.append(Errors(number * cotangents, truth.errors(grams_of(features)), stated))
    return errors


def gram_errors(model: Any, variables: Any, images: np.ndarray, sizes: Sizes, truth: Truth) -> list[Errors]:
    """Exact on 1, 2, 4, ... images: root mean square over disjoint groups of the same few images."""
    extractor = Extractor(model, variables, images[: sizes.gram_images], batch_size=1)
    single = [grams_of(part) for part in extractor.batches(variables)]
    errors, number = [], 1
    while number <= len(single):
        groups = [single[start : start + number] for start in range(0, len(single), number)]
        means = [{path: np.mean([one[path] for one in group], axis=0) for path in truth.mean} for group in groups]
        parts = [truth.errors(mean) for mean in means]
        total = {path: math.sqrt(np.mean([one[path] ** 2 for one in parts])) for path in truth.mean}
        errors.append(Errors(number * sizes.outputs, total))
        number *= 2
    return errors


def images_per_second(sizes: Sizes) -> dict[str, np.ndarray]:
    """`probe` with one cotangent, `gram` and the peer scaled to all outputs."""
    model, variables = networks.create("vgg11", sizes.size, sizes.outputs, sizes.width)
    images = networks.smooth_images(sizes.gram_images, sizes.size)
    outputs = list(range(sizes.timed_outputs))
    extractor = Extractor(model, variables, images, batch_size=len(images), outputs=outputs)
    works = {
        "probe": extract_suite.probe(sizes.size, sizes.gram_images, sizes.width, sizes.outputs),
        "gram": lambda: [layer.gradient_gram for layer in extractor(variables).values()],
        "peer": extract_suite.peer(sizes.size, 1, sizes.width),
    }
    times = timing.interleave(works, sizes.repeats)
    scaled = {
        "probe": 1,
        "gram": sizes.outputs / sizes.timed_outputs,
        "peer": sizes.outputs / extract_suite.OUTPUTS * sizes.gram_images,
    }
    return {name: sizes.gram_images / (taken * scaled[name]) for name, taken in times.items()}


def error_rows(probed: list[Errors], exact: list[Errors], sizes: Sizes) -> list[Row]:
    """One row a number of passes."""
    grams = {one.passes: one.measured for one in exact}
    ratios = {one.passes: _ratios(one.measured, grams.get(one.passes)) for one in probed}
    stated = {
        one.passes: [one.stated[path] / one.measured[path] for path in one.measured] for one in probed if one.stated
    }
    rows = []
    for one in probed:
        number = min(one.passes, sizes.images)
        cells = {
            "`probe`, images x cotangents": f"{number} x {one.passes // number}",
            "error of `probe`": _percent(one.measured.values()),
            "error of `gram`": _percent(grams[one.passes].values()) if one.passes in grams else "not possible",
            "`gram` / `probe`, by layer": Spread(tuple(values)) if (values := ratios[one.passes]) else "",
            "stated / found, by layer": Spread(tuple(stated[one.passes])) if one.passes in stated else "",
        }
        rows.append(Row(f"{one.passes} reverse passes", cells))
    return rows


def _ratios(measured: dict[str, float], exact: dict[str, float] | None) -> list[float]:
    return [exact[path] / measured[path] for path in measured] if exact else []


def _percent(values: Any) -> str:
    values = [100 * value for value in values]
    return f"{np.median(values):.2g} % ({min(values):.2g} to {max(values):.2g})"


def rate_rows(rates: dict[str, np.ndarray], sizes: Sizes) -> list[Row]:
    """Images a second of the three sides."""
    names = {"probe": "`probe`, one cotangent", "gram": "`gram`", "peer": "PyTorch peer"}
    ratio = {side: spread(rates["probe"] / rates[side]) for side in ("gram", "peer")}
    return [
        Row(
            f"{sizes.outputs} outputs: {name}",
            {
                "images / s": spread(rates[side]),
                "`probe` is faster by": ratio.get(side, ""),
            },
        )
        for side, name in names.items()
    ]

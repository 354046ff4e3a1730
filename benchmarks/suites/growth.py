"""How the time of an extraction grows with images, outputs, width, image size and layers: slopes on log-log axes."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agop_jax import models
from agop_jax.features.extraction import Extractor
from agop_jax.models.vgg import STAGES
from benchmarks import costs, networks, pictures, timing
from benchmarks.run import Options
from benchmarks.tables import Row, Table, environment
from benchmarks.timing import Spread, Work, spread


@dataclass(frozen=True)
class Point:
    """One extraction by `gram`: VGG11 to VGG19 at some width, all layers."""

    images: int = 16
    outputs: int = 10
    width: float = 0.25
    size: int = 32
    depth: int = 11
    batch: int = 16

    @property
    def layers(self) -> int:
        """Convolutions."""
        return sum(STAGES[self.depth])


BASE, QUICK = Point(), Point(2, 2, 1 / 16, 32, batch=2)
AXES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "images": ("images", (16, 32, 64, 128)),
    "outputs": ("outputs", (10, 100, 1000)),
    "width": ("width", (0.125, 0.25, 0.5, 1.0)),
    "side of the images": ("size", (32, 64, 128)),
    "convolutions": ("depth", (11, 13, 16, 19)),
}
QUICK_AXES = {"images": ("images", (2, 4)), "convolutions": ("depth", (11, 13))}
REPEATS = 3


def run(options: Options) -> Table:
    """The table of this suite, and its figure."""
    facts = environment()
    base, axes, repeats = (QUICK, QUICK_AXES, 1) if options.quick else (BASE, AXES, REPEATS)
    curves = {name: measure(base, field, values, repeats) for name, (field, values) in axes.items()}
    fits = {name: (values, [one.median for one in times], slope) for name, (values, times, slope, _) in curves.items()}
    pictures.save_growth(options.out / "growth", fits)
    rows = [
        Row(
            name,
            {
                "from": values[0],
                "to": values[-1],
                "s, at the first": times[0],
                "s, at the last": times[-1],
                "slope": slope,
                "slope of the operations": counted,
            },
        )
        for name, (values, times, slope, counted) in curves.items()
    ]
    notes = [
        f"Seconds of `gram` on all layers, one thing changed at a time from {base.images} images of "
        f"{base.size} x {base.size}, {base.outputs} outputs and VGG11 at {base.width:g} of its width, compilation left "
        "out: median and range of interleaved repeats. Slope: of log time against log size, over all points by least "
        "squares; 1 is proportional. The operations are counted (`benchmarks/costs.py`). 'convolutions' "
        "are VGG11, 13, 16 and 19, whose new layers differ in cost."
    ]
    details = {name: [list(one.values) for one in times] for name, (_, times, _, _) in curves.items()}
    return Table("growth", "how the time of an extraction grows", rows, notes, facts, "growth.png", details)


def measure(
    base: Point, field: str, values: tuple[Any, ...], repeats: int
) -> tuple[list[Any], list[Spread], float, float]:
    """What grows, seconds at each point, their slope and that of the operations counted."""
    points = [replace(base, **{field: value}) for value in values]
    times = timing.interleave({point: extraction(point) for point in points}, repeats)
    grown = [point.layers if field == "depth" else getattr(point, field) for point in points]
    medians = [np.median(times[point]) for point in points]
    slope = lambda values: float(np.polyfit(np.log(grown), np.log(values), 1)[0])
    counted = [operations(point) for point in points]
    return grown, [spread(times[point]) for point in points], slope(medians), slope(counted)


def operations(point: Point) -> int:
    """Of the extraction."""
    model = models.create(f"vgg{point.depth}", point.outputs, point.width)
    return costs.count(model, point.size).extraction(point.images, point.outputs)


@functools.cache
def extraction(point: Point) -> Work:
    """All layers by `gram`, compiled by the first call; the base of all axes is made once."""
    model, variables = networks.create(f"vgg{point.depth}", point.size, point.outputs, point.width)
    extractor = Extractor(model, variables, networks.smooth_images(point.images, point.size), batch_size=point.batch)
    return lambda: [layer.gradient_gram for layer in extractor(variables).values()]

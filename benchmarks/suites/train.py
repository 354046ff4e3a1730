"""Training, in images a second: our step and loop, the peer's in PyTorch, and the bare jitted step."""

import os
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch.utils.data import DataLoader

from agop_jax.data import Pipeline, Split, batch_indices
from agop_jax.training import Settings, Trainer
from agop_jax.training.device_data import on_devices
from benchmarks import limits, networks, timing
from benchmarks.peers import networks as torch_networks
from benchmarks.peers import training
from benchmarks.run import Options
from benchmarks.tables import Headline, Row, Table, environment
from benchmarks.timing import Work, spread

MODULE = __name__
RATE = 0.01
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SIZE, RESIZED = 32, 224  # sides of the stored images, and of what networks see end to end
WORKERS = (0, 2)  # of the peer's DataLoader; the better counts


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
      name, fields: of `agop_jax.models`.
      batch: images a step.
      steps: of one timed call.
      repeats: interleaved.
      resize: side that images are resized to, end to end; 0 for the step alone.
    """

    name: str
    batch: int
    steps: int
    repeats: int
    resize: int = 0
    fields: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("vgg11", 64, 2, 5),
    Case("small_cnn", 64, 10, 5),
    Case("resnet20", 64, 2, 5),
    Case("small_cnn", 16, 4, 3, RESIZED),
    Case("vgg11", 16, 1, 2, RESIZED),
)
QUICK = (
    Case("vgg11", 4, 1, 1, fields={"width": 0.0625}),
    Case("small_cnn", 4, 1, 1, 40, {"features": (4, 8)}),
)


def run(options: Options) -> Table:
    """The table of this suite."""
    torch.set_num_threads(os.cpu_count() or 1)
    facts, rows = environment(torch=True), []
    for case in QUICK if options.quick else CASES:
        measure = end_to_end if case.resize else steps
        rows += measure(case, options.quick)
    notes = [
        f"Images a second: median and range of interleaved repeats. Float32, SGD with momentum {training.MOMENTUM} and "
        f"weight decay {training.WEIGHT_DECAY}. Step: ours from uint8 images on the device (gather, normalise, "
        "update), the peer's and the bare jitted step from normalised floats. End to end: 32 x 32 uint8 images, "
        f"resized to {RESIZED} x {RESIZED} inside jit by us, by Pillow in a DataLoader by the peer. The peer counts in "
        "the better of its layouts (channels first, channels last) and, end to end, numbers of workers (0, 2). Peak "
        "memory: of a fresh process above its imports, compilation included."
    ]
    headline = Headline.of(f"training step, VGG11 at {SIZE} x {SIZE}", "images / s", rows)
    title = "training of VGG11, a small CNN (32-64-128-128) and ResNet-20"
    return Table("train", title, rows, notes, facts, headline=headline)


def steps(case: Case, quick: bool) -> list[Row]:
    """The step on data that is there."""
    calls = {"ours": ("ours", *_arguments(case)), "bare": ("bare", *_arguments(case))}
    calls |= {layout: ("peer", *_arguments(case), layout) for layout in training.LAYOUTS}
    times = timing.interleave({name: _make(call) for name, call in calls.items()}, case.repeats)
    return _rows(case, calls, times, best_of(times, training.LAYOUTS), quick)


def end_to_end(case: Case, quick: bool) -> list[Row]:
    """Loops over uint8 images of 32 x 32, resizing included; the peer's layout is chosen by its step at this size."""
    layout = timing.fastest({name: peer_at(case, name) for name in training.LAYOUTS})
    calls = {"ours": ("ours", *_arguments(case))}
    calls |= {
        f"{layout}, {workers} workers": ("peer_loop", *_arguments(case), layout, workers)
        for workers in (WORKERS[:1] if quick else WORKERS)
    }
    times = timing.interleave({name: _make(call) for name, call in calls.items()}, case.repeats)
    return _rows(case, calls, times, best_of(times, [name for name in calls if name != "ours"]), quick)


def best_of(times: dict[str, np.ndarray], names: Any) -> str:
    """The side with the least median time."""
    return min(names, key=lambda name: np.median(times[name]))


def _arguments(case: Case) -> tuple[Any, ...]:
    return case.name, case.fields, case.batch, case.steps, case.resize


def _make(call: tuple[Any, ...]) -> Work:
    return globals()[call[0]](*call[1:])


def _rows(case: Case, calls: dict[str, Any], times: dict[str, np.ndarray], peer: str, quick: bool) -> list[Row]:
    kept = [name for name in ("ours", "bare") if name in times] + [peer]
    rates = {name: case.batch * case.steps / times[name] for name in kept}
    peaks = {} if quick else {name: timing.peak(MODULE, *calls[name]) for name in kept}
    against = {name: spread(rate / rates[peer]) for name, rate in rates.items()}
    titles = {"ours": "agop_jax", "bare": "limit (bare step)", peer: f"PyTorch peer ({peer.replace('_', ' ')})"}
    what = f"end to end at {case.resize} x {case.resize}" if case.resize else f"step at {SIZE} x {SIZE}"
    return [
        Row(
            f"{case.name}, {what}, batch {case.batch}: {titles[name]}",
            {
                "images / s": spread(rates[name]),
                "x the peer": "1" if name == peer else against[name],
                "x the limit's time": spread(rates["bare"] / rates["ours"])
                if name == "ours" and "bare" in rates
                else "",
                "peak memory, MiB": peaks.get(name),
            },
        )
        for name in kept
    ]


def ours(name: str, fields: dict[str, Any], batch: int, count: int, resize: int) -> Work:
    """`count` steps of `agop_jax.training.Trainer` on uint8 images, with the loop's own choice of indices."""
    model, variables = networks.create(name, SIZE, **fields)
    images, labels = networks.uint8_images(4 * batch, SIZE)
    momentum = {"momentum": training.MOMENTUM, "weight_decay": training.WEIGHT_DECAY}
    settings = Settings(steps=10**6, batch_size=batch, schedule="constant", **momentum)
    trainer = Trainer(model, Pipeline(MEAN, STD, resize=resize), settings)
    data = on_devices(Split(images, labels), trainer.mesh)
    run, chosen = {"state": trainer.start(variables)}, np.arange(len(labels))

    def work() -> Any:
        for step in range(count):
            indices = batch_indices(chosen, batch, step, 0)
            run["state"] = trainer.step(run["state"], data, indices, RATE, 0)
        return run["state"]

    return work


def bare(name: str, fields: dict[str, Any], batch: int, count: int, resize: int) -> Work:
    """The same number of bare jitted steps on normalised images on the device."""
    model, variables = networks.create(name, SIZE, **fields)
    images, labels = (jnp.asarray(array) for array in normalised(batch, resize or SIZE))
    step = limits.training_step(model, RATE, training.MOMENTUM, training.WEIGHT_DECAY)
    run = {"state": limits.training_start(variables)}

    def work() -> Any:
        for _ in range(count):
            run["state"], loss = step(run["state"], images, labels)
        return loss

    return work


def peer(name: str, fields: dict[str, Any], batch: int, count: int, resize: int, layout: str) -> Work:
    """The same number of PyTorch steps on normalised images."""
    trainer = _peer_trainer(name, fields, layout)
    pixels, numbers = normalised(batch, resize or SIZE)
    images, labels = torch_networks.images(pixels), torch.tensor(numbers)

    def work() -> Any:
        for _ in range(count):
            loss = trainer.step(images, labels)
        return loss

    return work


def peer_at(case: Case, layout: str) -> Work:
    """One PyTorch step at the size that networks see."""
    return peer(case.name, case.fields, case.batch, 1, case.resize, layout)


def peer_loop(
    name: str, fields: dict[str, Any], batch: int, count: int, resize: int, layout: str, workers: int
) -> Work:
    """An epoch of `count` batches from a DataLoader whose workers stay."""
    trainer = _peer_trainer(name, fields, layout)
    images, labels = networks.uint8_images(count * batch, SIZE)
    dataset = training.Resized(images, labels, torch.tensor(MEAN), torch.tensor(STD), resize)
    apart = {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
    loader = DataLoader(dataset, batch, shuffle=True, num_workers=workers, drop_last=True, **apart)
    return lambda: training.epoch(trainer, loader)


def _peer_trainer(name: str, fields: dict[str, Any], layout: str) -> training.Trainer:
    torch.set_num_threads(os.cpu_count() or 1)
    model, variables = networks.create(name, SIZE, **fields)
    return training.Trainer(torch_networks.convert(model, variables), RATE, layout)


def normalised(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images as networks see them, with labels."""
    images, labels = networks.uint8_images(batch, size)
    return ((images / 255 - MEAN) / STD).astype(np.float32), labels

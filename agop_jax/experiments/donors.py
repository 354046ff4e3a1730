"""The donor: trained here, taken from elsewhere, or known by its stored features alone."""

# pyright: reportArgumentType=false

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from agop_jax import models
from agop_jax.core import arrays, devices, files, hosts, trees
from agop_jax.core.compilation import GIB, free_bytes
from agop_jax.core.errors import UserError
from agop_jax.core.progress import bar
from agop_jax.core.types import Array, Variables
from agop_jax.data import AnySplit, Dataset, Pipeline, Split, subset
from agop_jax.experiments import machines
from agop_jax.experiments.keys import Role, key, stream
from agop_jax.experiments.settings import Config
from agop_jax.experiments.workdir import CHECKPOINTS, DONOR, FEATURES
from agop_jax.features import store
from agop_jax.features.extraction import extract
from agop_jax.features.layer import LayerFeatures
from agop_jax.initializers.arguments import require_filters
from agop_jax.initializers.model import initialize
from agop_jax.initializers.registry import get_method
from agop_jax.models.pretrained import Pretrained, load_pretrained, save_pretrained
from agop_jax.training.curves import write_curves
from agop_jax.training.device_data import DeviceData, on_devices
from agop_jax.training.loop import Run
from agop_jax.training.resumable import train_resumable
from agop_jax.training.trainer import Trainer


@dataclass(frozen=True)
class DonorNetwork:
    """A donor with its features, trained or not; its weights may be unknown (None) where its features were stored."""

    model: nn.Module
    variables: Variables | None
    pipeline: Pipeline
    features: Mapping[str, LayerFeatures]

    def for_recipients(self, layers: str, network: bool) -> "DonorNetwork":
        """What recipients draw on: the features of the selected layers, and the weights if some init runs the donor.

        VGG11 with its classic head takes 0.5 GB of either.
        """
        features = {path: self.features[path] for path in trees.select(self.features, layers)}
        return dataclasses.replace(self, features=features, variables=self.variables if network else None)


def pipeline_for(config: Config, dataset: Dataset, resize: int = 0) -> Pipeline:
    """The pipeline from stored images to what a network sees, by `config.data`; a `resize` above 0 replaces its own."""
    data = config.data
    return Pipeline.of(dataset, rgb=data.rgb, pad=data.pad, flip=data.flip, resize=resize or data.resize)


def donor_labels(config: Config, dataset: Dataset) -> Dataset:
    """The donor's data; with `config.donor.random_labels` its training labels are in random order.

    Zhang et al. 2017 (*Understanding deep learning requires rethinking generalization*). Validation and test keep their
    labels, on which such a donor is at chance.
    """
    if not config.donor.random_labels:
        return dataset
    order = np.random.default_rng(stream(Role.DONOR_LABELS, config.seed)).permutation(len(dataset.train.labels))
    labels = dataset.train.labels[order]
    train = dataset.train
    train = train._replace(labels=labels) if isinstance(train, Split) else dataclasses.replace(train, labels=labels)
    return dataclasses.replace(dataset, train=train)


def load_donor(config: Config, dataset: Dataset, path: Path, environment: str = "") -> Pretrained:
    """The donor that the directory keeps; if there is none, it is trained or taken from its source first.

    Args:
      config: of the experiment.
      dataset: the donor's.
      path: the work directory.
      environment: key of this call's environment, which `donor.json` states.
    """
    if hosts.exists(path / DONOR):
        logging.info("donor: read from %s", path / DONOR)
    elif config.donor.source == machines.SOURCE:
        draw_donor(config, dataset, path, environment)
    elif config.donor.source:
        keep_source(config, dataset, path, environment)
    else:
        train_donor(config, dataset, path, environment)
    return load_pretrained(config.model.name, f"orbax:{path / DONOR}")


def keep_source(config: Config, dataset: Dataset, path: Path, environment: str) -> None:
    """Copies a donor that was trained elsewhere; its accuracy is known where its classes may be those of the data."""
    source, network = config.donor, config.model
    classes = dataset.num_classes if config.features.outputs == "loss" else None  # the loss needs labels
    donor = load_pretrained(
        network.name, source.source, num_classes=classes, mean=source.mean, std=source.std, **network.fields
    )
    summary: dict[str, Any] = {"source": source.source, "environment": environment}
    if donor.model.num_classes == dataset.num_classes:
        trainer = Trainer(donor.model, donor_pipeline(config, dataset, donor), source.train)
        variables = devices.replicate(donor.variables, trainer.mesh)
        test_loss, test_accuracy = trainer.evaluate(variables, on_devices(dataset.test, trainer.mesh))
        summary |= {"test_accuracy": test_accuracy, "test_loss": test_loss}
    files.atomic_write_text(path / "donor.json", json.dumps(summary, indent=1))
    save_pretrained(path / DONOR, donor, summary)


def draw_donor(config: Config, dataset: Dataset, path: Path, environment: str) -> None:
    """Draws every convolution from recursive feature machines, whose M stand in the place of the AGOP."""
    start, pipeline = untrained_donor(config, dataset), pipeline_for(config, dataset, config.donor.resize)
    own_key, indices = key(Role.DONOR_FILTERS, config.seed), np.arange(len(dataset.train.labels))
    network = start.model, start.variables, pipeline
    features, seconds = machines.drawn_features(config.rfm, *network, dataset.train, indices, own_key, ".*")
    sample = pipeline(jnp.asarray(dataset.train.take(indices[:1]).load().images))
    pattern = "|".join(map(re.escape, features))
    variables = initialize(start.model, start.variables, sample, features, "convrfm", key=own_key, layers=pattern)
    summary = {"source": machines.SOURCE, "seconds": round(seconds, 1), "environment": environment}
    files.atomic_write_text(path / "donor.json", json.dumps(summary, indent=1))
    about = {"model": models.describe(start.model), "data": dataset.name, "method": "rfm"}
    about["num_images"] = min(config.rfm.num_images, len(indices))
    if not hosts.exists(path / FEATURES):
        store.save_features(path / FEATURES, features, json.loads(json.dumps(about)))
    save_pretrained(path / DONOR, start._replace(variables=jax.device_get(variables)), summary)


def train_donor(config: Config, dataset: Dataset, path: Path, environment: str) -> None:
    """Trains the donor on its data."""
    start = untrained_donor(config, dataset)
    trainer = Trainer(start.model, pipeline_for(config, dataset, config.donor.resize), config.donor.train)
    data = DeviceData.of(dataset, trainer.mesh)
    done = _trained(config, trainer, start.variables, data, dataset.train, path / CHECKPOINTS / DONOR)
    if done.diverged:
        raise UserError(
            f"the donor's training diverged by step {done.history[-1]['step']}: lower config.donor.learning_rate "
            f"(now {config.donor.learning_rate:g})"
        )
    test_loss, test_accuracy = trainer.evaluate(done.state.variables, data.test)
    summary = {"test_accuracy": test_accuracy, "test_loss": test_loss, **done.history[-1], "environment": environment}
    write_curves(path, DONOR, done.history)
    files.atomic_write_text(path / "donor.json", json.dumps(summary, indent=1))
    save_pretrained(path / DONOR, start._replace(variables=jax.device_get(done.state.variables)), summary)


def _trained(
    config: Config, trainer: Trainer, variables: Variables, data: DeviceData, split: AnySplit, directory: Path
) -> Run:
    indices, rate = subset(split, None, stream(Role.DONOR_IMAGES, config.seed)), config.donor.learning_rate
    seed = stream(Role.DONOR_TRAINING, config.seed)
    with bar(desc="donor", total=config.donor.train.steps, brief=False) as steps:
        on_step = lambda run, step: steps.update(step - steps.n)
        return train_resumable(
            trainer, trainer.start(variables), data, indices, rate, seed, directory, on_step, config.save_every
        )


def untrained_donor(config: Config, dataset: Dataset, model: nn.Module | None = None) -> Pretrained:
    """A donor before its training, of this network or of the config's."""
    model = model or config.model.network(dataset.num_classes)
    pipeline = pipeline_for(config, dataset, config.donor.resize)
    sample = pipeline(jnp.asarray(dataset.train.take(np.arange(1)).load().images))
    own_key, draw_key = jax.random.split(key(Role.DONOR_START, config.seed))
    variables = models.own_variables(model, own_key, sample)
    variables = initialize(model, variables, sample, None, config.donor.init, key=draw_key)
    return Pretrained(model, variables, pipeline.mean, pipeline.std)


def donor_pipeline(config: Config, dataset: Dataset, donor: Pretrained) -> Pipeline:
    """What shows the data to the donor: with the constants it was trained with."""
    pipeline = pipeline_for(config, dataset, config.donor.resize)
    channels, present = len(donor.mean), len(pipeline.mean)
    if channels != present:
        hint = ": set config.data.rgb=True" if (channels, present) == (3, 1) else ""
        raise UserError(f"the donor takes {channels} channels, the images of {dataset.name!r} have {present}{hint}")
    return dataclasses.replace(pipeline, mean=donor.mean, std=donor.std)


def donor_network(config: Config, dataset: Dataset, donor: Pretrained, path: Path) -> DonorNetwork:
    """A donor with its features, which are extracted, or read from `path` if they are there."""
    pipeline = donor_pipeline(config, dataset, donor)
    if not hosts.exists(path):
        # Asked before the extraction, which may take long. Features hold the kernels, and Gram matrices that are
        # mostly smaller.
        arrays.require_space(path.parent, donor.variables)
        section = config.features
        images = feature_images(config, dataset)
        options = {"method": section.method, "outputs": section.outputs, "batch_size": section.batch_size}
        part, parts = hosts.part()
        mine = images.take(np.arange(part, len(images.labels), parts))
        batches = network_batches(pipeline, mine, section.batch_size)
        probes = key(Role.FEATURE_PROBES, config.seed)
        features = extract(donor.model, donor.variables, batches, key=probes, **options)
        about = {"model": models.describe(donor.model), "data": dataset.name, "num_images": len(images.labels)}
        about |= {**options, "pipeline": dataclasses.asdict(pipeline)}
        store.save_features(path, features, json.loads(json.dumps(about)))
    return DonorNetwork(donor.model, donor.variables, pipeline, store.load_features(path))


def stored_donor(config: Config, dataset: Dataset) -> DonorNetwork:
    """Features that were extracted elsewhere, of a network that is not here."""
    features = store.load_features(Path(config.features.source).expanduser())
    for init in config.recipients.inits:
        require_filters(get_method(init), features)
    model = config.model.network(dataset.num_classes)
    return DonorNetwork(model, None, pipeline_for(config, dataset, config.donor.resize), features)


def feature_images(config: Config, dataset: Dataset) -> AnySplit:
    """The images that features are extracted from."""
    return dataset.train.take(np.arange(min(config.features.num_images, len(dataset.train.labels))))


def network_batches(pipeline: Pipeline, split: AnySplit, batch_size: int) -> Iterator[tuple[Array, np.ndarray]]:
    """Images as the network sees them, a batch at a time: at 224 x 224 a data set would fill the memory."""
    for start in range(0, len(split.labels), batch_size):
        images, labels = split.take(np.arange(start, min(start + batch_size, len(split.labels)))).load()
        yield pipeline(jnp.asarray(images)), labels


def require_room(features: Mapping[str, LayerFeatures], layers: str) -> None:
    """Before anything is drawn: whether the kernels that a regular expression selects can be factorised here.

    By `decompositions`: the k x c matrix and its singular vectors in float64, the latter in float32 as well, and some
    5 c^2 numbers in float64 for the product, its eigenvectors and LAPACK's own use.
    """
    free = free_bytes()
    for path in trees.select(features, layers):
        kernel = features[path].kernel
        c = kernel.shape[-1]
        k = kernel.size // c
        needed = 8 * (2 * k * c + 5 * min(k, c) ** 2) + kernel.dtype.itemsize * k * c
        if needed > free:
            raise UserError(
                f"layer {path!r}: factorising its {k} x {c} kernel needs {needed / GIB:.2f} GiB of memory, "
                f"{free / GIB:.2f} GiB are free: leave it out of config.recipients.layers"
            )


def spectra(features: Mapping[str, LayerFeatures], layers: str) -> list[dict[str, Any]]:
    """Eigenvalues of the NFM and AGOP of the selected layers, largest first; groups come one after another.

    Of a hidden layer of VGG's classic head (25,088 x 4,096), which nobody draws, they would take minutes.
    """
    rows = []
    for path in trees.select(features, layers):
        layer = features[path]
        for name in layer.matrices or ("nfm", "agop"):
            values = np.sort(np.ravel(getattr(layer, name).values))[::-1]
            rows += [{"layer": path, "matrix": name, "index": i, "eigenvalue": float(v)} for i, v in enumerate(values)]
    return rows

"""The donor: trained here, taken from elsewhere, or known by its stored features alone."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from agop_jax import models
from agop_jax.core import devices, files, hosts, trees
from agop_jax.core.compilation import GIB, free_bytes
from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Variables
from agop_jax.data import AnySplit, Dataset, Pipeline, subset
from agop_jax.experiments.workdir import CHECKPOINTS, DONOR
from agop_jax.features import store
from agop_jax.features.extraction import extract
from agop_jax.features.layer import LayerFeatures
from agop_jax.initializers.model import initialize
from agop_jax.models.pretrained import Pretrained, load_pretrained, save_pretrained
from agop_jax.training.curves import write_curves
from agop_jax.training.device_data import DeviceData, on_devices
from agop_jax.training.loop import Run, Settings, Trainer
from agop_jax.training.resumable import train_resumable


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


def pipeline_for(config: Any, dataset: Dataset, resize: int = 0) -> Pipeline:
    """From stored images to what a network sees, by `config.data`; `resize` comes before that of the config."""
    wanted = config.data
    return Pipeline.of(dataset, rgb=wanted.rgb, pad=wanted.pad, flip=wanted.flip, resize=resize or wanted.resize)


def load_donor(config: Any, dataset: Dataset, path: Path) -> Pretrained:
    """The donor that the directory keeps; if there is none, it is trained or taken from its source first."""
    if hosts.exists(path / DONOR):
        logging.info("donor: read from %s", path / DONOR)
    elif config.donor.source:
        keep_source(config, dataset, path)
    else:
        train_donor(config, dataset, path)
    return load_pretrained(config.model.name, f"orbax:{path / DONOR}")


def keep_source(config: Any, dataset: Dataset, path: Path) -> None:
    """Copies a donor that was trained elsewhere; its accuracy is known where its classes may be those of the data."""
    wanted, fields = config.donor, config.model.to_dict()
    classes = dataset.num_classes if config.features.outputs == "loss" else None  # the loss needs labels
    donor = load_pretrained(
        fields.pop("name"), wanted.source, num_classes=classes, mean=wanted.mean, std=wanted.std, **fields
    )
    summary: dict[str, Any] = {"source": wanted.source}
    if donor.model.num_classes == dataset.num_classes:
        trainer = Trainer(donor.model, donor_pipeline(config, dataset, donor), Settings(**wanted.train))
        variables = devices.replicate(donor.variables, trainer.mesh)
        test_loss, test_accuracy = trainer.evaluate(variables, on_devices(dataset.test, trainer.mesh))
        summary |= {"test_accuracy": test_accuracy, "test_loss": test_loss}
    files.atomic_write_text(path / "donor.json", json.dumps(summary, indent=1))
    save_pretrained(path / DONOR, donor, summary)


def train_donor(config: Any, dataset: Dataset, path: Path) -> None:
    """Trains the donor on its data."""
    start = untrained_donor(config, dataset)
    trainer = Trainer(start.model, pipeline_for(config, dataset, config.donor.resize), Settings(**config.donor.train))
    data = DeviceData.of(dataset, trainer.mesh)
    done = _trained(config, trainer, start.variables, data, dataset.train, path / CHECKPOINTS / DONOR)
    if done.diverged:
        raise UserError(
            f"the donor's training diverged by step {done.history[-1]['step']}: lower config.donor.learning_rate "
            f"(now {config.donor.learning_rate:g})"
        )
    test_loss, test_accuracy = trainer.evaluate(done.state.variables, data.test)
    summary = {"test_accuracy": test_accuracy, "test_loss": test_loss, **done.history[-1]}
    write_curves(path, DONOR, done.history)
    files.atomic_write_text(path / "donor.json", json.dumps(summary, indent=1))
    save_pretrained(path / DONOR, start._replace(variables=jax.device_get(done.state.variables)), summary)


def _trained(
    config: Any, trainer: Trainer, variables: Variables, data: DeviceData, split: AnySplit, directory: Path
) -> Run:
    indices, rate = subset(split, None, config.seed), config.donor.learning_rate
    with tqdm(
        total=config.donor.train.steps, unit="step", desc="donor", dynamic_ncols=True, disable=not hosts.is_first()
    ) as bar:
        on_step = lambda run, step: bar.update(step - bar.n)
        return train_resumable(
            trainer, trainer.start(variables), data, indices, rate, config.seed, directory, on_step, config.save_every
        )


def untrained_donor(config: Any, dataset: Dataset, model: nn.Module | None = None) -> Pretrained:
    """A donor before its training, of this network or of the config's."""
    model = model or _model(config, dataset)
    pipeline = pipeline_for(config, dataset, config.donor.resize)
    sample = pipeline(jnp.asarray(dataset.train.take(np.arange(1)).load().images))
    own_key, draw_key = jax.random.split(jax.random.key(config.seed))
    variables = models.own_variables(model, own_key, sample)
    variables = initialize(model, variables, sample, None, config.donor.init, key=draw_key)
    return Pretrained(model, variables, pipeline.mean, pipeline.std)


def donor_pipeline(config: Any, dataset: Dataset, donor: Pretrained) -> Pipeline:
    """What shows the data to the donor: with the constants it was trained with."""
    pipeline = pipeline_for(config, dataset, config.donor.resize)
    wanted, found = len(donor.mean), len(pipeline.mean)
    if wanted != found:
        hint = ": set config.data.rgb=True" if (wanted, found) == (3, 1) else ""
        raise UserError(f"the donor takes {wanted} channels, the images of {dataset.name!r} have {found}{hint}")
    return dataclasses.replace(pipeline, mean=donor.mean, std=donor.std)


def donor_network(config: Any, dataset: Dataset, donor: Pretrained, path: Path) -> DonorNetwork:
    """A donor with its features, which are extracted, or read from `path` if they are there."""
    pipeline = donor_pipeline(config, dataset, donor)
    if not hosts.exists(path):
        wanted = config.features
        images = feature_images(config, dataset)
        options = {"method": wanted.method, "outputs": wanted.outputs, "batch_size": wanted.batch_size}
        part, parts = hosts.part()
        mine = images.take(np.arange(part, len(images.labels), parts))
        batches = network_batches(pipeline, mine, wanted.batch_size)
        features = extract(donor.model, donor.variables, batches, **options)
        about = {"model": models.describe(donor.model), "data": dataset.name, "num_images": len(images.labels)}
        about |= {**options, "pipeline": dataclasses.asdict(pipeline)}
        store.save_features(path, features, json.loads(json.dumps(about)))
    return DonorNetwork(donor.model, donor.variables, pipeline, store.load_features(path))


def stored_donor(config: Any, dataset: Dataset) -> DonorNetwork:
    """Features that were extracted elsewhere, of a network that is not here."""
    features = store.load_features(Path(config.features.source).expanduser())
    return DonorNetwork(_model(config, dataset), None, pipeline_for(config, dataset, config.donor.resize), features)


def feature_images(config: Any, dataset: Dataset) -> AnySplit:
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
        for name in ("nfm", "agop"):
            values = np.sort(np.ravel(getattr(layer, name).values))[::-1]
            rows += [{"layer": path, "matrix": name, "index": i, "eigenvalue": float(v)} for i, v in enumerate(values)]
    return rows


def _model(config: Any, dataset: Dataset) -> nn.Module:
    return models.create(**config.model, num_classes=dataset.num_classes)

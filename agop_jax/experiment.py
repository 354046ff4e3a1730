"""The whole experiment, from one config: donor -> features -> recipients -> report. Every stage keeps what is done."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from agop_jax import gallery, models, report, results, store, workdir
from agop_jax.agop import output_function
from agop_jax.data import Dataset, Pipeline, load, subset
from agop_jax.errors import UserError, unknown_name
from agop_jax.extract import METHODS, extract
from agop_jax.initializers import INITIALIZERS, Method, get_method
from agop_jax.layer_features import LayerFeatures
from agop_jax.logs import write_curves
from agop_jax.pretrained import Pretrained, load_pretrained, save_pretrained
from agop_jax.recipients import DonorNetwork, Sweep
from agop_jax.resumable import stoppable, train_resumable
from agop_jax.train import DeviceData, Settings, Trainer
from agop_jax.transplant import initialize
from agop_jax.workdir import CHECKPOINTS, DONOR, FEATURES, SPECTRA


def run(config: Any, directory: str | Path) -> str:
    """Runs an experiment, or what is missing of it, in a directory.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of `defaults.py`.
      directory: made if need be. A second call with the same config redoes nothing that is finished.

    Returns:
      The table of results as text.
    """
    path = Path(directory).expanduser().absolute()
    methods = check_names(config)
    recipient_data = load(config.data.name, validation=config.data.validation, seed=config.seed)
    donor_data = donor_dataset(config, recipient_data)
    with workdir.locked(path), stoppable():
        workdir.claim(path, config.to_dict())
        donor = load_donor(config, donor_data, path)
        donors = {"trained": donor_network(config, donor_data, donor, path / FEATURES)}
        results.write_rows(path / SPECTRA, spectra(donors["trained"].features))
        if any(method.untrained for method in methods):
            untrained = untrained_donor(config, donor_data, donor.model)._replace(mean=donor.mean, std=donor.std)
            donors["untrained"] = donor_network(config, donor_data, untrained, path / f"{FEATURES}_untrained")
        describe_donor(config, donor_data, donors["trained"], path)
        Sweep(path, config, recipient_data, donors).run()
        return report.write_report(path, INITIALIZERS)


def check_names(config: Any) -> list[Method]:
    """The methods of the inits. What can be known to be wrong is said before anything is trained."""
    if config.features.method not in METHODS:
        raise unknown_name("method", config.features.method, METHODS)
    output_function(config.features.outputs)
    if config.pictures.image:
        gallery.read_picture(config.pictures.image)
    return [get_method(init) for init in config.recipients.inits]


def donor_dataset(config: Any, recipient_data: Dataset) -> Dataset:
    """The donor's own data, or the recipients' where `config.donor.data` is empty."""
    name = config.donor.data or config.data.name
    if name == config.data.name:
        return recipient_data
    return load(name, validation=config.data.validation, seed=config.seed)


def load_donor(config: Any, dataset: Dataset, path: Path) -> Pretrained:
    """The donor that the directory keeps; if there is none, it is trained or taken from its source first."""
    if (path / DONOR).exists():
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
        trainer = Trainer(donor.model, donor_pipeline(dataset, donor), Settings(**wanted.train))
        test_loss, test_accuracy = trainer.evaluate(donor.variables, dataset.test)
        summary |= {"test_accuracy": test_accuracy, "test_loss": test_loss}
    results.atomic_write_text(path / "donor.json", json.dumps(summary, indent=1))
    save_pretrained(path / DONOR, donor, summary)


def train_donor(config: Any, dataset: Dataset, path: Path) -> None:
    """Trains the donor on its data."""
    start = untrained_donor(config, dataset)
    trainer = Trainer(
        start.model, Pipeline.of(dataset, config.data.pad, config.data.flip), Settings(**config.donor.train)
    )
    data, indices = DeviceData.of(dataset), subset(dataset.train, None, config.seed)
    with tqdm(total=config.donor.train.steps, unit="step", desc="donor", dynamic_ncols=True) as bar:
        done = train_resumable(
            trainer,
            start.variables,
            data,
            indices,
            config.donor.learning_rate,
            config.seed,
            path / CHECKPOINTS / DONOR,
            lambda run, step: bar.update(step - bar.n),
            config.save_every,
        )
    if done.diverged:
        raise UserError(
            f"the donor's training diverged by step {done.history[-1]['step']}: lower config.donor.learning_rate "
            f"(now {config.donor.learning_rate:g})"
        )
    test_loss, test_accuracy = trainer.evaluate(done.state.variables, data.test)
    summary = {"test_accuracy": test_accuracy, "test_loss": test_loss, **done.history[-1]}
    write_curves(path, DONOR, done.history)
    results.atomic_write_text(path / "donor.json", json.dumps(summary, indent=1))
    save_pretrained(path / DONOR, start._replace(variables=jax.device_get(done.state.variables)), summary)


def untrained_donor(config: Any, dataset: Dataset, model: Any = None) -> Pretrained:
    """A donor before its training, of this network or of the config's."""
    model = model or models.create(**config.model, num_classes=dataset.num_classes)
    sample = jnp.zeros((1, *dataset.train.images.shape[1:]))
    variables = initialize(model, jax.random.key(config.seed), sample, None, config.donor.init)
    pipeline = Pipeline.of(dataset)
    return Pretrained(model, variables, pipeline.mean, pipeline.std)


def donor_pipeline(dataset: Dataset, donor: Pretrained) -> Pipeline:
    """What shows the data to the donor: with the constants it was trained with."""
    channels = dataset.train.images.shape[-1]
    if len(donor.mean) != channels:
        raise UserError(f"the donor takes {len(donor.mean)} channels, the images of {dataset.name!r} have {channels}")
    return dataclasses.replace(Pipeline.of(dataset), mean=donor.mean, std=donor.std)


def donor_network(config: Any, dataset: Dataset, donor: Pretrained, path: Path) -> DonorNetwork:
    """A donor with its features, which are extracted, or read from `path` if they are there."""
    pipeline = donor_pipeline(dataset, donor)
    if not path.exists():
        wanted = config.features
        images = np.asarray(pipeline.normalize(jnp.asarray(dataset.train.images[: wanted.num_images])))
        labels = dataset.train.labels[: wanted.num_images] if wanted.outputs == "loss" else None
        options = {"method": wanted.method, "outputs": wanted.outputs, "batch_size": wanted.batch_size}
        features = extract(donor.model, donor.variables, images, labels=labels, **options)
        about = {"model": models.describe(donor.model), "data": dataset.name, "num_images": len(images), **options}
        store.save_features(path, features, json.loads(json.dumps(about)))
    return DonorNetwork(donor.model, donor.variables, pipeline, store.load_features(path))


def describe_donor(config: Any, dataset: Dataset, donor: DonorNetwork, path: Path) -> None:
    """What it learned: the ansatz with its null, on the images of the features, and pictures."""
    used = slice(config.features.num_images)
    images = np.asarray(donor.pipeline.normalize(jnp.asarray(dataset.train.images[used])))
    start = None if config.donor.source else untrained_donor(config, dataset, donor.model)
    gallery.write_ansatz(path, config, donor, start, images, dataset.train.labels[used])
    gallery.write_gallery(path, config, donor, dataset)


def spectra(features: Mapping[str, LayerFeatures]) -> list[dict[str, Any]]:
    """Eigenvalues of the donor's NFM and AGOP, largest first; the groups of a grouped layer come one after another."""
    rows = []
    for path, layer in features.items():
        for name in ("nfm", "agop"):
            values = np.sort(np.ravel(getattr(layer, name).values))[::-1]
            rows += [{"layer": path, "matrix": name, "index": i, "eigenvalue": float(v)} for i, v in enumerate(values)]
    return rows

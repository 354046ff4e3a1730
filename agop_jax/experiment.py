"""The whole experiment, from one config: donor -> features -> recipients -> report. Every stage keeps what is done."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from agop_jax import models, report, results, store, workdir
from agop_jax.agop import output_function
from agop_jax.data import Dataset, Pipeline, Split, load, subset
from agop_jax.errors import UserError, unknown_name
from agop_jax.extract import METHODS, extract
from agop_jax.initializers import INITIALIZERS, Method, get_method
from agop_jax.layer_features import LayerFeatures
from agop_jax.logs import write_curves
from agop_jax.recipients import DonorNetwork, Sweep, pipeline_for
from agop_jax.resumable import stoppable, train_resumable
from agop_jax.train import DeviceData, Settings, Trainer
from agop_jax.transplant import initialize
from agop_jax.types import Array, Variables
from agop_jax.workdir import CHECKPOINTS, DATA, DONOR, FEATURES, SPECTRA

STAGES = ("donor", "features", "recipients", "report")


def run(config: Any, directory: str | Path) -> str:
    """Runs an experiment, or what is missing of it, in a directory.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of `defaults.py`.
      directory: made if need be. A second call with the same config redoes nothing that is finished.

    Returns:
      The table of results as text; of a call without the stage 'report', what it left in the directory.
    """
    path = Path(directory).expanduser().absolute()
    methods, stages = check_names(config), check_stages(config.stages)
    recipient_data = load_data(config, config.data.name)
    donor_data = donor_dataset(config, recipient_data)
    with workdir.locked(path), stoppable():
        workdir.claim(path, config.to_dict())
        results.atomic_write_text(path / DATA, json.dumps(describe(recipient_data), indent=1))
        if config.features.source:
            donors = {"trained": stored_donor(config, donor_data, methods)}
        else:
            donors = make_donors(config, donor_data, path, stages, any(method.untrained for method in methods))
        if donors:
            results.write_rows(path / SPECTRA, spectra(donors["trained"].features))
        if "recipients" in stages:
            Sweep(path, config, recipient_data, donors).run()
        if "report" in stages:
            return report.write_report(path, INITIALIZERS)
        return f"Done in {path}: {', '.join(stages)}"


def check_stages(wanted: str) -> list[str]:
    """The stages of 'donor,features', in the order they run."""
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in STAGES:
            raise unknown_name("stage", name, STAGES)
    if not names:
        raise UserError(f"config.stages: wanted one or more of {', '.join(STAGES)}, got none")
    return [stage for stage in STAGES if stage in names]


def make_donors(
    config: Any, dataset: Dataset, path: Path, stages: list[str], untrained: bool
) -> dict[str, DonorNetwork]:
    """The donor, and its untrained twin if asked for, as far as these stages make and need them."""
    if stages == ["report"]:
        return {}
    _require(stages, "donor", path / DONOR)
    variables = donor_variables(config, dataset, path)
    if stages == ["donor"]:
        return {}
    _require(stages, "features", path / FEATURES)
    donors = {"trained": donor_network(config, dataset, variables, path / FEATURES)}
    if untrained:
        donors["untrained"] = donor_network(
            config, dataset, untrained_donor(config, dataset), path / f"{FEATURES}_untrained"
        )
    return donors


def _require(stages: list[str], stage: str, made: Path) -> None:
    if stage not in stages and not made.exists():
        raise UserError(
            f"config.stages leaves out {stage!r}, and {str(made)!r} is not there: run --config.stages={stage} in "
            "this workdir first"
        )


def stored_donor(config: Any, dataset: Dataset, methods: list[Method]) -> DonorNetwork:
    """Features that were extracted elsewhere, of a network that is not here."""
    for init, method in zip(config.recipients.inits, methods, strict=True):
        if method.coupled or method.untrained:
            raise UserError(
                f"init {init!r} needs the donor as a network, config.features.source has features alone: "
                "name the donor's work directory as --workdir with --config.stages=recipients,report"
            )
    features = store.load_features(Path(config.features.source).expanduser())
    pipeline = pipeline_for(config, dataset, config.donor.resize)
    return DonorNetwork(_donor_model(config, dataset), None, pipeline, features)


def load_data(config: Any, name: str) -> Dataset:
    """A data set, split as the config says."""
    return load(name, validation=config.data.validation, seed=config.seed, size=config.data.size)


def describe(dataset: Dataset) -> dict[str, Any]:
    """What the work directory keeps of a data set: its constants are computed from the training split."""
    return {
        "name": dataset.name,
        "images": {name: len(getattr(dataset, name).labels) for name in ("train", "validation", "test")},
        "shape": list(dataset.train.images.shape[1:]),
        "num_classes": dataset.num_classes,
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
    }


def check_names(config: Any) -> list[Method]:
    """The methods of the inits. What can be known to be wrong is said before anything is trained."""
    if config.features.method not in METHODS:
        raise unknown_name("method", config.features.method, METHODS)
    output_function(config.features.outputs)
    return [get_method(init) for init in config.recipients.inits]


def donor_dataset(config: Any, recipient_data: Dataset) -> Dataset:
    """The donor's own data, or the recipients' where `config.donor.data` is empty."""
    name = config.donor.data or config.data.name
    if name == config.data.name:
        return recipient_data
    return load_data(config, name)


def donor_variables(config: Any, dataset: Dataset, path: Path) -> Variables:
    """Trains the donor, or reads it from the directory."""
    if (path / DONOR).exists():
        logging.info("donor: read from %s", path / DONOR)
        return store.load_arrays(path / DONOR)[0]
    trainer = Trainer(
        _donor_model(config, dataset),
        pipeline_for(config, dataset, config.donor.resize),
        Settings(**config.donor.train),
    )
    data = DeviceData.of(dataset)
    start, indices = untrained_donor(config, dataset), subset(dataset.train, None, config.seed)
    with tqdm(total=config.donor.train.steps, unit="step", desc="donor", dynamic_ncols=True) as bar:
        done = train_resumable(
            trainer,
            start,
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
    store.save_arrays(path / DONOR, jax.device_get(done.state.variables), summary)
    return done.state.variables


def untrained_donor(config: Any, dataset: Dataset) -> Variables:
    """The donor before its training."""
    sample = pipeline_for(config, dataset, config.donor.resize)(jnp.asarray(dataset.train.images[:1]))
    return initialize(_donor_model(config, dataset), jax.random.key(config.seed), sample, None, config.donor.init)


def donor_network(config: Any, dataset: Dataset, variables: Variables, path: Path) -> DonorNetwork:
    """A donor with its features, which are extracted, or read from `path` if they are there."""
    model, pipeline = _donor_model(config, dataset), pipeline_for(config, dataset, config.donor.resize)
    if not path.exists():
        wanted = config.features
        images = dataset.train.take(np.arange(min(wanted.num_images, len(dataset.train.labels))))
        options = {"method": wanted.method, "outputs": wanted.outputs, "batch_size": wanted.batch_size}
        features = extract(model, variables, network_batches(pipeline, images, wanted.batch_size), **options)
        about = {"model": config.model.to_dict(), "data": dataset.name, "num_images": len(images.labels), **options}
        about["pipeline"] = dataclasses.asdict(pipeline)
        store.save_features(path, features, json.loads(json.dumps(about)))
    return DonorNetwork(model, variables, pipeline, store.load_features(path))


def network_batches(pipeline: Pipeline, split: Split, batch_size: int) -> Iterator[tuple[Array, np.ndarray]]:
    """Images as the network sees them, a batch at a time: at 224 x 224 a data set would fill the memory."""
    for start in range(0, len(split.labels), batch_size):
        images, labels = split.take(np.arange(start, min(start + batch_size, len(split.labels))))
        yield pipeline(jnp.asarray(images)), labels


def spectra(features: Mapping[str, LayerFeatures]) -> list[dict[str, Any]]:
    """Eigenvalues of the donor's NFM and AGOP, largest first; the groups of a grouped layer come one after another."""
    rows = []
    for path, layer in features.items():
        for name in ("nfm", "agop"):
            values = np.sort(np.ravel(getattr(layer, name).values))[::-1]
            rows += [{"layer": path, "matrix": name, "index": i, "eigenvalue": float(v)} for i, v in enumerate(values)]
    return rows


def _donor_model(config: Any, dataset: Dataset) -> Any:
    return models.create(**config.model, num_classes=dataset.num_classes)

"""The whole experiment, from one config: donor -> features -> recipients -> report. Every stage keeps what is done."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from agop_jax.core import devices, files, hosts
from agop_jax.core.errors import UserError
from agop_jax.data import Dataset, StoredSplit, load, measured
from agop_jax.experiments import checks, gallery, machines, workdir
from agop_jax.experiments.checks import Outline
from agop_jax.experiments.donors import (
    DonorNetwork,
    donor_labels,
    donor_network,
    donor_pipeline,
    feature_images,
    load_donor,
    network_batches,
    pipeline_for,
    require_room,
    spectra,
    stored_donor,
    untrained_donor,
)
from agop_jax.experiments.keys import Role, stream
from agop_jax.experiments.settings import Config, check_stages
from agop_jax.experiments.sweep import Sweep
from agop_jax.experiments.trackers import track, tracker
from agop_jax.experiments.workdir import DONOR, FEATURES, SPECTRA
from agop_jax.initializers.coupling import POOR_FIT
from agop_jax.initializers.registry import Method, description, donor_free, get_method
from agop_jax.results import page
from agop_jax.training.resumable import stoppable


def run(config: ml_collections.ConfigDict, directory: str | Path) -> str:
    """Runs an experiment, or what is missing of it, in a directory.

    Args:
      config: `experiment_config()`, changed.
      directory: made if need be. A second call with the same config redoes nothing that is finished.

    Returns:
      The table of results as text; of a call without the stage 'report', what it left in the directory.
    """
    hosts.require_same("configs", json.dumps(config.to_dict()), "give all the same --config and overrides")
    return run_config(Config.of(config), workdir.local_directory(directory))


def run_config(config: Config, path: Path) -> str:
    """`run` with checked fields, in a directory by its absolute path."""
    stages = check_stages(config.stages)
    module = tracker(config.track)
    if config.pictures.enabled and config.pictures.image:
        gallery.read_picture(config.pictures.image)
    recipient_data = load_data(config, config.data.name)
    donor_data = donor_dataset(config, recipient_data)
    checks.check_training(config, recipient_data, donor_data)
    gallery.check_picture(config, donor_data)
    with workdir.locked(path), stoppable():
        environment = workdir.claim(path, config.to_dict(), describe(recipient_data, donor_data))
        of_seed = {seed: dataclasses.replace(config, seed=seed) for seed in config.donor_seeds}
        donors = {
            seed: make_donors(
                own,
                donor_labels(own, donor_data),
                recipient_data,
                workdir.donor_directory(path, seed, config.seed),
                environment,
            )
            for seed, own in of_seed.items()
        }
        first = config.donor_seeds[0]
        if donors[first]:
            own_data = donor_labels(of_seed[first], donor_data)
            _describe_first(of_seed[first], own_data, recipient_data, donors[first]["trained"], path)
        if "recipients" in stages:
            Sweep(path, config, recipient_data, _for_recipients(config, donors), environment).run()
        summary = f"Done in {path}: {', '.join(stages)}"
        if "report" in stages and hosts.is_first():
            summary = page.write_report(path, description, POOR_FIT, donor_free(config.recipients.inits))
            if module:
                track(module, path)
        hosts.wait("done")  # who leaves first would take the others along
        return summary


def _describe_first(config: Config, dataset: Dataset, recipient_data: Dataset, donor: DonorNetwork, path: Path) -> None:
    """The spectra, ansatz and pictures of the page, of the first donor alone."""
    require_room(donor.features, config.recipients.layers)
    files.write_rows(path / SPECTRA, spectra(donor.features, config.recipients.layers))
    if not config.features.source and hosts.is_first():
        with devices.only(jax.local_devices()):
            describe_donor(config, dataset, recipient_data, donor, path)


def _for_recipients(
    config: Config, donors: Mapping[int, Mapping[str, DonorNetwork]]
) -> dict[int, dict[str, DonorNetwork]]:
    """{seed: the donor and its untrained twin, with what recipients draw on}."""
    network = any(method.needs_network for method in methods(config))
    layers = config.recipients.layers
    return {
        seed: {name: donor.for_recipients(layers, network) for name, donor in own.items()}
        for seed, own in donors.items()
    }


def methods(config: Config) -> list[Method]:
    """Those of the inits."""
    return [get_method(init) for init in config.recipients.inits]


def load_data(config: Config, name: str) -> Dataset:
    """A data set, split as the config says."""
    section, seed = config.data, stream(Role.VALIDATION_SPLIT, config.seed)
    return load(name, validation=section.validation, seed=seed, size=section.size, memory=section.memory)


def donor_dataset(config: Config, recipient_data: Dataset) -> Dataset:
    """The donor's own data, or the recipients' where `config.donor.data` is empty."""
    name = config.donor.data or config.data.name
    return recipient_data if name == config.data.name else load_data(config, name)


def describe(dataset: Dataset, donor_data: Dataset | None = None) -> dict[str, Any]:
    """What the work directory keeps of a data set: its constants are computed from `measured` training images.

    Args:
      dataset: of the recipients.
      donor_data: of the donor, kept as far as the page names it where it is another.
    """
    donor = {} if donor_data is None or donor_data is dataset else {"donor": _contents(donor_data)}
    return {
        **_contents(dataset),
        "shape": list(dataset.train.shape),
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
        "measured": len(measured(dataset.train).labels),
        "streamed": isinstance(dataset.train, StoredSplit),
        **donor,
    }


def _contents(dataset: Dataset) -> dict[str, Any]:
    """Which images and classes a data set holds."""
    return {
        "name": dataset.name,
        "images": {name: len(getattr(dataset, name).labels) for name in ("train", "validation", "test")},
        "num_classes": dataset.num_classes,
        "classes": list(dataset.classes),
        "origins": dict(dataset.origins),
        "unused": list(dataset.unused),
    }


def make_donors(
    config: Config, dataset: Dataset, recipient_data: Dataset, path: Path, environment: str
) -> dict[str, DonorNetwork]:
    """The donor, and its untrained twin if asked for, as far as the stages of this call make and need them.

    What shapes tell of the config is checked as soon as the donor's are known: before it is trained.
    """
    stages = check_stages(config.stages)
    if config.features.source:
        _require_no_network(config)
        donor = stored_donor(config, dataset)
        _check(config, stages, _stored_outline(donor, dataset), recipient_data)
        return {"trained": donor}
    if stages == ["report"]:
        return {}
    _require(stages, "donor", path / DONOR)
    known = bool(config.donor.source) or hosts.exists(path / DONOR)
    if not known:
        _check(config, stages, _config_outline(config, dataset), recipient_data)
    if stages != ["donor"] and config.donor.source != machines.SOURCE:  # a machine leaves its features itself
        _require(stages, "features", path / FEATURES)
    donor = load_donor(config, dataset, path, environment)
    if known:
        pipeline = donor_pipeline(config, dataset, donor)
        shapes = checks.outline(donor.model, pipeline, dataset.train.shape, donor.model.num_classes)
        _check(config, stages, shapes, recipient_data)
    if stages == ["donor"]:
        return {}
    donors = {"trained": donor_network(config, dataset, donor, path / FEATURES)}
    if any(method.untrained for method in methods(config)):
        start = untrained_donor(config, dataset, donor.model)._replace(mean=donor.mean, std=donor.std)
        donors["untrained"] = donor_network(config, dataset, start, path / f"{FEATURES}_untrained")
    return donors


def _check(config: Config, stages: list[str], donor: Outline, recipient_data: Dataset) -> None:
    checks.check_donor(config, donor)
    if "recipients" in stages:
        checks.check_recipients(config, recipient_data, donor)


def _config_outline(config: Config, dataset: Dataset) -> Outline:
    """The outline of a donor that is to be trained here."""
    pipeline = pipeline_for(config, dataset, config.donor.resize)
    network = config.model.network(dataset.num_classes)
    return checks.outline(network, pipeline, dataset.train.shape, dataset.num_classes)


def _stored_outline(donor: DonorNetwork, dataset: Dataset) -> Outline:
    """The outline of a donor that is known by its features alone."""
    kernels = {path: layer.kernel.shape for path, layer in donor.features.items()}
    channels = len(donor.pipeline.mean)
    return Outline(kernels, (*dataset.train.shape[:2], channels), dataset.num_classes)


def _require_no_network(config: Config) -> None:
    for init, method in zip(config.recipients.inits, methods(config), strict=True):
        if method.needs_network or method.untrained:
            raise UserError(
                f"init {init!r} needs the donor as a network, config.features.source has features alone: "
                "name the donor's work directory as --workdir with --config.stages=recipients,report"
            )


def _require(stages: list[str], stage: str, output: Path) -> None:
    if stage not in stages and not output.exists():
        raise UserError(
            f"config.stages leaves out {stage!r}, and {str(output)!r} is not there: run --config.stages={stage} in "
            "this workdir first"
        )


def describe_donor(config: Config, dataset: Dataset, recipient_data: Dataset, donor: DonorNetwork, path: Path) -> None:
    """What it learned: the ansatz with its null, on the images of the features, and pictures.

    A machine is shown on the images that machines draw from: the donor's if they make the donor, else the recipients'.
    """
    used = feature_images(config, dataset)
    batches = network_batches(donor.pipeline, used, config.features.batch_size)
    images = np.concatenate([np.asarray(batch) for batch, _ in batches])
    start = None if config.donor.source else untrained_donor(config, dataset, donor.model)
    gallery.write_ansatz(path, config, donor, start, images, used.labels)
    images_of = dataset if config.donor.source == machines.SOURCE else recipient_data
    pipeline = pipeline_for(config, images_of)
    machine = lambda side: machines.rounds_on_images(config.rfm, pipeline, images_of, side)
    gallery.write_gallery(path, config, donor, dataset, machine if machines.are_used(config) else None)

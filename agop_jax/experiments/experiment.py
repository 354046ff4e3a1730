"""The whole experiment, from one config: donor -> features -> recipients -> report. Every stage keeps what is done."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agop_jax.core import devices, files, hosts
from agop_jax.core.errors import UserError, unknown_name
from agop_jax.data import Dataset, StoredSplit, load, measured
from agop_jax.experiments import gallery, workdir
from agop_jax.experiments.donors import (
    DonorNetwork,
    donor_network,
    feature_images,
    load_donor,
    network_batches,
    require_room,
    spectra,
    stored_donor,
    untrained_donor,
)
from agop_jax.experiments.sweep import Sweep
from agop_jax.experiments.workdir import DONOR, FEATURES, SPECTRA
from agop_jax.features.extraction import METHODS
from agop_jax.features.grams import output_function
from agop_jax.initializers.coupling import POOR_FIT
from agop_jax.initializers.registry import INITIALIZERS, Method, get_method
from agop_jax.results import page
from agop_jax.training.resumable import stoppable

STAGES = ("donor", "features", "recipients", "report")


def run(config: Any, directory: str | Path) -> str:
    """Runs an experiment, or what is missing of it, in a directory.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of `experiment_config`.
      directory: made if need be. A second call with the same config redoes nothing that is finished.

    Returns:
      The table of results as text; of a call without the stage 'report', what it left in the directory.
    """
    path = Path(directory).expanduser().absolute()
    hosts.require_same("configs", json.dumps(config.to_dict()), "give all the same --config and overrides")
    methods, stages = check_names(config), check_stages(config.stages)
    recipient_data = load_data(config, config.data.name)
    donor_data = donor_dataset(config, recipient_data)
    gallery.check_picture(config, donor_data)
    with workdir.locked(path), stoppable():
        workdir.claim(path, config.to_dict(), describe(recipient_data, donor_data))
        donors = make_donors(config, donor_data, path, stages, methods)
        if donors:
            require_room(donors["trained"].features, config.recipients.layers)
            files.write_rows(path / SPECTRA, spectra(donors["trained"].features, config.recipients.layers))
        if donors and not config.features.source and hosts.is_first():
            with devices.only(jax.local_devices()):
                describe_donor(config, donor_data, donors["trained"], path)
        if "recipients" in stages:
            network = any(method.coupled for method in methods)
            donors = {name: d.for_recipients(config.recipients.layers, network) for name, d in donors.items()}
            Sweep(path, config, recipient_data, donors).run()
        said = f"Done in {path}: {', '.join(stages)}"
        if "report" in stages and hosts.is_first():
            said = page.write_report(path, INITIALIZERS, POOR_FIT)
        hosts.wait("done")  # who leaves first would take the others along
        return said


def check_names(config: Any) -> list[Method]:
    """The methods of the inits. What can be known to be wrong is said before anything is trained."""
    if config.features.method not in METHODS:
        raise unknown_name("method", config.features.method, METHODS)
    output_function(config.features.outputs)
    if config.pictures.enabled and config.pictures.image:
        gallery.read_picture(config.pictures.image)
    return [get_method(init) for init in config.recipients.inits]


def check_stages(wanted: str) -> list[str]:
    """The stages of 'donor,features', in the order they run."""
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in STAGES:
            raise unknown_name("stage", name, STAGES)
    if not names:
        raise UserError(f"config.stages: wanted one or more of {', '.join(STAGES)}, got none")
    return [stage for stage in STAGES if stage in names]


def load_data(config: Any, name: str) -> Dataset:
    """A data set, split as the config says."""
    wanted = config.data
    return load(name, validation=wanted.validation, seed=config.seed, size=wanted.size, memory=wanted.memory)


def donor_dataset(config: Any, recipient_data: Dataset) -> Dataset:
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
    config: Any, dataset: Dataset, path: Path, stages: list[str], methods: list[Method]
) -> dict[str, DonorNetwork]:
    """The donor, and its untrained twin if asked for, as far as these stages make and need them."""
    if config.features.source:
        _require_no_network(config, methods)
        return {"trained": stored_donor(config, dataset)}
    if stages == ["report"]:
        return {}
    _require(stages, "donor", path / DONOR)
    donor = load_donor(config, dataset, path)
    if stages == ["donor"]:
        return {}
    _require(stages, "features", path / FEATURES)
    donors = {"trained": donor_network(config, dataset, donor, path / FEATURES)}
    if any(method.untrained for method in methods):
        start = untrained_donor(config, dataset, donor.model)._replace(mean=donor.mean, std=donor.std)
        donors["untrained"] = donor_network(config, dataset, start, path / f"{FEATURES}_untrained")
    return donors


def _require_no_network(config: Any, methods: list[Method]) -> None:
    for init, method in zip(config.recipients.inits, methods, strict=True):
        if method.coupled or method.untrained:
            raise UserError(
                f"init {init!r} needs the donor as a network, config.features.source has features alone: "
                "name the donor's work directory as --workdir with --config.stages=recipients,report"
            )


def _require(stages: list[str], stage: str, made: Path) -> None:
    if stage not in stages and not made.exists():
        raise UserError(
            f"config.stages leaves out {stage!r}, and {str(made)!r} is not there: run --config.stages={stage} in "
            "this workdir first"
        )


def describe_donor(config: Any, dataset: Dataset, donor: DonorNetwork, path: Path) -> None:
    """What it learned: the ansatz with its null, on the images of the features, and pictures."""
    used = feature_images(config, dataset)
    batches = network_batches(donor.pipeline, used, config.features.batch_size)
    images = np.concatenate([np.asarray(batch) for batch, _ in batches])
    start = None if config.donor.source else untrained_donor(config, dataset, donor.model)
    gallery.write_ansatz(path, config, donor, start, images, used.labels)
    gallery.write_gallery(path, config, donor, dataset)

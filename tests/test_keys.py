"""Random numbers: every role has its own, recipients of one seed share theirs."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from agop_jax.core import trees
from agop_jax.core.errors import UserError
from agop_jax.data import Pipeline, batch_indices, load, pipeline
from agop_jax.experiments import donors, experiment, recipients, sections, settings
from agop_jax.experiments.config import experiment_config
from agop_jax.experiments.keys import Role, key, stream
from agop_jax.experiments.recipients import Comparison
from agop_jax.experiments.sweep_tables import sweep_cells
from agop_jax.initializers.model import Initialization
from agop_jax.training import Trainer


def test_no_two_roles_share_a_stream():
    """Nor two seeds of one role, in what an experiment may use."""
    streams = [stream(role, seed) for role in Role for seed in range(100)]
    assert len(set(streams)) == len(streams)
    draws = [jax.random.normal(key(role, 0), (4,)).tolist() for role in Role]
    assert len(set(itertools.chain(*draws))) == 4 * len(Role)


def test_streams_stay_what_they_are():
    """A change here would pair the seeds of a work directory with others."""
    assert [stream(Role.DONOR_START, 0), stream(Role.RECIPIENT_START, 0)] == [2230788974, 787808953]
    assert jax.random.key_data(key(Role.DONOR_START, 0)).tolist() == [0, stream(Role.DONOR_START, 0)]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Of inits in a tiny network, with its trainer."""
    config = experiment_config()
    config.model.features = (4, 6)
    config.recipients.inits = ("kaiming_normal", "nfm", "coupled_nfm", "lsuv", "copy", "default")
    config.recipients.num_images, config.features.num_images, config.train.steps = 32, 32, 2
    config = settings.Config.of(config)
    dataset = experiment.load_data(config, "digits")
    path = tmp_path_factory.mktemp("donor")
    donor = donors.donor_network(config, dataset, donors.untrained_donor(config, dataset), path / "features")
    trainer = Trainer(config.model.network(10), Pipeline.of(dataset), config.train)
    return Comparison(path, config, dataset, {"trained": donor, "untrained": donor}), trainer


def starts(comparison, seed: int) -> dict[str, Initialization]:
    """By init."""
    shared, trainer = comparison
    cells = sweep_cells(shared.config, 500)
    return {cell.init: recipients.start(shared, cell, seed, trainer) for cell in cells}


@pytest.mark.slow
def test_a_recipient_is_not_the_untrained_donor(comparison):
    """Neither its own parameters nor its draws, for the seed of the donor or another."""
    shared, _ = comparison
    donor = trees.flatten(donors.untrained_donor(shared.config, shared.dataset).variables["params"])
    for seed in (0, 1):
        recipient = trees.flatten(starts(comparison, seed)["kaiming_normal"].variables["params"])
        for path in ("Conv_0/kernel", "Conv_1/kernel", "Dense_0/kernel"):
            correlation = np.corrcoef(np.ravel(donor[path]), np.ravel(recipient[path]))[0, 1]
            assert abs(correlation) < 0.6, (seed, path)
            assert not np.isin(donor[path], recipient[path]).any()


def test_inits_of_one_seed_are_paired(comparison):
    """One head, one set of biases; training images and their order are functions of the seed alone."""
    shared, _ = comparison
    first, second = (starts(comparison, seed) for seed in (0, 1))
    head = [trees.flatten(start.variables["params"])["Dense_0/kernel"] for start in first.values()]
    assert all(np.array_equal(head[0], other) for other in head)
    other = trees.flatten(second["nfm"].variables["params"])["Dense_0/kernel"]
    assert not np.array_equal(head[0], other)
    cells = sweep_cells(shared.config, 500)
    images = [shared.images(cell, 3) for cell in cells]
    assert all(np.array_equal(images[0], other) for other in images)


def test_the_program_draws_from_its_roles_only(comparison, monkeypatch):
    """Every seed that reaches the data and the training loop is that of a role."""
    shared, _ = comparison
    seeds = []
    monkeypatch.setattr(recipients, "subset", lambda split, size, seed: seeds.append(seed) or np.arange(size))
    cell = sweep_cells(shared.config, 64)[0]
    shared.images(cell, 0)
    assert seeds == [stream(Role.RECIPIENT_IMAGES, 0)]
    read = experiment.load
    monkeypatch.setattr(
        experiment, "load", lambda name, **options: seeds.append(options["seed"]) or read(name, **options)
    )
    experiment.load_data(shared.config, "digits")
    assert seeds[1] == stream(Role.VALIDATION_SPLIT, 0)


def test_the_donor_and_recipient_zero_see_their_images_in_other_orders():
    order = [stream(role, 0) for role in (Role.DONOR_IMAGES, Role.RECIPIENT_IMAGES)]
    labels = load("digits").train
    assert not np.array_equal(*(pipeline.subset(labels, None, seed) for seed in order))
    batches = [stream(role, 0) for role in (Role.DONOR_TRAINING, Role.RECIPIENT_TRAINING)]
    assert not np.array_equal(*(batch_indices(np.arange(500), 64, 0, seed) for seed in batches))


def test_random_labels_are_the_training_labels_in_an_order_of_their_seed():
    """Images, validation and test stay; no donor's order is that of another."""
    dataset = load("digits", validation=0.2)
    plain = settings.Config()
    assert donors.donor_labels(plain, dataset) is dataset
    control = dataclasses.replace(plain, donor=dataclasses.replace(plain.donor, random_labels=True))
    first, second, again = (donors.donor_labels(dataclasses.replace(control, seed=seed), dataset) for seed in (0, 1, 0))
    labels = dataset.train.labels
    for shuffled in (first, second):
        np.testing.assert_array_equal(np.bincount(shuffled.train.labels), np.bincount(labels))
        assert np.mean(shuffled.train.labels == labels) < 0.15  # chance is 0.1
        assert shuffled.train.images is dataset.train.images
        assert (shuffled.validation, shuffled.test) == (dataset.validation, dataset.test)
    assert not np.array_equal(first.train.labels, second.train.labels)
    np.testing.assert_array_equal(first.train.labels, again.train.labels)


def test_only_a_donor_trained_here_has_random_labels():
    with pytest.raises(UserError, match=r"donor\.random_labels"):
        sections.DonorConfig(source="npz:donor.npz", random_labels=True)

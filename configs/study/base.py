"""What the settings of the study have in common: donors of several seeds, their recipients, and who is compared.

A leaf of this folder is one setting. `python -m agop_jax.compare` puts their work directories on one page.
"""

import ml_collections

from agop_jax.experiments.config import experiment_config, require_mode, shrink

CIFAR10, CIFAR100, MNIST = "npz:cifar10.npz", "npz:cifar100.npz", "npz:mnist.npz"
INITS = (
    "kaiming_normal",
    "lsuv",
    "whitened",  # images alone
    "whitened_first",
    "convrfm",  # images and labels, no donor
    "nfm",  # each layer on its own, beside its scale alone and its spectrum alone
    "agop",
    "matched_isotropic",
    "matched_spectrum",
    "coupled_nfm",  # the donor's basis carried along
    "coupled_sqrt_agop",
    "rainbow",
    "selected",
    "selected@shuffled",  # negative controls: a fit to the wrong channels, a donor that learned nothing
    "selected@untrained",
    "copy",
)
SHORT = ("kaiming_normal", "lsuv", "whitened", "coupled_nfm", "selected", "copy")  # where steps are dear


def transfer(
    question: str, mode: str, donor: str = CIFAR100, recipients: str = CIFAR10, inits: tuple[str, ...] = INITS
) -> ml_collections.ConfigDict:
    """A small CNN from one data set to another: 2,000 images, 250 steps, 3 donors with 5 recipients of each init.

    Args:
      question: shown on top of the page.
      mode: 'quick' is for `finish`, and no other is known.
      donor: its data.
      recipients: their data.
      inits: that are compared.
    """
    require_mode(mode)
    config = experiment_config()
    config.question = question
    config.data.name, config.donor.data = recipients, donor
    config.data.validation = 0.02  # about 1,000 images: they are looked at often
    config.model.features = (16, 32, 64, 64)
    config.donor.seeds = (0, 1, 2)
    config.donor.learning_rate, config.donor.train.steps = 0.05, 4000
    config.features.batch_size = 64
    config.ansatz.draws = 0  # of the first donor alone, and its own question
    config.train.steps = 250
    config.recipients.train_sizes = (2000,)
    config.recipients.learning_rates, config.recipients.outer_rates = (0.02, 0.05, 0.1), 2
    config.recipients.inits = inits
    return config


def residual(config: ml_collections.ConfigDict) -> None:
    """ResNet-20 of a quarter of its width in place of the CNN: 4, 8 and 16 channels."""
    config.model.name, config.model.features, config.model.width = "resnet20", None, 0.25


def finish(config: ml_collections.ConfigDict, mode: str) -> ml_collections.ConfigDict:
    """The config as it is, or in mode 'quick' a smoke run of seconds: one donor, and three of the inits."""
    if mode == "quick":
        shrink(config, inits=("kaiming_normal", "lsuv", "selected"))
        config.donor.seeds = ()
        config.donor.train.steps = config.train.steps = 2
        config.donor.train.batch_size = config.train.batch_size = 16
        config.features.num_images = config.features.batch_size = config.recipients.num_images = 16
        config.recipients.train_sizes, config.recipients.seeds = (64,), 1
        config.recipients.budgets = (2, 4)[: len(config.recipients.budgets)]
        if config.model.name == "small_cnn":
            config.model.features = (4, 4, 8, 8)
    return config

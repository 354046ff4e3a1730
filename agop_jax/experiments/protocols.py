"""What experiments have in common: two protocols, for which the files in `configs/` name data sets."""

# pyright: reportOptionalMemberAccess=false
# (the fields of a ConfigDict have no types that a checker could know)

import ml_collections

from agop_jax.experiments.config import experiment_config, require_mode, shrink

# the original's names, without zeros, normal and uniform, too small for a network without normalisation
RANDOM = ("default", "xavier_normal", "kaiming_uniform", "kaiming_normal")
FROM_DONOR = ("nfm", "agop", "kaiming_nfm", "kaiming_agop")
QUICK = ("kaiming_normal", "nfm", "copy")


def few_images(
    question: str, data: str, mode: str, model: str = "small_cnn", train_size: int = 1000
) -> ml_collections.ConfigDict:
    """A donor that is trained here on all images, recipients on few: where an init has most to give.

    Args:
      question: shown on top of the report.
      data: name of the data set, see `agop_jax.data.load`.
      mode: 'quick' makes everything small.
      model: of donor and recipients.
      train_size: images of each recipient.
    """
    require_mode(mode)
    config = experiment_config()
    config.question = question
    config.data.name = data
    config.data.validation = 0.05
    config.model.name = model
    config.donor.learning_rate = 0.05
    config.donor.train.steps = 2000
    config.train.steps = 250
    recipients = config.recipients
    recipients.train_sizes = (train_size,)
    recipients.learning_rates = (0.02, 0.05, 0.1)
    recipients.inits = (
        "kaiming_normal",
        "lsuv",
        "matched_isotropic",  # scale of 'nfm' alone
        "matched_spectrum",
        "nfm",
        "agop",
        "kaiming_nfm",
        "coupled_nfm",
        "copy",
    )
    if mode == "quick":
        _shrink(config)
        config.model.width = 0.25
        recipients.train_sizes = (64,)
    return config


def original_vgg11(question: str, data: str, train_images: int, mode: str) -> ml_collections.ConfigDict:
    """The protocol of the original student project, in full: VGG11 from ImageNet to a small data set at 224 x 224.

    Its PyTorch settings: SGD with learning rate 1e-3, momentum 0.9 and weight decay 5e-4, constant; batches of 64, 20
    epochs, 80/20 split, 3 runs, no augmentation. Its features: 11 images and the first 10 logits. To eight of its
    inits comes `matched_isotropic`, the scale of `nfm` alone, without which no gain means anything.

    Args:
      question: shown on top of the report.
      data: name of the data set, see `agop_jax.data.load`.
      train_images: of the data set before the 80/20 split; epochs are counted in steps here.
      mode: 'quick' makes everything small and puts a narrow donor, trained here, in place of ImageNet's.
    """
    require_mode(mode)
    config = experiment_config()
    config.question = question
    config.data.name = data
    config.data.validation = 0.2
    config.data.resize = 224
    config.data.rgb = True  # grey images as RGB: the donor knows no others
    config.model.name = "vgg11"
    config.model.head = "classic"  # two hidden layers of 4096
    config.donor.source = "hub:timm/vgg11.tv_in1k"
    config.features.num_images, config.features.batch_size = 11, 4
    with config.ignore_type():
        config.features.outputs = tuple(range(10))
    train = config.train
    train.steps = 20 * (round(0.8 * train_images) // 64)  # 20 epochs
    train.batch_size, train.schedule = 64, "constant"
    train.optimizer, train.momentum, train.weight_decay = "sgd", 0.9, 5e-4
    config.recipients.learning_rates = (1e-3,)
    config.recipients.seeds = 3
    config.recipients.inits = (*RANDOM, *FROM_DONOR, "matched_isotropic")
    if mode == "quick":
        _shrink_vgg11(config)
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    """To what a test runs of every file in `configs/`."""
    shrink(config, inits=QUICK)
    config.donor.train.steps = config.train.steps = 2
    config.donor.train.batch_size = config.train.batch_size = 16
    config.features.num_images = config.features.batch_size = 16
    config.ansatz.draws = 0  # which compiles reverse passes of its own
    config.recipients.seeds = 1


def _shrink_vgg11(config: ml_collections.ConfigDict) -> None:
    _shrink(config)
    config.donor.source = ""
    config.features.outputs = (0, 1)
    config.model.head = None
    config.model.width = 1 / 16
    config.data.resize = 32

"""Every field of an experiment's config, with its default. The files in `configs/` say what they change."""

from typing import Any

import ml_collections


def experiment_config() -> ml_collections.ConfigDict:
    """A whole config: what runs on the bundled digits in a minute."""
    config = ml_collections.ConfigDict()
    config.question = ""  # shown on top of the report
    config.stages = "donor,features,recipients,report"  # what this call does; the rest must be in the workdir already
    config.save_every = 30.0  # seconds between checkpoints of a run; shorter runs need none
    config.seed = 0  # of the donor, the validation split and the features

    config.data = ml_collections.ConfigDict()
    config.data.name = "digits"  # recipients' data: digits, npz:FILE, folder:DIR, or a TFDS name such as cifar10
    config.data.validation = 0.2  # fraction of the training images kept for choices
    config.data.size = 0  # side of the squares that pictures of a folder or of TFDS are brought to; 0: as they are
    config.data.memory = 0.0  # GiB that decoded images may take; more are streamed from disk; 0: half of the machine's
    config.data.resize = 0  # side of the images that networks see, resized inside jit; 0: as they are stored
    config.data.rgb = False  # grey images as three equal channels, for networks of colour images
    config.data.pad = 0  # random crops from images padded by so many pixels
    config.data.flip = False  # random mirror images

    config.model = ml_collections.ConfigDict()
    config.model.name = "small_cnn"  # a key of agop_jax.models.MODELS; further fields go to the model

    config.donor = ml_collections.ConfigDict()
    config.donor.source = ""  # orbax:DIR, npz:FILE, safetensors:FILE, hub:OWNER/NAME; empty: trained here
    config.donor.mean = ()  # of a source, per channel, in units of pixel / 255; empty: the source's own, or ImageNet's
    config.donor.std = ()
    config.donor.data = ""  # donor's data; empty: the recipients'
    config.donor.resize = 0  # side of the images that the donor sees; 0: config.data.resize
    config.donor.init = "kaiming_normal"  # how the donor itself starts
    config.donor.learning_rate = 0.1  # peak
    config.donor.train = train_config(steps=400)

    config.features = ml_collections.ConfigDict()
    config.features.source = ""  # directory of stored features, such as another workdir's 'features'; empty: this one's
    config.features.method = "gram"  # gram, probe, patch_jacobian
    config.features.outputs = "logits"  # logits or loss
    config.features.num_images = 512  # of the donor's training split
    config.features.batch_size = 128  # images in one compiled step

    config.ansatz = ml_collections.ConfigDict()  # is the donor's NFM proportional to a power of its AGOP?
    config.ansatz.powers = (0.5, 1.0)  # of the AGOP
    config.ansatz.draws = 100  # random rotations for the null; 0, or features.method 'probe': no such report
    config.ansatz.resamples = 100  # bootstrap samples for the interval of the best-fitting power

    config.pictures = ml_collections.ConfigDict()
    config.pictures.enabled = True  # whether the donor's features are drawn
    config.pictures.image = ""  # PNG or JPEG to be seen through the donor's layers; empty: its first test image
    config.pictures.layers = ".*"  # regular expression: through which convolutions

    config.train = train_config(steps=200)  # recipients

    config.recipients = ml_collections.ConfigDict()
    config.recipients.inits = ("kaiming_normal", "matched_isotropic", "matched_spectrum", "nfm")
    config.recipients.layers = ".*Conv_.*"  # regular expression: layers to draw anew; the rest is paired by seed
    config.recipients.seeds = 5  # paired runs of each init
    config.recipients.train_sizes = (0,)  # training images; 0: all
    config.recipients.widths = (1.0,)  # factors on the number of channels
    config.recipients.learning_rates = (0.1,)  # peaks to choose from on validation, for each init
    config.recipients.tuning_seeds = 1  # seeds of that choice
    config.recipients.devices = 0  # that a recipient is trained on; 0: all; with fewer, several are trained at once
    config.recipients.num_images = 256  # unlabelled images of its own training set that a coupled or lsuv init looks at
    return config


def train_config(steps: int) -> ml_collections.ConfigDict:
    """One training run."""
    train = ml_collections.ConfigDict()
    train.steps = steps  # budget
    train.batch_size = 64  # images a step
    train.optimizer = "sgd"  # sgd, adam
    train.momentum = 0.9  # of sgd
    train.weight_decay = 0.0  # L2 in the gradient
    train.schedule = "cosine"  # constant, cosine
    train.precision = "float32"  # of the passes: float32, or bfloat16 with parameters and updates in float32
    return train


def shrink(config: Any, inits: tuple[str, ...]) -> None:
    """Makes a config a smoke run of seconds: what `configs/x.py:quick` gives."""
    config.donor.train.steps = config.train.steps = 20
    config.features.num_images = config.recipients.num_images = 64
    config.ansatz.draws, config.ansatz.resamples = 10, 10
    config.recipients.inits, config.recipients.seeds, config.recipients.tuning_seeds = inits, 2, 1
    config.recipients.learning_rates = config.recipients.learning_rates[:1]

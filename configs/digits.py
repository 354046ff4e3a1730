"""Does a donor's NFM or AGOP make a better start than random numbers, on 8 x 8 digits?

Command:  python -m agop_jax.main --config=configs/digits.py --workdir=runs/digits
Cost:     about 1 minute on 2 CPU cores.
Expect:   every init that trains at all comes to 97 to 99 % test accuracy: the task is easy and all inits tie. It is a
          check that the program works, not evidence for an init. The original project's 'kaiming_nfm' has no control of
          scale, and 'zeros', 'normal' and 'uniform' start too small for a network without normalisation.

`configs/digits.py:quick` is a smoke run of seconds.
"""

import ml_collections

from agop_jax import INITIALIZERS

OTHER_WIDTHS = ("copy_spaced", "copy_tiled")  # the same as 'copy' where donor and recipient have one width


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = ml_collections.ConfigDict()
    config.question = "Does a donor's NFM or AGOP make a better start than random numbers, on 8 x 8 digits?"
    config.seed = 0  # of the donor, the validation split and the features

    config.data = ml_collections.ConfigDict()
    config.data.name = "digits"  # recipients' data: digits, npz:FILE
    config.data.validation = 0.2  # fraction of the training images kept for choices
    config.data.pad = 0  # random crops from images padded by so many pixels
    config.data.flip = False  # random mirror images

    config.model = ml_collections.ConfigDict()
    config.model.name = "small_cnn"  # lenet5, small_cnn, vgg11; further fields go to the model
    config.model.features = (16, 32, 64)  # channels of the convolutions

    config.donor = ml_collections.ConfigDict()
    config.donor.data = ""  # donor's data; empty: the recipients'
    config.donor.init = "kaiming_normal"  # how the donor itself starts
    config.donor.learning_rate = 0.1  # peak
    config.donor.train = train_config(steps=400)

    config.features = ml_collections.ConfigDict()
    config.features.method = "gram"  # gram, probe, patch_jacobian
    config.features.outputs = "logits"  # logits or loss
    config.features.num_images = 512  # of the donor's training split
    config.features.batch_size = 128  # images in one compiled step

    config.train = train_config(steps=200)  # recipients

    config.recipients = ml_collections.ConfigDict()
    config.recipients.inits = tuple(name for name in INITIALIZERS if name not in OTHER_WIDTHS)
    config.recipients.layers = "Conv_.*"  # regular expression: which layers are drawn anew; the rest is paired by seed
    config.recipients.seeds = 5  # paired runs of each init
    config.recipients.train_sizes = (0,)  # training images; 0: all
    config.recipients.widths = (1.0,)  # factors on the number of channels
    config.recipients.learning_rates = (0.1,)  # peaks to choose from on validation
    config.recipients.tuning_seeds = 1  # seeds of that choice
    config.recipients.num_images = 256  # unlabelled images of its own training set that a coupled or lsuv init looks at

    if mode == "quick":
        config.donor.train.steps = config.train.steps = 20
        config.recipients.inits = ("kaiming_normal", "he_nfm", "matched_isotropic")
        config.recipients.seeds = 2
        config.features.num_images = 64
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
    return train

"""Does what a CNN learned on CIFAR-100 make a better start on CIFAR-10 than random numbers, and by which route?

Command:  python -m agop_jax.main --config=configs/cifar_transfer.py --workdir=runs/transfer \
              --config.data.name=npz:cifar10.npz --config.donor.data=npz:cifar100.npz
          and with `configs/cifar_transfer.py:half` and `:double` for recipients of half and twice the donor's width.
"""

import ml_collections

from agop_jax.defaults import experiment_config, shrink


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; modes 'half' and 'double' change the recipients' width, 'quick' makes everything small."""
    config = experiment_config()
    config.question = "Does what a CNN learned on CIFAR-100 make a better start on CIFAR-10 than random numbers?"
    config.data.name = "npz:cifar10.npz"  # 50,000 + 10,000 images
    config.data.validation = 0.02  # 1,000 images: they are looked at often
    config.donor.data = "npz:cifar100.npz"
    config.model.features = (32, 64, 128, 128)
    config.donor.learning_rate = 0.05
    config.donor.train.steps = 4000
    config.features.batch_size = 64

    config.train.steps = 250
    recipients = config.recipients
    recipients.train_sizes = (2000,)
    recipients.learning_rates = (0.02, 0.05, 0.1)
    recipients.inits = (
        "kaiming_normal",
        "lsuv",
        "matched_isotropic",  # scale of 'nfm' alone
        "matched_spectrum",
        "nfm",  # the original's, each layer on its own
        "agop",
        "kaiming_nfm",
        "coupled_nfm",
        "coupled_sqrt_agop",
        "spatial",
        "first_layer_nfm",
        "copy",
        "coupled_nfm@shuffled",  # negative controls: a fit to the wrong channels,
        "coupled_nfm@untrained",  # a donor that learned nothing,
        "matched_isotropic:coupled_nfm",  # its scale alone,
        "matched_spectrum:coupled_nfm",  # the wrong eigenvectors,
        "matched_spectrum:coupled_nfm@shuffled",  # both
        "coupled_nfm@mixed=8",  # the dial from covariance to copy: each filter mixes 8 of the donor's,
        "coupled_nfm@mixed=1",  # or is one of them
    )
    if mode in ("half", "double"):
        recipients.widths = (0.5,) if mode == "half" else (2.0,)
        copy = "copy_spaced" if mode == "half" else "copy_tiled"
        recipients.inits = ("kaiming_normal", "lsuv", "coupled_nfm", "coupled_sqrt_agop", copy)
    if mode == "double":  # four times the work
        recipients.seeds, recipients.learning_rates = 3, (0.02, 0.05)
    if mode == "quick":
        shrink(config, inits=("kaiming_normal", "lsuv", "coupled_nfm", "copy"))
    return config

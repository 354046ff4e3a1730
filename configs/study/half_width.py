"""From CIFAR-100 to a network of half the donor's width on 2,000 images of CIFAR-10: which channels are worth keeping?

Command:  python -m agop_jax.main --config=configs/study/half_width.py --workdir=runs/study/half_width
          The setting is that of `transfer_2000`. Covariances of one layer alone fit no other number of input channels.
Cost:     24 minutes on one CPU core after the donors: 271 runs of 250 steps.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import finish, transfer

QUESTION = "From CIFAR-100 to half the donor's width on 2,000 images of CIFAR-10: which channels are worth keeping?"
INITS = (
    "kaiming_normal",
    "lsuv",
    "whitened",
    "coupled_nfm",
    "coupled_sqrt_agop",
    "rainbow",
    "selected",
    "copy_spaced",  # evenly spaced channels,
    "copy_ranked",  # those of the largest diagonal of the next layer's AGOP,
    "copy_ranked@by=norm",  # or of the largest norm
    "copy_dct",
)


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, inits=INITS)
    config.recipients.widths = (0.5,)
    return finish(config, mode)

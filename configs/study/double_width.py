"""From CIFAR-100 to a network of twice the donor's width on 2,000 images of CIFAR-10: what do new channels start as?

Command:  python -m agop_jax.main --config=configs/study/double_width.py --workdir=runs/study/double_width
          The setting is that of `transfer_2000`. Covariances of one layer alone fit no other number of input channels.
Cost:     115 minutes on one of two CPU cores, with other jobs beside it, after the donors: 176 runs of 250 steps.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import finish, transfer

QUESTION = "From CIFAR-100 to twice the donor's width on 2,000 images of CIFAR-10: what do new channels start as?"
INITS = (
    "kaiming_normal",
    "lsuv",
    "whitened",
    "coupled_nfm",
    "selected",
    "copy_dct",
    "copy_tiled@even",  # each channel twice; both copies stay the same for ever
    "copy_tiled",  # an uneven split of the outgoing weights, so that the copies part
)


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, inits=INITS)
    config.recipients.widths = (2.0,)
    return finish(config, mode)

"""From CIFAR-100 to 2,000 images of CIFAR-10: which part of `selected` makes the start?

Command:  python -m agop_jax.main --config=configs/study/selected_parts.py --workdir=runs/study/selected_parts
          The setting is that of `transfer_2000`. Its finished work directory, copied, saves the donors and four inits.
Cost:     about 80 minutes on one CPU core: 3 donors and some 210 runs of 250 steps; 30 minutes from such a copy.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import finish, transfer

PARTS = (
    "kaiming_normal",
    "lsuv",
    "selected",  # K=4, noise=0.5, matrix=nfm
    "selected@K=1",  # no choice
    "selected@K=16",
    "selected@noise=0.25",
    "selected@noise=1",
    "selected@matrix=agop",
    "selected@lsuv",  # a layer brought to variance 1 as a whole, not channel by channel
    "coupled_nfm@mixed=1@standardised",  # the donor's own filters, carried: no noise and no choice
    "copy",
)
QUESTION = "From CIFAR-100 to 2,000 images of CIFAR-10: which part of 'selected' makes the start?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    return finish(transfer(QUESTION, mode, inits=PARTS), mode)

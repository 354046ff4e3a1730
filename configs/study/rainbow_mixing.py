"""In a residual network, must layers of one stream share their mixing, for Procrustes and for ridge?

Command:  python -m agop_jax.main --config=configs/study/rainbow_mixing.py --workdir=runs/study/rainbow_mixing
          White et al. (2024) report that Rainbow sampling fails on ResNet-18. One donor, 5 seeds; results.csv has the
          linear probe before training.
Cost:     58 minutes on one of two CPU cores, with other jobs beside it: a donor and some 55 runs of 250 steps.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import finish, residual, transfer

MIXINGS = (
    "kaiming_normal",
    "lsuv",
    "rainbow@shared",
    "rainbow@independent",  # as its authors have it
    "coupled_nfm@shared@standardised",
    "coupled_nfm@independent@standardised",
    "copy",
)
QUESTION = "In a residual network, must layers of one stream share their mixing, for Procrustes and for ridge?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, inits=MIXINGS)
    residual(config)
    config.donor.seeds = (0,)
    config.recipients.learning_rates = (0.05, 0.2)
    return finish(config, mode)

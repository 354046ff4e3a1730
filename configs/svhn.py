"""Does a CNN trained on street-view house numbers make a better start on 1,000 of them than random numbers?

Command:  python -m agop_jax.main --config=configs/svhn.py --workdir=runs/svhn
          after `python -m agop_jax.data.prepare svhn_cropped`,
          or on a file with --config.data.name=npz:svhn.npz
Cost:     not measured.
Result:   not run yet.
"""

import ml_collections

from agop_jax.experiments.protocols import few_images

QUESTION = "Does a CNN trained on street-view house numbers make a better start on 1,000 of them than random numbers?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    return few_images(
        QUESTION, "svhn_cropped", mode
    )  # 73,257 + 26,032 images of 32 x 32; the split 'extra' is not used

"""Does a donor's NFM or AGOP make a better start than random numbers, on 8 x 8 digits?

Command:  python -m agop_jax.main --config=configs/digits.py --workdir=runs/digits
Cost:     1.8 minutes on 2 CPU cores, 2.4 of CPU time.
Result:   5 paired seeds. No init is told apart from He (98.0 +- 1.0 % test accuracy): it is easy. It checks
          the program and is no evidence for an init. copy has 99.0 +- 0.4; most are within 1.3 points of He.
          he_nfm is unsteady (63.4 +- 52.4); nfm and coupled_nfm (both 94.8) depend on the donor's seed. kaiming_nfm,
          whose scale nothing controls, and zeros, normal and uniform, too small for a network without normalisation, do
          not train.
"""

import ml_collections

from agop_jax import INITIALIZERS
from agop_jax.experiments.config import experiment_config, require_mode, shrink

SAME_AS_COPY = ("copy_spaced", "copy_tiled")  # where donor and recipient have one width


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    require_mode(mode)
    config = experiment_config()
    config.question = "Does a donor's NFM or AGOP make a better start than random numbers, on 8 x 8 digits?"
    config.model.features = (16, 32, 64)
    config.recipients.inits = tuple(name for name in INITIALIZERS if name not in SAME_AS_COPY)
    if mode == "quick":
        shrink(config, inits=("kaiming_normal", "he_nfm", "matched_isotropic"))
    return config

"""A donor has learned 1,150 small digits, recipients see 50 of them: which starts hand on what the donor knows?

Command:  python -m agop_jax.main --config=configs/digits.py --workdir=runs/digits
"""

import ml_collections

from agop_jax.experiments.config import experiment_config, require_mode, shrink


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    require_mode(mode)
    config = experiment_config()
    config.question = "A donor has learned 1,150 digits, recipients see 50: which starts hand on what the donor knows?"
    config.model.features = (16, 32, 64)
    config.train.steps, config.train.batch_size = 30, 50
    recipients = config.recipients
    recipients.train_sizes, recipients.num_images, recipients.seeds = (50,), 50, 8
    recipients.learning_rates, recipients.tuning_seeds = (0.003, 0.01, 0.03, 0.1, 0.3), 2
    recipients.inits = (
        "kaiming_normal",  # know nothing, or the 50 images alone
        "lsuv",
        "whitened",
        "nfm",  # each layer from its own matrix, with the scale or the spectrum of that alone
        "he_nfm",
        "agop",
        "matched_isotropic",
        "matched_spectrum",
        "coupled_nfm",  # the donor's channels carried along
        "coupled_nfm@shuffled",
        "rainbow",
        "selected",
        "selected@untrained",
        "copy",
    )
    if mode == "quick":
        shrink(config, inits=("kaiming_normal", "he_nfm", "matched_isotropic"))
    return config

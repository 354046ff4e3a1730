"""A donor has learned 1,150 small digits, recipients see 50 of them: which starts hand on what the donor knows?

Command:  python -m agop_jax.main --config=configs/digits.py --workdir=runs/digits
Cost:     41 seconds on 2 CPU cores with compiled code in the cache, about a minute without; 49 seconds of CPU time.
Result:   test accuracy in %, mean and 95 % t interval of 8 paired seeds; difference from kaiming_normal in points

              copy                  96.3 +- 0.9   +18.1  better
              selected              91.1 +- 1.9   +13.0  better
              rainbow               84.2 +- 1.8    +6.0
              whitened              83.5 +- 2.5    +5.3
              lsuv                  80.7 +- 2.6    +2.5
              matched_isotropic     79.3 +- 2.2    +1.1
              selected@untrained    78.9 +- 5.7    +0.8
              kaiming_normal        78.2 +- 3.9
              agop                  76.8 +- 3.8    -1.4
              coupled_nfm           74.7 +- 4.1    -3.5
              coupled_nfm@shuffled  65.1 +- 11.1  -13.1
              nfm                   29.8 +- 15.6  -48.4  worse
              he_nfm                16.6 +- 2.7   -61.6  worse

          Where no verdict stands no difference is seen. One donor, one small network, one easy task: it shows what the
          program tells, and docs/evidence.md is the evidence.
"""

import ml_collections

from agop_jax.experiments.config import experiment_config, require_mode, shrink


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    require_mode(mode)
    config = experiment_config()
    config.question = "A donor has learned 1,150 digits, recipients see 50 of them: which starts hand on what it knows?"
    config.model.features = (16, 32, 64)
    config.train.steps, config.train.batch_size = 30, 50
    recipients = config.recipients
    recipients.train_sizes, recipients.num_images, recipients.seeds = (50,), 50, 8
    recipients.learning_rates, recipients.tuning_seeds = (0.003, 0.01, 0.03, 0.1, 0.3), 2
    recipients.inits = (
        "kaiming_normal",  # know nothing, or the 50 images alone
        "lsuv",
        "whitened",
        "nfm",  # each layer from its own matrix, with the scale of that alone
        "he_nfm",
        "agop",
        "matched_isotropic",
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

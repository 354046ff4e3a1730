"""Does what a CNN learned on CIFAR-100 make a better start on CIFAR-10 than random numbers, and by which route?

Command:  python -m agop_jax.main --config=configs/cifar_transfer.py --workdir=runs/transfer \
              --config.data.name=npz:cifar10.npz --config.donor.data=npz:cifar100.npz
          `configs/study/half_width.py` and `double_width.py` have recipients of other widths than the donor's.
          `configs/study/selected_parts.py` takes `selected` apart.
Cost:     13 seconds for each of 572 runs on two CPU cores (25 of CPU time), and 3.5 minutes for each of two donors.
Result:   of the first donor (39.9 % on its own test set: CIFAR-100, 22,500 training images). Test accuracy in %, mean
          and 95 % t interval over 5 paired seeds; accuracy of a linear probe before training; learning rate, chosen on
          validation with two seeds. float32, CPU, jax 0.10.2.

              copy                            58.8 +- 0.5   52.1   0.025
              coupled_nfm@mixed=1             57.5 +- 1.4   52.3   0.06
              selected                        55.8 +- 1.5   52.4   0.06
              whitened                        54.4 +- 0.9   46.7   0.06
              coupled_nfm@noise=0.5           54.0 +- 1.4   48.9   0.025
              selected@shuffled               50.6 +- 1.3   41.2   0.025
              rainbow                         49.4 +- 1.5   45.4   0.06
              whitened_first                  48.3 +- 1.1   42.0   0.025
              orthogonal@standardised         48.0 +- 1.1   41.9   0.06
              coupled_sqrt_agop               47.3 +- 1.7   46.6   0.025
              coupled_nfm                     46.6 +- 2.2   45.5   0.025
              selected@untrained              45.4 +- 1.3   42.0   0.06
              convrfm                         45.0 +- 1.5   43.2   0.01
              convrfm@lsuv                    44.1 +- 1.8   43.2   0.06
              lsuv                            43.5 +- 0.7   42.2   0.06
              matched_spectrum:coupled_nfm    43.5 +- 1.1   42.5   0.06
              first_layer_nfm                 43.1 +- 1.9   42.1   0.025
              coupled_nfm@untrained           42.8 +- 1.2   42.0   0.06
              matched_isotropic               42.8 +- 1.3   42.2   0.06
              matched_spectrum                42.7 +- 0.9   42.1   0.06
              coupled_nfm@shuffled            42.6 +- 2.4   39.9   0.06
              rainbow@lsuv                    39.5 +- 1.2   45.5   0.06
              kaiming_normal                  39.3 +- 2.2   41.4   0.06
              agop                            39.0 +- 1.5   44.5   0.025
              spatial                         38.0 +- 2.3   43.0   0.01
              nfm                             34.3 +- 1.0   40.5   0.025

          Of what copy gains over lsuv, selected has 81 %, whitened 71 %, rainbow 39 %, coupled_nfm 20 %.
          whitened knows no donor, and is above every draw from a covariance. The controls of coupled_nfm (fit to the
          wrong channels, a donor that learned nothing, random eigenvectors) are at the level of lsuv. nfm and agop draw
          each layer on its own, and are below the controls of their scale.
          With its fit shuffled selected keeps 7.1 of its 12.3 points over lsuv; with an untrained donor 1.8; orthogonal
          filters with standardised channels have 4.4. convrfm and spatial took the smallest rate of the grid, which did
          not grow: the run is older than `outer_rates`.
"""

import ml_collections

from agop_jax.experiments.config import experiment_config, require_mode, shrink


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    require_mode(mode)
    config = experiment_config()
    config.question = "Does what a CNN learned on CIFAR-100 make a better start on CIFAR-10 than random numbers?"
    config.data.name = "npz:cifar10.npz"  # 50,000 + 10,000 images
    config.data.validation = 0.02  # 1,000 images: they are looked at often
    config.donor.data = "npz:cifar100.npz"
    config.model.features = (32, 64, 128, 128)
    config.donor.seeds = (0, 1)
    config.donor.learning_rate = 0.05
    config.donor.train.steps = 4000
    config.features.batch_size = 64

    config.train.steps = 250
    recipients = config.recipients
    recipients.train_sizes = (2000,)
    recipients.learning_rates = (0.01, 0.025, 0.06, 0.15)
    recipients.tuning_seeds, recipients.outer_rates = 2, 2
    recipients.inits = (
        "kaiming_normal",
        "lsuv",
        "orthogonal@standardised",
        "whitened",  # the images' own directions, no donor
        "whitened_first",
        "convrfm",  # images and labels, no donor
        "convrfm@lsuv",
        "nfm",  # the original's, each layer on its own
        "agop",
        "first_layer_nfm",
        "spatial",
        "matched_isotropic",  # scale of 'nfm' alone
        "matched_spectrum",
        "coupled_nfm",
        "coupled_sqrt_agop",
        "rainbow",
        "rainbow@lsuv",
        "coupled_nfm@noise=0.5",  # the dial from covariance to copy: a donor filter with half as much noise,
        "coupled_nfm@mixed=1",  # or without any
        "selected",
        "copy",
        "coupled_nfm@shuffled",  # negative controls: a fit to the wrong channels,
        "coupled_nfm@untrained",  # a donor that learned nothing,
        "matched_spectrum:coupled_nfm",  # the wrong eigenvectors
        "selected@shuffled",
        "selected@untrained",
    )
    if mode == "quick":
        shrink(config, inits=("kaiming_normal", "lsuv", "coupled_nfm", "copy"))
        config.model.features, config.ansatz.draws = (8, 16, 32, 32), 0
        config.donor.seeds, recipients.train_sizes = (), (256,)
    return config

"""Does what a CNN learned on CIFAR-100 make a better start on CIFAR-10 than random numbers, and by which route?

Command:  python -m agop_jax.main --config=configs/cifar_transfer.py --workdir=runs/transfer \
              --config.data.name=npz:cifar10.npz --config.donor.data=npz:cifar100.npz
          `configs/study/half_width.py` and `double_width.py` have recipients of other widths than the donor's.
          `configs/study/selected_parts.py` takes `selected` apart.
Cost:     13 seconds for each of some 570 runs on two CPU cores (25 of CPU time), and 3.5 minutes for each donor.
Result:   docs/initialisations.md, of two donors (39.9 and 40.0 % on their own test set: CIFAR-100, 22,500 training
          images) with five recipients each. Test accuracy in %, mean and 95 % interval over 10 paired recipients;
          accuracy of a linear probe before training. float32, CPU, jax 0.10.2.

              copy                            59.0 +- 0.3   51.3
              coupled_nfm@mixed=1             57.8 +- 1.0   51.2
              selected                        56.5 +- 0.9   52.0
              coupled_nfm@noise=0.5           55.8 +- 0.7   48.8
              whitened                        54.6 +- 0.4   48.0
              selected@shuffled               50.4 +- 0.9   40.3
              rainbow                         49.8 +- 0.9   44.3
              whitened_first                  48.5 +- 0.8   42.8
              orthogonal@standardised         47.9 +- 0.5   42.0
              coupled_sqrt_agop               47.6 +- 1.0   45.8
              coupled_nfm                     45.8 +- 1.2   45.0
              convrfm                         45.1 +- 1.6   43.2
              selected@untrained              44.9 +- 1.1   42.2
              convrfm@lsuv                    44.6 +- 1.1   43.2
              lsuv                            43.1 +- 0.8   42.4
              first_layer_nfm                 43.1 +- 1.0   41.6
              matched_spectrum:coupled_nfm    42.9 +- 0.5   42.4
              matched_isotropic               42.6 +- 0.8   42.8
              matched_spectrum                42.5 +- 0.9   42.5
              coupled_nfm@untrained           42.5 +- 1.1   43.4
              coupled_nfm@shuffled            42.4 +- 1.3   40.8
              rainbow@lsuv                    39.9 +- 0.9   45.8
              kaiming_normal                  39.4 +- 1.1   43.0
              agop                            38.7 +- 2.0   44.5
              spatial                         37.7 +- 1.5   43.3
              nfm                             33.9 +- 1.2   41.4

          Of what copy gains over lsuv, selected has 84 %, whitened 72 %, rainbow 42 %, coupled_nfm 17 %.
          whitened knows no donor, and is above every draw from a covariance. The controls of coupled_nfm (fit to the
          wrong channels, a donor that learned nothing, random eigenvectors) are at the level of lsuv. nfm and agop draw
          each layer on its own, and are below the controls of their scale.
          With its fit shuffled selected keeps 7.2 of its 13.4 points over lsuv; with an untrained donor 1.8; orthogonal
          filters with standardised channels have 4.7.
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

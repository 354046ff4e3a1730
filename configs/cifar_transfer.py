"""Does what a CNN learned on CIFAR-100 make a better start on CIFAR-10 than random numbers, and by which route?

Command:  python -m agop_jax.main --config=configs/cifar_transfer.py --workdir=runs/transfer \
              --config.data.name=npz:cifar10.npz --config.donor.data=npz:cifar100.npz
          and with `configs/cifar_transfer.py:half` and `:double` for recipients of half and twice the donor's width.
Cost:     50 minutes on 2 CPU cores; half width 43 and twice the width 60 minutes, each on one core beside other jobs.
Result:   test accuracy in %, mean and 95 % t interval over 5 paired seeds, learning rate by validation on one seed;
          float32, CPU, jax 0.10.2; donor 40.5 % on its own test set (CIFAR-100, 22,500 training images)

              copy                                   60.1 +- 0.8
              coupled_nfm@mixed=1                    58.2 +- 1.1    each filter is one of the donor's, in its basis
              coupled_sqrt_agop                      47.5 +- 1.7
              coupled_nfm@mixed=8                    47.4 +- 1.4
              matched_spectrum:coupled_nfm           45.7 +- 0.8    random eigenvectors, true fit
              coupled_nfm                            45.7 +- 1.8
              matched_isotropic:coupled_nfm          43.9 +- 0.3    scale alone
              lsuv                                   43.6 +- 1.9    scale alone
              matched_spectrum:coupled_nfm@shuffled  43.4 +- 2.1    random eigenvectors, shuffled fit
              first_layer_nfm                        43.4 +- 1.2
              matched_spectrum                       43.3 +- 1.2
              coupled_nfm@shuffled                   43.0 +- 1.5
              coupled_nfm@untrained                  42.5 +- 4.3
              matched_isotropic                      42.2 +- 1.9
              kaiming_normal                         41.3 +- 2.5
              spatial                                38.9 +- 1.7
              agop                                   38.7 +- 3.2
              nfm                                    36.7 +- 1.7
              kaiming_nfm                            does not train

          Better than kaiming_normal after correction for 18 comparisons: copy, coupled_nfm@mixed=1, lsuv.
          Explained variance of coupled_nfm's fits at the four layers: 1.00, 0.83, 0.59, 0.44. Random eigenvectors do as
          well as the donor's as long as the fit is true, so what helps is the regression on the donor's activations,
          not the covariance.

          Run again on one core with a new donor of this config, copy, coupled_sqrt_agop, coupled_nfm,
          matched_spectrum:coupled_nfm, lsuv and kaiming_normal came to 59.5, 47.7, 46.9, 45.7, 43.7 and 41.3.

          Half width                                      Twice the width (2 rates)
              copy_spaced                   50.8 +- 1.0       copy_tiled         59.7 +- 0.6
              coupled_nfm                   44.1 +- 1.8       coupled_sqrt_agop  50.8 +- 1.3
              coupled_sqrt_agop             43.7 +- 1.8       coupled_nfm        49.4 +- 2.1
              matched_spectrum:coupled_nfm  42.9 +- 2.0       lsuv               44.5 +- 1.8
              coupled_nfm@shuffled          42.3 +- 1.8       first_layer_nfm    44.0 +- 2.4
              lsuv                          41.5 +- 1.8       kaiming_normal     41.3 +- 2.8
              coupled_nfm@untrained         41.0 +- 1.6
              first_layer_nfm               40.6 +- 3.3
              kaiming_normal                38.2 +- 3.2
              spatial                       32.7 +- 8.6

          At twice the width all of these are better than kaiming_normal after correction for 5 comparisons; at half
          width copy_spaced and matched_spectrum:coupled_nfm, of 9. The wider the recipient, the better its channels
          span the donor's (explained variance at the last layer 0.31, 0.44, 0.56), and the more coupled inits gain over
          lsuv: 2.4, 3.0 and 5.6 points (mean of coupled_nfm and coupled_sqrt_agop).
"""

import ml_collections

from agop_jax.defaults import experiment_config, shrink


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; modes 'half' and 'double' change the recipients' width, 'quick' makes everything small."""
    config = experiment_config()
    config.question = "Does what a CNN learned on CIFAR-100 make a better start on CIFAR-10 than random numbers?"
    config.data.name = "npz:cifar10.npz"  # 50,000 + 10,000 images
    config.data.validation = 0.02  # 1,000 images: they are looked at often
    config.donor.data = "npz:cifar100.npz"
    config.model.features = (32, 64, 128, 128)
    config.donor.learning_rate = 0.05
    config.donor.train.steps = 4000
    config.features.batch_size = 64

    config.train.steps = 250
    recipients = config.recipients
    recipients.train_sizes = (2000,)
    recipients.learning_rates = (0.02, 0.05, 0.1)
    recipients.inits = (
        "kaiming_normal",
        "lsuv",
        "matched_isotropic",  # scale of 'nfm' alone
        "matched_spectrum",
        "nfm",  # the original's, each layer on its own
        "agop",
        "kaiming_nfm",
        "coupled_nfm",
        "coupled_sqrt_agop",
        "spatial",
        "first_layer_nfm",
        "copy",
        "coupled_nfm@shuffled",  # negative controls: a fit to the wrong channels,
        "coupled_nfm@untrained",  # a donor that learned nothing,
        "matched_isotropic:coupled_nfm",  # its scale alone,
        "matched_spectrum:coupled_nfm",  # the wrong eigenvectors,
        "matched_spectrum:coupled_nfm@shuffled",  # both
        "coupled_nfm@mixed=8",  # the dial from covariance to copy: each filter mixes 8 of the donor's,
        "coupled_nfm@mixed=1",  # or is one of them
    )
    if mode in ("half", "double"):  # a layer's own covariance fits no other number of input channels
        recipients.widths = (0.5,) if mode == "half" else (2.0,)
        copy = "copy_spaced" if mode == "half" else "copy_tiled"
        recipients.inits = ("kaiming_normal", "lsuv", "first_layer_nfm", "coupled_nfm", "coupled_sqrt_agop", copy)
    if mode == "half":  # a quarter of the work
        recipients.inits += ("coupled_nfm@shuffled", "coupled_nfm@untrained", "matched_spectrum:coupled_nfm", "spatial")
    if mode == "double":  # four times the work
        recipients.learning_rates = (0.02, 0.05)
        recipients.inits += ("coupled_nfm@shuffled", "coupled_nfm@untrained")
    if mode == "quick":
        shrink(config, inits=("kaiming_normal", "lsuv", "coupled_nfm", "copy"))
        config.model.features, config.ansatz.draws = (8, 16, 32, 32), 0
    return config

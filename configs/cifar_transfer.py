"""Does what a CNN learned on CIFAR-100 make a better start on CIFAR-10 than random numbers, and by which route?

Command:  python -m agop_jax.main --config=configs/cifar_transfer.py --workdir=runs/transfer \
              --config.data.name=npz:cifar10.npz --config.donor.data=npz:cifar100.npz
          and with `configs/cifar_transfer.py:half` and `:double` for recipients of half and twice the donor's width.
Cost:     76 minutes on one CPU core beside other jobs (50 on two idle ones); half width 43, twice the width 70.
Result:   test accuracy in %, mean and 95 % t interval over 5 paired seeds, learning rate by validation on one seed;
          float32, CPU, jax 0.10.2; donor 40.8 % on its own test set (CIFAR-100, 22,500 training images)

              copy                                   59.5 +- 1.0
              coupled_nfm@mixed=1                    57.9 +- 1.5    each filter is one of the donor's, in its basis
              coupled_nfm@mixed=8                    47.9 +- 1.4
              coupled_sqrt_agop                      47.7 +- 1.8
              coupled_nfm                            46.9 +- 1.7
              matched_spectrum:coupled_nfm           45.7 +- 1.5    random eigenvectors, true fit
              matched_isotropic:coupled_nfm          44.1 +- 0.6    scale alone
              coupled_nfm@shuffled                   43.8 +- 1.1
              lsuv                                   43.7 +- 1.9    scale alone
              matched_isotropic                      43.4 +- 0.5
              matched_spectrum                       42.9 +- 2.6
              coupled_nfm@untrained                  42.9 +- 2.7
              first_layer_nfm                        42.6 +- 1.3
              kaiming_normal                         41.3 +- 2.5
              matched_spectrum:coupled_nfm@shuffled  40.6 +- 3.4    random eigenvectors, shuffled fit
              agop                                   38.9 +- 1.9
              spatial                                37.1 +- 1.6
              nfm                                    35.4 +- 3.7
              kaiming_nfm                            does not train

          Better than kaiming_normal after correction for 18 comparisons: copy, coupled_nfm@mixed=1, @mixed=8,
          coupled_nfm, lsuv. Explained variance of coupled_nfm's fits at the four layers: 1.00, 0.83, 0.59, 0.44. Random
          eigenvectors do nearly as well as the donor's as long as the fit is true, so what helps is the regression on
          the donor's activations, more than the covariance. Another run of this config with another donor (40.5 %)
          had the same inits on top and none of the 19 more than 2.8 points from here; coupled_sqrt_agop and
          coupled_nfm were 3.9 and 2.1 points above lsuv, here 4.0 and 3.2.

          Half width                                      Twice the width (2 rates)
              copy_spaced                   50.8 +- 1.0       copy_tiled         59.7 +- 0.6
              coupled_nfm                   44.1 +- 1.8       coupled_sqrt_agop  50.8 +- 1.3
              coupled_sqrt_agop             43.7 +- 1.8       coupled_nfm        49.4 +- 2.1
              matched_spectrum:coupled_nfm  42.9 +- 2.0       lsuv               44.5 +- 1.8
              coupled_nfm@shuffled          42.3 +- 1.8       first_layer_nfm    44.0 +- 2.4
              lsuv                          41.5 +- 1.8       coupled_nfm@untrained  44.2 +- 1.9
              coupled_nfm@untrained         41.0 +- 1.6       coupled_nfm@shuffled   42.7 +- 2.1
              first_layer_nfm               40.6 +- 3.3       kaiming_normal     41.3 +- 2.8
              kaiming_normal                38.2 +- 3.2
              spatial                       32.7 +- 8.6

          At twice the width all but the negative controls, which were run later from the same donor and seeds, are
          better than kaiming_normal after correction for 5 comparisons, and the controls are at the level of lsuv; at
          half width copy_spaced and matched_spectrum:coupled_nfm are, of 9. The wider the recipient, the better its
          channels span the donor's (explained variance at the last layer 0.31, 0.44, 0.56), and the more coupled inits
          gain over lsuv: 2.4, 3.6 and 5.6 points (mean of coupled_nfm and coupled_sqrt_agop).
"""

import ml_collections

from agop_jax.experiments.config import experiment_config, require_mode, shrink


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; modes 'half' and 'double' change the recipients' width, 'quick' makes everything small."""
    require_mode(mode, ("half", "double", "parts", "quick"))
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
    recipients.tuning_seeds = 2
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
    if mode in ("half", "double"):  # a layer's own covariance fits no other number of input channels
        recipients.widths = (0.5,) if mode == "half" else (2.0,)
        copies = (
            ("copy_spaced", "copy_ranked", "copy_ranked@by=norm")
            if mode == "half"
            else ("copy_tiled@even", "copy_tiled")
        )
        recipients.inits = ("kaiming_normal", "lsuv", "whitened", "coupled_nfm", "selected", "copy_dct", *copies)
    if mode == "parts":  # what of 'selected' helps: the choice, the noise, its covariance, the standardised channels
        recipients.inits = (
            "lsuv",
            "selected",
            "selected@K=1",
            "selected@K=8",
            "selected@noise=0.25",
            "selected@noise=1",
            "selected@matrix=agop",
            "selected@lsuv",
            "coupled_nfm@mixed=1@standardised",
            "copy",
        )
    if mode == "quick":
        shrink(config, inits=("kaiming_normal", "lsuv", "coupled_nfm", "copy"))
        config.model.features, config.ansatz.draws = (8, 16, 32, 32), 0
    return config

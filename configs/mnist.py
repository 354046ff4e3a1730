"""Does a LeNet-5 trained on MNIST make a better start for another LeNet-5 than random numbers?

Command:  python -m agop_jax.main --config=configs/mnist.py --workdir=runs/mnist --config.data.name=npz:mnist.npz
Cost:     6 minutes on 2 CPU cores, beside another job.
Result:   test accuracy in %, 5 paired seeds of 1,000 images, learning rate by validation on one seed:

              copy 96.3 +- 0.3, coupled_nfm 94.5 +- 0.6, agop 94.5 +- 0.9, matched_spectrum 94.3 +- 0.3,
              matched_isotropic 94.2 +- 1.0, kaiming_normal 93.9 +- 0.9, first_layer_nfm 93.1 +- 0.9,
              nfm 69.1 +- 43.5 (of 5 seeds one does not train, one stops at 60); kaiming_nfm does not train

          Only copy is told apart from kaiming_normal: +2.4 points.
"""

import ml_collections

from agop_jax.experiments.config import experiment_config, require_mode, shrink


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    require_mode(mode)
    config = experiment_config()
    config.question = "Does a LeNet-5 trained on MNIST make a better start for another LeNet-5 than random numbers?"
    config.data.name = "npz:mnist.npz"  # 60,000 + 10,000 images, as arrays train_images, train_labels, test_...
    config.data.validation = 0.05
    config.model.name = "lenet5"
    config.donor.learning_rate = 0.05
    config.donor.train.steps = 1000
    config.train.steps = 150
    recipients = config.recipients
    recipients.train_sizes = (1000,)
    recipients.learning_rates = (0.02, 0.05, 0.1)
    recipients.inits = (
        "kaiming_normal",
        "matched_isotropic",
        "matched_spectrum",
        "nfm",
        "agop",
        "kaiming_nfm",
        "first_layer_nfm",
        "coupled_nfm",
        "copy",
    )
    if mode == "quick":
        shrink(config, inits=("kaiming_normal", "nfm", "copy"))
    return config

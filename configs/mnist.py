"""Does a LeNet-5 trained on MNIST make a better start for another LeNet-5 than random numbers?

Command:  python -m agop_jax.main --config=configs/mnist.py --workdir=runs/mnist --config.data.name=npz:mnist.npz
Cost:     COST
Expect:   RESULT
"""

import ml_collections

from agop_jax.defaults import experiment_config, shrink


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
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

"""The ansatz report of a network trained here: python benchmarks/ansatz.py MODEL DATA STEPS RATE OUT.csv [WIDTH].

For example, as reported in docs/ansatz.md:

    python benchmarks/ansatz.py lenet5 npz:mnist.npz 600 0.05 lenet5.csv
    python benchmarks/ansatz.py vgg11_bn npz:cifar10.npz 2000 0.1 vgg11bn.csv 0.25
    python benchmarks/ansatz.py vgg11 npz:cifar10.npz 600 0.05 vgg11.csv 0.5

512 test images, all logits; SGD with momentum 0.9, batch 64, cosine schedule, weight decay 5e-4, no augmentation, He's
initialisation. Writes `ansatz.csv`'s columns and prints the report's sentences.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import agop_jax
from agop_jax import models
from agop_jax.core import files
from agop_jax.data import Pipeline, load, subset
from agop_jax.results import pictures
from agop_jax.training import Run, Settings, Trainer, train
from agop_jax.training.device_data import DeviceData


def main(name: str, data: str, steps: str, rate: str, out: str, width: str = "1") -> None:
    """Trains, measures and writes."""
    dataset = load(data, validation=0.02)
    pipeline = Pipeline.of(dataset)
    model = models.create(name, dataset.num_classes, float(width))
    sample = jnp.zeros((1, *dataset.train.images.shape[1:]))
    variables = models.own_variables(model, jax.random.key(0), sample)
    start = agop_jax.initialize(model, variables, sample, None, "kaiming_normal", key=0)
    trainer = Trainer(model, pipeline, Settings(int(steps), weight_decay=5e-4))
    device_data = DeviceData.of(dataset, trainer.mesh)
    run = train(trainer, Run(trainer.start(start)), device_data, subset(dataset.train, None, 0), float(rate), 0)
    print(f"test accuracy {trainer.evaluate(run.state.variables, device_data.test)[1]:.4f}", flush=True)
    images = np.asarray(pipeline(jnp.asarray(dataset.test.images[:512])))
    rows = agop_jax.ansatz_report(model, run.state.variables, images, start)
    files.write_rows(out, rows)
    for lead, text in pictures.ansatz_words(rows):
        print(f"{lead}: {text}" if lead else text)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The ansatz report of the public ResNet-20: python benchmarks/ansatz_pretrained.py WEIGHTS.npz CIFAR10.npz OUT.csv.

512 CIFAR-10 test images, all 10 logits. Its initial weights are not known: the untrained network is a fresh draw, and
there is nothing centred. As reported in docs/ansatz.md.
"""

import sys

import jax.numpy as jnp
import numpy as np

import agop_jax
from agop_jax.core import files
from agop_jax.data import Pipeline, load
from agop_jax.models.pretrained import load_pretrained
from agop_jax.results import pictures


def main(weights: str, data: str, out: str) -> None:
    """Measures and writes."""
    donor = load_pretrained("resnet20", f"npz:{weights}")
    images = jnp.asarray(load(f"npz:{data}").test.images[:512])
    images = np.asarray(Pipeline(donor.mean, donor.std)(images))
    rows = agop_jax.ansatz_report(donor.model, donor.variables, images)
    files.write_rows(out, rows)
    for lead, text in pictures.ansatz_words(rows):
        print(f"{lead}: {text}" if lead else text)


if __name__ == "__main__":
    main(*sys.argv[1:])

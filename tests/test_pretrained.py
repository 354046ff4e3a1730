"""Donors from elsewhere: what a file must hold, what is said when it does not, and the accuracy it states."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agop_jax
from agop_jax import trees
from agop_jax.data import Pipeline
from agop_jax.errors import UserError
from agop_jax.models import create
from agop_jax.pretrained import IMAGENET_MEAN, load_pretrained, save_pretrained


def real(name: str) -> Path:
    """A file of real data, if there is any."""
    folder = os.environ.get("AGOP_JAX_DATA", "")
    if not (file := Path(folder) / name).is_file():
        pytest.skip(f"set AGOP_JAX_DATA to a folder with {name}")
    return file


def test_public_resnet20_has_its_stated_accuracy():
    """91.73 % is what its authors state (github.com/akamaster/pytorch_resnet_cifar10, ResNet20: 8.27 % error)."""
    donor = load_pretrained("resnet20", f"npz:{real('resnet20_cifar10.npz')}")
    with np.load(real("cifar10.npz")) as file:
        images, labels = file["test_images"], file["test_labels"]
    pipeline = Pipeline(donor.mean, donor.std)
    predict = jax.jit(lambda batch: donor.model.apply(donor.variables, pipeline.normalize(batch)).argmax(-1))
    batches = [slice(start, start + 500) for start in range(0, len(labels), 500)]
    hits = sum(int((predict(jnp.asarray(images[batch])) == labels[batch]).sum()) for batch in batches)
    assert abs(hits / len(labels) - 0.9173) < 0.001

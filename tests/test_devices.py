"""Many devices give what one gives: in a process of its own, with 8 virtual devices of the CPU."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from agop_jax.core import devices
from agop_jax.core.errors import UserError

PROGRAM = pathlib.Path(__file__).parent / "eight_devices.py"


@pytest.fixture(scope="module")
def differences():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "batch_size 12 is divided over 6 of 8 devices: more with a multiple of their number" in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("devices") == 8
    return found


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [16, 12, 7])
def test_training_loses_the_same_over_50_steps(differences, batch_size):
    """With BatchNorm, dropout and augmentation; 16 divides by 8, 12 and 7 do not."""
    assert differences[f"losses {batch_size}"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("method", "batch_size"), [("gram", 8), ("gram", 13), ("probe", 13), ("patch_jacobian", 13)])
def test_features_are_the_same(differences, method, batch_size):
    """AGOPs, and the standard errors of 'probe', of 29 images: no batch of 13 divides by 8, and no last one."""
    assert differences[f"{method} {batch_size} float64"] < 1e-12


@pytest.mark.slow
def test_features_in_float32_are_the_same_but_for_rounding(differences):
    """Of this network, one device's features are themselves 1e-6 away from those in float64."""
    assert differences["gram 13 float32"] < 4e-6


@pytest.mark.slow
@pytest.mark.parametrize("options", ["cholesky 1", "cg 1", "cholesky 9"])
def test_recursive_feature_machines_are_the_same(differences, options):
    """M and predictions of 53 points by either solver, and of images at nine positions."""
    assert differences[f"machine {options}"] < 1e-6


@pytest.mark.slow
def test_recipients_that_are_trained_at_once_are_the_same(differences):
    """Two at a time, on four devices each, against one at a time on eight: same rows in the same order."""
    assert differences["recipients at once"]


@pytest.mark.slow
def test_recipients_at_once_that_are_stopped_go_on(differences):
    """SIGTERM in the middle of a run: all save, and the same sweep made again is whole."""
    assert differences["recipients stopped"]


@pytest.mark.slow
def test_an_error_in_one_of_several_recipients_ends_them_all(differences):
    """While another has ten million steps to go."""
    assert differences["error at once"] == "broken"


def test_spread_pads_with_zeros_and_only_behind():
    over = devices.mesh()
    found = devices.spread(np.arange(10).reshape(5, 2), over)
    np.testing.assert_array_equal(found[:5], np.arange(10).reshape(5, 2))
    assert len(found) == devices.round_up(5, over.size)


def test_only_is_undone_at_the_end():
    with devices.only(jax.devices()[:1]):
        assert devices.mesh().size == 1
    assert devices.mesh().size == jax.device_count()


def test_batches_that_no_number_of_devices_divides_are_refused():
    with pytest.raises(UserError, match="batch_size: wanted a multiple of the number of processes, 1, got 0"):
        devices.mesh_for(0)

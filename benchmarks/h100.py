"""An H100 that need not be there: XLA compiles for its description, on any machine with the wheels of `jax[cuda12]`."""

import functools
import importlib.util
import os

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from agop_jax.core import devices
from agop_jax.core.errors import UserError

NAME, BYTES = "NVIDIA H100 80GB HBM3", 84_978_434_048
WHEELS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
DESCRIPTION = f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: {BYTES} memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{NAME}"
"""


def can_compile() -> bool:
    """Whether XLA's compiler for NVIDIA's GPUs is installed."""
    return any(importlib.util.find_spec(wheel) for wheel in WHEELS)


@functools.cache  # devices of two descriptions do not mix
def mesh() -> Mesh:
    """The card alone, for `Steps` and `Trainer`.

    Raises:
      UserError: the compiler is not installed.
    """
    if not can_compile():
        version = jax.__version__
        raise UserError(
            f"compiling for a GPU needs its compiler, 5.6 GB and no GPU: pip install 'jax[cuda12]=={version}'"
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # of versions that a driver would have to tell
    card = topologies.get_topology_desc("h100", "cuda", target_config=DESCRIPTION, topology="1x1x1").devices[0]
    return Mesh(np.array([card]), (devices.AXIS,), axis_types=(AxisType.Auto,))

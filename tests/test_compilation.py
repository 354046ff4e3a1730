"""What does not fit is refused before it runs, and compiled code is kept."""

import functools
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agop_jax
from agop_jax.core import compilation, containers, devices
from agop_jax.core.compilation import compile_within_memory, keep_compiled_code, within_memory
from agop_jax.core.errors import UserError
from agop_jax.core.networks import Cache
from agop_jax.data import Split, splits
from agop_jax.experiments import donors
from agop_jax.features import steps
from agop_jax.features.layer import LayerFeatures
from agop_jax.training import device_data


def test_needed_bytes_are_those_of_the_outputs_and_of_what_is_between():
    """A 1000 x 1000 product of float32 in between takes 4 MB, an output that takes an argument's place none."""
    x = jnp.ones((1000, 1000))
    product = compile_within_memory(lambda x: (x @ x) @ x, (x,), "it", "")
    assert 8e6 <= compilation.needed_bytes(product) < 8.1e6  # the product between, and the output
    in_place = compile_within_memory(lambda x: x + 1, (x,), "it", "", donate_argnums=0)
    assert compilation.needed_bytes(in_place) < 1e5


def test_what_does_not_fit_is_one_line(monkeypatch):
    monkeypatch.setattr(compilation, "free_bytes", lambda: 2**20)
    with pytest.raises(UserError, match=r"^a step needs 0.01 GiB of memory, 0.00 GiB are free: lower batch_size$"):
        compile_within_memory(lambda x: x @ x @ x, (jnp.ones((1000, 1000)),), "a step", "lower batch_size")


def test_memory_counts_more_than_speed_where_it_is_short():
    """Products that can overlap hold their factors at once, unless they are asked to come one after another."""

    def products(x):
        return sum(jnp.tanh(jnp.sin(x + i) @ jnp.cos(x - i)).sum() for i in range(8))

    fast, frugal = (compile_within_memory(products, (jnp.ones((500, 500)),), "it", "", ample) for ample in (2**40, 0))
    assert compilation.needed_bytes(frugal) < compilation.needed_bytes(fast)
    np.testing.assert_allclose(
        fast(np.ones((500, 500), np.float32)), frugal(np.ones((500, 500), np.float32)), rtol=1e-5
    )


def test_free_memory_is_known_on_a_cpu():
    assert 2**20 < compilation.free_bytes() < 2**50


GIB = 2**30
GROUPS = {
    # a container that sees its own group at the root, of version 2, whatever its name outside is
    "version 2": ("0::/", {"memory.max": 3 * GIB, "memory.current": GIB, "memory.stat": "anon 7\ninactive_file 1024"}),
    "version 2, by name": (
        "0::/user.slice/job",
        {"user.slice/job/memory.max": "max", "user.slice/memory.max": 3 * GIB, "user.slice/memory.current": GIB + 1024},
    ),
    "version 1": (
        "9:name=systemd:/docker/a\n4:cpu,memory:/docker/a\n0::/",
        {
            "memory/memory.limit_in_bytes": 3 * GIB,
            "memory/memory.usage_in_bytes": GIB,
            "memory/memory.stat": "inactive_file 5\ntotal_inactive_file 1024",
        },
    ),
    "version 1, by name": (
        "4:memory:/docker/a",
        {
            "memory/docker/a/memory.limit_in_bytes": 3 * GIB,
            "memory/docker/a/memory.usage_in_bytes": GIB,
            "memory/docker/a/memory.stat": "total_inactive_file 1024",
            "memory/memory.limit_in_bytes": 9223372036854771712,  # none
            "memory/memory.usage_in_bytes": 5 * GIB,
        },
    ),
}


@pytest.mark.parametrize(("own", "entries"), GROUPS.values(), ids=GROUPS)
def test_a_container_has_the_memory_of_its_group(own, entries, tmp_path, monkeypatch):
    """Of a machine with 1 TiB free, the group leaves 2 GiB, and its cache of 1 KiB counts as free."""
    for name, value in {**entries, "own": own}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    free = 2 * GIB - 1024 if "user.slice" in own else 2 * GIB + 1024
    assert containers.free_bytes(tmp_path, tmp_path / "own") == free
    assert containers.limit_bytes(tmp_path, tmp_path / "own") == 3 * GIB
    monkeypatch.setattr(
        compilation.containers, "free_bytes", functools.partial(containers.free_bytes, tmp_path, tmp_path / "own")
    )
    monkeypatch.setattr(compilation.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    assert compilation.free_bytes() == free


def test_no_container_sets_no_limit(tmp_path, monkeypatch):
    """No such files, files of no numbers, or more than the machine has: what the machine has free."""
    for own in ("none", "text"):
        (tmp_path / "text").write_text("0::/\nno group\n")
        (tmp_path / "memory.max").write_text("max\n")
        assert containers.free_bytes(tmp_path, tmp_path / own) == math.inf
        assert containers.limit_bytes(tmp_path, tmp_path / own) == math.inf
    monkeypatch.setattr(compilation.containers, "free_bytes", lambda: 2**60)
    monkeypatch.setattr(compilation.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    assert compilation.free_bytes() == 2**40


def test_data_may_take_half_of_the_containers_memory(monkeypatch):
    monkeypatch.setattr(splits.containers, "limit_bytes", lambda: 4096)
    assert splits.memory_bytes() == 4096


def test_within_memory_compiles_once_for_each_shape_and_type():
    traces = []

    def double(x):
        traces.append(x.dtype)
        return 2 * x

    step = within_memory(double, "it", "")
    for x in (np.ones(3, np.float32), np.zeros(3, np.float32), np.ones(4, np.float32), np.ones(4, np.int32)):
        np.testing.assert_array_equal(step(x), 2 * x)
    assert len(traces) == 3


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


@pytest.fixture
def network():
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    return Network(), jax.jit(Network().init)(jax.random.key(0), images), images


def test_extraction_takes_fewer_outputs_at_a_time_where_memory_is_short(network, monkeypatch):
    wanted = agop_jax.extract(*network, progress=False)
    monkeypatch.setattr(steps, "_STEPS", Cache())
    answers = iter([0, 0, math.inf])  # 10 outputs and 5 do not fit, 2 do
    monkeypatch.setattr(compilation, "free_bytes", lambda: next(answers))
    found = agop_jax.extract(*network, progress=False)
    assert next(answers, "none left") == "none left"
    for path in wanted:
        np.testing.assert_allclose(found[path].gradient_gram, wanted[path].gradient_gram, rtol=1e-5)


@pytest.mark.parametrize(("method", "outputs"), [("gram", "logits"), ("gram", [3]), ("probe", "logits")])
def test_extraction_that_does_not_fit_says_so(network, method, outputs, monkeypatch):
    monkeypatch.setattr(steps, "_STEPS", Cache())
    monkeypatch.setattr(compilation, "free_bytes", lambda: 0)
    with pytest.raises(UserError, match=r"reverse pass.*GiB are free: lower batch_size"):
        agop_jax.extract(*network, method=method, outputs=outputs, progress=False)


@pytest.mark.slow
def test_compiled_code_is_kept_in_the_cache_folder(tmp_path):
    """Of the user, unless JAX is told otherwise."""
    program = (
        "import jax; from agop_jax.core.compilation import keep_compiled_code; keep_compiled_code(); "
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0); jax.jit(lambda x: x @ x)(jax.numpy.eye(9))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    for extra, folder in (
        ({"XDG_CACHE_HOME": str(tmp_path / "cache")}, tmp_path / "cache" / "agop_jax" / "compiled"),
        ({"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "chosen")}, tmp_path / "chosen"),
    ):
        subprocess.run([sys.executable, "-c", program], env=environment | extra, check=True)
        assert any(folder.iterdir())


def test_a_cache_folder_that_was_chosen_stays(tmp_path):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        keep_compiled_code()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_a_kernel_that_cannot_be_factorised_is_refused_before_it_is(monkeypatch):
    """72 x 5: two such matrices and 5 c^2 numbers in float64, one matrix in float32: 8,200 bytes."""
    layer = LayerFeatures(jnp.zeros((3, 3, 8, 5)), jnp.eye(5), count=1, path="Conv_0")
    donors.require_room({"Conv_0": layer}, ".*")
    monkeypatch.setattr(donors, "free_bytes", lambda: 8199)
    with pytest.raises(UserError, match=r"layer 'Conv_0': factorising its 72 x 5 kernel needs 0.00 GiB of memory, .*"):
        donors.require_room({"Conv_0": layer}, ".*")
    monkeypatch.setattr(donors, "free_bytes", lambda: 8200)
    donors.require_room({"Conv_0": layer}, ".*")


def test_images_that_do_not_fit_the_device_are_refused_before_they_are_copied(monkeypatch):
    """6 images of 4 x 4 x 3 bytes: 288."""
    split = Split(np.zeros((6, 4, 4, 3), np.uint8), np.zeros(6, np.int32))
    monkeypatch.setattr(device_data, "free_bytes", lambda: 287)
    with pytest.raises(UserError, match=r"GiB are free: lower config.data.memory, so that they stay on disk"):
        device_data.on_devices(split, devices.mesh())
    monkeypatch.setattr(device_data, "free_bytes", lambda: 288)
    np.testing.assert_array_equal(device_data.on_devices(split, devices.mesh()).images[:6], split.images)


def convolution(images, kernel):
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.skipif(not compilation.compiler_options(), reason="this XLA has no such option, or this is no CPU")
def test_convolutions_are_compiled_without_the_slow_library():
    """XLA names its fusions after the library that runs them; values are those of float64 either way."""
    rng = np.random.default_rng(0)
    arguments = rng.normal(size=(8, 16, 16, 32)).astype(np.float32), rng.normal(size=(3, 3, 32, 64)).astype(np.float32)
    plain = jax.jit(convolution).lower(*arguments).compile()
    ours = [compile_within_memory(convolution, arguments, "it", ""), compilation.jit(convolution)]
    assert "ynn_fusion" in plain.as_text()
    assert "ynn_fusion" not in ours[0].as_text()
    assert "ynn_fusion" not in ours[1].lower(*arguments).compile().as_text()
    with jax.enable_x64(True):
        exact = convolution(*(np.asarray(array, np.float64) for array in arguments))
    for compiled in (plain, *ours):
        np.testing.assert_allclose(compiled(*arguments), exact, rtol=1e-4, atol=1e-3)


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "EIGEN_CONVOLUTIONS", {"xla_cpu_option_of_another_version": "1"})
    assert compilation._cpu_options.__wrapped__() == {}

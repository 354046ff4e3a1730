"""What all tests share. The shapes in the package's signatures are checked at run time under pytest only."""

# ruff: noqa: E402

import gc
import math
import mmap
import os
import pathlib
import re

import jaxlib

# shared by the workers and by the programs that tests start, which compile the same networks again and again
COMPILED = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tolerances and times are those of a CPU; set it to test an accelerator
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests and the programs that they start run once or twice what they compile, so XLA leaves out its costly passes, and
# its fusion emitters, with which a small function takes 1.5 to 2.5 times as long to compile.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def _set_xla_flag(name: str, value: str) -> None:
    """XLA ends a process that sets a flag which it does not know, so the library is searched for the name."""
    library = pathlib.Path(jaxlib.__file__).parent / "libjax_common.so"
    if not library.exists():
        return
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(name.encode()) >= 0:
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{name}={value}".strip()


if "XLA_FLAGS" not in os.environ:  # workers inherit it
    _set_xla_flag("xla_cpu_use_fusion_emitters", "false")
    _set_xla_flag("xla_cpu_parallel_codegen_split_count", "1")  # each worker has one core

from jaxtyping import install_import_hook

# Modules without shapes are left to pyright: a checked call takes 0.1 ms, and walks over graphs make thousands.
PACKAGE = pathlib.Path(__file__).parent.parent / "agop_jax"
SHAPED = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if re.search("from agop_jax.core.types import (?!Array$)", path.read_text(), re.MULTILINE)  # `Array` has no shape
]
install_import_hook(SHAPED, "beartype.beartype")  # before the first import of the package

import jax
import pytest
from shared_context import share

forget_context = share()


def pytest_configure(config):
    """The hint in question is one of Flax, in the signature of `nnx.State`."""
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


def pytest_collection_finish():
    """Modules stay to the end, so the collector of cycles need not look at them; tracing makes it look often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture
def x64():
    """float64 for one test; its arrays must be made inside."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _forgetful():
    """What one file compiled is of little use to the next; kept, it took a worker to 6 GB."""
    yield
    jax.clear_caches()
    forget_context()


@pytest.fixture
def largest_intermediate():
    """(function, *arguments) -> how many elements the largest array has that the function makes on its way."""

    def measure(function, *arguments):
        return max(math.prod(shape) for shape in _shapes(jax.make_jaxpr(function)(*arguments).jaxpr))

    return measure


def _shapes(jaxpr):
    """Of the results of all operations, those inside jit, loops and custom derivatives included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)  # a closed jaxpr holds an open one
            if hasattr(inner, "eqns"):
                yield from _shapes(inner)

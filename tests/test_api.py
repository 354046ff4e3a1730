"""The page of the API lists every public name once, under its shortest path, and three modules."""

import importlib
import re
from pathlib import Path

import agop_jax

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
PACKAGES = [
    "core",
    "features",
    "data",
    "models",
    "initializers",
    "rfm",
    "analysis",
    "results",
    "training",
    "experiments",
]
MODULES = {"agop_jax.core.devices", "agop_jax.core.hosts", "agop_jax.results.feature_figures"}


def public_paths() -> set[str]:
    packages = {name: importlib.import_module(f"agop_jax.{name}") for name in PACKAGES}
    own = {f"agop_jax.{name}" for name in agop_jax.__all__}
    shared = {id(getattr(agop_jax, name)) for name in agop_jax.__all__}
    return own | {
        f"agop_jax.{package}.{name}"
        for package, module in packages.items()
        for name in module.__all__
        if id(getattr(module, name)) not in shared
    }


def test_the_page_lists_every_public_name_once():
    listed = re.findall(r"^::: (\S+)$", PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(public_paths() | MODULES)


def test_names_of_the_package_are_public_in_theirs():
    packages = [importlib.import_module(f"agop_jax.{name}") for name in PACKAGES]
    public = {id(getattr(module, name)) for module in packages for name in module.__all__}
    assert {name for name in agop_jax.__all__ if id(getattr(agop_jax, name)) not in public} == set()

"""The house: ten packages, and an import may only point down. Packages on one line do not know each other."""

import ast
import importlib
import inspect
import pathlib
import pkgutil

import jax.numpy as jnp
import jaxtyping
import pytest

import agop_jax
from agop_jax.analysis import theory

PACKAGE = pathlib.Path(agop_jax.__file__).parent
HOUSE = """
    main compare export
    experiments
    training initializers rfm analysis results
    data models features
    core
"""
FLOORS = [line.split() for line in HOUSE.split("\n") if line.strip()]
FLOOR = {name: number for number, names in enumerate(reversed(FLOORS)) for name in names}
PACKAGES = sorted(FLOOR.keys() - {"main", "compare", "export"})


def sources() -> list[pathlib.Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def room(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path: pathlib.Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "agop_jax":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agop_jax."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("agop_jax.")}
    return rooms


def test_every_room_has_a_floor():
    assert {room(path) for path in sources()} == set(FLOOR)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = room(path)
    assert not {name for name in imported_rooms(path) - {own} if FLOOR[name] >= FLOOR[own]}


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_are_there_and_hide_no_module(name):
    package = importlib.import_module(f"agop_jax.{name}")
    assert all(hasattr(package, public) for public in package.__all__)
    for module in pkgutil.iter_modules(package.__path__):
        assert not inspect.isroutine(getattr(package, module.name, None)), f"{name}.{module.name}"
    assert package.__all__ == sorted(package.__all__, key=lambda public: (public.upper() != public, public))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_depends_on_assertions(path):
    """Python leaves them out with -O."""
    assert not [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]


def test_shapes_of_signatures_are_checked_under_pytest():
    with pytest.raises(jaxtyping.TypeCheckError, match="squared"):
        theory.squared(jnp.zeros((3, 2)), jnp.zeros((4, 2)))

"""The layers of the package: an import may only point to a smaller level."""

import ast
import pathlib

import agop_jax

PACKAGE = pathlib.Path(agop_jax.__file__).parent
LEVELS = [
    {"defaults", "errors", "types"},
    {"decompositions", "hosts"},
    {"batches", "compilation", "devices", "feature_matrix", "patches", "protocols", "results", "statistics", "trees"},
    {"figures", "layer_features", "logs", "summary"},
    {"data", "feature_figures", "models", "sources", "taps"},
    {"agop", "device_data", "initializers", "pictures", "store", "streams", "taps_nnx", "workdir"},
    {"coupling", "extract", "pretrained", "report", "train"},
    {"ansatz", "evolution", "resumable", "sweep_tables", "theory", "transforms", "transplant"},
    {"donors"},
    {"recipients"},
    {"gallery"},
    {"experiment"},
    {"main"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def imported_modules(path: pathlib.Path) -> set[str]:
    """Top-level modules of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "agop_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agop_jax."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("agop_jax.")}
    return found


def module_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def sources() -> list[pathlib.Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def test_every_module_has_a_level():
    assert {module_of(path) for path in sources()} == set(LEVEL)


def test_imports_point_to_a_smaller_level():
    for path in sources():
        module = module_of(path)
        wrong = {name for name in imported_modules(path) - {module} if LEVEL[name] >= LEVEL[module]}
        assert not wrong, f"{module} (level {LEVEL[module]}) imports {wrong}"

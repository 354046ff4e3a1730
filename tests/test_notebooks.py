"""The notebooks as they are stored; that they run is checked by `pytest --nbmake notebooks`."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NOTEBOOKS = {path.name: json.loads(path.read_text()) for path in PATHS}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_stored_without_outputs(name):
    code = [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_all_begin_with_the_same_installation():
    assert len(NOTEBOOKS) == 6
    assert len({"".join(notebook["cells"][1]["source"]) for notebook in NOTEBOOKS.values()}) == 1


def test_the_repository_is_written_in_one_place():
    spec = importlib.util.spec_from_file_location("set_repository", FOLDER / "set_repository.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    name, notebook = next(iter(NOTEBOOKS.items()))
    url = "https://github.com/somebody/agop_jax"
    found = module.with_repository(copy.deepcopy(notebook), name, url)
    again = module.with_repository(copy.deepcopy(found), name, url)
    assert found == again
    badge, install = ("".join(cell["source"]) for cell in found["cells"][:2])
    assert f"(https://colab.research.google.com/github/somebody/agop_jax/blob/main/notebooks/{name})" in badge
    assert install.startswith(f'REPOSITORY = "{url}"  # ')
    with pytest.raises(SystemExit, match="wanted https://github.com/OWNER/NAME"):
        module.with_repository(copy.deepcopy(notebook), name, "somebody/agop_jax")

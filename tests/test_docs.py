"""Every Python block of the documentation runs, and every formula and picture of it is served by the site itself."""

import contextlib
import re
import textwrap
from pathlib import Path

import fields_page
import jax
import pytest

from agop_jax.results import tables

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
QUICK = ("README", "mathematics", "original", "data", "statistics", "ansatz")  # run by every test command
OPTIONAL = ("equinox", "haiku", "torch")  # what a reader of one tab has installed
# what a page shows with more work than a test should do: (what it says, what runs)
SMALLER = {
    "index.md": [
        ("labels[many], 200)", "labels[many], 2)"),
        ("labels[few], 30)", "labels[few], 2)"),
        ('"kaiming_normal", "nfm", "coupled_nfm", "copy"', '"kaiming_normal", "coupled_nfm"'),
        ("(1, 2, 3)", "(1,)"),
    ],
    "README.md": [
        ("labels[many], 200)", "labels[many], 2)"),
        ("labels[few], 30)", "labels[few], 2)"),
        ('"kaiming_normal", "nfm", "coupled_nfm", "copy"', '"kaiming_normal", "nfm"'),
    ],
    "experiment.md": [('"he_nfm", "matched_isotropic:he_nfm", "copy"', '"he_nfm"'), ("seeds = 3", "seeds = 2")],
    "rfm.md": [("(200, 20)", "(40, 20)"), ("features=(4, 4)", "features=(4,)")],
}


def blocks(path: Path) -> list[str]:
    """The Python code of a page, that of tabs and lists included, as a reader would paste it."""
    text = path.read_text(encoding="utf-8")
    for said, run in SMALLER.get(path.name, []):
        assert said in text, f"{path.name} says no longer {said!r}"
        text = text.replace(said, run)
    return [textwrap.dedent(code) for _, code in BLOCK.findall(text)]


@pytest.fixture
def _there(tmp_path, monkeypatch):
    """An empty directory with the one file that a page takes for given; nothing is printed."""
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(ImportError):
        import torch

        torch.save({"features.0.weight": torch.zeros(2, 3, 3, 3)}, "vgg11.pth")
    monkeypatch.setattr("builtins.print", lambda *arguments, **options: None)


@pytest.mark.usefixtures("_there")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if page.stem in QUICK else pytest.mark.slow, id=page.stem)
        for page in PAGES
        if blocks(page)
    ],
)
def test_code_of_a_page_runs(page):
    """From top to bottom in one namespace, as in a notebook."""
    namespace, missing = {"__name__": "__main__"}, set()
    for number, code in enumerate(blocks(page), 1):
        try:
            exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            missing.add(error.name)
    jax.clear_caches()
    if missing:
        pytest.skip(f"all but the blocks that need {', '.join(sorted(missing))}, not installed")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_fences_say_their_language(page):
    """A block without a language would be run by no test, and coloured at random."""
    opened = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[::2]
    assert set(opened) <= {"python", "bash", "text"}


def test_the_site_asks_no_other_host():
    """KaTeX with the fonts that its style sheet names, and every picture, lie in `docs/`."""
    assert "font: false" in (ROOT / "mkdocs.yml").read_text()
    style = (DOCS / "katex" / "katex.min.css").read_text()
    fonts = {path.stem for path in (DOCS / "katex" / "fonts").iterdir()}
    assert {"KaTeX_Main-Regular", "KaTeX_Math-Italic", "KaTeX_AMS-Regular", "KaTeX_Size1-Regular"} <= fonts
    assert all(f"fonts/{name}.woff2" in style for name in fonts)
    for page in PAGES:
        for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (DOCS / link.partition("#")[0]).is_file(), f"{page.name}: {link}"


def test_the_guide_names_every_column():
    """Of `results.csv`, in the first cells of its table, each once."""
    text = (DOCS / "experiment.md").read_text(encoding="utf-8")
    table = text.partition("### Columns of results.csv")[2].partition("###")[0]
    named = [
        name
        for cell in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    ]
    assert sorted(named) == sorted([*tables.RESULT_COLUMNS, tables.ENVIRONMENT])


def test_page_of_fields_is_made_from_the_sections():
    """`python tests/fields_page.py` writes it anew."""
    text = fields_page.PAGE.read_text()
    before, after = fields_page.MARKS
    assert text.split(before)[1].split(after)[0] == fields_page.tables()

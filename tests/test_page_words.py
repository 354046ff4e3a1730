"""What the page says beside its numbers: facts under the title, names, columns, learning rates at an end, contents."""

import json
import re

import pytest
from test_report import Tags, grid, recipient, write_minimal

from agop_jax.core import files
from agop_jax.experiments.sections import DataConfig, DonorConfig, ModelConfig
from agop_jax.experiments.settings import Config
from agop_jax.initializers.registry import OPTIONS, description
from agop_jax.results.page import write_report
from agop_jax.training import Settings

SPLITS = {"train": 1150, "validation": 288, "test": 359}
VALUES = {"mix=": "0.5", "matrix=": "agop", "mixed=": "2", "noise=": "0.7", "K=": "8", "by=": "norm"}
BASES = {"mix=": "he_nfm", "by=": "copy_ranked", "even": "copy_tiled"}


def page_of(path, rows, config=None, data=None):
    write_minimal(path, rows)
    if config is not None:
        files.atomic_write_text(path / "config.json", json.dumps(config))
    if data is not None:
        files.atomic_write_text(path / "data.json", json.dumps(data))
    write_report(path, description, donor_free={"kaiming_normal"})
    return (path / "report.html").read_text(encoding="utf-8")


def facts(page):
    line = re.search(r'</h1>\s*<p class="facts what">(.*?)</p>', page, re.S)
    assert line
    return re.findall("<span>(.*?)</span>", line[1])


def test_facts_under_the_title_are_those_of_config_and_data(tmp_path):
    """Whatever the question says: it may be that of a config whose data were changed on the command line."""
    config = Config(
        question="What do 1,150 digits teach?",
        data=DataConfig(name="folder:/home/me/shapes"),
        model=ModelConfig("small_cnn", {"features": (8, 16)}),
        donor=DonorConfig(data="npz:/data/cifar100.npz", train=Settings(steps=2000)),
        train=Settings(steps=250),
    )
    data = {"name": "shapes", "images": SPLITS, "donor": {"images": {"train": 40_000}}}
    rows = grid(["kaiming_normal", "copy"], sizes=(50, 1150))
    assert facts(page_of(tmp_path, rows, config.to_dict(), data)) == [
        "small_cnn 8-16",
        "donor: cifar100 (40,000 training images), recipients: shapes",
        "50, 1,150 of 1,150 training, 288 validation and 359 test images",
        "1 donor, 2,000 steps",
        "3 seeds",
    ]


def test_facts_of_several_donors_and_of_all_images(tmp_path):
    config = Config(data=DataConfig(name="digits"), donor=DonorConfig(source="rfm:"), train=Settings(steps=250))
    rows = [
        recipient(init, 1000 * donor + seed, train_size=1150) | {"donor": donor}
        for init in ("kaiming_normal", "copy")
        for donor in (0, 1)
        for seed in range(2 + donor)
    ]
    assert facts(page_of(tmp_path, rows, config.to_dict(), {"images": SPLITS}))[1:] == [
        "donor and recipients: digits",
        "1,150 training, 288 validation and 359 test images",
        "2 donors, rfm:",
        "2 to 3 seeds each",
    ]


def test_facts_of_an_older_version_are_those_that_it_wrote(tmp_path):
    assert facts(page_of(tmp_path, grid(["kaiming_normal"], seeds=1))) == [
        "small_cnn 32-64-128-128",
        "2,000 training images",
        "1 donor",
        "1 seed",
    ]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_described_after_its_base(option):
    base = BASES.get(option, "coupled_nfm")
    name = f"{base}@{option}{VALUES.get(option, '')}"
    text = description(name)
    start, words = f"{description(base)}; @{option}{VALUES.get(option, '')}: ", text.rpartition(": ")[2]
    assert text == start + words
    assert words
    assert "{" not in words
    assert VALUES.get(option, "") in words


def test_names_on_the_page_have_base_control_and_options(tmp_path):
    name = "matched_spectrum:coupled_nfm@mixed=2@lsuv"
    text = "".join(Tags(page_of(tmp_path, grid(["kaiming_normal", "copy"]) + renamed("copy", name))).text)
    assert (
        "random eigenvectors, as coupled_nfm; @mixed=2: each filter mixes 2 of the donor's; @lsuv: each layer" in text
    )
    assert description("nobody's") == description("he_nfm@nothing") == ""


def renamed(init, name):
    return [row | {"init": name} for row in grid([init])]


@pytest.mark.parametrize(
    ("accuracies", "chosen", "warned"),
    [
        ((0.9, 0.8, 0.7), 0, True),
        ((0.7, 0.8, 0.9), 2, True),
        ((0.9, 0.9, 0.7), 0, False),  # its neighbour does as well
        ((0.7, 1.0, 1.0), 2, False),
        ((0.7, 0.9, 0.8), 1, False),
        ((0.9,), 0, False),
        ((0.9, 0.8), 0, True),
    ],
)
def test_a_rate_at_an_end_is_pointed_out_where_it_beats_its_neighbour(tmp_path, accuracies, chosen, warned):
    key = {"init": "copy", "train_size": 2000, "width": 1.0, "budget": 250, "validation_loss": 1.0}
    rates = [
        key | {"learning_rate": rate, "seed": seed, "validation_accuracy": accuracy, "chosen": int(place == chosen)}
        for place, (rate, accuracy) in enumerate(zip((0.3, 0.1, 0.03), accuracies, strict=False))
        for seed in (0, 1)
    ]
    files.write_rows(tmp_path / "learning_rates.csv", rates)
    page = page_of(tmp_path, grid(["kaiming_normal", "copy"], seeds=1))
    assert ("The learning rate chosen for copy" in page) == warned


def test_every_column_is_explained_and_every_link_of_the_contents_leads_somewhere(tmp_path):
    page = page_of(tmp_path, grid(["kaiming_normal", "copy"], sizes=(50, 100)))
    table = re.search(r'<table class="summary">.*?</thead>', page, re.S)
    assert table
    heads = [(attributes.get("title"), attributes["scope"]) for tag, attributes in Tags(table[0]).found if tag == "th"]
    assert len(heads) == 12
    assert all(title for title, _ in heads)
    listed = page.partition("What the columns mean")[2].partition("</details>")[0]
    assert listed.count("<dt>") == 12
    assert page.count("What the columns mean") == 1
    nav = page.partition('<nav aria-label="Contents">')[2].partition("</nav>")[0]
    links = re.findall(r'href="#([^"]+)"', nav)
    ids = [attributes["id"] for _, attributes in Tags(page).found if "id" in attributes]
    assert links == ["setting-1", "setting-2", "trends", "more", "names"]
    assert set(links) <= set(ids)

"""The report on a synthetic work directory whose numbers are known."""

import csv
import html.parser
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from agop_jax.core import files
from agop_jax.core.errors import UserError
from agop_jax.experiments import leftovers
from agop_jax.results import feature_figures, figures, pictures, tables
from agop_jax.results.page import write_report

CHANCE = 0.1
TIMES = "\N{MULTIPLICATION SIGN}"
# init -> mean accuracy it trains to
ACCURACY = {
    "kaiming_normal": 0.44,
    "copy": 0.62,
    "coupled_nfm": 0.514,
    "coupled_sqrt_agop": 0.513,
    "he_nfm": 0.43,
    "he_agop": 0.352,
    "he_sqrt_agop": 0.41,
    "nfm": 0.394,
    "agop": 0.40,
    "matched_isotropic": 0.451,
    "matched_spectrum": 0.446,
    "matched_isotropic:coupled_sqrt_agop": 0.452,
    "matched_spectrum:coupled_sqrt_agop": 0.449,
    "kaiming_uniform": 0.437,
    "xavier_normal": 0.442,
    "default": 0.41,
    "orthogonal": 0.46,
    "delta_orthogonal": 0.453,
    "lsuv": 0.4515,
    "zeros": CHANCE,
}
DIVERGING = "kaiming_nfm"
DESCRIPTIONS = {name: f"what {name} is" for name in ACCURACY} | {"nfm": "<script>alert('&')</script>"}


def describe(init):
    return DESCRIPTIONS.get(init, "")


def accuracy(init, seed, train_size=2000, width=1.0):
    """Seeds differ by 1 point for all inits alike, and by up to 0.3 points of their own."""
    own = 0.003 * math.sin(7 * seed + len(init))
    more = 0.03 * math.log2(train_size / 2000) + 0.02 * math.log2(width)
    return ACCURACY[init] + (0 if init == "zeros" else 0.01 * (seed - 1) + own + more)


def recipient(init, seed, train_size=2000, width=1.0):
    diverged = init == DIVERGING
    reached = CHANCE if diverged else accuracy(init, seed, train_size, width)
    row = dict.fromkeys(tables.RESULT_COLUMNS, reached)
    losses = dict.fromkeys(("test_loss", "validation_loss", "train_loss"), math.nan if diverged else 1.5)
    counts = {"steps": 250, "budget": 250, "seconds": 3.2, "images_per_second": 5000.0, "diverged": int(diverged)}
    counts |= {"donor": 0, "probe_accuracy": 0.3, "nearest_cosine": 1.0 if init == "copy" else 0.4}
    counts["draw_seconds"] = 0.25
    place = {"init": init, "seed": seed, "train_size": train_size, "width": width, "learning_rate": 0.1}
    return row | losses | counts | place


def curve(row):
    """Accuracy rises from chance to what the recipient reaches; a diverged one loses its losses."""
    lines = []
    for step in range(0, 251, 25):
        reached = CHANCE + (row["validation_accuracy"] - CHANCE) * (1 - math.exp(-step / 60)) / (
            1 - math.exp(-250 / 60)
        )
        loss = None if row["diverged"] and step else 2.3 - 1.5 * (reached - CHANCE)
        gap = 0.002 * step * row["validation_accuracy"]
        lines.append(
            {
                "step": step,
                "train_loss": None if loss is None else loss - gap,
                "train_accuracy": min(1.0, reached + gap / 4),
                "validation_loss": loss,
                "validation_accuracy": reached,
            }
        )
    return "\n".join(json.dumps(line) for line in lines) + "\n"


def write_minimal(path, rows, variance="moderated"):
    files.write_rows(path / "results.csv", rows)
    question = "Does <b>any</b> start from a donor's feature matrices help?"
    config = {"question": question, "seed": 0, "model": {"name": "small_cnn", "features": [32, 64, 128, 128]}}
    config["train"] = {"steps": 250}
    config["statistics"] = {"variance": variance, "margin": 1.0}
    environment = {"agop_jax": "0.1.0", "jax": "0.10.2", "device": "2 x <cpu>", "date": "2025-01-01 12:00:00 +0000"}
    files.atomic_write_text(path / "config.json", json.dumps(config))
    files.atomic_write_text(path / "environment.json", json.dumps(environment))


def write_optional(path, rows):
    rng = np.random.default_rng(0)
    for row in rows:
        name = tables.recipient_name(row["init"], tables.Setting.of(row), row["seed"], 250)
        files.atomic_write_text(path / "metrics" / f"{name}.jsonl", curve(row))
        if row["seed"] == 0:
            (path / "filters").mkdir(exist_ok=True)
            initial = rng.normal(size=(3, 3, 3, 16))
            trained = initial * (math.nan if row["diverged"] else 1.1) + 0.2
            np.savez(path / "filters" / f"{name}.npz", initial=initial, trained=trained)
    files.atomic_write_text(path / "metrics" / "donor.jsonl", curve(recipient("copy", 0)))
    files.atomic_write_text(path / "donor.json", json.dumps({"test_accuracy": 0.712, "validation_accuracy": 0.7}))
    key = {"train_size": 2000, "width": 1.0, "seed": 0}
    rates = [
        {
            "init": init,
            "learning_rate": rate,
            "validation_accuracy": 0.3 + rate,
            "validation_loss": 1.5,
            "chosen": chosen,
        }
        for init, best in (("copy", 0.1), ("he_nfm", 0.3))
        for rate, chosen in ((rate, int(rate == best)) for rate in (0.03, 0.1, 0.3))
    ]
    files.write_rows(path / "learning_rates.csv", [key | row for row in rates])
    fits = [("Conv_1", 0.8), ("Conv_2", 0.57), ("Conv_3", 0.47)]
    fit_rows = [{"init": "coupled_nfm", **key, "layer": layer, "explained_variance": r2} for layer, r2 in fits]
    files.write_rows(path / "fits.csv", fit_rows)
    spectra = [
        {"layer": f"Conv_{layer}", "matrix": matrix, "index": i, "eigenvalue": math.exp(-i * rate)}
        for layer in range(4)
        for matrix, rate in (("nfm", 0.1), ("agop", 0.4))
        for i in range(32)
    ]
    files.write_rows(path / "spectra.csv", spectra)


def grid(inits, seeds=3, sizes=(2000,), widths=(1.0,)):
    return [recipient(i, s, n, w) for n in sizes for w in widths for i in inits for s in range(seeds)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """20 inits and one that diverges, 3 seeds, everything there: (directory, table)."""
    path = tmp_path_factory.mktemp("work")
    rows = grid([*ACCURACY, DIVERGING])
    write_minimal(path, rows, "own")  # whose numbers a textbook gives
    write_optional(path, rows)
    return path, write_report(path, describe, 0.2)


@pytest.fixture(scope="module")
def page(finished):
    return (finished[0] / "report.html").read_text(encoding="utf-8")


def read_summary(path):
    with (path / "summary.csv").open(newline="") as file:
        return {(row["init"], int(row["train_size"]), float(row["width"])): row for row in csv.DictReader(file)}


def t_interval(values, level=0.05):
    """Mean, low and high, from the textbook."""
    mean, sd, n = np.mean(values), np.std(values, ddof=1), len(values)
    half = stats.t.ppf(1 - level / 2, n - 1) * sd / math.sqrt(n)
    return mean, mean - half, mean + half


class Tags(html.parser.HTMLParser):
    """Every tag with its attributes, and the text by the tag it stands in."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.slow
def test_page_loads_nothing_from_elsewhere(page):
    tags = Tags(page).found
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe", "object")]
    sources = [attributes["src"] for _, attributes in tags if "src" in attributes]
    assert len(sources) == 6
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import", page)


def test_page_is_accessible(page):
    tags = Tags(page).found
    assert ("html", {"lang": "en"}) in tags
    assert [tag for tag, _ in tags].count("h1") == 1
    assert all(attributes["alt"] for tag, attributes in tags if tag == "img")
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_poor_fit_is_pointed_out(tmp_path, page):
    assert "hardly coupled" not in page  # the smallest of its fits explains 47 %
    rows = grid(["kaiming_normal", "coupled_nfm"])
    write_minimal(tmp_path, rows)
    key = {"init": "coupled_nfm", "train_size": 2000, "width": 1.0, "seed": 0}
    files.write_rows(tmp_path / "fits.csv", [{**key, "layer": "Conv_1", "explained_variance": 0.19}])
    write_report(tmp_path, describe, 0.2)
    assert "Of a layer of coupled_nfm less than 20 % is explained" in (tmp_path / "report.html").read_text()


def test_page_lists_every_init(finished, page):
    text = "".join(Tags(page).text)
    for init in (*ACCURACY, DIVERGING):
        assert init in text
        assert init in finished[1]


def test_text_is_escaped(page):
    assert "Does &lt;b&gt;any&lt;/b&gt; start" in page
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;" in page
    assert "2 x &lt;cpu&gt;" in page


@pytest.mark.parametrize("init", [DIVERGING, "zeros"])
def test_init_that_diverges_or_stays_at_chance_does_not_train(finished, page, init):
    assert read_summary(finished[0])[init, 2000, 1.0]["trains"] == "0"
    row = re.search(rf'<tr class="idle">\s*<th scope="row">{init.replace("_", "_<wbr>")}</th>.*?</tr>', page, re.S)
    assert row
    assert "does not train" in row[0]
    line = next(line for line in finished[1].splitlines() if line.startswith(init))
    assert line.endswith("does not train")


def test_summary_has_the_numbers_of_a_hand_calculation(finished):
    row = read_summary(finished[0])["coupled_nfm", 2000, 1.0]
    own, he, copy = ([accuracy(init, seed) for seed in range(3)] for init in ("coupled_nfm", "kaiming_normal", "copy"))
    assert [float(row[name]) for name in ("test_accuracy", "low", "high")] == pytest.approx(t_interval(own))
    compared = len(ACCURACY) + 1 - 1  # with the one that diverges, without He
    wanted = t_interval(np.subtract(own, he), 0.05 / compared)
    assert [float(row[f"he_{name}"]) for name in ("difference", "low", "high")] == pytest.approx(wanted)
    assert row["he_verdict"] == "better"
    gain = (np.mean(own) - np.mean(he)) / (np.mean(copy) - np.mean(he))
    assert float(row["copy_recovered"]) == pytest.approx(gain)
    assert (row["n"], row["diverged"], row["learning_rate"]) == ("3", "0", "0.1")
    assert read_summary(finished[0])[DIVERGING, 2000, 1.0]["diverged"] == "3"


def test_control_is_the_one_made_for_the_init(finished, page):
    """nfm has the bare controls, coupled_sqrt_agop has its own, and no other init has any."""
    summary = read_summary(finished[0])
    row = summary["coupled_sqrt_agop", 2000, 1.0]
    assert row["control"].endswith(":coupled_sqrt_agop")
    own, control = ([accuracy(init, seed) for seed in range(3)] for init in ("coupled_sqrt_agop", row["control"]))
    assert float(row["control_difference"]) == pytest.approx(np.mean(own) - np.mean(control))
    assert {init for (init, *_), row in summary.items() if row["control"]} == {"nfm", "coupled_sqrt_agop"}
    assert "Better than its matched control (points):</b> coupled_<wbr>sqrt_<wbr>agop" in page


def test_steps_to_he(finished):
    """He needs all its 250 steps to get where it ends, a better init fewer, a worse one never gets there."""
    steps = {init: float(row["steps_to_he"]) for (init, _, _), row in read_summary(finished[0]).items()}
    assert steps["kaiming_normal"] == 250
    assert steps["copy"] < steps["coupled_nfm"] < 250
    assert steps["nfm"] == math.inf


def test_words_name_what_is_better_and_what_may_be_scale(page):
    text = re.sub(r"\s+", " ", "".join(Tags(page).text))
    assert "Better than He (points): copy +17.5, coupled_nfm +7.0," in text
    assert "Did not train at all (diverged or stayed at chance): kaiming_nfm, zeros" in text
    assert "The learning rate chosen for he_nfm is the smallest or largest that was tried" in text


def test_figures_are_written_as_png_and_svg(finished):
    stems = ["accuracy_n2000_w1", "learning_curves_n2000_w1", "loss_gap_n2000_w1", "filters", "spectra", "donor"]
    assert sorted(path.name for path in (finished[0] / "figures").iterdir()) == sorted(
        f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")
    )
    for stem in stems:
        pixels = matplotlib.image.imread(finished[0] / "figures" / f"{stem}.png")[..., :3]
        assert min(pixels.shape[:2]) > 250
        assert 0.01 < (pixels < 0.99).any(-1).mean() < 0.9
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 1).all(), f"{stem} is cut off"
        ElementTree.parse(finished[0] / "figures" / f"{stem}.svg")


def test_minimal_directory_settings_and_rewrite(tmp_path):
    """Two sizes and two widths, no optional file; written twice the files are the same, and no other is left."""
    rows = grid(["kaiming_normal", "copy", "nfm"], sizes=(500, 2000), widths=(1.0, 2.0))
    write_minimal(tmp_path, rows)
    table = write_report(tmp_path, describe)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert write_report(tmp_path, describe) == table
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == first
    names = {path.name for path in first}
    assert {"accuracy_n500_w2.png", "accuracy_by_train_size_at_width_1.svg"} <= names
    assert len(read_summary(tmp_path)) == 12
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>Better than He in all 4 settings:</b> copy" in page
    assert table.count("images, width") == 8  # a table and a line of the short summary each
    assert f"500 images, width {TIMES} 2, 250 steps. Best: copy, " in table


def test_the_last_lines_say_what_was_found_and_where_it_lies(finished):
    """Accuracies are those of ACCURACY, on whose means the seeds' own parts leave 0.1 points."""
    path, table = finished
    best, told, look = table.splitlines()[-3:]
    assert re.fullmatch(r"Best: copy, 6[12]\.\d % of the test set in the mean of 3 seeds", best)
    better, worse = told.removeprefix("Told apart from He: ").split("; ")
    summary = read_summary(path)
    for said, verdict in ((better, "better"), (worse, "worse")):
        own = {i for (i, *_), row in summary.items() if row["he_verdict"] == verdict and row["trains"] == "1"}
        assert {word for word in re.split(r"[ ,]+", said) if word in ACCURACY} == own
    assert better.startswith("better copy +1")
    assert look == f"Look at: {path}/report.html (the page), {path}/summary.csv, {path}/results.csv"


def test_several_budgets(tmp_path):
    """A block each in the table, a figure over them; the budget of `config.train.steps` goes unsaid in names."""
    rows = [row | {"budget": steps} for steps in (250, 1000) for row in grid(["kaiming_normal", "copy"])]
    for row in rows[6:]:
        row["test_accuracy"] += 0.1
    write_minimal(tmp_path, rows)
    table = write_report(tmp_path, describe)
    assert [line for line in table.splitlines() if "images" in line and "Best" not in line] == [
        f"2,000 images, width {TIMES} 1, 250 steps",
        f"2,000 images, width {TIMES} 1, 1,000 steps",
    ]
    names = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "figures").iterdir()}
    assert {f"figures/accuracy_n2000_w1{steps}.svg" for steps in ("", "_t1000")} <= names
    assert "figures/accuracy_by_budget_with_2000_images_at_width_1.svg" in names
    assert names <= {*leftovers.outputs(tmp_path)}
    with (tmp_path / "summary.csv").open(newline="") as file:
        budgets = {(row["init"], row["budget"]): float(row["test_accuracy"]) for row in csv.DictReader(file)}
    assert budgets["copy", "1000"] - budgets["copy", "250"] == pytest.approx(0.1)


@pytest.mark.parametrize("inits", [["kaiming_normal", "copy"], ["copy"]])
def test_one_seed_supports_no_conclusion(tmp_path, inits):
    write_minimal(tmp_path, grid(inits, seeds=1))
    table = write_report(tmp_path, describe)
    assert ("too few seeds" in table) == ("kaiming_normal" in inits)
    assert "better" not in table


def damage(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("results.csv", "2000", "two", ["line 2", "train_size", "'two'"]),
        ("results.csv", "test_accuracy", "accuracy", ["missing: test_accuracy"]),
        ("results.csv", ",250\n", "\n", ["line 2", "cells"]),
        ("results.csv", "nfm,1", "nfm,0", ["nfm_n2000_w1_s0", "twice"]),
        ("config.json", "{", "", ["JSON"]),
    ],
)
def test_damaged_file_is_one_clear_error(tmp_path, name, old, new, words):
    write_minimal(tmp_path, grid(["kaiming_normal", "nfm"], seeds=2))
    damage(tmp_path / name, old, new)
    with pytest.raises(UserError) as error:
        write_report(tmp_path, describe)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in [name, *words])
    assert not (tmp_path / "report.html").exists()


def test_missing_results_are_named(tmp_path):
    with pytest.raises(UserError, match=r"results\.csv: no such file"):
        write_report(tmp_path, describe)


def test_damaged_metrics_and_filters_are_named(tmp_path):
    write_minimal(tmp_path, grid(["nfm"], seeds=1))
    (tmp_path / "metrics").mkdir()
    metrics = tmp_path / "metrics" / "nfm_n2000_w1_s0.jsonl"
    metrics.write_text(curve(recipient("nfm", 0)) + '{"step": 3')
    with pytest.raises(UserError, match=r"nfm_n2000_w1_s0\.jsonl, line 12"):
        write_report(tmp_path, describe)
    metrics.unlink()
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters" / "nfm_n2000_w1_s0.npz").write_bytes(b"PK not an archive")
    with pytest.raises(UserError, match=r"nfm_n2000_w1_s0\.npz"):
        write_report(tmp_path, describe)


def test_rows_survive_writing_and_reading(tmp_path):
    rows = grid(["nfm", DIVERGING])
    files.write_rows(tmp_path / "results.csv", rows)
    for row, again in zip(rows, tables.read_results(tmp_path / "results.csv"), strict=True):
        assert again == pytest.approx(row, nan_ok=True)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.atomic_write_text(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.atomic_write_text(path, "new")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_recipient_name():
    name = lambda own: tables.recipient_name("matched_spectrum:he_agop", tables.Setting(500, 2.0, 250), 3, own)
    assert name(250) == "matched_spectrum-he_agop_n500_w2_s3"  # as versions that knew one budget called it
    assert name(1000) == "matched_spectrum-he_agop_n500_w2_t250_s3"


def test_patches_are_scaled_about_grey():
    kernel = np.zeros((1, 1, 1, 2))
    kernel[..., 0] = -3.0
    strip = figures.strip(kernel)
    assert strip.shape == (8, 8 + 3 + 8, 3)
    assert (strip[:, :8] == 0).all()
    assert (strip[:, 8:11] == 1).all()
    assert (strip[:, 11:] == 0.5).all()


def ansatz_row(layer, comparison, power, pearson, null, fitted=0):
    row = dict.fromkeys(tables.ANSATZ_COLUMNS, math.nan)
    place = {"layer": layer, "comparison": comparison, "power": power, "fitted": fitted, "pearson": pearson}
    return row | place | {"null_pearson_mean": null - 0.1, "null_pearson_95": null}


def test_the_ansatz_in_words_names_the_layers_that_do_not_exceed():
    rows = [
        *(ansatz_row("Conv_0", name, 1.0, r, 0.8) for name, r in (("trained", 0.9), ("untrained", 0.95))),
        *(ansatz_row("Conv_1", name, 1.0, r, 0.8) for name, r in (("trained", 0.7), ("untrained", 0.6))),
        *(ansatz_row(f"Conv_{i}", "centred", 1.0, 0.3, 0.2) for i in (0, 1)),
        ansatz_row("Dense_0", "trained", 1.0, 1.0, 1.0) | {"null_pearson_mean": 1.0},
        ansatz_row("Conv_0", "trained", 0.3, 0.99, 0.8, fitted=1),
    ]
    (lead, text), (_, idle) = pictures.ansatz_words(rows)
    assert lead == "NFM against AGOP^1, Pearson"
    assert text == (
        "above the 95th percentile of the null in 1 of 2 layers (not in Conv_1); above the untrained network in 1 of 2 "
        "layers (not in Conv_0); the change W - W0 above its own null in 2 of 2 layers."
    )
    assert idle == "Dense_0."
    assert len(feature_figures.ansatz(rows).axes) == 2


def test_a_gallery_whose_picture_is_gone_is_named(tmp_path):
    write_minimal(tmp_path, grid(["nfm"]))
    entry = {"name": "donor_transforms", "caption": "c", "alt": "a", "width": 5.0}
    files.atomic_write_text(tmp_path / "gallery.json", json.dumps({"entries": [entry]}))
    with pytest.raises(UserError, match=r"donor_transforms\.svg"):
        write_report(tmp_path, describe)


def short_run(path, accuracies, steps=2, starts=None):
    """Three seeds of each init, after so few steps that some are still at chance, which is 0.1."""
    rows = [
        recipient(init, seed) | {"test_accuracy": value + 0.001 * seed}
        for init, value in accuracies.items()
        for seed in range(3)
    ]
    write_minimal(path, rows)
    for row in rows:
        name = tables.recipient_name(row["init"], tables.Setting.of(row), row["seed"], 250)
        start = (starts or {}).get(row["init"], CHANCE)
        points = [(0, start), (steps, row["test_accuracy"])]
        losses = {"train_loss": 2.3, "train_accuracy": 0.1, "validation_loss": 2.3}
        text = "".join(json.dumps({"step": s, "validation_accuracy": a, **losses}) + "\n" for s, a in points)
        files.atomic_write_text(path / "metrics" / f"{name}.jsonl", text)
    return write_report(path, describe)


def test_a_run_that_was_too_short_says_so(tmp_path):
    """No init has left chance, so that nothing is known of any; one that diverged is known not to train."""
    table = short_run(tmp_path, {"kaiming_normal": 0.1, "nfm": 0.11, "zeros": 0.1, DIVERGING: 0.1})
    assert "Best: none, since no initialisation left chance" in table
    told = {line.split()[0]: line for line in table.partition("\n\n")[0].splitlines()[3:]}
    assert all(told[init].endswith("too short to tell") for init in ("kaiming_normal", "nfm", "zeros"))
    assert told[DIVERGING].endswith("does not train")
    page = (tmp_path / "report.html").read_text()
    assert "Too short to tell, since no init that began at chance has left it" in page
    assert page.count('<span class="verdict neutral">too short to tell</span>') == 3


def test_a_copy_that_starts_above_chance_tells_nothing_of_the_others(tmp_path):
    table = short_run(tmp_path, {"kaiming_normal": 0.1, "copy": 0.6}, starts={"copy": 0.6})
    assert "too short to tell" in table
    assert "does not train" not in table


def test_one_init_that_learned_tells_that_the_others_do_not(tmp_path):
    table = short_run(tmp_path, {"kaiming_normal": 0.5, "zeros": 0.1})
    assert "does not train" in table
    assert "too short to tell" not in table


def test_layers_are_in_the_order_of_the_tables_not_of_their_names():
    rows = [
        ansatz_row(layer, "trained", 1.0, 1.0, 1.0) | {"null_pearson_mean": 1.0}
        for layer in ("Conv_0", "BasicBlock_0/Conv_0", "Dense_0", "Aaa")
    ]
    (_, idle), *_ = [part for part in pictures.ansatz_words(rows) if part[0].startswith("Trivial")]
    assert idle == "Conv_0, BasicBlock_0/Conv_0, Dense_0, Aaa."


def test_filters_of_another_kind_are_named_without_advice_to_load_them(tmp_path):
    """NumPy's own message proposes to load pickled objects."""
    rows = grid(["kaiming_normal"])
    write_minimal(tmp_path, rows)
    (tmp_path / "filters").mkdir()
    name = f"kaiming_normal_n{rows[0]['train_size']}_w{rows[0]['width']:g}_s{rows[0]['seed']}"
    np.save(tmp_path / "filters" / f"{name}.npy", np.array([object()]), allow_pickle=True)
    (tmp_path / "filters" / f"{name}.npy").rename(tmp_path / "filters" / f"{name}.npz")
    with pytest.raises(UserError, match="it holds Python objects, which are never loaded") as error:
        write_report(tmp_path, describe)
    assert "allow_pickle" not in str(error.value)


def test_probe_and_cosine_are_in_the_table_and_the_summary(finished, page):
    row = read_summary(finished[0])["copy", 2000, 1.0]
    assert (float(row["probe_accuracy"]), float(row["nearest_cosine"]), float(row["draw_seconds"])) == (0.3, 1.0, 0.25)
    assert "probe before training" in page
    assert '<td class="number">1.00</td>' in page


def test_results_of_an_older_version_are_read(tmp_path):
    """Without the columns that came later: one donor, one budget, no probe."""
    old = [name for name in tables.RESULT_COLUMNS if name not in {*tables.LATER_COLUMNS, "budget"}]
    rows = [{name: row[name] for name in old} for row in grid(["kaiming_normal", "nfm"])]
    write_minimal(tmp_path, rows)
    write_report(tmp_path, describe)
    assert read_summary(tmp_path)["nfm", 2000, 1.0]["probe_accuracy"] == ""
    assert {row["donor"] for row in tables.read_results(tmp_path / "results.csv")} == {0}
    assert {row["donor"] for row in tables.read_optional_results(tmp_path / "results.csv", 7)} == {7}


def donors_grid(gains, donors=2, seeds=4):
    """Recipients of several donors; `gains` by init are those of each donor over He."""
    rows = []
    for donor in range(donors):
        for init, values in {"kaiming_normal": [0.0] * donors, **gains}.items():
            for seed in range(1000 * donor, 1000 * donor + seeds):
                own = 0.44 + values[donor] + 0.002 * math.sin(3 * seed + len(init))
                rows.append(recipient(init, seed) | {"donor": donor, "test_accuracy": own})
    return rows


def test_page_of_several_donors(tmp_path):
    write_minimal(tmp_path, donors_grid({"copy": [0.1, 0.2], "nfm": [0.05, 0.05], "lsuv": [0.0, 0.0]}))
    for path, accuracy in ((tmp_path, 0.4), (tmp_path / "donors" / "1", 0.5)):
        files.atomic_write_text(path / "donor.json", json.dumps({"test_accuracy": accuracy}))
    write_report(tmp_path, describe, donor_free={"kaiming_normal", "lsuv"})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    words = " ".join(" ".join(Tags(page).text).split())
    assert "40.0 % (donor 0), 50.0 % (donor 1)" in words
    assert "Two donors leave one degree of freedom" in words
    assert "uses no donor" in words
    row = read_summary(tmp_path)["copy", 2000, 1.0]
    assert (row["donors"], row["general_verdict"]) == ("2", "no difference seen")
    assert float(row["donor_deviation"]) == pytest.approx(0.1 / math.sqrt(2), rel=0.02)
    assert float(row["he_difference"]) == pytest.approx(0.15, abs=0.002)
    assert row["he_verdict"] == "better"


def test_what_is_within_the_margin_is_said_to_be(tmp_path):
    rows = [recipient(init, seed) for init in ("kaiming_normal", "nfm") for seed in range(5)]
    for row in rows:
        row["test_accuracy"] = 0.5 + 0.01 * row["seed"] + (0.0004 * (row["seed"] - 2) if row["init"] == "nfm" else 0)
    write_minimal(tmp_path, rows)
    write_report(tmp_path, describe)
    assert read_summary(tmp_path)["nfm", 2000, 1.0]["he_equivalence"] == "equivalent"
    assert "Equivalent to He, within 1 point either way" in (tmp_path / "report.html").read_text(encoding="utf-8")

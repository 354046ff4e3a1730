"""Which figures the report shows, and what each caption says is seen."""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agop_jax.core.files import Row, read_json, read_text
from agop_jax.results import feature_figures, figures
from agop_jax.results.summary import BASELINE, Summary
from agop_jax.results.summary_words import TIMES, setting_name, width_factor
from agop_jax.results.tables import Setting
from agop_jax.results.work import Work

ANSATZ_COMPARISONS = ("trained", "untrained", "centred")  # of `ansatz.csv`, those that are shown


@dataclass(frozen=True)
class Picture:
    """A figure on the page: its SVG as a data URI, so that ids of one picture cannot meet those of another."""

    source: str
    caption: str
    alt: str
    width: float  # inches, as drawn
    photo: bool = False  # shows images, whose colours must not be turned round in the dark


def of_setting(work: Work, lines: list[Summary]) -> list[Picture]:
    """What happened in one setting: accuracy in the end, then the course of training."""
    suffix = lines[0].setting.stem(work.budget)
    return [_accuracy(work, lines, suffix), *_progress(work, lines, suffix)]


AXES = {"train_size": "number of training images", "width": f"width, {TIMES}", "budget": "number of training steps"}


def trends(work: Work, lines: Sequence[Summary]) -> list[Picture]:
    """Accuracy against each part of a setting that takes several values, the other parts being fixed."""
    pictures = []
    for name, label in AXES.items():
        groups: dict[str, list[Summary]] = {}
        for line in sorted(lines, key=lambda line: line.setting):
            groups.setdefault(_fixed(line, name, lines), []).append(line)
        for place, chosen in groups.items():
            if len({getattr(line, name) for line in chosen}) > 1:
                pictures.append(_trend(work, chosen, name, label, place))
    return pictures


def _fixed(line: Summary, name: str, lines: Sequence[Summary]) -> str:
    """Where a line stands on the other axes; of budgets only where there are several."""
    parts = {"train_size": f"with {line.train_size} images", "width": f"at {width_factor(line.width)}"}
    if len({other.budget for other in lines}) > 1:
        parts["budget"] = f"after {line.budget} steps"
    return " ".join(words for axis, words in parts.items() if axis != name)


def donor(work: Work) -> list[Picture]:
    """Its training and its spectra."""
    pictures = []
    if work.donor_curve:
        steps = [row["step"] for row in work.donor_curve]
        train, validation = ([row[f"{part}_accuracy"] for row in work.donor_curve] for part in ("train", "validation"))
        curves = [figures.Curve(steps, values, values, values) for values in (train, validation)]
        caption, alt = "The donor's own training (one run).", "The donor's accuracy by step, train and validation."
        pictures.append(picture(work.path, "donor", figures.training_course(*curves), caption, alt))
    if work.spectra:
        pictures.append(_spectra(work))
    return pictures


def filters(work: Work, lines: Sequence[Summary]) -> list[Picture]:
    """The filters of the first layer, for the inits whose filters were kept."""
    ordered = {line.init: work.filters[line.init] for line in lines if line.init in work.filters}
    if not ordered:
        return []
    caption = (
        "The first filters of the first layer, one seed, before and after training. Middle grey is zero; each patch "
        "has its own scale, so patches show patterns, not sizes. Three input channels are shown as colour, any other "
        "number as their mean."
    )
    alt = "First-layer filters by initialisation, initial on the left, trained on the right."
    return [picture(work.path, "filters", figures.first_layer_filters(ordered), caption, alt, photo=True)]


def ansatz(work: Work) -> list[Picture]:
    """The donor's NFM against powers of its AGOP, beside the null and the untrained network."""
    if not work.ansatz:
        return []
    caption = (
        "Correlation of each layer's NFM with powers of its AGOP, over all entries. The two share the layer's weights, "
        "so they correlate whatever was learned. Bar: the same with the gradients' matrix turned at random, from the "
        "mean to the 95th percentile. Grey diamond: an untrained network. Square: the change of the weights alone, "
        "W - W0, against the AGOP. Right: the power of the best correlation, with its 95 % interval over batches."
    )
    alt = "Correlation of NFM and AGOP, layer by layer, beside the untrained network and the null; see ansatz.csv."
    return [picture(work.path, "ansatz", feature_figures.ansatz(work.ansatz), caption, alt)]


def gallery(work: Work) -> list[Picture]:
    """What was drawn of the donor when it was at hand; the files are there already."""
    pictures = []
    for entry in work.gallery:
        svg = read_text(work.path / "figures" / f"{entry['name']}.svg")
        pictures.append(Picture(_data_uri(svg.encode()), entry["caption"], entry["alt"], entry["width"], photo=True))
    return pictures


def gallery_note(work: Work) -> str:
    """Why there is no picture of the donor, or nothing."""
    file = work.path / "gallery.json"
    return str(read_json(file).get("note", "")) if file.exists() else ""


def ansatz_words(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """In how many layers training raised the correlation, and over what: (a few words that lead in, the rest).

    Layers whose S is a multiple of the identity, such as a last Dense with the logits as outputs, are left out: there
    AGOP and NFM are one matrix up to a factor, whatever the weights.
    """
    sentences = []
    idle = [row["layer"] for row in rows if row["comparison"] == "trained" and _trivial(row)]
    rows = [row for row in rows if row["layer"] not in idle]
    for power in sorted({row["power"] for row in rows if not row["fitted"] and row["comparison"] == "trained"}):
        chosen = [row for row in rows if not row["fitted"] and row["power"] == power]
        by_layer = {name: {r["layer"]: r for r in chosen if r["comparison"] == name} for name in ANSATZ_COMPARISONS}
        trained, before, centred = (by_layer[name] for name in ANSATZ_COMPARISONS)
        parts = [
            _exceeding(
                "the 95th percentile of the null", trained, {k: r["null_pearson_95"] for k, r in trained.items()}
            )
        ]
        if before:
            parts.append(_exceeding("the untrained network", trained, {k: r["pearson"] for k, r in before.items()}))
        if centred:
            null = {k: r["null_pearson_95"] for k, r in centred.items()}
            parts.append(f"the change W - W0 {_exceeding('its own null', centred, null)}")
        sentences.append((f"NFM against AGOP^{power:g}, Pearson", "; ".join(parts) + "."))
    if idle:
        sentences.append(("Trivial, the gradients' matrix being isotropic", ", ".join(dict.fromkeys(idle)) + "."))
    return sentences


def _trivial(row: Row) -> bool:
    """No rotation of S changes anything."""
    return max(abs(row["pearson"] - row[f"null_pearson_{end}"]) for end in ("mean", "95")) < 1e-6


def _exceeding(than: str, rows: Mapping[str, Row], limits: Mapping[str, float]) -> str:
    below = [layer for layer, row in rows.items() if not row["pearson"] > limits[layer]]
    text = f"above {than} in {len(rows) - len(below)} of {len(rows)} layers"
    return text + (f" (not in {', '.join(below)})" if below else "")


def picture(folder: Path, name: str, figure: figures.Figure, caption: str, alt: str, photo: bool = False) -> Picture:
    """A figure for a page; its files go to `figures/` in the folder of the page."""
    svg = figures.save(figure, folder / "figures" / name)
    return Picture(_data_uri(svg), caption, alt, figure.get_figwidth(), photo)


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _seeds(lines: Sequence[Summary]) -> str:
    counts = sorted({line.n for line in lines})
    return f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"


def _accuracy(work: Work, lines: list[Summary], suffix: str) -> Picture:
    values: dict[str, list[float]] = {}
    for row in work.results:
        if Setting.of(row) == lines[0].setting:
            values.setdefault(row["init"], []).append(row["test_accuracy"])
    dots = [
        figures.Dots(x.init, values[x.init], x.test_accuracy, x.low, x.high, x.he_verdict, bool(x.trains))
        for x in lines
    ]
    caption = (
        f"Test accuracy after training on {setting_name(lines[0].setting)}. Small dots: one seed each "
        f"({_seeds(lines)}); large mark and bar: mean and its 95 % t interval; dashed line and diamond: He. "
        "Triangles: better (up, blue) or worse (down, orange) than He by paired comparison; grey: not told apart. All "
        "inits share a seed's data and order, so a paired difference can be clear where bars overlap."
    )
    alt = f"Dot plot of test accuracy; the table below gives the same numbers. Best: {lines[0].init}."
    return picture(work.path, f"accuracy_{suffix}", figures.accuracy_by_init(dots, BASELINE), caption, alt)


def _progress(work: Work, lines: list[Summary], suffix: str) -> list[Picture]:
    accuracy = _courses(work, lines, lambda row: row["curve_accuracy"])
    gap = _courses(work, lines, lambda row: row["validation_loss"] - row["train_loss"])
    key = f"Line: mean over seeds ({_seeds(lines)}); band: lowest to highest seed; grey: He. Best test accuracy first."
    pictures = []
    if accuracy:
        figure = figures.small_multiples(accuracy, BASELINE, "step", "validation accuracy")
        caption, alt = f"Validation accuracy during training. {key}", "Learning curves, one panel an initialisation."
        pictures.append(picture(work.path, f"learning_curves_{suffix}", figure, caption, alt))
    if gap:
        label = "validation - training loss"
        figure = figures.small_multiples(gap, BASELINE, "step", label, percent=False)
        caption = (
            "The generalisation gap: how far validation loss lies above training loss, where 0 is no gap. "
            f"{key} Where losses are not finite nothing is drawn; extreme values leave the frame."
        )
        alt = "Validation loss minus training loss by step, one panel an initialisation."
        pictures.append(picture(work.path, f"loss_gap_{suffix}", figure, caption, alt))
    return pictures


def _courses(work: Work, lines: Sequence[Summary], value: Callable[[Row], float]) -> dict[str, figures.Curve]:
    """init -> mean and range over seeds at each step, for the inits of one setting whose metrics were kept."""
    courses = {}
    for line in lines:
        by_step: dict[float, list[float]] = {}
        for (init, setting, _), rows in work.curves.items():
            if (init, setting) == (line.init, line.setting):
                for row in rows:
                    if math.isfinite(value(row)):
                        by_step.setdefault(row["step"], []).append(value(row))
        if by_step:
            steps = sorted(by_step)
            means = [float(np.mean(by_step[step])) for step in steps]
            limits = [[limit(by_step[step]) for step in steps] for limit in (min, max)]
            courses[line.init] = figures.Curve(steps, means, *limits)
    return courses


def _trend(work: Work, lines: Sequence[Summary], name: str, label: str, fixed: str) -> Picture:
    curves = {}
    for init in dict.fromkeys(line.init for line in lines):
        own = sorted((line for line in lines if line.init == init), key=lambda line: getattr(line, name))
        columns = [[getattr(line, column) for line in own] for column in (name, "test_accuracy", "low", "high")]
        curves[init] = figures.Curve(*columns)
    figure = figures.small_multiples(curves, BASELINE, label, "test accuracy", points=True)
    caption = (
        f"Test accuracy against {label}, {fixed}. Dots: mean over seeds ({_seeds(lines)}); band: its 95 % t interval "
        "where there are several seeds; grey: He."
    )
    alt = f"Test accuracy against {label}, {fixed}, one panel an initialisation."
    return picture(
        work.path, f"accuracy_by_{name}_{fixed.replace(f' {TIMES}', '').replace(' ', '_')}", figure, caption, alt
    )


def _spectra(work: Work) -> Picture:
    layers: dict[str, dict[str, list[float]]] = {}
    for row in work.spectra:
        layers.setdefault(row["layer"], {}).setdefault(row["matrix"], []).append(row["eigenvalue"])
    caption = (
        "Eigenvalues of the donor's feature matrices, layer by layer, as shares of the trace. A steep fall means that "
        "few directions of the patch matter: to the layer itself (NFM), or to its effect on the output (AGOP)."
    )
    alt = "Eigenvalue spectra of NFM and AGOP for each layer of the donor, on a log scale."
    return picture(work.path, "spectra", figures.spectra(layers), caption, alt)

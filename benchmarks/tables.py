"""Tables of results: JSON with every number, Markdown with medians and ranges, and the README's section of them."""

import datetime
import json
import os
import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agop_jax.core.errors import UserError
from agop_jax.core.files import atomic_write_text
from benchmarks.timing import Spread, significant

BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
NOT_MEASURED = "not measured"
ORDER = ("extract", "probe", "init", "store", "train", "start", "growth")


@dataclass(frozen=True)
class Claim:
    """A number that was wanted, and the one that was found.

    Attributes:
      what: it is, after the number: 'x the peer'.
      found: None if it was not measured.
      wanted: the bound.
      at_least: whether larger is better.
    """

    what: str
    found: float | None
    wanted: float
    at_least: bool = True

    @property
    def met(self) -> bool | None:
        """None if it was not measured."""
        if self.found is None:
            return None
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted

    def __str__(self) -> str:
        verdict = {None: NOT_MEASURED, True: "met", False: "**not met**"}[self.met]
        return f"{'≥' if self.at_least else '≤'} {significant(self.wanted)} {self.what}: {verdict}"


@dataclass(frozen=True)
class Row:
    """One side of a comparison: column -> `Spread`, number, text, or None for what was not measured."""

    name: str
    cells: dict[str, Any]
    claims: tuple[Claim, ...] = ()

    def json(self) -> dict[str, Any]:
        """With the repeats of every spread, and whether what was wanted was met."""
        cells = {name: cell.values if isinstance(cell, Spread) else cell for name, cell in self.cells.items()}
        return {"name": self.name, **cells, "claims": [asdict(claim) | {"met": claim.met} for claim in self.claims]}


@dataclass(frozen=True)
class Table:
    """The result of a suite.

    Attributes:
      suite: its name.
      title: what was compared, with all sizes.
      rows: in order; a column stands where its first row has it.
      notes: sentences on how it was measured.
      environment: see `environment`.
      figure: file name of a picture beside the table, or empty.
      details: what the table is made from, for the JSON file alone.
    """

    suite: str
    title: str
    rows: list[Row]
    notes: list[str]
    environment: dict[str, Any] = field(default_factory=dict)
    figure: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """Heading, table and notes."""
        columns = list(dict.fromkeys(column for row in self.rows for column in row.cells))
        rows = [[row.name, *(_text(row.cells.get(column, "")) for column in columns)] for row in self.rows]
        if any(row.claims for row in self.rows):
            columns.append("wanted")
            for cells, row in zip(rows, self.rows, strict=True):
                cells.append("; ".join(map(str, row.claims)))
        lines = [["", *columns], ["---"] * (1 + len(columns)), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = " ".join([*self.notes, _sentence(self.environment)])
        return f"**{self.suite}**: {self.title}\n\n{table}\n\n{notes}\n"

    def json(self) -> str:
        """Every number, repeats included."""
        return json.dumps(asdict(self) | {"rows": [row.json() for row in self.rows]}, indent=1)


def _text(value: Any) -> str:
    if value is None:
        return NOT_MEASURED
    return significant(value) if isinstance(value, int | float) else str(value)


def environment(torch: bool = False) -> dict[str, Any]:
    """Versions, device, cores, date, and how busy the machine was before."""
    import flax
    import jax

    found = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "device": _device(jax.devices()[0]),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if torch:
        import torch as pytorch

        found["torch"] = f"{pytorch.__version__}, {pytorch.get_num_threads()} threads"
    return found


def _device(device: Any) -> str:
    cpus = Path("/proc/cpuinfo")
    if device.platform == "cpu" and cpus.exists():
        name = re.search(r"model name\s*:\s*(.+)", cpus.read_text())
        return name[1].strip() if name else platform.machine()
    return device.device_kind


def _sentence(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {found[name]}" for name in ("python", "jax", "flax", "torch") if name in found)
    return (
        f"{found['cores']} cores, {found['device']}; {versions}; {found['date']}; load before {found['load_before']}."
    )


def write(table: Table, out: Path) -> str:
    """`OUT/SUITE.json` and `OUT/SUITE.md`; returns the Markdown."""
    text = table.markdown()
    picture = f"\n![{table.suite}]({table.figure})\n" if table.figure else ""
    atomic_write_text(out / f"{table.suite}.json", table.json() + "\n")
    atomic_write_text(out / f"{table.suite}.md", text + picture)
    return text


def write_readme(readme: Path, out: Path) -> None:
    """Puts all tables found in `out` between the README's two marks."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{readme}: wanted one {BEGIN} and, after it, one {END}")
    files = [out / f"{suite}.md" for suite in ORDER if (out / f"{suite}.md").exists()]
    if not files:
        raise UserError(f"{out}: no tables to put into {readme}: run the suites first")
    section = "\n".join(_without_picture(file.read_text(encoding="utf-8")) for file in files)
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    atomic_write_text(readme, f"{before}{BEGIN}\n{section}{after}")


def _without_picture(text: str) -> str:
    return re.sub(r"\n!\[.*\n", "", text)

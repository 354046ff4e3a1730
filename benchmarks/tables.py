"""Tables of results: JSON with every number, Markdown with medians and ranges, and the pages that show them."""

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

MARK = "benchmarks"
README, PAGE = Path("README.md"), Path("docs/benchmarks.md")
PEER = "PyTorch peer"  # in the name of a peer's row
NOT_MEASURED = "not measured"
ORDER = ("extract", "probe", "init", "store", "train", "start", "growth", "rfm")


@dataclass(frozen=True)
class Row:
    """One side of a comparison: column -> `Spread`, number, text, or None for what was not measured."""

    name: str
    cells: dict[str, Any]

    def json(self) -> dict[str, Any]:
        """With the repeats of every spread."""
        cells = {name: cell.values if isinstance(cell, Spread) else cell for name, cell in self.cells.items()}
        return {"name": self.name, **cells}


@dataclass(frozen=True)
class Headline:
    """A suite's row in the README.

    Attributes:
      what: was measured.
      unit: of the two numbers.
      ours, peer: medians.
      ratio: how many times as fast as the peer, median of the repeats.
    """

    what: str
    unit: str
    ours: float
    peer: float
    ratio: float

    @classmethod
    def of(cls, what: str, unit: str, rows: list[Row]) -> "Headline":
        """From the first row, which is ours, and the first that is a peer's; `unit` is a column of both."""
        peer = next(row for row in rows if PEER in row.name)
        return cls(what, unit, rows[0].cells[unit].median, peer.cells[unit].median, rows[0].cells["x the peer"].median)


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
      headline: its row in the README, or None.
    """

    suite: str
    title: str
    rows: list[Row]
    notes: list[str]
    environment: dict[str, Any] = field(default_factory=dict)
    figure: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    headline: Headline | None = None

    def markdown(self) -> str:
        """Heading, table and notes."""
        columns = list(dict.fromkeys(column for row in self.rows for column in row.cells))
        rows = [[row.name, *(_text(row.cells.get(column, "")) for column in columns)] for row in self.rows]
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

    facts = {
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

        facts["torch"] = f"{pytorch.__version__}, {pytorch.get_num_threads()} threads"
    return facts


def _device(device: Any) -> str:
    cpus = Path("/proc/cpuinfo")
    if device.platform == "cpu" and cpus.exists():
        name = re.search(r"model name\s*:\s*(.+)", cpus.read_text())
        return name[1].strip() if name else platform.machine()
    return device.device_kind


def _sentence(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "jax", "flax", "torch") if name in facts)
    return (
        f"{facts['cores']} cores, {facts['device']}; {versions}; {facts['date']}; load before {facts['load_before']}."
    )


def write(table: Table, out: Path) -> str:
    """`OUT/SUITE.json` and `OUT/SUITE.md`; returns the Markdown."""
    text = table.markdown()
    picture = f"\n![{table.suite}]({table.figure})\n" if table.figure else ""
    atomic_write_text(out / f"{table.suite}.json", table.json() + "\n")
    atomic_write_text(out / f"{table.suite}.md", text + picture)
    return text


def write_pages(root: Path, out: Path) -> None:
    """Puts all tables in `out` into `ROOT/docs/benchmarks.md`, and the headlines into `ROOT/README.md`.

    Raises:
      UserError: there are no tables, or a page lacks the marks that they go between.
    """
    suites = [suite for suite in ORDER if (out / f"{suite}.md").exists()]
    if not suites:
        raise UserError(f"{out}: no tables to put into {root}: run the suites first")
    tables = [_without_picture((out / f"{suite}.md").read_text(encoding="utf-8")) for suite in suites]
    headlines = [json.loads((out / f"{suite}.json").read_text(encoding="utf-8")).get("headline") for suite in suites]
    replace_section(root / PAGE, "\n".join(tables))
    replace_section(root / README, _headline_table([Headline(**one) for one in headlines if one]))


def _headline_table(headlines: list[Headline]) -> str:
    rows = [
        f"| {one.what} | {significant(one.ours)} {one.unit} | {significant(one.peer)} {one.unit} | "
        f"{significant(one.ratio)} |"
        for one in headlines
    ]
    return "\n".join(["| | agop_jax | PyTorch | times as fast |", "| --- | --- | --- | --- |", *rows, ""])


def replace_section(page: Path, section: str, mark: str = MARK) -> None:
    """Puts text between the two marks of a page, in place of what is there.

    Raises:
      UserError: the page has no such marks, or more than one pair of them.
    """
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    text = page.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"{page}: needed one {begin} and, after it, one {end}")
    before, after = text[: text.index(begin)], text[text.index(end) :]
    atomic_write_text(page, f"{before}{begin}\n{section}{after}")


def _without_picture(text: str) -> str:
    return re.sub(r"\n!\[.*\n", "", text)

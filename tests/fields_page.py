"""The tables of docs/fields.md, from the sections of the config: python tests/fields_page.py writes the page anew."""

import ast
import inspect
import re
from pathlib import Path

from agop_jax.experiments import sections, settings
from agop_jax.experiments.settings import Config
from agop_jax.training.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "fields.md"
MARKS = "<!-- fields -->\n", "<!-- /fields -->\n"
MODEL = "The network: a name of `agop_jax.models.MODELS`, and fields of that network such as `features`."


def tables() -> str:
    """A table a section: field, default, and the comment beside it in the source."""
    own = {part: getattr(Config(), part) for part in Config.__dataclass_fields__}
    plain = [name for name, value in own.items() if not hasattr(value, "__dataclass_fields__")]
    parts = ["## At the top\n\n" + _table("", [row for row in _rows(Config(), settings) if row[0] in plain])]
    for name, value in own.items():
        if name == "model":
            parts.append(f"## {name}\n\n{MODEL}\n")
        elif name not in plain:
            parts.append(f"## {name}\n\n{_first_line(value)}\n\n{_section(name, value)}")
    return "\n".join(parts)


def _first_line(value: object) -> str:
    return "How recipients are trained." if isinstance(value, Settings) else inspect.getdoc(type(value)).split("\n")[0]


def _section(name: str, value: object) -> str:
    nested = {part: sub for part, sub in vars(value).items() if hasattr(sub, "__dataclass_fields__")}
    rows = _attributes(value) if isinstance(value, Settings) else _rows(value, sections)
    text = _table(f"{name}.", [row for row in rows if row[0] not in nested])
    for part, sub in nested.items():
        text += f"\n`config.{name}.{part}` has the fields of `train`; its `steps` are {sub.steps:,}.\n"
    return text


def _rows(value: object, module: object) -> list[tuple[str, str, str]]:
    lines = inspect.getsource(module).splitlines()
    (body,) = (node for node in ast.parse("\n".join(lines)).body if getattr(node, "name", "") == type(value).__name__)
    fields = [node for node in body.body if isinstance(node, ast.AnnAssign) and node.value]
    comment = lambda node: lines[node.end_lineno - 1][node.end_col_offset :].partition("#")[2].strip()
    return [(node.target.id, repr(getattr(value, node.target.id)), comment(node)) for node in fields]


def _attributes(value: Settings) -> list[tuple[str, str, str]]:
    """Of a class that describes its fields in its docstring."""
    text = inspect.getdoc(type(value)).partition("Attributes:\n")[2]
    told = dict(re.findall(r"^  (\w+): ((?:.|\n    )*)", text, re.MULTILINE))
    return [(name, repr(default), " ".join(told[name].split())) for name, default in vars(value).items()]


def _table(prefix: str, rows: list[tuple[str, str, str]]) -> str:
    escaped = [(name, default, words.replace("|", "\\|")) for name, default, words in rows]
    lines = [f"| `{prefix}{name}` | `{default}` | {words} |\n" for name, default, words in escaped]
    return "".join(["| field | default | what |\n", "| --- | --- | --- |\n", *lines])


if __name__ == "__main__":
    before, after = (part for part in re.split("(?s)<!-- fields -->.*<!-- /fields -->\n", PAGE.read_text()))
    PAGE.write_text(f"{before}{MARKS[0]}{tables()}{MARKS[1]}{after}")

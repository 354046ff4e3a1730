"""Templates of pages, and how they write numbers and names."""

import math
import re

import jinja2
from markupsafe import Markup, escape

from agop_jax.results.summary import BASELINE
from agop_jax.results.summary_words import points, setting_name, spread

DASH = "\N{EN DASH}"


def template(name: str) -> jinja2.Template:
    """A template of the folder `templates`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agop_jax.results"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "count": _count,
        "breakable": _breakable,
        "decimals": _decimals,
        "seconds": _seconds,
        "spread": spread,
    }
    environment.globals |= {"baseline": BASELINE, "setting_name": setting_name}
    return environment.get_template(name)


def _percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(fraction) else DASH


def _decimals(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def _seconds(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else DASH


def _points(difference: float) -> str:
    return points(difference) if math.isfinite(difference) else DASH


def _breakable(text: str) -> Markup:
    """Names in it may break after ':' and '_' and before '@', as a narrow column needs."""
    return Markup(re.sub("(?<=[:_])|(?=@)", "<wbr>", str(escape(text))))


def _count(number: float | int | None) -> str:
    if number == math.inf:
        return "never"
    return DASH if number is None or math.isnan(number) else f"{number:,.0f}"

"""What a log says on the way: lines in place of bars, how much there is to do, and about how long it takes."""

import ast
import sys

import pytest
from test_architecture import PACKAGE, sources

from agop_jax.core import progress
from agop_jax.experiments.forecast import Forecast


class Clock:
    """Time that goes on as the test says."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_a_log_gets_a_line_every_30_seconds(clock, capsys):
    """Of 12,000 steps in 100 seconds, three lines, with what is counted and no carriage return."""
    with progress.bar(desc="recipients", total=12_000, brief=False) as bar:
        bar._time = clock
        bar.start_t = 0.0
        for step in range(1, 12_001):
            clock.now = step / 120
            bar.update()
            bar.set_postfix(init="he_nfm")
    said = capsys.readouterr().err
    assert "\r" not in said
    lines = said.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("recipients: 30 %, 3600 of 12000 steps, 00:30 gone, 01:10 left")
    assert lines[2].startswith("recipients: 90 %, 10800 of 12000 steps, 01:30 gone")
    assert "init=he_nfm" in lines[1]


def test_short_work_says_nothing_in_a_log(clock, capsys):
    assert list(progress.bar(range(3), "draw", unit="layer")) == [0, 1, 2]
    clock.now = 29
    with progress.bar(desc="donor", total=3, brief=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.bar(desc="donor", total=3, brief=False) as bar:
        bar.update(3)
    said = capsys.readouterr().err
    assert "\r" in said
    assert "donor: 100%" in said
    with progress.bar(desc="donor", total=3, brief=False, show=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_no_other_place_makes_bars():
    importing = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                )
                importing |= {str(path.relative_to(PACKAGE)) for name in names if name.split(".")[0] == "tqdm"}
    assert importing == {"core/progress.py"}


def rows(*runs):
    return [{"seconds": seconds, "steps": steps} for seconds, steps in runs]


# steps that are left, rows of earlier runs, places -> what is said. 0.5 seconds a step in all of them
MEASURED = {
    "minutes": (2_400, rows((100, 200)), 1, "120 runs, 2,400 steps, about 20 minutes by the 1 done before"),
    "hours": (120_000, rows((100, 200), (50, 100)), 1, "120,000 steps, about 16.7 hours by the 2 done before"),
    "several places": (24_000, rows((100, 200)), 4, "about 50 minutes"),
    "a run of no steps": (2_400, rows((3, 0), (100, 200)), 1, "about 20 minutes by the 1 done before"),
    "seconds": (100, rows((100, 200)), 1, "less than a minute"),
}


@pytest.mark.parametrize("case", MEASURED)
def test_time_by_what_was_measured_before(case, capsys):
    steps, done, places, words = MEASURED[case]
    Forecast(120, steps, done, places).finished(200, 0.5)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recipients: 120 runs")
    assert words in line


def test_nothing_is_known_before_the_second_run(capsys):
    forecast = Forecast(3, 600, [])
    assert capsys.readouterr().err == "recipients: 3 runs, 600 steps; how long they take is known after the second\n"
    forecast.finished(200, 99.0)  # with compilation
    assert capsys.readouterr().err == ""
    forecast.finished(200, 1.5)
    assert capsys.readouterr().err == "recipients: 200 steps are left, about 5 minutes by the second run\n"
    forecast.finished(200, 1.5)
    assert capsys.readouterr().err == ""


def test_nothing_to_do_says_nothing(capsys):
    Forecast(0, 0, rows((1, 2)))
    Forecast(1, 200, []).finished(200, 9.0)  # the last one
    assert capsys.readouterr().err == "recipients: 1 run, 200 steps; how long they take is known after the second\n"

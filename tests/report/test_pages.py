"""Pages: one file that needs nothing else, whose tags close, with round numbers at the axes."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lsm_cli.main import app
from lsm_cli.report.html import Page, _ticks
from tests.small import write_store

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy
VOID = {"meta", "line", "circle", "rect", "polyline", "br", "img", "hr"}


class _Checker(HTMLParser):
    """Every tag closes what was opened last; nothing is loaded or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        assert (
            tag not in ("script", "link", "iframe", "object")
            and not {"src", "href", "onload"} & dict(attributes).keys()
        )
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _check(text: str) -> None:
    checker = _Checker()
    checker.feed(text)
    assert not checker.open and "http" not in text.replace("http-equiv", "") and "@import" not in text


@pytest.fixture(scope="module")
def pages(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of a run, and of two seeds."""
    root = tmp_path_factory.mktemp("pages")
    common = [
        "train",
        "-r",
        "tin",
        "--data",
        str(small_store),
        "train.threads=1",
        "train.epochs=2",
        "model.hidden=[16]",
    ]
    for options in (["--out", str(root / "one")], ["--out", str(root / "two"), "--seeds", "2"]):
        result = CliRunner().invoke(app, [*common, *options])
        assert result.exit_code == 0, result.output
    return (root / "one" / "report.html").read_text(), (root / "two" / "report.html").read_text()


def test_pages_need_nothing_but_themselves(pages: tuple[str, str]) -> None:
    for text in pages:
        _check(text)


def test_the_page_of_a_run_answers_a_manager(pages: tuple[str, str], small_store: Path) -> None:
    for words in (
        "What was tried", "On what", "How sure", "peak memory", "training time", "95% interval", "Learning curve",
        "click by scenario", "order by behaviours before the request", "lsm train --from", str(small_store),
        "observed share against predicted probability",
    ):  # fmt: skip
        assert words in pages[0], words
    for words in ("seed 0", "seed 1", "±", "mean ± sd", "Learning curve", "peak memory"):
        assert words in pages[1], words


def test_few_users_are_said_to_be_few(tmp_path: Path) -> None:
    store, run = write_store(tmp_path / "store", users=6, samples=300), tmp_path / "run"
    command = ["train", "-r", "dnn", "--data", str(store), "--out", str(run), "train.threads=1", "train.epochs=1"]
    assert CliRunner().invoke(app, command).exit_code == 0
    page = (run / "report.html").read_text()
    assert "How sure: test samples, too few users for intervals" in page and "±" not in page


@UNHURRIED
@given(
    st.text(), st.dictionaries(st.text(), st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), max_size=5))
)
def test_any_text_and_numbers_make_a_page(text: str, series: dict) -> None:
    page = Page(text)
    page.tiles([(text, text, text)])
    page.facts(text, [(text, text), ("left out", None)])
    page.table(text, [text], [[text], [None]])
    page.lines(text, series)
    page.note(text)
    page.code(text, text)
    found = page.render()
    checker = _Checker()
    checker.feed(found)
    assert not checker.open and "left out" not in found


@UNHURRIED
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_hardly_outside(low: float, width: float) -> None:
    high = low + width
    assume(high - low > 1e-9 * max(abs(low), 1))
    found = _ticks(low, high)
    slack = 0.0101 * width
    assert 3 <= len(found) <= 11 and all(low - slack <= tick <= high + slack for tick in found)


def test_a_first_point_just_behind_a_round_number_has_its_tick() -> None:
    assert _ticks(0.5008, 3.0) == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]

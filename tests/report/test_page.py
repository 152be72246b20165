"""The page: whole in one file, safe with any record, and alive in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdoor_bench.errors import ConfigError
from backdoor_bench.report import beside, frame, layout, render_html, summary
from tests.report.conftest import Write

NASTY = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>&amp;"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium fonts-dejavu-core")


def page(folder: Path) -> str:
    records = frame.load([folder])
    cells = summary.cells(records.runs)
    parts = [("Measured", list(layout.pivots(cells))), ("Beside published figures", list(beside.tables(cells)))]
    return render_html.page(parts, records.notes(), cells, records.runs)


def embedded(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def some(write: Write) -> None:
    for repetition, asr in enumerate((0.1, 0.3)):
        write(key=f"a{repetition}", repetition=repetition, asr=asr)
    write(key="b", defense="unibp", asr=0.02, ra=0.9)
    write(key="c", attack="sig", victim="v1", defense="ft", weak_attack=True, at_chance=True)
    write(key="d", attack="sig", victim="v1", defense="fp", status="failed", reason="the disk is full")


def test_it_needs_nothing_from_elsewhere(write: Write, folder: Path) -> None:
    some(write)
    text = page(folder)
    assert not re.search(r"(?:src|href)\s*=|@import|url\(|fetch\(|XMLHttpRequest|WebSocket", text)
    assert "default-src 'none'" in text
    assert len(text) < 200_000


def test_what_the_script_reads(write: Write, folder: Path) -> None:
    some(write)
    data = embedded(page(folder))
    rows = [dict(zip(data["columns"], row, strict=False)) for row in data["cells"]]
    named = {(data["texts"][row["attack"]], data["texts"][row["defense"]]): row for row in rows}
    own = named["badnet", "ft"]
    assert own["n"] == 2
    assert own["asr"][:2] == [20.0, 14.14]
    assert len(own["asr"]) == 4
    assert named["badnet", "unibp"]["asr"] == 2.0  # one run: a number, no interval
    assert named["sig", "fp"]["failed"] == 1
    assert named["sig", "fp"]["acc"] is None
    assert len(data["runs"]) == 5
    assert "the disk is full" in {row[-1] for row in data["runs"]}


def test_no_string_of_a_record_becomes_markup(write: Write, folder: Path) -> None:
    write(defense=NASTY, attack=NASTY, variant=NASTY, preset=NASTY, architecture=NASTY)
    text = page(folder)
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "<img" not in text
    data = embedded(text)
    assert NASTY in data["texts"]
    assert html.escape(NASTY) in text.replace("&#39;", "&#x27;")


def test_too_many_cells_say_so(write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some(write)
    monkeypatch.setattr(render_html, "MOST_CELLS", 2)
    with pytest.raises(ConfigError, match="cells, and a page takes 2; filter, as in"):
        page(folder)


def test_a_large_set_is_carried_by_its_cells_alone(write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some(write)
    monkeypatch.setattr(render_html, "MOST_RUNS", 4)
    assert embedded(page(folder))["runs"] is None


@pytest.fixture
def opened(write: Write, folder: Path, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """The page's document after its script ran, and what the console said: ``opened("attack=badnet")``."""
    some(write)

    def open_(fragment: str = "") -> tuple[str, str]:
        target = tmp_path / "page.html"
        target.write_text(page(folder))
        done = subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--disable-sync", "--no-first-run", "--virtual-time-budget=3000", "--enable-logging=stderr", "--v=0",
             f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{target}#{fragment}"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    return open_


def table(document: str) -> list[list[str]]:
    """Texts of the result table's rows, its head first."""
    body = document[document.index('<table id="results">') :]
    body = body[: body.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [[re.sub(r"<[^>]+>", " ", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


@browser
@pytest.mark.slow
@pytest.mark.ci
def test_a_browser_filters_and_sorts(opened: Callable[..., tuple[str, str]]) -> None:
    document, console = opened("attack=badnet&sort=-asr")
    assert console == ""
    assert re.search(r'data-ready="\d+"', document)
    head, *rows = table(document)
    assert head[:2] == ["attack", "defense"]
    assert [row[0] for row in rows] == ["badnet"] * 3
    assert [row[1] for row in rows] == ["none (victim)", "ft", "unibp"]
    assert "20.00" in rows[1][head.index("ASR")]
    assert "± 14.14" in rows[1][head.index("ASR")]
    assert re.search(r'aria-sort="descending"[^>]*><button[^>]*>ASR', document)
    assert "3 of 6 cells" in document
    assert "Everywhere data: cifar10; network: preact_resnet18 width 64" in document


@browser
@pytest.mark.slow
def test_a_browser_shows_single_runs_and_failures(opened: Callable[..., tuple[str, str]]) -> None:
    document, console = opened("view=runs&q=sig")
    assert console == ""
    head, *rows = table(document)
    failed = next(row for row in rows if row[1] == "fp")
    assert failed[head.index("n")] == "1 failed"
    assert failed[head.index("failed because")] == "the disk is full"
    assert "2 of 5 runs, 1 of a weak attack (†), 1 at chance (‡), 1 failed" in document


@browser
@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_record(
    opened: Callable[..., tuple[str, str]], write: Write, tmp_path: Path
) -> None:
    write(key="e", defense=NASTY, attack=NASTY)
    document, console = opened()
    assert console == ""
    assert "<title>owned" not in document
    assert "<img" not in document
    assert any(NASTY in html.unescape(cell) for row in table(document) for cell in row)

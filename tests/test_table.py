"""Percent only in print, a dash for what could not be measured, every name as it is."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from backdoor_bench.table import line, percent, print_jobs, print_run, short

RECORD: dict[str, Any] = {
    "attack": "badnet",
    "defense": "unibp",
    "assumes": [],
    "variant": "digits (scikit-learn)",
    "architecture": "preact_resnet18",
    "preset": "default",
    "victim_was": "trained",
    "victim_seconds": 12.34,
    "weak_attack": False,
    "before": {"acc": 0.9132, "asr": 0.9503, "ra": 0.04},
    "stages": [
        {"name": "mask", "changed": False, "seconds": 1.0, "acc": 0.9132, "asr": 0.9503, "ra": 0.04},
        {"name": "prune", "changed": True, "seconds": 2.5, "acc": 0.9072, "asr": 0.0137, "ra": 0.9},
    ],
    "clean": {"train": 60, "validation": 10},
    "acc": 0.9072,
    "asr": 0.0137,
    "ra": 0.9,
    "der": 0.9653,
    "arr": 0.00657,
    "rdr": -0.01,
}


def printed(record: dict[str, Any], path: str = "store/runs/k/0001.json") -> str:
    written = io.StringIO()
    print_run(record, path, Console(file=written, width=120, markup=False, highlight=False))
    return written.getvalue()


def cells(text: str, first: str) -> list[str]:
    """The cells of the row that begins with ``first``."""
    row = next(row for row in text.splitlines() if row.strip("│┃ ").startswith(first))
    return [cell.strip() for cell in row.strip("│┃").split("│")]


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.9132, "91.32"), (1.0, "100.00"), (0.0, "0.00"), (-0.005, "-0.50"), (None, "-")]
)
def test_percent(fraction: float | None, text: str) -> None:
    assert percent(fraction) == text


def test_a_run() -> None:
    text = printed(RECORD)
    assert "badnet / unibp on digits (scikit-learn), preact_resnet18" in text
    assert cells(text, "victim") == ["victim", "91.32", "95.03", "4.00", "12.3"]
    assert cells(text, "mask") == ["mask (network unchanged)", "91.32", "95.03", "4.00", "1.0"]
    assert cells(text, "prune") == ["prune", "90.72", "1.37", "90.00", "2.5"]
    assert cells(text, "purified") == ["purified", "90.72", "1.37", "90.00", "3.5"]
    assert "DER 96.53 %  ARR 0.66 %  RDR -1.00 %" in text
    assert "clean images: 60 to train, 10 to validate" in text
    assert "record: store/runs/k/0001.json" in text
    assert "weak attack" not in text


def test_what_was_not_measured_is_a_dash_or_left_empty() -> None:
    nothing = {"asr": None, "ra": None, "der": None, "rdr": None, "attack": None}
    stages = [{"name": "prune", "changed": True, "seconds": 2.5}]
    text = printed({**RECORD, **nothing, "before": {"acc": 0.5, "asr": None, "ra": None}, "stages": stages})
    assert "no attack / unibp" in text
    assert cells(text, "clean network") == ["clean network", "50.00", "-", "-", "12.3"]
    assert cells(text, "prune") == ["prune", "", "", "", "2.5"]
    assert "DER -  ARR" in text


def test_a_weak_attack_is_said() -> None:
    assert "weak attack: this victim's ASR is too low to tell defenses apart" in printed(
        {**RECORD, "weak_attack": True}
    )


def test_what_is_no_classifier_is_said_once() -> None:
    assert "victim at chance: its ACC is hardly above" in printed({**RECORD, "victim_at_chance": True})
    left = printed({**RECORD, "at_chance": True})
    assert "at chance: the defense left an ACC hardly above that of a constant answer" in left
    assert "victim at chance" not in left
    assert line({**RECORD, "at_chance": True}).endswith(" %, at chance")
    assert line({**RECORD, "victim_at_chance": True, "at_chance": True}).endswith(" %, victim at chance")
    both = {**RECORD, "weak_attack": True, "victim_at_chance": True}
    assert line(both).endswith(" %, weak attack, victim at chance")


def test_a_privileged_defense_and_a_found_victim_are_said() -> None:
    text = printed({**RECORD, "assumes": ["trigger"], "victim_was": "found in the store"})
    assert "unibp (assumes the trigger)" in text
    assert cells(text, "victim")[0] == "victim (from the store)"


def test_a_victim_alone_has_no_gains() -> None:
    text = printed({**RECORD, "defense": None, "stages": []})
    assert "badnet / no defense" in text
    assert "DER" not in text
    assert "purified" not in text


def test_a_line() -> None:
    assert line(RECORD) == "ACC 90.72, ASR 1.37, RA 90.00, DER 96.53 %"
    assert line({**RECORD, "stages": [], "weak_attack": True}) == "ACC 90.72, ASR 1.37, RA 90.00 %, weak attack"


def test_jobs(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    jobs = [
        {"name": "+attack=badnet", "status": "ok", "seconds": 3.0, "record": RECORD, "found": True},
        {"name": "+attack=sig", "status": "ok", "seconds": 3.0, "record": {**RECORD, "weak_attack": True, "der": None}},
        {
            "name": "+attack=wanet",
            "status": "ok",
            "seconds": 0.1,
            "record": {**RECORD, "weak_attack": True},
            "found": True,
        },
        {"name": "+attack=blended", "status": "failed", "reason": "no disk", "seconds": 0.5},
    ]
    print_jobs(jobs)
    text = capsys.readouterr().out
    assert text.startswith("4 jobs, 1 failed\n")
    assert cells(text, "+attack=badnet")[1:] == ["90.72", "1.37", "90.00", "96.53", "3.0", "ok (found)"]
    assert cells(text, "+attack=sig")[1:] == ["90.72", "1.37", "90.00", "-", "3.0", "ok (weak attack)"]
    assert cells(text, "+attack=wanet")[-1] == "ok (found, weak attack)"
    assert cells(text, "+attack=blended")[1:] == ["-", "-", "-", "-", "0.5", "failed: no disk"]


def test_brackets_are_printed_as_they_are(capsys, monkeypatch) -> None:
    """rich would take them for markup, and stop at the closing tag that a path looks like."""
    monkeypatch.setenv("COLUMNS", "200")
    print_jobs([{"name": "defense.assumes=[trigger]", "status": "failed", "reason": "no [/tmp/x]", "seconds": 0.5}])
    print_run(RECORD, "[a]/runs/[/b]")
    text = capsys.readouterr().out
    assert "defense.assumes=[trigger]" in text
    assert "failed: no [/tmp/x]" in text
    assert "record: [a]/runs/[/b]" in text


JOBS: list[dict[str, Any]] = [
    {"name": f"+attack=badnet +defense={name} stage@defense.stages.prune=skip spc={spc}", "status": "ok",
     "seconds": 1234.5, "record": RECORD, "found": True}
    for name in ("unibp", "gradprune_oracle") for spc in (2, 100)
]  # fmt: skip


def test_in_a_file_a_table_is_as_wide_as_it_needs_to_be(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_jobs(JOBS)
    text = capsys.readouterr().out
    header = next(row for row in text.splitlines() if "job " in row)
    assert " ".join(header.replace("┃", "").split()) == "job ACC % ASR % RA % DER % seconds status"
    for job in JOBS:
        assert cells(text, job["name"]) == [job["name"], "90.72", "1.37", "90.00", "96.53", "1234.5", "ok (found)"]


@pytest.mark.parametrize("width", [80, 66])
def test_on_a_narrow_terminal_names_give_way_and_numbers_do_not(width: int) -> None:
    written = io.StringIO()
    failed = {**JOBS[0], "status": "failed", "reason": "a reason of so many words that they fill several lines"}
    print_jobs([*JOBS, failed], Console(file=written, width=width, force_terminal=True, color_system=None))
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for number in ("90.72", "1.37", "90.00", "96.53", "1234.5"):
        assert text.count(number) == 5
    assert all(name in text for name in ("ACC %", "ASR %", "RA %", "DER %", "seconds", "badnet", "unibp"))
    assert "…" not in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("+attack=badnet,x +defense=ft spc=2", "badnet,x ft spc=2"),
        ("attack.poisoning_ratio=0.1", "poisoning_ratio=0.1"),
        ("stage@defense.stages.prune=skip ~defense.stages.mask", "prune=skip ~mask"),
        ("", ""),
    ],
)
def test_a_job_in_few_words(overrides: str, expected: str) -> None:
    assert short(overrides) == expected

"""What is said of a sweep while it runs and afterwards: its state in the store, and the view of it."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from backdoor_bench.sweep import engine, status, view
from backdoor_bench.sweep.__main__ import main
from tests.sweep.scripted import Scripted, job


def test_the_state_of_a_sweep_is_in_the_store(tmp_path: Path, capsys) -> None:
    seen = []
    jobs = [job("1"), job("raise")]
    engine.run(
        jobs, tmp_path, name="seen", workers=1, make_work=Scripted, resume_command="type this",
        on_result=lambda job, result: seen.append(status.read(tmp_path)[0]),
    )  # fmt: skip
    (state,) = status.read(tmp_path)
    assert seen[0].phase in ("starting", "running")
    assert (state.phase, state.done, state.total, state.pid) == ("ended", 2, 2, os.getpid())
    capsys.readouterr()
    assert main(["status", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "seen: ended after" in said
    assert "1 ok, 1 failed" in said
    assert "failed: label of raise: ValueError: no good" in said
    assert "go on with: type this" in said
    engine.run([job("2")], tmp_path, name="whole", workers=1, make_work=Scripted, resume_command="type this")
    capsys.readouterr()
    assert main(["status", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "whole: ended after" in said
    assert "go on with" not in said


def seen(state: status.State, width: int = 80) -> list[str]:
    """Its view on a terminal."""
    written = io.StringIO()
    Console(file=written, width=width, force_terminal=True, color_system=None).print(view.render(state))
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_the_view_fits_the_terminal_whatever_names_and_reasons_there_are() -> None:
    """Eighty columns; numbers whole; a few workers of a hundred."""
    long = "cifar10 preact_resnet18 blended gradprune_oracle poisoning_ratio=0.05 clean_ratio=0.1 repetition=7"
    state = status.State("unibp_table1", total=120_000, phase="running", counts={"ok": 54_321, "failed": 12})
    state.eta = time.time() + 7265
    state.workers = {f"node{n} cuda:1 #{n}": (long, time.time() - n) for n in range(100)} | {"cpu #100": None}
    numbers = {"acc": 0.9132, "asr": 1.0, "ra": None, "der": 0.5}
    state.last = [{"label": long, "seconds": 1234.5, "doubtful": n == 3, **numbers} for n in range(9)]
    state.failures = [(long, "a reason that is as long as the name of its run, or longer")]
    lines = seen(state)
    assert max(map(len, lines)) <= 80
    assert len(lines) < 24
    assert lines[1].startswith("━")
    assert "54,333/120,000 54,321 ok, 12 failed" in lines[1]
    assert "about 2 h 01 min left" in lines[2]
    assert lines[3].startswith("node99 cuda:1 #99"), "who has been at it for longest"
    assert "92 more" in lines[11]
    assert sum(line.startswith("91.32  100.00") and "1234.5" in line for line in lines) == view.SHOWN


def test_the_view_says_of_how_many_runs_nothing_is_known() -> None:
    state = status.State("new", total=50, phase="running", eta=time.time() + 61, unknown=38, workers={"a": None})
    assert seen(state)[2] == "at least 1 min 01 s left, 38 runs of unknown length"


def test_how_many_runs_there_are_in_an_hour_is_said_when_there_were_some() -> None:
    state = status.State("new", total=50, phase="running", counts={"ok": 1}, workers={"a": None})
    state.started -= 360
    assert "runs/h" not in " ".join(seen(state))
    state.counts = {"ok": 5}
    assert "50 runs/h" in " ".join(seen(state))


def test_a_sweep_without_workers_yet_says_so() -> None:
    new = status.State("new", total=3, phase="running", eta=time.time() + 61)
    assert seen(new)[0].startswith("new: starting its workers for 0 s")
    assert seen(new)[2] == "about 1 min 01 s left"


def test_a_dead_drivers_sweep_is_known_by_its_heartbeat(tmp_path: Path, capsys) -> None:
    state = status.State("gone", total=9, phase="running", workers={"cuda:0": ("badnet ft", time.time())})
    state.heartbeat = time.time() - status.STALE_SECONDS - 60
    state.started, state.counts, state.eta = state.heartbeat - 3600, {"ok": 7}, time.time() + 600
    state.write(tmp_path)
    status.State("alive", total=2, phase="running", workers={"cuda:0": ("badnet ft", time.time())}).write(tmp_path)
    assert main(["status", str(tmp_path), "--all"]) == 0
    said = capsys.readouterr().out
    assert "gone: dead since 1 min 30 s" in said
    assert "7 runs/h\n" in said, "while it lived, and nothing is left that somebody does"
    assert "alive: running for" in said
    assert said.count("badnet ft") == 1, "a dead driver's workers do nothing"


def test_a_state_of_another_version_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    state = status.State("old", total=1)
    state.write(tmp_path)
    path = tmp_path / status.FOLDER / f"{state.id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "new field": 1}))
    (path.parent / "half.json").write_text("{")
    (path.parent / "list.json").write_text("[]")
    assert [found.name for found in status.read(tmp_path)] == ["old"]


def test_the_status_of_a_store_without_sweeps(tmp_path: Path, capsys) -> None:
    assert main(["status", str(tmp_path)]) == 1
    assert "no sweep has run over the store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (7260, "2 h 01 min"), (-3, "0 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert view.duration(seconds) == text

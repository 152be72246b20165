"""``hydra/launcher=ray``: the jobs of a plain multirun by the engine, with the table and status of Hydra's own."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from backdoor_bench.__main__ import main
from backdoor_bench.errors import ConfigError
from backdoor_bench.sweep import engine
from backdoor_bench.sweep.job import Result
from backdoor_bench.sweep.launcher import RayLauncher

SMALL = ("recipe.epochs=1", "recipe.width=2", "device=cpu", "trainer.precision=32-true")


def multirun(folder: Path, *overrides: str) -> int:
    """One worker: this process, so that no Ray has to start."""
    places = (f"store_dir={folder / 'store'}", f"hydra.sweep.dir={folder / 'jobs'}")
    return main(["-m", "hydra/launcher=ray", "hydra.launcher.workers=1", *SMALL, *places, *overrides])


def test_a_multirun_by_the_engine(tmp_path: Path, capsys) -> None:
    assert multirun(tmp_path, "+attack=badnet", "+defense=clp", "repetition=0,1") == 0
    said = capsys.readouterr()
    assert "2 jobs" in said.out
    notes = [json.loads((tmp_path / "jobs" / number / "job.json").read_text()) for number in "01"]
    assert [note["status"] for note in notes] == ["ok", "ok"]
    assert {path.parent.name for path in tmp_path.glob("store/runs/*/0001.json")} == {note["record"] for note in notes}
    assert len(list(tmp_path.glob("store/victims/*"))) == 1
    assert multirun(tmp_path, "+attack=badnet", "+defense=clp", "repetition=0,1") == 0
    assert all(json.loads((tmp_path / "jobs" / number / "job.json").read_text())["found"] for number in "01")


def test_a_job_that_cannot_be_planned_fails_alone(tmp_path: Path, capsys) -> None:
    assert multirun(tmp_path, "+attack=badnet", "+defense=clp", "spc=2,100000") == 1
    assert "2 jobs, 1 failed" in capsys.readouterr().out
    (note,) = [json.loads(path.read_text()) for path in (tmp_path / "jobs").glob("1/job.json")]
    assert note["status"] == "failed"
    assert "100000" in note["reason"]


def test_an_interrupted_multirun_says_how_to_go_on(tmp_path: Path, monkeypatch) -> None:
    asked: dict[str, str] = {}

    def interrupted(jobs, store, *, on_result, resume_command, **_: object) -> SimpleNamespace:
        for job in jobs:
            on_result(job, Result(job.key, "skipped", "the sweep was interrupted"))
        asked["command"] = resume_command
        return SimpleNamespace(exit_status=130)

    monkeypatch.setattr(engine, "run", interrupted)
    assert multirun(tmp_path, "+attack=badnet", "repetition=0,1") == 130
    assert shlex.split(asked["command"])[:5] == ["python", "-m", "backdoor_bench", "-m", "hydra/launcher=ray"]
    assert shlex.split(asked["command"])[-2:] == ["+attack=badnet", "repetition=0,1"]


def test_only_the_address_is_asked_of_init() -> None:
    with pytest.raises(ConfigError, match="has only 'address', not adress"):
        RayLauncher({"adress": "auto"})

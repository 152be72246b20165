"""The command line as a user types it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = ("recipe.epochs=1", "recipe.width=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One working folder, and with it one store, for the commands of this file."""
    return tmp_path_factory.mktemp("user")


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.run(
        [sys.executable, "-m", "backdoor_bench", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_one_run_prints_its_table_and_is_found_again(folder) -> None:
    first = command(folder, "+attack=badnet", "+defense=ft", "defense.epochs=1", *TINY)
    assert first.returncode == 0, first.stderr
    for word in ("victim", "finetune", "purified", "ACC %", "DER", "RDR", "record:"):
        assert word in first.stdout
    (record,) = (folder / "store" / "runs").glob("*/0001.json")
    assert json.loads(record.read_text())["status"] == "ok"
    assert str(record.parent.name) in first.stdout
    again = command(folder, "+attack=badnet", "+defense=ft", "defense.epochs=1", *TINY)
    assert again.returncode == 0
    assert "found in the store" in again.stderr
    assert len(list((folder / "store" / "runs").glob("*/*.json"))) == 1


def test_attack_alone_and_defense_alone(folder) -> None:
    attack = command(folder, "+attack=badnet", *TINY)
    assert attack.returncode == 0, attack.stderr
    assert "no defense" in attack.stdout
    defense = command(folder, "+defense=ft", "defense.epochs=1", *TINY)
    assert defense.returncode == 0, defense.stderr
    assert "clean network" in defense.stdout
    records = [json.loads(path.read_text()) for path in (folder / "store" / "runs").glob("*/*.json")]
    (clean,) = (record for record in records if record["attack"] is None)
    assert clean["asr"] is None
    assert clean["ra"] is None
    assert clean["der"] is None
    assert 0 <= clean["acc"] <= 1


def test_multirun_with_a_constant_and_a_failing_job(folder) -> None:
    done = command(
        folder, "-m", "+attack=badnet", "+defense=ft,ft", "spc=2,500", "attack.poisoning_ratio=0.05",
        "defense.epochs=1", *TINY,
    )  # fmt: skip
    assert done.returncode == 1
    assert "4 jobs, 2 failed" in done.stdout
    assert done.stdout.count("spc=500, but class 8 has 140 images") == 2
    assert done.stderr.count("found in the store: victim") + done.stderr.count("found in the store: run") >= 1
    notes = [json.loads(path.read_text()) for path in (folder / "store" / "multirun").glob("*/*/job.json")]
    assert sorted(note["status"] for note in notes) == ["failed", "failed", "ok", "ok"]


def test_multirun_sweeps_a_stage_for_an_ablation(folder) -> None:
    done = command(
        folder, "-m", "+attack=badnet", "+defense=ft", "stage@defense.stages.finetune=finetune,skip",
        "defense.epochs=1", *TINY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "finetune=skip" in done.stdout


def test_a_purified_network_is_measured_again_in_a_fresh_process(folder) -> None:
    """UNIT's bounds are part of it; ACC, ASR and RA come out exactly as recorded."""
    short = ("defense.epochs=2", "save_purified=true")
    done = command(folder, "+attack=badnet", "+defense=unit", *short, *TINY)
    assert done.returncode == 0, done.stderr
    (saved,) = (folder / "store" / "purified").iterdir()
    again = subprocess.run(
        [sys.executable, "-m", "backdoor_bench.remeasure", saved.name],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "agrees: largest difference 0.000 points in the recorded setting" in again.stderr
    assert again.stdout.count("recorded") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+attack=badnett"], "Did you mean badnet or wanet?"),
        (["+attack=badnet", "attack.target_label=12"], "attack.target_label=12: the data set has classes 0 to 9"),
        (["+attack=badnet", "+defense=ft", "spc=2", "clean_ratio=0.1"], "both spc=2 and clean_ratio=0.1 are given"),
        (["dataset=cifar10", "data_dir=nowhere"], "nowhere"),
        (["+attack=badnet", "recipe.optimizer.lr=1.0e+30", *TINY], "diverged"),
    ],
)
def test_bad_input_is_one_message_without_a_stack_trace(folder, arguments, message) -> None:
    done = command(folder, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_diverging_run_is_recorded_as_failed_with_its_reason(folder) -> None:
    command(folder, "+attack=badnet", "recipe.optimizer.lr=1.0e+30", "seed=7", *TINY)
    records = [json.loads(path.read_text()) for path in (folder / "store" / "runs").glob("*/*.json")]
    (failed,) = (record for record in records if record["seed"] == 7)
    assert failed["status"] == "failed"
    assert "diverged" in failed["reason"]

"""The command line as a user types it: in a process of its own where that is the point, else through ``main``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from backdoor_bench import command

TINY = ("recipe.epochs=1", "recipe.width=2")


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One working folder, and with it one store, for the commands of this file."""
    return tmp_path_factory.mktemp("user")


def process(folder: Path, *arguments: str) -> Done:
    """``python -m backdoor_bench ARGUMENTS``, as a shell starts it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("HYDRA_FULL_ERROR", None)
    done = subprocess.run(
        [sys.executable, "-m", "backdoor_bench", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The same command without the seconds that a process needs to start."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def typed(*arguments: str) -> Done:
        return Done(command.main(arguments), *capsys.readouterr())

    return typed


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (folder / "store" / "runs").glob("*/*.json")]


def test_one_run_prints_its_table_and_is_found_again(folder) -> None:
    first = process(folder, "+attack=badnet", "+defense=ft", "defense.epochs=1", *TINY)
    assert first.returncode == 0, first.stderr
    for word in ("victim", "finetune", "purified", "ACC %", "DER", "RDR", "record:"):
        assert word in first.stdout
    (record,) = records(folder)
    assert record["status"] == "ok"
    assert record["key"] in first.stdout
    again = process(folder, "+attack=badnet", "+defense=ft", "defense.epochs=1", *TINY)
    assert again.returncode == 0
    assert "found in the store" in again.stderr
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]  # with the record's file
    assert len(records(folder)) == 1


def test_attack_alone_and_defense_alone(folder, run) -> None:
    attack = run("+attack=badnet", *TINY)
    assert attack.returncode == 0, attack.stderr
    assert "no defense" in attack.stdout
    (victim,) = (record for record in records(folder) if record["defense"] is None)
    assert 0 <= victim["asr"] <= 1
    assert (victim["der"], victim["arr"], victim["rdr"]) == (None, None, None)
    defense = run("+defense=ft", "defense.epochs=1", *TINY)
    assert defense.returncode == 0, defense.stderr
    assert "clean network" in defense.stdout
    (clean,) = (record for record in records(folder) if record["attack"] is None)
    assert clean["asr"] is None
    assert clean["ra"] is None
    assert clean["der"] is None
    assert 0 <= clean["acc"] <= 1


def test_multirun_with_a_constant_and_a_failing_job(folder) -> None:
    done = process(
        folder, "-m", "+attack=badnet", "+defense=ft,ft", "spc=2,500", "attack.poisoning_ratio=0.05",
        "defense.epochs=1", *TINY,
    )  # fmt: skip
    assert done.returncode == 1
    assert "4 jobs, 2 failed" in done.stdout
    assert done.stdout.count("spc=500, but class 8 has 140 images") == 2
    assert done.stderr.count("found in the store: victim") + done.stderr.count("found in the store: run") >= 1
    notes = [json.loads(path.read_text()) for path in (folder / "store" / "multirun").glob("*/*/job.json")]
    assert sorted(note["status"] for note in notes) == ["failed", "failed", "ok", "ok"]


def test_multirun_sweeps_a_stage_for_an_ablation(run) -> None:
    done = run("-m", "+attack=badnet", "+defense=ft", "stage@defense.stages.finetune=finetune,skip",
               "defense.epochs=1", *TINY)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "finetune=skip" in done.stdout


def test_a_purified_network_is_measured_again_in_a_fresh_process(folder, run) -> None:
    """UNIT's bounds are part of it; ACC, ASR and RA come out exactly as recorded."""
    done = run("+attack=badnet", "+defense=unit", "defense.epochs=2", "save_purified=true", *TINY)
    assert done.returncode == 0, done.stderr
    (saved,) = (folder / "store" / "purified").iterdir()
    again = subprocess.run(
        [sys.executable, "-m", "backdoor_bench.remeasure", saved.name],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "agrees: largest difference 0.000 points in the recorded setting" in again.stderr
    assert again.stdout.count("recorded") == 3


def test_a_misspelt_name_ends_a_process_at_once(folder) -> None:
    done = process(folder, "+attack=badnett")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown attack 'badnett'. Did you mean badnet or wanet? Known: ")
    assert done.stderr.count("\n") == 1


def test_a_misspelt_option_ends_a_multirun_before_its_first_job(run, folder) -> None:
    done = run("-m", "+attack=badnet,blended", "recipe.epoch=1", "store_dir=untouched")
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown option of recipe 'epoch'. Did you mean epochs")
    assert not (folder / "untouched").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+attack=badnet", "attack.target_label=12"], "attack.target_label=12: the data set has classes 0 to 9"),
        (["+attack=badnet", "+defense=ft", "spc=2", "clean_ratio=0.1"], "both spc=2 and clean_ratio=0.1 are given"),
        (["dataset=cifar10", "data_dir=nowhere"], "nowhere"),
        (["--cfg", "job", "recipe.epoch=1"], "unknown option of recipe 'epoch'. Did you mean epochs"),
        (["hydra.verbose=true", "recipe.epoch=1"], "unknown option of recipe 'epoch'. Did you mean epochs"),
        (["+sweep=smoke", "recip.epochs=1"], "unknown option 'recip'. Did you mean recipe"),
        (["-m", "+attack=badnet", "--cfg", "job"], "Only one of --run, --multirun, --cfg"),
        (["--resolve"], "--resolve"),
        (["+attack=badnet", "store_dir="], "the store's folder has no name; give one, store_dir=PATH"),
        (["-m", "+attack=badnet", "store_dir=null"], "the store's folder has no name"),
        (["--experimental-rerun", "none"], "File none does not exist"),
    ],
)
def test_bad_input_is_one_message_without_a_stack_trace(run, arguments, message) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("many", [[], ["-m"]])
def test_paths_are_those_where_the_command_was_typed_also_with_chdir(run, folder, many) -> None:
    before = set(folder.rglob("runs"))
    done = run("+attack=badnet", "store_dir=./elsewhere", "hydra.job.chdir=true", *many, *TINY)
    assert done.returncode == 0, done.stderr
    assert set(folder.rglob("runs")) - before <= {folder / "elsewhere" / "runs"}


def test_one_run_is_composed_once_and_a_refused_one_makes_no_folder(tmp_path, monkeypatch, run) -> None:
    monkeypatch.chdir(tmp_path)
    composed = []
    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda *given, **named: composed.append(1) or load(*given, **named)
    )
    assert run("+attack=badnet", "attack.target_label=12").returncode == 1
    assert len(composed) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_made_is_one_message(tmp_path, run) -> None:
    (tmp_path / "file").touch()
    for multirun in ((), ("-m", "seed=0,1")):  # of the second, Hydra makes the folder
        done = run("+attack=badnet", *multirun, f"store_dir={tmp_path}/file/store", *TINY)
        assert done.returncode == 1
        assert "/file/store: Not a directory; choose another with store_dir=PATH" in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_diverging_run_is_one_message_and_recorded_as_failed_with_its_reason(folder, run) -> None:
    done = run("+attack=badnet", "recipe.optimizer.lr=1.0e+30", "seed=7", *TINY)
    assert done.returncode == 1
    assert "diverged" in done.stderr
    assert "Traceback" not in done.stderr
    (failed,) = (record for record in records(folder) if record["seed"] == 7)
    assert failed["status"] == "failed"
    assert "diverged" in failed["reason"]

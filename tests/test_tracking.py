"""Metrics, configuration and the trigger's picture arrive at each logger; a sweep's victims at W&B when it ends."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from backdoor_bench import experiment, tracking
from backdoor_bench.bench import Bench
from backdoor_bench.store import Store
from backdoor_bench.tracking import pending, sweep_end
from tests.read_wandb import read as read_wandb

RUN = ("+attack=badnet", "+defense=ft", "defense.epochs=1")


@pytest.fixture(autouse=True)
def quiet_wandb(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def test_none_writes_nothing(compose, store, tmp_path) -> None:
    done = experiment.run(compose(*RUN, "force=true", f"store_dir={tmp_path}"), Bench(store))
    assert not (tmp_path / "logs").exists()
    # The record says where triggered images go all the same: it is what W&B runs are made of later.
    before, after = done.record["triggered_as"]["before"], done.record["triggered_as"]["after"]
    assert sum(before.values()) == sum(after.values())
    assert after.get("0", 0) / sum(after.values()) == done.record["asr"]


def test_csv_has_metrics_config_counts_and_picture(compose, store, tmp_path) -> None:
    done = experiment.run(compose(*RUN, "force=true", "logger=csv", f"store_dir={tmp_path}"), Bench(store))
    (folder,) = (tmp_path / "logs" / "csv" / done.record["key"]).glob("version_0")
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert float(rows[0]["asr"]) == done.record["before"]["asr"]
    assert float(rows[1]["acc"]) == done.record["acc"]
    assert float(rows[1]["stage_seconds"]) == pytest.approx(done.record["stages"][0]["seconds"])
    assert float(rows[1]["process_peak_mib_so_far"]) > 0
    assert float(rows[2]["final_der"]) == done.record["der"]
    assert "poisoning_ratio: 0.1" in (folder / "hparams.yaml").read_text()
    assert (folder / "trigger.png").stat().st_size > 100
    with (folder / "triggered_as.csv").open() as file:
        counted = {row["class"]: int(row["after"]) for row in csv.DictReader(file)}
    assert {label: count for label, count in counted.items() if count} == done.record["triggered_as"]["after"]


def test_a_clean_network_has_no_picture_and_no_null_metrics(compose, store, tmp_path) -> None:
    done = experiment.run(compose("force=true", "logger=csv", f"store_dir={tmp_path}"), Bench(store))
    (folder,) = (tmp_path / "logs" / "csv" / done.record["key"]).glob("version_0")
    assert not (folder / "trigger.png").exists()
    assert not (folder / "triggered_as.csv").exists()
    assert "triggered_as" not in done.record
    assert "asr" not in (folder / "metrics.csv").read_text().splitlines()[0].split(",")


def test_tensorboard_has_scalars_counts_and_picture(compose, store, tmp_path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = experiment.run(compose(*RUN, "force=true", "logger=tensorboard", f"store_dir={tmp_path}"), Bench(store))
    (folder,) = (tmp_path / "logs" / "tensorboard" / done.record["key"]).glob("version_0")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert events.Scalars("asr")[0].value == pytest.approx(done.record["before"]["asr"])
    assert events.Tags()["images"] == ["trigger (clean, triggered, residual x5)"]
    label, count = next(iter(done.record["triggered_as"]["after"].items()))
    assert {event.step: event.value for event in events.Scalars(f"triggered_as/class_{label}")}[1] == count


def test_wandb_works_offline_without_an_account(compose, store, tmp_path) -> None:
    done = experiment.run(compose(*RUN, "force=true", "logger=wandb", f"store_dir={tmp_path}"), Bench(store))
    (folder,) = (tmp_path / "logs" / "wandb").glob("offline-run-*")
    read = read_wandb(folder)
    assert (read.id, read.group, read.job_type) == (f"run-{done.record['key']}", "badnet", "run")
    assert read.history[0]["asr"] == done.record["before"]["asr"]
    assert read.history[1]["acc"] == done.record["acc"]
    assert read.history[1]["stage_seconds"] == done.record["stages"][0]["seconds"]
    for name in ("acc", "asr", "ra", "der", "arr", "rdr", "architecture", "dataset", "attack", "defense", "seed",
                 "repetition", "poisoning_ratio"):  # fmt: skip
        assert read.summary[name] == done.record[name], name
    assert (read.config["defense"], read.config["seed"]) == ("ft", 0)
    assert read.config["options"]["defense"]["epochs"] == 1
    rows = {row["class"]: row for row in read.tables["triggered_as"]}
    assert {str(label): row["after"] for label, row in rows.items() if row["after"]} == (
        done.record["triggered_as"]["after"]
    )
    assert [row["stage"] for row in read.tables["stages"]] == ["victim", "finetune"]
    assert list(folder.glob("files/media/images/trigger*.png"))


def test_a_sweep_s_victims_are_sent_when_it_ends(compose, tmp_path) -> None:
    place = f"store_dir={tmp_path}"
    bench = Bench(Store(tmp_path))
    kept = [
        experiment.run(pending.in_sweep(compose(*RUN, "logger=wandb", f"repetition={n}", place)), bench)
        for n in range(2)
    ]
    experiment.run(compose("+attack=badnet", "+defense=clp", place), bench)  # of the same victim, without the logger
    folder = tmp_path / "logs" / "wandb"
    assert not list(folder.glob("offline-run-*"))  # nothing while it goes on
    config = compose(*RUN, "logger=wandb", place)
    ended = OmegaConf.create(
        {"logger": config["logger"], "store_dir": str(tmp_path), "hydra": {"runtime": {"choices": {"sweep": "mine"}}}}
    )
    sweep_end.SendVictims().on_multirun_end(ended)
    (run,) = folder.glob("offline-run-*")
    read = read_wandb(run)
    assert (read.id, read.group, read.job_type) == (f"victim-{kept[0].record['victim']}", "mine", "victim")
    cells = {row["run"]: row for row in read.tables["cells"]}
    assert len(cells) == 3
    assert cells[kept[1].record["key"]]["der"] == kept[1].record["der"]
    assert "defenses" not in read.summary  # a victim of so few images is weak: no leaderboard counts it
    assert read.summary["unranked"]["ft"]["asr"] == pytest.approx(sum(done.record["asr"] for done in kept) / 2)
    assert read.summary["unranked"]["ft"]["n"] == 2
    assert read.summary["asr"] == kept[0].record["before"]["asr"]
    assert read.history[0]["stage/ft/asr"] == kept[0].record["before"]["asr"]
    assert list(run.glob("files/media/images/trigger*.png"))
    assert not pending.victims(folder)
    sweep_end.SendVictims().on_multirun_end(ended)
    assert len(list(folder.glob("offline-run-*"))) == 1


def test_per_run_makes_a_wandb_run_of_every_cell(compose, store, tmp_path) -> None:
    config = compose(*RUN, "force=true", "logger=wandb", "logger.per=run", f"store_dir={tmp_path}")
    experiment.run(pending.in_sweep(config), Bench(store))
    (folder,) = (tmp_path / "logs" / "wandb").glob("offline-run-*")
    assert "-run-" in folder.name.removeprefix("offline-run")
    assert not pending.victims(tmp_path / "logs" / "wandb")


def test_other_loggers_do_not_know_of_sweeps(compose) -> None:
    config = compose(*RUN, "logger=csv")
    assert pending.in_sweep(config) == config
    assert not HydraConfig.initialized()
    assert not pending.of_a_sweep(config)


def test_a_logger_that_fails_costs_no_run(compose, store, tmp_path, monkeypatch, capsys) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tracking, "_track", fail)
    done = experiment.run(compose(*RUN, "force=true", "logger=wandb", f"store_dir={tmp_path}"), Bench(store))
    assert json.loads(Path(done.path).read_text())["status"] == "ok"
    assert "WandbRuns: this run was not logged, its record is whole: No space left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("logger", "cause", "said"),
    [
        (
            "tensorboard",
            ModuleNotFoundError("Neither is available"),
            "TensorBoardLogger: {}tensorboard: pip install tensorboard",
        ),
        (
            "wandb",
            ModuleNotFoundError("No module named 'wandb'", name="wandb"),
            "WandbRuns: {}wandb: pip install wandb",
        ),
    ],
)
def test_a_package_that_is_not_installed_is_one_line(
    logger, cause, said, compose, store, tmp_path, monkeypatch, capsys
) -> None:
    def fail(*_: object) -> None:
        """As Hydra hands on what the logger's constructor raises."""
        raise RuntimeError("Error in call to target:\nmany lines") from cause

    monkeypatch.setattr(tracking, "_track", fail)
    experiment.run(compose(*RUN, "force=true", f"logger={logger}", f"store_dir={tmp_path}"), Bench(store))
    said = said.format("this run was not logged, its record is whole: it needs ")
    assert f"{said}\n" in capsys.readouterr().err


def test_a_run_that_is_found_is_not_logged_and_says_so(compose, tmp_path, capsys) -> None:
    bench = Bench(Store(tmp_path))
    done = experiment.run(compose(*RUN), bench)
    experiment.run(compose(*RUN), bench)
    assert "(force=true runs it again)" in capsys.readouterr().err
    found = experiment.run(compose(*RUN, "logger=csv", f"store_dir={tmp_path}"), bench)
    assert found.record["key"] == done.record["key"]
    assert "(force=true runs it again, and logs it)" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_wandb_is_not_imported_where_nothing_is_logged() -> None:
    code = "import sys, backdoor_bench.experiment, backdoor_bench.sweep.runs; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

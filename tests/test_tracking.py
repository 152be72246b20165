"""Metrics, configuration and the trigger's picture arrive at each logger."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backdoor_bench import experiment
from backdoor_bench.bench import Bench
from backdoor_bench.store import Store

RUN = ("+attack=badnet", "+defense=ft", "defense.epochs=1")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def test_none_writes_nothing(compose, store, tmp_path) -> None:
    experiment.run(compose(*RUN, "force=true", f"store_dir={tmp_path}"), Bench(store))
    assert not (tmp_path / "logs").exists()


def test_csv_has_metrics_config_and_picture(compose, store, tmp_path) -> None:
    done = experiment.run(compose(*RUN, "force=true", "logger=csv", f"store_dir={tmp_path}"), Bench(store))
    (folder,) = (tmp_path / "logs" / "csv" / done.record["key"]).glob("version_0")
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert float(rows[0]["asr"]) == done.record["before"]["asr"]
    assert float(rows[1]["acc"]) == done.record["acc"]
    assert float(rows[1]["stage_seconds"]) == pytest.approx(done.record["stages"][0]["seconds"])
    assert float(rows[2]["final_der"]) == done.record["der"]
    assert "poisoning_ratio: 0.1" in (folder / "hparams.yaml").read_text()
    assert (folder / "trigger.png").stat().st_size > 100


def test_a_clean_network_has_no_picture_and_no_null_metrics(compose, store, tmp_path) -> None:
    done = experiment.run(compose("force=true", "logger=csv", f"store_dir={tmp_path}"), Bench(store))
    (folder,) = (tmp_path / "logs" / "csv" / done.record["key"]).glob("version_0")
    assert not (folder / "trigger.png").exists()
    assert "asr" not in (folder / "metrics.csv").read_text().splitlines()[0].split(",")


def test_tensorboard_has_scalars_and_picture(compose, store, tmp_path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = experiment.run(compose(*RUN, "force=true", "logger=tensorboard", f"store_dir={tmp_path}"), Bench(store))
    (folder,) = (tmp_path / "logs" / "tensorboard" / done.record["key"]).glob("version_0")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert events.Scalars("asr")[0].value == pytest.approx(done.record["before"]["asr"])
    assert events.Tags()["images"] == ["trigger (clean, triggered, residual x5)"]


def test_wandb_works_offline_without_an_account(compose, store, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    done = experiment.run(compose(*RUN, "force=true", "logger=wandb", f"store_dir={tmp_path}"), Bench(store))
    (file,) = (tmp_path / "logs" / "wandb").glob("offline-run-*/*.wandb")
    history: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            history.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
        elif kind == "config":
            config |= {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.config.update}
        elif kind == "run":
            assert record.run.run_group == "badnet"
            assert record.run.display_name == done.record["key"]
    assert any(row.get("asr") == done.record["before"]["asr"] for row in history)
    assert any(row.get("final_der") == done.record["der"] for row in history)
    assert config["seed"] == 0
    assert list(file.parent.glob("files/media/images/*.png"))


def wandb_records(path: Path) -> Iterator[Any]:
    """The protobuf records of an offline run: a header of 7 bytes, then a log in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert struct.unpack("<4sHB", data[:7])[:2] == (b":W&B", 0xBEE1)
    position, pieces = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        if kind == 0:
            break
        pieces += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last of several pieces
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record

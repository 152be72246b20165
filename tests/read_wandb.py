"""Reads what an offline W&B run wrote: the one place that knows the format of ``.wandb`` files."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class OfflineRun:
    """An offline run's folder, read: tables as lists of rows by column."""

    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    exit_code: int | None = None


def read(folder: Path, patience: float = 10.0) -> OfflineRun:
    """A run that was finished.

    W&B's own process may write the file after ``finish()`` has returned (2 of 120 runs, with three processes on two
    cores), so its last record is waited for, ``patience`` seconds at most.
    """
    (file,) = folder.glob("*.wandb")
    run, until = OfflineRun(), time.monotonic() + patience
    while not any(record.WhichOneof("record_type") == "exit" for record in records(file)) and time.monotonic() < until:
        time.sleep(0.05)
    for record in records(file):
        match record.WhichOneof("record_type"):
            case "run":
                run.id, run.name, run.group = record.run.run_id, record.run.display_name, record.run.run_group
                run.job_type, run.project = record.run.job_type, record.run.project
                run.tags = list(record.run.tags)
                _put(run.config, record.run.config.update)
            case "config":
                _put(run.config, record.config.update)
            case "history":
                row: dict[str, Any] = {}
                _put(row, record.history.item)
                run.history.append(row)
            case "summary":
                _put(run.summary, record.summary.update)
            case "exit":
                run.exit_code = record.exit.exit_code
    for path in folder.glob("files/media/table/*.table.json"):
        table = json.loads(path.read_text())
        name = path.name.rsplit("_", 2)[0]
        run.tables[name] = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return run


def _put(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *places, last = list(item.nested_key) or [item.key]
        node = target
        for place in places:
            node = node.setdefault(place, {})
        node[last] = json.loads(item.value_json)


def records(path: Path) -> Iterator[Any]:
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

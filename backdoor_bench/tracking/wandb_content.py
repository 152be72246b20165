"""What a W&B run holds, from records alone: neither wandb nor torch is imported here.

A run of one experiment and the run of a victim with all its cells have the same stable keys. In the configuration:
``dataset architecture attack poisoning_ratio seed`` (and ``defense spc clean_ratio repetition``), by which W&B groups
and filters; everything else that was configured is under ``options``. In the summary: ``acc asr ra der arr rdr``.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LAYOUT = 3
"""Raised when the same records shall look different in W&B: they are then sent again."""

METRICS = ("acc", "asr", "ra", "der", "arr", "rdr")
DOUBTS = ("weak_attack", "victim_at_chance", "at_chance")
"""Why an ASR says little; records older than a field lack it."""
MEMORY = ("peak_cuda_mib", "process_peak_mib_so_far")
OF_VICTIM = ("victim", "dataset", "variant", "architecture", "attack", "poisoning_ratio", "seed", "preset")
OF_CELL = ("defense", "assumes", "spc", "clean_ratio", "repetition")
TAG = 64
"""Characters; W&B refuses longer ones."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table as W&B shows it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Content:
    """One W&B run.

    Args:
        id: from the key of the run or victim, so that sending it twice makes one run.
        victim: whose trigger picture it shows.
        digest: of what it was made from; another one is sent again under the same id.
        history: one row per step: the victim, then each stage.
    """

    id: str
    name: str
    victim: str
    group: str
    job_type: str
    tags: Sequence[str]
    digest: str
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    tables: Mapping[str, Table] = field(default_factory=dict)


def of_run(record: Record, group: str | None = None) -> Content:
    """One experiment, with its stages as steps."""
    names = {name: record[name] for name in (*OF_VICTIM, *OF_CELL)}
    steps = list(_steps(record))
    seconds = [stage["seconds"] for stage in record.get("stages", ())]
    summary = {
        **names, **{name: record.get(name) if record["status"] == "ok" else None for name in METRICS},
        **{f"before_{name}": value for name, value in record.get("before", {}).items()},
        **_facts(record), "defense_seconds": sum(seconds) if seconds else None, "run": record["key"],
    }  # fmt: skip
    tables = {"stages": _table([{"stage": name, **row} for name, row in steps])}
    if record.get("triggered_as"):
        tables["triggered_as"] = _table(list(_triggered_as(record)))
    return Content(
        f"run-{record['key']}", _title(record), record["victim"], group or record["attack"] or "clean", "run",
        _tags(record), digest([record]), {**names, "run": record["key"], "options": record["config"]},
        [row for _, row in steps], summary, tables,
    )  # fmt: skip


def of_victim(records: Sequence[Record], group: str | None = None) -> Content:
    """A victim, with all that was done to it as a table of cells.

    ``defenses.NAME`` in the summary and ``stage/NAME/*`` in the history are means over the victim's cells with that
    defense, whatever their regime, repetition and options (``n`` says how many); the table ``cells`` has each. Of a
    victim of a weak attack or at chance they are ``unranked.NAME``: no leaderboard takes its mean over them.
    """
    records = sorted(records, key=lambda record: str(record["key"]))
    done = [record for record in records if record["status"] == "ok"]
    one = (done or records)[0]
    names = {name: one[name] for name in OF_VICTIM}
    cells = [record for record in records if record["defense"] is not None]
    differs = _differences(cells)
    rows = [_cell(record) | {"differs": differs[record["key"]]} for record in cells]
    stages = [
        {**{name: record[name] for name in ("key", *OF_CELL)}, "stage": name, "step": step, **row}
        for record in cells
        for step, (name, row) in enumerate(_steps(record))
    ]
    counts = [{"run": record["key"], "defense": record["defense"], **row} for record in cells
              for row in _triggered_as(record)]  # fmt: skip
    by_defense: dict[str, list[Record]] = defaultdict(list)
    for record in done:
        if record["defense"] is not None:
            by_defense[record["defense"]].append(record)
    before = one.get("before", {})
    ranked = not (one.get("weak_attack") or one.get("victim_at_chance"))
    summary = {
        **names, **dict.fromkeys(METRICS), **before, **_facts(one), "runs": len(records),
        "failed": sum(record["status"] == "failed" for record in records),
        "defenses" if ranked else "unranked": {
            name: _means(METRICS, of) | {"n": len(of), "at_chance": sum(bool(one.get("at_chance")) for one in of)}
            for name, of in sorted(by_defense.items())
        },
    }  # fmt: skip
    summary.pop("seconds", None)
    options = {k: v for k, v in one["config"].items() if k not in ("defense", "spc", "clean_ratio", "repetition")}
    return Content(
        f"victim-{one['victim']}", _title({**one, "defense": None}), one["victim"], group or one["attack"] or "clean",
        "victim", _tags(one), digest(records), {**names, "options": options}, _mean_steps(by_defense), summary,
        {name: _table(of) for name, of in (("cells", rows), ("stages", stages), ("triggered_as", counts)) if of},
    )  # fmt: skip


def digest(records: Sequence[Record]) -> str:
    """Of what was measured and how long it took; the same before and after a record is written."""
    facts = [
        [LAYOUT, *(record.get(name) for name in ("key", "status", "before", *METRICS, "victim_seconds"))]
        + [stage["seconds"] for stage in record.get("stages", ())]
        for record in records
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def _steps(record: Record) -> Iterator[tuple[str, dict[str, Any]]]:
    """The victim and each stage: what was measured after it, seconds and memory. Null where it was not measured."""
    if record["status"] != "ok":
        return
    yield "victim", {**record["before"], "stage_seconds": record.get("victim_seconds")}
    for stage in record["stages"]:
        measured = {name: stage.get(name) for name in ("acc", "asr", "ra")}
        memory = {name: stage[name] for name in MEMORY if name in stage}
        yield stage["name"], {**measured, "stage_seconds": stage["seconds"], **memory}


def _mean_steps(by_defense: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """``stage/NAME/acc`` and so on, by step: means over the cells that have the step."""
    history: list[dict[str, Any]] = []
    for name, records in sorted(by_defense.items()):
        traces = [[row for _, row in _steps(record)] for record in records]
        for step in range(max(map(len, traces))):
            while len(history) <= step:
                history.append({})
            at = [trace[step] for trace in traces if step < len(trace)]
            means = _means(("acc", "asr", "ra", "stage_seconds"), at)
            history[step] |= {f"stage/{name}/{metric}": value for metric, value in means.items()}
    return history


def _means(names: Sequence[str], records: Sequence[Record]) -> dict[str, float | None]:
    values = {name: [record[name] for record in records if record.get(name) is not None] for name in names}
    return {name: sum(known) / len(known) if known else None for name, known in values.items()}


def _cell(record: Record) -> dict[str, Any]:
    clean, done = record.get("clean") or {}, record["status"] == "ok"
    seconds = [stage["seconds"] for stage in record.get("stages", ())] if done else []
    return {
        "run": record["key"], **{name: record[name] for name in OF_CELL}, "status": record["status"],
        **{name: record.get(name) if done else None for name in (*METRICS, "at_chance")},
        "defense_seconds": sum(seconds) if seconds else None,
        **{name: record[name] for name in MEMORY if name in record},
        "clean_train": clean.get("train"),
        "clean_replaced": clean.get("replaced"), "reason": record.get("reason"),
    }  # fmt: skip


def _triggered_as(record: Record) -> Iterator[dict[str, Any]]:
    """Triggered test images by predicted class, before and after; before is null if an older victim did not say."""
    counts = (record.get("triggered_as") or {}) if record["status"] == "ok" else {}
    before, after = counts.get("before"), counts.get("after") or {}
    for label in sorted({*(before or {}), *after}, key=int):
        yield {"class": int(label), "before": None if before is None else before.get(label, 0),
               "after": after.get(label, 0)}  # fmt: skip


def _differences(records: Sequence[Record]) -> dict[str, str]:
    """By key, the options in which a cell differs from other cells of its defense (an ablation, a sensitivity)."""
    flat = {record["key"]: dict(_flat(record["config"]["defense"])) for record in records}
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    having: Counter[tuple[str, str]] = Counter()
    for record in records:
        for name, value in flat[record["key"]].items():
            values[record["defense"], name].add(value)
            having[record["defense"], name] += 1
    of_defense = Counter(record["defense"] for record in records)

    def differs(at: tuple[str, str]) -> bool:
        return len(values[at]) > 1 or having[at] < of_defense[at[0]]  # a stage that only some have

    return {
        record["key"]: " ".join(
            f"{name}={value}" for name, value in flat[record["key"]].items() if differs((record["defense"], name))
        )
        for record in records
    }


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def _facts(record: Record) -> dict[str, Any]:
    """What a run's summary says beside metrics: state, timing, memory."""
    names = ("status", "reason", *DOUBTS, "effective_poisoning_ratio", "victim_seconds", "seconds", *MEMORY)
    return {name: record[name] for name in names if record.get(name) is not None}


def _title(record: Record) -> str:
    """``badnet / ft on digits, seed 0``; keys are in the configuration."""
    name = f"{record['attack'] or 'clean'} / {record['defense']}" if record["defense"] else record["attack"] or "clean"
    return f"{name} on {record['dataset']}, {record['architecture']}, seed {record['seed']}"


def _tags(record: Record) -> list[str]:
    marks = [record["dataset"], record["architecture"], record["attack"] or "clean", record["preset"]]
    marks += [doubt for doubt in DOUBTS if record.get(doubt)] + [f"assumes {what}" for what in record["assumes"]]
    return list(dict.fromkeys(str(mark)[:TAG] for mark in marks))


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of several kinds under all their columns; a list is a text in a cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table(columns, [[_plain(row.get(name)) for name in columns] for row in rows])


def _plain(value: Any) -> Any:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else value

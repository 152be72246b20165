"""One record file to one row and its stages' rows, checked on the way: a record is somebody's file.

No pandas and no torch here. What a row holds is named in :data:`RUN` and :data:`STAGE`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

READS = 1
"""The newest record format this version reads (``experiment.RECORD_FORMAT``)."""
LONGEST = 300
"""Characters of a name. A longer one is no name; a longer reason is cut."""

RUN: Mapping[str, str] = {
    "key": "str", "victim": "str", "status": "str", "reason": "str", "started": "str", "source": "str", "record": "str",
    "sha256": "str", "dataset": "str", "variant": "str", "architecture": "str", "width": "Int64", "attack": "str",
    "poisoning_ratio": "float64", "effective_poisoning_ratio": "float64", "defense": "str", "assumes": "str",
    "spc": "Int64", "clean_ratio": "float64", "clean_train": "Int64", "clean_validation": "Int64",
    "clean_replaced": "Int64", "clean_from": "str", "use_validation": "str", "seed": "int64", "repetition": "int64",
    "preset": "str", "weak_attack": "boolean", "victim_at_chance": "boolean", "at_chance": "boolean",
    "before_acc": "float64", "before_asr": "float64", "before_ra": "float64", "acc": "float64", "asr": "float64",
    "ra": "float64", "der": "float64", "arr": "float64", "rdr": "float64", "seconds": "float64",
    "defense_seconds": "float64", "victim_seconds": "float64",
    "peak_mib": "float64", "victim_epochs": "Int64", "defense_epochs": "Int64", "precision": "str", "device": "str",
    "threads": "Int64", "revision": "str", "attack_options": "str", "defense_options": "str", "victim_options": "str",
}  # fmt: skip
"""Columns of a run with their pandas types. Metrics are fractions; null is what could not be measured.

``before_*`` and ``victim_at_chance`` are of the victim, ``acc asr ra at_chance`` of the end; the flags may be null
(:func:`.chance.fill`). ``assumes`` joins names by ``+``. ``spc`` and ``clean_ratio`` are the regime as resolved (one of
them is null; both without a defense). ``*_options`` are JSON texts of the resolved
configuration, without what has a column of its own; ``record`` is ``KEY/ATTEMPT.json`` under ``source``.
"""

STAGE: Mapping[str, str] = {
    "key": "str", "sha256": "str", "position": "int64", "stage": "str", "changed": "boolean", "acc": "float64",
    "asr": "float64", "ra": "float64", "seconds": "float64", "peak_mib": "float64", "report": "str",
}  # fmt: skip
"""Columns of a stage: its run's key and record, its place from 0, what was measured after it (null: not measured)."""

_METRICS = ("acc", "asr", "ra")
_GAINS = ("der", "arr", "rdr")
GIVEN = " (given file)"
"""What the attack's name of a network that came as a file ends with."""
_KEY = re.compile(r"[\w-]{1,100}")


class UnreadableError(ValueError):
    """A record that does not count. ``kind`` is one of a few words to count by, the message the reason."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def read(path: Path | str) -> dict[str, Any]:
    """A record as it was written.

    Raises:
        UnreadableError: damaged (half-written, altered), holding NaN, or of a format that this version does not know.
    """
    try:
        with open(path, "rb") as file:
            record = json.loads(file.read(), parse_constant=_refuse_constant)
    except UnreadableError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableError("damaged", f"not a whole JSON file ({type(error).__name__})") from error
    if not isinstance(record, dict):
        raise UnreadableError("damaged", "not a record")
    version = record.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UnreadableError("other version", "it names no record format")
    if version > READS:
        raise UnreadableError("other version", f"format {version}, and this version reads up to {READS}: update it")
    written = record.pop("sha256", None)
    # What store.files.seal writes, without its copy: what was parsed is plain already.
    if written != hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest():
        raise UnreadableError("damaged", "altered since it was written, its checksum does not match")
    record["sha256"] = written
    return record


def _refuse_constant(name: str) -> None:
    raise UnreadableError("not a number", f"it holds {name}")


class Rows:
    """Collects the rows of many records; equal texts are kept once.

    ``runs`` and ``stages`` are lists of tuples in the order of :data:`RUN` and :data:`STAGE`.
    """

    def __init__(self) -> None:
        self.runs: list[tuple[Any, ...]] = []
        self.stages: list[tuple[Any, ...]] = []
        self._texts: dict[str, str] = {}

    def add(self, record: Mapping[str, Any], source: str, name: str) -> None:
        """One record's rows.

        Raises:
            UnreadableError: a field is missing, of another kind, or out of range. Nothing is added then.
        """
        try:
            run = self._run(record, source, name)
            stages = [self._stage(run, *item) for item in enumerate(record.get("stages") or [])]
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UnreadableError("incomplete", f"{type(error).__name__} at {error}") from error
        self.runs.append(tuple(run[column] for column in RUN))
        self.stages.extend(stages)

    def _run(self, record: Mapping[str, Any], source: str, name: str) -> dict[str, Any]:
        config, clean = record["config"], record.get("clean") or {}
        recipe, defense = config["recipe"], config.get("defense")
        before, status = record.get("before") or {}, record["status"]
        if status not in ("ok", "failed"):
            raise UnreadableError("incomplete", f"status is {str(status)[:LONGEST]!r}, neither ok nor failed")
        if not isinstance(record["key"], str) or not _KEY.fullmatch(record["key"]):
            raise UnreadableError("incomplete", "its key is none")
        done = status == "ok"
        measured = {column: fraction(record, column) if done else None for column in _METRICS}
        if done and measured["acc"] is None:
            raise UnreadableError("incomplete", "status ok, and no acc")
        if (measured["asr"] or 0) + (measured["ra"] or 0) > 1 + 1e-9:
            raise UnreadableError("out of range", "asr + ra is more than 1")
        seconds = [_number(stage, "seconds") for stage in record.get("stages") or []]
        peaks = [_peak(stage) for stage in [*(record.get("stages") or []), record]]
        return {
            "key": record["key"],
            "source": source,
            "record": name,
            "sha256": record["sha256"],
            "status": status,
            "reason": None if done else str(record.get("reason"))[:LONGEST],
            **{c: self._text(record, c) for c in ("victim", "started", "dataset", "variant", "preset")},
            **{c: self._text(record, c, True) for c in ("architecture", "attack", "defense")},
            **({"attack": self._keep(f"{_attack_name(record)}{GIVEN}")} if record.get("given") else {}),
            "width": _whole(config["model"].get("width")),
            "poisoning_ratio": fraction(record, "poisoning_ratio"),
            "effective_poisoning_ratio": fraction(record, "effective_poisoning_ratio"),
            "assumes": self._keep("+".join(_name(item) for item in record["assumes"])),
            "spc": _whole(record["spc"]),
            "clean_ratio": fraction(record, "clean_ratio"),
            "clean_train": _whole(clean.get("train")),
            "clean_validation": _whole(clean.get("validation")),
            "clean_replaced": _whole(clean.get("replaced")),
            "clean_from": self._text(clean, "from", True),
            "use_validation": self._text(defense, "use_validation", True) if defense else None,
            "seed": _certain(record["seed"]),
            "repetition": _certain(record["repetition"]),
            "weak_attack": record.get("weak_attack") is True if done else None,
            **{c: _flag(record, c) if done else None for c in ("victim_at_chance", "at_chance")},
            **{f"before_{column}": fraction(before, column) for column in _METRICS},
            **measured,
            **{column: _number(record, column) if done else None for column in _GAINS},
            "seconds": _number(record, "seconds"),
            "defense_seconds": sum(s for s in seconds if s is not None) if done and defense else None,
            "victim_seconds": _number(record, "victim_seconds"),
            "peak_mib": max((peak for peak in peaks if peak is not None), default=None),
            "victim_epochs": _whole(recipe.get("epochs")),
            "defense_epochs": _whole(defense.get("epochs")) if defense else None,
            "precision": self._text(record["numerics"], "precision", True),
            "device": self._text(record["numerics"], "device", True),
            "threads": _whole(record["environment"].get("threads")),
            "revision": self._text(record["environment"], "revision", True),
            **self.options(config),
        }

    def options(self, config: Mapping[str, Any]) -> dict[str, str | None]:
        """The three ``*_options`` of a resolved configuration, a record's or one composed now."""
        recipe, defense = config["recipe"], config.get("defense")
        victim = {
            "model": {k: v for k, v in config["model"].items() if k not in ("width", "mean", "std", "download")},
            "recipe": {k: v for k, v in recipe.items() if k not in ("width", "lengths")},
            "augmentation": config["dataset"].get("augmentation"),
        }
        return {
            "attack_options": self._options(config.get("attack"), ("poisoning_ratio",)),
            "defense_options": self._options(
                defense and {**defense, "clean_from": config.get("clean_from")},
                ("name", "assumes", "requires", "instead"),
            ),
            "victim_options": self._options(victim, ()),
        }

    def _stage(self, run: Mapping[str, Any], position: int, stage: Mapping[str, Any]) -> tuple[Any, ...]:
        measured = [fraction(stage, column) for column in _METRICS]
        report = self._keep(json.dumps(stage.get("report") or {}, sort_keys=True))
        return (run["key"], run["sha256"], position, self._text(stage, "name"), stage.get("changed") is True, *measured,
                _number(stage, "seconds"), _peak(stage), report)  # fmt: skip

    def _text(self, node: Mapping[str, Any], column: str, optional: bool = False) -> str | None:
        value = node.get(column) if optional else node[column]
        return None if value is None and optional else self._keep(_name(value))

    def _options(self, node: Any, without: tuple[str, ...]) -> str | None:
        """Canonical JSON; written once for all records that have the same."""
        if not isinstance(node, Mapping):
            return None
        same = repr(node)
        if same not in self._texts:
            rest = {name: value for name, value in node.items() if name not in without}
            self._texts[same] = json.dumps(rest, sort_keys=True)
        return self._texts[same]

    def _keep(self, text: str) -> str:
        return self._texts.setdefault(text, text)


def fraction(node: Mapping[str, Any], column: str) -> float | None:
    """A number in [0, 1], or None.

    Raises:
        UnreadableError: anything else.
    """
    value = _number(node, column)
    if value is not None and not 0 <= value <= 1:
        raise UnreadableError("out of range", f"{column} is {value}; expected a fraction in [0, 1]")
    return value


def _number(node: Mapping[str, Any], column: str) -> float | None:
    value = node.get(column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UnreadableError("not a number", f"{column} is {str(value)[:LONGEST]!r}")
    return float(value)


def _flag(record: Mapping[str, Any], column: str) -> bool | None:
    """Null where a record is older than the field."""
    return None if record.get(column) is None else record[column] is True


def _peak(node: Mapping[str, Any]) -> float | None:
    cuda = _number(node, "peak_cuda_mib")
    return _number(node, "process_peak_mib_so_far") if cuda is None else cuda


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise UnreadableError("incomplete", f"{str(value)[:40]!r} is no name")
    return value


def _whole(value: Any) -> int | None:
    """An option's number; options may be of any kind, and only whole ones are compared."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62 else None


def _certain(value: Any) -> int:
    whole = _whole(value)
    if whole is None:
        raise UnreadableError("incomplete", f"{str(value)[:40]!r} is no seed")
    return whole


def _attack_name(record: Mapping[str, Any]) -> str:
    """Of a network that came as a file nobody here knows whether it carries a backdoor: it is no clean network."""
    return _name(record["attack"]) if record.get("attack") is not None else "unknown"

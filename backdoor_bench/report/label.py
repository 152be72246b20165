"""What distinguishes runs of one name: an ablation is not averaged with the method that it ablates.

Within one data set, preset and network the options that most runs have (of equally many, the earliest) are the
method's own; any other set of options is named by what differs: ``tsbd [activeness_finetune.norm=per_tensor]``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame, Series

LONGEST = 90
NO_ATTACK = "no attack"
NO_DEFENSE = "none"


def add(runs: DataFrame) -> DataFrame:
    """The runs with ``attack_label`` (attack and victim's training), ``defense_label`` and ``network`` (with width)."""
    network = runs.architecture.fillna("?") + (" width " + runs.width.astype("str")).where(runs.width.notna(), "")
    frame = runs.assign(network=network)
    place = ["dataset", "preset", "network"]
    # What an attack's label tells apart are victims, so each victim counts once.
    options = frame.attack_options.fillna("{}") + "\n" + frame.victim_options
    frame["attack_label"] = _labels(frame.assign(name=frame.attack.fillna(NO_ATTACK), options=options), place)
    defended = frame.defense.fillna(NO_DEFENSE)
    frame["defense_label"] = _labels(frame.assign(name=defended, options=frame.defense_options.fillna("{}")), place)
    return frame


def is_base(labels: Series) -> Series:
    """Which labels are a method's own options."""
    return ~labels.str.contains("[", regex=False)


@lru_cache(maxsize=10_000)
def flat(options: Any) -> Mapping[str, Any]:
    """The leaves of an options text by dotted path, as a person types them: ``finetune.epochs``. A null has none."""
    found: dict[str, Any] = {}
    if isinstance(options, str):
        for line in options.split("\n"):
            _walk("", json.loads(line), found)
    return MappingProxyType(found)


def _walk(path: str, node: Any, found: dict[str, Any]) -> None:
    if isinstance(node, Mapping):
        for name, value in node.items():
            _walk(path if name == "stages" else f"{path}.{name}" if path else name, value, found)
    else:
        found[path] = node


def _labels(frame: DataFrame, place: Sequence[str]) -> Series:
    keys = [*place, "name"]
    counts = frame.groupby([*keys, "options"], sort=False).agg(count=("key", "size"), first=("started", "min"))
    counts = counts.sort_values(["count", "first"], ascending=[False, True]).reset_index()
    names: dict[tuple[str, ...], str] = {}
    for where, group in counts.groupby(keys, sort=False):
        base = group.options.iloc[0]
        for options in group.options:
            names[(*where, options)] = where[-1] + _difference(base, options)
    rows = zip(*(frame[key] for key in [*keys, "options"]), strict=True)
    return frame.name.copy().set_axis(frame.index).mask(frame.name.notna(), [names[row] for row in rows])


def _difference(base: str, options: str) -> str:
    if base == options:
        return ""
    usual, here = flat(base), flat(options)
    changed = {path: value for path, value in here.items() if usual.get(path, usual) != value}
    gone = {path.split(".")[0] if not _has(here, path.split(".")[0]) else path for path in usual if path not in here}
    # A defense's length is its last stage's too: said once.
    if "epochs" in changed:
        changed = {
            p: v for p, v in changed.items() if p == "epochs" or not p.endswith(".epochs") or v != changed["epochs"]
        }
    parts = [f"{path}={_short(value)}" for path, value in sorted(changed.items())]
    parts += [f"without {path}" for path in sorted(gone)]
    text = ", ".join(parts) or "other options"
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}… #{hashlib.sha256(options.encode()).hexdigest()[:6]}"
    return f" [{text}]"


def _has(leaves: Mapping[str, Any], root: str) -> bool:
    return any(path == root or path.startswith(f"{root}.") for path in leaves)


def _short(value: Any) -> str:
    return value.rpartition(".")[2] if isinstance(value, str) and "_target_" not in value else json.dumps(value)

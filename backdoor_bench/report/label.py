"""What distinguishes runs of one name: an ablation is not averaged with the method that it ablates.

A method's own options are those that ``conf/`` gives it for the data set, preset and network (:mod:`.configured`); any
other set of options is named by what differs: ``tsbd [activeness_finetune.norm=per_tensor]``. Where ``conf/`` cannot
say, because it knows the preset or the method no more, they are those that most of the runs have (of equally many, the
earliest).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from backdoor_bench.report import configured

if TYPE_CHECKING:
    from pandas import DataFrame, Series

LONGEST = 90
FOLLOWING = (".epochs", ".steps", ".T_max", ".max_lr")
"""What configurations copy from a length or a rate elsewhere."""
NO_ATTACK = "no attack"
NO_DEFENSE = "none"


def add(runs: DataFrame) -> DataFrame:
    """The runs with ``attack_label`` (attack and victim's training), ``defense_label`` and ``network`` (with width)."""
    network = runs.architecture.fillna("?") + (" width " + runs.width.astype("str")).where(runs.width.notna(), "")
    frame = runs.assign(network=network)
    options = frame.attack_options.fillna("{}") + "\n" + frame.victim_options
    frame["attack_label"] = _labels(frame.assign(name=frame.attack.fillna(NO_ATTACK), options=options), _attack)
    defended = frame.defense.fillna(NO_DEFENSE)
    frame["defense_label"] = _labels(frame.assign(name=defended, options=frame.defense_options.fillna("{}")), _defense)
    return frame


def own(labels: Series, name: str) -> str | None:
    """Of the labels of a method the one that stands for it: its own options', else the most frequent; None if none."""
    found = labels[(labels == name) | labels.str.startswith(f"{name} [")]
    if not len(found) or (found == name).any():
        return name if len(found) else None
    counts = found.value_counts()
    return str(min(counts.index[counts == counts.max()]))


def method(label: str) -> str:
    """The name in a label."""
    return label.partition(" [")[0]


def options(label: str) -> str:
    """What differs from the method's own options, as its label says it; nothing where it is the method itself."""
    return label.partition(" [")[2].removesuffix("]")


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


def _attack(dataset: str, preset: str, architecture: Any, name: str) -> str | None:
    found = configured.attack(dataset, preset, str(architecture), None if name == NO_ATTACK else name)
    return None if found is None else "\n".join(found)


def _defense(dataset: str, preset: str, architecture: Any, name: str) -> str | None:
    return "{}" if name == NO_DEFENSE else configured.defense(dataset, preset, name)


def _labels(frame: DataFrame, default: Callable[..., str | None]) -> Series:
    import pandas as pd

    keys = ["dataset", "preset", "network", "architecture", "name"]
    groups = frame.groupby([*keys, "options"], sort=False, dropna=False)
    counts = groups.agg(count=("key", "size"), first=("started", "min")).reset_index()
    counts = counts.sort_values(["count", "first", "options"], ascending=[False, True, True])
    names = {}
    for where, group in counts.groupby(keys, sort=False, dropna=False):
        base = default(where[0], where[1], *where[3:]) or group.options.iloc[0]
        names.update({position: where[-1] + _difference(base, options) for position, options in group.options.items()})
    found = np.array([names[position] for position in range(len(names))], dtype=object)
    return pd.Series(found[groups.ngroup().to_numpy()], index=frame.index, dtype="str")


def _difference(base: str, options: str) -> str:
    """What sets options apart, as a label has it; nothing where they are the same."""
    if base == options:
        return ""
    usual, here = flat(base), flat(options)
    nodes = _nodes(usual)
    # A null that the other does not have is an option that was not there yet, unless it took something away.
    changed = {p: v for p, v in here.items() if (v != usual[p] if p in usual else v is not None or p in nodes)}
    if changed.get("epochs", 0) is None:  # of a time when it had none of its own
        del changed["epochs"]
    changed = {p: v for p, v in changed.items() if not _follows(p, usual, changed)}
    parts = [f"{path.removesuffix('._target_')}={_short(value)}" for path, value in sorted(changed.items())]
    parts += [f"without {node}" for node in sorted(_gone(usual, here))]
    text = ", ".join(parts)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}… #{hashlib.sha256(options.encode()).hexdigest()[:6]}"
    return f" [{text}]" if text else ""


def _follows(path: str, usual: Mapping[str, Any], changed: Mapping[str, Any]) -> bool:
    """Whether a changed length or rate is only another's, as a stage's length is its defense's: that one is said."""
    leads = (p for p in changed if len(p) < len(path) and p in usual and usual[p] == usual.get(path))
    return path.endswith(FOLLOWING) and any(changed[p] == changed[path] for p in leads)


def _gone(usual: Mapping[str, Any], here: Mapping[str, Any]) -> set[str]:
    """The nodes (a stage, a scheduler) that options lack. A single value that they lack is no difference: there was no
    such option when the record was made, and a changed default would have raised the method's version.
    """
    missing = _nodes(usual) - _nodes(here) - here.keys()
    highest = {node for node in missing if node.rpartition(".")[0] not in missing}
    # Where another class stands, it has other options: said once, as its name.
    kinds = {node: f"{node.rpartition('.')[0]}._target_" for node in highest}
    return {node for node, kind in kinds.items() if usual.get(kind) == here.get(kind)}


def _nodes(leaves: Mapping[str, Any]) -> set[str]:
    """What has leaves below it."""
    return {path[:end] for path in leaves for end, letter in enumerate(path) if letter == "."}


def _short(value: Any) -> str:
    return value.rpartition(".")[2] if isinstance(value, str) and "_target_" not in value else json.dumps(value)

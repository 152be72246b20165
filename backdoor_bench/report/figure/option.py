"""An option's value in each run, by the dotted name that it has on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backdoor_bench.errors import unknown

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_COLUMNS = {
    "attack.poisoning_ratio": "poisoning_ratio", "model.width": "width", "spc": "spc", "clean_ratio": "clean_ratio",
    "seed": "seed", "repetition": "repetition",
}  # fmt: skip
"""Options that a frame keeps in a column of their own."""
_TEXTS = {"defense": "defense_options", "attack": "attack_options", "victim": "victim_options"}


def values(runs: DataFrame, name: str) -> Series[Any]:
    """The option's value in each run, None where a run has no such option. Lists and nodes are their JSON text.

    Args:
        name: ``defense.stages.prune.noise``, ``attack.alpha``, ``recipe.epochs``, ``model.width``, ``spc`` ...

    Raises:
        ConfigError: no run has it.
    """
    import pandas as pd

    if name in _COLUMNS:
        found = [None if pd.isna(value) else value for value in runs[_COLUMNS[name]]]
    else:
        column, path = _place(name)
        known = {text: _plain(_at(_parsed(text), path)) for text in runs[column].unique()}
        found = [known[text] for text in runs[column]]
    if all(value is None for value in found):
        raise unknown("option", name, names(runs))
    return pd.Series(found, index=runs.index, dtype=object)


def names(runs: DataFrame) -> list[str]:
    """Every option that some run has."""
    found = set(_COLUMNS)
    for prefix, column in _TEXTS.items():
        for text in runs[column].dropna().unique():
            found.update(_leaves(json.loads(text), "" if prefix == "victim" else f"{prefix}."))
    return sorted(found)


def rest(runs: DataFrame, name: str) -> Series[str]:
    """A text for each run of all its defense's, attack's and victim's options but this one: equal where all else is."""
    column, path = _place(name)
    without = {
        text: json.dumps(_without(_parsed(text), path), sort_keys=True) for text in runs[column].unique()
    }  # fmt: skip
    others = [other for other in _TEXTS.values() if other != column]
    joined = runs[column].map(without).fillna("")
    for other in others:
        joined = joined + runs[other].fillna("")
    return joined


def split(options: str, stages: Sequence[str]) -> tuple[str, str]:
    """A defense's options as two texts: those of some of its stages, and all others."""
    node = json.loads(options)
    of = {name: value for name, value in (node.get("stages") or {}).items() if name in stages}
    rest = {**node, "stages": {name: value for name, value in (node.get("stages") or {}).items() if name not in of}}
    return json.dumps(of, sort_keys=True), json.dumps(rest, sort_keys=True)


def settings(name: str) -> list[str]:
    """The columns of a frame that change when the option does."""
    own = _COLUMNS.get(name)
    return [*_TEXTS.values(), *(["regime"] if own in ("spc", "clean_ratio") else [own] if own else [])]


def _place(name: str) -> tuple[str, list[str]]:
    first, *path = name.split(".")
    return (_TEXTS[first], path) if first in ("defense", "attack") else (_TEXTS["victim"], [first, *path])


def _parsed(text: Any) -> Any:
    return json.loads(text) if isinstance(text, str) else None


def _at(node: Any, path: list[str]) -> Any:
    for step in path:
        node = node.get(step) if isinstance(node, Mapping) else None
    return node


def _without(node: Any, path: list[str]) -> Any:
    if not path or not isinstance(node, Mapping) or path[0] not in node:
        return node
    if len(path) == 1:
        return {key: value for key, value in node.items() if key != path[0]}
    return {**node, path[0]: _without(node[path[0]], path[1:])}


def _leaves(node: Any, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif not key.startswith("_"):
            yield f"{prefix}{key}"


def _plain(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, (list, Mapping)) else value

"""Which parts of a configuration a node reads by interpolation, told from its text alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# What a resolver reads of the configuration: top-level names.
READS = {"length": ("preset", "recipe"), "oc.env": (), "oc.decode": ()}


def references(raw: Any, path: tuple[str, ...]) -> frozenset[str] | None:
    """The top-level names that a node at ``path`` interpolates; None if that cannot be told."""
    found: set[str] = set()
    for place, string in _strings(raw, path):
        for start in re.finditer(r"(?<!\\)\$\{", string):
            named = _reference(string[start.end() :], place)
            if named is None:
                return None
            found |= named
    return frozenset(found)


def _reference(rest: str, place: tuple[str, ...]) -> set[str] | None:
    """What one interpolation reads, by what follows its ``${``."""
    matched = re.match(r"\s*([\w.\[\]/-]+)\s*([:}])", rest)
    if matched is None:
        return None  # its name is itself interpolated, or of a kind that we do not know
    name, ending = matched.groups()
    if ending == ":":
        return set(READS[name]) if name in READS else None
    above = len(name) - len(name.lstrip("."))
    first = re.split(r"[.\[\]]", name.lstrip("."))[0]
    if above == 0:
        return {first}
    outside = len(place) - above <= 0
    return {first} if outside else set()


def _strings(raw: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(raw, str):
        if "${" in raw:
            yield path, raw
    elif isinstance(raw, Mapping):
        for name, value in raw.items():
            yield from _strings(value, (*path, str(name)))
    elif isinstance(raw, list):
        for position, value in enumerate(raw):
            yield from _strings(value, (*path, str(position)))

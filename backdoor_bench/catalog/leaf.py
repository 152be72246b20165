"""What a file of ``conf/`` says besides its values: its first comment, its defaults list, a comment on each option."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from backdoor_bench import config as configuration


def head(path: Path) -> str:
    """The first paragraph of the comment that a file begins with, as one text; a line with nothing but # ends it."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def defaults(path: Path) -> list[Any]:
    """A file's defaults list."""
    return (yaml.safe_load(path.read_text()) or {}).get("defaults", [])


def notes(path: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Comments behind options by the option's dotted name, those of the files in its defaults list first."""
    for item in defaults(path):
        if item == "_self_":
            continue
        key, leaf = next(iter(item.items())) if isinstance(item, Mapping) else (path.parent.name, item)
        group, _, place = str(key).partition("@")
        folder = configuration.directory() / (group.lstrip("/") or path.parent.name)
        yield from notes(folder / f"{leaf}.yaml", f"{prefix}{place}." if place else prefix)
    above: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        found = re.match(r"( *)(\w+):(.*)", line)
        if found is None:
            continue
        depth = len(found[1])
        above = [(d, name) for d, name in above if d < depth] + [(depth, found[2])]
        _, comment, note = found[3].partition(" #")
        if comment:
            yield prefix + ".".join(name for _, name in above), note.strip()


def stages(path: Path) -> dict[str, str]:
    """Of a defense: its stages' names to leaves of ``conf/stage``, from its defaults list."""
    found = {}
    for item in defaults(path):
        for key, leaf in item.items() if isinstance(item, Mapping) else ():
            group, _, place = str(key).partition("@stages.")
            if group == "/stage" and place:
                found[place] = str(leaf)
    return found

"""Entries as tables in the terminal, and as the page of the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backdoor_bench.catalog.entry import CHOICE, GROUPS, Entry

TITLES = {"attacks": "Attacks", "defenses": "Defenses", "stages": "Stages of defenses", "datasets": "Data sets",
          "models": "Networks"}  # fmt: skip


def value(shown: Any) -> str:
    """A default as it is written on a command line."""
    if isinstance(shown, list):
        return f"[{','.join(map(value, shown))}]"
    return shown if isinstance(shown, str) else json.dumps(shown)


def _fact(shown: Any) -> str:
    return (", ".join(shown) or "-") if isinstance(shown, list) else str(shown or "-")


def terminal(found: Mapping[str, Sequence[Entry]], console: Console) -> None:
    """One table per kind: what it is, its defaults, its source."""
    for what, kind in found.items():
        table = Table(title=Text(TITLES[what], style="bold"), title_justify="left", show_lines=True)
        for column in ("name", "what it is", "options and defaults", "source"):
            table.add_column(column, overflow="fold", ratio=None if column == "name" else 1)
        for entry in kind:
            facts = [f"{name}: {_fact(shown)}" for name, shown in entry.facts.items()]
            if entry.stages:
                facts.insert(0, "stages: " + " → ".join(entry.stages))
            options = [f"{option.name}={value(option.default)}" for option in entry.options]
            what_it_is = "\n".join(filter(None, [entry.summary, *facts]))
            table.add_row(*map(Text, (entry.name, what_it_is, "\n".join(options) or "-", entry.source)))
        console.print(table)


def markdown(found: Mapping[str, Sequence[Entry]]) -> str:
    """The page of the documentation."""
    asked = " ".join(found) if list(found) != list(GROUPS) else ""
    lines = [
        "# What there is", "",
        f"Made by `python -m backdoor_bench.catalog{' ' + asked if asked else ''} --out FILE.md` from `conf/` and the "
        "classes that it names; do not edit. Defaults are the published ones; presets and recipes shorten some.",
    ]  # fmt: skip
    for what, kind in found.items():
        columns = ["name", *(("stages",) if what == "defenses" else ()), *(kind[0].facts if kind else ()), "source"]
        lines += ["", f"## {TITLES[what]}", "", _row(columns), _row(["---"] * len(columns))]
        for entry in kind:
            stages = [" → ".join(entry.stages)] if what == "defenses" else []
            facts = [_escape(_fact(shown)) for shown in entry.facts.values()]
            lines.append(_row([f"[{entry.name}](#{_anchor(entry)})", *stages, *facts, _escape(entry.source)]))
        for entry in kind:
            lines += [
                "", f'<a id="{_anchor(entry)}"></a>', "", f"### {entry.name}", "",
                *([f"{_escape(entry.summary)}  "] * bool(entry.summary)), f"`{entry.choose}`, `{entry.code}`",
            ]  # fmt: skip
            if entry.stages:
                links = [f"{name}: [{leaf}](#stage-{leaf})" for name, leaf in entry.stages.items()]
                lines += ["", "Stages: " + " → ".join(links)]
            if entry.options:
                lines += ["", "| option | default | |", "| --- | --- | --- |"]
                lines += [_row([f"`{o.name}`", f"`{value(o.default)}`", _escape(o.note)]) for o in entry.options]
    return "\n".join(lines) + "\n"


def _anchor(entry: Entry) -> str:
    """Kinds share names (``prune`` is a stage; a network could be called so too)."""
    kind = next(group for group, choose in CHOICE.items() if choose.format(entry.name) == entry.choose)
    return f"{kind}-{entry.name}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return re.sub(r"([\\|*_<\[\]])", r"\\\1", text)

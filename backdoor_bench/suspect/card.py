"""The model card that goes with a purified network: what was done, what was measured, what could not be."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backdoor_bench import environment
from backdoor_bench.table import percent
from backdoor_bench.words import counted

NO_TRIGGER = (
    "**ASR and RA: not measured.** Without the attacker's trigger nobody can measure the attack success rate. Whether "
    "the network was backdoored, and whether a backdoor is gone, is not known from this run."
)


LARGE_DROP = 0.1
"""Loss of accuracy, as a fraction of the images, from which on a person is warned."""


@dataclass(frozen=True)
class Accuracy:
    """Fractions before and after, over ``count`` images described by ``images``; None: could not be measured."""

    images: str
    count: int
    before: float | None
    after: float | None

    @property
    def warning(self) -> str | None:
        """Said where the network lost much of its accuracy."""
        if self.before is None or self.after is None or self.before - self.after < LARGE_DROP:
            return None
        lost = 100 * (self.before - self.after)
        return f"ACC fell by {lost:.1f} points: train longer (epochs), use more clean images, or another defense"


@dataclass(frozen=True)
class Card:
    """What a card says.

    Args:
        file: the exported file's name.
        facts: (what, text) of the network and the run.
        stages: name, seconds, changed and report of each.
        accuracy: ACC.
        attack: ASR and RA before and after, where a trigger was at hand.
        usage: how to load the file, Markdown.
        remarks: what a reader should know.
    """

    file: str
    defense: str
    facts: Sequence[tuple[str, str]]
    stages: Sequence[Mapping[str, Any]]
    accuracy: Accuracy
    usage: str
    attack: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    def markdown(self) -> str:
        lines = [f"# {self.file}", "", f"A classifier purified with `{self.defense}` by backdoor_bench.", ""]
        lines += [f"- {what}: {text}" for what, text in self.facts]
        lines += [
            "",
            "## What was done",
            "",
            "| stage | seconds | network changed | report |",
            "| --- | ---: | --- | --- |",
        ]
        for stage in self.stages:
            report = ", ".join(f"{name} {_plain(value)}" for name, value in stage["report"].items())
            changed = "yes" if stage["changed"] else "no"
            lines.append(f"| {_cell(stage['name'])} | {stage['seconds']:.1f} | {changed} | {_cell(report)} |")
        lines += ["", "## What was measured", "", "| | before | after |", "| --- | ---: | ---: |"]
        rows = {"ACC": (self.accuracy.before, self.accuracy.after), **self.attack}
        lines += [f"| {name} % | {percent(before)} | {percent(after)} |" for name, (before, after) in rows.items()]
        lines += ["", f"ACC is over {self.accuracy.count} {self.accuracy.images}."]
        if self.accuracy.warning:
            lines += ["", f"**{self.accuracy.warning}.**"]
        lines += ["", "## What could not be measured", ""]
        lines.append(NO_TRIGGER if not self.attack else "Other triggers than the one named above.")
        for remark in self.remarks:
            lines += ["", remark]
        lines += ["", "## How to load it", "", self.usage.strip(), ""]
        return "\n".join(lines)


def machine(device: str) -> list[tuple[str, str]]:
    """When and on what, as facts of a card."""
    found = environment.describe()
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    versions = ", ".join(f"{name} {found[name]}" for name in ("backdoor_bench", "torch", "python"))
    return [("made", f"{when}, on {device}, {counted(found['threads'], 'thread')}"), ("versions", versions)]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

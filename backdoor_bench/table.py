"""What a person reads at the end: one run as a table, many runs as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Record = Mapping[str, Any]


def percent(value: float | None) -> str:
    """A fraction as a percentage with two digits; what could not be measured is a dash."""
    return "-" if value is None else f"{100 * value:.2f}"


def print_run(record: Record, path: str, console: Console | None = None) -> None:
    """The run's stages with ACC, ASR, RA and seconds; then what the defense did, and where the record is."""
    # No markup: names, paths and reasons hold brackets of their own.
    console = console or Console(highlight=False, markup=False)
    given = record.get("given")
    attack = record["attack"] or ("unknown attack" if given else "no attack")
    defense = record["defense"] or "no defense"
    if record["assumes"]:
        defense += f" (assumes the {' and '.join(record['assumes'])})"
    console.print(
        f"{attack} / {defense} on {record['variant']}, {record['architecture']}", style="bold", soft_wrap=True
    )
    table = Table()
    table.add_column("after")
    for name in ("ACC %", "ASR %", "RA %", "seconds"):
        table.add_column(name, justify="right")
    before = record["before"]
    source = "victim" if record["attack"] or given else "clean network"
    note = {"trained": "", "given": " (given)"}.get(record["victim_was"], " (from the store)")
    seconds = "-" if record["victim_seconds"] is None else f"{record['victim_seconds']:.1f}"
    table.add_row(source + note, *_metrics(before), seconds)
    for stage in record["stages"]:
        table.add_row(stage["name"] + ("" if stage["changed"] else " (network unchanged)"), *_metrics(stage),
                      f"{stage['seconds']:.1f}")  # fmt: skip
    if record["stages"]:
        table.add_section()
        spent = sum(stage["seconds"] for stage in record["stages"])
        table.add_row("purified", *_metrics(record), f"{spent:.1f}", style="bold")
    console.print(table)
    if record["stages"]:
        gains = "  ".join(f"{name.upper()} {percent(record[name])} %" for name in ("der", "arr", "rdr"))
        clean = record["clean"]
        console.print(
            f"{gains}   (clean images: {clean['train']} to train, {clean['validation']} to validate)", soft_wrap=True
        )
    if record["weak_attack"]:
        console.print("weak attack: this victim's ASR is too low to tell defenses apart", style="yellow")
    if given:
        console.print(f"given: {given['file']}, sha256 {given['sha256'][:16]}...", soft_wrap=True)
    if record["asr"] is None and given:
        console.print("ASR and RA not measured: that takes the attacker's trigger", style="yellow")
    if record.get("near_chance"):
        console.print("the given network's ACC is near chance: normalisation? class order?", style="yellow")
    if record.get("exported"):
        card = Path(record["exported"]).with_suffix(".md")
        console.print(f"exported: {record['exported']}, model card: {card}", soft_wrap=True)
    console.print(f"preset {record['preset']}; record: {path}", soft_wrap=True)


def line(record: Record) -> str:
    """One run in one line, for a log."""
    names = ("acc", "asr", "ra") + (("der",) if record["stages"] else ())
    weak = ", weak attack" if record["weak_attack"] else ""
    return ", ".join(f"{name.upper()} {percent(record[name])}" for name in names) + f" %{weak}"


def print_jobs(jobs: Sequence[Record], console: Console | None = None) -> None:
    """One row per job of a multirun, failed ones with their reason."""
    # No markup: names, paths and reasons hold brackets of their own.
    console = console or Console(highlight=False, markup=False)
    failed = sum(job["status"] != "ok" for job in jobs)
    console.print(f"{len(jobs)} jobs, {failed} failed" if failed else f"{len(jobs)} jobs", style="bold")
    table = Table()
    table.add_column("job", no_wrap=True)
    for name in ("ACC %", "ASR %", "RA %", "DER %", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    for job in jobs:
        record = job.get("record") or {}
        numbers = [percent(record.get(name)) for name in ("acc", "asr", "ra", "der")]
        status = job["status"] + (f": {job['reason']}" if job.get("reason") else "")
        if job.get("found"):
            status += " (found)"
        if record.get("weak_attack"):
            status += " (weak attack)"
        table.add_row(job["name"], *numbers, f"{job['seconds']:.1f}", status,
                      style="red" if job["status"] != "ok" else None)  # fmt: skip
    console.print(table)


def _metrics(values: Record) -> tuple[str, str, str]:
    if "acc" not in values:
        return ("", "", "")
    return percent(values["acc"]), percent(values["asr"]), percent(values["ra"])

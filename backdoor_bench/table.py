"""What a person reads at the end: one run as a table, many runs as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backdoor_bench.output import card_of
from backdoor_bench.words import counted

Record = Mapping[str, Any]
UNBOUNDED = 10_000
LONGEST_STATUS = 100


def percent(value: float | None) -> str:
    """A fraction as a percentage with two digits; what could not be measured is a dash."""
    return "-" if value is None else f"{100 * value:.2f}"


def _with_unit(value: float | None) -> str:
    return percent(value) + ("" if value is None else " %")


def print_run(record: Record, path: str, console: Console | None = None) -> None:
    """The run's stages with ACC, ASR, RA and seconds; then what the defense did, and where the record is."""
    console = console or _console()
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
    before = record["before"]
    extra = list(before.get("extra", {}))
    for name in ("ACC %", "ASR %", "RA %", *(f"{name.upper().replace('_', ' ')} %" for name in extra), "seconds"):
        table.add_column(name, justify="right")
    source = "victim" if record["attack"] or given else "clean network"
    note = {"trained": "", "given": " (given)"}.get(record["victim_was"], " (from the store)")
    seconds = "-" if record["victim_seconds"] is None else f"{record['victim_seconds']:.1f}"
    table.add_row(source + note, *_metrics(before, extra), seconds)
    for stage in record["stages"]:
        table.add_row(stage["name"] + ("" if stage["changed"] else " (network unchanged)"), *_metrics(stage, extra),
                      f"{stage['seconds']:.1f}")  # fmt: skip
    if record["stages"]:
        table.add_section()
        spent = sum(stage["seconds"] for stage in record["stages"])
        table.add_row("purified", *_metrics(record, extra), f"{spent:.1f}", style="bold")
    console.print(table)
    if record["stages"]:
        gains = "  ".join(f"{name.upper()} {_with_unit(record[name])}" for name in ("der", "arr", "rdr"))
        clean = record["clean"]
        console.print(
            f"{gains}   (clean images: {clean['train']} to train, {clean['validation']} to validate)", soft_wrap=True
        )
    for words in _doubts(record).values():
        console.print(words, style="yellow", soft_wrap=True)
    if given:
        console.print(f"given: {given['file']}, sha256 {given['sha256'][:16]}...", soft_wrap=True)
    if record["asr"] is None and given:
        console.print("ASR and RA not measured: that takes the attacker's trigger", style="yellow")
    if record.get("exported"):
        card = card_of(Path(record["exported"]))
        console.print(f"exported: {record['exported']}, model card: {card}", soft_wrap=True)
    console.print(f"preset {record['preset']}; record: {path}", soft_wrap=True)


def line(record: Record) -> str:
    """One run in one line, for a log."""
    names = ("acc", "asr", "ra") + (("der",) if record["stages"] else ())
    doubts = "".join(f", {doubt}" for doubt in _doubts(record))
    return ", ".join(f"{name.upper()} {percent(record[name])}" for name in names) + f" %{doubts}"


def _doubts(record: Record) -> dict[str, str]:
    """Why a run's ASR says little of its defense: in a word or two, and in a sentence. Old records lack some fields."""
    found = {}
    if record.get("weak_attack"):
        found["weak attack"] = "weak attack: this victim's ASR is too low to tell defenses apart"
    if record.get("victim_at_chance"):
        found["victim at chance"] = (
            "victim at chance: its ACC is hardly above that of a constant answer, so no ASR here says anything"
        )
    if record.get("at_chance") and not record.get("victim_at_chance"):
        found["at chance"] = (
            "at chance: the defense left an ACC hardly above that of a constant answer, so its ASR says nothing"
        )
    return found


def print_jobs(jobs: Sequence[Record], console: Console | None = None) -> None:
    """One row per job of a multirun, failed ones with their reason."""
    console = console or _console()
    failed = sum(job["status"] != "ok" for job in jobs)
    console.print(counted(len(jobs), "job") + (f", {failed} failed" if failed else ""), style="bold")
    table = _jobs(jobs, [job["name"] for job in jobs])
    if console.measure(table, options=console.options.update_width(UNBOUNDED)).maximum > console.width:
        table = _jobs(jobs, [short(job["name"]) for job in jobs])
    console.print(table)


def short(overrides: str) -> str:
    """What a person needs of a job's overrides: ``+attack=wanet defense.epochs=5`` is ``wanet epochs=5``."""
    words = []
    for override in overrides.split():
        name, is_set, value = override.partition("=")
        name = ("~" if name.startswith("~") else "") + name.lstrip("+~").split("@")[-1].split(".")[-1]
        words.append(value if name in ("attack", "defense") and value else f"{name}{is_set}{value}")
    return " ".join(words)


def _jobs(jobs: Sequence[Record], names: Sequence[str]) -> Table:
    table = Table()
    table.add_column("job", overflow="fold")  # what does not fit goes on below: numbers are never cut
    rows = []
    for job, name in zip(jobs, names, strict=True):
        record = job.get("record") or {}
        numbers = [percent(record.get(metric)) for metric in ("acc", "asr", "ra", "der")]
        status = job["status"] + (f": {job['reason']}" if job.get("reason") else "")
        if remarks := ", ".join(["found"] * bool(job.get("found")) + list(_doubts(record))):
            status += f" ({remarks})"
        rows.append((name, *numbers, f"{job['seconds']:.1f}", status))
    for column, name in enumerate(("ACC %", "ASR %", "RA %", "DER %", "seconds"), start=1):
        widest = max(map(len, (name, *(row[column] for row in rows))))
        table.add_column(name, justify="right", no_wrap=True, min_width=widest)
    table.add_column("status", overflow="fold", max_width=LONGEST_STATUS)
    for job, row in zip(jobs, rows, strict=True):
        table.add_row(*row, style="red" if job["status"] != "ok" else None)
    return table


def _console() -> Console:
    """Without markup: names, paths and reasons hold brackets of their own. A file is as wide as its tables."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=UNBOUNDED)


def _metrics(values: Record, extra: Sequence[str]) -> list[str]:
    """ACC, ASR, RA and what the attack measures besides; blank where nothing was measured."""
    if "acc" not in values:
        return [""] * (3 + len(extra))
    more = values.get("extra", {})
    return [percent(value) for value in (values["acc"], values["asr"], values["ra"], *(more.get(n) for n in extra))]

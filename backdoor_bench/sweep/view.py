"""The state of a sweep as a person sees it: live while it goes on, and from another terminal or machine."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from backdoor_bench.errors import StoreError
from backdoor_bench.sweep import status
from backdoor_bench.sweep.status import State
from backdoor_bench.table import UNBOUNDED, percent
from backdoor_bench.words import counted

SHOWN = 5
FAILURES_SHOWN = 3
WORKERS_SHOWN = 8
WORKERS_IN_A_LINE = 3
ENOUGH = 4
"""Up to so many runs, or one per worker, say little of how many there are in an hour."""

METRICS = ("acc", "asr", "ra", "der")


def show(root: Path, everything: bool = False) -> None:
    """Print the sweeps that are going on, and the last one in any case; with ``everything``, all.

    Raises:
        StoreError: no sweep has run over this store.
    """
    states = status.read(root)
    if not states:
        raise StoreError(f"no sweep has run over the store {root}; name another one: sweep status PATH")
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = UNBOUNDED
    for state in states:
        going = state.phase != "ended" and not state.stale
        if everything or going or state is states[-1]:
            console.print(render(state))


def render(state: State) -> RenderableType:
    """What the live view and the status command show, in as many columns as there are."""
    now, over = time.time(), state.phase == "ended" or state.stale
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=max(state.total, 1), completed=state.done, width=24),
        f"{state.done:,}/{state.total:,}", _outcomes(state),
    )  # fmt: skip
    parts: list[RenderableType] = [Text(_headline(state, now), style="bold"), bar]
    if speed := _speed(state, now):
        parts.append(Text(speed))
    if state.workers and not over:
        parts.append(_workers(state, now))
    if state.last:
        parts.append(_last(state))
    parts += [Text(f"failed: {label}: {reason}", "red") for label, reason in state.failures[-FAILURES_SHOWN:]]
    if state.command and over:
        parts.append(Text(f"go on with: {state.command}"))
    return Group(*parts)


def line(state: State) -> str:
    """The same in one line, for a log: how far it is, how long still, and what has been going on for longest."""
    now = time.time()
    busy = sorted((work[1], name, work[0]) for name, work in state.workers.items() if work is not None)
    parts = [_speed(state, now), *(
        f"{name}: {label} for {duration(now - since)}" for since, name, label in busy[:WORKERS_IN_A_LINE]
    )]  # fmt: skip
    if len(busy) > WORKERS_IN_A_LINE:
        parts.append(f"{len(busy) - WORKERS_IN_A_LINE:,} more at work")
    return f"[{state.done:,}/{state.total:,}] {'; '.join(part for part in parts if part) or 'waiting'}"


def _workers(state: State, now: float) -> RenderableType:
    """What each does, those first that have been at it for longest; no more than fit beside the rest."""
    busy = sorted((work[1], name, work[0]) for name, work in state.workers.items() if work is not None)
    idle = sorted(name for name, work in state.workers.items() if work is None)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column()  # the only one that may be cut
    for since, name, label in busy[:WORKERS_SHOWN]:
        grid.add_row(name, duration(now - since), _line(label))
    more = len(busy) - WORKERS_SHOWN
    if more > 0:
        grid.add_row(f"{more:,} more", "", "")
    if idle:
        grid.add_row(idle[0] if len(idle) == 1 else f"{len(idle):,} others", "", Text("nothing to do yet", "dim"))
    return grid


def _last(state: State) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in METRICS:
        table.add_column(f"{name.upper()} %", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("last results")
    for row in state.last[-SHOWN:]:
        label = _line(str(row.get("label")), "yellow" if row.get("doubtful") else "")
        table.add_row(*(percent(row.get(name)) for name in METRICS), f"{row.get('seconds', 0.0):.1f}", label)
    return table


def _line(text: str, style: str = "") -> Text:
    """One line, cut where it does not fit."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _headline(state: State, now: float) -> str:
    place = f"{state.host}, process {state.pid}"
    if state.stale:
        return f"{state.name}: dead since {duration(now - state.heartbeat)} (it was on {place})"
    since = duration((state.heartbeat if state.phase == "ended" else now) - state.started)
    phase = "starting its workers" if state.phase == "running" and not (state.workers or state.done) else state.phase
    return f"{state.name}: {phase} {'after' if state.phase == 'ended' else 'for'} {since} ({place})"


def _outcomes(state: State) -> str:
    parts = [
        f"{state.counts[name]:,} {name}" for name in ("ok", "found", "failed", "skipped") if state.counts.get(name)
    ]
    doubts = [f"{count:,} {name}" for name, count in (("weak", state.weak), ("at chance", state.at_chance)) if count]
    return ", ".join([*parts, *doubts])


def _speed(state: State, now: float) -> str:
    ran = state.counts.get("ok", 0) + state.counts.get("failed", 0)
    over = state.phase == "ended" or state.stale
    seconds = (state.heartbeat if over else now) - state.started
    enough = ran if over else ran > max(ENOUGH, len(state.workers))
    parts = [f"{3600 * ran / seconds:,.0f} runs/h"] if enough and seconds > 0 else []
    if state.eta is not None and state.phase == "running" and not over:
        left = f"{duration(state.eta - now)} left"
        parts.append(
            f"at least {left}, {counted(state.unknown, 'run')} of unknown length" if state.unknown else f"about {left}"
        )
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

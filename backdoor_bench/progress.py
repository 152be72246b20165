"""What a person sees while work goes on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[str], None]
"""Call once per unit of work, with a short note (a loss, an accuracy) or an empty string."""

console = Console(stderr=True, highlight=False)
SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def track(title: str, total: int, unit: str = "epoch") -> Iterator[Advance]:
    """Show the progress of ``total`` units of work inside the block."""
    if console.is_terminal and not console.is_dumb_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
                   TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task(title, total=total, note="")
            yield lambda note: bars.update(task, advance=1, note=note)
        return
    done, started, said = 0, time.monotonic(), time.monotonic()

    def advance(note: str) -> None:
        nonlocal done, said
        done += 1
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            say(f"{title}: {unit} {done}/{total}, {said - started:.0f} s {note}".rstrip())

    yield advance


def say(message: str) -> None:
    """One line to the person (stderr; tables and results go to stdout)."""
    console.print(message, markup=False, soft_wrap=True)

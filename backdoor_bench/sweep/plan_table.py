"""A sweep's plan as a person reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from backdoor_bench.sweep.plan import SweepPlan
from backdoor_bench.sweep.view import duration
from backdoor_bench.words import counted


def show(
    plan: SweepPlan, name: str, seconds: float, store: str, shard: str | None = None, console: Console | None = None
) -> None:
    """Print what there is to do, and what is left out and why. ``seconds``: that the planning took."""
    # No markup: names, paths and reasons hold brackets of their own.
    console = console or Console(highlight=False, markup=False)
    part = f", shard {shard}" if shard else ""
    console.print(
        f"{name}: {counted(plan.runs, 'run')} over {counted(plan.victims, 'victim')}{part}; planned in {seconds:.1f} "
        f"s, store {store}",
        style="bold", soft_wrap=True,
    )  # fmt: skip
    table = Table(show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    to_do = len(plan.jobs) - plan.extra
    table.add_row("victims to train", f"{plan.train:,}")
    table.add_row("runs to do", f"{to_do:,}" + (f" (+{counted(plan.extra, 'training')} alone)" if plan.extra else ""))
    table.add_row("done already", f"{plan.done:,}")
    table.add_row("failed before", f"{plan.failed:,}")
    impossible = sum(reasons.total() for reasons in (plan.missing, plan.absent, plan.impossible))
    for what, count in (
        ("in other shards", plan.elsewhere), ("not asked for", plan.unasked), ("same as another", plan.same),
        ("not possible here", impossible),
    ):  # fmt: skip
        if count:
            table.add_row(what, f"{count:,}")
    console.print(table)
    console.print(f"expected, one after the other: {_expected(plan)}", soft_wrap=True)
    for line in left_out_lines(plan):
        console.print(line, style="yellow", soft_wrap=True)


def left_out_lines(plan: SweepPlan) -> Iterator[str]:
    """What of the grid, and of the keys to retry, is not done, and why."""
    if plan.missing:
        yield f"skipped, not there yet: {_listed(plan.missing)}"
    for reason, count in plan.absent.most_common():
        yield f"not on this machine ({counted(count, 'run')}): {reason}"
    for reason, count in plan.impossible.most_common():
        yield f"skipped, cannot be ({counted(count, 'run')}): {reason}"
    if plan.strangers:
        yield f"skipped, keys to retry that are no runs of this sweep: {plan.strangers:,}"


def _listed(missing: Counter[str]) -> str:
    """``defense fst, nad (20 runs), attack sbl (13 runs)``."""
    kinds: dict[str, list[str]] = {}
    for what in sorted(missing):
        kind, _, name = what.partition(" ")
        kinds.setdefault(kind, []).append(name)
    return "; ".join(
        f"{kind} {', '.join(names)} ({counted(sum(missing[f'{kind} {name}'] for name in names), 'run')})"
        for kind, names in sorted(kinds.items())
    )


def _expected(plan: SweepPlan) -> str:
    known = len(plan.jobs) - plan.unknown
    if not plan.jobs:
        return "nothing"
    if not known:
        return "unknown: no run of these kinds has been recorded here"
    text = duration(plan.seconds)
    return text if not plan.unknown else f"{text} for {counted(known, 'job')}; unknown for {plan.unknown:,}"

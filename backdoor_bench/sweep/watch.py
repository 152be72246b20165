"""What a person sees of a sweep: a live view on a terminal, a line per run elsewhere, and the state in the store."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.live import Live

from backdoor_bench import progress, table
from backdoor_bench.errors import BenchError
from backdoor_bench.store import files
from backdoor_bench.sweep import status, view
from backdoor_bench.sweep.job import VICTIM_FAILED, Job, Result
from backdoor_bench.sweep.schedule import Schedule
from backdoor_bench.sweep.status import State
from backdoor_bench.sweep.view import duration
from backdoor_bench.words import counted

if TYPE_CHECKING:
    from backdoor_bench.sweep.engine import Summary

FAILURES_KEPT = 100
SECONDS_BETWEEN_ESTIMATES = 5.0
SECONDS_BETWEEN_WORDS = 300.0
SECONDS_UNTIL_WORDS = 60.0
LONG = 60.0
"""A log says when a run begins that should take more seconds than this, or nobody knows how many."""


class Watch:
    """Told by the driver what happens; shows it, and beats the sweep's heart from a thread of its own.

    Raises:
        UnwritableError: on entering, if the store takes nothing.
    """

    def __init__(self, root: Path, name: str, schedule: Schedule, command: str | None = None) -> None:
        self.failures: list[tuple[str, str]] = []
        self.retry_file: Path | None = None
        self._root = root
        self._schedule = schedule
        self._state = State(name, schedule.total, counts=dict(schedule.counts), command=command)
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._live: Live | None = None
        self._quiet: Counter[str] = Counter()
        self._begun: set[str] = set()
        self._put_off: set[str] = set()
        self._estimate_due = 0.0
        self._words_due = 0.0

    def __enter__(self) -> Watch:
        self._state.write(self._root)
        status.forget_old(self._root)
        self._beating.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._beating.join()
        if self._live is not None:
            self._live.stop()
            self._live = None
        with self._lock:
            self._state.phase = "ended"
            self._state.heartbeat = time.time()
            self._write()

    def begin(self, live: bool) -> None:
        """The workers are being started; ``live``: they print nothing themselves."""
        self._words_due = time.monotonic() + SECONDS_UNTIL_WORDS
        with self._lock:
            self._state.phase = "running"
        if live and progress.console.is_terminal and not progress.console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._render, console=progress.console, refresh_per_second=2, transient=True
            )
            self._live.start()

    # -- what happens ----------------------------------------------------------------------------------------------

    def ready(self, worker: str) -> None:
        with self._lock:
            self._state.workers[worker] = None

    def lost(self, worker: str, reason: str, again: Job | None) -> None:
        """``again``: what it was at, if that is done once more."""
        with self._lock:
            self._state.workers.pop(worker, None)
        progress.say(f"{worker} is lost ({reason})" + (f"; once more: {again.label}" if again is not None else ""))

    def start(self, worker: str, job: Job) -> None:
        with self._lock:
            self._state.workers[worker] = (job.label, time.time())
        expected = self._schedule.expected(job)
        if self._live is not None or job.key in self._begun or (expected is not None and expected <= LONG):
            return
        self._begun.add(job.key)
        what = "trains the victim of" if self._schedule.trains(job) else "begins"
        progress.say(f"{worker} {what} {job.label}" + (f", about {duration(expected)}" if expected else ""))

    def stop(self, worker: str, put_off: Job | None = None) -> None:
        """``put_off``: what it was at and another process is at as well."""
        with self._lock:
            self._state.workers[worker] = None
        if put_off is not None and put_off.key not in self._put_off:
            self._put_off.add(put_off.key)
            self._quiet["put off: another process is at it"] += 1

    def stopping(self, running: int) -> None:
        """The first Ctrl-C."""
        with self._lock:
            self._state.phase = "stopping"
        under_way = f"the {running} runs under way may finish" if running != 1 else "the run under way may finish"
        progress.say(f"stopping: {under_way}; Ctrl-C again abandons" if running else "stopping")

    def result(self, job: Job, result: Result) -> None:
        self._begun.discard(result.key)
        self._put_off.discard(result.key)
        with self._lock:
            self._state.counts = dict(self._schedule.counts)
            self._state.weak, self._state.at_chance = self._schedule.weak, self._schedule.at_chance
            if result.status == "failed":
                self._failed(job, result)
            elif result.status == "skipped" and (result.reason or "").startswith(VICTIM_FAILED):
                self._note(result.key)
            if result.status == "ok":
                self._state.last = [*self._state.last[1 - view.SHOWN :], _facts(job, result)]
        if result.status in ("found", "skipped"):  # thousands at once: said together
            self._quiet["found in the store" if result.status == "found" else f"skipped: {result.reason}"] += 1
            return
        self._say_quiet()
        if self._live is None or result.status == "failed":
            progress.say(f"[{self._state.done:,}/{self._state.total:,}] {_line(job, result)}")

    def estimate(self) -> None:
        """Say anew when it will end, in a log now and then; called whenever the driver has a moment."""
        now = time.monotonic()
        if now < self._estimate_due or not self._schedule.workers:
            return
        left = self._schedule.outlook()
        took = time.monotonic() - now  # with 100,000 runs left it is seldom, so that it stays next to nothing
        self._estimate_due = now + max(SECONDS_BETWEEN_ESTIMATES, 100 * took)
        with self._lock:
            self._state.eta = time.time() + left.seconds if left.seconds else None
            self._state.unknown = left.unknown
        if self._live is None and now >= self._words_due:
            self._words_due = now + SECONDS_BETWEEN_WORDS
            self._say_quiet()
            progress.say(view.line(self._state))

    def end(self, summary: Summary, resume_command: str | None, retry_command: str | None) -> None:
        """Say how it ended, and what to type next."""
        self._say_quiet()
        if self._live is not None:
            self._live.stop()
            self._live = None
        counts = [f"{count:,} {name}" for name, count in summary.counts.items() if count]
        doubts = [f"{summary.weak:,} with a weak attack"] * bool(summary.weak)
        doubts += [f"{summary.at_chance:,} at chance"] * bool(summary.at_chance)
        doubtful = f" ({', '.join(doubts)})" if doubts else ""
        progress.say(
            f"sweep {self._state.name}: {counted(self._state.total, 'run')}: "
            f"{', '.join(counts) or 'nothing to do'}{doubtful}; {duration(summary.seconds)}"
        )
        for label, reason in summary.failures[: 2 * view.SHOWN]:
            progress.say(f"  failed: {label}: {reason}")
        more = summary.counts["failed"] - 2 * view.SHOWN
        if more > 0:
            progress.say(f"  and {more:,} more failed; their keys are in {summary.retry_file}")
        with self._lock:
            self._state.command = None  # until now it was for who finds this driver killed
        if summary.stopped is not None or summary.counts["skipped"]:
            self._advise("go on with", resume_command)
        if summary.retry_file is not None:
            self._advise("retry only what failed with", retry_command or resume_command)

    def _advise(self, what: str, command: str | None) -> None:
        if command is not None:
            progress.say(f"{what}: {command}")
            with self._lock:
                self._state.command = command

    # -- inside ----------------------------------------------------------------------------------------------------

    def _failed(self, job: Job, result: Result) -> None:
        failure = (job.label, result.reason or "")
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(failure)
        self._state.failures = [*self._state.failures[1 - view.SHOWN :], failure]
        self._note(result.key)

    def _note(self, key: str) -> None:
        """One more that a retry has to do: what failed, and what waited for a victim that did."""
        path = self._root / status.FOLDER / f"{self._state.id}.failed"
        try:
            with path.open("a") as file:
                file.write(f"{key}\n")
            self.retry_file = path
        except OSError as error:
            progress.say(str(files.cannot_write(path, error)))

    def _say_quiet(self) -> None:
        for what, number in self._quiet.items():
            progress.say(f"{counted(number, 'run')} {what}")
        self._quiet.clear()

    def _render(self) -> RenderableType:
        with self._lock:
            return view.render(self._state)

    def _beat(self) -> None:
        while not self._ended.wait(status.SECONDS_BETWEEN_BEATS):
            with self._lock:
                self._state.heartbeat = time.time()
                self._write()

    def _write(self) -> None:
        """The state is for people: a sweep does not end for want of it."""
        try:
            self._state.write(self._root)
        except BenchError:
            return


def _facts(job: Job, result: Result) -> dict[str, Any]:
    record = result.record or {}
    measured = {name: record.get(name) for name in view.METRICS}
    doubtful = any(record.get(name) for name in ("weak_attack", "victim_at_chance", "at_chance"))
    return {"label": job.label, "seconds": result.seconds, "doubtful": doubtful, **measured}


def _line(job: Job, result: Result) -> str:
    place = f"{result.worker}, " if result.worker else ""
    again = f", attempt {result.attempts}" if result.attempts > 1 else ""
    if result.status == "failed":
        return f"{job.label}: failed: {result.reason} ({place}{duration(result.seconds)}{again})"
    measured = f"{table.line(result.record)} " if result.record and "stages" in result.record else ""
    return f"{job.label}: {measured}({place}{result.seconds:.1f} s{again})"

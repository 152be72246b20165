"""The engine in one process: results, interruptions, budgets, two sweeps at once, and what is said of it all."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import pytest

from backdoor_bench.errors import BenchError, ConfigError, UnwritableError
from backdoor_bench.sweep import engine, schedule, status, watch
from backdoor_bench.sweep.job import Job, Report, Result
from backdoor_bench.sweep.pool import Done, Event, Lost, Ready
from tests.sweep import arithmetic
from tests.sweep.arithmetic import Arithmetic
from tests.sweep.scripted import Scripted, job


def run(root: Path, *jobs: Job, **options: object) -> tuple[engine.Summary, dict[str, Result]]:
    found: dict[str, Result] = {}
    options = {"workers": 1, "make_work": Scripted, **options}
    summary = engine.run(jobs, root, on_result=lambda job, result: found.update({job.key: result}), **options)
    assert set(found) == {one.key for one in jobs}
    return summary, found


def test_a_sweep_ends_with_a_summary(tmp_path: Path, capsys) -> None:
    summary, found = run(
        tmp_path, job("1"), job("weak"), job("raise"), job("2"), job("3", needs="raise"), name="nice",
        resume_command="again", retry_command=lambda path: f"again retry={path.name}",
    )  # fmt: skip
    assert summary.counts == {"ok": 3, "found": 0, "failed": 1, "skipped": 1}
    assert (summary.weak, summary.at_chance, summary.exit_status) == (1, 1, 1)
    assert summary.failures == (("label of raise", "ValueError: no good"),)
    assert found["1"].worker == "this process"
    assert summary.retry_file.read_text() == "raise\n3\n"
    said = capsys.readouterr().err
    assert "[1/5] label of 1: (this process, 0.0 s)" in said
    assert "sweep nice: 5 runs: 3 ok, 1 failed, 1 skipped (1 with a weak attack, 1 at chance)" in said
    assert "failed: label of raise: ValueError: no good" in said
    assert f"retry only what failed with: again retry={summary.retry_file.name}" in said


def test_nothing_to_do_is_a_sweep_too(tmp_path: Path, capsys) -> None:
    summary, _ = run(tmp_path)
    assert summary.exit_status == 0
    assert "0 runs: nothing to do" in capsys.readouterr().err


def test_control_c_finishes_what_runs_and_says_how_to_go_on(tmp_path: Path, capsys) -> None:
    before = signal.getsignal(signal.SIGINT)
    summary, found = run(tmp_path, job("interrupt", times=1), job("1"), job("2"), resume_command="type this")
    assert [found[key].status for key in ("interrupt", "1", "2")] == ["ok", "skipped", "skipped"]
    assert (summary.stopped, summary.exit_status) == ("interrupted", 130)
    said = capsys.readouterr().err
    assert "2 runs skipped: the sweep was interrupted" in said
    assert "go on with: type this" in said
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_control_c_abandons(tmp_path: Path) -> None:
    summary, found = run(tmp_path, job("interrupt", times=2), job("1"))
    assert [found[key].status for key in ("interrupt", "1")] == ["skipped", "skipped"]
    assert summary.stopped == "abandoned"


def test_a_budget_that_is_over(tmp_path: Path) -> None:
    summary, found = run(tmp_path, job("1"), budget_seconds=0.0)
    assert found["1"].reason == "it was not expected to end within the budget"
    assert summary.exit_status == 0, "a budget's end is no failure"


class Fake:
    """Workers that do what a script says, in no time: ``die`` loses them, ``busy`` is another's at first."""

    def __init__(self, *names: str) -> None:
        self.events: deque[Event] = deque(Ready(name, "one device") for name in names)
        self.released: list[list[str]] = []
        self.tried: set[str] = set()
        self.closed: bool | None = None

    def start(self, worker: str, job: Job) -> None:
        if job.key.startswith("die"):
            self.events += [Lost(worker, "killed by signal 9"), Ready(f"{worker}'", "one device")]
        elif job.key == "memory" and job.key not in self.tried:
            self.tried.add(job.key)
            self.events.append(Done(worker, Report("memory", "out of memory")))
        elif job.key.startswith("busy") and job.key not in self.tried:
            self.tried.add(job.key)
            self.events.append(Done(worker, Report("busy", "another process works on it")))
        else:
            self.events.append(Done(worker, Report("ok")))

    def release(self, workers: Iterable[str]) -> None:
        self.released.append(list(workers))

    def wait(self, timeout: float) -> Sequence[Event]:
        return [self.events.popleft()] if self.events else []

    def close(self, abandon: bool) -> None:
        self.closed = abandon


def test_a_job_that_loses_its_worker_thrice_is_given_up_and_recorded(tmp_path: Path, capsys) -> None:
    Scripted.given_up.clear()
    _, found = run(tmp_path, job("1"), job("die"), job("2"), pool=Fake("a"))
    assert (found["die"].status, found["die"].attempts) == ("failed", 3)
    assert [found[key].status for key in "12"] == ["ok", "ok"]
    assert list(Scripted.given_up) == [("die", "its worker was lost again and again: killed by signal 9")]
    said = capsys.readouterr().err
    assert "a is lost (killed by signal 9); once more: label of die" in said
    assert "a'' is lost (killed by signal 9)\n" in said, "there is no fourth time"


def test_a_log_says_what_begins_and_takes_long_and_now_and_then_how_far_it_is(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(watch, "SECONDS_UNTIL_WORDS", 0.0)
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_ESTIMATES", 0.0)
    jobs = [Job(key, "v", {}, f"label of {key}", needs, estimate) for key, needs, estimate in (
        ("train", None, 3725.0), ("short", "train", 1.0), ("long", "train", 900.0), ("busy", "train", 1200.0),
    )]  # fmt: skip
    monkeypatch.setattr(schedule, "PATIENCE", (0.0,))
    run(tmp_path, *jobs, pool=Fake("a"))
    said = capsys.readouterr().err
    assert "a trains the victim of label of train, about 1 h 02 min\n" in said
    assert "[0/4] about 1 h 37 min left; a: label of train for 0 s\n" in said
    assert "a begins label of long, about" in said
    assert "begins label of short" not in said
    assert said.count("a begins label of busy") == 1, "however often it is asked for"
    assert "1 run put off: another process is at it" in said
    assert said.count("left;") == 1, "not with every look"


class Gone(Fake):
    """Workers that are lost with their first job, and nobody starts again."""

    def wait(self, timeout: float) -> Sequence[Event]:
        if not self.events:
            raise BenchError("no worker starts; the last one said: out of luck")
        return super().wait(timeout)


def test_when_no_worker_is_left_the_sweep_ends_with_its_summary(tmp_path: Path, capsys) -> None:
    pool = Gone("a")
    pool.start = lambda worker, job: pool.events.append(Lost(worker, "killed"))  # type: ignore[method-assign]
    summary, found = run(tmp_path, job("1"), job("2"), pool=pool, resume_command="type this")
    assert [found[key].status for key in "12"] == ["skipped", "skipped"]
    assert (summary.exit_status, pool.closed) == (1, True)
    said = capsys.readouterr().err
    assert "2 runs skipped: no worker starts; the last one said: out of luck" in said
    assert "go on with: type this" in said


def test_when_no_worker_ever_starts_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no worker starts"):
        run(tmp_path, job("1"), pool=Gone())


def test_out_of_memory_has_the_others_on_the_device_free_theirs(tmp_path: Path) -> None:
    pool = Fake("a", "b")
    _, found = run(tmp_path, job("memory"), pool=pool)
    assert (found["memory"].status, found["memory"].attempts) == ("ok", 2)
    assert len(pool.released) == 1
    assert pool.closed is False


# -- the store: claims, kills, the state of a sweep --------------------------------------------------------------------


def sweep(root: Path, seed: int = 0, pause: float = 0.0) -> None:
    """A sweep in a process of its own, in an order of its own."""
    jobs = arithmetic.jobs(3, 5)
    random.Random(seed).shuffle(jobs)
    summary = engine.run(jobs, root, workers=1, make_work=partial(Arithmetic, root, pause))
    sys.exit(summary.exit_status)


def start(*arguments: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=sweep, args=arguments)
    process.start()
    return process


def test_two_sweeps_over_one_store_share_the_work(tmp_path: Path) -> None:
    processes = [start(tmp_path / "store", seed, 0.02) for seed in (1, 2, 3)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    root = tmp_path / "store"
    assert len((root / "trained").read_text().split()) == 3
    assert len((root / "done").read_text().split()) == 18
    assert not arithmetic.litter(root)


def test_kill_9_at_any_moment_loses_nothing_and_repeats_only_what_was_under_way(tmp_path: Path, monkeypatch) -> None:
    """Killed twelve times, also in the middle of writing; then resumed: the same records as those of quiet days."""
    from backdoor_bench.store import files

    quiet, stormy = tmp_path / "quiet", tmp_path / "stormy"
    calm = start(quiet)
    calm.join(60)
    assert calm.exitcode == 0
    flush, draw = files._flush, random.Random(7)
    # Writing takes long enough to be hit.
    monkeypatch.setattr(files, "_flush", lambda path: (time.sleep(0.01), flush(path)))
    killed = 0
    for _ in range(12):
        process = start(stormy, 0, 0.01)
        time.sleep(draw.uniform(0.02, 0.25))
        killed += process.is_alive()
        os.kill(process.pid, signal.SIGKILL) if process.is_alive() else None
        process.join(60)
    assert killed >= 5
    last = start(stormy)
    last.join(60)
    assert last.exitcode == 0
    assert arithmetic.results(stormy) == arithmetic.results(quiet)
    assert len(arithmetic.results(stormy)["records"]) == 18
    assert not arithmetic.litter(stormy)


def test_what_a_killed_driver_had_half_written_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    folder = tmp_path / status.FOLDER
    folder.mkdir()
    for name in ("old", "new"):
        (folder / f".{name}.json").write_text("{")
    long_ago = time.time() - 2 * status.STALE_SECONDS
    os.utime(folder / ".old.json", (long_ago, long_ago))
    status.forget_old(tmp_path)
    assert [path.name for path in folder.iterdir()] == [".new.json"]


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_written_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match=r"cannot write .*; no half file was left"):
        engine.run([job("1")], tmp_path / "file" / "store", workers=1, make_work=Scripted)


def test_without_ray_one_run_follows_the_other_unless_more_were_asked_for(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delitem(sys.modules, "backdoor_bench.sweep.ray_pool", raising=False)
    monkeypatch.delattr("backdoor_bench.sweep.ray_pool", raising=False)  # an earlier test may have imported it
    monkeypatch.setitem(sys.modules, "ray", None)
    summary, _ = run(tmp_path, job("1"), workers=None)
    assert summary.counts["ok"] == 1
    assert "Ray is not installed: one run after the other" in capsys.readouterr().err
    for asked in ({"workers": 2}, {"workers": None, "address": "auto"}):
        with pytest.raises(ConfigError, match=r"needs? Ray.*pip install 'backdoor_bench\[sweep\]'"):
            engine.run([job("1")], tmp_path, make_work=Scripted, **asked)


def test_no_workers_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers=0: expected 1 or more"):
        engine.run([job("1")], tmp_path, workers=0, make_work=Scripted)

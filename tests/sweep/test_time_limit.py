"""``sweep.time_limit``: a run that hangs is ended, and the sweep is not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import pytest

from backdoor_bench.errors import BusyError, ConfigError
from backdoor_bench.sweep import engine
from backdoor_bench.sweep.job import Job, Report, Result
from backdoor_bench.sweep.pool import Done, Event, Ready
from backdoor_bench.sweep.schedule import Schedule
from tests.sweep.sleeping import Sleeping


def job(key: str, needs: str | None = None, seconds: float = 0.0) -> Job:
    return Job(key, "v", {"device": "cpu", "seconds": seconds}, f"label of {key}", needs)


def run(root: Path, *jobs: Job, **options: object) -> tuple[engine.Summary, dict[str, Result]]:
    found: dict[str, Result] = {}
    summary = engine.run(
        jobs, root, on_result=lambda job, result: found.update({job.key: result}),
        **{"make_work": partial(Sleeping, root), **options},
    )  # fmt: skip
    return summary, found


def test_who_is_at_a_job_for_too_long_and_what_becomes_of_it() -> None:
    now = [0.0]
    made = Schedule([job("hangs"), job("waits", needs="hangs"), job("other")], clock=lambda: now[0])
    for worker in "ab":
        made.add(worker, worker)
    assert made.assign("a").key == "hangs"
    now[0] = 8.0
    assert made.assign("b").key == "other"
    assert made.overdue(10.0) == []
    now[0] = 11.0
    assert made.overdue(10.0) == ["a"]
    assert made.lost("a", "longer than 10 s", again=False).key == "hangs"
    results = {result.key: result for result in made.drain()}
    assert results["hangs"] == Result("hangs", "failed", "longer than 10 s", None, "a", 11.0, 1)
    assert results["waits"].reason == "its victim failed (label of hangs): longer than 10 s"
    assert set(made.workers) == {"b"}
    made.report("b", Report("ok"))
    assert made.finished


def test_a_run_that_hangs_after_ctrl_c_has_failed_as_well() -> None:
    made = Schedule([job("hangs")], clock=lambda: 0.0)
    made.add("a", "a")
    made.assign("a")
    made.stop("the sweep was interrupted")
    assert made.lost("a", "longer than 10 s", again=False) is not None
    assert [result.status for result in made.drain()] == ["failed"]


class Hanging:
    """One worker, which another one follows when it is killed; jobs named ``hangs`` never end."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque([Ready("a", "a")])
        self.killed: list[str] = []

    def start(self, worker: str, job: Job) -> None:
        if job.key != "hangs":
            self.events.append(Done(worker, Report("ok")))

    def release(self, workers: Iterable[str]) -> None:
        """Nobody asks."""

    def kill(self, worker: str) -> None:
        self.killed.append(worker)
        self.events.append(Ready(f"{worker}'", "a"))

    def wait(self, timeout: float) -> Sequence[Event]:
        time.sleep(0.01)
        return [self.events.popleft()] if self.events else []

    def close(self, abandon: bool) -> None:
        """Nothing to close."""


class Claimed(Sleeping):
    """A run whose lock its killed process has for a moment longer."""

    left = 1

    def give_up(self, job: Job, reason: str) -> None:
        if Claimed.left:
            Claimed.left -= 1
            raise BusyError("another process works on it")
        self._append("given_up", f"{job.key}: {reason}")


def test_its_worker_is_killed_and_the_rest_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(Claimed, "left", 1)
    pool = Hanging()
    summary, found = run(
        tmp_path, job("hangs"), job("1"), job("2"), pool=pool, time_limit="0.1s", make_work=partial(Claimed, tmp_path)
    )
    assert pool.killed == ["a"]
    assert (found["hangs"].status, found["hangs"].attempts) == ("failed", 1)
    assert found["hangs"].reason == "longer than sweep.time_limit=0.1s"
    assert {found[key].worker for key in "12"} == {"a'"}
    assert summary.exit_status == 1
    assert (tmp_path / "given_up").read_text() == "hangs: longer than sweep.time_limit=0.1s\n"
    assert "a is lost (longer than sweep.time_limit=0.1s)\n" in capsys.readouterr().err


def test_one_process_says_that_it_cannot_keep_it(tmp_path: Path, capsys) -> None:
    _, found = run(tmp_path, job("1", seconds=0.1), workers=1, time_limit="0.01s")
    assert found["1"].status == "ok"
    said = capsys.readouterr().err
    assert "sweep.time_limit=0.01s cannot be kept: without Ray's workers there is nobody to end a run\n" in said
    run(tmp_path, job("2"), workers=1)
    assert "time_limit" not in capsys.readouterr().err


def test_what_is_no_duration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.time_limit=long: expected a duration with its unit, e\.g\. 25min"):
        run(tmp_path, job("1"), time_limit="long")


@pytest.mark.slow
def test_on_ray_another_worker_takes_its_place(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    jobs = [job("hangs", seconds=600.0), job("in vain", "hangs"), *(job(str(n), seconds=0.05) for n in range(6))]
    began = time.monotonic()
    summary, found = run(tmp_path, *jobs, workers=2, time_limit="3s")
    assert time.monotonic() - began < 300
    assert summary.counts == {"ok": 6, "found": 0, "failed": 1, "skipped": 1}
    assert found["hangs"].reason == "longer than sweep.time_limit=3s"
    assert 3.0 < found["hangs"].seconds < 60.0
    assert (tmp_path / "given_up").read_text() == "hangs\n"

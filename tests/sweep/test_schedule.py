"""Which job starts where and when, by hand, with a clock that only the test moves."""

from __future__ import annotations

import itertools
import random

import pytest

from backdoor_bench.sweep.job import Report
from backdoor_bench.sweep.schedule import RETRIES
from tests.sweep.clockwork import OK, job, key, results, schedule


def test_jobs_come_in_order_and_end_with_a_result_each() -> None:
    made = schedule(job("1"), job("2"), job("3"), workers="a")
    for expected in "123":
        assert not made.finished
        assert key(made.assign("a")) == expected
        made.report("a", OK)
    assert made.finished
    assert made.assign("a") is None
    assert [result.key for result in made.drain()] == ["1", "2", "3"]
    assert made.counts == {"ok": 3, "found": 0, "failed": 0, "skipped": 0}


def test_of_two_jobs_with_one_key_one_is_done() -> None:
    made = schedule(job("1"), job("1"), workers="a")
    assert made.total == 1


def test_a_defense_waits_for_its_victim_and_blocks_nobody() -> None:
    made = schedule(job("train", "v"), job("defend", "v", needs="train"), job("other", "w"))
    assert key(made.assign("a")) == "train"
    assert key(made.assign("b")) == "other"
    made.report("b", OK)
    assert made.assign("b") is None
    made.report("a", OK)
    assert key(made.assign("a")) == "defend"


def test_what_is_needed_and_not_in_the_sweep_counts_as_done() -> None:
    assert key(schedule(job("defend", needs="elsewhere")).assign("a")) == "defend"


def test_jobs_of_a_victim_stay_with_the_worker_that_has_it() -> None:
    made = schedule(*(job(f"{victim}{n}", victim) for n in range(3) for victim in "vw"))
    assert key(made.assign("a")) == "v0"
    assert key(made.assign("b")) == "w0"
    for n in (1, 2):
        made.report("b", OK)
        made.report("a", OK)
        assert key(made.assign("b")) == f"w{n}"
        assert key(made.assign("a")) == f"v{n}"


def test_an_idle_worker_takes_from_the_longest_queue() -> None:
    made = schedule(*(job(f"v{n}", "v") for n in range(3)), *(job(f"w{n}", "w") for n in range(5)), workers="abc")
    assert [key(made.assign(worker)) for worker in "abc"] == ["v0", "w0", "w1"]


def test_a_worker_remembers_as_many_victims_as_a_bench_keeps() -> None:
    made = schedule(*(job(f"{n}", f"v{n}") for n in range(6)), job("again", "v5"), workers="a")
    for n in (0, 1, 2, 3, 4, 5):
        assert key(made.assign("a")) == str(n)
        made.report("a", OK)
    assert list(made.workers["a"].victims) == ["v2", "v3", "v4", "v5"]


# -- failures --------------------------------------------------------------------------------------------------------


def test_an_exception_fails_its_job_alone_and_is_not_repeated() -> None:
    made = schedule(job("1"), job("2"), workers="a")
    made.assign("a")
    made.report("a", Report("failed", "ValueError: no", seconds=2.0))
    assert key(made.assign("a")) == "2"
    made.report("a", OK)
    found = results(made)
    assert (found["1"].status, found["1"].reason, found["1"].seconds) == ("failed", "ValueError: no", 2.0)
    assert found["2"].status == "ok"


def test_what_needs_a_failed_victim_is_skipped_and_says_why() -> None:
    made = schedule(job("train"), job("defend", needs="train"), job("more", needs="defend"), workers="a")
    made.assign("a")
    made.report("a", Report("failed", "loss diverged"))
    found = results(made)
    assert made.finished
    assert found["defend"].status == "skipped"
    assert found["defend"].reason == "its victim failed (label of train): loss diverged"
    assert found["more"].status == "skipped"


def test_a_lost_workers_job_goes_to_another_first() -> None:
    made = schedule(job("1"), job("2"))
    assert key(made.assign("a")) == "1"
    assert made.lost("a", "killed") is None
    assert key(made.assign("b")) == "1"
    made.report("b", OK)
    assert results(made)["1"].attempts == 2


def test_a_job_that_kills_every_worker_fails_in_the_end() -> None:
    made = schedule(job("1"), job("2"), workers="")
    for n in range(RETRIES + 1):
        made.add(f"w{n}", f"w{n}")
        assert key(made.assign(f"w{n}")) == "1"
        assert not made.finished
        gone = made.lost(f"w{n}", "killed by signal 9")
    assert key(gone) == "1"
    result = results(made)["1"]
    assert result.status == "failed"
    assert result.reason == "its worker was lost 3 times, the last time: killed by signal 9"
    made.add("z", "z")
    assert key(made.assign("z")) == "2"


def test_what_a_lost_worker_had_finished_counts_as_done_by_this_sweep() -> None:
    made = schedule(job("1"))
    made.assign("a")
    made.lost("a", "killed")
    made.assign("b")
    made.report("b", Report("found"))
    assert results(made)["1"].status == "ok"


def test_losing_an_idle_worker_loses_nothing() -> None:
    made = schedule(job("1"))
    assert made.lost("b", "its node is gone") is None
    assert key(made.assign("a")) == "1"


def test_out_of_memory_is_repeated_once_alone_on_the_device() -> None:
    made = schedule(job("1", "v"), job("2", "w"), job("3", "x"), job("4", "y"), device="gpu")
    made.add("c", "other gpu")
    assert [key(made.assign(worker)) for worker in "ab"] == ["1", "2"]
    made.report("a", Report("memory", "out of memory"))
    assert made.assign("a") is None, "the neighbour is still at work"
    assert key(made.assign("c")) == "3", "another device goes on"
    made.report("b", OK)
    assert key(made.assign("b")) == "1"
    assert made.is_alone("b")
    assert made.assign("a") is None, "the device is reserved"
    made.report("b", Report("memory", "out of memory"))
    result = results(made)["1"]
    assert (result.status, result.attempts) == ("failed", 2)
    assert key(made.assign("a")) == "4"
    assert not made.is_alone("a")


def test_a_job_that_waits_for_a_device_that_is_gone_runs_elsewhere() -> None:
    made = schedule(job("1"), job("2", "w"), workers="ab", device="gpu")
    made.assign("a")
    made.assign("b")
    made.report("a", Report("memory", "out of memory"))
    made.lost("a", "node gone")
    made.lost("b", "node gone")
    made.add("c", "another gpu")
    assert {key(made.assign("c"))} <= {"1", "2"}
    made.report("c", OK)
    assert key(made.assign("c")) in {"1", "2"}


def test_an_unwritable_store_stops_the_sweep() -> None:
    made = schedule(job("1"), job("2"), workers="a")
    made.assign("a")
    made.report("a", Report("unwritable", "the disk is full"))
    assert made.finished
    found = results(made)
    assert (found["1"].status, found["2"].status) == ("failed", "skipped")
    assert found["2"].reason == "nothing can be written: the disk is full"


# -- other processes -------------------------------------------------------------------------------------------------


def test_what_another_process_does_waits_while_others_run() -> None:
    made = schedule(job("1", "v"), job("2", "w"), workers="a")
    clock = made._clock
    assert key(made.assign("a")) == "1"
    made.report("a", Report("busy"))
    assert key(made.assign("a")) == "2"
    made.report("a", OK)
    assert made.assign("a") is None
    assert made.next_wake() == clock.now + 1
    clock.now += 1
    assert key(made.assign("a")) == "1"
    made.report("a", Report("busy"))
    assert made.next_wake() == clock.now + 2, "asked for more and more seldom"
    clock.now += 2
    made.assign("a")
    made.report("a", Report("found"))
    result = results(made)["1"]
    assert (result.status, result.attempts) == ("found", 1)


def test_stopping_lets_the_running_finish() -> None:
    made = schedule(job("1"), job("2"), job("3", needs="1"), workers="a")
    made.assign("a")
    made.stop("interrupted")
    assert made.assign("a") is None
    assert not made.finished
    made.report("a", OK)
    assert made.finished
    assert made.assign("a") is None
    assert {name: result.status for name, result in results(made).items()} == {
        "1": "ok",
        "2": "skipped",
        "3": "skipped",
    }


def test_a_worker_lost_after_stopping_is_not_replaced() -> None:
    made = schedule(job("1"))
    made.assign("a")
    made.stop("interrupted")
    made.lost("a", "killed")
    assert results(made)["1"].status == "skipped"
    assert made.finished


def test_abandoning_ends_the_running_too() -> None:
    made = schedule(job("1"), job("2"))
    made.assign("a")
    made.stop("interrupted", running=True)
    assert made.finished
    assert made.counts["skipped"] == 2


def test_jobs_that_wait_for_each_other_are_skipped_at_once() -> None:
    made = schedule(job("1", needs="2"), job("2", needs="1"), job("3"))
    assert results(made)["1"].reason == "the jobs that it needs wait for itself"
    assert made.counts["skipped"] == 2
    assert key(made.assign("a")) == "3"


@pytest.mark.parametrize("outcome", ["busy", "memory"])
def test_once_stopped_nothing_is_asked_for_again(outcome: str) -> None:
    made = schedule(job("1"), workers="a")
    made.assign("a")
    made.stop("interrupted")
    made.report("a", Report(outcome, "not now"))
    assert made.finished
    assert made.assign("a") is None
    assert (results(made)["1"].status, made.next_wake()) == ("skipped", None)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_job_gets_one_result(seed: int) -> None:
    """Random plans, losses, failures, full memories and busy claims; at most RETRIES + 1 attempts are lost."""
    draw = random.Random(seed)
    jobs = [job(f"t{v}", f"v{v}") for v in range(6)]
    jobs += [
        job(f"d{v}.{n}", f"v{v}", needs=f"t{v}" if draw.random() < 0.7 else None) for v in range(6) for n in range(9)
    ]
    made = schedule(*draw.sample(jobs, len(jobs)), workers="", seconds=None)
    names, found, lost = itertools.count(), [], 0
    for _ in range(5000):
        if made.finished:
            break
        made._clock.now += draw.random()
        while len(made.workers) < 5:
            made.add(name := f"w{next(names)}", f"gpu{draw.randrange(3)}")
        for name in list(made.workers):
            if name not in made.running:
                made.assign(name)
        assert len({running.key for running in made.running.values()}) == len(made.running), "one job, two workers"
        name = draw.choice(list(made.workers))
        if draw.random() < 0.1:
            lost += name in made.running
            made.lost(name, "killed")
        elif name in made.running:
            made.report(
                name, Report(draw.choices(["ok", "found", "failed", "memory", "busy"], [8, 1, 1, 1, 1])[0], "r")
            )
        found += made.drain()
    assert made.finished
    assert sorted(result.key for result in found) == sorted(one.key for one in jobs)
    assert lost

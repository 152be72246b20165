"""Which job starts where and when, by hand, with a clock that only the test moves."""

from __future__ import annotations

import itertools
import random

import pytest

from backdoor_bench.sweep.job import Job, Report, Result
from backdoor_bench.sweep.pace import Outlook
from backdoor_bench.sweep.schedule import RETRIES, Schedule

OK = Report("ok", seconds=1.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def job(key: str, victim: str = "v", needs: str | None = None, estimate: float | None = None) -> Job:
    return Job(key, victim, {}, f"label of {key}", needs, estimate)


def schedule(*jobs: Job, workers: str = "ab", seconds: float | None = None, device: str | None = None) -> Schedule:
    """Workers named by letters, each on a device of its own unless all share one; ``seconds`` until the deadline."""
    clock = Clock()
    made = Schedule(jobs, None if seconds is None else clock.now + seconds, clock)
    for worker in workers:
        made.add(worker, device or f"device of {worker}")
    return made


def key(assigned: Job | None) -> str | None:
    return None if assigned is None else assigned.key


def results(made: Schedule) -> dict[str, Result]:
    return {result.key: result for result in made.drain()}


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


# -- budgets and interruptions ---------------------------------------------------------------------------------------


def test_a_budget_starts_nothing_that_does_not_fit() -> None:
    made = schedule(job("1", estimate=4), job("2", "w", estimate=7), job("3", "x", estimate=5), workers="a", seconds=10)
    assert key(made.assign("a")) == "1"
    made._clock.now += 4
    made.report("a", Report("ok", seconds=4.0))
    assert key(made.assign("a")) == "3", "6 seconds are left: not for 7, but for 5"
    made._clock.now += 5
    made.report("a", OK)
    assert results(made)["2"].reason == "it was not expected to end within the budget"


def test_unknown_estimates_are_the_mean_of_what_ran_in_the_same_role() -> None:
    made = schedule(
        job("train"), *(job(f"defend {n}", needs="train") for n in range(3)), workers="a", seconds=110
    )  # fmt: skip
    assert key(made.assign("a")) == "train", "nothing is known: it starts"
    made._clock.now += 100
    made.report("a", Report("ok", seconds=100.0))
    assert key(made.assign("a")) == "defend 0", "a training says nothing of a defense"
    made._clock.now += 6
    made.report("a", Report("ok", seconds=6.0))
    assert made.assign("a") is None, "4 seconds are left, and a defense takes 6"
    assert made.counts["skipped"] == 2


def test_when_the_budget_is_over_nothing_starts() -> None:
    made = schedule(job("1"), seconds=10)
    made._clock.now += 10
    assert made.assign("a") is None
    assert made.finished


def test_when_the_budget_is_over_and_there_is_no_worker_nothing_waits_for_one() -> None:
    made = schedule(job("1"), job("2", needs="1"), workers="", seconds=10)
    made.expire()
    assert not made.finished
    made._clock.now += 10
    made.expire()
    assert made.finished
    assert results(made)["2"].reason == "it was not expected to end within the budget"


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


# -- how long still ----------------------------------------------------------------------------------------------------


def test_time_left_is_what_all_workers_take_together_and_says_of_how_many_nothing_is_known() -> None:
    made = schedule(job("1", estimate=4), job("2", estimate=6), job("3"))
    assert made.outlook() == Outlook(6.0, 1)
    made = schedule(*(job(str(n), estimate=4) for n in range(5)))
    assert made.outlook() == Outlook(10.0, 0)
    assert schedule(job("1")).outlook() == Outlook(0.0, 1)


def test_time_left_is_at_least_that_of_a_defense_and_the_training_it_waits_for() -> None:
    made = schedule(
        job("train", estimate=100), *(job(str(n), needs="train", estimate=5) for n in range(4)), workers="abcd"
    )
    assert made.outlook().seconds == 105
    made.assign("a")
    made._clock.now += 60
    assert made.outlook().seconds == 45


def test_time_left_is_without_what_is_done_of_the_jobs_under_way() -> None:
    made = schedule(job("1", estimate=4), job("2", "w", estimate=6), workers="a")
    made.assign("a")
    made._clock.now += 3
    assert made.outlook().seconds == 1 + 6
    made._clock.now += 3
    assert made.outlook().seconds == 0 + 6, "late, but not less than nothing"


def test_what_a_sweep_has_seen_itself_sets_the_past_right() -> None:
    """On a machine that is three times as slow as the one that the records are of, or as busy."""
    made = schedule(job("1", estimate=4), job("2", estimate=6), job("3", estimate=10), job("4"), workers="a")
    for seconds in (12.0, 18.0):
        made.assign("a")
        made.report("a", Report("ok", seconds=seconds))
    factor = (12 + 18 + 5) / (4 + 6 + 5)  # as if a third one had taken the mean of the estimates
    assert made.outlook() == Outlook(pytest.approx(10 * factor + (12 + 18) / 2), 0)


def test_a_budget_goes_by_the_pace_of_the_sweep_itself() -> None:
    made = schedule(job("1", estimate=4), job("2", estimate=6), workers="a", seconds=20)
    made.assign("a")
    made._clock.now += 12
    made.report("a", Report("ok", seconds=12.0))
    assert made.assign("a") is None, "8 seconds are left; 6 by the records are more like 12 here"
    assert made.counts["skipped"] == 1


def test_what_a_lost_worker_had_finished_teaches_no_pace() -> None:
    made = schedule(job("1", estimate=10), job("2", estimate=10))
    made.assign("a")
    made.lost("a", "killed")
    made.assign("b")
    made.report("b", Report("found", seconds=0.1))
    assert made.outlook().seconds == 10


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

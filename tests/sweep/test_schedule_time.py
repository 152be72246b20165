"""Budgets, and how long a sweep still takes, with a clock that only the test moves."""

from __future__ import annotations

import pytest

from backdoor_bench.sweep.job import Report
from backdoor_bench.sweep.pace import Outlook
from tests.sweep.clockwork import OK, job, key, results, schedule

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

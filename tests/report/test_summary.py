"""Means by hand, intervals against SciPy, nothing dropped in silence."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from backdoor_bench.report import frame, summary
from tests.report.conftest import Write


def cells(folder: Path) -> dict[tuple[str, str], dict]:
    found = summary.cells(frame.load([folder]).runs).to_dict("records")
    return {(cell["attack_label"], cell["defense_label"]): cell for cell in found}


def test_mean_deviation_and_n(write: Write, folder: Path) -> None:
    for repetition, asr in enumerate((0.1, 0.2, 0.6)):
        write(key=f"k{repetition}", repetition=repetition, asr=asr, ra=0.1)
    cell = cells(folder)["badnet", "ft"]
    assert (cell["n"], cell["victims"], cell["failed"], cell["weak"]) == (3, 1, 0, 0)
    assert cell["asr_mean"] == pytest.approx(0.3)
    assert cell["asr_std"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert cell["asr_low"] < 0.3 < cell["asr_high"]
    assert cell["acc_std"] == pytest.approx(0)


def test_one_run_has_a_mean_and_no_interval(write: Write, folder: Path) -> None:
    write()
    cell = cells(folder)["badnet", "ft"]
    assert (cell["n"], cell["asr_mean"]) == (1, 0.3)
    assert all(math.isnan(cell[f"asr_{name}"]) for name in ("std", "low", "high"))


def test_the_victim_counts_once_however_many_runs_it_served(write: Write, folder: Path) -> None:
    for number in range(3):
        write(key=f"k{number}", repetition=number)
    write(key="k3", victim="v1", seed=1, before__asr=0.85)
    victim = cells(folder)["badnet", "none"]
    assert victim["n"] == 2
    assert victim["asr_mean"] == pytest.approx(0.9)
    assert math.isnan(victim["der_mean"])


def test_failed_and_weak_runs_are_counted_and_failed_ones_averaged_by_nobody(write: Write, folder: Path) -> None:
    write(key="a")
    write(key="b", repetition=1, weak_attack=True)
    write(key="c", repetition=2, status="failed", reason="no disk", acc=0.0)
    write(key="d", defense=None, attack="sig", status="failed", reason="no disk")
    found = cells(folder)
    cell = found["badnet", "ft"]
    assert (cell["n"], cell["failed"], cell["weak"], cell["acc_mean"]) == (2, 1, 1, 0.88)
    assert (found["sig", "none"]["n"], found["sig", "none"]["failed"]) == (0, 1)
    assert math.isnan(found["sig", "none"]["acc_mean"])


def test_settings_are_not_mixed(write: Write, folder: Path) -> None:
    write(key="a", acc=0.5, asr=0.1)
    for number, change in enumerate(
        ({"poisoning_ratio": 0.01}, {"clean_ratio": 0.01}, {"preset": "another"}, {"architecture": "vgg19_bn"},
         {"variant": "cifar10 (jpeg)"}, {"spc": 2, "clean_ratio": None})
    ):  # fmt: skip
        write(key=f"b{number}", **change)
    found = summary.cells(frame.load([folder]).runs)
    own = found[found.defense_label == "ft"]
    assert len(own) == 7
    assert set(own.n) == {1}


def test_a_metric_that_some_runs_lack_has_its_own_n(write: Write, folder: Path) -> None:
    write(key="a")
    write(key="b", repetition=1, asr=None, ra=None)
    cell = cells(folder)["badnet", "ft"]
    assert (cell["n"], cell["asr_n"], cell["asr_mean"]) == (2, 1, 0.3)


@pytest.mark.parametrize("size", [3, 10, 40])
def test_the_interval_is_the_expanded_percentile_bootstrap(size: int) -> None:
    values = np.random.default_rng(1).beta(2, 5, size)
    low, high = summary.interval(values[None])
    level = 1 - 2 * stats.norm.cdf(-math.sqrt(size / (size - 1)) * stats.t.ppf(0.975, size - 1))
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=level, method="percentile", rng=0
    ).confidence_interval
    width = reference.high - reference.low
    assert low[0] == pytest.approx(reference.low, abs=0.08 * width)
    assert high[0] == pytest.approx(reference.high, abs=0.08 * width)


@pytest.mark.parametrize(("size", "least"), [(5, 0.91), (10, 0.94)])
def test_of_100_intervals_about_95_hold_the_mean(size: int, least: float) -> None:
    """Plain percentiles do so for 85 and 91."""
    low, high = summary.interval(np.random.default_rng(1).standard_normal((2000, size)))
    assert least <= float(((low < 0) & (high > 0)).mean()) <= 0.97


def test_an_interval_does_not_depend_on_what_else_is_in_the_table() -> None:
    values = np.random.default_rng(1).random((5000, 4))
    low, high = summary.interval(values)
    alone = summary.interval(values[4321:4322])
    assert (low[4321], high[4321]) == pytest.approx((alone[0][0], alone[1][0]))


def test_spread_leaves_out_nulls() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan, 5.0])
    n, mean, std, low, _ = summary.spread(values, np.array([0, 0, 0, 1, 2]), 4)
    assert list(n) == [2, 0, 1, 0]
    assert mean[0] == 2
    assert mean[2] == 5
    assert std[0] == pytest.approx(math.sqrt(2))
    assert np.isnan(mean[[1, 3]]).all()
    assert np.isnan(low[1:]).all()

"""How many cores a process may use: what it may run on, and what a container's quota is worth."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backdoor_bench import cores


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen cores, and control groups that a test writes itself."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(cores, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "OWN", tmp_path / "own")
    return tmp_path


def group(machine: Path, name: str, **files: str) -> None:
    folder = machine / "groups" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 16), ("200000 100000", 2), ("350000 100000", 3), ("50000 100000", 1), ("6400000 100000", 16)],
)
def test_a_containers_quota(machine: Path, quota: str, expected: int) -> None:
    (machine / "own").write_text("0::/\n")
    group(machine, "", cpu__max=quota)
    assert cores.available() == expected


def test_the_quota_of_any_group_around_it_counts(machine: Path) -> None:
    (machine / "own").write_text("0::/user.slice/mine.service\n")
    group(machine, "user.slice", cpu__max="400000 100000")
    group(machine, "user.slice/mine.service", cpu__max="max 100000")
    assert cores.available() == 4


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("300000", 3)])
def test_the_kernels_first_interface(machine: Path, quota: str, expected: int) -> None:
    """Its group has another name outside of the container than the root that is seen in it."""
    (machine / "own").write_text("4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/\n")
    group(machine, "cpu", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert cores.available() == expected


def test_without_control_groups_it_is_what_it_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores.available() == 16
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.available() == 1

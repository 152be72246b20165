"""Sweeps by name, from the command line to the engine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backdoor_bench import command, config
from backdoor_bench.errors import ConfigError
from backdoor_bench.overrides import prepare
from backdoor_bench.sweep import engine, sweeper
from backdoor_bench.sweep.job import Job

SWEEPS = config.directory("multirun_sweeps")
MINE = """# @package _global_
defaults: [/grid, _self_]
hydra:
  sweeper:
    axes:
      attack: [badnet, blended]
      defense: [none, ft]
      attack.poisoning_ratio: [0.1, 0.05]
      spc: [2, 10]
"""


class Given:
    """What the engine was asked to do."""

    jobs: Sequence[Job] = ()
    options: dict[str, Any]

    def __call__(self, jobs: Sequence[Job], store: str, **options: Any) -> Any:
        self.jobs, self.options = jobs, options
        return SimpleNamespace(exit_status=3)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    fake = Given()
    monkeypatch.setattr(engine, "run", fake)
    return fake


@pytest.fixture
def run(tmp_path: Path, given: Given, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command with a sweep ``mine`` and the engine replaced; its exit status and everything that it said."""
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(MINE)

    def typed(*arguments: str) -> tuple[int, str]:
        places = [f"hydra.searchpath=[file://{SWEEPS},file://{tmp_path}]", f"store_dir={tmp_path / 'store'}"]
        before = command.overrides.prepare
        command.overrides.prepare = lambda given, *folders: before(given, *folders, tmp_path)  # type: ignore[assignment]
        try:
            status = command.main([*(a for a in arguments if a == "-m"), *places, "device=cpu",
                                   *(a for a in arguments if a != "-m")])  # fmt: skip
        finally:
            command.overrides.prepare = before  # type: ignore[assignment]
        said = capsys.readouterr()
        return status, " ".join((said.out + said.err).split())

    return typed


def test_a_plan_is_printed_and_nothing_starts(run, given: Given, tmp_path: Path) -> None:
    status, said = run("+sweep=mine", "sweep.plan=true")
    assert status == 0
    assert "mine: 12 runs over 4 victims" in said
    assert "victims to train │ 4" in said
    assert not given.jobs
    assert not (tmp_path / "store" / "runs").exists()


def test_what_is_typed_narrows_changes_and_adds(run, given: Given) -> None:
    status, _ = run(
        "+sweep=mine", "sweep.only.attack=[badnet]", "sweep.only.attack.poisoning_ratio=[0.05]", "sweep.only.spc=[10]",
        "attack.target_label=1", "defense.epochs=3", "recipe.epochs=2", "repetition=0,1", "preset=scale",
    )  # fmt: skip
    assert status == 3  # the engine's own
    assert [job.label for job in given.jobs] == [
        "badnet none poisoning_ratio=0.05",
        *(f"badnet ft poisoning_ratio=0.05 spc=10 repetition={n}" for n in (0, 1)),
    ]
    for job in given.jobs:
        assert job.config["attack"]["poisoning_ratio"] == 0.05
        assert job.config["attack"]["target_label"] == 1
        assert (job.config["recipe"]["epochs"], job.config["preset"]["name"]) == (2, "scale_w16_e10")
        assert "sweep" not in job.config
    assert {job.config["defense"]["epochs"] for job in given.jobs[1:]} == {3}


def test_an_axis_that_is_typed_takes_the_files_place(run, given: Given) -> None:
    run("+sweep=mine", "+attack=sig", "spc=100", "defense=ft", "sweep.budget=2h", "sweep.time_limit=25min",
        "hydra.launcher.workers=1")  # fmt: skip
    assert [job.label for job in given.jobs] == [
        f"sig {name} poisoning_ratio={ratio}" for ratio in (0.1, 0.05) for name in ("none", "ft")
    ]
    assert {job.config["spc"] for job in given.jobs if "defense" in job.config} == {100}
    assert 7000 < given.options["budget_seconds"] < 7200
    assert given.options["time_limit"] == "25min"
    assert (given.options["workers"], given.options["address"], given.options["name"]) == (1, None, "mine")


def test_the_commands_to_go_on_and_to_retry_do_the_same_sweep(run, given: Given, tmp_path: Path) -> None:
    run("+sweep=mine", "sweep.only.attack=[badnet]", "sweep.shard=1/2")
    failed = given.jobs[2]
    (tmp_path / "failed").write_text(f"{failed.key}\n")
    words = shlex.split(given.options["retry_command"](tmp_path / "failed"))
    assert shlex.split(given.options["resume_command"]) == words[:-1]
    assert words[:3] == ["python", "-m", "backdoor_bench"]
    assert words[-4:-1] == ["+sweep=mine", "sweep.only.attack=[badnet]", "sweep.shard=1/2"], "as they were typed"
    run(*[word for word in words[3:] if not word.startswith(("store_dir", "device", "hydra.searchpath"))])
    assert failed.key in {job.key for job in given.jobs}
    assert len(given.jobs) == 2  # and the training that it needs


def test_a_retry_of_another_sweeps_runs_is_refused(run, given: Given, tmp_path: Path) -> None:
    (tmp_path / "failed").write_text("0123\n4567\n")
    status, said = run("+sweep=mine", f"sweep.retry={tmp_path / 'failed'}")
    assert status == 1
    assert "none of its 2 keys is a run of this sweep; type the command that the sweep printed" in said
    assert not given.jobs


def test_a_plain_multirun_can_be_a_grid(run, given: Given) -> None:
    run("-m", "hydra/sweeper=grid", "+attack=badnet,sig", "+defense=ft", "spc=2,10")
    assert [job.label for job in given.jobs if "defense" in job.config] == [
        f"{attack} ft spc={spc}" for attack in ("badnet", "sig") for spc in (2, 10)
    ]


def test_a_missing_data_set_is_an_error_unless_it_is_only_a_plan(run, given: Given, tmp_path: Path) -> None:
    words = ("+sweep=mine", "dataset=digits,cifar10", f"data_dir={tmp_path / 'nothing'}")
    status, said = run(*words)
    assert status == 1
    assert (
        "12 runs of this sweep need a data set that is not here, so nothing was started: cifar10 is not there" in said
    )
    assert "sweep.only.dataset=[digits]" in said
    assert not given.jobs
    status, said = run(*words, "sweep.plan=true")
    assert status == 0
    assert "not on this machine (12 runs): cifar10 is not there" in said


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["sweep.shard=9/8"], "sweep.shard=9/8: expected N/M with N from 1 to M, e.g. 3/8"),
        (["sweep.shard=0/8"], "sweep.shard=0/8: expected N/M"),
        (["sweep.shard=half"], "sweep.shard=half: expected N/M"),
        (["sweep.budget=soon"], "sweep.budget=soon: expected a duration with its unit, e.g. 25min or 2h"),
        (["sweep.time_limit=25"], "sweep.time_limit=25: expected a duration with its unit, e.g. 25min or 2h"),
        (["sweep.only.atack=[badnet]"], "unknown axis in sweep.only 'atack'. Did you mean attack"),
        (["sweep.only.attack=[wanet]"], "unknown value in sweep.only.attack 'wanet'."),
        (["sweep.retry=nowhere"], "sweep.retry=nowhere: expected a file with keys of runs"),
        (["defense.epoch=3"], "unknown axis 'defense.epoch'. Did you mean defense.epochs"),
    ],
)
def test_bad_input_is_one_message_and_nothing_starts(run, given: Given, typed: list[str], message: str) -> None:
    status, said = run("+sweep=mine", *typed)
    assert status == 1
    assert f"error: {message}" in said
    assert "Traceback" not in said
    assert not given.jobs


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["+sweep=unibp_tabel1"], r"unknown sweep 'unibp_tabel1'\. Did you mean unibp_table1"),
        (["+sweep=nonsense"], r"unknown sweep 'nonsense'\."),
        (["+attack=badnet", "sweep.plan=true"], r"sweep\.plan=true: only a sweep has this option; add \+sweep=NAME"),
        (["-m", "+attack=badnet,wanet", "sweep.only.spc=[2]"], r"sweep\.only\.spc=\[2\]: only a sweep"),
        (["+sweep=smoke", "+attack=badnett"], r"unknown attack 'badnett'\. Did you mean badnet"),
    ],
)
def test_what_no_sweep_can_mean_is_refused_before_hydra_sees_it(typed: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(typed, config.directory(), SWEEPS)


def test_narrowing_becomes_one_mapping() -> None:
    ready = prepare(["+sweep=smoke", "sweep.only.attack=[badnet]", "sweep.only.attack.size=[3,5]", "sweep.plan=true"],
                    config.directory(), SWEEPS)  # fmt: skip
    assert ready == ["+sweep=smoke", "sweep.plan=true", "++sweep.only={attack:[badnet],attack.size:[3,5]}"]
    whole = "sweep.only={attack:[badnet]}"
    assert prepare(["+sweep=smoke", whole], config.directory(), SWEEPS) == ["+sweep=smoke", f"++{whole}"]


@pytest.mark.parametrize(("shard", "expected"), [(None, (1, 1)), ("3/8", (3, 8)), (" 1 / 1 ", (1, 1))])
def test_a_shard_is_a_part_of_a_whole(shard: str | None, expected: tuple[int, int]) -> None:
    assert sweeper.shard_of(shard) == expected


@pytest.mark.slow
@pytest.mark.ci
def test_a_sweep_starts_from_its_name_alone_and_is_found_done(tmp_path: Path) -> None:
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    (tmp_path / "mine" / "sweep" / "two.yaml").write_text(MINE)
    words = [sys.executable, "-m", "backdoor_bench", "--config-dir", "mine", "+sweep=two", "sweep.only.attack=[badnet]",
             "attack.poisoning_ratio=0.1", "spc=2", "recipe.epochs=1", "recipe.width=2", "defense.epochs=1",
             "hydra.launcher.workers=1"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for to_do in (2, 0):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        assert f"runs to do │ {to_do} " in " ".join(done.stdout.split())
    assert len(list((tmp_path / "store" / "runs").glob("*/*.json"))) == 2

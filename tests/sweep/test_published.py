"""The sweep files: every name in them exists or is known, and their first lines say what they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from backdoor_bench import config
from backdoor_bench.bench import Bench
from backdoor_bench.store import Store
from backdoor_bench.sweep.compose import Composer
from backdoor_bench.sweep.grid import Grid, of_victim
from backdoor_bench.sweep.names import Names
from backdoor_bench.sweep.plan import make_plan

SWEEPS = config.directory("multirun_sweeps")
NAMES = sorted(path.stem for path in (SWEEPS / "sweep").glob("*.yaml"))
COUNTED = [name for name in NAMES if name != "smoke"]

# Tables and figures whose runs are told apart by name; those of two papers that hold analyses are no sweeps.
PUBLISHED = {
    "unibp": [*(f"table{n}" for n in (1, 2, 3, 4)), "fig4", "fig5", "fig6", "fig8"],
    "unit": [*(f"table{n}" for n in range(1, 13)), "fig5"],
    "gradprune": ["table1", "table2"],
    "tsbd": [*(f"table{n}" for n in range(1, 9)), "fig5", "fig8", "fig9", "fig10"],
}


@cache
def sweeper(name: str) -> Mapping[str, Any]:
    with hydra.initialize_config_dir(str(config.directory()), version_base="1.3"):
        loaded = (
            GlobalHydra.instance()
            .config_loader()
            .load_configuration("config", [f"hydra.searchpath=[file://{SWEEPS}]", f"+sweep={name}"], RunMode.MULTIRUN)
        )
    assert loaded.hydra.mode == RunMode.MULTIRUN
    found = OmegaConf.to_container(loaded.hydra.sweeper)
    assert isinstance(found, dict)
    return found


def grid(name: str) -> Grid:
    spec = sweeper(name)
    return Grid.read(spec["axes"], spec["extra"], spec["exclude"], spec["settings"])


def lines(name: str) -> str:
    return "".join(line for line in (SWEEPS / "sweep" / f"{name}.yaml").open() if line.startswith("# "))


def test_there_is_a_file_for_every_table_and_figure() -> None:
    wanted = {f"{paper}_{part}" for paper, parts in PUBLISHED.items() for part in parts}
    slices = {name for name in NAMES if name.startswith("survey_")}
    assert set(NAMES) - slices == wanted | {"survey", "smoke", "core_evidence"}
    assert len(slices) == 7


@pytest.mark.parametrize("name", NAMES)
def test_its_sweeper_is_the_grid_and_every_name_in_it_exists_or_is_known(name: str, composer: Composer) -> None:
    assert sweeper(name)["_target_"] == "hydra_plugins.backdoor_bench_sweeper.GridSweeper"
    found = grid(name).with_names({group: composer.options(group) for group in ("attack", "defense")})
    Names(found, composer)


@pytest.mark.parametrize("name", COUNTED)
def test_its_first_lines_count_its_runs_victims_and_hours(name: str) -> None:
    said = re.search(r"^# ([\d,]+) runs over ([\d,]+) victims\. (About|At least) ([\d,]+) core-hour", lines(name), re.M)
    assert said is not None
    points = list(grid(name).points())
    victims = {repr(sorted(of_victim(point).items(), key=str)) for point in points}
    assert [int(text.replace(",", "")) for text in said.groups()[:2]] == [len(points), len(victims)]
    per_victim, per_run = map(float, re.findall(r"(0\.\d+) for a", (SWEEPS / "grid.yaml").read_text()))
    defended = sum(point["defense"] != "none" for point in points)
    assert int(said[4].replace(",", "")) == max(1, round(len(victims) * per_victim + defended * per_run))
    axes = grid(name).axes
    timed = set(axes["dataset"]) <= {"cifar10", "gtsrb"} and set(axes.get("model", ())) <= {"preact_resnet18"}
    assert (said[3] == "About") == timed


def test_a_table_has_the_published_rows() -> None:
    """Grad-Prune, Table I: per attack the victim and, at three SPC and five draws, seven defenses and the blind one."""
    found = list(grid("gradprune_table1").points())
    assert len(found) == 4 * (1 + 8 * 3 * 5)
    assert sum(p["attack"] == "lf" and p["defense"] == "ft" and p["spc"] == 10 for p in found) == 5


def test_the_survey_leaves_out_what_was_not_run() -> None:
    found = list(grid("survey").with_axes({"repetition": [0]}).points())
    assert {p["dataset"] for p in found if p["defense"] == "nc"} == {"cifar10"}
    assert "mobilenet_v3_large" not in {p["model"] for p in found if p["defense"] == "ibau"}
    assert len({repr(sorted(of_victim(p).items())) for p in found}) == 288
    assert sum(p["defense"] != "none" for p in found) * 10 > 120_000


def test_slices_of_the_survey_are_the_survey() -> None:
    def runs(name: str) -> set[str]:
        return {repr(sorted(p.items())) for p in grid(name).with_axes({"repetition": [0]}).points()}

    whole = runs("survey")
    for slices in (["cifar10", "gtsrb", "tiny_imagenet"],
                   ["preact_resnet18", "vgg19_bn", "efficientnet_b3", "mobilenet_v3_large"]):  # fmt: skip
        parts = [runs(f"survey_{name}") for name in slices]
        assert set().union(*parts) == whole
        assert sum(map(len, parts)) == len(whole)


def test_a_papers_own_settings_reach_the_runs(composer: Composer, tmp_path: Path) -> None:
    """UniBP, Table 1 on digits: its rates, its length, all clean images; the others as configured."""
    table = grid("unibp_table1").with_axes({"dataset": ["digits"]})
    plan = make_plan(table.narrowed({"attack": ["badnet"]}), composer, Bench(Store(tmp_path)))
    configs = {job.config["defense"]["name"]: job.config["defense"] for job in plan.jobs if "defense" in job.config}
    ft = configs["ft"]
    assert (ft["epochs"], ft["use_validation"], ft["stages"]["finetune"]["optimizer"]["lr"]) == (20, "train", 0.002)
    assert configs["unibp"]["use_validation"] == "train"
    assert configs["anp"]["use_validation"] == "hold_out"


def test_the_smoke_grid_holds_every_method(composer: Composer) -> None:
    attacks, defenses = composer.options("attack"), composer.options("defense")
    found = grid("smoke").with_names({"attack": attacks, "defense": defenses})
    assert len(list(found.points())) == (1 + len(attacks)) * (1 + len(defenses))

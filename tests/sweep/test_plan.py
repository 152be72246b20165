"""A plan: what of a grid is to do, in which order, and why the rest is not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from backdoor_bench.bench import Bench
from backdoor_bench.errors import ConfigError
from backdoor_bench.store import RECORD_FORMAT, Store
from backdoor_bench.sweep import names, plan_table
from backdoor_bench.sweep.compose import Composer
from backdoor_bench.sweep.grid import Grid
from backdoor_bench.sweep.plan import SweepPlan, make_plan
from backdoor_bench.sweep.plan_table import left_out_lines

AXES = {
    "dataset": ["digits"], "attack": ["badnet", "blended"], "defense": ["none", "ft", "clp"], "spc": [2, 10],
}  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Store(tmp_path / "store"))


@pytest.fixture
def plan(composer: Composer, bench: Bench) -> Callable[..., SweepPlan]:
    def make(axes: dict[str, Any] | None = None, only: dict[str, Any] | None = None, **options: Any) -> SweepPlan:
        blocks = {name: options.pop(name) for name in ("extra", "exclude", "settings") if name in options}
        grid = Grid.read(AXES if axes is None else axes, **blocks).narrowed(only or {})
        return make_plan(grid, options.pop("composer", composer), bench, **options)

    return make


def put(bench: Bench, key: str, status: str = "ok", **facts: Any) -> None:
    bench.store.add_record(key, {"format": RECORD_FORMAT, "status": status, **facts})


def have_victim(bench: Bench, key: str) -> None:
    folder = bench.store.root / "victims" / key
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def test_keys_are_those_of_a_single_run(plan, bench: Bench, compose) -> None:
    planned = plan(only={"attack": ["blended"], "defense": ["ft"], "spc": [10]}).jobs[-1]
    alone = bench.plan(compose("+attack=blended", "+defense=ft", "spc=10", "recipe.epochs=15", "recipe.width=8",
                               "device=cpu", "trainer.precision=32-true", lengths={}))  # fmt: skip
    assert (planned.key, planned.victim) == (alone.key, alone.victim_key)
    assert {**planned.config, "store_dir": None} == {**alone.config, "store_dir": None}


def test_a_victims_runs_follow_its_training_and_wait_for_it(plan) -> None:
    found = plan()
    assert (found.runs, found.victims, found.planned, found.train, found.extra) == (10, 2, 10, 2, 0)
    assert [job.label for job in found.jobs] == [
        f"digits {attack} {rest}"
        for attack in ("badnet", "blended")
        for rest in ("none", "ft spc=2", "ft spc=10", "clp spc=2", "clp spc=10")
    ]
    for trainer, *others in (found.jobs[:5], found.jobs[5:]):
        assert trainer.needs is None
        assert {job.needs for job in others} == {trainer.key}
        assert {job.victim for job in others} == {trainer.victim}


def test_a_victim_that_the_grid_does_not_list_is_trained_all_the_same(plan) -> None:
    whole, found = plan(), plan(only={"attack": ["badnet"], "defense": ["ft"]})
    assert (found.planned, found.train, found.extra, len(found.jobs)) == (2, 1, 1, 3)
    assert found.jobs[0].key == whole.jobs[0].key
    assert found.jobs[0].label == "digits badnet none"
    assert "defense" not in found.jobs[0].config


def test_what_is_done_is_not_done_again_and_what_failed_is(plan, bench: Bench) -> None:
    trainer, done, failed, *rest = plan(only={"attack": ["badnet"]}).jobs
    put(bench, trainer.key)
    put(bench, done.key)
    put(bench, failed.key, "failed")
    have_victim(bench, trainer.victim)
    found = plan(only={"attack": ["badnet"]})
    assert (found.planned, found.done, found.failed, found.train) == (5, 2, 1, 0)
    assert [job.key for job in found.jobs] == [failed.key, *(job.key for job in rest)]
    assert all(job.needs is None for job in found.jobs)


def test_a_victim_that_is_gone_is_trained_again_though_its_record_is_there(plan, bench: Bench) -> None:
    trainer = plan(only={"attack": ["badnet"]}).jobs[0]
    put(bench, trainer.key)
    found = plan(only={"attack": ["badnet"]})
    assert (found.done, found.train, found.extra) == (1, 1, 1)
    assert found.jobs[0].key == trainer.key


def test_force_and_purified_networks_that_are_not_kept_are_to_do(plan, bench: Bench, make_composer) -> None:
    only = {"attack": ["badnet"], "spc": [2]}
    jobs = plan(only=only).jobs
    for job in jobs:
        put(bench, job.key)
    have_victim(bench, jobs[0].victim)
    assert plan(only=only).jobs == []
    assert len(plan(only=only, composer=make_composer("force=true")).jobs) == 3
    keeping = plan(only=only, composer=make_composer("save_purified=true")).jobs
    assert [job.key for job in keeping] == [job.key for job in jobs[1:]]


def test_victims_that_are_there_come_first_then_those_that_most_runs_wait_for(plan, bench: Bench) -> None:
    axes = {**AXES, "attack": ["none", "badnet", "blended"]}
    lines = [{"attack": ["badnet"], "spc": [10]}]
    first = plan(axes, exclude=lines)
    have_victim(bench, next(job.victim for job in first.jobs if "badnet" in job.label))
    order = list(dict.fromkeys(job.label.split()[1] for job in plan(axes, exclude=lines).jobs))
    assert order == ["badnet", "none", "blended"]
    assert list(dict.fromkeys(job.label.split()[1] for job in first.jobs)) == ["none", "blended", "badnet"]


def test_cheap_runs_come_before_dear_ones_and_unknown_ones_last(plan, bench: Bench) -> None:
    jobs = {job.label: job for job in plan(only={"attack": ["badnet"]}).jobs}
    seconds = {"digits badnet ft spc=10": 9.0, "digits badnet ft spc=2": 4.0}
    for label, taken in seconds.items():
        job = jobs[label]
        put(bench, f"{job.key}0", config=job.config, architecture="preact_resnet18", attack="badnet",
            numerics={"device": "cpu"}, victim_was="found in the store", victim_seconds=1.0, seconds=taken)  # fmt: skip
    found = plan(only={"attack": ["badnet"]})
    assert [(job.label[14:], job.estimate) for job in found.jobs] == [
        ("none", None), ("ft spc=2", 4.0), ("ft spc=10", 9.0), ("clp spc=2", None), ("clp spc=10", None),
    ]  # fmt: skip
    assert (found.seconds, found.unknown) == (13.0, 3)


def test_shards_are_whole_victims_and_together_the_whole(plan) -> None:
    axes = {**AXES, "seed": [0, 1, 2]}
    parts = [plan(axes, shard=(number, 4)) for number in (1, 2, 3, 4)]
    keys = [job.key for part in parts for job in part.jobs]
    assert sorted(keys) == sorted(job.key for job in plan(axes).jobs)
    assert len(set(keys)) == len(keys)
    victims = [{job.victim for job in part.jobs} for part in parts]
    assert sum(len(part) for part in victims) == len(set().union(*victims)) == 6
    assert sorted(len(part) for part in victims) == [1, 1, 2, 2]
    assert [job.key for job in plan(axes, shard=(3, 4)).jobs] == [job.key for job in parts[2].jobs]


def test_only_named_runs_are_planned_again(plan) -> None:
    wanted = plan().jobs[2]
    found = plan(keys={wanted.key, "of another sweep"})
    assert (found.planned, [job.key for job in found.jobs][1:]) == (1, [wanted.key])
    assert (found.unasked, found.strangers) == (9, 1)
    assert list(left_out_lines(found)) == ["skipped, keys to retry that are no runs of this sweep: 1"]


def test_every_point_of_a_grid_is_counted_once(plan, monkeypatch) -> None:
    """0.05 is what no regime at all means; vgg11 has no BatchNorm; another shard has other victims."""
    monkeypatch.setattr(names, "planned", lambda: {"defense": ("sometime",), "option": ()})
    axes = {
        "dataset": ["digits"], "model": ["preact_resnet18", "vgg11"], "attack": ["badnet", "blended"],
        "defense": ["none", "ft", "unibp", "sometime"], "clean_ratio": [None, 0.05, 0.1],
    }  # fmt: skip
    found = plan(axes, shard=(1, 4))
    assert found.runs == 2 * 2 * (1 + 3 * 3)
    impossible = sum(counted.total() for counted in (found.missing, found.absent, found.impossible))
    assert (found.planned, found.elsewhere) == (1 + 2 + 2, 5 + 2 * 3)
    assert found.same == 2 * 2 + 2 * 1
    assert found.planned + found.elsewhere + found.same + impossible == found.runs
    rows = shown(found, "1/4")
    assert "in other shards │ 11" in rows
    assert "same as another │ 6" in rows
    assert f"not possible here │ {impossible}" in rows


def shown(found: SweepPlan, shard: str) -> str:
    written = io.StringIO()
    plan_table.show(found, "grid", 0.0, "store", shard, Console(file=written, width=100))
    return " ".join(written.getvalue().split())


def test_what_is_known_and_not_there_yet_is_counted_and_left_out(plan, monkeypatch) -> None:
    planned = {**names.planned(), "attack": ("someday",), "defense": ("sometime", "once"), "option": ("model.glue",)}
    monkeypatch.setattr(names, "planned", lambda: planned)
    found = plan({**AXES, "attack": ["badnet", "someday"], "defense": ["none", "ft", "sometime", "once"]})
    assert (found.runs, found.victims, found.planned) == (14, 2, 3)
    assert next(iter(left_out_lines(found))) == (
        "skipped, not there yet: attack someday (7 runs); defense once, sometime (4 runs)"
    )
    assert plan({**AXES, "model.glue": ["strong"]}).missing == {"option model.glue": 10}


def test_a_run_that_cannot_be_is_counted_with_its_reason(plan) -> None:
    found = plan({**AXES, "model": ["vgg11"], "defense": ["none", "unibp"]})
    assert found.planned == 2
    (reason,) = found.impossible
    assert "unibp needs BatchNorm2d" in reason
    assert found.impossible[reason] == 4
    assert plan({**AXES, "spc": [2, 500]}).impossible["spc=500, but class 8 has 140 images; use 140 or fewer"] == 4


def test_a_data_set_that_is_not_here_is_counted_with_how_to_get_it(
    plan, make_composer, tmp_path: Path, monkeypatch
) -> None:
    looks: list[str] = []
    source = Bench._source
    monkeypatch.setattr(
        Bench, "_source", lambda bench, config: (looks.append(config["dataset"]["name"]), source(bench, config))[1]
    )
    composer = make_composer(f"data_dir={tmp_path / 'nothing'}")
    found = plan({**AXES, "dataset": ["digits", "cifar10"]}, composer=composer)
    assert looks == ["digits", "cifar10"], "each is looked for once, also in vain"
    assert (found.runs, found.victims, found.planned) == (20, 4, 10)
    ((reason, count),) = found.absent.items()
    assert count == 10
    assert reason.startswith("cifar10 is not there")
    assert "download=true" in reason


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"atack": ["badnet"]}, r"unknown axis 'atack'\. Did you mean attack"),
        ({"attack": ["badnett"]}, r"unknown attack 'badnett'\. Did you mean badnet"),
        ({"defense": ["unibbp"]}, r"unknown defense 'unibbp'\. Did you mean unibp"),
        ({"dataset": ["digit"]}, r"unknown dataset 'digit'\. Did you mean digits"),
        ({"preset": ["evidenc"]}, r"unknown preset 'evidenc'\. Did you mean evidence"),
        ({"repetitions": [0]}, r"unknown axis 'repetitions'\. Did you mean repetition"),
        ({"attack.poisoning_ration": [0.1]}, r"'attack\.poisoning_ration'\. Did you mean attack\.poisoning_ratio"),
        ({"defense.epoch": [1]}, r"unknown axis 'defense\.epoch'\. Did you mean defense\.epochs"),
        ({"recipe.epoch": [1]}, r"unknown axis 'recipe\.epoch'"),
        ({"attack.poisoning_ratio": ["ten"]}, r"digits badnet poisoning_ratio=ten none: "),
        ({"attack.poisoning_ratio": [1.5]}, r"attack\.poisoning_ratio=1\.5: expected a fraction"),
        ({"repetition": ["x"]}, r"axis repetition: expected whole numbers, got 'x'"),
        ({"seed": [0.5]}, r"axis seed: expected whole numbers, got 0\.5"),
        ({"spc": [1]}, r"spc=1: expected a whole number of at least 2"),
        ({"clean_ratio": [0.1]}, r"both spc=2 and clean_ratio=0\.1 are given"),
    ],
)  # fmt: skip
def test_a_misspelt_axis_or_value_is_refused_before_anything_starts(
    plan, bench: Bench, axes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan({**AXES, **axes})
    assert not bench.store.root.exists()

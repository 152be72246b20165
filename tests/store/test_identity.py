"""A key changes with everything that determines a result, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from backdoor_bench.attack.badnet import BadNet, PatchTrigger
from backdoor_bench.bench import Bench, Plan
from backdoor_bench.errors import ConfigError
from backdoor_bench.stage.finetune import Finetune
from backdoor_bench.store import Store, identity

RUN = ("+attack=badnet", "+defense=ft")


def forget() -> None:
    """As in a new process: versions are read once in each."""
    identity._versions.cache_clear()
    identity._settled.cache_clear()


@pytest.fixture(autouse=True)
def _read_versions_anew() -> Any:
    forget()
    yield
    forget()


@pytest.fixture
def plan(compose: Callable[..., dict[str, Any]], tmp_path) -> Callable[..., Plan]:
    bench = Bench(Store(tmp_path / "store"))
    return lambda *overrides: bench.plan(compose(*RUN, *overrides))


def keys(plan: Plan) -> tuple[str, str]:
    return plan.victim_key, plan.key


def test_a_key_is_twenty_hexadecimal_digits() -> None:
    assert identity.key({}) == "44136fa355b3678a1146"  # sha256 of "{}"


def test_one_spelling_per_value() -> None:
    def key(node: dict[str, Any]) -> str:
        return identity.key(identity.settled(node))

    assert key({"epochs": 5}) == key({"epochs": 5.0})
    assert key({"a": 1, "b": [1, 2]}) == key({"b": (1, 2.0), "a": 1})
    different = [5, 5.5, "5", True, None, [5], {"5": 5}, -5, 1, 0, False, ""]
    assert len({key({"epochs": value}) for value in different}) == len(different)


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        identity.key({"lr": float("nan")})


def test_typed_numbers_give_the_same_plan(plan) -> None:
    assert keys(plan("recipe.epochs=5", "attack.poisoning_ratio=0.10")) == keys(plan("recipe.epochs=5.0"))


@pytest.mark.parametrize(
    "override",
    [
        "data_dir=/elsewhere",
        "store_dir=/elsewhere",
        "download=true",
        "device=auto",
        "trainer.eval_batch_size=7",
        "force=true",
        "save_purified=true",
        "measure_stages=false",
        "weak_attack_below=0.9",
        "trust=[mine]",
        "preset.name=other",
        "defense.name=other",
        "clean_ratio=0.05",
        "+recipe.lengths.something=3",
        "logger=csv",
    ],
)
def test_what_changes_no_result_changes_no_key(plan, monkeypatch, override: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert keys(plan(override)) == keys(plan())


def test_the_recipes_width_counts_only_where_the_network_reads_it(plan) -> None:
    fixed = plan("model.width=2")
    assert keys(plan("recipe.width=4", "model.width=2")) == keys(fixed)
    assert plan("recipe.width=4").victim_key != fixed.victim_key


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "attack.poisoning_ratio=0.05",
        "attack.target_label=1",
        "model.width=3",
        "recipe.epochs=2",
        "recipe.optimizer.lr=0.2",
        "recipe.drop_last=false",
        "schedule@recipe.scheduler=constant",
        "dataset.augmentation.crop_padding=0",
        "dataset.mean=[0.1,0.2,0.3]",
        "trainer.precision=bf16-mixed",
        "trainer.channels_last=false",
    ],
)
def test_what_determines_a_victim_changes_both_keys(plan, override: str) -> None:
    changed, plain = plan(override), plan()
    assert changed.victim_key != plain.victim_key
    assert changed.key != plain.key


@pytest.mark.parametrize(
    "override",
    [
        "repetition=1",
        "spc=10",
        "clean_ratio=0.1",
        "clean_from=all",
        "defense.epochs=3",
        "defense.use_validation=train",
        "defense.stages.finetune.optimizer.lr=0.5",
        "+defense.stages.more={_target_: backdoor_bench.stage.skip.Skip}",
        "~defense",
    ],
)
def test_what_determines_a_run_changes_the_run_key_alone(plan, override: str) -> None:
    changed, plain = plan(override), plan()
    assert changed.victim_key == plain.victim_key
    assert changed.key != plain.key


def test_without_a_defense_its_regime_is_nothing(plan) -> None:
    assert keys(plan("~defense", "repetition=3", "spc=10")) == keys(plan("~defense"))


def test_both_regimes_are_refused(plan) -> None:
    with pytest.raises(ConfigError, match=r"both spc=2 and clean_ratio=0\.1"):
        plan("spc=2", "clean_ratio=0.1")


def test_the_order_of_stages_matters_and_the_order_of_keys_does_not(plan, compose) -> None:
    manifest = plan().manifest
    config = compose(*RUN)
    stage = config["defense"]["stages"]["finetune"]
    skip = {"_target_": "backdoor_bench.stage.skip.Skip"}

    def run_key(stages: dict[str, Any], **options: Any) -> str:
        changed = {**config, **options, "defense": {**config["defense"], "stages": stages}}
        return identity.key(identity.run_identity("victim", changed, manifest))

    first = run_key({"a": stage, "b": skip})
    assert run_key({"b": skip, "a": stage}) != first
    assert run_key({"a": dict(reversed(stage.items())), "b": skip}) == first
    assert run_key({"a": stage, "c": skip}) != first


def test_other_images_change_the_keys(plan, compose) -> None:
    done = plan()
    train = replace(done.manifest, train_sha256="other")
    test = replace(done.manifest, test_sha256="other")

    def victim(manifest: Any) -> str:
        return identity.key(identity.victim_identity(done.config, manifest, done.numerics))

    def run(manifest: Any) -> str:
        return identity.key(identity.run_identity("victim", done.config, manifest))

    assert victim(done.manifest) == done.victim_key
    elsewhere = {**done.config, "dataset": {**done.config["dataset"], "data_dir": "/elsewhere", "download": True}}
    assert identity.key(identity.victim_identity(elsewhere, done.manifest, done.numerics)) == done.victim_key
    assert victim(train) != done.victim_key
    assert victim(test) == done.victim_key
    assert run(test) != run(done.manifest)


@pytest.mark.parametrize("kind", [BadNet, PatchTrigger])
def test_a_new_version_of_an_attack_or_its_trigger_is_another_victim(plan, monkeypatch, kind: type) -> None:
    before = plan()
    monkeypatch.setattr(kind, "version", 2, raising=False)
    forget()
    assert plan().victim_key != before.victim_key


def test_a_new_version_of_a_stage_is_another_run(plan, monkeypatch) -> None:
    before = plan()
    monkeypatch.setattr(Finetune, "version", 2)
    forget()
    after = plan()
    assert after.victim_key == before.victim_key
    assert after.key != before.key


def test_versions_of_classes_outside_the_package_count(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_stages.py").write_text("class Mine:\n    version = 3\n")
    expected = {"_target_": "my_stages.Mine", "lr": 1, "_version_": 3}
    assert identity.versioned({"_target_": "my_stages.Mine", "lr": 1}) == expected
    assert identity.versioned([{"_target_": "torch.optim.SGD"}]) == [{"_target_": "torch.optim.SGD"}]


def test_a_record_can_name_the_versions_that_its_key_digests(compose) -> None:
    config = compose("+attack=wanet", "+defense=unit")
    told = identity.versions({"attack": config["attack"], "defense": config["defense"]})
    assert told["attack"] == 2
    assert told["attack.trigger"] == 1
    stages = config["defense"]["stages"]
    assert {f"defense.stages.{name}" for name in stages} <= told.keys()
    assert told["defense.stages.tighten"] == 2
    assert identity.versions({"attack": None}) == {}

"""One run from configuration to record: nothing leaks to the defense, and the record is what was measured."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench import config as configuration
from backdoor_bench import experiment, training
from backdoor_bench.attack.badnet import BadNet
from backdoor_bench.attack.base import Trigger
from backdoor_bench.bench import Bench
from backdoor_bench.dataset import ImageSet
from backdoor_bench.defense import Defense
from backdoor_bench.errors import BenchError
from backdoor_bench.metric import Evaluator
from backdoor_bench.stage import Output, Stage
from backdoor_bench.store import Store

MEASURED = 60
"""Test images here: few, for every run measures after each of its stages."""
DEFENSES = sorted(path.stem for path in (configuration.directory() / "defense").glob("*.yaml"))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def compose(compose: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    return partial(compose, f"dataset.max_test={MEASURED}")


def purified_state(config: dict, bench: Bench) -> dict[str, torch.Tensor]:
    """The purified network of a run, whatever was measured on the way."""
    plan = bench.plan(config)
    data = bench.data(plan)
    victim = bench.victim(plan, data)
    measured: dict = {"stages": []}
    network, _ = experiment.purify(plan, bench, data, victim, bench.evaluator(plan, data, victim.trigger), measured)
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.mark.parametrize("defense", DEFENSES)
def test_a_defense_sees_no_trigger_no_test_set_and_no_poison(defense, compose, store, monkeypatch) -> None:
    """It runs while the trigger, the target label, the poison flags and the test set raise on access."""
    config = compose("+attack=badnet", f"+defense={defense}")
    bench = Bench(store)
    plan = bench.plan(config)
    data = bench.data(plan)
    victim = bench.victim(plan, data)
    made: Defense = configuration.make(config["defense"])
    view, _ = experiment.defender_view(plan, data, victim, made)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a defense reached what it may not see")

    if "trigger" not in made.assumes:
        monkeypatch.setattr(type(victim.trigger), "paint", forbidden)
        assert view.known_trigger is None
        with pytest.raises(BenchError, match="assumes"):
            _ = view.trigger
    if "target_label" not in made.assumes:
        assert view.known_target is None
    monkeypatch.setattr(Evaluator, "measure", forbidden)
    monkeypatch.setattr(Evaluator, "__init__", forbidden)
    drawn = {tuple(image.flatten().tolist()) for image in torch.cat([view.train.images, view.validation.images])}
    test = {tuple(image.flatten().tolist()) for image in data.test.images}
    assert not drawn & test
    stages = [result.name for result in made.run(deepcopy(victim.network), view)]
    assert stages == list(made.stages)


def test_a_target_label_is_known_where_there_is_one(compose, store) -> None:
    def known(*assumes: str, **attack: object) -> int | None:
        made.assumes = assumes
        plan.config["attack"] |= attack
        return experiment.defender_view(plan, data, victim, made)[0].known_target

    config = compose("+attack=badnet", "+defense=ft", "attack.target_label=3")
    bench = Bench(store)
    plan = bench.plan(config)
    data, made = bench.data(plan), configuration.make(config["defense"])
    victim = SimpleNamespace(altered=None, trigger=None)
    assert known() is None
    assert known("target_label") == 3
    assert known("target_label", labels="all_to_all") is None


@pytest.mark.parametrize("defense", DEFENSES)
def test_purified_weights_do_not_depend_on_measuring_or_on_the_test_set(defense, compose, store) -> None:
    """Bit-identical with measurement on and off, and with the test set replaced by noise."""
    config = compose("+attack=badnet", f"+defense={defense}")
    measured = purified_state(config, Bench(store))
    unmeasured = purified_state({**config, "measure_stages": False}, Bench(store))
    assert_same(measured, unmeasured)

    bench = Bench(store)
    plan = bench.plan(config)
    data = bench.data(plan)
    draws = torch.Generator().manual_seed(5)
    noise = torch.randint(0, 256, data.test.images.shape, dtype=torch.uint8, generator=draws)
    bench._data[next(iter(bench._data))] = type(data)(
        data.train, ImageSet(noise, data.test.labels.flip(0)), data.manifest, data.augmentation
    )
    assert_same(measured, purified_state(config, bench))


def test_a_stage_finds_no_evaluator_trigger_or_test_loader_on_its_trainer(compose, store, monkeypatch) -> None:
    config = compose("+attack=badnet", "+defense=ft")
    seen = []
    from backdoor_bench.stage.finetune import Finetune

    original = Finetune.on_fit_start

    def look(self: Finetune) -> None:
        seen.append((self.trainer.loggers, self.trainer.val_dataloaders, self.trainer.test_dataloaders,
                     [type(callback).__name__ for callback in self.trainer.callbacks]))  # fmt: skip
        assert not any(isinstance(value, (Evaluator, Trigger)) for value in vars(self.trainer).values())
        assert not any(isinstance(value, (Evaluator, Trigger)) for value in vars(self.view).values())
        original(self)

    monkeypatch.setattr(Finetune, "on_fit_start", look)
    purified_state(config, Bench(store))
    ((loggers, validation, test, callbacks),) = seen
    assert loggers == []
    assert validation is None
    assert test is None
    assert callbacks == ["Watch"]


def test_a_result_does_not_depend_on_what_ran_before(compose, store, tmp_path) -> None:
    first = purified_state(compose("+attack=badnet", "+defense=ft"), Bench(store))
    bench = Bench(Store(tmp_path / "other"))
    torch.rand(17)
    purified_state(compose("+attack=badnet", "+defense=ft", "repetition=1"), bench)
    assert_same(first, purified_state(compose("+attack=badnet", "+defense=ft"), bench))


def test_another_repetition_draws_other_images_for_the_same_victim(compose, store) -> None:
    bench = Bench(store)
    plans = [bench.plan(compose("+attack=badnet", "+defense=ft", f"repetition={n}")) for n in (0, 1)]
    assert plans[0].victim_key == plans[1].victim_key
    assert plans[0].key != plans[1].key
    data = bench.data(plans[0])
    victim = bench.victim(plans[0], data)
    defense = configuration.make(plans[0].config["defense"])
    first, second = (experiment.defender_view(plan, data, victim, defense)[0] for plan in plans)
    assert not torch.equal(first.train.images, second.train.images)


def test_what_an_attack_prepares_is_part_of_its_victims_seconds(compose, tmp_path, monkeypatch) -> None:
    """COMBAT's generator takes longer than the training; a sweep's estimates are made of these seconds."""
    prepare = BadNet.prepare

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.3)
        return prepare(*args, **options)

    monkeypatch.setattr(BadNet, "prepare", slow)
    monkeypatch.setattr(training, "fit", lambda *args, **options: training.History())
    bench = Bench(Store(tmp_path / "store"))
    plan = bench.plan(compose("+attack=badnet"))
    seconds = bench.victim(plan, bench.data(plan)).seconds
    assert seconds is not None
    assert seconds >= 0.3


def test_use_validation_train_gives_the_defense_all_its_images(compose, store) -> None:
    bench = Bench(store)
    plan = bench.plan(compose("+attack=badnet", "+defense=ft", "defense.use_validation=train"))
    data = bench.data(plan)
    defense = configuration.make(plan.config["defense"])
    view, facts = experiment.defender_view(plan, data, bench.victim(plan, data), defense)
    held = bench.plan(compose("+attack=badnet", "+defense=ft"))
    holding = configuration.make(held.config["defense"])
    other, other_facts = experiment.defender_view(held, data, bench.victim(held, data), holding)
    assert facts["train"] == other_facts["train"] + other_facts["validation"]
    assert facts["validation"] == 0 == len(view.validation)
    assert held.key != plan.key
    assert len(other.validation) > 0


def test_the_record_says_what_was_run_and_measured(compose, store) -> None:
    config = compose("+attack=badnet", "+defense=ft", "save_purified=true")
    done = experiment.run(config, Bench(store))
    record = json.loads(Path(done.path).read_text())
    assert record["status"] == "ok"
    assert (record["attack"], record["defense"], record["dataset"]) == ("badnet", "ft", "digits")
    assert record["architecture"] == "preact_resnet18"
    assert record["config"] == json.loads(json.dumps(config))
    assert record["versions"] == {"attack": 1, "attack.trigger": 1, "defense.stages.finetune": 1}
    assert [stage["name"] for stage in record["stages"]] == ["finetune"]
    assert record["stages"][-1]["acc"] == record["acc"]
    assert record["weak_attack"] == (record["before"]["asr"] < 0.5)
    constant = 36 / 355  # the largest class of the digits' test set
    assert record["victim_at_chance"] == (record["before"]["acc"] <= constant + 0.1 * (1 - constant))
    assert record["at_chance"] == (record["acc"] <= constant + 0.1 * (1 - constant))
    assert record["environment"]["torch"] == importlib.metadata.version("torch")
    assert record["clean"]["train"] + record["clean"]["validation"] == round(0.05 * 1442)
    assert Path(record["purified"]).is_dir()
    again = experiment.run(config, Bench(store))
    assert again.found
    assert again.record == record
    forced = experiment.run({**config, "force": True}, Bench(store))
    assert not forced.found
    assert Path(forced.path).name == "0002.json"
    assert (forced.record["acc"], forced.record["asr"]) == (record["acc"], record["asr"])


def test_a_failing_stage_is_recorded_and_does_not_count_as_done(compose, store, monkeypatch) -> None:
    from backdoor_bench.stage.finetune import Finetune

    config = compose("+attack=badnet", "+defense=ft", "repetition=99")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of coffee")

    bench = Bench(store)
    with monkeypatch.context() as patch:
        patch.setattr(Finetune, "run", broken)
        patch.setattr(Finetune, "ports", classmethod(lambda cls: []))
        patch.setattr(Finetune, "gives", classmethod(lambda cls: None))
        with pytest.raises(RuntimeError, match="out of coffee"):
            experiment.run(config, bench)
    (failed,) = store.attempts(bench.plan(config).key)
    assert (failed["status"], failed["reason"]) == ("failed", "RuntimeError: out of coffee")
    assert 'in broken\n    raise RuntimeError("out of coffee")' in failed["traceback"]
    assert store.record(bench.plan(config).key) is None
    done = experiment.run(config, bench)
    assert done.record["status"] == "ok"
    assert Path(done.path).name == "0002.json"


def test_a_network_without_what_a_defense_requires_is_refused_before_work(compose, store, tmp_path) -> None:
    class Plain(nn.Module):
        pass

    with pytest.raises(BenchError, match="unibp needs BatchNorm2d in the network, and Plain has none; use another"):
        configuration.make(compose("+defense=unibp")["defense"]).check_network(Plain())


@pytest.mark.parametrize("defense", DEFENSES)
def test_the_end_to_end_grid(defense, compose, store) -> None:
    """Every defense, from configuration to record, and what is reported is what is saved."""
    from backdoor_bench.remeasure import remeasure

    config = compose("+attack=badnet", f"+defense={defense}", "save_purified=true")
    done = experiment.run(config, Bench(store))
    record = done.record
    assert record["status"] == "ok"
    assert record["asr"] + record["ra"] <= 1
    assert [stage["name"] for stage in record["stages"]] == list(config["defense"]["stages"])
    result = remeasure(store, record["key"])
    assert result.same_setting
    assert result.difference == 0


def test_stages_declare_what_they_take_and_give() -> None:
    """Every stage's signature is one that Defense can wire."""
    import importlib

    looked_at = []
    for path in (configuration.HERE / "stage").glob("*.py"):
        module = importlib.import_module(f"backdoor_bench.stage.{path.stem}")
        for kind in vars(module).values():
            if not (isinstance(kind, type) and issubclass(kind, Stage) and kind.__module__ == module.__name__):
                continue
            if not inspect.isabstract(kind):
                looked_at.append(kind)
                assert all(issubclass(port.kind, Output) for port in kind.ports())
                assert kind.gives() is None or issubclass(kind.gives(), Output)
    assert len(looked_at) > 10


def test_a_seed_written_as_a_float_is_the_same_run(compose, store) -> None:
    plans = [
        Bench(store).plan(compose("+attack=badnet", "+defense=ft", f"seed={seed}", f"repetition={repetition}"))
        for seed, repetition in (("5", "2"), ("5.0", "2.0"))
    ]
    assert plans[0].key == plans[1].key
    assert {repr((plan.config["seed"], plan.config["repetition"])) for plan in plans} == {"(5, 2)"}


@pytest.mark.parametrize(
    ("defense", "place"),
    [("ft", "finetune"), ("unibp", "mask"), ("unibp", "masked_finetune"), ("unit", "bound"), ("gradprune", "prune")],
)
def test_a_batch_of_nothing_is_refused_before_a_victim_is_trained(defense, place, compose, store) -> None:
    with pytest.raises(BenchError, match="batch_size=0: expected"):
        Bench(store).plan(compose("+attack=badnet", f"+defense={defense}", f"defense.stages.{place}.batch_size=0"))


@pytest.mark.parametrize("wrong", ["seed=abc", "seed=-1", "repetition=1.5", "recipe.epochs=two", "recipe.epochs=0"])
def test_what_must_be_a_whole_number_is_refused_when_a_run_is_planned(wrong, compose, store) -> None:
    name, _, value = wrong.partition("=")
    with pytest.raises(BenchError, match=rf"{name}={value}: expected a whole number of at least"):
        Bench(store).plan(compose("+attack=badnet", wrong))

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from backdoor_bench import config
from backdoor_bench.defense import Defense
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.stage import DefenderView

Compose = Callable[..., dict[str, Any]]
SHORT = ("+defense=tsbd", "defense.epochs=2", "++preset.lengths.tsbd_unlearn_epochs=2")


@pytest.fixture
def tsbd(compose: Compose) -> Callable[..., Defense]:
    def make(*overrides: str) -> Defense:
        made = config.make(compose(*SHORT, *overrides)["defense"])
        assert isinstance(made, Defense)
        return made

    return make


def test_the_published_values(compose: Compose) -> None:
    # Of CIFAR-10, whose recipe names no lengths of its own.
    stages = compose("dataset=cifar10", "+defense=tsbd", lengths={})["defense"]["stages"]
    assert list(stages) == ["unlearn", "reinitialise", "activeness_finetune"]
    unlearn, tuning = stages["unlearn"], stages["activeness_finetune"]
    assert (unlearn["epochs"], unlearn["batch_size"], unlearn["stop_accuracy"]) == (1000, 256, 0.1)
    assert {key: unlearn["optimizer"].get(key) for key in ("lr", "momentum", "weight_decay")} == {
        "lr": 1e-4, "momentum": 0.9, "weight_decay": None,
    }  # fmt: skip
    assert (stages["reinitialise"]["neuron_ratio"], stages["reinitialise"]["weight_ratio"]) == (0.15, 0.7)
    assert (tuning["epochs"], tuning["batch_size"], tuning["radius"], tuning["alpha"]) == (20, 256, 0.05, 0.7)
    assert {key: tuning["optimizer"].get(key) for key in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.01, "momentum": 0.9, "weight_decay": None,
    }  # fmt: skip


def test_unlearning_leaves_the_network_alone_and_zeroed_weights_train_again(
    tsbd: Callable[..., Defense], network: nn.Module, defender_view: DefenderView
) -> None:
    changed, zeroed = {}, {}
    for result in tsbd().run(network, defender_view):
        changed[result.name] = result.changed
        if result.name == "reinitialise":
            zeroed = {name: value == 0 for name, value in network.named_parameters() if "conv" in name}
            assert sum(int(entries.sum()) for entries in zeroed.values()) == result.output.report["zeroed"] > 0
    assert changed == {"unlearn": False, "reinitialise": True, "activeness_finetune": True}
    parameters = dict(network.named_parameters())
    moved = sum(int((parameters[name][entries] != 0).sum()) for name, entries in zeroed.items())
    assert moved > 0.5 * sum(int(entries.sum()) for entries in zeroed.values())


@pytest.mark.parametrize(
    ("skipped", "changed"),
    [
        (["unlearn", "reinitialise"], ["activeness_finetune"]),
        (["reinitialise"], ["activeness_finetune"]),
        (["activeness_finetune"], ["reinitialise"]),
    ],
)
def test_ablations(
    tsbd: Callable[..., Defense],
    network: nn.Module,
    defender_view: DefenderView,
    skipped: list[str],
    changed: list[str],
) -> None:
    defense = tsbd(*(f"stage@defense.stages.{name}=skip" for name in skipped))
    assert [result.name for result in defense.run(network, defender_view) if result.changed] == changed


def test_ranking_without_unlearning_is_refused(tsbd: Callable[..., Defense]) -> None:
    with pytest.raises(ConfigError, match=r"stage 'reinitialise' of tsbd needs a Reference.*reinitialise=skip"):
        tsbd("stage@defense.stages.unlearn=skip")


def test_a_network_with_one_convolution_is_refused_before_any_work(
    tsbd: Callable[..., Defense], defender_view: DefenderView
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(IncompatibleError, match=r"two conv layers or more.*layer_type=linear"):
        next(tsbd().run(network, defender_view))

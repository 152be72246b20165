"""Defense: how stages are joined, in which order they run, and what is refused before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from backdoor_bench.defense import Defense, base
from backdoor_bench.errors import ConfigError, DivergedError, IncompatibleError
from backdoor_bench.stage import DefenderView, Mask, Reference, Scores, Stage
from backdoor_bench.stage.skip import Skip


class Score(Stage):
    """Leaves scores, changes nothing; notes what it was told."""

    def __init__(self, mark: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.mark = mark

    def run(self, network: nn.Module, view: DefenderView) -> Scores:
        self.view, self.mode, self.draw = view, network.training, torch.rand(()).item()
        return Scores({"mark": torch.tensor([self.mark])})


class SpecialScores(Scores):
    """A kind of scores."""


class GivesSpecial(Stage):
    def run(self, network: nn.Module, view: DefenderView) -> SpecialScores:
        return SpecialScores({})


class GivesReference(Stage):
    def run(self, network: nn.Module, view: DefenderView) -> Reference:
        return Reference(network)


class NeedsScores(Stage):
    def run(self, network: nn.Module, view: DefenderView, scores: Scores) -> Mask:
        self.got = scores
        return Mask({})


class MayUse(Stage):
    """Takes what there is; moves one weight."""

    def run(
        self, network: nn.Module, view: DefenderView, scores: Scores | None = None, mask: Mask | None = None
    ) -> None:
        self.got = scores, mask
        with torch.no_grad():
            next(network.parameters()).add_(1)


class Validates(Skip):
    uses_validation: ClassVar[bool] = True


class Refuses(Skip):
    def check(self, network: nn.Module, view: DefenderView) -> None:
        raise IncompatibleError(f"stage '{view.stage}' cannot work on this")


def defense(stages: Mapping[str, Stage], **options: Any) -> Defense:
    return Defense(name="mine", stages=stages, **options)


def test_runs_in_order_and_yields_after_each(network: nn.Module, defender_view: DefenderView) -> None:
    stages = {"third": Score(), "first": MayUse(), "second": Skip()}
    results = list(defense(stages).run(network, defender_view))
    assert [(result.name, result.changed) for result in results] == [
        ("third", False),
        ("first", True),
        ("second", False),
    ]
    assert isinstance(results[0].output, Scores)
    assert results[1].output is None
    assert all(result.network is network and result.seconds >= 0 for result in results)


def test_a_changed_buffer_is_a_change(network: nn.Module, defender_view: DefenderView) -> None:
    class MoveStatistics(Stage):
        def run(self, network: nn.Module, view: DefenderView) -> None:
            network.get_buffer("backbone.layer1.0.bn1.running_mean").add_(1)

    (result,) = defense({"move": MoveStatistics()}).run(network, defender_view)
    assert result.changed


def test_a_stage_starts_in_eval_mode_with_its_own_name_and_draws(
    network: nn.Module, defender_view: DefenderView
) -> None:
    def draws(repetition: int) -> tuple[float, float]:
        stages = {"a": Score(), "b": Score()}
        for _ in defense(stages).run(network, replace(defender_view, repetition=repetition)):
            network.train()  # whoever looked at it between the stages
            torch.rand(10)
        assert [stage.view.stage for stage in stages.values()] == ["a", "b"]
        assert not any(stage.mode for stage in stages.values())
        return stages["a"].draw, stages["b"].draw

    first = draws(0)
    assert first == draws(0)
    assert len({*first, *draws(1)}) == 4


def test_an_input_is_the_latest_of_its_type(network: nn.Module, defender_view: DefenderView) -> None:
    stages = {"early": Score(1), "late": Score(2), "mask": NeedsScores(), "use": MayUse()}
    results = list(defense(stages).run(network, defender_view))
    assert stages["mask"].got is results[1].output
    assert stages["use"].got == (results[1].output, results[2].output)


def test_an_input_can_be_named(network: nn.Module, defender_view: DefenderView) -> None:
    stages = {"early": Score(1), "late": Score(2), "mask": NeedsScores(inputs={"scores": "early"})}
    results = list(defense(stages).run(network, defender_view))
    assert stages["mask"].got is results[0].output


def test_an_optional_input_may_be_missing(network: nn.Module, defender_view: DefenderView) -> None:
    stages = {"score": Skip(), "use": MayUse()}
    list(defense(stages).run(network, defender_view))
    assert stages["use"].got == (None, None)


def test_a_missing_input_is_refused_before_anything_runs() -> None:
    with pytest.raises(
        ConfigError, match=r"'mask' of mine needs a Scores.*leave out 'mask' too \(stage@defense.stages.mask=skip\)"
    ):
        defense({"score": Skip(), "mask": NeedsScores()})
    with pytest.raises(ConfigError, match="'mask' of mine needs a Scores"):
        defense({"mask": NeedsScores(), "score": Score()})  # too late


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"scores": "use"}, "'mask' of mine takes its scores from 'use', which gives no Scores before it;"),
        ({"scores": "later"}, "takes its scores from 'later', .* those that do: score"),
        ({"scroes": "score"}, "unknown input of stage 'mask' 'scroes'. Did you mean scores?"),
    ],
)
def test_wrong_wiring(inputs: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        defense({"score": Score(), "use": MayUse(), "mask": NeedsScores(inputs=inputs), "later": Score()})


def test_an_output_that_is_a_kind_of_what_is_wanted_fits() -> None:
    defense({"score": GivesSpecial(), "mask": NeedsScores()})
    with pytest.raises(ConfigError, match="needs a Scores"):
        defense({"score": GivesReference(), "mask": NeedsScores()})


def test_validation_images_that_went_to_training(network: nn.Module, defender_view: DefenderView) -> None:
    made = defense({"first": MayUse(), "choose": Validates()}, use_validation="train")
    view = replace(defender_view, validation=defender_view.validation[torch.arange(0)])
    before = next(network.parameters()).clone()
    with pytest.raises(ConfigError, match=r"stage 'choose' of mine decides by validation.*use_validation=hold_out"):
        next(made.run(network, view))
    assert torch.equal(before, next(network.parameters()))
    assert len(list(made.run(network, defender_view))) == 2


def test_a_stage_that_refuses_does_so_before_any_work(network: nn.Module, defender_view: DefenderView) -> None:
    first = MayUse()
    said = r"mine, stage 'last': stage 'last' cannot work on this; use another defense, e\.g\. ft"
    with pytest.raises(IncompatibleError, match=said):
        next(defense({"first": first, "last": Refuses()}).run(network, defender_view))
    assert not hasattr(first, "got")


def test_what_a_network_must_have(network: nn.Module) -> None:
    made = defense({"skip": Skip()}, requires=["BatchNorm2d", "Conv2d"], instead=["gradprune", "ft"])
    made.check_network(network)
    with pytest.raises(IncompatibleError, match=r"mine needs BatchNorm2d in the network, and Linear has.* e\.g\. ft$"):
        made.check_network(nn.Linear(2, 2))  # gradprune needs Conv2d, so it is not named
    with pytest.raises(ConfigError, match=r"unknown part in requires 'BatchNorm'\. Did you mean BatchNorm2d"):
        defense({"skip": Skip()}, requires=["BatchNorm"]).check_network(network)


@pytest.mark.parametrize("instead", [["clp"], ["fp", "anp"], ["not_there"], []])
def test_what_is_named_instead_is_not_refused_as_well(instead: list[str], monkeypatch) -> None:
    """clp names fp and fp names clp: neither asks the other for ever."""
    headless = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made = defense({"skip": Skip()}, requires=["BatchNorm2d"], instead=instead)
    with pytest.raises(IncompatibleError, match=r"Sequential has none; use another defense, e\.g\. ft$"):
        made.check_network(headless)
    monkeypatch.setattr(base, "DEMANDS_LEAST", ("unibp",))
    with pytest.raises(IncompatibleError, match=r"Sequential has none; use another network$"):
        made.check_network(headless)


def test_a_stage_may_refuse_a_network_when_a_run_is_planned() -> None:
    """Without weights, and with images of the size that it will be used with."""

    class Large(Skip):
        def check_network(self, network: nn.Module, images: torch.Tensor) -> None:
            assert images.is_meta
            if images.shape[-1] < 48:
                raise IncompatibleError("it needs images of 48 pixels")

    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 2, 1))
        made = defense({"large": Large()}, instead=["clp"])
        made.check_network(network, torch.empty(2, 3, 64, 64))
    with pytest.raises(IncompatibleError, match=r"mine, stage 'large': it needs images of 48 .* e\.g\. ft$"):
        made.check_network(network)  # clp is refused here, too: no BatchNorm


def test_an_assumed_trigger_must_be_there(network: nn.Module, defender_view: DefenderView) -> None:
    with pytest.raises(IncompatibleError, match=r"mine assumes the attacker's trigger.*add \+attack=NAME"):
        next(defense({"skip": Skip()}, assumes=["trigger"]).run(network, defender_view))
    knowing = defense({"skip": Skip()}, assumes=["target_label"])
    with pytest.raises(IncompatibleError, match="mine assumes the attacker's target label, and this victim has none"):
        next(knowing.run(network, defender_view))
    assert not next(knowing.run(network, replace(defender_view, known_target=0))).changed
    with pytest.raises(ConfigError, match="unknown privilege in assumes 'test_set'"):
        defense({"skip": Skip()}, assumes=["test_set"])


def test_weights_that_are_not_finite(network: nn.Module, defender_view: DefenderView) -> None:
    class Explode(Stage):
        def run(self, network: nn.Module, view: DefenderView) -> None:
            next(network.parameters()).data.fill_(float("inf"))

    with pytest.raises(DivergedError, match="stage 'boom' diverged"):
        next(defense({"boom": Explode()}).run(network, defender_view))


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ({}, {}, "defense 'mine' has no stages"),
        ({"skip": Skip()}, {"use_validation": "both"}, "use_validation=both: expected hold_out or train"),
        ({"skip": Skip()}, {"widht": 3}, "defense 'mine' has no option widht"),
    ],
)
def test_impossible_options(stages: dict[str, Stage], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        defense(stages, **options)

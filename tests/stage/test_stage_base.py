"""What Stage and TrainingStage promise to every stage."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench.dataset import Batches, ImageSet
from backdoor_bench.errors import DivergedError, IncompatibleError
from backdoor_bench.model import anatomy
from backdoor_bench.stage import DefenderView, Mask, Output, Reference, Scores, Stage, TrainingStage
from backdoor_bench.training import by_step

State = dict[str, Tensor]


class Train(TrainingStage):
    """Nothing but the base."""

    def run(self, network: nn.Module, view: DefenderView) -> None:
        self.history = self.train_network(network, view)


class TrainInEval(Train):
    train_mode: ClassVar[bool] = False


class TrainACopy(Train):
    def run(self, network: nn.Module, view: DefenderView) -> Reference:  # type: ignore[override]
        twin = copy.deepcopy(network)
        self.train_network(twin, view)
        return Reference(twin)


def make(kind: type[TrainingStage] = Train, **options: Any) -> Any:
    return kind(**{"epochs": 2, "batch_size": 16, "optimizer": partial(torch.optim.SGD, lr=0.05), **options})


def state(network: nn.Module) -> State:
    return {key: value.clone() for key, value in network.state_dict().items()}


def same(first: State, second: State, part: str = "") -> bool:
    return all(torch.equal(first[key], second[key]) for key in first if part in key)


def test_after_an_eval_statistics_move_in_train_mode_and_stay_in_eval_mode(
    network: nn.Module, defender_view: DefenderView
) -> None:
    before = state(network)
    for kind, moves in ((TrainInEval, False), (Train, True)):
        trained = copy.deepcopy(network).eval()
        make(kind).run(trained, defender_view)
        after = state(trained)
        assert same(before, after, "running_") is not moves
        assert not same(before, after, "weight")
        assert not any(module.training for module in trained.modules())


def test_a_copy_is_trained_and_the_network_is_not(network: nn.Module, defender_view: DefenderView) -> None:
    before = state(network)
    reference = make(TrainACopy).run(network, defender_view)
    assert same(before, state(network))
    assert not same(before, state(reference.network))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_repetition_and_the_stages_name_decide_the_draws(network: nn.Module, defender_view: DefenderView) -> None:
    def weights(view: DefenderView, draws_before: int) -> State:
        torch.rand(draws_before)  # the global generator has been used by somebody else
        trained = copy.deepcopy(network)
        make().run(trained, view)
        return state(trained)

    first = weights(defender_view, 1)
    assert same(first, weights(defender_view, 1000))
    assert not same(first, weights(replace(defender_view, repetition=1), 1))
    assert not same(first, weights(defender_view.for_stage("other"), 1))


def test_the_global_generator_is_put_back(network: nn.Module, defender_view: DefenderView) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    make().run(network, defender_view)
    assert torch.equal(torch.rand(3), expected)


def test_a_stage_can_be_run_twice(network: nn.Module, defender_view: DefenderView) -> None:
    stage, twin = make(), copy.deepcopy(network)
    for trained in (network, twin):
        stage.run(trained, defender_view)
    assert same(state(network), state(twin))


def test_what_is_not_to_be_trained_stays(network: nn.Module, defender_view: DefenderView) -> None:
    class HeadOnly(Train):
        def trained_parameters(self) -> Any:
            return anatomy.head(self.network)[1].parameters()

    before = state(network)
    make(HeadOnly).run(network, defender_view)
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"backbone.linear.weight", "backbone.linear.bias"}


def test_a_frozen_network_beside_is_looked_at_and_left_as_it_is(
    network: nn.Module, defender_view: DefenderView
) -> None:
    class Distil(Train):
        def run(self, network: nn.Module, view: DefenderView, reference: Reference) -> None:  # type: ignore[override]
            self.train_network(network, view, frozen=reference.network)

        def loss(self, images: Tensor, labels: Tensor) -> Tensor:
            assert self.network.training
            assert not any(module.training for module in self.frozen.modules())
            assert not any(parameter.requires_grad for parameter in self.frozen.parameters())
            taught = self.frozen(images.requires_grad_(True))
            assert taught.requires_grad  # an attack on both networks needs this
            return F.mse_loss(self.network(images), taught.detach())

    teacher = make(TrainACopy).run(network, defender_view).network.train()
    before, stage, pupil = state(teacher), make(Distil), copy.deepcopy(network)
    stage.run(pupil, defender_view, Reference(teacher))
    assert same(before, state(teacher))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    assert not same(state(network), state(pupil), "weight")
    assert not hasattr(stage, "frozen")
    assert not list(stage.parameters())


def test_the_loss_sees_augmented_images_in_the_unit_interval(network: nn.Module, defender_view: DefenderView) -> None:
    seen: list[Tensor] = []

    class Look(Train):
        def loss(self, images: Tensor, labels: Tensor) -> Tensor:
            seen.append(images)
            return super().loss(images, labels)

    def dim(images: Tensor, generator: torch.Generator) -> Tensor:
        return images / 2

    make(Look, epochs=1).run(network, replace(defender_view, augmentation=dim))
    assert [images.shape for images in seen] == [(16, 3, 32, 32), (16, 3, 32, 32), (8, 3, 32, 32)]
    assert {images.dtype for images in seen} == {torch.float32}
    assert torch.cat(seen).min() == 0
    assert torch.cat(seen).max() == 0.5


def test_other_data_other_batches_other_lengths(network: nn.Module, defender_view: DefenderView) -> None:
    class Other(Train):
        def run(self, network: nn.Module, view: DefenderView) -> None:
            self.lengths = [
                len(self.train_network(network, view, data=view.validation, callbacks=[count]).loss),
                len(self.train_network(network, view, batches=Batches(view.train, 20), callbacks=[count]).loss),
                len(self.train_network(network, view, epochs=1, callbacks=[count]).loss),
                len(self.train_network(network, view, epochs=0, callbacks=[count]).loss),
            ]

    class Count(Callback):
        steps = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.steps += 1

    count, stage = Count(), make(Other)
    stage.run(network, defender_view)
    assert stage.lengths == [2, 2, 1, 0]
    assert count.steps == 2 * 1 + 2 * 2 + 3


def test_a_schedule_runs_over_the_epochs(network: nn.Module, defender_view: DefenderView) -> None:
    rates = []

    class Rates(Train):
        def loss(self, images: Tensor, labels: Tensor) -> Tensor:
            rates.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            return super().loss(images, labels)

    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2)
    make(Rates, batch_size=40, scheduler=cosine).run(network, defender_view)
    assert rates == pytest.approx([0.05, 0.025])
    rates.clear()
    make(Rates, batch_size=20, scheduler=partial(by_step, scheduler=cosine)).run(network, defender_view)
    assert rates == pytest.approx([0.05, 0.025, 0, 0.025])  # two steps an epoch; it rises again behind T_max


def test_a_fit_that_diverges_says_so(network: nn.Module, defender_view: DefenderView) -> None:
    class Broken(Train):
        def loss(self, images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.network(images), labels) * float("nan")

    with pytest.raises(DivergedError, match="tune diverged: the loss is nan in epoch 1"):
        make(Broken).run(network, defender_view.for_stage("tune"))
    assert not network.training


def test_ports_and_what_a_stage_gives_are_read_from_run() -> None:
    class Both(Stage):
        def run(self, network: nn.Module, view: DefenderView, scores: Scores, old: Mask | None = None) -> Mask:
            return Mask({})

    ports = [(port.name, port.kind, port.required) for port in Both.ports()]
    assert ports == [("scores", Scores, True), ("old", Mask, False)]
    assert Both.gives() is Mask
    assert Train.gives() is None
    assert Train.ports() == []
    assert make().inputs == {}
    assert Both(inputs={"old": "first"}).inputs == {"old": "first"}


def test_an_input_that_is_no_output_is_a_mistake_of_the_author() -> None:
    class Wrong(Stage):
        def run(self, network: nn.Module, view: DefenderView, images: ImageSet) -> None:
            pass

    class Vague(Stage):
        def run(self, network: nn.Module, view: DefenderView, found: Mask | Scores) -> None:
            pass

    for kind in (Wrong, Vague):
        with pytest.raises(TypeError, match="a stage's inputs and result are Outputs"):
            kind.ports()


def test_a_mask_counts_what_it_prunes() -> None:
    assert Mask({"a": torch.tensor([True, False]), "b": torch.ones(2, 2, dtype=torch.bool)}).count == 5
    assert Output(report={"loss": 0.5}).report == {"loss": 0.5}


def test_a_view_without_the_trigger_says_what_to_do(defender_view: DefenderView) -> None:
    with pytest.raises(IncompatibleError, match=r"stage 'mask' uses the attacker's trigger.*assumes: \[trigger\]"):
        _ = defender_view.for_stage("mask").trigger


def test_each_purpose_of_each_stage_has_its_own_stream(defender_view: DefenderView) -> None:
    def draw(view: DefenderView, name: str) -> float:
        return torch.rand((), generator=view.generator(name)).item()

    mask = defender_view.for_stage("mask")
    draws = [draw(mask, "order"), draw(mask, "noise"), draw(defender_view.for_stage("prune"), "order")]
    assert len({*draws, draw(replace(mask, repetition=1), "order")}) == 4
    assert draw(mask, "order") == draws[0]

"""COMBAT, against independent computations and with tiny networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench.attack import AttackerView
from backdoor_bench.attack.combat import (
    Alternation,
    Combat,
    CombatTrigger,
    add_noise,
    generator_loss,
    step_schedule,
)
from backdoor_bench.attack.generator import blur, low_pass
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.model import Network
from backdoor_bench.numerics import Numerics
from backdoor_bench.store import Store
from backdoor_bench.store.clean import OF_THE_VICTIM, CleanNetworks

SMALL = [
    "attack.generator_width=2",
    "attack.surrogate_width=2",
    "attack.clean_epochs=1",
    "attack.generator_epochs=1",
    "attack.batch_size=16",
]


def tiny(**options: Any) -> Combat:
    short = {"generator_width": 2, "clean_epochs": 1, "generator_epochs": 1, "batch_size": 16, "poisoning_ratio": 0.125}
    return Combat(**{**short, **options})


def prepared(view: AttackerView, **options: Any) -> tuple[Combat, CombatTrigger]:
    attack = tiny(**options)
    trigger = attack.trigger((32, 32))
    attack.prepare(trigger, view)
    return attack, trigger


@pytest.fixture(scope="module")
def ready(make_attacker_view: Callable[..., AttackerView]) -> tuple[Combat, CombatTrigger, AttackerView]:
    view = make_attacker_view()
    return *prepared(view), view


def test_noise_rate_is_halved_in_unit_range() -> None:
    images, noise = torch.tensor([0.5, 0.98, 0.01]), torch.tensor([-1.0, 1.0, -0.5])
    torch.testing.assert_close(add_noise(images, noise, 0.08), torch.tensor([0.46, 1.0, 0.0]))


def test_loss_by_hand() -> None:
    logits = torch.zeros(1, 4)  # cross-entropy log 4, whatever the label
    triggered, images = torch.full((1, 3, 2, 2), 0.6), torch.full((1, 3, 2, 2), 0.5)
    loss = generator_loss(logits, logits, triggered, images, torch.tensor([3]), 0, 0.02, 0.8)
    assert loss.item() == pytest.approx(1.8 * 1.3862944 + 0.02 * 4 * 0.01)
    sure = torch.tensor([[50.0, 0.0, 0.0, 0.0]])  # the surrogate says the target, the clean model the true label
    assert generator_loss(sure, sure.flip(1), images, images, torch.tensor([3]), 0, 0.02, 0.8).item() < 1e-6
    assert generator_loss(sure.flip(1), sure, images, images, torch.tensor([3]), 0, 0.02, 0.8).item() == 90


@pytest.mark.parametrize(("epochs", "milestones"), [(200, [100, 150]), (10, [5, 8]), (1, [1, 1])])
def test_schedule_is_scaled(epochs: int, milestones: list[int]) -> None:
    assert step_schedule(epochs).keywords["milestones"] == milestones


def test_trigger_is_bounded_and_repeatable(ready: tuple[Combat, CombatTrigger, AttackerView]) -> None:
    _, trigger, view = ready
    images = view.numerics.images(view.train.images[:8])
    noise = low_pass(trigger.generator(2 * images - 1), trigger.low_rows, trigger.low_columns)
    assert (trigger.perturb(images) - images).abs().max() <= 0.04 * noise.abs().max() + 1e-6
    painted = trigger(images)
    assert painted.min() >= 0
    assert painted.max() <= 1
    assert torch.equal(painted, trigger(images))
    torch.testing.assert_close(painted, blur(trigger.perturb(images), trigger.sigma(images)))
    assert trigger(images[:0]).shape == (0, 3, 32, 32)


def test_trigger_survives_its_state_dict(ready: tuple[Combat, CombatTrigger, AttackerView]) -> None:
    attack, trigger, view = ready
    again = attack.trigger((32, 32))
    assert all(name.startswith("generator.") for name in trigger.state_dict())
    again.load_state_dict(copy.deepcopy(trigger.state_dict()))
    images = view.numerics.images(view.train.images[:4])
    assert torch.equal(again(images), trigger(images))


def test_building_a_trigger_draws_nothing_global() -> None:
    before = torch.get_rng_state()
    first, second = tiny().trigger((32, 32)), tiny().trigger((32, 32))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*(next(trigger.parameters()) for trigger in (first, second)))


@pytest.mark.parametrize("size", [(28, 28), (16, 16), (32, 40)])
def test_image_size_is_checked(size: tuple[int, int]) -> None:
    with pytest.raises(IncompatibleError, match=rf"divisible by 16 and at least 32.*{size[0]}x{size[1]}"):
        tiny().trigger(size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blur_sigma": [1.0, 0.1]}, r"attack\.blur_sigma=\[1\.0, 0\.1\]"),
        ({"low_pass_ratio": 0.0}, r"attack\.low_pass_ratio=0\.0"),
        ({"generator_epochs": 0}, r"attack\.generator_epochs=0"),
        ({"surrogate_start": "warm"}, r"attack\.surrogate_start=warm: expected fresh or clean"),
        ({"labels": "all_to_all"}, "clean-label"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**options)


def alternation(view: AttackerView, attack: Combat, share: float = 0.5) -> Alternation:
    trigger = attack.trigger((32, 32))
    networks = [view.new_network(name) for name in ("surrogate", "clean")]
    return Alternation(attack, trigger, *networks, view, share, view.augmentation, view.generator("draws"))


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_fit_trains_generator_and_surrogate_and_nothing_else(attacker_view: AttackerView) -> None:
    module = alternation(attacker_view, tiny())
    parts: dict[str, nn.Module] = {"G": module.trigger.generator, "S": module.surrogate, "F0": module.clean}
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    history = attacker_view.fit(module, 1, 16, "test")
    assert len(history.loss) == 1
    assert {name for name, part in parts.items() if changed(part, before[name])} == {"G", "S"}
    assert all(parameter.requires_grad for parameter in module.surrogate.parameters())


class Steps:
    """Stands in for the optimisers: notes who has a gradient when each of them is asked to step."""

    def __init__(self, module: Alternation) -> None:
        self.module, self.seen = module, []

    def zero_grad(self) -> None:
        self.module.zero_grad()

    def step(self) -> None:
        parts = {"G": self.module.trigger.generator, "S": self.module.surrogate, "F0": self.module.clean}
        has = {
            name for name, part in parts.items()
            if any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
        }  # fmt: skip
        self.seen.append((has, self.module.surrogate.training, self.module.clean.training))


def test_each_step_has_its_own_gradient_and_mode(attacker_view: AttackerView, monkeypatch: pytest.MonkeyPatch) -> None:
    module = alternation(attacker_view, tiny()).train()
    steps = Steps(module)
    monkeypatch.setattr(module, "optimizers", lambda: [steps, steps])
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
    module.training_step((attacker_view.train.images[:8], attacker_view.train.labels[:8]), 0)
    assert steps.seen == [({"S"}, True, False), ({"G"}, False, False)]


def test_surrogate_sees_the_trigger_on_the_target_class_only(
    attacker_view: AttackerView, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, fed = alternation(attacker_view, tiny(), share=1.0), []
    monkeypatch.setattr(module, "_step", lambda number, loss: None)
    module.surrogate.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    stored, labels = attacker_view.train.images[:8], attacker_view.train.labels[:8]
    module.training_step((stored, labels), 0)
    images = attacker_view.numerics.images(stored)
    touched = [(seen != images).flatten(1).any(1) for seen in fed]
    assert torch.equal(touched[0], labels == 0)
    assert bool(touched[1].all())


def test_mixed_precision(attacker_view: AttackerView) -> None:
    mixed = AttackerView(**{**vars(attacker_view), "numerics": Numerics(torch.device("cpu"), "bf16-mixed")})
    _, trigger = prepared(mixed)
    assert all(tensor.dtype == torch.float32 for tensor in trigger.state_dict().values())
    images = mixed.numerics.images(mixed.train.images[:2])
    with mixed.numerics.autocast():
        assert torch.equal(trigger(images), trigger(images))
        assert trigger(images).dtype == torch.float32


def test_same_seed_same_generator(
    ready: tuple[Combat, CombatTrigger, AttackerView], make_attacker_view: Callable[..., AttackerView]
) -> None:
    torch.manual_seed(1234)  # the global state must not matter
    same, other = prepared(make_attacker_view())[1], prepared(make_attacker_view(seed=1))[1]
    assert not changed(same, ready[1].state_dict())
    assert changed(other, ready[1].state_dict())


def test_poison_is_in_the_target_class_and_keeps_labels(ready: tuple[Combat, CombatTrigger, AttackerView]) -> None:
    attack, trigger, view = ready
    poisoned = attack.poison(view, trigger)
    assert poisoned.altered is not None
    assert int(poisoned.altered.sum()) == 6
    assert poisoned.ratio == 0.125
    assert bool((view.train.labels[poisoned.altered] == 0).all())
    assert torch.equal(poisoned.data.labels, view.train.labels)
    assert torch.equal((poisoned.data.images != view.train.images).flatten(1).any(1), poisoned.altered)
    assert torch.equal(poisoned.data.images, attack.poison(view, trigger).data.images)


def test_each_image_has_its_own_blur_in_training_and_test(ready: tuple[Combat, CombatTrigger, AttackerView]) -> None:
    attack, trigger, view = ready
    images = view.numerics.images(view.train.images)
    sigma = trigger.sigma(images)
    assert 0.1 <= sigma.min() < 0.2
    assert 0.9 < sigma.max() <= 1.0
    assert len(sigma.unique()) == len(images)
    poisoned = attack.poison(view, trigger)
    assert poisoned.altered is not None
    painted = blur(trigger.perturb(images), sigma).detach()
    stored = poisoned.data.images[poisoned.altered].float() / 255
    torch.testing.assert_close(stored, painted[poisoned.altered], rtol=0, atol=0.51 / 255)


def test_what_the_phases_are_given(attacker_view: AttackerView, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: list[Any] = []
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(AttackerView, "fit", lambda _, module, *__: modules.append(module))

    def make(**overrides: Any) -> Network:
        asked.append(overrides)
        return attacker_view.make_network(**overrides)

    prepared(AttackerView(**{**vars(attacker_view), "make_network": make}), surrogate_width=3)
    assert asked == [{"width": 3}, {"width": 3}]
    assert modules[1].clean is modules[0].network
    assert modules[1].poisoned_share == 0.5  # 6 of the 12 images of the target class, as for the victim
    assert modules[0].augmentation.rotation == modules[1].augmentation.rotation == 10
    assert not any(parameter.requires_grad for parameter in modules[1].clean.parameters())
    assert all(parameter.requires_grad for parameter in modules[1].surrogate.parameters())


def test_clean_model_is_trained_once_for_all_ratios_and_changes_nothing(
    ready: tuple[Combat, CombatTrigger, AttackerView], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[str] = []
    fit = AttackerView.fit

    def noted(view: AttackerView, module: Any, epochs: int, batch_size: int, title: str, *more: Any) -> Any:
        fitted.append(title)
        return fit(view, module, epochs, batch_size, title, *more)

    monkeypatch.setattr(AttackerView, "fit", noted)
    view = ready[2]
    networks = CleanNetworks(Store(tmp_path), dict.fromkeys(OF_THE_VICTIM), view.numerics)
    for ratio in (0.2, 0.125):
        _, trigger = prepared(replace(view, share=networks), poisoning_ratio=ratio)
    assert fitted == ["combat: the clean model", "combat: the generator", "combat: the generator"]
    assert len(set(networks.keys)) == 1
    assert not changed(trigger, ready[1].state_dict())


@pytest.mark.parametrize("start", ["fresh", "clean"])
def test_surrogate_starts_fresh_or_from_the_clean_model(
    start: str, attacker_view: AttackerView, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: list[Any] = []
    monkeypatch.setattr(AttackerView, "fit", lambda _, module, *__: modules.append(module))
    prepared(attacker_view, surrogate_start=start)
    same = not changed(modules[1].surrogate, modules[1].clean.state_dict())
    assert same == (start == "clean")


def test_generator_has_a_rate_of_its_own(attacker_view: AttackerView) -> None:
    module = alternation(attacker_view, tiny(lr=0.2, generator_lr=0.3, momentum=0.8, weight_decay=0.1))
    optimizers, schedules = module.configure_optimizers()
    assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [0.2, 0.3]
    assert [schedule.optimizer for schedule in schedules] == optimizers
    for optimizer, trained in zip(optimizers, (module.surrogate, module.trigger.generator), strict=True):
        assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, trained.parameters()))
        assert (optimizer.defaults["momentum"], optimizer.defaults["weight_decay"]) == (0.8, 0.1)
        assert optimizer.defaults["nesterov"]

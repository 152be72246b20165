"""What an attack may change: poison and covers, the order of augmentation, the whole training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench import seeding
from backdoor_bench.attack import Attack, AttackerView, Poisoned, Taxonomy, Trigger
from backdoor_bench.attack.badnet import BadNet, PatchTrigger
from backdoor_bench.attack.base import Victim, fit_victim, victim_draws
from backdoor_bench.dataset import Augmentation
from backdoor_bench.evaluation import triggered_set
from backdoor_bench.model import Network
from backdoor_bench.store import Store
from backdoor_bench.store.clean import OF_THE_VICTIM, CleanNetworks
from backdoor_bench.training import History


class Covered(BadNet):
    """Six poisoned images, and the next eight as covers."""

    def poison(self, view: AttackerView, trigger: Trigger) -> Poisoned:
        chosen = self.choose(view)
        others = torch.tensor([i for i in range(len(view.train)) if i not in chosen.tolist()])
        return self.stamped(view, trigger, chosen, covers=others[:8])


def test_covers_are_stamped_and_keep_their_labels(attacker_view: AttackerView) -> None:
    attack = Covered(poisoning_ratio=0.125)
    poisoned, clean = attack.poison(attacker_view, attack.trigger((32, 32))), attacker_view.train
    assert poisoned.altered is not None
    assert poisoned.covers is not None
    assert (int(poisoned.altered.sum()), int(poisoned.covers.sum()), poisoned.ratio) == (14, 8, 0.125)
    assert torch.equal((poisoned.data.images != clean.images).flatten(1).any(1), poisoned.altered)
    assert torch.equal(poisoned.data.labels[poisoned.covers], clean.labels[poisoned.covers])
    assert bool((poisoned.data.labels[poisoned.altered & ~poisoned.covers] == 0).all())


class Either(BadNet):
    """Published with both kinds of label."""

    def __init__(self, relabel: bool, **common: Any) -> None:
        self.taxonomy = replace(type(self).taxonomy, label="dirty" if relabel else "clean")
        super().__init__(**common)


def test_the_kind_of_label_may_be_an_option(attacker_view: AttackerView) -> None:
    chosen = Either(relabel=False, poisoning_ratio=0.125).choose(attacker_view)
    assert bool((attacker_view.train.labels[chosen] == 0).all())
    assert bool((attacker_view.train.labels[Either(relabel=True).choose(attacker_view)] != 0).any())
    assert BadNet.taxonomy.label == Either.taxonomy.label == "dirty"


class OfOneClass(BadNet):
    """Only images of class 2 become class 0, as label-specific attacks have it."""

    def attack_labels(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.where(labels == 2, self.target_label, labels)


def test_success_is_counted_over_the_images_whose_label_the_attack_changes(attacker_view: AttackerView) -> None:
    attack, test = OfOneClass(), attacker_view.train
    triggered = triggered_set(test, attack, attack.trigger((32, 32)), 4, attacker_view.numerics)
    assert triggered.data.labels.tolist() == [2] * 12
    assert triggered.attack_labels.tolist() == [0] * 12


class Noted(BadNet):
    """Stamps in the training step, and keeps what it was given."""

    taxonomy = replace(BadNet.taxonomy, threat="outsourced-training")

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.given: list[Tensor] = []

    def poison(self, view: AttackerView, trigger: Trigger) -> Poisoned:
        return Poisoned(view.train, None, self.poisoning_ratio)

    def training_batch(self, images: Tensor, labels: Tensor, trigger: Trigger, *_: Any) -> tuple[Tensor, Tensor]:
        self.given.append(images)
        return trigger(images), labels


class NotedAfter(Noted):
    augment_first = True


@pytest.mark.parametrize("attack", [Noted(), NotedAfter()])
def test_trigger_before_or_after_augmentation(attack: Noted, attacker_view: AttackerView, network: Network) -> None:
    black = Augmentation(crop_padding=0)
    shifted = replace(black, crop_padding=8)
    trigger, draws = attack.trigger((32, 32)), torch.Generator().manual_seed(0)
    victim = Victim(network, attacker_view.recipe, shifted, attacker_view.numerics, draws, attack, trigger)
    stored = attacker_view.train.images[:8]
    seen, _ = victim.seen(stored, attacker_view.train.labels[:8])
    plain = attacker_view.numerics.images(stored)
    if attack.augment_first:
        assert not torch.equal(attack.given[0], plain)
        assert torch.equal(seen, trigger(attack.given[0]))
        assert bool((seen[..., -3:, -3:] == 1).all())
    else:
        assert torch.equal(attack.given[0], plain)
        assert not bool((seen[..., -3:, -3:] == 1).all())


class LearnedPatch(PatchTrigger):
    """A patch that learns, with a generator's BatchNorm beside it."""

    def __init__(self) -> None:
        super().__init__((32, 32), 3)
        self.colour = nn.Parameter(torch.full((3, 1, 1), 0.5))
        self.norm = nn.BatchNorm2d(3)

    def paint(self, images: Tensor) -> Tensor:
        mask = F.pad(torch.ones(1, 1, 3, 3), (29, 0, 29, 0))
        self.norm(images)
        return images * (1 - mask) + self.colour.clamp(0, 1) * mask


class Joint(Victim):
    """Trains the trigger together with the network, by a loss of two parts and an optimiser of each."""

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = self.seen(*batch)
        triggered = self.trigger(images)
        target = torch.zeros_like(labels)
        return F.cross_entropy(self.network(images), labels) + F.cross_entropy(self.network(triggered), target)

    def configure_optimizers(self) -> Any:
        self.beside = torch.optim.Adam(self.trigger.parameters(), lr=0.01)
        return super().configure_optimizers()

    def on_train_batch_end(self, *_: Any) -> None:
        self.beside.step()
        self.beside.zero_grad()


class Phases(Attack):
    """As LIRA or SBL: the trigger learns with the victim, then the victim alone on a part of the data."""

    taxonomy = Taxonomy("dirty", "dynamic", "local", "replacement", "outsourced-training")

    def trigger(self, image_size: tuple[int, int]) -> LearnedPatch:
        return LearnedPatch()

    def poison(self, view: AttackerView, trigger: Trigger) -> Poisoned:
        return Poisoned(view.train, None, self.poisoning_ratio)

    def train(self, network: Network, trigger: Trigger, poisoned: Poisoned, view: AttackerView) -> History:
        draws = victim_draws(view.seed, view.numerics)
        trigger.train().requires_grad_(True)
        joint = Joint(network, view.recipe, view.augmentation, view.numerics, draws, trigger=trigger)
        history = fit_victim(joint, poisoned.data, view.seed)
        alone = Victim(network, view.recipe, view.augmentation, view.numerics, view.generator("consolidate"))
        after = view.fit(alone, 2, 8, "consolidate", data=poisoned.data[torch.arange(16)])
        return History(history.loss + after.loss, history.seconds + after.seconds)


def test_attack_may_train_in_phases_and_its_trigger_with_the_victim(train: Any) -> None:
    trained = train(Phases())
    assert len(trained.history.loss) == 3
    assert bool((trained.trigger.colour != 0.5).all())
    assert int(trained.trigger.norm.num_batches_tracked) == 3  # 48 images in batches of 16
    assert not trained.trigger.training
    assert not trained.network.training
    assert not any(parameter.requires_grad for parameter in trained.trigger.parameters())
    state = torch.get_rng_state()
    again = train(Phases())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.trigger.colour, trained.trigger.colour)
    assert all(map(torch.equal, again.network.state_dict().values(), trained.network.state_dict().values()))


def test_victims_of_different_attacks_begin_alike_and_see_the_same_order(train: Any, monkeypatch: Any) -> None:
    first: list[Tensor] = []
    real = Victim.seen

    def seen(victim: Victim, stored: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        first.append(next(victim.network.parameters()).detach().clone())
        return real(victim, stored, labels)

    monkeypatch.setattr(Victim, "seen", seen)
    losses = [train(attack).history.loss for attack in (None, OfOneClass(poisoning_ratio=1 / 48), BadNet())]
    assert torch.equal(first[0], first[3])
    assert torch.equal(first[0], first[6])
    assert len({tuple(loss) for loss in losses}) == 3


def test_clean_network_is_trained_frozen_and_repeatable(attacker_view: AttackerView) -> None:
    state = torch.get_rng_state()
    made = attacker_view.clean_network("surrogate", num_classes=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert made.num_classes == 5
    assert not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())
    fresh = attacker_view.new_network("surrogate", num_classes=5)
    assert not torch.equal(next(made.parameters()), next(fresh.parameters()))
    again = attacker_view.clean_network("surrogate", num_classes=5)
    assert all(map(torch.equal, made.state_dict().values(), again.state_dict().values()))
    few = attacker_view.clean_network("surrogate", data=attacker_view.train[torch.arange(16)], num_classes=5)
    assert not torch.equal(next(few.parameters()), next(made.parameters()))


def test_clean_network_is_trained_once_for_all_who_need_the_same(attacker_view: AttackerView, tmp_path: Path) -> None:
    trained: list[str] = []
    identity = dict.fromkeys(OF_THE_VICTIM, "the same")

    def ask(of: Mapping[str, Any] = identity, **options: Any) -> Network:
        networks = CleanNetworks(Store(tmp_path), of, attacker_view.numerics)

        def share(network: Network, told: Mapping[str, Any], train: Callable[[], object]) -> None:
            networks(network, told, lambda: (trained.append(told["title"]), train()))

        made = replace(attacker_view, share=share).clean_network(**options)
        assert networks.store.load("clean", *networks.keys) is not None
        return made

    first, found, alone = ask(), ask(), attacker_view.clean_network()
    assert trained == ["clean network"]
    for network in (found, alone):
        assert all(map(torch.equal, network.state_dict().values(), first.state_dict().values()))
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    slower = replace(attacker_view.recipe, optimizer=partial(torch.optim.SGD, lr=0.01))
    others: list[dict[str, Any]] = [
        {"title": "another"}, {"recipe": slower}, {"augmentation": Augmentation(flip=True)}, {"num_classes": 5},
        {"data": attacker_view.train[torch.arange(16)]}, {"of": {**identity, "seed": 1}},
    ]  # fmt: skip
    for number, options in enumerate(others, start=2):
        ask(**options)
        assert len(trained) == number, options


def test_names_give_different_weights(attacker_view: AttackerView) -> None:
    one, two = (next(attacker_view.new_network(name).parameters()) for name in ("one", "two"))
    assert not torch.equal(one, two)
    with seeding.scope(5):
        assert torch.equal(next(attacker_view.new_network("one").parameters()), one)

"""Small things that many tests need: random images, a tiny network, the views of attacker and defender."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch

import backdoor_bench.config
from backdoor_bench import capability
from backdoor_bench.attack import AttackerView
from backdoor_bench.dataset import Augmentation, ImageSet
from backdoor_bench.model.preact_resnet18 import PreActResNet18
from backdoor_bench.numerics import Numerics
from backdoor_bench.stage import DefenderView
from backdoor_bench.training import Recipe

CLASSES = 4

# Lengths at which every stage of every method still does its work, for the runs that `compose` makes: the least, which
# follow from conf/, but for a few.
SHORT = capability.least_lengths() | {
    "anp_batch_size": 16,
    "anp_iterations": 4,
    "combat_generator_width": 2,
    "gradprune_rounds": 2,
    "inversion_epochs": 2,
    "inversion_images": 10,
    "tsbd_epochs": 1,
    "tsbd_unlearn_epochs": 2,
    "unit_steps": 2,
}

# Results must not depend on the machine's cores, and tests of several processes share them.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def numerics() -> Numerics:
    """The CPU in float32, whatever the machine has."""
    return Numerics(torch.device("cpu"), "32-true")


@pytest.fixture(scope="session")
def image_set() -> ImageSet:
    """48 random images of 32x32, labels 0, 1, 2, 3, 0, ...; shared by all tests: clone before changing."""
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8, generator=draws)
    return ImageSet(images, torch.arange(48) % CLASSES)


@pytest.fixture(scope="session")
def make_network() -> Callable[..., PreActResNet18]:
    """A fresh PreActResNet18 of width 2 for the four classes; overrides go to its constructor."""

    def make(**overrides: object) -> PreActResNet18:
        return PreActResNet18(**{"num_classes": CLASSES, "width": 2, **overrides})

    return make


@pytest.fixture
def network(make_network: Callable[..., PreActResNet18]) -> PreActResNet18:
    """One such network, the same weights in every test, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_network().eval()


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """One epoch of SGD in batches of 16."""
    return Recipe(epochs=1, batch_size=16, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9))


@pytest.fixture(scope="session")
def make_attacker_view(
    image_set: ImageSet, numerics: Numerics, recipe: Recipe, make_network: Callable[..., PreActResNet18]
) -> Callable[..., AttackerView]:
    """An attacker's view of the random images, or of others: ``make_attacker_view(seed=1)``."""

    def make(seed: int = 0, train: ImageSet = image_set, num_classes: int = CLASSES) -> AttackerView:
        return AttackerView(train, num_classes, Augmentation(), numerics, recipe, seed, make_network)

    return make


@pytest.fixture
def attacker_view(make_attacker_view: Callable[..., AttackerView]) -> AttackerView:
    return make_attacker_view()


@pytest.fixture
def defender_view(image_set: ImageSet, numerics: Numerics) -> DefenderView:
    """40 of the random images to train on, 8 to validate on."""
    index = torch.arange(len(image_set))
    return DefenderView(image_set[index[:40]], image_set[index[40:]], CLASSES, Augmentation(), numerics)


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A composed, resolved configuration of a tiny digits run: ``compose("+attack=badnet", "seed=1")``.

    One epoch of a width-2 network on the CPU, in a store of the test's own, methods at SHORT lengths (``lengths={}``:
    as configured); what the test says comes last and wins.
    """
    small = ["recipe.epochs=1", "recipe.width=2", "device=cpu", "trainer.precision=32-true"]

    def make(*overrides: str, lengths: Mapping[str, int] = SHORT) -> dict[str, Any]:
        shortened = [f"++preset.lengths.{name}={value}" for name, value in lengths.items()]
        with hydra.initialize_config_dir(str(backdoor_bench.config.directory()), version_base="1.3"):
            config = hydra.compose("config", [f"store_dir={tmp_path / 'store'}", *small, *shortened, *overrides])
        return backdoor_bench.config.plain(config)

    return make

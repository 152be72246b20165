from __future__ import annotations

from collections.abc import Callable

import pytest

from backdoor_bench.attack import Attack, train_victim
from backdoor_bench.attack.base import TrainedVictim
from backdoor_bench.dataset import Augmentation, Data, ImageSet
from backdoor_bench.dataset.base import describe
from backdoor_bench.model import Network
from backdoor_bench.numerics import Numerics
from backdoor_bench.training import Recipe


@pytest.fixture(scope="session")
def train(
    image_set: ImageSet, make_network: Callable[..., Network], recipe: Recipe, numerics: Numerics
) -> Callable[..., TrainedVictim]:
    """``train(attack, seed=0)``: a victim of the random images, trained for one epoch."""
    manifest = describe("random", "", tuple("abcd"), image_set, image_set)
    data = Data(image_set, image_set, manifest, Augmentation(crop_padding=2))

    def make(attack: Attack | None, seed: int = 0) -> TrainedVictim:
        return train_victim(data, make_network, attack, recipe, numerics, seed)

    return make

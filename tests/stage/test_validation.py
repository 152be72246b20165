from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoor_bench.dataset import ImageSet
from backdoor_bench.numerics import Numerics
from backdoor_bench.stage.validation import accuracy, tolerance, within


class Brightness(nn.Module):
    """Class 1 for images that are bright on average, else 0."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([1 - mean, mean], 1)


@pytest.mark.parametrize("batch_size", [1, 3, 500])
def test_counts_what_is_right(numerics: Numerics, batch_size: int) -> None:
    images = torch.tensor([0, 255, 255, 0], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    network = Brightness().train()
    assert accuracy(network, ImageSet(images, torch.tensor([0, 1, 0, 0])), numerics, batch_size) == 0.75
    assert not network.training


def test_no_images(numerics: Numerics, image_set: ImageSet) -> None:
    with pytest.raises(ValueError, match="no images"):
        accuracy(Brightness(), image_set[torch.arange(0)], numerics)


def test_tolerance_is_one_image_where_that_is_more() -> None:
    assert tolerance(0.02, 200) == 0.02
    assert tolerance(0.02, 10) == 0.1


def test_a_tolerated_drop_survives_the_rounding_of_fractions() -> None:
    assert within(0.93, 0.83, 0.1)  # 0.10000000000000009
    assert within(0.9, 1.0, 0.0)
    assert not within(0.93, 0.82, 0.1)

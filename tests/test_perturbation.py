"""Perturbations by hand, and against what they are for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench.errors import ConfigError
from backdoor_bench.perturbation import Ball, ascend, perturb

GREY = torch.full((2, 3, 1, 1), 0.5)


def column(*rows: list[float]) -> Tensor:
    """Perturbations of one pixel each."""
    return torch.tensor(rows).view(len(rows), 3, 1, 1)


@pytest.mark.parametrize(
    ("norm", "projected"),
    [
        ("linf", [[2.0, -2.0, 0.0], [0.5, 0.0, 0.0]]),
        ("l2", [[1.2, -1.6, 0.0], [0.5, 0.0, 0.0]]),  # of length 5, so times 2 / 5
        ("l1", [[6 / 7, -8 / 7, 0.0], [0.5, 0.0, 0.0]]),
    ],
)
def test_projection_of_each_by_hand(norm: Any, projected: list[list[float]]) -> None:
    found = Ball(norm, 2.0).project(column([3.0, -4.0, 0.0], [0.5, 0.0, 0.0]))
    torch.testing.assert_close(found, column(*projected))
    assert not Ball(norm, 2.0).project(torch.zeros(1, 3, 1, 1)).any()


@pytest.mark.parametrize(
    ("rule", "moved"), [("sign", [1.5, 0.5, 1.0]), ("unit", [1.3, 0.6, 1.0]), ("raw", [2.5, -1.0, 1.0])]
)
def test_a_step_by_hand(rule: Any, moved: list[float]) -> None:
    before, gradient = column([1.0, 1.0, 1.0]), column([3.0, -4.0, 0.0])
    torch.testing.assert_close(ascend(before, gradient, 0.5, rule), column(moved))
    down = ascend(before, gradient, -0.5, rule, Ball("linf", 1.0))
    torch.testing.assert_close(down, (2 * before - column(moved)).clamp(-1, 1))
    assert torch.equal(ascend(before, torch.zeros_like(before), 0.5, rule), before)


def test_steps_end_at_the_corner_of_the_ball() -> None:
    slope = column([1.0, -2.0, 0.5], [-1.0, 0.0, 3.0])
    found = perturb(lambda x: (slope * x).sum(), GREY, 5, 0.1, ball=Ball("linf", 0.25))
    torch.testing.assert_close(found, 0.25 * slope.sign())
    round_ball = perturb(lambda x: (slope * x).sum(), GREY, 50, 0.1, "unit", Ball("l2", 0.25))
    torch.testing.assert_close(round_ball, 0.25 * slope / torch.linalg.vector_norm(slope, dim=1, keepdim=True))


def test_one_perturbation_for_all_images_follows_their_sum() -> None:
    slope, start = column([1.0, -2.0, 0.5], [-4.0, 0.0, 1.0]), torch.full((1, 3, 1, 1), 0.1)
    found = perturb(lambda x: (slope * x).sum(), GREY, 2, 0.01, "raw", start=start)
    torch.testing.assert_close(found, start + 0.02 * slope.sum(0, keepdim=True))
    with pytest.raises(ValueError, match="clip needs a perturbation for each image"):
        perturb(lambda x: x.sum(), GREY, 1, 0.1, start=start, clip=True)


@pytest.mark.parametrize(("clip", "reached"), [(True, 0.5), (False, 0.6)])
def test_pixels_stay_in_range_where_asked(clip: bool, reached: float) -> None:
    found = perturb(lambda x: x.sum(), GREY, 6, 0.1, clip=clip)
    torch.testing.assert_close(found, torch.full_like(GREY, reached))
    assert torch.equal(GREY, torch.full((2, 3, 1, 1), 0.5))


def test_a_start_is_taken_as_it_is() -> None:
    start = torch.full_like(GREY, 0.2)
    assert torch.equal(perturb(lambda x: x.sum(), GREY, 0, 0.1, ball=Ball("linf", 0.1), start=start), start)
    seen: list[Tensor] = []

    def objective(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return images.sum()

    found = perturb(objective, GREY, 1, 0.1, ball=Ball("linf", 0.1), start=start)
    assert torch.equal(seen[0], GREY + 0.2)
    torch.testing.assert_close(found, torch.full_like(GREY, 0.1))


@pytest.mark.parametrize("mixed", [False, True])
def test_a_network_is_fooled_and_left_as_it_was(mixed: bool, network: nn.Module, image_set: Any, numerics: Any) -> None:
    images = numerics.images(image_set.images[:16])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    labels = network(images).argmax(1)

    def objective(seen: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return F.cross_entropy(network(seen), labels)

    with torch.no_grad():  # as measurements are made; a gradient is taken all the same
        found = perturb(objective, images, 5, 2 / 255, ball=Ball("linf", 8 / 255), clip=True)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert found.abs().max() <= 8 / 255 + 1e-6
    assert 0 <= (images + found).min() <= (images + found).max() <= 1
    assert objective(images + found) > objective(images)
    assert not network.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown norm 'l3'"):
        Ball("l3", 1.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a radius of -1"):
        Ball("l2", -1.0)
    with pytest.raises(ConfigError, match=r"unknown rule 'signed'. Did you mean sign"):
        ascend(GREY, GREY, 1.0, "signed")  # type: ignore[arg-type]

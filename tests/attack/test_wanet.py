"""WaNet, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from backdoor_bench.attack import AttackerView
from backdoor_bench.attack.wanet import WaNet, WarpTrigger, control_field, identity_grid, jitter, warp, warping_grid
from backdoor_bench.dataset import Augmentation, ImageSet
from backdoor_bench.errors import ConfigError


def prepared(view: AttackerView, **options: Any) -> tuple[WaNet, WarpTrigger]:
    attack = WaNet(**options)
    trigger = attack.trigger((32, 32))
    attack.prepare(trigger, view)
    return attack, trigger


def step(attack: WaNet, trigger: WarpTrigger, images: Tensor, labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    return attack.training_batch(images, labels, trigger, 4, torch.Generator().manual_seed(seed))


def test_identity_grid_has_the_column_first() -> None:
    assert identity_grid((2, 3)).tolist() == [[[[-1, -1], [0, -1], [1, -1]], [[-1, 1], [0, 1], [1, 1]]]]


def test_strength_zero_returns_the_image() -> None:
    images = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    field = control_field(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(warp(images, warping_grid(field, (5, 7), 0.0)), images)


def test_constant_field_shifts_by_one_column() -> None:
    # A pixel of five is 2 / 4 in grid units, and strength / 5 is what a field of 1 adds: strength 2.5 is one pixel.
    field = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])[None]
    images = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).expand(1, 3, 5, 5)
    warped = warp(images, warping_grid(field, (5, 5), 2.5))
    # The last column stays: the grid is clamped, nothing is read from outside.
    torch.testing.assert_close(warped, torch.tensor([0.2, 0.3, 0.4, 0.5, 0.5]).expand(1, 3, 5, 5))


def test_control_field_has_mean_magnitude_one() -> None:
    field = control_field(4, torch.Generator().manual_seed(3))
    assert field.shape == (1, 2, 4, 4)
    assert field.abs().mean().item() == pytest.approx(1)


def test_the_warp_is_sub_pixel(attacker_view: AttackerView) -> None:
    _, trigger = prepared(attacker_view)
    pixels = (trigger.grid - identity_grid((32, 32))) * 31 / 2
    assert 0.05 < pixels.abs().mean().item() < 0.3
    assert pixels.abs().max().item() < 1


def test_jitter_moves_by_up_to_half_a_pixel() -> None:
    grid = torch.zeros(1, 1, 2, 2)
    uniform = torch.tensor([[1.0, -1.0], [0.5, 0.0]]).view(1, 1, 2, 2)
    # x is divided by the width 2, y by the height 1, and the result is kept inside the image.
    assert jitter(grid, uniform).tolist() == [[[[0.5, -1.0], [0.25, 0.0]]]]
    assert jitter(grid + 0.75, uniform).tolist() == [[[[1.0, -0.25], [1.0, 0.75]]]]


def test_noise_mode_test_images_have_their_own_noise_and_their_true_labels(attacker_view: AttackerView) -> None:
    attack, trigger = prepared(attacker_view)
    test, numerics = attacker_view.train, attacker_view.numerics
    noisy = attack.test_sets(test, trigger, 4, numerics)["noise_acc"]
    assert torch.equal(noisy.labels, test.labels)
    images = numerics.images(test.images)
    for clean, triggered, stored in zip(images, trigger(images), noisy.images, strict=True):
        assert not torch.allclose(stored / 255, triggered, atol=0.05)
        assert not torch.allclose(stored / 255, clean, atol=0.05)
    # A constant image has nothing to warp; the noise of an image does not depend on its neighbours.
    grey = ImageSet(torch.full_like(test.images[:2], 90), test.labels[:2])
    assert bool((attack.test_sets(grey, trigger, 4, numerics)["noise_acc"].images == 90).all())
    few = attack.test_sets(test[torch.tensor([5, 2])], trigger, 4, numerics)["noise_acc"]
    assert torch.equal(few.images, noisy.images[[5, 2]])


def test_a_step_has_backdoor_rows_then_noise_rows_then_clean_rows(attacker_view: AttackerView) -> None:
    attack, trigger = prepared(attacker_view, poisoning_ratio=0.125, cross_ratio=2.0)
    images = attacker_view.numerics.images(attacker_view.train.images[:16])
    before, labels = images.clone(), torch.full((16,), 3)
    seen, relabelled = step(attack, trigger, images, labels)
    torch.testing.assert_close(seen[:2], trigger(images[:2]))
    assert relabelled.tolist() == [0, 0] + [3] * 14
    for noisy, clean in zip(seen[2:6], images[2:6], strict=True):
        assert not torch.equal(noisy, clean)
        assert not torch.allclose(noisy, trigger(clean[None])[0], atol=0.05)
    assert torch.equal(seen[6:], images[6:])
    assert torch.equal(images, before)
    assert torch.equal(labels, torch.full((16,), 3))


def test_no_noise_mode(attacker_view: AttackerView) -> None:
    attack, trigger = prepared(attacker_view, poisoning_ratio=0.125, cross_ratio=0.0)
    images = attacker_view.numerics.images(attacker_view.train.images[:16])
    seen, _ = step(attack, trigger, images, torch.ones(16, dtype=torch.int64))
    assert torch.equal(seen[2:], images[2:])


@pytest.mark.parametrize("ratio", [0.1, 0.01])
def test_backdoor_rows_are_exact_on_average(attacker_view: AttackerView, ratio: float) -> None:
    attack, trigger = prepared(attacker_view, poisoning_ratio=ratio)
    images = attacker_view.numerics.images(attacker_view.train.images[:16])
    labels, draws = torch.ones(16, dtype=torch.int64), torch.Generator().manual_seed(0)
    rows, noisy = [], []
    for _ in range(200):
        seen, relabelled = attack.training_batch(images, labels, trigger, 4, draws)
        rows.append(int((relabelled == 0).sum()))
        noisy.append(int((seen != images).flatten(1).any(1).sum()) - rows[-1])
    assert set(rows) == ({1, 2} if ratio == 0.1 else {0, 1})
    assert noisy == [2 * count for count in rows]
    assert sum(rows) / 200 == pytest.approx(16 * ratio, abs=0.1)


def test_augmentation_comes_after_the_trigger_and_keeps_the_flip() -> None:
    for flip in (False, True):
        expected = Augmentation(5, crop_probability=0.8, flip=flip, rotation=10.0, rotation_probability=0.5)
        assert WaNet().augmentation(Augmentation(crop_padding=4, flip=flip)) == expected


def test_batch_that_would_overflow_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"poisoning_ratio=0\.5 with attack\.cross_ratio=2\.0 needs 1\.50 of each"):
        WaNet(poisoning_ratio=0.5)


@pytest.mark.parametrize(("option", "value"), [("control_points", 1), ("strength", -0.5), ("cross_ratio", -1.0)])
def test_option_out_of_range_is_an_error(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.{option}={value}"):
        WaNet(**{option: value})

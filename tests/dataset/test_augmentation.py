"""Crop, flip and rotation."""

from __future__ import annotations

import torch

from backdoor_bench import seeding
from backdoor_bench.dataset import Augmentation


def numbered(batch: int = 64, side: int = 6) -> torch.Tensor:
    """(batch, 3, side, side) float whose pixels are all different within an image, and none is zero."""
    one = torch.arange(1, 3 * side * side + 1, dtype=torch.float32).view(1, 3, side, side)
    return one.repeat(batch, 1, 1, 1)


def test_without_options_nothing_changes() -> None:
    images = numbered()
    assert Augmentation()(images, seeding.generator(0)) is images


def test_crop_shifts_each_image_and_fills_with_zeros() -> None:
    images = numbered(256, 4)
    out = Augmentation(crop_padding=1)(images, seeding.generator(0))
    padded = torch.nn.functional.pad(images[0], (1, 1, 1, 1))
    allowed = [padded[:, y : y + 4, x : x + 4] for y in range(3) for x in range(3)]
    met = [next(i for i, crop in enumerate(allowed) if torch.equal(crop, image)) for image in out]
    assert set(met) == set(range(9))


def test_flip_mirrors_about_half() -> None:
    images = numbered(400)
    out = Augmentation(flip=True)(images, seeding.generator(0))
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    kept = (out == images).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert 140 < int(mirrored.sum()) < 260


def test_crop_probability_zero_keeps_every_image() -> None:
    images = numbered()
    assert torch.equal(Augmentation(crop_padding=2, crop_probability=0.0)(images, seeding.generator(0)), images)


def test_uint8_stays_uint8() -> None:
    images = torch.randint(0, 256, (8, 3, 5, 7), dtype=torch.uint8)
    out = Augmentation(crop_padding=2, flip=True)(images, seeding.generator(0))
    assert out.dtype == torch.uint8
    assert out.shape == images.shape


def test_images_that_are_not_square() -> None:
    images = numbered(1, 6)[:, :, :4]
    out = Augmentation(flip=True)(images.repeat(50, 1, 1, 1), seeding.generator(1))
    assert out.shape == (50, 3, 4, 6)
    assert all(torch.equal(image, images[0]) or torch.equal(image, images[0].flip(2)) for image in out)


def test_the_generator_decides() -> None:
    images, augmentation = numbered(), Augmentation(crop_padding=2, flip=True, rotation=10)
    first, again = (augmentation(images, seeding.generator("a")) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augmentation(images, seeding.generator("b")))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    Augmentation(crop_padding=2, flip=True, rotation=10)(numbered(), seeding.generator(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_pass_through() -> None:
    images = numbered(3).requires_grad_()
    Augmentation(flip=True)(images, seeding.generator(0)).sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, torch.ones_like(images))


def test_rotation_by_zero_degrees_is_the_identity() -> None:
    images = numbered()
    out = Augmentation(rotation=10, rotation_probability=0.0)(images, seeding.generator(0))
    torch.testing.assert_close(out, images)


def test_rotation_turns_about_the_middle_within_its_angle() -> None:
    images = torch.zeros(200, 3, 33, 33)
    images[:, :, 16, 28:] = 1  # a pointer to the right
    out = Augmentation(rotation=30)(images, seeding.generator(0))
    rows = torch.arange(33.0) - 16
    columns = torch.arange(33.0) - 16
    weight = out[:, 0]
    angle = torch.atan2((weight * rows[:, None]).sum((1, 2)), (weight * columns).sum((1, 2))).rad2deg()
    assert angle.abs().max() < 31
    assert angle.min() < -25
    assert angle.max() > 25


def test_rotation_keeps_shapes_in_images_that_are_not_square() -> None:
    """A pointer of 12 pixels turns about the middle and stays as long."""
    square, wide = torch.zeros(50, 3, 33, 33), torch.zeros(50, 3, 33, 65)
    square[:, :, 16, 28] = wide[:, :, 16, 44] = 1
    turned = Augmentation(rotation=30)(square, seeding.generator(0))
    assert torch.allclose(Augmentation(rotation=30)(wide, seeding.generator(0))[..., 16:49], turned, atol=1e-4)


def test_rotation_is_as_exact_inside_mixed_precision() -> None:
    images, augmentation = torch.rand(4, 3, 32, 32, generator=seeding.generator(1)), Augmentation(rotation=10)
    plain = augmentation(images, seeding.generator(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = augmentation(images, seeding.generator(0))
    assert torch.equal(mixed, plain)

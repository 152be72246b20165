"""BadNets, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from backdoor_bench.attack import AttackerView, stamp
from backdoor_bench.attack.badnet import BadNet, enlarged_square, paste
from backdoor_bench.dataset import ImageSet
from backdoor_bench.errors import ConfigError


def test_paste_replaces_a_rectangle_of_a_copy() -> None:
    images = torch.zeros(2, 3, 3, 4)
    pasted = paste(images, torch.full((3, 1, 2), 0.5), top=1, left=2)
    assert pasted[1, 2].tolist() == [[0, 0, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 0]]
    assert not images.any()


@pytest.mark.parametrize(("side", "size"), [(32, 3), (64, 6), (8, 1)])
def test_white_square_in_the_bottom_right_corner(side: int, size: int) -> None:
    painted = BadNet().trigger((side, side))(torch.zeros(1, 3, side, side))
    expected = torch.zeros(1, 3, side, side)
    expected[:, :, side - size :, side - size :] = 1
    assert torch.equal(painted, expected)


def test_size_is_an_option() -> None:
    assert int(BadNet(size=5).trigger((32, 32))(torch.zeros(1, 3, 32, 32)).sum()) == 3 * 25


def test_patch_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"a patch of 40x40 pixels does not fit an image of 32x32; lower attack\.size"
    ):
        BadNet(size=40).trigger((32, 32))
    with pytest.raises(ConfigError, match="a patch of 32x32 pixels does not fit"):
        BadNet(size=32, patch="colour").trigger((32, 32))  # one pixel of margin


def test_patch_is_one_of_three() -> None:
    with pytest.raises(ConfigError, match=r"unknown attack\.patch 'whit'\. Did you mean white\?"):
        BadNet(patch="whit")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"attack\.size=6 with attack\.patch=enlarged"):
        BadNet(size=6, patch="enlarged")


def test_enlarged_square_is_that_of_the_card(make_attacker_view: Callable[..., AttackerView]) -> None:
    assert torch.equal(enlarged_square((32, 32)), torch.ones(3, 3, 3))
    profile = torch.tensor([64, 191, 255, 255, 255, 255, 255]) / 255  # rows and columns 57 to 63
    expected = torch.outer(profile, profile)
    torch.testing.assert_close(enlarged_square((64, 64)), expected.expand(3, 7, 7), rtol=0, atol=0.7 / 255)
    images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    view = make_attacker_view(train=ImageSet(images, torch.arange(4)))
    attack = BadNet(patch="enlarged")
    trigger = attack.trigger((64, 64))
    attack.prepare(trigger, view)
    painted = trigger(torch.full((1, 3, 64, 64), 0.5))
    assert torch.equal(painted[0, :, 57:, 57:], trigger.patch)
    assert bool((painted[..., :57, :] == 0.5).all())
    assert bool((painted[..., :57] == 0.5).all())


@pytest.mark.parametrize(("side", "size", "margin"), [(32, 5, 1), (64, 10, 2)])
def test_coloured_patch_near_the_top_left_corner(
    side: int, size: int, margin: int, make_attacker_view: Callable[..., AttackerView]
) -> None:
    attack = BadNet(patch="colour")
    patches = []
    for seed in (0, 0, 1):
        trigger = attack.trigger((side, side))
        attack.prepare(trigger, make_attacker_view(seed=seed))
        patches.append(trigger.patch)
    painted = trigger(torch.full((1, 3, side, side), -1.0))[0]
    assert torch.equal(painted[:, margin : margin + size, margin : margin + size], patches[2])
    assert int((painted != -1).sum()) == 3 * size * size
    assert torch.equal(patches[0], patches[1])
    assert not torch.equal(patches[0], patches[2])


def test_poisoned_images_are_the_stamped_ones(attacker_view: AttackerView) -> None:
    attack = BadNet(poisoning_ratio=0.25, target_label=1)
    trigger = attack.trigger((32, 32))
    poisoned = attack.poison(attacker_view, trigger)
    clean = attacker_view.train.images
    assert poisoned.altered is not None
    assert torch.equal(
        poisoned.data.images[poisoned.altered], stamp(trigger, clean, attacker_view.numerics)[poisoned.altered]
    )
    assert torch.equal(poisoned.data.images[..., :29], clean[..., :29])


def test_the_draw_includes_the_target_class(attacker_view: AttackerView) -> None:
    attack = BadNet(poisoning_ratio=0.75, target_label=0)
    chosen = attack.choose(attacker_view)
    assert len(chosen) == 36
    assert bool((attacker_view.train.labels[chosen] == 0).any())

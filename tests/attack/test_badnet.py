"""BadNets, by hand."""

from __future__ import annotations

import pytest
import torch

from backdoor_bench.attack import AttackerView, stamp
from backdoor_bench.attack.badnet import BadNet, paste


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
    with pytest.raises(ValueError, match="a patch of 40 pixels does not fit an image of 32x32"):
        BadNet(size=40).trigger((32, 32))


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

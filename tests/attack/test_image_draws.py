"""Random numbers that an image brings along."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from backdoor_bench.attack.image_draws import _mix, image_draws


def images(count: int, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), generator=draws).float() / 255


def test_finaliser_is_that_of_splitmix64() -> None:
    # The first outputs for the seed 0: state 1 and 2 times the golden ratio's fraction.
    golden = -7046029254386353131
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    found = [value % 2**64 for value in _mix(golden * torch.tensor([1, 2])).tolist()]
    assert found == expected


def test_numbers_belong_to_the_image_and_the_name() -> None:
    batch = images(5)
    drawn = image_draws(batch, 3, "place")
    assert torch.equal(image_draws(batch[3:4], 3, "place"), drawn[3:4])
    assert torch.equal(image_draws(batch.flip(0), 3, "place"), drawn.flip(0))
    assert torch.equal(image_draws(batch.to(memory_format=torch.channels_last), 3, "place"), drawn)
    assert torch.equal(image_draws(batch, 2, "place"), drawn[:, :2])
    assert torch.equal(image_draws(batch + 0.3 / 255, 3, "place"), drawn)  # the same bytes
    assert not torch.equal(image_draws(batch, 3, "pattern"), drawn)
    changed = batch.clone()
    changed[2, 1, 4, 4] += torch.where(changed[2, 1, 4, 4] > 0.5, -1, 1) / 255
    assert (image_draws(changed, 3, "place") == drawn).all(1).tolist() == [True, True, False, True, True]


def test_numbers_are_uniform_also_for_images_that_are_alike() -> None:
    flat = torch.zeros(2000, 3, 8, 8)  # all black, but for one pixel that says which one it is
    flat[:, 0, 0, 0], flat[:, 1, 3, 5] = torch.arange(2000) % 250 / 255, torch.arange(2000) // 250 / 255
    for batch in (images(2000), flat):
        drawn = image_draws(batch, 4, "test").double()
        assert drawn.min() >= 0
        assert drawn.max() < 1
        counts = torch.stack([column.histc(10, 0, 1) for column in drawn.T])
        assert bool(((counts - 200).abs() < 65).all())  # five deviations of a binomial
        assert bool((torch.corrcoef(drawn.T) - torch.eye(4, dtype=torch.float64)).abs().max() < 0.1)


def test_nobody_waits_for_the_device() -> None:
    batch = images(3)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert image_draws(fake.from_tensor(batch), 2, "test").shape == (3, 2)

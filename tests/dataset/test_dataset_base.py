"""Image sets, batches, draws, manifests."""

from __future__ import annotations

import pytest
import torch

from backdoor_bench import seeding
from backdoor_bench.dataset import Batches, Draws, ImageSet
from backdoor_bench.dataset.base import describe, fingerprint


def counted(count: int) -> ImageSet:
    """Image i is filled with i, and so is its label."""
    values = torch.arange(count)
    return ImageSet(values.to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous(), values)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), r"expected uint8 \(N, 3, H, W\), got torch.float32"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2).long(), r"got torch.uint8 \(2, 1, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3).long(), r"expected int64 \(2,\), got"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), r"got torch.float32 \(2,\)"),
    ],
)
def test_an_image_set_refuses_what_it_is_not(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSet(images, labels)


def test_an_image_set_is_indexed_by_positions_and_masks() -> None:
    data = counted(5)
    assert data[torch.tensor([3, 1])].labels.tolist() == [3, 1]
    assert data[data.labels > 2].images[:, 0, 0, 0].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("count", "batch", "drop_last", "sizes"),
    [
        (10, 4, False, [4, 4, 2]),
        (10, 4, True, [4, 4]),
        (8, 4, True, [4, 4]),
        (9, 4, False, [4, 5]),  # no batch of one: BatchNorm
        (3, 4, True, [3]),  # dropping it would leave nothing
        (1, 4, False, [1]),
        (3, 1, False, [1, 2]),
    ],
)
def test_batch_sizes(count: int, batch: int, drop_last: bool, sizes: list[int]) -> None:
    batches = Batches(counted(count), batch, drop_last=drop_last)
    assert [len(labels) for _, labels in batches] == sizes
    assert len(batches) == len(sizes)


def test_without_a_generator_in_order_and_images_stay_with_their_labels() -> None:
    images, labels = (torch.cat(parts) for parts in zip(*Batches(counted(10), 3), strict=True))
    assert labels.tolist() == list(range(10))
    assert images[:, 0, 0, 0].tolist() == list(range(10))


def test_each_epoch_is_another_permutation_and_the_seed_decides() -> None:
    def epochs() -> list[list[int]]:
        batches = Batches(counted(20), 6, seeding.generator("order"))
        return [torch.cat([labels for _, labels in batches]).tolist() for _ in range(2)]

    first, second = epochs()
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert epochs() == [first, second]


def test_drop_last_drops_other_images_each_epoch() -> None:
    batches = Batches(counted(10), 4, seeding.generator(0), drop_last=True)
    kept = [frozenset(torch.cat([labels for _, labels in batches]).tolist()) for _ in range(5)]
    assert {len(epoch) for epoch in kept} == {8}
    assert len(set(kept)) > 1


def test_batches_of_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match="batches of 4 from 0 images"):
        Batches(counted(0), 4)
    with pytest.raises(ValueError, match="batches of 0 from 3 images"):
        Batches(counted(3), 0)


def test_draws_are_with_replacement_and_seeded() -> None:
    def labels() -> list[list[int]]:
        return [y.tolist() for _, y in Draws(counted(4), 8, 3, seeding.generator("draws"))]

    assert [len(batch) for batch in labels()] == [8, 8, 8]
    assert labels() == labels()
    assert {label for batch in labels() for label in batch} == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="cannot draw 0 batches of 8 from 4 images"):
        Draws(counted(4), 8, 0, seeding.generator(0))


def test_a_manifest_counts_every_class() -> None:
    data = counted(3)
    manifest = describe("d", "v", ("a", "b", "c", "d"), data, data[torch.tensor([1, 1, 3 - 1])])
    assert manifest.train_counts == (1, 1, 1, 0)
    assert manifest.test_counts == (0, 2, 1, 0)
    assert manifest.image_size == (2, 2)
    assert manifest.num_classes == 4


def test_a_fingerprint_is_of_shape_pixels_and_labels() -> None:
    data = counted(4)
    assert fingerprint(data) == fingerprint(ImageSet(data.images.clone(), data.labels.clone()))
    changed = data.images.clone()
    changed[2, 1, 0, 1] += 1
    others = [
        ImageSet(changed, data.labels),
        ImageSet(data.images, data.labels.flip(0)),
        ImageSet(data.images.view(4, 3, 1, 4), data.labels),
    ]
    assert len({fingerprint(data), *map(fingerprint, others)}) == 4
    strided = ImageSet(data.images.contiguous(memory_format=torch.channels_last), data.labels)
    assert fingerprint(strided) == fingerprint(data)

"""Images too many for the device are held in host memory; whoever indexes them does not notice.

Here the "meta" device stands for another one than the host's: torch refuses to mix the two just as it does with CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from backdoor_bench import experiment, seeding
from backdoor_bench.bench import Bench
from backdoor_bench.dataset import Augmentation, Batches, Data, Draws, ImageSet, base
from backdoor_bench.dataset.base import describe, exceeds, free_memory
from backdoor_bench.errors import ConfigError
from backdoor_bench.numerics import Numerics
from backdoor_bench.store import Store

META = torch.device("meta")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def counted(count: int, images_on: str = "cpu", labels_on: str = "cpu") -> ImageSet:
    """Image i is filled with i, and so is its label."""
    values = torch.arange(count)
    images = values.to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
    return ImageSet(images.to(images_on), values.to(labels_on))


@pytest.mark.parametrize(
    ("size", "free", "share", "held"),
    [
        (100, 400, 0.25, False),  # exactly the share still fits
        (101, 400, 0.25, True),
        (1, 400, 0, True),
        (0, 400, 0, False),
        (400, 400, 1, False),
        (10**15, None, 0, False),  # the host's memory is where they would be held
    ],
)
def test_what_exceeds_the_share(size: int, free: int | None, share: float, held: bool) -> None:
    assert exceeds(size, free, share) == held


@pytest.mark.parametrize("share", [-0.1, 1.5, "half", None, True, float("nan")])
def test_a_share_that_cannot_be(share: Any) -> None:
    with pytest.raises(ConfigError, match=f"trainer.dataset_memory_share={share}: expected a fraction"):
        exceeds(1, 1, share)


def test_the_host_has_no_share() -> None:
    assert free_memory(torch.device("cpu")) is None
    data = counted(3)
    assert data.to("cpu", 0).images is data.images


@pytest.fixture
def tiny_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other device has room for 100 bytes; an image has 12."""
    monkeypatch.setattr(base, "free_memory", lambda device: 100 if device == META else None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # this machine has nothing to pin for


@pytest.mark.usefixtures("tiny_device")
def test_each_set_stays_or_goes(said: list[str]) -> None:
    train, test = counted(5), counted(4)
    data = Data(train, test, describe("d", "d", tuple("abcde"), train, test), Augmentation()).to("meta", 0.5)
    assert (data.train.images.device.type, data.train.labels.device.type) == ("cpu", "meta")
    assert (data.test.images.device.type, data.test.labels.device.type) == ("meta", "meta")
    assert torch.equal(data.train.images, train.images)
    assert len(said) == 1
    assert "more than 50% of the" in said[0]
    assert "trainer.dataset_memory_share" in said[0]


@pytest.mark.usefixtures("tiny_device")
def test_what_cannot_be_pinned_is_held_all_the_same(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    def refuse(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory\nhint")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    held = counted(9).to("meta", 0.5)
    assert held.images.device.type == "cpu"
    assert said[1] == "the images cannot be pinned in host memory (CUDA error: out of memory); going on without"


@pytest.mark.parametrize("index", [torch.tensor([3, 1]), torch.tensor([False, True, False, True, False])])
def test_an_index_from_either_side(index: torch.Tensor) -> None:
    held = counted(5, labels_on="meta")
    if index.dtype == torch.bool:  # meta has no values to count, so the labels cannot be masked there
        held = counted(5)
    part = held[index]
    assert part.images.device.type == "cpu"
    assert part.labels.device == held.labels.device
    assert sorted(part.images[:, 0, 0, 0].tolist()) == [1, 3]


def test_batches_come_to_the_labels_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered, select = [], torch.index_select

    def watch(*args: Any, out: torch.Tensor) -> torch.Tensor:
        gathered.append(select(*args, out=out).clone())
        return out

    monkeypatch.setattr(torch, "index_select", watch)
    held, here = counted(10, labels_on="meta"), counted(10)

    def orders() -> list[torch.Generator]:
        return [seeding.generator("order") for _ in range(2)]

    for make in (
        lambda data, order: Batches(data, 4, order),
        lambda data, order: Draws(data, 4, 3, order),
    ):
        gathered.clear()
        theirs, ours = (list(make(data, order)) for data, order in zip((held, here), orders(), strict=True))
        assert all(tensor.device == META for batch in theirs for tensor in batch)
        assert [tuple(images.shape) for images, _ in theirs] == [tuple(images.shape) for images, _ in ours]
        # What was sent over there is what is given where the images lie with their labels.
        assert all(torch.equal(sent, images) for sent, (images, _) in zip(gathered, ours, strict=True))


def test_numerics_moves_bytes_and_converts_there() -> None:
    images = Numerics(META).images(counted(2).images)
    assert images.device == META
    assert images.dtype == torch.float32
    given = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert Numerics(torch.device("cpu")).images(given).flatten().tolist() == pytest.approx([0, 0.2, 1])


@needs_cuda
def test_batches_on_the_gpu_are_the_same() -> None:
    held, there = counted(10).to("cuda", 0), counted(10).to("cuda")
    assert held.images.is_pinned()
    for ours, theirs in zip(
        Batches(held, 4, seeding.generator("order")), Batches(there, 4, seeding.generator("order")), strict=True
    ):
        assert all(torch.equal(a, b) and a.device.type == "cuda" for a, b in zip(ours, theirs, strict=True))
    chosen = held[held.labels > 6]
    assert (chosen.images.device.type, chosen.labels.tolist()) == ("cpu", [7, 8, 9])


@needs_cuda
@pytest.mark.parametrize(
    ("attack", "defense"),
    [
        ("badnet", "unibp"),
        ("blended", "tsbd"),
        ("sig", "unit"),
        ("wanet", "anp"),
        ("combat", "fp"),
        ("badnet", "gradprune"),
    ],
)
def test_a_run_with_held_images(
    tmp_path: Path, compose: Callable[..., dict[str, Any]], attack: str, defense: str
) -> None:
    common = [f"+attack={attack}", f"+defense={defense}", "device=cuda"]
    for share in (0, 1):
        config = compose(*common, f"trainer.dataset_memory_share={share}", f"store_dir={tmp_path / str(share)}")
        outcome = experiment.run(config, Bench(Store(tmp_path / str(share))))
        assert outcome.record["status"] == "ok"


def test_the_share_is_no_part_of_a_key(tmp_path: Path, compose: Callable[..., dict[str, Any]]) -> None:
    plans = [
        Bench(Store(tmp_path)).plan(compose("+attack=badnet", "+defense=ft", f"trainer.dataset_memory_share={share}"))
        for share in (0, 0.25)
    ]
    assert plans[0].key == plans[1].key
    assert asdict(plans[0].numerics) == asdict(plans[1].numerics)

"""The cache: verified, rebuilt when damaged or out of date, whole or not there."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from backdoor_bench.dataset import Augmentation, ImageSet
from backdoor_bench.dataset.cache import CachedDataset, Decoded
from backdoor_bench.errors import ConfigError, DataError


class Toy(CachedDataset):
    """Two classes of random images; counts how often it is decoded."""

    decoded = 0
    source: str | None = "one"
    slow = 0.0

    def locate(self) -> Callable[[], Decoded]:
        if self.source is None:
            raise DataError("toy is not there.")
        return self.decode

    def signature(self) -> str | None:
        return self.source

    def decode(self) -> Decoded:
        type(self).decoded += 1
        time.sleep(self.slow)
        draws = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=draws)
        everything = ImageSet(images, torch.arange(40) % 2)
        train, test = everything[torch.arange(30)], everything[torch.arange(30, 40)]
        return Decoded(train, test, ("a", "b"), "toy (random)", "nowhere", self.signature())


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Callable[[], Toy]]:
    """A fresh object each time, as in a new process."""
    Toy.decoded, Toy.source, Toy.slow, Toy.version = 0, "one", 0.0, 1
    yield lambda: Toy("toy", Augmentation(), tmp_path / "data")
    Toy.version = 1


def cache_files(data_dir: Path) -> list[str]:
    return sorted(os.listdir(data_dir / ".cache"))


def test_decoded_once_and_the_same_ever_after(toy: Callable[[], Toy], said: list[str]) -> None:
    first, again = toy().load(), toy().load()
    assert Toy.decoded == 1
    assert first.manifest == again.manifest
    assert first.manifest.variant == "toy (random)"
    assert first.manifest.train_counts == (15, 15)
    for ours, theirs in ((first.train, again.train), (first.test, again.test)):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
    assert cache_files(toy().data_dir) == ["toy.json", "toy.lock", "toy.safetensors"]
    assert len(said) == 1
    assert "40 images ready" in said[0]


def test_the_manifest_reads_no_image(toy: Callable[[], Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = toy().manifest()
    monkeypatch.setattr(Toy, "load", lambda self: pytest.fail("the images were read"))
    assert toy().manifest() == expected


def test_loaded_images_are_the_callers_own(toy: Callable[[], Toy]) -> None:
    toy().load()
    data = toy().load()
    data.train.images.zero_()
    assert toy().load().train.images.any()
    assert Toy.decoded == 1


def truncate(data_dir: Path) -> None:
    path = data_dir / ".cache" / "toy.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(data_dir: Path) -> None:
    path = data_dir / ".cache" / "toy.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def edit_the_manifest(data_dir: Path) -> None:
    path = data_dir / ".cache" / "toy.json"
    path.write_text(path.read_text().replace("toy (random)", "toy (official)"))


def cut_the_manifest(data_dir: Path) -> None:
    path = data_dir / ".cache" / "toy.json"
    path.write_text(path.read_text()[:50])


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, edit_the_manifest, cut_the_manifest])
def test_damage_is_said_set_aside_and_mended(
    toy: Callable[[], Toy], said: list[str], damage: Callable[[Path], None]
) -> None:
    good = toy().load()
    data_dir = toy().data_dir
    (data_dir / ".cache" / "other.safetensors").write_text("of another data set")
    for time_around in (1, 2):
        damage(data_dir)
        damaged = {path.name: path.read_bytes() for path in (data_dir / ".cache").glob("toy.[js]*")}
        said.clear()
        data = toy().load()
        assert torch.equal(data.train.images, good.train.images)
        assert data.manifest == good.manifest == toy().manifest()
        assert Toy.decoded == 1 + time_around
        assert "is damaged" in said[0]
        assert f"set aside as toy.safetensors.damaged-{time_around}" in said[0]
        for name in ("toy.json", "toy.safetensors"):
            assert (data_dir / ".cache" / f"{name}.damaged-{time_around}").read_bytes() == damaged[name]
    assert (data_dir / ".cache" / "other.safetensors").exists()


def test_a_manifest_of_a_truncated_cache_is_not_served(toy: Callable[[], Toy], said: list[str]) -> None:
    expected = toy().manifest()
    truncate(toy().data_dir)
    assert toy().manifest() == expected
    assert Toy.decoded == 2
    assert "bytes instead of" in said[1]


def test_a_damaged_cache_without_a_source_says_both(toy: Callable[[], Toy]) -> None:
    toy().load()
    truncate(toy().data_dir)
    Toy.source = None
    with pytest.raises(DataError, match=r"toy is not there.*The cache is not served: .*is damaged"):
        toy().load()


def test_a_changed_source_is_decoded_again_and_a_missing_one_is_not_missed(
    toy: Callable[[], Toy], said: list[str]
) -> None:
    toy().load()
    Toy.source = None
    toy().load()
    assert Toy.decoded == 1
    Toy.source = "two"
    toy().manifest()
    assert Toy.decoded == 2
    assert "nowhere has changed since" in said[1]


def test_a_new_version_is_decoded_again(toy: Callable[[], Toy], said: list[str]) -> None:
    toy().load()
    Toy.version = 2
    toy().load()
    toy().load()
    assert Toy.decoded == 2
    assert "another version" in said[1]


def test_a_missing_half_is_decoded_again(toy: Callable[[], Toy]) -> None:
    for name in ("toy.json", "toy.safetensors"):
        toy().load()
        before = Toy.decoded
        (toy().data_dir / ".cache" / name).unlink()
        toy().load()
        assert Toy.decoded == before + 1


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """The kernel refuses to let a file grow past so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_the_cache_and_nothing_else(toy: Callable[[], Toy], said: list[str]) -> None:
    source = toy()
    with files_of_at_most(4000):
        data = source.load()
        assert source.load() is data
        assert source.manifest() == data.manifest
    assert Toy.decoded == 1
    assert "cannot be written" in said[0]
    assert cache_files(source.data_dir) == ["toy.lock"]
    assert torch.equal(toy().load().train.images, data.train.images)
    assert cache_files(source.data_dir) == ["toy.json", "toy.lock", "toy.safetensors"]


def test_a_full_disk_leaves_an_old_cache_alone(toy: Callable[[], Toy]) -> None:
    toy().load()
    Toy.source = "two"
    with files_of_at_most(4000):
        toy().load()
    Toy.source = "one"
    toy().load()
    assert Toy.decoded == 2


def test_what_a_killed_process_left_is_swept(toy: Callable[[], Toy]) -> None:
    folder = toy().data_dir / ".cache"
    folder.mkdir(parents=True)
    for name in ("toy", "other"):
        (folder / f".{name}.safetensors.0123.tmp").mkdir()
        (folder / f".{name}.safetensors.0123.tmp" / ".tmpXYZ").write_text("half")
    toy().load()
    assert cache_files(toy().data_dir) == [
        ".other.safetensors.0123.tmp", "toy.json", "toy.lock", "toy.safetensors",
    ]  # fmt: skip


def test_a_data_dir_that_cannot_be_made_is_no_obstacle(tmp_path: Path, said: list[str], toy: Callable[[], Toy]) -> None:
    (tmp_path / "file").write_text("in the way")
    data = Toy("toy", Augmentation(), tmp_path / "file").load()
    assert len(data.train) == 30
    assert "cannot be written" in said[0]


def test_two_at_once_decode_once(toy: Callable[[], Toy], said: list[str]) -> None:
    Toy.slow = 0.3
    hashes: list[str] = []
    workers = [threading.Thread(target=lambda: hashes.append(toy().load().manifest.train_sha256)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert Toy.decoded == 1
    assert len(hashes) == 3
    assert len(set(hashes)) == 1
    assert "toy: another process is decoding it; waiting" in said


def test_nothing_is_made_where_nothing_is_found(toy: Callable[[], Toy]) -> None:
    Toy.source = None
    with pytest.raises(DataError, match=r"^toy is not there\.$"):
        toy().load()
    assert not toy().data_dir.exists()


def test_a_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.name=\.\./toy"):
        Toy("../toy", Augmentation(), tmp_path)

"""Your own arrays."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_bench.dataset import Augmentation
from backdoor_bench.dataset.npz import Npz
from backdoor_bench.errors import ConfigError, DataError


def npz(tmp_path: Path, **options: Any) -> Npz:
    return Npz("npz", Augmentation(), tmp_path / "own.npz", data_dir=tmp_path / "data", **options)


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def complete(**replaced: np.ndarray) -> dict[str, np.ndarray]:
    """Six training and four test images of 4x5, NHWC, in two classes."""
    arrays = {"x_train": images(6, 4, 5, 3), "y_train": np.arange(6) % 2}
    arrays |= {"x_test": images(4, 4, 5, 3, seed=1), "y_test": np.arange(4) % 2}
    return arrays | replaced


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., None]:
    return lambda **arrays: np.savez(tmp_path / "own.npz", **arrays)


Save = Callable[..., None]


def test_pixels_and_labels_are_as_given(tmp_path: Path, save: Save, said: list[str]) -> None:
    arrays = complete()
    save(**arrays)
    data = npz(tmp_path).load()
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1), arrays["x_train"])
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1), arrays["x_test"])
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.manifest.class_names == ("0", "1")
    assert data.manifest.variant == "npz (own.npz, 5x4)"
    assert data.manifest.image_size == (4, 5)
    again = npz(tmp_path)
    assert again.manifest() == data.manifest
    assert torch.equal(again.load().test.images, data.test.images)
    assert len(said) == 1  # the second time from the cache


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("NCHW", lambda x: x.transpose(0, 3, 1, 2)),
        ("fortran", np.asfortranarray),
        ("float64", lambda x: x / 255),
        ("float32", lambda x: (x / 255).astype(np.float32)),
        ("big endian", lambda x: (x / 255).astype(">f4")),
    ],
)
def test_other_layouts_are_the_same_pixels(tmp_path: Path, save: Save, name: str, convert: Any) -> None:
    arrays = complete()
    save(**arrays | {part: convert(arrays[part]) for part in ("x_train", "x_test")})
    expected = torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2)
    assert torch.equal(npz(tmp_path).load().train.images, expected)


def test_floats_are_rounded(tmp_path: Path, save: Save) -> None:
    values = np.array([0, 0.0019, 0.002, 0.5, 1, 1]).reshape(6, 1, 1)  # times 255: 0, 0.48, 0.51, 127.5, 255, 255
    save(**complete(x_train=values, x_test=values[:4]))
    assert npz(tmp_path).load().train.images[:, 0, 0, 0].tolist() == [0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (1, 4, 5)])
def test_grey_becomes_rgb(tmp_path: Path, save: Save, shape: tuple[int, ...]) -> None:
    grey = images(6, *shape)
    save(**complete(x_train=grey, x_test=grey[:4]))
    found = npz(tmp_path).load().train.images
    assert found.shape == (6, 3, 4, 5)
    assert all(np.array_equal(found[:, channel], grey.reshape(6, 4, 5)) for channel in range(3))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", ">i8", "uint64"])
def test_any_kind_of_integer_and_a_column_of_them(tmp_path: Path, save: Save, kind: str) -> None:
    save(**complete(y_train=(np.arange(6) % 2).astype(kind)[:, None]))
    assert npz(tmp_path).load().train.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_a_seeded_share_is_the_test_set(tmp_path: Path, save: Save) -> None:
    x = np.arange(30, dtype=np.uint8).repeat(3 * 4).reshape(30, 3, 2, 2)
    save(x_train=x.transpose(0, 2, 3, 1), y_train=np.arange(30) % 3)
    data = npz(tmp_path).load()
    assert data.manifest.test_counts == (2, 2, 2)
    pixels = torch.cat([data.train.images, data.test.images])[:, 0, 0, 0]
    assert sorted(pixels.tolist()) == list(range(30))
    assert torch.equal(data.train.images[:, 0, 0, 0] % 3, data.train.labels)
    assert npz(tmp_path, test_share=0.5).manifest().test_counts == (5, 5, 5)
    save(x_train=x[:4], y_train=np.array([0, 0, 0, 1]))
    with pytest.raises(DataError, match="class '1' has one image; without x_test and y_test it takes two or more"):
        npz(tmp_path).load()


def test_sizes(tmp_path: Path, save: Save, said: list[str]) -> None:
    save(**complete())
    assert npz(tmp_path, image_size=8).load().test.images.shape == (4, 3, 8, 8)
    assert said[0] == "npz: 10 of 10 images resized to 8x8 (bilinear)"
    said.clear()
    save(**complete(x_test=images(4, 8, 8, 3)))
    assert npz(tmp_path).load().test.images.shape == (4, 3, 4, 5)
    assert "npz: images have 2 sizes, 5x4 to 8x8; all become 5x4, as most have" in said[0]
    assert said[1] == "npz: 4 of 10 images resized to 5x4 (bilinear)"


def test_halving_is_antialiased(tmp_path: Path, save: Save) -> None:
    picture = np.zeros((6, 2, 4, 3), np.uint8)
    picture[:, :, 2:] = 200
    save(**complete(x_train=picture, x_test=picture[:4]))
    # As test_tree has it: own columns weigh 3/7 each, the nearest of the other side 1/7.
    assert npz(tmp_path, image_size=2).load().train.images[0, 0].tolist() == [[29, 171]] * 2


def test_a_changed_file_is_noticed_and_one_that_is_gone_is_served(tmp_path: Path, save: Save, said: list[str]) -> None:
    save(**complete())
    first = npz(tmp_path).manifest()
    save(**complete(x_train=images(6, 4, 5, 3, seed=9)))
    second = npz(tmp_path).manifest()
    assert second.train_sha256 != first.train_sha256
    assert any("has changed since" in line for line in said)
    (tmp_path / "own.npz").unlink()
    assert npz(tmp_path).manifest() == second


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"x_train": None}, "own.npz lacks 'x_train'; it holds 'x_test', 'y_test', 'y_train'; expected x_train and"),
        ({"y_test": None}, "lacks 'y_test'"),
        ({"x_train": images(6, 4, 5, 3).astype(np.int64)}, "x_train is int64; expected uint8, or float in"),
        ({"x_train": images(6, 4, 5, 3).astype(float)}, r"x_train has values from 0 to 255; expected .*divide by 255"),
        ({"x_test": np.full((4, 4, 5, 3), -0.1)}, r"x_test has values from -0.1 to -0.1"),
        ({"x_train": np.full((6, 4, 5, 3), np.nan)}, "x_train has values from nan to nan"),
        ({"x_train": images(6, 4, 5, 4)}, r"x_train is \(6, 4, 5, 4\); expected .* this fits neither"),
        ({"x_train": images(6, 60)}, r"x_train is \(6, 60\); expected .* this fits neither"),
        ({"x_train": images(6, 3, 5, 3)}, r"x_train is \(6, 3, 5, 3\); expected .* this fits both"),
        ({"x_train": images(0, 4, 5, 3), "y_train": np.zeros(0, int)}, "expected at least one image"),
        (
            {"y_train": np.zeros(5, int)},
            r"x_train is \(6, 4, 5, 3\) and y_train \(5,\); expected .* one label for each",
        ),
        ({"y_train": np.eye(6, dtype=int)}, r"y_train \(6, 6\)"),
        ({"y_train": np.zeros(6)}, "y_train is float64; expected integers"),
        (
            {"y_train": np.array([1, 2, 3, 1, 2, 3])},
            "y_train has 3 different labels from 1 to 3, without 0; expected 0",
        ),
        ({"y_train": np.array([0, 1, 3, 0, 1, 3])}, "from 0 to 3, without 2; .*renumber them"),
        ({"y_train": np.array([0, 1, -1, 0, 1, 0])}, "y_train has labels -1 to 1"),
        ({"y_train": np.array([0, 1, 2**63, 0, 1, 0], np.uint64)}, "y_train has labels 0 to 9223372036854775808"),
        ({"y_test": np.array([0, 1, 2, 0])}, "y_test has the label 2, y_train only 0 to 1"),
        ({"y_train": np.zeros(6, int)}, "y_train has one class"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, save: Save, replaced: dict[str, Any], message: str) -> None:
    save(**{name: array for name, array in complete(**replaced).items() if array is not None})
    with pytest.raises(DataError, match=message):
        npz(tmp_path).load()
    assert not list((tmp_path / "data").rglob("*.safetensors"))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue()


def member(tmp_path: Path, content: bytes, name: str = "x_train") -> None:
    """The complete file, but for one member's bytes."""
    np.savez(tmp_path / "own.npz", **{key: array for key, array in complete().items() if key != name})
    with zipfile.ZipFile(tmp_path / "own.npz", "a") as archive:
        archive.writestr(f"{name}.npy", content)


def test_objects_are_not_unpickled(tmp_path: Path, save: Save) -> None:
    save(**complete(y_train=np.array([Bomb()] * 6, object)))
    with pytest.raises(DataError, match="y_train holds Python objects, which only unpickling could read"):
        npz(tmp_path).load()
    (tmp_path / "own.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"own.npz is no .npz"):
        npz(tmp_path).load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((10**10, 32, 32, 3)), r"x_train declares \(10000000000, 32, 32, 3\) uint8, 30,720,.* but 0 are there"),
        (header((-6, -4, 5, 3)) + bytes(360), r"declares \(-6, -4, 5, 3\)"),
        (header((6, 4, 5, 3)) + bytes(361), "but 361 are there"),
        (header((6, 4, 5, 3), "|O"), "holds Python objects"),
        (header((6, 4, 5, 3), "no such type"), "x_train cannot be read"),
        (header((6, 4, 5, 3)).replace(b"{", b"("), "x_train cannot be read"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "x_train cannot be read"),
        (b"\x93NUMPY\x03\x00", r"version \(3, 0\) of the .npy format"),
        (b"PNG", "x_train cannot be read"),
        (b"", "x_train cannot be read"),
    ],
)
def test_a_header_that_lies_or_is_damaged(tmp_path: Path, content: bytes, message: str) -> None:
    member(tmp_path, content)
    with pytest.raises(DataError, match=message):
        npz(tmp_path).load()


def test_a_damaged_archive(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "own.npz", **complete())
    whole = (tmp_path / "own.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "own.npz") as archive:
        start = archive.getinfo("x_train.npy").header_offset
    bent = bytearray(whole)
    bent[start + 200] ^= 255
    (tmp_path / "own.npz").write_bytes(bytes(bent))
    with pytest.raises(DataError, match=r"x_train cannot be read .*save the file again"):
        npz(tmp_path).load()
    (tmp_path / "own.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"own.npz is no .npz"):
        npz(tmp_path).load()


def test_a_flipped_pixel_fails_the_checksum(tmp_path: Path, save: Save) -> None:
    arrays = complete()
    save(**arrays)
    whole = (tmp_path / "own.npz").read_bytes()
    at = whole.index(arrays["x_train"].tobytes()) + 17
    (tmp_path / "own.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(DataError, match=r"x_train cannot be read .*CRC"):
        npz(tmp_path).load()


def test_a_bomb_that_would_fill_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its headers are honest, and it is compressed a thousand times: this machine shall have 1 MiB."""
    zeros = np.zeros((400, 32, 32, 3), np.uint8)
    np.savez_compressed(tmp_path / "own.npz", x_train=zeros, y_train=np.arange(400) % 2)
    assert (tmp_path / "own.npz").stat().st_size < 10_000
    monkeypatch.setattr("os.sysconf", lambda name: 2**10)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(DataError, match=r"x_train \(400, 32, 32, 3\) uint8 take .*save fewer or smaller images"):
        npz(tmp_path).load()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset=npz needs your file: give dataset.root=FILE.npz"):
        Npz("npz", Augmentation(), None)
    with pytest.raises(DataError, match=r"dataset.root=.*own.npz is no file .*x_train, y_train"):
        npz(tmp_path).load()

"""Folders of images: listed, checked, decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backdoor_bench.dataset import tree
from backdoor_bench.errors import DataError


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def decoded(*paths: Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    (images,), _ = tree.decode("t", [[(path, 0) for path in paths]], size)
    return images.images


def test_order_is_by_name_and_only_visible_images_count(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.PNG", "a/x.jpg", "a/deep/y.webp", "a/.hidden.png", ".git/z.png"):
        save(tmp_path / name, noise(4, 4, 3), format="PNG")
    (tmp_path / "a" / "Thumbs.db").write_text("no image")
    (tmp_path / "README.txt").write_text("no class")
    found = tree.classes(tmp_path)
    assert {name: [str(p.relative_to(tmp_path / name)) for p in paths] for name, paths in found.items()} == {
        "a": ["deep/y.webp", "x.jpg"],
        "b": ["10.PNG", "2.png"],
    }
    assert [label for _, label in tree.samples(found)] == [0, 0, 1, 1]


def test_a_class_without_images_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "a" / "0.png", noise(4, 4, 3))
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"class folder 'bare' holds no images .*expected CLASS/IMAGE"):
        tree.classes(tmp_path)
    with pytest.raises(DataError, match="no class folders"):
        tree.classes(tmp_path / "a")


def test_train_and_test_have_the_same_classes(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "0.png", noise(4, 4, 3))
    with pytest.raises(DataError, match="has a folder 'train' but no 'test'"):
        tree.both(tmp_path)
    save(tmp_path / "test" / "a" / "0.png", noise(4, 4, 3))
    save(tmp_path / "test" / "b" / "0.png", noise(4, 4, 3))
    with pytest.raises(DataError, match="class 'b' is in 'test' but not in 'train'"):
        tree.both(tmp_path)


def test_lossless_formats_keep_every_pixel(tmp_path: Path) -> None:
    picture = noise(5, 7, 3)
    paths = [save(tmp_path / name, picture) for name in ("a.png", "a.ppm", "a.bmp", "a.tiff")]
    paths.append(save(tmp_path / "a.webp", picture, lossless=True))
    expected = torch.from_numpy(picture).permute(2, 0, 1)
    assert all(torch.equal(image, expected) for image in decoded(*paths))


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    grey, alpha = noise(4, 4), noise(4, 4, 4)
    deep = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096 + 77
    paletted = tmp_path / "p.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8) + np.uint8([9, 99, 199])).convert(
        "P", palette=Image.Palette.ADAPTIVE
    ).save(paletted)
    images = decoded(
        save(tmp_path / "g.png", grey), save(tmp_path / "a.png", alpha), save(tmp_path / "d.png", deep), paletted
    )
    assert torch.equal(images[0], torch.from_numpy(grey).expand(3, 4, 4))
    assert torch.equal(images[1], torch.from_numpy(alpha[:, :, :3]).permute(2, 0, 1))
    assert images[2, 0].flatten().tolist() == [16 * i for i in range(16)]
    assert images[3, :, 0, 0].tolist() == [9, 99, 199]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused(kind: type, tmp_path: Path) -> None:
    """Floats in [0, 1] would all be black."""
    path = save(tmp_path / "f.tiff", np.linspace(0, 1, 16).reshape(4, 4).astype(kind))
    with pytest.raises(
        DataError, match=r"f\.tiff \(its pixels have 32 bits and no known range; save it with 8 or 16\)"
    ):
        decoded(path)


def test_resizing_is_bilinear_and_said(tmp_path: Path, said: list[str]) -> None:
    picture = np.zeros((2, 4, 3), np.uint8)
    picture[:, 2:] = 200
    same = noise(2, 2, 3)
    (images,), seen = tree.decode(
        "t", [[(save(tmp_path / "a.png", picture), 0), (save(tmp_path / "b.png", same), 1)]], (2, 2)
    )
    # Halving the width antialiased: own columns weigh 3/7 each, the nearest of the other side 1/7.
    assert images.images[0, 0].tolist() == [[29, 171]] * 2
    assert torch.equal(images.images[1], torch.from_numpy(same).permute(2, 0, 1))
    assert images.labels.tolist() == [0, 1]
    assert said == ["t: 1 of 2 images resized to 2x2 (bilinear)"]
    assert dict(seen.sizes) == {(2, 4): 1, (2, 2): 1}


def test_unequal_sizes_become_what_most_have(tmp_path: Path, said: list[str]) -> None:
    pictures = [noise(*shape, 3, seed=i) for i, shape in enumerate([(6, 9), (4, 8), (4, 8), (4, 8), (2, 2)])]
    images = decoded(*[save(tmp_path / f"{i}.png", picture) for i, picture in enumerate(pictures)])
    assert images.shape == (5, 3, 4, 8)
    assert torch.equal(images[2], torch.from_numpy(pictures[2]).permute(2, 0, 1))
    assert said[0] == (
        "t: images have 3 sizes, 2x2 to 9x6; all become 8x4, as most have "
        "(another size: dataset.image_size=PIXELS or [HEIGHT,WIDTH])"
    )
    assert said[1] == "t: 2 of 5 images resized to 8x4 (bilinear)"


def test_without_a_majority_the_median_of_the_shorter_sides(tmp_path: Path, said: list[str]) -> None:
    shapes = [(6, 9), (9, 6), (4, 8), (7, 30)]
    images = decoded(*[save(tmp_path / f"{i}.png", noise(*shape, 3)) for i, shape in enumerate(shapes)])
    assert images.shape == (4, 3, 6, 6)
    assert "4 sizes, 8x4 to 30x7; all become 6x6, the median of their shorter sides" in said[0]


def test_broken_files_are_named_and_counted(tmp_path: Path) -> None:
    good = [save(tmp_path / f"{i}.png", noise(8, 8, 3, seed=i)) for i in range(3)]
    cut = save(tmp_path / "cut.jpg", noise(64, 64, 3))
    cut.write_bytes(cut.read_bytes()[:700])
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.write_bytes(b"")
    text.write_text("<html>404</html>")
    with pytest.raises(DataError) as caught:
        decoded(*good, cut, empty, text, size=(8, 8))
    message = str(caught.value)
    assert "3 of 6 image files cannot be read" in message
    assert all(str(path) in message for path in (cut, empty, text))
    assert "not an image" in message
    for paths in ([text, *good], [text]):
        with pytest.raises(DataError, match=rf"1 of {len(paths)} image files cannot be read: .*text.png \(not an"):
            decoded(*paths)


def test_a_script_in_disguise_is_not_run(tmp_path: Path) -> None:
    disguised = tmp_path / "a.png"
    disguised.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="not an image"):
        decoded(disguised, size=(8, 8))


def test_more_than_the_memory_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"1 images of 10000000x10000000 as uint8 take .* GiB.*smaller dataset.image_size"
    ):
        decoded(save(tmp_path / "a.png", noise(4, 4, 3)), size=(10**7, 10**7))

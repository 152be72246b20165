"""Folders of images, as torchvision's ImageFolder lays them out: ``ROOT/{train,test}/CLASS/IMAGE``."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from backdoor_bench import progress
from backdoor_bench.dataset.base import ImageSet
from backdoor_bench.dataset.pixels import Size, common_size, require_memory, resized, say_unequal
from backdoor_bench.errors import DataError

# Only what decodes pixels: some of Pillow's other plugins start programs (EPS) or open further files.
FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "TIFF", "GIF")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".gif"}
CHUNK = 100

Sample = tuple[Path, int]
Outcome = tuple[str, Size] | Exception
"""Of one file: its format and size on disk, or why it could not be decoded."""


@dataclass(frozen=True)
class Seen:
    """What decoding met: Pillow's names of the formats in lower case, and the sizes (height, width) on disk."""

    formats: Counter[str]
    sizes: Counter[Size]

    @property
    def lossy(self) -> str:
        """``jpeg``, ``webp``, ``jpeg, webp`` or nothing. Whether a WebP is lossless cannot be told cheaply."""
        return ", ".join(sorted({"jpeg", "webp"} & self.formats.keys()))


def is_tree(root: Path) -> bool:
    return any((root / split).is_dir() for split in ("train", "test"))


def classes(folder: Path) -> dict[str, list[Path]]:
    """The image files of each class folder, both in the order of their names; hidden ones are passed over.

    Raises:
        DataError: no class folders, or one without an image.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = {name: sorted(_images(folder / name)) for name in names}
    empty = [name for name, paths in found.items() if not paths]
    if not found or empty:
        which = f"class folder {few(empty)} holds" if found else "it has no class folders, so it holds"
        raise DataError(f"{folder}: {which} no images ({', '.join(sorted(SUFFIXES))}); expected CLASS/IMAGE")
    return found


def both(root: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The classes of ``root/train`` and of ``root/test``, which are the same.

    Raises:
        DataError: one of the two folders is missing, or a class is missing in one of them.
    """
    for here, there in (("train", "test"), ("test", "train")):
        if not (root / here).is_dir():
            raise DataError(f"{root} has a folder '{there}' but no '{here}'; expected both, each with CLASS/IMAGE")
    train, test = classes(root / "train"), classes(root / "test")
    for here, there, names in (("train", "test", train.keys() - test.keys()), ("test", "train", test.keys() - train)):
        if names:
            raise DataError(f"{root}: class {few(sorted(names))} is in '{here}' but not in '{there}'")
    return train, test


def samples(found: Mapping[str, Sequence[Path]], labels: Mapping[str, int] | None = None) -> list[Sample]:
    """(path, label), class by class; labels count the classes in their order unless given."""
    labels = labels or {name: label for label, name in enumerate(found)}
    return [(path, labels[name]) for name, paths in found.items() for path in paths]


def folders_signature(root: Path) -> str | None:
    """Changes when an image is added to, removed from or renamed in a class folder; reads only the folders."""
    if not is_tree(root):
        return None
    folders = [root / split for split in ("train", "test") if (root / split).is_dir()]
    folders += sorted(entry for folder in folders for entry in folder.iterdir() if entry.is_dir())
    return _digest((str(folder.relative_to(root)), folder.stat().st_mtime_ns) for folder in folders)


def files_signature(root: Path, paths: Iterable[Path]) -> str:
    """Changes when an image is added, removed, renamed, resized in bytes or touched."""
    status = ((path, path.stat()) for path in paths)
    return _digest((str(path.relative_to(root)), found.st_size, found.st_mtime_ns) for path, found in status)


def decode(title: str, splits: Sequence[Sequence[Sample]], size: Size | None) -> tuple[list[ImageSet], Seen]:
    """Read and decode every image of the splits, in order, into uint8 RGB.

    Args:
        title: the data set's name, for what is said and raised.
        splits: (path, label) of each image.
        size: (height, width) that images of another size are resized to, bilinearly (Pillow's, which is antialiased);
            ``None``: all images keep their size where it is the same, and else become :func:`common_size`, said aloud.

    Raises:
        DataError: files that cannot be read (names and counts them), or more pixels than this machine has memory.
    """
    height, width = size or _size_of(title, [path for split in splits for path, _ in split])
    count = sum(map(len, splits))
    _check_memory(title, count, height, width)
    arrays = [np.empty((len(split), 3, height, width), np.uint8) for split in splits]
    jobs = [(array[i], path) for array, split in zip(arrays, splits, strict=True) for i, (path, _) in enumerate(split)]
    seen, broken = Seen(Counter(), Counter()), []

    def work(chunk: Sequence[tuple[NDArray[np.uint8], Path]]) -> list[tuple[Path, Outcome]]:
        results: list[tuple[Path, Outcome]] = []
        for target, path in chunk:
            try:
                results.append((path, _decode_into(target, path)))
            except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
                results.append((path, error))
        return results

    # Decoding and reading release the interpreter's lock, so threads do; processes would import __main__ again.
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        progress.track(f"{title}: decoding, done once", len(jobs), "image") as advance,
    ):
        for results in pool.map(work, [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]):
            for path, outcome in results:
                advance("")
                if isinstance(outcome, Exception):
                    broken.append((path, outcome))
                    continue
                kind, found = outcome
                seen.formats[kind] += 1
                seen.sizes[found] += 1
    if broken:
        listed = "; ".join(f"{path} ({_reason(error)})" for path, error in broken[:5])
        more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise DataError(
            f"{title}: {len(broken)} of {len(jobs):,} image files cannot be read: {listed}{more}; "
            "replace or remove them"
        )
    others = len(jobs) - seen.sizes[height, width]
    if others:
        progress.say(f"{title}: {others:,} of {len(jobs):,} images resized to {width}x{height} (bilinear)")
    labels = [torch.tensor([label for _, label in split], dtype=torch.int64) for split in splits]
    return [ImageSet(torch.from_numpy(a), y) for a, y in zip(arrays, labels, strict=True)], seen


def _decode_into(target: NDArray[np.uint8], path: Path) -> tuple[str, Size]:
    """Fill ``target`` (3, H, W), resizing where that is another size; returns the format and the size on disk."""
    with Image.open(path, formats=FORMATS) as image:
        kind, found = (image.format or "?").lower().replace("mpo", "jpeg"), (image.height, image.width)
        target[:] = resized(_rgb(image), (target.shape[1], target.shape[2])).transpose(2, 0, 1)
    return kind, found


def _rgb(image: Image.Image) -> Image.Image:
    """Grey and palettes become RGB, transparency is dropped; of 16 bits the upper 8 stay (Pillow would clip them)."""
    if image.mode in ("I", "F"):  # Pillow would clip them as well, and nobody knows to what range they belong
        raise ValueError("its pixels have 32 bits and no known range; save it with 8 or 16")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _size_of(title: str, paths: Sequence[Path]) -> Size:
    """The size that all images have, by their headers, or the one they are resized to."""
    sizes = _sizes(title, paths)
    if not sizes:
        return 1, 1  # decoding will say why none can be read
    chosen = common_size(sizes)
    if len(sizes) > 1:
        say_unequal(title, sizes, chosen)
    return chosen


def _sizes(title: str, paths: Sequence[Path]) -> Counter[Size]:
    """How many images have which size, as their headers say; what cannot be read is passed over here."""

    def work(chunk: Sequence[Path]) -> list[Size]:
        found = []
        for path in chunk:
            with contextlib.suppress(Exception), Image.open(path, formats=FORMATS) as image:  # decoding will say why
                found.append((image.height, image.width))
        return found

    parts, sizes = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)], Counter[Size]()
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        progress.track(f"{title}: looking at sizes", len(paths), "image") as advance,
    ):
        for part, found in zip(parts, pool.map(work, parts), strict=True):
            sizes.update(found)
            for _ in part:
                advance("")
    return sizes


def _check_memory(title: str, count: int, height: int, width: int) -> None:
    what, needed = f"{count:,} images of {width}x{height} as uint8", count * 3 * height * width
    require_memory(title, what, needed, "take a smaller dataset.image_size")


def _images(folder: Path) -> Iterable[Path]:
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield Path(parent, name)


def few(names: Sequence[str]) -> str:
    """The first five, and how many more; nothing for none."""
    return ", ".join(f"'{name}'" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _reason(error: Exception) -> str:
    return "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__


def _digest(facts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(repr(fact).encode())
    return digest.hexdigest()

"""Tiny-ImageNet (Le and Yang 2015): 200 classes of ImageNet at 64x64."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from backdoor_bench.dataset import tree
from backdoor_bench.dataset.cache import Decoded
from backdoor_bench.dataset.published import ResizableDataset
from backdoor_bench.errors import DataError

ARCHIVE = "tiny-imagenet-200.zip"
URL = f"http://cs231n.stanford.edu/{ARCHIVE}"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
CLASS_COUNT = 200

Folders = Mapping[str, Sequence[Path]]


class TinyImageNet(ResizableDataset):
    """100,000 + 10,000 images of 64x64; the classes are WordNet ids, in alphabetical order. The test set is the
    official validation set, for the labels of the official test set were never published.

    The publisher's files are ``DATA_DIR/tiny-imagenet-200``, as its zip unpacks. With ``image_size=32`` a tree
    ``DATA_DIR/tiny_imagenet32`` is taken too.
    """

    version = 1
    published = (100_000, 10_000)
    publisher = "Stanford"
    native = (64, 64)
    native_jpeg = True

    @property
    def official(self) -> Path:
        return self.data_dir / "tiny-imagenet-200"

    @property
    def small(self) -> Path:
        """Where a tree of 32 pixels lies under a name of its own."""
        return self.data_dir / f"{self.name}32"

    @property
    def trees(self) -> tuple[Path, ...]:
        return (*super().trees, self.small) if self.size == (32, 32) else super().trees

    def locate(self) -> Callable[[], Decoded]:
        try:
            return super().locate()
        except DataError as error:
            if self.size is None and tree.is_tree(self.small):
                raise DataError(f"{error}. {self.small} is there: dataset.image_size=32 uses it") from None
            raise

    def from_tree(self, root: Path, signature: str | None) -> Decoded:
        train, test = _official(root) if (root / "val").is_dir() else tree.both(root)
        foreign = [name for name in train if not re.fullmatch(r"n\d{8}", name)]
        if foreign or len(train) != CLASS_COUNT:
            raise DataError(
                f"{root}: expected the {CLASS_COUNT} classes of Tiny-ImageNet as folders named by WordNet ids "
                f"(n01443537, ...), got {len(train)}; not of Tiny-ImageNet: {tree.few(foreign) or 'none'}"
            )
        labels = {name: label for label, name in enumerate(train)}
        splits = [tree.samples(part, labels) for part in (train, test)]
        (train_set, test_set), seen = tree.decode(self.name, splits, self.size)
        variant = self.variant(root, seen, (train_set.images.shape[2], train_set.images.shape[3]))
        return Decoded(train_set, test_set, tuple(train), variant, str(root), signature)

    def from_official(self) -> Decoded:
        if not self.official.is_dir():
            self._fetch()
        return self.from_tree(self.official, None)

    def _fetch(self) -> None:
        """Download, compare with the checksum, unpack aside, and only then put in its place."""
        from torchvision.datasets.utils import download_and_extract_archive

        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.data_dir, prefix=".tiny-imagenet-") as aside:
                download_and_extract_archive(URL, str(self.data_dir), aside, ARCHIVE, MD5)
                (Path(aside) / self.official.name).rename(self.official)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{self.name}: {URL} could not be fetched ({error}); unpack {ARCHIVE} in {self.data_dir} by hand"
            ) from None


def _official(root: Path) -> tuple[Folders, Folders]:
    """Training and validation images by class, as the zip has them, or with ``val`` sorted into class folders."""
    for needed in (root / "train", root / "val"):
        if not needed.is_dir():
            raise DataError(f"{root} is incomplete: there is no {needed}; unpack {ARCHIVE} again")
    train, table = tree.classes(root / "train"), root / "val" / "val_annotations.txt"
    if not table.is_file():
        test = tree.classes(root / "val")
    else:
        found: dict[str, list[Path]] = {name: [] for name in train}
        for line in table.read_text().splitlines():
            name, wnid = line.split("\t")[:2] if line.count("\t") else (line, "")
            if wnid not in found:
                raise DataError(f"{table}: expected FILE, a tab and one of the classes of train, got {line[:80]!r}")
            found[wnid].append(root / "val" / "images" / name)
        test = found
    foreign = [name for name in test if name not in train]
    if foreign:
        raise DataError(f"{root}: class {tree.few(foreign)} is in 'val' but not in 'train'")
    return train, test

"""GTSRB, the German Traffic Sign Recognition Benchmark (Stallkamp et al. 2011)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from backdoor_bench.dataset import tree
from backdoor_bench.dataset.cache import Decoded
from backdoor_bench.dataset.published import PublishedDataset
from backdoor_bench.errors import DataError

CLASSES = tuple(f"{label:05d}" for label in range(43))
SIZE = (32, 32)


class Gtsrb(PublishedDataset):
    """39,209 + 12,630 traffic signs in 43 classes, resized to 32x32 bilinearly, without the crop to the sign.

    In a tree the class folders are the labels, ``00014`` or ``14``. Torchvision's files are ``DATA_DIR/gtsrb/GTSRB``;
    the training set that torchvision fetches is the smaller one of the 2011 competition (26,640 images), and its
    variant says so. The published 39,209 are read from ``GTSRB/Final_Training/Images`` where they lie there.
    """

    version = 1
    published = (39_209, 12_630)

    @property
    def official(self) -> Path:
        return self.data_dir / "gtsrb" / "GTSRB"

    def from_tree(self, root: Path, signature: str | None) -> Decoded:
        train, test = (_labelled(part, root) for part in tree.both(root))
        return self._decode(train, test, root, signature)

    def from_official(self) -> Decoded:
        if self.download:
            self._fetch()
        final, competition = self.official / "Final_Training" / "Images", self.official / "Training"
        answers = self.official.parent / "GT-final_test.csv"
        folder = final if final.is_dir() else competition
        for needed in (folder, self.official / "Final_Test" / "Images", answers):
            if not needed.exists():
                raise DataError(
                    f"{self.name}: torchvision's files are incomplete: there is no {needed}; unpack them again, or let "
                    "torchvision fetch them with download=true"
                )
        with answers.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";", skipinitialspace=True))
        test = [(self.official / "Final_Test" / "Images" / row["Filename"], int(row["ClassId"])) for row in rows]
        train = _labelled(tree.classes(folder), folder)
        return self._decode(train, test, self.official, None, ["2011 competition"] if folder == competition else [])

    def _decode(
        self,
        train: Sequence[tree.Sample],
        test: Sequence[tree.Sample],
        root: Path,
        signature: str | None,
        notes: Sequence[str] = (),
    ) -> Decoded:
        (train_set, test_set), seen = tree.decode(self.name, [train, test], SIZE)
        if set(seen.sizes) == {SIZE}:  # somebody resized them before us, perhaps in another way
            notes = [*notes, f"32 px {', '.join(sorted(seen.formats))}"]
        elif seen.lossy:
            notes = [*notes, seen.lossy]
        variant = f"gtsrb ({'; '.join(notes)})" if notes else "gtsrb"
        return Decoded(train_set, test_set, CLASSES, variant, str(root), signature)

    def _fetch(self) -> None:
        from torchvision.datasets import GTSRB

        for split in ("train", "test"):
            try:
                GTSRB(str(self.data_dir), split=split, download=True)
            except (RuntimeError, OSError) as error:
                raise DataError(f"{self.name}: torchvision could not fetch the {split} images: {error}") from None


def _labelled(found: Mapping[str, Sequence[Path]], where: Path) -> list[tree.Sample]:
    """By the number that a class folder is named with: in alphabetical order '10' would come before '2'."""
    labels = {name: int(name) for name in found if name.isascii() and name.isdigit()}
    foreign = [name for name in found if labels.get(name, len(CLASSES)) >= len(CLASSES)]
    missing = sorted(set(range(len(CLASSES))) - set(labels.values()))
    if foreign or missing or len(labels) != len(CLASSES):
        raise DataError(
            f"{where}: expected the 43 classes of GTSRB as folders 00000 ... 00042; missing: "
            f"{', '.join(CLASSES[label] for label in missing) or 'none'}; not of GTSRB: {', '.join(foreign) or 'none'}"
        )
    return sorted(tree.samples(found, labels), key=lambda sample: sample[1])

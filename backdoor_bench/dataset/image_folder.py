"""Your own images: any folder of class folders."""

from __future__ import annotations

from collections.abc import Callable

from backdoor_bench.dataset import tree
from backdoor_bench.dataset.cache import Decoded
from backdoor_bench.dataset.own import OwnDataset
from backdoor_bench.dataset.pixels import written
from backdoor_bench.errors import DataError


class ImageFolder(OwnDataset):
    """``ROOT/{train,test}/CLASS/IMAGE``, or ``ROOT/CLASS/IMAGE`` of which a seeded share of each class is the test set.

    Labels are the class folders in alphabetical order. Grey images become RGB, transparency is dropped. Everything is
    held in memory as uint8. The cache is made anew when a file of the tree is added, removed, renamed or touched.
    """

    version = 1
    wanted = "the folder of your images: give dataset.root=PATH"
    test_set = "folders 'train' and 'test'"

    def locate(self) -> Callable[[], Decoded]:
        if not self.root.is_dir():
            raise DataError(
                f"{self.name}: dataset.root={self.root} is no folder (and there is no cache {self.images_file}); "
                "expected ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE, or ROOT/CLASS/IMAGE"
            )
        return self._decode

    def signature(self) -> str | None:
        if not self.root.is_dir():
            return None
        try:
            splits, _ = self._splits()
            return tree.files_signature(self.root, (path for split in splits for path, _ in split))
        except DataError:
            return "unreadable"  # never the signature of a cache: decoding will say what is wrong

    def _splits(self) -> tuple[list[list[tree.Sample]], tuple[str, ...]]:
        """The samples of train and test, and the class names."""
        train, test = tree.both(self.root) if tree.is_tree(self.root) else self.hold_out(tree.classes(self.root))
        if len(train) < 2:
            raise DataError(f"{self.root} has one class, {next(iter(train))!r}; a classifier needs two or more")
        return [tree.samples(train), tree.samples(test)], tuple(train)

    def _decode(self) -> Decoded:
        signature = self.signature()
        splits, names = self._splits()
        (train, test), seen = tree.decode(self.name, splits, self.size)
        size = written((train.images.shape[2], train.images.shape[3]))
        notes = [self.root.name, size, *([seen.lossy] if seen.lossy else [])]
        return Decoded(train, test, names, f"{self.name} ({', '.join(notes)})", str(self.root), signature)

"""Data sets that others published: where their files lie, how many images they have, and at which size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from backdoor_bench import progress
from backdoor_bench.dataset import tree
from backdoor_bench.dataset.augmentation import Augmentation
from backdoor_bench.dataset.cache import CachedDataset, Decoded
from backdoor_bench.dataset.pixels import Size, parse_size, written
from backdoor_bench.errors import DataError

T = TypeVar("T")


class PublishedDataset(CachedDataset):
    """After the cache: ``DATA_DIR/NAME/{train,test}/CLASS/IMAGE``, the publisher's own files, a download of those."""

    published: ClassVar[tuple[int, int]]
    """Training and test images of the published set."""
    publisher: ClassVar[str] = "torchvision"
    """Whose files and download they are."""

    @property
    @abstractmethod
    def official(self) -> Path:
        """The folder of the publisher's files."""

    @property
    def trees(self) -> tuple[Path, ...]:
        """Where a tree of images may lie; the first that is there counts."""
        return (self.data_dir / self.name,)

    @abstractmethod
    def from_tree(self, root: Path, signature: str | None) -> Decoded: ...

    @abstractmethod
    def from_official(self) -> Decoded:
        """Fetches the files first with ``download=true``; checks what is there otherwise."""

    def locate(self) -> Callable[[], Decoded]:
        root = self._tree()
        if root is not None:
            return lambda: self._checked(self.from_tree(root, self.signature()))
        if self.download or self.official.is_dir():
            return lambda: self._checked(self.from_official())
        folders = " or ".join(f"{root}/{{train,test}}/CLASS/IMAGE" for root in self.trees)
        raise DataError(
            f"{self.name} is not there. Looked for: the cache {self.images_file}; images as {folders}; "
            f"{self.publisher}'s {self.official}. Unpack it there "
            f"(mkdir -p {self.data_dir} && tar -xf {self.name}.tar.xz -C {self.data_dir}), name another folder with "
            f"data_dir=PATH, or have {self.publisher}'s files fetched with download=true"
        )

    def signature(self) -> str | None:
        root = self._tree()
        return None if root is None else tree.folders_signature(root)

    def obtained(self, archive: str, make: Callable[[], T]) -> T:
        """What torchvision makes of its files, which it compares with their checksums before it reads them.

        Args:
            archive: the file to unpack where they are damaged.
            make: constructs torchvision's data set.
        """
        try:
            return make()
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{self.name}: torchvision cannot provide {self.official} ({error}): its files are incomplete, "
                f"damaged or out of reach. Unpack {archive} there again, or, with a network, let torchvision fetch it "
                "with download=true"
            ) from None

    def require_classes(self, root: Path, found: Sequence[str], expected: Sequence[str], title: str) -> None:
        """Raise :class:`DataError` where a tree's classes are not those of the data set."""
        missing, foreign = [c for c in expected if c not in found], [c for c in found if c not in expected]
        if missing or foreign:
            raise DataError(
                f"{root}: expected the {len(expected)} classes of {title} ({tree.few(expected)}); "
                f"missing: {tree.few(missing) or 'none'}; not of {title}: {tree.few(foreign) or 'none'}"
            )

    def _tree(self) -> Path | None:
        return next((root for root in self.trees if tree.is_tree(root)), None)

    def _checked(self, decoded: Decoded) -> Decoded:
        found = (len(decoded.train), len(decoded.test))
        if found != self.published:  # half unpacked, or a subset on purpose
            progress.say(
                f"{self.name}: {decoded.source} holds {found[0]:,} training and {found[1]:,} test images, the "
                f"published set {self.published[0]:,} and {self.published[1]:,}; going on with what is there"
            )
        return decoded


class ResizableDataset(PublishedDataset):
    """A published data set larger than the usual 32 pixels, which ``image_size`` makes smaller.

    A tree of images may have been resized by somebody else: its images keep the size that they have, which is said
    and part of the variant, as is every size but the published one. Nothing is enlarged unless ``image_size`` says so.

    Args:
        image_size: side in pixels, or [height, width], that images are resized to (bilinearly); ``None``: they keep
            their size.
    """

    native: ClassVar[Size]
    """(height, width) of the published images."""
    native_jpeg: ClassVar[bool] = False
    """Whether the published images are JPEGs themselves, so that a tree of JPEGs is no copy of less quality."""

    def __init__(
        self,
        name: str,
        augmentation: Augmentation,
        data_dir: str | Path = "./data",
        download: bool = False,
        image_size: int | Sequence[int] | None = None,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        max_train: int | None = None,
        max_test: int | None = None,
    ) -> None:
        super().__init__(name, augmentation, data_dir, download, mean, std, max_train, max_test)
        self.size = parse_size(image_size)

    def settings(self) -> dict[str, Any]:
        return {"image_size": list(self.size) if self.size else None}

    @property
    def cache_name(self) -> str:
        """Each size has a cache of its own."""
        return f"{self.name}-{written(self.size)}" if self.size else self.name

    def variant(self, root: Path, seen: tree.Seen, held: Size) -> str:
        """Says which pixels these are; and aloud, where they are not made of the published size.

        Args:
            root: where they were read from.
            seen: sizes and formats on disk.
            held: (height, width) after decoding.
        """
        formats = ", ".join(sorted(seen.formats))
        if set(seen.sizes) == {self.native}:
            notes = [] if held == self.native else [_pixels(held)]
            notes += [seen.lossy] if seen.lossy and not self.native_jpeg else []
            return f"{self.name} ({'; '.join(notes)})" if notes else self.name
        size = _pixels(next(iter(seen.sizes))) if len(seen.sizes) == 1 else "several sizes"
        made = f"{size} {formats}" if set(seen.sizes) == {held} else f"{_pixels(held)} from {size} {formats}"
        progress.say(
            f"{self.name}: the images of {root} are not of the published size, {_pixels(self.native)}, but of {size}; "
            f"results are of '{self.name} ({made})' and compare with no published ones"
        )
        return f"{self.name} ({made})"


def _pixels(size: Size) -> str:
    return f"{size[0]} px" if size[0] == size[1] else f"{written(size)} px"

"""Data sets that others published: where their files lie, and how many images they have."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from backdoor_bench import progress
from backdoor_bench.dataset import tree
from backdoor_bench.dataset.cache import CachedDataset, Decoded
from backdoor_bench.errors import DataError


class PublishedDataset(CachedDataset):
    """After the cache: ``DATA_DIR/NAME/{train,test}/CLASS/IMAGE``, torchvision's files, torchvision's download."""

    published: ClassVar[tuple[int, int]]
    """Training and test images of the published set."""

    @property
    @abstractmethod
    def official(self) -> Path:
        """Where torchvision's files lie."""

    @abstractmethod
    def from_tree(self, root: Path, signature: str | None) -> Decoded: ...

    @abstractmethod
    def from_torchvision(self) -> Decoded:
        """Fetches them first with ``download=true``; checks what is there otherwise."""

    def locate(self) -> Callable[[], Decoded]:
        root = self.data_dir / self.name
        if tree.is_tree(root):
            return lambda: self._checked(self.from_tree(root, self.signature()))
        if self.download or self.official.is_dir():
            return lambda: self._checked(self.from_torchvision())
        raise DataError(
            f"{self.name} is not there. Looked for: the cache {self.images_file}; images as "
            f"{root}/{{train,test}}/CLASS/IMAGE; torchvision's {self.official}. Unpack it there "
            f"(mkdir -p {self.data_dir} && tar -xf {self.name}.tar.xz -C {self.data_dir}), name another folder with "
            "data_dir=PATH, or let torchvision fetch it with download=true"
        )

    def signature(self) -> str | None:
        return tree.folders_signature(self.data_dir / self.name)

    def _checked(self, decoded: Decoded) -> Decoded:
        found = (len(decoded.train), len(decoded.test))
        if found != self.published:  # half unpacked, or a subset on purpose
            progress.say(
                f"{self.name}: {decoded.source} holds {found[0]:,} training and {found[1]:,} test images, the "
                f"published set {self.published[0]:,} and {self.published[1]:,}; going on with what is there"
            )
        return decoded

"""What every data set is: two sets of uint8 images near the device, a manifest, an augmentation."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_bench import progress
from backdoor_bench.dataset.augmentation import Augmentation
from backdoor_bench.errors import ConfigError


@dataclass(frozen=True)
class ImageSet:
    """Labelled images. ``images``: (N, 3, H, W) uint8; ``labels``: (N,) int64, on the device that computes.

    The images lie there too, unless they would fill it: then they are held in host memory (see :meth:`to`), and what
    :meth:`batch`, :class:`Batches` and ``Numerics.images`` give is on the device all the same.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images: expected uint8 (N, 3, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels: expected int64 ({len(self.images)},), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> ImageSet:
        """The images at ``index`` (int64 positions or a bool mask, on any device), as a new set held where this is."""
        return ImageSet(self.images[index.to(self.images.device)], self.labels[index.to(self.labels.device)])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(images, labels) at ``index`` (int64 positions), both on the labels' device.

        Images held on the host are gathered into pinned memory and copied while the device computes.
        """
        device = self.labels.device
        index = index.to(self.images.device)
        labels = self.labels[index.to(device, non_blocking=True)]
        if self.images.device == device:
            return self.images[index], labels
        pinned = device.type == "cuda"
        gathered = torch.empty((len(index), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        torch.index_select(self.images, 0, index, out=gathered)
        return gathered.to(device, non_blocking=True), labels

    def to(self, device: torch.device | str, memory_share: float = 1.0) -> ImageSet:
        """The labels on ``device``; the images too where they take at most ``memory_share`` of its free memory.

        Other images are held in host memory, pinned if the machine lets us, and that is said.
        """
        free, size = free_memory(torch.device(device)), self.images.nbytes
        if not exceeds(size, free, memory_share):
            return ImageSet(self.images.to(device), self.labels.to(device))
        progress.say(
            f"{size / 2**30:.2f} GiB of images are more than {memory_share:.0%} of the {(free or 0) / 2**30:.2f} GiB "
            f"free on {device}: they stay in host memory and are copied by batch (trainer.dataset_memory_share)"
        )
        return ImageSet(_pinned(self.images.cpu()), self.labels.to(device))


def exceeds(size: int, free: int | None, share: float) -> bool:
    """Whether ``size`` bytes are more than ``share`` of ``free``; never where ``free`` is ``None`` (host memory).

    Raises:
        ConfigError: ``share`` is no fraction.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ConfigError(
            f"trainer.dataset_memory_share={share}: expected a fraction of the device's free memory in [0, 1]; "
            "0 holds all images in host memory"
        )
    return free is not None and size > share * free


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on ``device``, torch's own unused cache included; ``None`` for the host."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _pinned(images: Tensor) -> Tensor:
    try:
        return images.pin_memory()
    except RuntimeError as error:  # a limit of the machine's; copies are then slower, and right all the same
        progress.say(f"the images cannot be pinned in host memory ({str(error).splitlines()[0]}); going on without")
        return images


class Batches:
    """A sized iterable of (uint8 images, labels), shuffled anew each epoch when it has a generator.

    The permutation is drawn on the CPU, so the order is the same on every device. A trailing batch of one image
    is merged into the one before it: BatchNorm over a single 1x1 map has no variance.
    """

    def __init__(
        self, data: ImageSet, batch_size: int, generator: torch.Generator | None = None, drop_last: bool = False
    ) -> None:
        if batch_size < 1 or len(data) < 1:
            raise ValueError(f"cannot make batches of {batch_size} from {len(data)} images")
        self.data, self.generator = data, generator
        count = len(data)
        sizes = [batch_size] * (count // batch_size)
        rest = count % batch_size
        if rest and (not drop_last or not sizes):
            sizes.append(rest)
        if len(sizes) > 1 and sizes[-1] == 1:
            sizes[-2:] = [sizes[-2] + 1]
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        used = sum(self.sizes)
        if self.generator is None:
            order = torch.arange(used)
        else:
            order = torch.randperm(len(self.data), generator=self.generator)[:used]
        for index in order.to(self.data.images.device).split(self.sizes):
            yield self.data.batch(index)


@dataclass(frozen=True)
class Manifest:
    """What a plan needs to know of a data set without decoding it. The hashes are over decoded pixels and labels."""

    name: str
    variant: str
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    train_sha256: str
    test_sha256: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Data:
    """A loaded data set."""

    train: ImageSet
    test: ImageSet
    manifest: Manifest
    augmentation: Augmentation

    @property
    def num_classes(self) -> int:
        return self.manifest.num_classes

    def to(self, device: torch.device | str, memory_share: float = 1.0) -> Data:
        """On ``device``, but for images that :meth:`ImageSet.to` holds on the host."""
        train, test = (part.to(device, memory_share) for part in (self.train, self.test))
        return Data(train, test, self.manifest, self.augmentation)


class Dataset(ABC):
    """Where a data set comes from. Subclasses find and decode; raise ``version`` when the decoded pixels change.

    Args:
        name: as on the command line and in records.
        augmentation: what training does to a batch of these images.
        mean, std: per-channel statistics of the pixels in [0, 1]; the network's first layer takes them from here.
    """

    version: ClassVar[int] = 1

    def __init__(
        self, name: str, augmentation: Augmentation, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()
    ) -> None:
        self.name, self.augmentation, self.mean, self.std = name, augmentation, tuple(mean), tuple(std)

    @abstractmethod
    def manifest(self) -> Manifest:
        """From the cache where there is one; decodes (and caches) otherwise."""

    @abstractmethod
    def load(self) -> Data:
        """All images, on the CPU."""


def describe(name: str, variant: str, class_names: tuple[str, ...], train: ImageSet, test: ImageSet) -> Manifest:
    """The manifest of decoded images."""
    classes = len(class_names)
    return Manifest(
        name=name,
        variant=variant,
        class_names=class_names,
        image_size=(train.images.shape[2], train.images.shape[3]),
        train_counts=tuple(torch.bincount(train.labels, minlength=classes).tolist()),
        test_counts=tuple(torch.bincount(test.labels, minlength=classes).tolist()),
        train_sha256=fingerprint(train),
        test_sha256=fingerprint(test),
    )


def fingerprint(data: ImageSet) -> str:
    """sha256 over shape, pixels and labels."""
    digest = hashlib.sha256(repr(tuple(data.images.shape)).encode())
    digest.update(data.images.cpu().contiguous().numpy().data)
    digest.update(data.labels.cpu().contiguous().numpy().data)
    return digest.hexdigest()


class Draws:
    """A sized iterable of ``steps`` batches, each drawn from the whole set with replacement."""

    def __init__(self, data: ImageSet, batch_size: int, steps: int, generator: torch.Generator) -> None:
        if batch_size < 1 or steps < 1 or len(data) < 1:
            raise ValueError(f"cannot draw {steps} batches of {batch_size} from {len(data)} images")
        self.data, self.batch_size, self.steps, self.generator = data, batch_size, steps, generator

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.steps):
            yield self.data.batch(torch.randint(len(self.data), (self.batch_size,), generator=self.generator))

"""Which clean images a defender gets: the data regimes (samples per class, or a ratio of the training set)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

from backdoor_bench import seeding
from backdoor_bench.errors import ConfigError, DataError

CleanFrom = Literal["unpoisoned", "all"]
"""Where a drawn image that the attacker altered is replaced, or not; see :func:`draw_clean`."""
DEFAULT_RATIO = 0.05
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Regime:
    """How much clean data the defender has: exactly one of ``spc`` and ``clean_ratio`` is set."""

    spc: int | None
    clean_ratio: float | None

    @classmethod
    def of(cls, spc: int | None, clean_ratio: float | None) -> Regime:
        """Neither given: ``clean_ratio=0.05``. Both given, or a value that cannot be: :class:`ConfigError`."""
        if spc is not None and clean_ratio is not None:
            raise ConfigError(f"both spc={spc} and clean_ratio={clean_ratio} are given; give one of the two")
        if spc is not None:
            if not _is_number(spc) or spc % 1 != 0 or spc < 2:
                raise ConfigError(f"spc={spc}: expected a whole number of at least 2 (one to train, one to validate)")
            return cls(int(spc), None)
        ratio = DEFAULT_RATIO if clean_ratio is None else clean_ratio
        if not _is_number(ratio) or not 0 < ratio <= 1:
            raise ConfigError(f"clean_ratio={ratio}: expected a fraction in (0, 1], e.g. 0.05 for 5 %")
        return cls(None, float(ratio))

    def counts(self, class_sizes: list[int]) -> list[int]:
        """Images per class. A ratio is spread in proportion; what rounding down leaves goes to the largest remainders.

        The sum is ``clean_ratio`` of all images, half rounded up; of equal remainders the lower label comes first. The
        ratio counts as it is written in decimals, so that no class gains or loses an image to binary fractions.

        Args:
            class_sizes: training images of each class.

        Raises:
            DataError: a class is smaller than ``spc``, or the ratio leaves no class two images.
        """
        if self.spc is not None:
            smallest = min(range(len(class_sizes)), key=class_sizes.__getitem__)
            if class_sizes[smallest] < self.spc:
                raise DataError(
                    f"spc={self.spc}, but class {smallest} has {class_sizes[smallest]} images; "
                    f"use {class_sizes[smallest]} or fewer"
                )
            return [self.spc] * len(class_sizes)
        assert self.clean_ratio is not None
        counts = apportion(Fraction(str(self.clean_ratio)), class_sizes)
        if max(counts) < 2:
            raise DataError(
                f"clean_ratio={self.clean_ratio} of {sum(class_sizes)} images leaves {sum(counts)} over "
                f"{len(class_sizes)} classes, none with two (one to train, one to validate); "
                "use a larger ratio or spc=2"
            )
        return counts


def apportion(ratio: Fraction, class_sizes: list[int]) -> list[int]:
    """``ratio`` of each class, rounded down; what the sum, half rounded up, then lacks goes to the largest remainders.

    Of equal remainders the lower label comes first.
    """
    exact = [ratio * size for size in class_sizes]
    counts = [int(share) for share in exact]
    missing = int(sum(exact) + Fraction(1, 2)) - sum(counts)
    by_remainder = sorted(range(len(exact)), key=lambda label: (counts[label] - exact[label], label))
    for label in by_remainder[:missing]:
        counts[label] += 1
    return counts


@dataclass(frozen=True)
class CleanDraw:
    """Positions in the training set (int64), and how many drawn images were replaced as the attacker had altered them.

    An altered image whose class has no unaltered one left stays, as its clean original, and is not counted.
    """

    train: Tensor
    validation: Tensor
    replaced: int


def require_clean_from(clean_from: object) -> None:
    """Raise ConfigError where it is none of :data:`CleanFrom`."""
    if clean_from not in get_args(CleanFrom):
        raise ConfigError(f"clean_from={clean_from}: expected {' or '.join(get_args(CleanFrom))}")


def draw_clean(
    labels: Tensor,
    regime: Regime,
    dataset_id: str,
    repetition: int,
    altered: Tensor | None = None,
    clean_from: CleanFrom = "unpoisoned",
) -> CleanDraw:
    """Draw the defender's clean images: stratified, seeded by (data set, repetition) alone, nested over regimes.

    Args:
        labels: (N,) true labels of the training set.
        regime: how many.
        dataset_id: the fingerprint of the training images.
        repetition: another one draws another subset.
        altered: (N,) bool, True where the attacker changed the image; ``None``: the attack has no fixed poison set.
        clean_from: ``unpoisoned`` replaces an altered image by the next unaltered one of its class, and takes clean
            originals only where a class has none left; ``all`` takes the clean original always.

    Returns:
        Train (90 %) and validation (10 %, at least one of each class that has two) positions.
    """
    require_clean_from(clean_from)
    labels = labels.cpu()
    counts = regime.counts(torch.bincount(labels).tolist())
    train, validation, replaced = [], [], 0
    for label, count in enumerate(counts):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=seeding.generator("clean", dataset_id, repetition, label))
        ordered = members[order]
        if altered is not None:
            touched = altered.cpu()[ordered]
            if clean_from == "unpoisoned":
                originals = max(0, count - int((~touched).sum()))
                replaced += int(touched[:count].sum()) - originals
                ordered = torch.cat([ordered[~touched], ordered[touched]])
        held_out = max(1, int(VALIDATION_SHARE * count + 0.5)) if count >= 2 else 0
        validation.append(ordered[:held_out])
        train.append(ordered[held_out:count])
    return CleanDraw(torch.cat(train), torch.cat(validation), replaced)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

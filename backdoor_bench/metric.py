"""ACC, ASR and RA as torchmetrics; DER, ARR and RDR from before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from backdoor_bench.dataset import ImageSet
from backdoor_bench.numerics import Numerics


@dataclass(frozen=True)
class TriggeredSet:
    """Triggered test images, without those whose true label is the attack's already.

    ``data.labels`` are the true labels, ``attack_labels`` what the attacker wants.
    """

    data: ImageSet
    attack_labels: Tensor


@dataclass(frozen=True)
class OnTheFly:
    """Test images that are painted when they are shown: float32, not rounded to 8 bits, never stored.

    ``data.images`` are those before, ``data.labels`` what counts as right; ``paint`` maps float images in [0, 1] to the
    same, the same each time.
    """

    data: ImageSet
    paint: Callable[[Tensor], Tensor]

    @property
    def labels(self) -> Tensor:
        return self.data.labels

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Measurement:
    """Fractions in [0, 1]; ``None`` where there is nothing to measure (no attack, or no image of another class).

    ``triggered_as`` counts the triggered test images by predicted class (those predicted at all, as text, as JSON has
    keys): where they go when they no longer become what the attacker wants. It describes; it is not compared.
    ``extra``: what is measured besides for the attack, by name; see :func:`.make_evaluator`.
    """

    acc: float
    asr: float | None = None
    ra: float | None = None
    triggered_as: Mapping[str, int] | None = field(default=None, compare=False)
    extra: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def fractions(self) -> dict[str, Any]:
        """The numbers by name, as records have them: ``extra`` where there is one."""
        usual = {"acc": self.acc, "asr": self.asr, "ra": self.ra}
        return {**usual, "extra": dict(self.extra)} if self.extra else usual

    def describe(self) -> dict[str, Any]:
        """As a stored network's manifest has it: all fields, ``extra`` where there is one."""
        return {name: value for name, value in asdict(self).items() if value or name != "extra"}


@dataclass(frozen=True)
class Comparison:
    """What a defense did, as fractions; ``None`` without a defense, and where the attack cannot be measured."""

    der: float | None = None
    arr: float | None = None
    rdr: float | None = None


def compare(before: Measurement, after: Measurement) -> Comparison:
    """DER, ARR and RDR of a purified network against its victim.

    DER = [max(0, ASR drop) - max(0, ACC drop) + 1] / 2; ARR = ACC drop / ACC before;
    RDR = (ACC before - RA after) / ACC before.
    """
    drop = before.acc - after.acc
    der = rdr = None
    if before.asr is not None and after.asr is not None:
        der = (max(0.0, before.asr - after.asr) - max(0.0, drop) + 1) / 2
    if after.ra is not None and before.acc > 0:
        rdr = (before.acc - after.ra) / before.acc
    return Comparison(der, drop / before.acc if before.acc > 0 else None, rdr)


@torch.inference_mode()
def predict(
    network: nn.Module, data: ImageSet | OnTheFly, numerics: Numerics, batch_size: int
) -> Iterable[tuple[Tensor, slice]]:
    """Predicted classes by batch, with the rows they belong to. The network must be in eval mode."""
    stored, paint = (data.data, data.paint) if isinstance(data, OnTheFly) else (data, None)
    for start in range(0, len(data), batch_size):
        rows = slice(start, start + batch_size)
        images = numerics.images(stored.images[rows])
        if paint is not None:
            images = paint(images).contiguous(memory_format=numerics.memory_format)
        with numerics.autocast():
            logits = network(images)
        yield logits.argmax(1), rows


class Evaluator:
    """Measures a network on the clean and the triggered test set. It holds what no defense may see.

    Args:
        extra: further test sets, by the name of what each measures; see :func:`.make_evaluator`.
    """

    def __init__(
        self,
        test: ImageSet,
        triggered: TriggeredSet | None,
        num_classes: int,
        numerics: Numerics,
        batch_size: int,
        extra: Mapping[str, ImageSet | OnTheFly] | None = None,
    ) -> None:
        self.test, self.triggered, self.numerics, self.batch_size = test, triggered, numerics, batch_size
        self.num_classes, self.extra = num_classes, dict(extra or {})

    def gives(self, measured: Measurement) -> bool:
        """Whether an earlier measurement has all that is measured here."""
        return self.extra.keys() == measured.extra.keys()

    def measure(self, network: nn.Module) -> Measurement:
        """ACC, ASR, RA and what the attack measures besides, of a network, which is put in eval mode."""
        network.eval()
        (acc,), _ = self._accuracy(network, self.test, self.test.labels)
        extra = {
            name: self._accuracy(network, data, data.labels)[0][0] if len(data) else None
            for name, data in self.extra.items()
        }
        if self.triggered is None or not len(self.triggered.data):
            return Measurement(acc, extra=extra)
        wanted = self.triggered.attack_labels
        (asr, ra), predicted = self._accuracy(network, self.triggered.data, wanted, self.triggered.data.labels)
        counts = enumerate(torch.bincount(predicted).tolist())
        return Measurement(acc, asr, ra, {str(label): count for label, count in counts if count}, extra)

    def _accuracy(self, network: nn.Module, data: ImageSet | OnTheFly, *targets: Tensor) -> tuple[list[float], Tensor]:
        """The share of each target, and the predicted classes."""
        metrics = [
            MulticlassAccuracy(self.num_classes, average="micro", validate_args=False).to(self.numerics.device)
            for _ in targets
        ]
        seen = []
        for predicted, rows in predict(network, data, self.numerics, self.batch_size):
            seen.append(predicted)
            for metric, target in zip(metrics, targets, strict=True):
                metric.update(predicted, target[rows])
        return [_fraction(metric, len(data)) for metric in metrics], torch.cat(seen)


def _fraction(metric: MulticlassAccuracy, count: int) -> float:
    """The share in double precision: float32 would print 0.9123000264 in a record."""
    return round(float(metric.compute()) * count) / count

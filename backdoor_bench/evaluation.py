"""What the networks of one victim are measured on: the clean test set, the triggered one, and the attack's own."""

from __future__ import annotations

from torch import Tensor

from backdoor_bench.attack import Attack, Trigger, stamp
from backdoor_bench.dataset import ImageSet
from backdoor_bench.metric import Evaluator, OnTheFly, TriggeredSet
from backdoor_bench.numerics import Numerics


def triggered_set(
    test: ImageSet, attack: Attack, trigger: Trigger, num_classes: int, numerics: Numerics
) -> TriggeredSet:
    """The test images that are not of their attack label already, triggered and rounded to uint8."""
    kept, wanted = _attacked(test, attack, num_classes)
    return TriggeredSet(ImageSet(stamp(trigger, kept.images, numerics), kept.labels), wanted)


def make_evaluator(
    test: ImageSet, attack: Attack | None, trigger: Trigger | None, classes: int, numerics: Numerics, batch_size: int
) -> Evaluator:
    """What measures the networks of one victim; without an attack, on the clean test set alone.

    ASR and RA are those of images as they are handed on, rounded to 8 bits. For an attack whose victim was trained on
    triggered images that were never rounded, ``float_asr`` is the ASR of such images, which is what the attack's paper
    prints; then come the attack's own :meth:`Attack.test_sets`.
    """
    if attack is None or trigger is None:
        return Evaluator(test, None, classes, numerics, batch_size)
    triggered = triggered_set(test, attack, trigger, classes, numerics)
    extra: dict[str, ImageSet | OnTheFly] = {}
    if attack.trains_unrounded:
        kept, wanted = _attacked(test, attack, classes)
        extra["float_asr"] = OnTheFly(ImageSet(kept.images, wanted), trigger)
    extra |= attack.test_sets(test, trigger, classes, numerics)
    return Evaluator(test, triggered, classes, numerics, batch_size, extra)


def _attacked(test: ImageSet, attack: Attack, num_classes: int) -> tuple[ImageSet, Tensor]:
    """The clean test images that are not of their attack label already, and what the attacker wants of each."""
    wanted = attack.attack_labels(test.labels, num_classes)
    changed = wanted != test.labels
    return test[changed], wanted[changed]

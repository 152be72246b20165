"""What the networks of one victim are measured on: the clean test set, the triggered one, and the attack's own."""

from __future__ import annotations

from backdoor_bench.attack import Attack, Trigger, stamp
from backdoor_bench.dataset import ImageSet
from backdoor_bench.metric import Evaluator, TriggeredSet
from backdoor_bench.numerics import Numerics


def triggered_set(
    test: ImageSet, attack: Attack, trigger: Trigger, num_classes: int, numerics: Numerics
) -> TriggeredSet:
    """The test images that are not of their attack label already, triggered and rounded to uint8."""
    wanted = attack.attack_labels(test.labels, num_classes)
    kept = test[wanted != test.labels]
    images = stamp(trigger, kept.images, numerics)
    return TriggeredSet(ImageSet(images, kept.labels), wanted[wanted != test.labels])


def make_evaluator(
    test: ImageSet, attack: Attack | None, trigger: Trigger | None, classes: int, numerics: Numerics, batch_size: int
) -> Evaluator:
    """What measures the networks of one victim; without an attack, on the clean test set alone."""
    if attack is None or trigger is None:
        return Evaluator(test, None, classes, numerics, batch_size)
    triggered = triggered_set(test, attack, trigger, classes, numerics)
    extra = attack.test_sets(test, trigger, classes, numerics)
    return Evaluator(test, triggered, classes, numerics, batch_size, extra)

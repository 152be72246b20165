"""ACC, ASR and RA against a plain numpy count; DER, ARR and RDR against published numbers and by hand."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backdoor_bench.attack.badnet import BadNet
from backdoor_bench.dataset import ImageSet
from backdoor_bench.evaluation import triggered_set
from backdoor_bench.metric import Comparison, Evaluator, Measurement, OnTheFly, TriggeredSet, compare
from backdoor_bench.numerics import Numerics

CPU = Numerics(torch.device("cpu"))


class ByPixel(nn.Module):
    """Classifies an image by its first pixel's grey level."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), self.classes).float()


def images_of(predictions: np.ndarray) -> Tensor:
    images = torch.zeros(len(predictions), 3, 4, 4, dtype=torch.uint8)
    images[:, :, 0, 0] = torch.from_numpy(predictions)[:, None].to(torch.uint8)
    return images


@pytest.mark.parametrize("batch_size", [1, 7, 500])
@pytest.mark.parametrize("classes", [2, 5])
def test_acc_asr_and_ra_are_counts_of_equal_labels(classes: int, batch_size: int) -> None:
    draws = np.random.default_rng(classes)
    labels, predicted = draws.integers(0, classes, (2, 53))
    true, wanted, said = draws.integers(0, classes, (3, 31))
    test = ImageSet(images_of(predicted), torch.from_numpy(labels))
    triggered = TriggeredSet(ImageSet(images_of(said), torch.from_numpy(true)), torch.from_numpy(wanted))
    network = ByPixel(classes).train()
    measured = Evaluator(test, triggered, classes, CPU, batch_size).measure(network)
    # Exactly, in double precision: a record shall not print 0.9123000264.
    assert measured.acc == np.mean(predicted == labels)
    assert measured.asr == np.mean(said == wanted)
    assert measured.ra == np.mean(said == true)
    assert not network.training


def test_without_an_attack_there_is_no_asr() -> None:
    test = ImageSet(images_of(np.array([0, 1, 1, 1])), torch.tensor([0, 1, 0, 1]))
    assert Evaluator(test, None, 2, CPU, 500).measure(ByPixel(2)) == Measurement(0.75, None, None)


def test_an_attacks_own_sets_are_measured_by_their_labels() -> None:
    test = ImageSet(images_of(np.array([0, 1])), torch.tensor([0, 1]))
    own = ImageSet(images_of(np.array([2, 1, 2, 2])), torch.tensor([2, 2, 2, 0]))
    nothing = own[torch.zeros(0, dtype=torch.int64)]
    found = Evaluator(test, None, 3, CPU, 3, {"cross_acc": own, "none_acc": nothing}).measure(ByPixel(3))
    assert found == Measurement(1.0, extra={"cross_acc": 0.5, "none_acc": None})
    assert found.fractions == {"acc": 1.0, "asr": None, "ra": None, "extra": {"cross_acc": 0.5, "none_acc": None}}
    assert Measurement(**found.describe()) == found


class BelowHalfALevel(ByPixel):
    """Class 1 for what lies between two grey levels and below the middle, which rounding takes away."""

    def forward(self, images: Tensor) -> Tensor:
        level = images[:, 0, 0, 0] * 255
        return nn.functional.one_hot(((level - level.floor()) > 0.1).long(), self.classes).float()


def test_a_set_painted_on_the_fly_is_shown_unrounded() -> None:
    test = ImageSet(images_of(np.array([0, 1, 2])), torch.tensor([1, 0, 1]))
    batches: list[int] = []

    def paint(images: Tensor) -> Tensor:
        assert images.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        batches.append(len(images))
        return images + 0.3 / 255

    mixed = Numerics(torch.device("cpu"), "bf16-mixed")
    none = OnTheFly(test[torch.zeros(0, dtype=torch.int64)], paint)
    sets = {"float_asr": OnTheFly(test, paint), "none_asr": none}
    found = Evaluator(test, None, 2, mixed, 2, sets).measure(BelowHalfALevel(2))
    assert batches == [2, 1]
    assert found == Measurement(1 / 3, extra={"float_asr": 2 / 3, "none_asr": None})


def test_asr_and_ra_leave_out_images_of_the_target_class() -> None:
    test = ImageSet(torch.zeros(6, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2]))
    attack = BadNet(target_label=2)
    found = triggered_set(test, attack, attack.trigger((32, 32)), 3, CPU)
    assert found.data.labels.tolist() == [0, 1, 0, 1]
    assert found.attack_labels.tolist() == [2, 2, 2, 2]
    assert (found.data.images[:, :, -3:, -3:] == 255).all()


def test_all_to_all_keeps_every_image() -> None:
    test = ImageSet(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 2]))
    attack = BadNet(labels="all_to_all")
    found = triggered_set(test, attack, attack.trigger((32, 32)), 3, CPU)
    assert found.data.labels.tolist() == [0, 1, 2]
    assert found.attack_labels.tolist() == [1, 2, 0]


def test_with_nothing_but_target_images_asr_and_ra_are_null() -> None:
    test = ImageSet(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    attack = BadNet(target_label=0)
    triggered = triggered_set(test, attack, attack.trigger((32, 32)), 2, CPU)
    assert Evaluator(test, triggered, 2, CPU, 500).measure(ByPixel(2)) == Measurement(1.0, None, None)


def test_der_of_a_published_row() -> None:
    """TSBD, BadNets on CIFAR-10: ACC/ASR 91.32/95.03 to 90.72/1.37 gives DER 96.53 %."""
    found = compare(Measurement(0.9132, 0.9503, 0.04), Measurement(0.9072, 0.0137, 0.88))
    assert found.der is not None
    assert round(100 * found.der, 2) == 96.53


def test_comparison_by_hand() -> None:
    found = compare(Measurement(0.8, 1.0, 0.0), Measurement(0.6, 0.5, 0.4))
    # ((1.0 - 0.5) - (0.8 - 0.6) + 1) / 2; (0.8 - 0.6) / 0.8; (0.8 - 0.4) / 0.8
    assert asdict(found) == pytest.approx({"der": 0.65, "arr": 0.25, "rdr": 0.5})


def test_der_rewards_no_gain_in_acc_and_punishes_no_rise_of_asr() -> None:
    found = compare(Measurement(0.8, 0.3, 0.6), Measurement(0.9, 0.7, 0.9))
    assert found.der == 0.5
    assert found.arr == pytest.approx(-0.125)
    assert found.rdr == pytest.approx(-0.125)


def test_what_cannot_be_compared_is_null() -> None:
    assert compare(Measurement(0.5), Measurement(0.25)) == Comparison(None, 0.5, None)
    assert compare(Measurement(0.0, 1.0, 0.0), Measurement(0.0, 0.0, 0.0)) == Comparison(1.0, None, None)

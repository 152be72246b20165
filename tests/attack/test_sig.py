"""SIG, by hand."""

from __future__ import annotations

import pytest
import torch

from backdoor_bench.attack import AttackerView
from backdoor_bench.attack.sig import Sig, add_signal, sinusoid
from backdoor_bench.errors import ConfigError


def test_sinusoid_runs_over_the_columns() -> None:
    # One period over four columns: sin of 0, 90, 180 and 270 degrees.
    torch.testing.assert_close(sinusoid(4, 0.5, 1.0), torch.tensor([0.0, 0.5, 0.0, -0.5]))
    # Six periods over 32 columns: column 4 lies at 6 * 4 / 32 = 0.75 of a period.
    assert sinusoid(32, 40 / 255, 6.0)[4].item() == pytest.approx(-40 / 255)


def test_sum_is_clipped() -> None:
    images = torch.tensor([0.9, 0.5, 0.1]).expand(1, 3, 2, 3).clone()
    added = add_signal(images, torch.tensor([0.2, -0.2, -0.2]))
    torch.testing.assert_close(added[0, 2], torch.tensor([[1.0, 0.3, 0.0], [1.0, 0.3, 0.0]]))
    assert images[0, 0, 0, 0].item() == pytest.approx(0.9)


def test_stripes_are_vertical_and_amplitude_is_in_8_bit_steps() -> None:
    painted = Sig().trigger((64, 32))(torch.full((1, 3, 64, 32), 0.5))
    assert torch.equal(painted, painted[:, :1, :1].expand_as(painted))
    assert (painted - 0.5).abs().max().item() == pytest.approx(40 / 255)


def test_all_of_the_target_class_at_most(attacker_view: AttackerView) -> None:
    attack = Sig(poisoning_ratio=0.5, target_label=2)
    poisoned = attack.poison(attacker_view, attack.trigger((32, 32)))
    assert poisoned.altered is not None
    assert torch.equal(poisoned.altered, attacker_view.train.labels == 2)
    assert poisoned.ratio == 0.25
    assert torch.equal(poisoned.data.labels, attacker_view.train.labels)


@pytest.mark.parametrize(("option", "value"), [("delta", 0.0), ("delta", 300.0), ("frequency", 0.0)])
def test_option_out_of_range_is_an_error(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.{option}={value}"):
        Sig(**{option: value})

"""The oracle stage: the attacker's trigger, for a defense that declares it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from backdoor_bench.attack.badnet import PatchTrigger
from backdoor_bench.errors import IncompatibleError
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.known_trigger import KnownTrigger


def test_it_hands_over_the_trigger_of_the_view_and_no_label(network: nn.Module, defender_view: DefenderView) -> None:
    trigger = PatchTrigger((32, 32), 3)
    found = KnownTrigger().run(network, replace(defender_view, known_trigger=trigger))
    images = torch.zeros(2, 3, 32, 32)
    assert torch.equal(found.trigger(images), trigger(images))
    assert found.label is None


def test_without_the_privilege_it_is_refused(network: nn.Module, defender_view: DefenderView) -> None:
    with pytest.raises(IncompatibleError, match=r"must say so \(assumes: \[trigger\]\)"):
        KnownTrigger().run(network, defender_view.for_stage("trigger"))

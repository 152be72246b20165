"""Random numbers depend on their names and on nothing else."""

from __future__ import annotations

import hashlib

import pytest
import torch

from backdoor_bench import seeding


def test_a_derived_seed_is_the_same_on_every_machine_and_version() -> None:
    digest = hashlib.sha256(b'[0, "poison"]').digest()
    assert seeding.derive(0, "poison") == int.from_bytes(digest[:8], "big") // 2 == 4905741478759455478
    assert 0 <= seeding.derive() < 2**63


def test_different_names_give_different_seeds() -> None:
    paths = [
        (),
        (0,),
        (1,),
        ("0",),
        (0, "a"),
        ("a", 0),
        ("a0",),
        (None,),
        ("a", "b"),
        ("ab",),
        ("a, b",),
        (0, 1),
        (1, 0),
    ]
    assert len({seeding.derive(*path) for path in paths}) == len(paths)


def test_generators_do_not_share_their_state() -> None:
    first, second = seeding.generator(3, "x"), seeding.generator(3, "x")
    drawn = torch.rand(4, generator=first)
    assert torch.equal(drawn, torch.rand(4, generator=second))
    assert not torch.equal(drawn, torch.rand(4, generator=first))
    assert not torch.equal(drawn, torch.rand(4, generator=seeding.generator(3, "y")))


def test_a_generator_ignores_the_global_state() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        drawn = torch.rand(2, generator=seeding.generator("x"))
        state = torch.get_rng_state()
        torch.manual_seed(6)
        assert torch.equal(drawn, torch.rand(2, generator=seeding.generator("x")))
        torch.manual_seed(5)
        assert torch.equal(state, torch.get_rng_state())


def test_a_scope_seeds_inside_and_puts_back_outside() -> None:
    before = torch.get_rng_state()
    with seeding.scope(1, "network"):
        inside = torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    with seeding.scope(1, "network"):
        assert torch.equal(inside, torch.rand(3))
        with seeding.scope(2, "network"):
            assert not torch.equal(inside, torch.rand(3))
    torch.set_rng_state(before)


def test_a_scope_puts_back_after_an_error() -> None:
    before = torch.get_rng_state()

    def fail() -> None:
        torch.rand(1)
        raise KeyError

    with pytest.raises(KeyError), seeding.scope("x"):
        fail()
    assert torch.equal(before, torch.get_rng_state())

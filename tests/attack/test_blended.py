"""Blended, by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from backdoor_bench.attack import AttackerView
from backdoor_bench.attack.blended import Blended, blend, cartoon, resize
from backdoor_bench.errors import ConfigError, DataError


def key_of(attack: Blended, view: AttackerView, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    trigger = attack.trigger(size)
    attack.prepare(trigger, view)
    return trigger.key


def test_blend_is_a_mix_and_not_a_sum() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    key = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)
    torch.testing.assert_close(blend(images, key, 0.2).flatten(), torch.tensor([0.2, 0.5, 0.8]))
    assert torch.equal(blend(images, key, 1.0)[0], key)


def test_trigger_mixes_the_key_with_its_weight(attacker_view: AttackerView) -> None:
    attack = Blended(alpha=0.3)
    trigger = attack.trigger((32, 32))
    attack.prepare(trigger, attacker_view)
    torch.testing.assert_close(trigger(torch.zeros(2, 3, 32, 32))[1], 0.3 * trigger.key)


def test_cartoon_has_the_contrast_of_the_published_key(make_attacker_view: Callable[..., AttackerView]) -> None:
    assert cartoon().shape == (3, 380, 314)
    key = key_of(Blended(), make_attacker_view(seed=0))
    assert 0.6 < float(key.mean()) < 0.8
    assert 0.25 < float(key.std()) < 0.35
    assert torch.equal(key, key_of(Blended(), make_attacker_view(seed=1)))


def test_noise_comes_from_the_seed_and_is_enlarged(make_attacker_view: Callable[..., AttackerView]) -> None:
    attack = Blended(key="noise")
    key = key_of(attack, make_attacker_view(seed=0))
    assert abs(float(key.mean()) - 0.5) < 0.02
    assert abs(float(key.std()) - 12**-0.5) < 0.02
    assert not torch.equal(key, key_of(attack, make_attacker_view(seed=1)))
    large = key_of(attack, make_attacker_view(seed=0), (64, 64))
    assert torch.equal(large, F.interpolate(key[None], size=(64, 64), mode="bilinear")[0])


def test_resize_averages_and_rounds_to_8_bit() -> None:
    picture = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).expand(3, 2, 2)
    assert torch.equal(resize(picture, (1, 1)), torch.full((3, 1, 1), 128 / 255))
    assert torch.equal(resize(picture, (2, 2)), picture)


def test_key_from_a_file(tmp_path: Path, attacker_view: AttackerView) -> None:
    path = tmp_path / "key.png"
    Image.new("RGB", (10, 20), (255, 0, 51)).save(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    key = key_of(Blended(key=str(path), key_sha256=sha256), attacker_view)
    assert torch.equal(key, torch.tensor([1.0, 0.0, 0.2])[:, None, None].expand(3, 32, 32))
    with pytest.raises(ConfigError, match=f"give attack.key_sha256={sha256}"):
        key_of(Blended(key=str(path)), attacker_view)


def test_key_that_cannot_be_read_is_an_error(tmp_path: Path, attacker_view: AttackerView) -> None:
    with pytest.raises(
        ConfigError, match=r"attack\.key=kitty: expected cartoon, noise or an image file \(No such file"
    ):
        key_of(Blended(key="kitty"), attacker_view)
    path = tmp_path / "key.png"
    path.write_text("no picture")
    with pytest.raises(DataError, match="expected an image"):
        key_of(Blended(key=str(path), key_sha256=hashlib.sha256(b"no picture").hexdigest()), attacker_view)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_alpha_out_of_range_is_an_error(alpha: float) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.alpha={alpha}"):
        Blended(alpha=alpha)

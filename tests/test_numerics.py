"""Device and precision are resolved once; images become floats in one place."""

from __future__ import annotations

import pytest
import torch

from backdoor_bench import numerics
from backdoor_bench.errors import ConfigError
from backdoor_bench.numerics import Numerics

CPU = torch.device("cpu")


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16-mixed"), ({"amx_bf16": True}, "bf16-mixed"), ({"avx512_f": True}, "32-true")],
)
def test_auto_takes_what_the_processor_computes_in(monkeypatch, capabilities, precision) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert Numerics.resolve() == Numerics(CPU, precision, channels_last=True)


@pytest.mark.usefixtures("with_two_gpus")
def test_auto_takes_the_current_gpu() -> None:
    assert Numerics.resolve() == Numerics(torch.device("cuda:1"), "bf16-mixed")
    assert Numerics.resolve("cuda").device == torch.device("cuda:1")
    assert Numerics.resolve("cuda:0", "32-true").device == torch.device("cuda:0")


@pytest.mark.usefixtures("with_two_gpus")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="device=cuda:2: this machine has cuda:0 to cuda:1"):
        Numerics.resolve("cuda:2")


@pytest.mark.usefixtures("without_cuda")
def test_no_gpu_at_all() -> None:
    with pytest.raises(ConfigError, match="device=cuda: this machine has no CUDA device; use device=cpu"):
        Numerics.resolve("cuda")


@pytest.mark.parametrize("device", ["gpu", "meta", "cpu:x"])
def test_a_device_that_does_not_exist(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device={device}: expected auto, cpu, cuda or cuda:N$"):
        Numerics.resolve(device)


def test_an_unknown_precision_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown precision 'bf16'\. Did you mean bf16-mixed"):
        Numerics.resolve("cpu", "bf16")
    with pytest.raises(ConfigError, match="unknown precision '16'"):
        Numerics.resolve("cpu", 16)  # type: ignore[arg-type]  # as trainer.precision=16 arrives


def test_a_record_names_the_kind_of_device_alone() -> None:
    expected = {"device": "cuda", "precision": "bf16-mixed", "channels_last": False}
    assert Numerics(torch.device("cuda:3"), "bf16-mixed", channels_last=False).describe() == expected


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_become_floats_between_zero_and_one(channels_last: bool) -> None:
    stored = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).repeat(2, 1, 4, 4)
    made = Numerics(CPU, channels_last=channels_last).images(stored)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made[1, :, 2, 3], torch.tensor([0.0, 0.2, 1.0]))
    assert made.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert stored[0, 1, 0, 0] == 51


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_autocast(precision: numerics.Precision, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(2, 2)
    with Numerics(CPU, precision).autocast():
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_placing_keeps_the_values(network) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert Numerics(CPU).place(network) is network
    assert network.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())

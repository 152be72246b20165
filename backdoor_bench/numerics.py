"""Where and in which precision the arithmetic runs. Precision is part of a victim's identity, the device is not."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from backdoor_bench.errors import ConfigError, unknown

Precision = Literal["32-true", "bf16-mixed"]
PRECISIONS = ("auto", "32-true", "bf16-mixed")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Numerics:
    """Device, precision and memory format of one run. Build it with :meth:`resolve`."""

    device: torch.device
    precision: Precision = "32-true"
    channels_last: bool = True

    @classmethod
    def resolve(cls, device: str = "auto", precision: str = "auto", channels_last: bool = True) -> Numerics:
        """Turn ``auto`` into what the machine has: cuda, else cpu; bf16 where the hardware computes in it."""
        if precision not in PRECISIONS:
            raise unknown("precision", str(precision), PRECISIONS)  # 16 is a number
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            place = torch.device(device)
        except (RuntimeError, TypeError):  # whose message lists every device that torch was ever built for
            raise ConfigError(f"device={device}: expected auto, cpu, cuda or cuda:N") from None
        if place.type not in ("cpu", "cuda"):
            raise ConfigError(f"device={device}: expected auto, cpu, cuda or cuda:N")
        if place.type == "cuda":
            if not torch.cuda.is_available():
                raise ConfigError(f"device={device}: this machine has no CUDA device; use device=cpu")
            place = torch.device("cuda", place.index if place.index is not None else torch.cuda.current_device())
            if place.index >= torch.cuda.device_count():
                raise ConfigError(f"device={device}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
        if precision == "auto":
            precision = "bf16-mixed" if _has_bf16(place) else "32-true"
        return cls(place, cast(Precision, precision), channels_last)

    def describe(self) -> dict[str, str | bool]:
        """As records have it."""
        return {"device": self.device.type, "precision": self.precision, "channels_last": self.channels_last}

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which a network is called; triggers and losses over pixels stay outside."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def place(self, network: M) -> M:
        """Move a network to the device, in the memory format. In place; returned for chaining."""
        return network.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]

    def images(self, stored: Tensor) -> Tensor:
        """uint8 (B, 3, H, W), wherever it is held, to float32 in [0, 1], on the device, in the memory format."""
        # Moved as bytes, then converted: in one call torch would convert on the host and move four times as much.
        here = stored.to(self.device, non_blocking=True)
        return here.to(torch.float32, memory_format=self.memory_format).div_(255)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile"))

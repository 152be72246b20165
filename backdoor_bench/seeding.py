"""Random numbers that depend on what they are for, never on what ran before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Name = str | int | float | None


def derive(*names: Name) -> int:
    """A 63-bit seed from a path of names, e.g. ``derive(seed, "poison")``; stable over versions and machines."""
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*names: Name, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator seeded by :func:`derive`. The stream differs between device kinds."""
    return torch.Generator(device=device).manual_seed(derive(*names))


@contextmanager
def scope(*names: Name, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators inside the block and put back their states after it.

    For what draws from the global generator without asking (initialisation, dropout).
    """
    device = torch.device(device)
    cuda = [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(derive(*names))
        yield

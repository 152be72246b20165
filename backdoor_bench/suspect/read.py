"""The tensors of a model file from anywhere: safetensors, or torch.save's with ``weights_only=True``, nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from backdoor_bench import progress
from backdoor_bench.suspect import declared
from backdoor_bench.suspect.container import LIMIT_BYTES, SAFETENSORS, TORCHSCRIPT, Refused, look, open_file, printable

WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""Keys under which training scripts put a state dict, the likelier first."""


@dataclass(frozen=True)
class Weights:
    """What a model file holds: tensors on the CPU, the file's hash, safetensors' metadata."""

    tensors: dict[str, Tensor]
    sha256: str
    metadata: Mapping[str, str]


def read_state_dict(path: str | Path, limit_bytes: int = LIMIT_BYTES) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors``, ``.pt`` or ``.pth`` file; see :func:`read_weights`."""
    return read_weights(path, limit_bytes).tensors


def read_weights(path: str | Path, limit_bytes: int = LIMIT_BYTES) -> Weights:
    """Read a model file as data.

    What it declares is checked against its size first, so memory stays within a few times the file's size. Common
    wrappings (:data:`WRAPPINGS`) are opened; ``module.`` and ``_orig_mod.`` in front of every name are dropped.

    Args:
        path: a regular file, or a link to one.
        limit_bytes: the largest file that is read.

    Raises:
        Refused: no such file, no weights, anything besides weights that would be called, declarations that do not
            fit the file, or weights that are not finite. Nothing was executed.
    """
    try:
        with open_file(path, limit_bytes) as (file, size):
            container = look(file, size)
            if container.kind == TORCHSCRIPT:
                raise Refused("it is a TorchScript program, not weights; where you trust it, save its state_dict()")
            declared.check(container)
            sha256 = _sha256(file)
            loaded = _load_safetensors(path) if container.kind == SAFETENSORS else _load_torch(file)
        tensors = _without_wrappers(_state_dict(loaded))
        _require_finite(tensors)
    except Refused as refused:
        text = str(refused)
        raise Refused(text if str(path) in text else f"{path} was not read: {text}") from None
    return Weights(tensors, sha256, container.metadata)


def sha256_of(path: str | Path, limit_bytes: int = LIMIT_BYTES) -> str:
    """The hash of a regular file's bytes; raises as :func:`read_weights` does."""
    with open_file(path, limit_bytes) as (file, _):
        return _sha256(file)


def _sha256(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _load_safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise Refused(f"safetensors refuses it ({error})") from None


def _load_torch(file: BinaryIO) -> Any:
    file.seek(0)
    try:
        with _numpy_arrays():
            # Explicit: the environment can turn the default off.
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # pickle.UnpicklingError, RuntimeError, EOFError ...: each means the same here
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise Refused(f"torch.load with weights_only=True refuses it ({reason})") from None


@contextmanager
def _numpy_arrays() -> Iterator[None]:
    """Let plain NumPy arrays and numbers through, which BackdoorBench and many training scripts save beside weights.

    :func:`declared.check` has seen that each begins empty, as NumPy writes them.
    """
    core = np._core.multiarray  # type: ignore[attr-defined]
    made: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"}]
    for name in ("_reconstruct", "scalar"):
        made += [(getattr(core, name), f"numpy.{package}.multiarray.{name}") for package in ("core", "_core")]
    with torch.serialization.safe_globals(made):
        yield


def _state_dict(loaded: Any) -> dict[str, Tensor]:
    """The state dict itself, out of what training scripts wrap around it."""
    for _ in range(4):
        if not isinstance(loaded, Mapping):
            raise Refused(f"it holds a {type(loaded).__name__}, and a state dict is a mapping of names to tensors")
        inner: list[Any] = [name for name in WRAPPINGS if isinstance(loaded.get(name), Mapping) and loaded[name]]
        if not inner:
            break
        if len(inner) > 1:
            progress.say(f"the file holds {' and '.join(inner)}; taking {inner[0]}")
        loaded = loaded[inner[0]]
    tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    other = [name for name in loaded if name not in tensors]
    # Wrapped under a name of the script's own (WaNet's netC): whether it is a prefix, the network will say.
    for name in [name for name in other if _is_state_dict(loaded[name])]:
        tensors |= {f"{name}.{inside}": value for inside, value in loaded[name].items()}
        other.remove(name)
    if not tensors:
        keys = ", ".join(str(key)[:40] for key in list(loaded)[:8])
        raise Refused(
            f"it holds no tensors where a state dict is expected (top level, or {', '.join(WRAPPINGS)}); "
            f"it has: {keys or 'nothing'}"
        )
    if other:
        listed = ", ".join(printable(str(name)[:40]) for name in other[:5])
        progress.say(f"left aside what is no tensor: {listed}{' ...' if len(other) > 5 else ''}")
    return tensors


def _is_state_dict(value: Any) -> bool:
    """A mapping of names to tensors and of nothing else."""
    mapping = isinstance(value, Mapping) and bool(value)
    return mapping and all(isinstance(name, str) and isinstance(item, Tensor) for name, item in value.items())


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what DataParallel and torch.compile put in front."""
    for _ in range(4):
        for prefix in ("module.", "_orig_mod."):
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise Refused(f"{len(bad)} of its {len(tensors)} tensors hold NaN or infinity ({', '.join(bad[:3])})")


__all__ = ["Weights", "read_state_dict", "read_weights", "sha256_of"]

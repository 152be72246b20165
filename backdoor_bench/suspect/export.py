"""Writing a purified network: weights (safetensors), or a program that needs no class of ours (TorchScript, .pt2)."""

from __future__ import annotations

import json
import os
import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from backdoor_bench.errors import ConfigError, StoreError, UntrustedError
from backdoor_bench.model import Network, addition
from backdoor_bench.output import card_of
from backdoor_bench.suspect.fit import fit
from backdoor_bench.suspect.handed import unwrapped
from backdoor_bench.suspect.read import Weights, read_weights
from backdoor_bench.trust import trusted_instance

FORMAT = 1
METADATA = "backdoor_bench"
SUFFIXES = (".safetensors", ".ts", ".pt2")
TOLERANCE = 1e-4
"""What fused kernels of a traced program may change in a logit, relative to the largest."""


def check_target(target: str | Path, replace: bool = False) -> Path:
    """The path to export to, if it can be written, with a card beside it.

    Raises:
        ConfigError: another suffix, no such folder, or a file that is there already.
    """
    path = Path(target).expanduser()
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"export={target}: expected a name ending in .safetensors (weights), .ts (TorchScript) or .pt2 (torch's)"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"export={target}: there is no folder {path.parent}")
    for file in (path, card_of(path)):
        if file.exists() and not replace:
            raise ConfigError(
                f"export={target}: {file} is there already; choose another name, or overwrite it with force=true "
                "(in Python: replace=True)"
            )
    return path


def write(
    network: nn.Module,
    path: Path,
    card: str,
    images: Tensor,
    names: Mapping[str, str] | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
    model: Mapping[str, Any] | None = None,
) -> None:
    """Write the network and its card, each whole or not at all.

    Args:
        network: purified, in eval mode, taking what the exported one shall take.
        images: a few of those inputs; a program is traced with them, and compared on them.
        names, dtypes: what to call each tensor of the network, and its type, where the file it came from differs. A
            network with added modules keeps its own names.
        model: configuration and ``num_classes`` of a :class:`Network`, so that :func:`load` can build it.
    """
    additions = addition.describe(network)
    if path.suffix == ".safetensors":
        own = network.state_dict()
        names = dict(zip(own, own, strict=True)) if additions or names is None else names
        tensors = {
            called: own[name].detach().to("cpu", (dtypes or {}).get(name, own[name].dtype), copy=True).contiguous()
            for name, called in names.items()
        }
        about = {"format": FORMAT, "additions": additions, "model": dict(model) if model else None}
        metadata = {"format": "pt", METADATA: json.dumps(about)}
        _whole(path, lambda file: safetensors.torch.save_file(tensors, file, metadata))
    else:
        program = _Program(deepcopy(network).cpu().requires_grad_(False)).eval()
        inputs = images.detach().cpu()
        _whole(path, lambda file: (_torchscript if path.suffix == ".ts" else _program)(program, inputs, file))
    _whole(card_of(path), lambda file: file.write_text(card))


class _Program(nn.Module):
    """One input by name, whatever the network's forward is called with."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def _torchscript(network: nn.Module, images: Tensor, file: Path) -> None:
    with warnings.catch_warnings():
        # Deprecated, and what programs in C++ still load; shape checks in Python become constants, as they should.
        warnings.simplefilter("ignore")
        # Not frozen: the weights of a frozen program stay behind when it is moved to another device.
        traced = torch.jit.trace(network, images, check_trace=False)
        _require_agreement(network, traced, images)
        torch.jit.save(traced, str(file))


def _program(network: nn.Module, images: Tensor, file: Path) -> None:
    batch = torch.export.Dim("batch")
    try:
        exported = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises many kinds
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"torch.export cannot follow the network ({reason}); use .ts or .safetensors") from error
    _require_agreement(network, exported.module(), images)
    torch.export.save(exported, str(file))


@torch.no_grad()
def _require_agreement(network: nn.Module, program: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """The program gives the network's logits, for another number of images too."""
    for inputs in (images, images.repeat(2, 1, 1, 1)[:-1]):
        expected, got = network(inputs), program(inputs)
        difference = float((expected - got).abs().max()) / max(1.0, float(expected.abs().max()))
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"the exported program's logits differ from the network's by {difference:.2g}: its forward depends on "
                "the images in a way that tracing cannot see; export the weights as .safetensors"
            )


def load(path: str | Path, network: nn.Module | None = None, trust: tuple[str, ...] = ()) -> nn.Module:
    """A purified network from a ``.safetensors`` file that backdoor_bench wrote, with the modules that were added.

    Args:
        network: one of the architecture that was purified; it is copied, without what DataParallel or torch.compile
            put around it. None: the file names one of this package.
        trust: packages besides backdoor_bench whose added modules and networks a file may name.

    Returns:
        A network in eval mode, on the CPU or where ``network`` is.

    Raises:
        UntrustedError: the file is not what it should be; nothing in it was executed.
        IncompatibleError: its tensors do not fit the network.
    """
    weights = read_weights(path)
    about = describe(weights)
    if network is None:
        model = about.get("model")
        if not model:
            raise ConfigError(f"{path} names no architecture; hand over a network: load_purified(path, network)")
        node = {name: value for name, value in model.items() if name != "num_classes"}
        made: nn.Module = trusted_instance(node, Network, trust, num_classes=model.get("num_classes"))
    else:
        made = deepcopy(unwrapped(network))
    addition.restore(made, about["additions"], trust)
    fit(made, weights.tensors, str(path))
    return made.eval()


def describe(weights: Weights) -> dict[str, Any]:
    """What the metadata of a file says of added modules and architecture; nothing is believed yet."""
    text = weights.metadata.get(METADATA)
    if text is None:
        return {"additions": [], "model": None}
    try:
        about = json.loads(text)
        fine = about["format"] == FORMAT and isinstance(about["additions"], list)
        fine = fine and all(isinstance(entry, dict) for entry in about["additions"])
        if not fine or not isinstance(about.get("model") or {}, dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UntrustedError("the file's metadata is none that this version of backdoor_bench wrote") from None
    return {"additions": about["additions"], "model": about.get("model")}


def _whole(path: Path, make: Callable[[Path], object]) -> None:
    """Written beside, then renamed into place."""
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        make(temporary)
        temporary.chmod(0o666 & ~_umask())  # safetensors makes it the user's alone
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise StoreError(f"cannot write {path}: {error}; no half file was left") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


__all__ = ["SUFFIXES", "check_target", "describe", "load", "write"]

"""A network and images that somebody hands over in Python: checked, and made into what a defense works on."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from backdoor_bench import progress, seeding
from backdoor_bench.dataset import ImageSet
from backdoor_bench.errors import ConfigError, DataError, IncompatibleError
from backdoor_bench.model.addition import Addition
from backdoor_bench.numerics import Numerics

PROBES = 4
CHUNK = 1000
"""Images that are converted at once: all of them as float32 would take four times the memory of what is kept."""


class Frame:
    """RGB images in [0, 1] into what a network takes: a pre-hook, so that its modules keep their names.

    Args:
        mean, std: what the network's inputs are normalised with, a number per channel of its own; None: nothing.
        grey: the network takes one channel, the mean of the three.
    """

    def __init__(self, mean: Sequence[float] | None, std: Sequence[float] | None, grey: bool) -> None:
        channels = 1 if grey else 3
        self.mean, self.std = (_constants(name, values, channels) for name, values in (("mean", mean), ("std", std)))
        if self.std is not None and not bool((self.std > 0).all()):
            raise ConfigError(f"std={std}: expected positive numbers")
        self.grey = grey

    def __call__(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *rest = arguments
        if self.grey:
            images = images.mean(1, keepdim=True)
        if self.mean is not None:
            images = images - self.mean.to(images.device)
        if self.std is not None:
            images = images / self.std.to(images.device)
        return (images, *rest)


def _constants(name: str, values: Sequence[float] | None, channels: int) -> Tensor | None:
    if values is None:
        return None
    try:
        found = torch.as_tensor(values, dtype=torch.float32).flatten()
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if len(found) != channels:
        raise ConfigError(f"{name}={values}: expected {channels} numbers, one per channel of the network's input")
    return found.view(1, channels, 1, 1)


@dataclass(frozen=True)
class Came:
    """How a floating-point tensor of the network was when it was handed over."""

    dtype: torch.dtype
    memory_format: torch.memory_format
    trained: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Came:
        last = (
            tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
        )
        return cls(tensor.dtype, torch.channels_last if last else torch.contiguous_format, tensor.requires_grad)


@dataclass
class Handed:
    """A copy of a network, ready to be worked on: float32, on the device, trainable, taking RGB images in [0, 1]."""

    network: nn.Module
    num_classes: int
    frame: Frame
    _device: torch.device
    _came: dict[str, Came]
    _hook: RemovableHandle

    def inputs(self, images: Tensor) -> Tensor:
        """What the network that is given back takes, for RGB images in [0, 1]: on the CPU, in its dtype."""
        (inputs,) = self.frame(self.network, (images.detach(),))
        return inputs.to("cpu", next(iter(self._came.values())).dtype)

    def give_back(self) -> nn.Module:
        """The network with the interface it came with: input, dtypes, memory formats, device, frozen parameters; in
        eval mode."""
        self._hook.remove()
        network = self.network.to(self._device).eval()
        added = [name for name, module in network.named_modules() if isinstance(module, Addition)]
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            for site in reversed(added):  # an addition's own tensors are new, those of what it is around are not
                if name.startswith(f"{site}.inner."):
                    name = site + name.removeprefix(f"{site}.inner")
            came = self._came.get(name)
            if came is not None:
                tensor.data = tensor.data.to(came.dtype, memory_format=came.memory_format)
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(came is None or came.trained)
                tensor.grad = None
        return network


def take(
    network: nn.Module,
    images: ImageSet,
    grey: bool,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    numerics: Numerics,
) -> Handed:
    """Copy and check a network; the caller's is untouched.

    Raises:
        IncompatibleError: it cannot be copied or run on the images, or does not give logits.
    """
    network = unwrapped(network)
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        raise IncompatibleError(
            f"{type(network).__name__} has layers that get their shapes in the first forward (LazyLinear or the like); "
            "run one batch through it and hand it over again"
        )
    parameters = dict(network.named_parameters())
    devices = {parameter.device for parameter in parameters.values()}
    if len(devices) != 1 or "meta" in {device.type for device in devices}:
        places = ", ".join(sorted(map(str, devices))) or "nowhere"
        raise IncompatibleError(f"the network's parameters are on {places}; expected all on one device")
    tensors = {**parameters, **dict(network.named_buffers())}
    came = {name: Came.of(tensor) for name, tensor in tensors.items() if tensor.is_floating_point()}
    try:
        copy = deepcopy(network)
    except Exception as error:  # whatever a module's own __deepcopy__ raises
        raise IncompatibleError(
            f"{type(network).__name__} cannot be copied ({type(error).__name__}: {str(error).partition('.')[0]}); hand "
            "over one that copy.deepcopy accepts"
        ) from error
    copy = _on_one_device(copy)
    numerics.place(copy.float()).eval().requires_grad_(True)
    frame = Frame(mean, std, grey)
    hook = copy.register_forward_pre_hook(frame, prepend=True)
    probes = numerics.images(images.images[:PROBES])
    with torch.no_grad():
        logits = _probe(copy, probes, grey, numerics)
    if not _probe(deepcopy(copy).train(), probes, grey, numerics, ", in train mode,").requires_grad:
        raise IncompatibleError(
            f"the logits of {type(network).__name__} have no gradient (its forward runs under no_grad or detaches "
            "something), and defenses train by it; hand over the network inside"
        )
    if not bool(logits.isfinite().all()):
        raise IncompatibleError(f"{type(network).__name__} gives NaN or infinite logits on these images")
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones(len(logits)).to(logits), atol=1e-3):
        progress.say(
            f"warning: {type(network).__name__} seems to give probabilities; defenses train with cross-entropy over "
            "logits, so hand over the network without its softmax"
        )
    return Handed(copy, logits.shape[1], frame, next(iter(devices)), came, hook)


def unwrapped(network: nn.Module) -> nn.Module:
    """Without what DataParallel, DistributedDataParallel or torch.compile put around it."""
    if isinstance(network, torch.jit.ScriptModule):
        raise IncompatibleError("a TorchScript program cannot be taken apart; hand over the nn.Module it was made of")
    if not isinstance(network, nn.Module):
        raise IncompatibleError(f"expected an nn.Module that gives logits, got {type(network).__name__}")
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        network = network.module
    compiled = getattr(network, "_orig_mod", None)  # torch.compile's; its class would take seconds to import
    if isinstance(compiled, nn.Module):
        network = compiled
    return network


def _on_one_device(network: nn.Module) -> nn.Module:
    """In place: SyncBatchNorm as the BatchNorm2d that it is on one device, with the same tensors; said."""
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    for name, module in found:
        norm = nn.BatchNorm2d(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        ).train(module.training)
        norm._parameters, norm._buffers = module._parameters, module._buffers
        if not name:
            return norm
        network.set_submodule(name, norm)
    if found:
        progress.say(
            f"{len(found)} SyncBatchNorm are made BatchNorm2d, which they are on one device; names and tensors stay"
        )
    return network


def _probe(network: nn.Module, images: Tensor, grey: bool, numerics: Numerics, how: str = "") -> Tensor:
    batch, channels, *size = images.shape
    name, shape = type(network).__name__, (batch, 1 if grey else channels, *size)
    try:
        with seeding.scope("probe", device=numerics.device):
            logits = network(images)
    except Exception as error:  # whatever the network raises
        hint = "; for a network of RGB images repeat the channel: images.expand(-1, 3, -1, -1)" if grey else ""
        raise IncompatibleError(
            f"{name} cannot be run{how} on float images of shape {shape} ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}){hint}"
        ) from error
    if not isinstance(logits, Tensor):
        raise IncompatibleError(
            f"{name}{how} returns a {type(logits).__name__}; expected logits alone, (B, C): wrap it in a module whose "
            "forward returns them"
        )
    if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2 or not logits.is_floating_point():
        raise IncompatibleError(
            f"{name}{how} returns {logits.dtype} of shape {tuple(logits.shape)} for {len(images)} images; expected "
            f"float logits ({len(images)}, C) of two or more classes"
        )
    return logits.float()


def image_set(images: Any, labels: Any) -> tuple[ImageSet, bool]:
    """Images and labels as the methods hold them, and whether the images were grey.

    Args:
        images: (N, 3, H, W) or (N, 1, H, W), tensor or array, uint8, or float in [0, 1], which is rounded to 8 bits.
        labels: N whole numbers from 0.

    Raises:
        DataError: anything else.
    """
    found = _tensor("images", images)
    if found.ndim != 4 or found.shape[1] not in (1, 3):
        hint = "; put the channels first" if found.ndim == 4 and found.shape[3] in (1, 3) else ""
        raise DataError(f"images: expected (N, 3, H, W), or (N, 1, H, W) for grey, got {tuple(found.shape)}{hint}")
    if found.is_floating_point():
        low, high = (float(found.min()), float(found.max())) if found.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise DataError(
                f"images: float images are in [0, 1], these are in [{low:.3g}, {high:.3g}]; if they are normalised, "
                "hand over the pixels and say mean= and std=, if they count to 255, divide"
            )
        stored = torch.empty(found.shape, dtype=torch.uint8)
        for part, target in zip(found.split(CHUNK), stored.split(CHUNK), strict=True):
            target.copy_(part.float().mul(255).round_())
        found = stored
    elif found.dtype != torch.uint8:
        raise DataError(f"images: expected uint8, or float in [0, 1], got {found.dtype}")
    target = _tensor("labels", labels)
    if target.is_floating_point() or target.dtype == torch.bool or target.shape != (len(found),):
        raise DataError(
            f"labels: expected {len(found)} whole numbers, one per image, got {target.dtype} {tuple(target.shape)}"
        )
    grey = found.shape[1] == 1
    return ImageSet((found.expand(-1, 3, -1, -1) if grey else found).contiguous(), target.to(torch.int64)), grey


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise :class:`DataError` unless each label is a class of the network; say which classes have no image."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(f"labels: the network has classes 0 to {num_classes - 1}, these are {low} to {high}")
    missing = sorted({*range(num_classes)} - {*labels.tolist()})
    if missing:
        listed = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        progress.say(
            f"warning: {len(missing)} of the network's {num_classes} classes have no image here ({listed}); what is "
            "trained on the others alone forgets them"
        )


def _tensor(name: str, values: Any) -> Tensor:
    try:
        if isinstance(values, Tensor):
            return values.detach().cpu()
        array = np.ascontiguousarray(values)  # reversed channels (BGR) have strides that torch has not
        return torch.from_numpy(array if array.flags.writeable else array.copy())  # nor has it read-only tensors
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: expected a tensor or an array, got {type(values).__name__} ({error})") from None


__all__ = ["Frame", "Handed", "check_labels", "image_set", "take"]

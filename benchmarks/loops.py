"""The contenders: our training and evaluation, and the loops a person would write instead, over the same network.

Each takes a setting and a number of steps (batches), and returns the number of images it did.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from backdoor_bench.dataset import Batches, ImageSet
from backdoor_bench.numerics import Numerics
from backdoor_bench.training import Recipe
from benchmarks.setting import PAD, Setting

Contender = Callable[[Setting, int], int]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's own CIFAR10 serves them: one PIL image per item, then its transforms."""

    def __init__(self, data: ImageSet, transform: Callable[[Image.Image], Tensor]) -> None:
        self.pixels = data.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def loader(setting: Setting, data: ImageSet, train: bool) -> DataLoader[Any]:
    crop = [transforms.RandomCrop(32, padding=PAD), transforms.RandomHorizontalFlip()] if train else []
    return DataLoader(
        Pictures(data, transforms.Compose([*crop, transforms.ToTensor()])),
        batch_size=setting.recipe.batch_size if train else setting.eval_batch_size,
        shuffle=train,
        num_workers=setting.workers,
        persistent_workers=setting.workers > 0,
        pin_memory=setting.numerics.device.type == "cuda",
    )


def plain_fp32(setting: Setting, steps: int) -> int:
    """The textbook loop: DataLoader, torchvision transforms, fp32, PyTorch's defaults."""
    return _through_loader(setting, steps, None)


def plain_same_numerics(setting: Setting, steps: int) -> int:
    """The same loop with our precision and memory format."""
    return _through_loader(setting, steps, setting.numerics)


def bare(setting: Setting, steps: int) -> int:
    """Our arithmetic and nothing around it: images on the device, batched augmentation, our numerics."""
    data, epochs = setting.take(steps)
    numerics, draws = setting.numerics, torch.Generator(setting.numerics.device)
    batches = Batches(data.train, setting.recipe.batch_size, torch.Generator())
    augmented = ((data.augmentation(numerics.images(stored), draws), y) for _ in range(epochs) for stored, y in batches)
    _train(numerics.place(setting.network()), augmented, setting.recipe, numerics)
    return epochs * len(data.train)


def ours(setting: Setting, steps: int) -> int:
    """What a run does: ``train_victim`` with BadNets, poisoning and the Trainer's set-up included."""
    from backdoor_bench.attack import train_victim
    from backdoor_bench.attack.badnet import BadNet

    data, epochs = setting.take(steps)
    with redirect_stderr(io.StringIO()):
        train_victim(data, setting.network, BadNet(), replace(setting.recipe, epochs=epochs), setting.numerics, seed=0)
    return epochs * len(data.train)


def evaluate_plain(setting: Setting, steps: int) -> int:
    """Accuracy through a DataLoader, fp32."""
    device, test = setting.numerics.device, setting.test(steps)
    network, correct = setting.network().to(device).eval(), torch.zeros((), dtype=torch.long, device=device)
    with torch.inference_mode():
        for batch, labels in loader(setting, test, train=False):
            correct += (network(batch.to(device)).argmax(1) == labels.to(device)).sum()
    assert int(correct) <= len(test)
    return len(test)


def evaluate_ours(setting: Setting, steps: int) -> int:
    """ACC by our Evaluator."""
    from backdoor_bench.metric import Evaluator

    numerics, test = setting.numerics, setting.test(steps)
    evaluator = Evaluator(test, None, setting.data.num_classes, numerics, setting.eval_batch_size)
    evaluator.measure(numerics.place(setting.network()))
    return len(test)


TRAINING: dict[str, Contender] = {
    "plain fp32 loop": plain_fp32,
    "same loop, our numerics": plain_same_numerics,
    "bare loop on device": bare,
    "train_victim": ours,
}
EVALUATION: dict[str, Contender] = {"plain fp32 loop": evaluate_plain, "Evaluator": evaluate_ours}


def _through_loader(setting: Setting, steps: int, numerics: Numerics | None) -> int:
    data, epochs = setting.take(steps)
    network = setting.network()
    network = numerics.place(network) if numerics else network.to(setting.numerics.device)
    batches = loader(setting, data.train, train=True)
    _train(network, (batch for _ in range(epochs) for batch in batches), setting.recipe, numerics)
    return epochs * len(data.train)


def _train(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], recipe: Recipe, numerics: Numerics | None
) -> None:
    """Forward, backward, step; the loss stays on the device."""
    device = next(network.parameters()).device
    optimizer = recipe.optimizer(network.parameters())
    total = torch.zeros((), device=device)
    network.train()
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if numerics is not None:
            images = images.to(memory_format=numerics.memory_format)
        with numerics.autocast() if numerics is not None else nullcontext():
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()
    if not bool(total.isfinite()):
        raise RuntimeError("the loss of a contender is not finite")

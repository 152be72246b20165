"""COMBAT: a generator and a surrogate, trained in turns (Huynh, Nguyen, Pham and Tran, AAAI 2024, 38(3), 2436-2444).

A U-Net G paints low-frequency noise on an image. A surrogate S learns clean-label poison made by the current G; G
learns to make S say the target label while a frozen clean model F0 still says the true one, so that G becomes a
backdoor trigger and not an adversarial perturbation. The victim then meets ordinary poisoned data.

The reference works in [-1, 1]; here images are in [0, 1], so its noise rate counts half and its squared error fourfold.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from backdoor_bench import seeding
from backdoor_bench.attack.base import Attack, AttackerView, Taxonomy, Trigger
from backdoor_bench.attack.generator import UNet, blur, low_pass, low_pass_matrix
from backdoor_bench.attack.image_draws import image_draws
from backdoor_bench.dataset import Augmentation
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.model import Network
from backdoor_bench.training import Recipe


def add_noise(images: Tensor, noise: Tensor, rate: float) -> Tensor:
    """``clamp(x + rate / 2 * noise, 0, 1)``: images in [0, 1], noise in [-1, 1], both (B, 3, H, W).

    ``rate`` is the reference's, for images in [-1, 1]: 0.08 there is an amplitude of 0.04 here, 10 grey levels.
    """
    return (images + rate / 2 * noise).clamp(0, 1)


def generator_loss(
    surrogate_logits: Tensor,
    clean_logits: Tensor,
    triggered: Tensor,
    images: Tensor,
    labels: Tensor,
    target_label: int,
    l2_weight: float,
    clean_weight: float,
) -> Tensor:
    """``CE(S(x_bd), target) + l2_weight * MSE(x_bd, x) + clean_weight * CE(F0(x_bd), y)``.

    ``triggered`` and ``images`` are in [0, 1]; the error is measured in [-1, 1] as published, hence the factor 4.
    """
    target = torch.full_like(labels, target_label)
    distance = 4 * F.mse_loss(triggered, images)
    return (
        F.cross_entropy(surrogate_logits.float(), target)
        + l2_weight * distance
        + clean_weight * F.cross_entropy(clean_logits.float(), labels)
    )


def step_schedule(epochs: int) -> Any:
    """A tenth of the rate after half and after three quarters of the epochs; published: 100 and 150 of 200."""
    return partial(MultiStepLR, milestones=[math.ceil(epochs / 2), math.ceil(3 * epochs / 4)], gamma=0.1)


class CombatTrigger(Trigger):
    """``blur(clamp(x + rate / 2 * lowpass(G(2x - 1)), 0, 1), sigma)``; G's weights are the state.

    The reference draws sigma anew at every call, for training and for test images. Here each image brings its own
    along, from the same range, so that the same image gives the same result every time.
    """

    low_rows: Tensor
    low_columns: Tensor

    def __init__(
        self,
        image_size: tuple[int, int],
        width: int,
        noise_rate: float,
        low_pass_ratio: float,
        blur_sigma: tuple[float, float],
    ) -> None:
        super().__init__()
        if any(size % UNet.MULTIPLE or size < UNet.SMALLEST for size in image_size):
            raise IncompatibleError(
                f"attack=combat: its generator halves an image four times, so height and width must be divisible by "
                f"{UNet.MULTIPLE} and at least {UNet.SMALLEST}, but these images are {image_size[0]}x{image_size[1]}; "
                "resize them, e.g. to 32x32 or 64x64, or use another attack"
            )
        self.noise_rate, self.blur_sigma = noise_rate, blur_sigma
        with seeding.scope("combat", "allocate"):  # weights that prepare() replaces; the caller's random state stays
            self.generator = UNet(width)
        for name, size in zip(("low_rows", "low_columns"), image_size, strict=True):
            self.register_buffer(name, low_pass_matrix(size, low_pass_ratio), persistent=False)

    def perturb(self, images: Tensor) -> Tensor:
        """Images with G's noise, before the blur; G runs in the surrounding precision, the rest in float32."""
        noise = self.generator(2 * images - 1)
        with torch.autocast(images.device.type, enabled=False):
            return add_noise(images, low_pass(noise.float(), self.low_rows, self.low_columns), self.noise_rate)

    def sigma(self, images: Tensor) -> Tensor:
        """(B,): each image's own width of the blur, uniform in the range."""
        return between(self.blur_sigma, image_draws(images, 1, "combat: the blur")[:, 0])

    def paint(self, images: Tensor) -> Tensor:
        return blur(self.perturb(images), self.sigma(images)).clamp(0, 1)  # weights may sum to a little over 1


def between(bounds: tuple[float, float], uniform: Tensor) -> Tensor:
    """Numbers in [0, 1) moved to the range."""
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


class Alternation(LightningModule):
    """Phase 1: per batch one step of S on poisoned data, then one step of G against S and F0.

    Args:
        trigger: holds G; trained in place.
        surrogate: S; trained.
        clean: F0; frozen.
        poisoned_share: chance that an image of the target class gets the trigger in the step of S.
        augmentation: applied after the trigger; differentiable.
        draws: generator on the images' device.
    """

    def __init__(
        self,
        attack: Combat,
        trigger: CombatTrigger,
        surrogate: Network,
        clean: Network,
        view: AttackerView,
        poisoned_share: float,
        augmentation: Augmentation,
        draws: torch.Generator,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.attack, self.numerics, self.draws = attack, view.numerics, draws
        self.poisoned_share, self.augmentation = poisoned_share, augmentation
        self.trigger, self.surrogate, self.clean = trigger, surrogate, clean.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Alternation:
        super().train(mode)
        self.clean.eval()
        return self

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        stored, labels = batch
        images = self.numerics.images(stored)
        # G does not change during the step of S and has no running statistics: one pass of G serves both steps.
        noisy = self.trigger.perturb(images)
        self._surrogate_step(images, noisy.detach(), labels)
        return self._generator_step(images, noisy, labels)

    def _surrogate_step(self, images: Tensor, noisy: Tensor, labels: Tensor) -> None:
        # A coin per image, where the reference draws their number and takes the first of the (shuffled) batch.
        coin = torch.rand(len(labels), generator=self.draws, device=labels.device) < self.poisoned_share
        poisoned = (coin & (labels == self.attack.target_label)).view(-1, 1, 1, 1)
        seen = torch.where(poisoned, self._blur(noisy), images)
        self.surrogate.train()
        loss = F.cross_entropy(self.surrogate(self.augmentation(seen, self.draws)), labels)
        self._step(0, loss)

    def _generator_step(self, images: Tensor, noisy: Tensor, labels: Tensor) -> Tensor:
        triggered = self._blur(noisy)
        augmented = self.augmentation(triggered, self.draws)
        # Frozen, S collects no gradient; nor does autocast give back the cast weights from before its step.
        self.surrogate.eval().requires_grad_(False)
        loss = generator_loss(
            self.surrogate(augmented), self.clean(augmented), triggered, images, labels,
            self.attack.target_label, self.attack.l2_weight, self.attack.clean_weight,
        )  # fmt: skip
        self._step(1, loss)
        self.surrogate.requires_grad_(True)
        return loss.detach()

    def _blur(self, images: Tensor) -> Tensor:
        uniform = torch.rand(1, generator=self.draws, device=self.draws.device)
        return blur(images, between(self.attack.blur_sigma, uniform))

    def _step(self, number: int, loss: Tensor) -> None:
        optimizer = cast(Sequence[Any], self.optimizers())[number]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def on_train_epoch_end(self) -> None:
        for scheduler in cast(Sequence[MultiStepLR], self.lr_schedulers()):
            scheduler.step()

    def configure_optimizers(self) -> Any:
        optimizers = [
            self.attack.optimizer(self.surrogate.parameters()),
            self.attack.generator_optimizer(self.trigger.generator.parameters()),
        ]
        return optimizers, [step_schedule(self.attack.generator_epochs)(optimizer) for optimizer in optimizers]


class Combat(Attack):
    """Only images of the target class are altered, and no label. Weights and rates are the reference's, for [-1, 1].

    Departures: the last epoch is kept, where the reference takes the epoch with the best clean accuracy of S on the
    test set; an image keeps its width of the blur; the victim is trained by the data set's recipe and augmentation
    (the attacker's networks have the published ones); augmentation fills with black, not grey, and decides for each
    image whether to crop and rotate it; ``round(ratio * N)`` images are poisoned, not ``int(share * class size)``.

    Args:
        generator_width: channels of G's first level; published 64.
        surrogate_width: ``width`` of F0 and S; null: the victim's.
        clean_epochs, generator_epochs: phases 0 and 1; published 200 each.
        batch_size, momentum, weight_decay: SGD with Nesterov of F0, S and G.
        lr, generator_lr: rates of F0 and S, and of G; published the same. Not higher with a ``fresh`` S: at 0.05 the
            running variances of its BatchNorm lag behind, and its logits in eval mode, which G learns from, pass 1e6
            in the first ten steps (measured at width 64; at 0.01 they stay below 1).
        surrogate_start: ``fresh`` weights, as published, or those of the ``clean`` model, which spares short runs the
            epochs in which S knows nothing yet that G could learn from.
        noise_rate: amplitude of the noise for images in [-1, 1]; 0.08 is 0.04 in [0, 1].
        low_pass_ratio: share of the DCT's rows and columns that is kept.
        blur_sigma: range of the 3x3 blur, pixels, drawn for each image.
        l2_weight, clean_weight: see :func:`generator_loss`.
        crop_padding, crop_probability, rotation, rotation_probability: the augmentation of F0 and S, as in
            :class:`Augmentation`; whether to flip is the data set's.
    """

    version = 3  # 1 rotated by coordinates in bfloat16; 2 blurred test images by the middle of the range
    taxonomy = Taxonomy("clean", "dynamic", "global", "additive", "data-poisoning")

    def __init__(
        self,
        generator_width: int = 64,
        surrogate_width: int | None = None,
        clean_epochs: int = 200,
        generator_epochs: int = 200,
        batch_size: int = 128,
        lr: float = 0.01,
        generator_lr: float = 0.01,
        surrogate_start: Literal["fresh", "clean"] = "fresh",
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        noise_rate: float = 0.08,
        low_pass_ratio: float = 0.65,
        blur_sigma: Sequence[float] = (0.1, 1.0),
        l2_weight: float = 0.02,
        clean_weight: float = 0.8,
        crop_padding: int = 5,
        crop_probability: float = 0.8,
        rotation: float = 10.0,
        rotation_probability: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if len(blur_sigma) != 2 or not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise ConfigError(f"attack.blur_sigma={list(blur_sigma)}: expected two positive numbers, smaller first")
        if not 0 < low_pass_ratio <= 1:
            raise ConfigError(f"attack.low_pass_ratio={low_pass_ratio}: expected a share in (0, 1]; 1 keeps everything")
        if surrogate_start not in ("fresh", "clean"):
            raise ConfigError(f"attack.surrogate_start={surrogate_start}: expected fresh or clean")
        if clean_epochs < 1 or generator_epochs < 1:
            raise ConfigError(
                f"attack.clean_epochs={clean_epochs}, attack.generator_epochs={generator_epochs}: "
                "expected at least 1 each; an untrained generator is no attack"
            )
        self.generator_width, self.surrogate_width = generator_width, surrogate_width
        self.clean_epochs, self.generator_epochs, self.batch_size = clean_epochs, generator_epochs, batch_size
        sgd = partial(SGD, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay)
        self.optimizer, self.generator_optimizer = partial(sgd, lr=lr), partial(sgd, lr=generator_lr)
        self.surrogate_start = surrogate_start
        self.noise_rate, self.low_pass_ratio = noise_rate, low_pass_ratio
        self.blur_sigma = (float(blur_sigma[0]), float(blur_sigma[1]))
        self.l2_weight, self.clean_weight = l2_weight, clean_weight
        self.attacker_augmentation: dict[str, Any] = dict(
            crop_padding=crop_padding, crop_probability=crop_probability,
            rotation=rotation, rotation_probability=rotation_probability,
        )  # fmt: skip

    def trigger(self, image_size: tuple[int, int]) -> CombatTrigger:
        return CombatTrigger(image_size, self.generator_width, self.noise_rate, self.low_pass_ratio, self.blur_sigma)

    def prepare(self, trigger: Trigger, view: AttackerView) -> None:
        """Phase 0, the clean model; phase 1, the generator against the surrogate."""
        assert isinstance(trigger, CombatTrigger)
        share = len(self.choose(view)) / int((view.train.labels == self.target_label).sum())
        with seeding.scope(view.seed, "attack", "generator"):
            drawn = UNet(self.generator_width)
        trigger.generator.load_state_dict(drawn.state_dict())
        view.numerics.place(trigger.generator)
        augmentation = dataclasses.replace(view.augmentation, **self.attacker_augmentation)
        width: dict[str, Any] = {} if self.surrogate_width is None else {"width": self.surrogate_width}
        recipe = Recipe(self.clean_epochs, self.batch_size, self.optimizer, step_schedule(self.clean_epochs))
        clean = view.clean_network("combat: the clean model", recipe, augmentation, **width)
        surrogate = view.new_network("surrogate", **width)
        if self.surrogate_start == "clean":
            surrogate.load_state_dict(clean.state_dict())
        draws = view.generator("generator draws", view.numerics.device)
        phase1 = Alternation(self, trigger, surrogate, clean, view, share, augmentation, draws)
        view.fit(phase1, self.generator_epochs, self.batch_size, "combat: the generator")

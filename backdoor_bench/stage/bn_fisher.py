"""UniBP, steps 2 to 4: re-align a throw-away copy with the suspect network's BatchNorm statistics on clean data, rank
the BatchNorm affine entries by Fisher information, mask the largest ("UniBP: Toward Universal Backdoor Purification
via Fine-Tuning", anonymous submission, Eqs. 1 to 4)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench.dataset import Batches
from backdoor_bench.errors import ConfigError
from backdoor_bench.model import anatomy
from backdoor_bench.stage.affine_budget import Statistics, budget, entries_mask, largest_harmless, top_k
from backdoor_bench.stage.base import TrainingStage
from backdoor_bench.stage.image_gradients import squared_gradients
from backdoor_bench.stage.masked_finetune import batch_size_of
from backdoor_bench.stage.output import Mask, Reference
from backdoor_bench.stage.view import DefenderView


def bn_distance(
    batch: Statistics, reference: Statistics, lam: float, second_moment: str = "variance", eps: float = 1e-5
) -> Tensor:
    """``L_BN(l) = ||mu - mu*||_2 + lambda * ||v - v*||_2`` (Eq. 1), a scalar; the reference is a constant.

    Args:
        batch: statistics of the batch, with their gradients.
        reference: the suspect network's running statistics.
        lam: the paper's lambda.
        second_moment: ``variance``, or ``std`` for the square roots (the paper's Fig. 2).
        eps: added under those square roots, as BatchNorm does.
    """
    (mean, variance), (mean_ref, variance_ref) = batch, reference
    if second_moment == "std":
        variance, variance_ref = (variance + eps).sqrt(), (variance_ref + eps).sqrt()
    return torch.linalg.vector_norm(mean - mean_ref) + lam * torch.linalg.vector_norm(variance - variance_ref)


def rectify_loss(ce: Tensor, distances: Sequence[Tensor], kind: str, weight: float = 1e-3) -> Tensor:
    """Cross-entropy joined with the layers' distances of :func:`bn_distance`.

    ``log``: ``CE + log(mean + 1e-6)`` (Eq. 2; without the 1e-6 in print), whose gradient does not depend on the scale
    of the distance; ``linear``: ``CE + weight * sum`` (the authors' predecessor PBP); ``none``: CE.
    """
    if kind == "none":
        return ce
    together = torch.stack(list(distances))
    return ce + ((together.mean() + 1e-6).log() if kind == "log" else weight * together.sum())


@contextmanager
def input_statistics(layers: Mapping[str, nn.BatchNorm2d]) -> Iterator[dict[str, Statistics]]:
    """Inside the block, each forward leaves the batch mean and unbiased variance of every layer's input over N, H, W.

    Float32 whatever the autocast, with gradients through both; unbiased, because running variances are.
    """
    seen: dict[str, Statistics] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3))
            seen[name] = (mean, variance)

        return hook

    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def add_squares(totals: Sequence[Tensor], gradients: Sequence[Tensor | None], share: float) -> None:
    """Add ``share * gradient ** 2`` of one batch to the scores, in place; None: it reached no parameter."""
    pairs = [(total, gradient) for total, gradient in zip(totals, gradients, strict=True) if gradient is not None]
    if pairs:
        reached, squared = zip(*pairs, strict=True)
        torch._foreach_addcmul_(reached, squared, squared, value=share)


class BNFisher(TrainingStage):
    """Rectify a copy of the Reference (without one: of the network), score its BN affine entries, mask the largest.

    The distance compares the copy's batch statistics with the running statistics of the *network*, which is untouched.
    The score of an entry is the mean over mini-batches of its squared gradient of the rectifying loss, after the
    rectifying epochs, in train mode (Eq. 3; per batch, since the distance is a functional of the batch). The report
    says how far the copy was rectified by then: its cross-entropy, and its mean distance over the layers.

    Args:
        k, k_mode: see :func:`budget`. The paper's K is a share of all parameters that fits PreActResNet18 only; 5 % of
            the BN affine entries is the same number there (339) and carries over.
        bn_loss, bn_weight: see :func:`rectify_loss`.
        lam, bn_second_moment: see :func:`bn_distance`.
        unit, order, max_frac_per_layer: see :func:`top_k`.
        k_select: K is ``fixed``, or the largest of :func:`largest_harmless` up to that (``val``; needs
            ``use_validation=hold_out``), which loses at most ``max_drop`` of validation accuracy. Not in the paper.
        fisher: ``batch`` as above; ``sample_ce``: the mean over images of the squared gradient of each image's own
            cross-entropy, in eval mode, as one image has no batch statistics.
        rectify_params: train ``all`` parameters of the copy, or ``bn_only``: its gammas and betas.
        when: score ``after`` the rectifying epochs, or ``during`` them: the mean over their steps.
        apply_to: what is pruned and tuned from here on: the ``suspect`` network, or, put in its place, the copy as it
            came (``reset``) or ``rectified``. The paper leaves it open; its predecessor PBP takes the first.
        batch_size: images per step; None: by the clean ratio, see :func:`masked_finetune.batch_size_of`.
        training: ``epochs`` (of rectifying; the paper names none), ``optimizer``, ``scheduler``.
    """

    layers: dict[str, nn.BatchNorm2d]
    reference: dict[str, Statistics]
    _totals: list[Tensor]
    _parts: list[Tensor]

    def __init__(
        self,
        k: float = 0.05,
        k_mode: Literal["ratio_bn", "ratio_all", "count"] = "ratio_bn",
        bn_loss: Literal["log", "linear", "none"] = "log",
        bn_weight: float = 1e-3,
        lam: float = 0.05,
        bn_second_moment: Literal["variance", "std"] = "variance",
        unit: Literal["entry", "channel"] = "entry",
        order: Literal["top", "bottom"] = "top",
        max_frac_per_layer: float = 1.0,
        rectify_params: Literal["all", "bn_only"] = "all",
        when: Literal["after", "during"] = "after",
        apply_to: Literal["suspect", "reset", "rectified"] = "suspect",
        batch_size: int | None = None,
        fisher: Literal["batch", "sample_ce"] = "batch",
        k_select: Literal["fixed", "val"] = "fixed",
        max_drop: float = 0.1,
        **training: Any,
    ) -> None:
        super().__init__(batch_size=batch_size_of(None) if batch_size is None else batch_size, **training)
        for name, value, known in (
            ("fisher", fisher, ("batch", "sample_ce")),
            ("k_select", k_select, ("fixed", "val")),
            ("k_mode", k_mode, ("ratio_bn", "ratio_all", "count")),
            ("bn_loss", bn_loss, ("log", "linear", "none")),
            ("bn_second_moment", bn_second_moment, ("variance", "std")),
            ("unit", unit, ("entry", "channel")),
            ("order", order, ("top", "bottom")),
            ("rectify_params", rectify_params, ("all", "bn_only")),
            ("when", when, ("after", "during")),
            ("apply_to", apply_to, ("suspect", "reset", "rectified")),
        ):
            if value not in known:
                raise ConfigError(f"{name}={value}: expected {' or '.join(known)}")
        if when == "during" and self.epochs < 1:
            raise ConfigError("when=during needs rectifying epochs; use epochs=1 or more, or when=after")
        if when == "during" and fisher == "sample_ce":
            raise ConfigError("fisher=sample_ce scores the rectified copy; use when=after")
        if not 0 <= max_drop <= 1:
            raise ConfigError(f"max_drop={max_drop}: expected a fraction in [0, 1]")
        if not 0 < max_frac_per_layer <= 1:
            raise ConfigError(f"max_frac_per_layer={max_frac_per_layer}: expected a fraction in (0, 1]")
        self.k, self.k_mode, self.bn_loss, self.bn_weight = k, k_mode, bn_loss, bn_weight
        self.lam, self.bn_second_moment, self.unit, self.order = lam, bn_second_moment, unit, order
        self.max_frac_per_layer, self.rectify_params = max_frac_per_layer, rectify_params
        self.when, self.apply_to = when, apply_to
        self.per_image, self.uses_validation = fisher == "sample_ce", k_select == "val"  # type: ignore[misc]
        self.max_drop = max_drop
        self.batch_size_by_ratio = batch_size is None

    def check_network(self, network: nn.Module, images: Tensor) -> None:
        self._budget(network)

    def run(self, network: nn.Module, view: DefenderView, reference: Reference | None = None) -> Mask:
        self.reference = {
            name: (layer.running_mean.clone(), layer.running_var.clone())  # type: ignore[union-attr]
            for name, layer in anatomy.batch_norms(network).items()
        }
        twin = copy.deepcopy(network if reference is None else reference.network)
        self.layers = anatomy.batch_norms(twin)
        if self.batch_size_by_ratio:
            self.batch_size = batch_size_of(view.clean_ratio)
        if self.apply_to == "reset":
            network.load_state_dict(twin.state_dict())
        self._totals, self._parts = [torch.zeros_like(parameter) for parameter in self._affine()], []
        history = self.train_network(twin, view)
        scores = self.fisher(twin, view) if self.when == "after" else self._by_layer()
        if self.apply_to == "rectified":
            network.load_state_dict(twin.state_dict())
        count, selected = self._budget(network), dict[str, Any]()
        which = partial(top_k, scores, unit=self.unit, order=self.order, max_frac_per_layer=self.max_frac_per_layer)
        if self.uses_validation:
            count, selected = largest_harmless(network, view, count, which, self.max_drop)
        pruned = which(count)
        reached = torch.stack(self._parts).mean(0).tolist() if self._parts else [None, None]
        del self.layers, self.reference, self._totals, self._parts
        mask = entries_mask(pruned)
        report: dict[str, Any] = {"rectify_loss": history.loss[-1] if history.loss else None}
        report |= dict(zip(("cross_entropy", "bn_distance"), reached, strict=True))
        report |= selected | {"entries": sum(2 * len(pair[0]) for pair in pruned.values()), "pruned": Mask(mask).count}
        counts = torch.stack([torch.stack(pair).sum() for pair in pruned.values()]).tolist()
        report |= {f"pruned.{name}": count for name, count in zip(pruned, counts, strict=True) if count}
        return Mask(mask, report=report)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with input_statistics(self.layers) as seen:
            ce = F.cross_entropy(self.network(images), labels)
        distances = [
            bn_distance(seen[name], self.reference[name], self.lam, self.bn_second_moment, layer.eps)
            for name, layer in self.layers.items()
            if name in seen  # an auxiliary head does not run
        ]
        self._parts.append(torch.stack([ce, torch.stack(distances).mean()]).detach())
        return rectify_loss(ce, distances, self.bn_loss, self.bn_weight)

    def trained_parameters(self) -> Iterable[nn.Parameter]:
        return self.network.parameters() if self.rectify_params == "all" else self._affine()

    def on_after_backward(self) -> None:
        if self.when == "during":
            steps = int(self.trainer.estimated_stepping_batches)
            add_squares(self._totals, [weight.grad for weight in self._affine()], 1 / steps)

    def fisher(self, twin: nn.Module, view: DefenderView) -> dict[str, Statistics]:
        """Mean over one epoch's mini-batches of the squared batch gradient, per layer for gammas and for betas; or over
        its images, of the gradients of each."""
        self._totals = [torch.zeros_like(parameter) for parameter in self._affine()]
        batches = Batches(view.train, self.batch_size, view.generator("fisher"))
        if self.per_image:
            return self._fisher_per_image(twin, view, batches)
        self._parts = []
        self.network, self.view = twin, view
        self._augmentation_draws = view.generator("fisher augmentation", view.device)
        twin.train()
        for batch in batches:
            with view.numerics.autocast():
                loss = self.training_step(batch, 0)
            add_squares(self._totals, torch.autograd.grad(loss, self._affine(), allow_unused=True), 1 / len(batches))
        twin.eval()
        del self.network
        return self._by_layer()

    def _fisher_per_image(self, twin: nn.Module, view: DefenderView, batches: Batches) -> dict[str, Statistics]:
        names = [f"{name}.{part}" for name in self.layers for part in ("weight", "bias")]
        draws = view.generator("fisher augmentation", view.device)
        twin.eval()
        for stored, labels in batches:
            images = view.augmentation(view.numerics.images(stored), draws)
            with view.numerics.autocast():
                squares = squared_gradients(twin, names, images, labels)
            torch._foreach_add_(self._totals, squares, alpha=1 / len(view.train))
        return self._by_layer()

    def _by_layer(self) -> dict[str, Statistics]:
        return dict(zip(self.layers, zip(self._totals[::2], self._totals[1::2], strict=True), strict=True))

    def _affine(self) -> list[nn.Parameter]:
        """Gamma, beta, gamma, beta, ... in the order of the layers."""
        return [parameter for layer in self.layers.values() for parameter in (layer.weight, layer.bias)]

    def _budget(self, network: nn.Module) -> int:
        affine = sum(2 * layer.num_features for layer in anatomy.batch_norms(network).values())
        everything = sum(parameter.numel() for parameter in network.parameters())
        return budget(self.k_mode, self.k, affine, everything, least=2 if self.unit == "channel" else 1)

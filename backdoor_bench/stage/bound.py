"""UNIT, steps 2 and 3: activation statistics on clean data and the bounds to start from (Cheng et al., "UNIT: Backdoor
Mitigation via Automated Neural Distribution Tightening", ECCV 2024, Alg. 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backdoor_bench.dataset import Batches, ImageSet
from backdoor_bench.errors import ConfigError, IncompatibleError, require_whole, unknown
from backdoor_bench.model import anatomy
from backdoor_bench.numerics import Numerics
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.output import Bounds
from backdoor_bench.stage.view import DefenderView

Granularity = Literal["unit", "channel"]
Sites = int | Sequence[str] | None


class Moments:
    """Mean and standard deviation of a stream of activations, from sums in float64."""

    def __init__(self, granularity: Granularity = "unit") -> None:
        self.granularity = granularity
        self.count = 0
        self.total = self.square = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def add(self, activations: Tensor) -> None:
        """(B, C, H, W), (B, tokens, features) or (B, features)."""
        values = activations.double()
        shared = [0]
        if self.granularity == "channel" and values.ndim > 2:
            # Feature maps have their channels first, tokens their features last.
            shared += [2, 3] if values.ndim == 4 else list(range(1, values.ndim - 1))
        total = values.sum(shared, keepdim=True)[0]
        self.count += values.numel() // total.numel()
        self.total = self.total.to(total.device) + total
        self.square = self.square.to(total.device) + values.square().sum(shared, keepdim=True)[0]

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased standard deviation (0 of a single value), float32, of an activation's shape; with
        ``granularity=channel`` of size 1 where a channel spreads.
        """
        mean = self.total / self.count
        variance = (self.square - self.total * mean).clamp_(min=0) / max(self.count - 1, 1)
        return mean.float(), variance.sqrt().float()


def find_sites(network: nn.Module, wanted: Sites = None, images: Tensor | None = None) -> list[str]:
    """The modules whose outputs are bounded. Activations that have none are given one, see :func:`anatomy.separate`.

    Args:
        wanted: None: every activation; a number: the first so many of them; names: the activations at or below each,
            or, where there is none (pooled features), the module itself.
        images: see :func:`anatomy.walk`.
    """
    activations = anatomy.separate(network, images)
    if wanted is None:
        return activations
    if isinstance(wanted, int):
        if not 0 < wanted <= len(activations):
            raise ConfigError(f"sites={wanted}: expected 1 to {len(activations)}, the network's activations")
        return activations[:wanted]
    modules = {name: None for name, _ in network.named_modules() if name}
    found: dict[str, None] = {}
    for name in wanted:
        if name not in modules:
            raise unknown("site", name, modules)
        found |= dict.fromkeys([site for site in activations if site == name or site.startswith(f"{name}.")] or [name])
    return list(found)


def fixed_augmentation(view: DefenderView) -> ImageSet:
    """The training images, augmented once: UNIT's code draws when it builds its tensors and never again.

    The same draw for every stage that asks: bounds are tightened on the images that their statistics come from.
    """
    draws = view.for_stage("fixed augmentation").generator("augmentation", view.device)
    parts = []
    for stored in view.train.images.split(1000):
        images = view.augmentation(view.numerics.images(stored), draws)
        parts.append(images.mul(255).round_().clamp_(0, 255).to(torch.uint8))
    return ImageSet(torch.cat(parts), view.train.labels)


@torch.no_grad()
def activation_moments(
    network: nn.Module,
    data: ImageSet,
    numerics: Numerics,
    sites: Sequence[str],
    granularity: Granularity = "unit",
    batch_size: int = 250,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation over ``data`` of what each site gives; see :class:`Moments`.

    Raises:
        IncompatibleError: a site does not run exactly once per forward, so that one bound cannot belong to it.
    """
    moments = {site: Moments(granularity) for site in sites}
    called: set[str] = set()

    def look(_: nn.Module, __: Any, output: Tensor, site: str) -> None:
        if site in called:
            raise _not_once(network, site, "more than once")
        called.add(site)
        moments[site].add(output)

    handles = [network.get_submodule(site).register_forward_hook(partial(look, site=site)) for site in sites]
    try:
        for stored, _ in Batches(data, batch_size):
            called.clear()
            with numerics.autocast():
                network(numerics.images(stored))
            for site in moments.keys() - called:
                raise _not_once(network, site, "never")
    finally:
        for handle in handles:
            handle.remove()
    return {site: moment.result() for site, moment in moments.items()}


def _not_once(network: nn.Module, site: str, times: str) -> IncompatibleError:
    return IncompatibleError(
        f"{anatomy.title(network)} calls '{site}' {times} per forward, and a bound belongs to a module that is called "
        "once; give each call an activation module of its own, or choose other sites"
    )


def initial_bounds(moments: Mapping[str, tuple[Tensor, Tensor]], z: float) -> dict[str, Tensor]:
    """``sigma_0 = mean + z * std``, site by site."""
    return {site: mean + z * std for site, (mean, std) in moments.items()}


class Bound(Stage):
    """Bounds of every activation unit from clean statistics; what the network computes is left as it is.

    Of a transformer the outputs of attention blocks are bounded too. The images are augmented once. Eval mode. The
    published ResNet18 clips behind the sum of each residual block; a pre-activation network has no activation there,
    so what its shortcuts carry, and its last feature map, are not bounded.

    Args:
        z: deviations above the mean.
        granularity: ``unit`` bounds each (channel, row, column), as published, and ties the network to one input
            size; ``channel`` (a departure) each channel.
        sites: see :func:`find_sites`. Names of modules that compute no activation are taken as they are.
        augment: statistics of images that were augmented once, as in the authors' code; the paper does not say.
        batch_size: images per forward; no effect on the result.
    """

    version = 2

    def __init__(
        self,
        z: float = 4.0,
        granularity: Granularity = "unit",
        sites: Sites = None,
        augment: bool = True,
        batch_size: int = 250,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(inputs)
        if granularity not in ("unit", "channel"):
            raise ConfigError(f"granularity={granularity}: expected unit or channel")
        self.z, self.granularity, self.sites = z, granularity, sites
        self.augment, self.batch_size = augment, require_whole("batch_size", batch_size, 1)

    def check_network(self, network: nn.Module, images: Tensor) -> None:
        if not isinstance(self.sites, Sequence) and not anatomy.activations(network, images):
            raise IncompatibleError(
                f"{anatomy.title(network)} has no activations to bound; name modules with sites=[NAME]"
            )

    def run(self, network: nn.Module, view: DefenderView) -> Bounds:
        data = fixed_augmentation(view) if self.augment else view.train
        sites = find_sites(network, self.sites, view.example)
        moments = activation_moments(network, data, view.numerics, sites, self.granularity, self.batch_size)
        bounds = initial_bounds(moments, self.z)
        means = torch.stack([bound.mean() for bound in bounds.values()])
        report = {"sites": len(bounds), "bounds": sum(bound.numel() for bound in bounds.values())}
        return Bounds(bounds, report={**report, "penalty": round(float(means.sum()), 6)})

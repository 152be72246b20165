"""purify(network, images, labels): for people who have a model of their own in Python."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from backdoor_bench import config as configuration
from backdoor_bench import option, progress
from backdoor_bench.chance import at_chance, best_constant
from backdoor_bench.dataset import Augmentation, ImageSet, Regime, draw_clean
from backdoor_bench.dataset.base import fingerprint
from backdoor_bench.defense import DefenderView, Defense
from backdoor_bench.errors import ConfigError, DataError, IncompatibleError, require_whole, unknown
from backdoor_bench.metric import predict
from backdoor_bench.numerics import Numerics
from backdoor_bench.suspect import export, handed
from backdoor_bench.suspect.card import Accuracy, Card, machine
from backdoor_bench.suspect.composed import compose
from backdoor_bench.suspect.export import load as load_purified
from backdoor_bench.table import percent

BATCH_SIZE = 500


@dataclass(frozen=True)
class StageReport:
    """One stage, done: its seconds, whether it changed the network, and the numbers that it reports."""

    name: str
    seconds: float
    changed: bool
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Purified:
    """A purified network and what was done to it.

    Args:
        network: in eval mode, with the interface, device and dtypes of the one handed over.
        defense: its name.
        stages: in order.
        seconds: of all stages.
        train, validation: clean images used to train, and held out.
        before, after: accuracy on the held-out images, fractions; None where none were held out.
    """

    network: nn.Module
    defense: str
    stages: tuple[StageReport, ...]
    seconds: float
    train: int
    validation: int
    before: float | None
    after: float | None
    facts: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    example: Tensor | None = field(default=None, repr=False)

    def summary(self) -> str:
        """Some lines for a person."""
        width = max(len(stage.name) for stage in self.stages)
        lines = [f"{self.defense}: {self.train} clean images to train, {self.validation} to validate"]
        for stage in self.stages:
            report = ", ".join(f"{name}={value}" for name, value in stage.report.items())
            note = "" if stage.changed else "network unchanged"
            details = "; ".join(text for text in (note, report) if text)
            lines.append(f"  {stage.name:<{width}}  {stage.seconds:6.1f} s  {details}".rstrip())
        accuracy = f"{percent(self.before)} % before, {percent(self.after)} % after, on the held-out images"
        lines.append(f"ACC {accuracy if self.validation else 'not measured: no image was held out'}")
        if self._accuracy.warning:
            lines.append(f"warning: {self._accuracy.warning}")
        lines.append("ASR not measured: that takes the attacker's trigger")
        return "\n".join(lines)

    __str__ = summary

    @property
    def _accuracy(self) -> Accuracy:
        return Accuracy("clean images that were held out from training", self.validation, self.before, self.after)

    def save(self, path: str | Path, replace: bool = False) -> Path:
        """Write the network to ``.safetensors`` (see :func:`load_purified`), ``.ts`` or ``.pt2``, and a card beside it.

        The card of ``out.safetensors`` is ``out.md``, that of ``out.ts`` is ``out.ts.md``.

        Args:
            replace: overwrite what is there.
        """
        target = export.check_target(path, replace)
        weights = target.suffix == ".safetensors"
        usage = {
            ".safetensors": "network = backdoor_bench.load_purified(PATH, network)  # into another of its kind",
            ".ts": "network = torch.jit.load(PATH)",
            ".pt2": "network = torch.export.load(PATH).module()",
        }[target.suffix].replace("PATH", repr(target.name))
        card = Card(
            target.name, self.defense, self.facts, [vars(stage) for stage in self.stages],
            self._accuracy, f"```python\nimport {'backdoor_bench' if weights else 'torch'}\n\n{usage}\n```",
        )  # fmt: skip
        assert self.example is not None
        export.write(self.network, target, card.markdown(), self.example)
        return target


def purify(
    network: nn.Module,
    images: Any,
    labels: Any,
    defense: str = "unibp",
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str = "auto",
    seed: int = 0,
    precision: str = "auto",
    **overrides: Any,
) -> Purified:
    """Purify a copy of a network with a few clean images.

    A tenth of the images, of each class, is held out for validation; both shares are on the device as 8 bits. The
    network is worked on in float32 and returned as it came; its random choices depend on ``seed`` alone. Calls from
    several threads take turns, but a thread that draws from torch's global generator meanwhile disturbs dropout.

    Args:
        network: gives (B, C) logits for float images. Yours is untouched.
        images: clean, (N, 3, H, W), or (N, 1, H, W) for a network of grey images; uint8, or float in [0, 1].
        labels: (N,) whole numbers in [0, C).
        defense: a name of ``conf/defense``, e.g. unibp, ft, tsbd, unit, clp, anp, fp, gradprune.
        mean, std: what the network's inputs are normalised with, per channel; None: it takes pixels in [0, 1].
        device: auto (cuda, else cpu), cpu, cuda or cuda:N.
        seed: of the held-out share and of every generator of the defense.
        precision: auto, 32-true or bf16-mixed.
        **overrides: options of the defense, as on the command line without ``defense.``: ``epochs=5``,
            ``stages={"prune": {"ratio": 0.1}}`` or ``**{"stages.prune.ratio": 0.1}``; and of the training's
            ``augmentation`` (crops of up to four pixels, no mirroring): ``augmentation={"flip": True}``.

    Raises:
        DataError: images or labels are not as above.
        ConfigError: no such defense or option.
        IncompatibleError: the defense has no meaning on this network, or the network gives no logits.
    """
    # Whatever the caller has switched off, the work needs gradients.
    with _ONE_AT_A_TIME, torch.inference_mode(False), torch.enable_grad():
        seed = require_whole("seed", seed, 0)
        given, grey = handed.image_set(images, labels)
        if not len(given) or int(torch.bincount(given.labels.clamp(min=0)).max()) < 2:
            raise DataError(f"{len(given)} images: expected two or more of a class, one to train and one to validate")
        numerics = Numerics.resolve(device, precision)
        method, augmentation, share = _method(defense, overrides)
        taken = handed.take(network, given, grey, mean, std, numerics)
        handed.check_labels(given.labels, taken.num_classes)
        view = _view(given, method, taken.num_classes, augmentation, numerics, seed, share)
        before = _accuracy(taken.network, view.validation, numerics)
        _warn_at_chance(taken.network, given, numerics)
        reports = tuple(
            StageReport(stage.name, stage.seconds, stage.changed, dict(stage.output.report) if stage.output else {})
            for stage in method.run(taken.network, view)
        )
        after = _accuracy(taken.network, view.validation, numerics)
        example = taken.inputs(numerics.images(given.images[:2]))
        facts = _facts(type(taken.network).__name__, view, mean, std)
        seconds = sum(report.seconds for report in reports)
        counts = (len(view.train), len(view.validation))
        return Purified(taken.give_back(), defense, reports, seconds, *counts, before, after, facts, example)


_ONE_AT_A_TIME = threading.RLock()
"""Stages seed torch's global generators and Hydra composes in a global object: threads take turns."""


def _method(defense: str, overrides: Mapping[str, Any]) -> tuple[Defense, Augmentation, float]:
    """The defense, the augmentation and the images' share of the device's memory, from ``conf`` and the caller."""
    known = {path.stem for path in (configuration.directory() / "defense").glob("*.yaml")}
    if defense not in known:
        raise unknown("defense", defense, known)
    config = compose(f"+defense={defense}", "dataset=image_folder", "dataset.root=.").copy()
    for name, value in _flat(overrides):
        node = "dataset" if name.split(".")[0] == "augmentation" else "defense"
        _set(config, node, name, value)
    resolved = configuration.plain(config)
    if assumes := resolved["defense"].get("assumes"):
        words = " and ".join(privilege.replace("_", " ") for privilege in assumes)
        raise IncompatibleError(
            f"{defense} assumes the attacker's {words}, and purify() has none; use another defense, e.g. unibp"
        )
    method = option.make(resolved["defense"], "")
    augmentation = configuration.make(resolved["dataset"]["augmentation"])
    assert isinstance(method, Defense)
    assert isinstance(augmentation, Augmentation)
    return method, augmentation, resolved["trainer"]["dataset_memory_share"]


def _flat(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _set(config: DictConfig, node: str, name: str, value: Any) -> None:
    """Set an option that exists.

    Raises:
        ConfigError: it does not, or the value cannot be one.
    """
    parent: Any = config[node]
    above: list[str] = []
    for part in name.split("."):
        if not isinstance(parent, DictConfig) or part not in parent:
            keys = parent if isinstance(parent, DictConfig) else ()
            options = [".".join([*above, str(key)]) for key in keys if not str(key).startswith("_")]
            raise unknown(f"option of {config.defense.name}", name, options)
        above.append(part)
        parent = parent._get_node(part)
    try:
        OmegaConf.update(config, f"{node}.{name}", value, force_add=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}={value!r}: {str(error).splitlines()[0]}") from None


def _view(
    given: ImageSet, method: Defense, num_classes: int, augmentation: Augmentation, numerics: Numerics, seed: int,
    memory_share: float,
) -> DefenderView:  # fmt: skip
    """The images, a tenth of each class held out, on the device unless they would fill it."""
    draw = draw_clean(given.labels, Regime(None, 1.0), fingerprint(given), seed)
    train, held_out = given[draw.train], given[draw.validation]
    if method.use_validation == "train":
        train, held_out = given, given[draw.validation[:0]]
    return DefenderView(
        train.to(numerics.device, memory_share), held_out.to(numerics.device, memory_share), num_classes, augmentation,
        numerics, seed,
    )  # fmt: skip


def _accuracy(network: nn.Module, data: ImageSet, numerics: Numerics) -> float | None:
    """Of a copy's worth: the network is in eval mode and stays as it is."""
    if not len(data):
        return None
    network.eval()
    right = sum(int((found == data.labels[rows]).sum()) for found, rows in predict(network, data, numerics, BATCH_SIZE))
    return right / len(data)


def _warn_at_chance(network: nn.Module, given: ImageSet, numerics: Numerics) -> None:
    """Say, before a defense spends time on it, where the network is no classifier of these images."""
    acc = _accuracy(network, ImageSet(given.images, given.labels.to(numerics.device)), numerics)
    constant = best_constant(torch.bincount(given.labels).tolist())
    if acc is not None and at_chance(acc, constant):
        progress.say(
            f"WARNING: before any defense the network is right on {acc:.1%} of your {len(given):,} images, and "
            f"answering the largest class whatever is shown is on {constant:.1%}. Is the normalisation right (mean=, "
            "std=)? Are the labels the numbers of the network's classes?"
        )


def _facts(
    name: str, view: DefenderView, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[str, str], ...]:
    """What a card says besides the stages."""
    normalised = "none: it takes pixels in [0, 1]"
    if mean is not None or std is not None:
        normalised = f"mean {mean}, std {std}: it takes images normalised with these, as before"
    return (
        ("network", f"{name}, {view.num_classes} classes"),
        ("input normalisation", normalised),
        ("clean images used", f"{len(view.train)} to train, {len(view.validation)} to validate"),
        ("seed", str(view.repetition)),
        *machine(str(view.device)),
    )


__all__ = ["Purified", "StageReport", "load_purified", "purify"]

"""Defense: a dict of named stages, run in order, with a trace."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from hydra.errors import HydraException
from torch import Tensor, nn

from backdoor_bench import config as configuration
from backdoor_bench import seeding, training
from backdoor_bench.errors import ConfigError, IncompatibleError, unknown
from backdoor_bench.model import anatomy
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.output import Output
from backdoor_bench.stage.view import DefenderView

PRIVILEGES = {"trigger": "known_trigger", "target_label": "known_target"}
"""What a defense may assume, and the view's field for it."""

DEMANDS_LEAST = ("ft",)
"""What is looked at where none of the defenses to use instead has a meaning on a network either."""


@dataclass(frozen=True)
class StageResult:
    """One stage, done: the defense's own network (measure a copy), what the stage left, how long it took."""

    name: str
    network: nn.Module
    output: Output | None
    seconds: float
    changed: bool


class Defense:
    """A named sequence of stages.

    Args:
        name: as on the command line and in records.
        stages: in order.
        assumes: what it needs beyond the clean images, e.g. ``["trigger"]``; blind if empty. Recorded, never ranked
            with the blind ones.
        requires: what a network must have, see :data:`anatomy.PARTS`.
        instead: defenses to name when a network lacks that.
        epochs: length of the recovery; the last training stage interpolates it.
        use_validation: ``hold_out`` keeps a tenth of the clean images for validation; ``train`` trains on them too.
    """

    def __init__(
        self,
        name: str,
        stages: Mapping[str, Stage],
        assumes: Sequence[str] = (),
        requires: Sequence[str] = (),
        instead: Sequence[str] = ("ft",),
        epochs: int | None = None,
        use_validation: Literal["hold_out", "train"] = "hold_out",
        **ignored: Any,
    ) -> None:
        if not stages:
            raise ConfigError(f"defense '{name}' has no stages")
        for part, stage in stages.items():
            if not isinstance(stage, Stage):
                raise ConfigError(
                    f"stage '{part}' of {name} is {stage}; choose one with stage@defense.stages.{part}=NAME, e.g. skip"
                )
        if use_validation not in ("hold_out", "train"):
            raise ConfigError(f"defense.use_validation={use_validation}: expected hold_out or train")
        for privilege in assumes:
            if privilege not in PRIVILEGES:
                raise unknown("privilege in assumes", privilege, PRIVILEGES)
        if ignored:
            raise ConfigError(f"defense '{name}' has no option {', '.join(sorted(ignored))}")
        self.name, self.stages = name, dict(stages)
        self.assumes, self.requires, self.instead = tuple(assumes), tuple(requires), tuple(instead)
        self.epochs, self.use_validation = epochs, use_validation
        self._wiring = self._wire()

    def check_network(self, network: nn.Module, images: Tensor | None = None) -> None:
        """Raise if the defense has no meaning on the network; neither its weights nor the pixels matter.

        Args:
            images: two of the size that it will be used with, on its device; None: see :func:`anatomy.example`.
        """
        images = anatomy.example(network) if images is None else images
        with self._advising(network, images):
            self._check_network(network, images)

    def _check_network(self, network: nn.Module, images: Tensor) -> None:
        self._check_parts(network, images)
        for name, stage in self.stages.items():
            with self._named(name):
                stage.check_network(network, images)

    def check(self, network: nn.Module, view: DefenderView) -> None:
        """Raise before any work if the defense has no meaning on this network or with this view."""
        with self._advising(network, view.example):
            self._check_parts(network, view.example)
            for name, stage in self.stages.items():
                if stage.uses_validation and not len(view.validation):
                    raise ConfigError(
                        f"stage '{name}' of {self.name} decides by validation accuracy, and the validation images went "
                        "to training; use defense.use_validation=hold_out"
                    )
                with self._named(name):
                    stage.check(network, view.for_stage(name))
        for privilege in self.assumes:
            if getattr(view, PRIVILEGES[privilege]) is None:
                raise IncompatibleError(
                    f"{self.name} assumes the attacker's {privilege.replace('_', ' ')}, and this victim has none; "
                    "add +attack=NAME (all-to-all has no one target label)"
                )

    def _check_parts(self, network: nn.Module, images: Tensor) -> None:
        for part in self.requires:
            if part not in anatomy.PARTS:
                raise unknown("part in requires", part, anatomy.PARTS)
            if not anatomy.PARTS[part](network, images):
                raise IncompatibleError(
                    f"{self.name} needs {part} in the network, and {anatomy.title(network)} has none"
                )

    @contextmanager
    def _named(self, stage: str) -> Iterator[None]:
        """What a stage refuses is said with the defense's name and the stage's."""
        try:
            yield
        except IncompatibleError as error:
            raise IncompatibleError(f"{self.name}, stage '{stage}': {error}") from error

    @contextmanager
    def _advising(self, network: nn.Module, images: Tensor) -> Iterator[None]:
        """What is refused is said with what to use instead, of which nothing is refused as well."""
        try:
            yield
        except IncompatibleError as error:
            others = [name for name in self.instead if _admits(name, network, images)]
            others = others or [name for name in DEMANDS_LEAST if _admits(name, network, images)]
            advice = f"another defense, e.g. {' or '.join(others)}" if others else "another network"
            raise IncompatibleError(f"{error}; use {advice}") from error

    def run(self, network: nn.Module, view: DefenderView) -> Iterator[StageResult]:
        """Run the stages on ``network`` in place; yields after each. Nothing that is yielded to comes back."""
        self.check(network, view)
        outputs: dict[str, Output | None] = {}
        for name, stage in self.stages.items():
            before = {key: value.clone() for key, value in network.state_dict().items()}
            inputs = {port: outputs[source] for port, source in self._wiring[name].items()}
            started = time.perf_counter()
            network.eval()
            with seeding.scope("defense", view.repetition, name, device=view.device):
                output = stage.run(network, view.for_stage(name), **inputs)
            if view.device.type == "cuda":
                torch.cuda.synchronize(view.device)
            seconds = time.perf_counter() - started
            training.require_finite(network, f"stage '{name}'")
            outputs[name] = output
            yield StageResult(name, network, output, seconds, not _same(before, network.state_dict()))

    def _wire(self) -> dict[str, dict[str, str]]:
        """For each stage, which earlier stage's Output each of its inputs gets."""
        given: dict[str, type[Output]] = {}
        wiring: dict[str, dict[str, str]] = {}
        for name, stage in self.stages.items():
            ports = stage.ports()
            for key in stage.inputs:
                if key not in {port.name for port in ports}:
                    raise unknown(f"input of stage '{name}'", key, [port.name for port in ports])
            wiring[name] = {}
            for port in ports:
                fitting = [source for source, kind in given.items() if issubclass(kind, port.kind)]
                wanted = stage.inputs.get(port.name)
                if wanted is not None and wanted not in fitting:
                    raise ConfigError(
                        f"stage '{name}' of {self.name} takes its {port.name} from '{wanted}', "
                        f"which gives no {port.kind.__name__} before it; those that do: {', '.join(fitting) or 'none'}"
                    )
                if wanted is not None or fitting:
                    wiring[name][port.name] = wanted or fitting[-1]
                elif port.required:
                    raise ConfigError(
                        f"stage '{name}' of {self.name} needs a {port.kind.__name__}, and no stage before it gives "
                        f"one; put such a stage before it, or leave out '{name}' too (stage@defense.stages.{name}=skip)"
                    )
            kind = stage.gives()
            if kind is not None:
                given[name] = kind
        return wiring


def _admits(name: str, network: nn.Module, images: Tensor) -> bool:
    """Whether the defense of this name in ``conf`` has a meaning on a network; not if there is none such."""
    from backdoor_bench.suspect.composed import compose  # Hydra's seconds, for a refusal alone

    try:
        other = configuration.make(configuration.plain(compose(f"+defense={name}"))["defense"])
        other._check_network(network, images)
    except (IncompatibleError, HydraException):
        return False
    return True


def _same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)

"""Stage: one step of a defense. TrainingStage: a step that trains, as a LightningModule with a fit of its own."""

from __future__ import annotations

import inspect
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench import seeding, training
from backdoor_bench.dataset import Batches, ImageSet
from backdoor_bench.errors import require_whole
from backdoor_bench.stage.gradients import gradients_for
from backdoor_bench.stage.output import Output
from backdoor_bench.stage.view import DefenderView
from backdoor_bench.training import History, MakeOptimizer, MakeScheduler


@dataclass(frozen=True)
class Port:
    """An input of a stage: the parameter of ``run``, the type it takes, and whether it must be there."""

    name: str
    kind: type[Output]
    required: bool


class Stage(ABC):
    """One step of a defense.

    ``run(network, view, **inputs)`` changes the network in place, leaves an Output, or both. Each further parameter
    of ``run`` is annotated with the Output it takes (``mask: Mask``, or ``mask: Mask | None = None`` if optional) and
    gets the latest earlier Output of that type, or that of the stage which ``inputs`` names for it.

    Args:
        inputs: parameter of ``run`` to the name of the stage whose Output it gets.
    """

    version: ClassVar[int] = 1
    uses_validation: ClassVar[bool] = False
    """Whether the stage reads ``view.validation``; such a stage cannot run with ``use_validation=train``."""

    def __init__(self, inputs: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.inputs = dict(inputs or {})

    @abstractmethod
    def run(self, network: nn.Module, view: DefenderView, *args: Any, **inputs: Any) -> Output | None:
        """Do the step. ``network`` is the defense's own copy, on the view's device.

        A subclass names its inputs in place of ``*args, **inputs``, which lets type checkers accept any.
        """

    def check_network(self, network: nn.Module, images: Tensor) -> None:
        """Raise :class:`IncompatibleError` if the step has no meaning on this network, before any work is done.

        Asked when a run is planned, too, of a network on the meta device: neither weights nor pixels matter.

        Args:
            images: two images to run it on, where its order of layers matters; see :mod:`anatomy`.
        """

    def check(self, network: nn.Module, view: DefenderView) -> None:
        """The same before the defense runs, with the view in hand."""
        self.check_network(network, view.example)

    @classmethod
    def ports(cls) -> list[Port]:
        """The inputs that ``run`` declares."""
        hints = typing.get_type_hints(cls.run)
        found = []
        for name, parameter in list(inspect.signature(cls.run).parameters.items())[3:]:
            found.append(Port(name, _output_type(hints[name]), parameter.default is inspect.Parameter.empty))
        return found

    @classmethod
    def gives(cls) -> type[Output] | None:
        """The Output that ``run`` declares to return, if any."""
        hint = typing.get_type_hints(cls.run).get("return")
        return None if hint in (None, type(None)) else _output_type(hint)


def _output_type(hint: Any) -> type[Output]:
    options = [hint]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [option for option in typing.get_args(hint) if option is not type(None)]
    if len(options) != 1 or not (isinstance(options[0], type) and issubclass(options[0], Output)):
        raise TypeError(f"a stage's inputs and result are Outputs, not {hint}")
    return options[0]


class TrainingStage(Stage, LightningModule):
    """A stage that trains. A subclass gives :meth:`loss`, and in :meth:`run` calls :meth:`train_network`.

    Args:
        epochs: passes over the data.
        batch_size: images per step; a trailing partial batch is kept.
        optimizer: makes the optimiser of :meth:`trained_parameters`.
        scheduler: makes the schedule of the optimiser, or None; see :func:`training.optimisers`.
    """

    train_mode: ClassVar[bool] = True
    """BatchNorm uses batch statistics and updates its running ones, dropout is active; False: eval mode."""

    network: nn.Module
    """The one that is trained; there during the fit."""
    frozen: nn.Module
    """The one beside it, if the fit was given one: a teacher, the suspect network as it came."""
    view: DefenderView

    def __init__(
        self,
        epochs: int,
        batch_size: int,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(inputs)
        self.epochs, self.batch_size = require_whole("epochs", epochs, 0), require_whole("batch_size", batch_size, 1)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch: augmented float images (B, 3, H, W) in [0, 1], labels (B,). Default: cross-entropy."""
        return F.cross_entropy(self.network(images), labels)

    def trained_parameters(self) -> Iterable[nn.Parameter]:
        """What the optimiser moves. Default: every parameter of the network."""
        return self.network.parameters()

    def train_network(
        self,
        network: nn.Module,
        view: DefenderView,
        data: ImageSet | None = None,
        callbacks: Sequence[Callback] = (),
        batches: Iterable[tuple[Tensor, Tensor]] | None = None,
        epochs: int | None = None,
        frozen: nn.Module | None = None,
    ) -> History:
        """Fit ``network`` in place on the view's training images, or ``data``, or ready-made ``batches``.

        The network is left in eval mode, without gradients, on the view's device.

        Args:
            frozen: a second network for the loss to look at, as ``self.frozen``: in eval mode, its parameters without
                gradients (images that go through it may have them). Another object than ``network``; left as it is.
        """
        self.network, self.view = network, view
        if frozen is not None:
            # Past nn.Module: what is not trained is no part of the stage.
            self.__dict__["frozen"] = frozen.eval()
        self._augmentation_draws = view.generator("augmentation", view.device)
        if batches is None:
            batches = Batches(view.train if data is None else data, self.batch_size, view.generator("order"))
        title = view.stage or type(self).__name__
        try:
            with (
                seeding.scope("defense", view.repetition, view.stage, "fit", device=view.device),
                nullcontext() if frozen is None else gradients_for(frozen, ()),
            ):
                return training.fit(
                    self, batches, self.epochs if epochs is None else epochs, view.numerics, title, callbacks
                )
        finally:
            network.eval().zero_grad(set_to_none=True)
            del self.network
            self.__dict__.pop("frozen", None)

    def on_fit_start(self) -> None:
        # Lightning keeps the mode the network was in; after a measurement that is eval.
        self.network.train(self.train_mode)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        stored, labels = batch
        images = self.view.augmentation(self.view.numerics.images(stored), self._augmentation_draws)
        return self.loss(images, labels)

    def configure_optimizers(self) -> Any:
        return training.optimisers(self, self.trained_parameters(), self.make_optimizer, self.make_scheduler)

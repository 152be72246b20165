"""``hydra/sweeper=grid``: plans a whole grid, narrows it, and hands its runs to the engine.

Hydra's launchers take override strings and compose each job anew; a grid of 100,000 runs is planned here instead. This
module is imported whenever Hydra looks for plugins, so whatever is heavy is imported where it is used.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from backdoor_bench.errors import ConfigError
from backdoor_bench.overrides import NULL
from backdoor_bench.words import counted

if TYPE_CHECKING:
    from backdoor_bench.sweep.plan import SweepPlan

outcomes: list[int | Exception] = []
"""Exit statuses of the sweeps of this process, or why they did not start: Hydra hands nothing back to its caller."""


typed: list[str] = []
"""What the person typed behind the command, which Hydra sees made ready; empty if Hydra was called by other means."""


class GridSweeper(Sweeper):
    """See ``conf/hydra/sweeper/grid.yaml`` for the arguments, and ``sweep`` in ``conf/config.yaml`` for the options."""

    def __init__(
        self, axes: Mapping[str, Any], extra: Sequence[Any] = (), exclude: Sequence[Any] = (),
        settings: Sequence[Any] = (), name: str | None = None,
    ) -> None:  # fmt: skip
        self._spec = {"axes": axes, "extra": extra, "exclude": exclude, "settings": settings}
        self._name = name
        self._context: HydraContext | None = None
        self._config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        """Plan, print the plan, and run it unless ``sweep.plan=true``; what is wrong is left in :data:`outcomes`."""
        try:
            outcomes.append(self._sweep(arguments))
        except Exception as error:
            outcomes.append(error)

    def _sweep(self, arguments: list[str]) -> int:
        from backdoor_bench.sweep import engine, plan_table
        from backdoor_bench.sweep.estimate import TIME_LIMIT, seconds_of

        assert self._config is not None
        options = OmegaConf.to_container(self._config.sweep, resolve=True)
        assert isinstance(options, dict)
        budget, started = seconds_of(options["budget"], "sweep.budget"), time.monotonic()
        seconds_of(options["time_limit"], TIME_LIMIT)  # refused before the planning
        shard = shard_of(options["shard"])
        keys = None if options["retry"] is None else _keys(Path(options["retry"]))
        plan = self.plan(arguments, options["only"], shard, keys)
        name = self._name or str(self._config.hydra.runtime.choices.get("sweep") or "sweep")
        plan_table.show(plan, name, time.monotonic() - started, str(self._config.store_dir), options["shard"])
        if options["plan"]:
            return 0
        if plan.absent:
            reason, count = plan.absent.most_common(1)[0]
            here = ",".join(sorted({str(job.config["dataset"]["name"]) for job in plan.jobs}))
            raise ConfigError(
                f"{counted(count, 'run')} of this sweep need{'s' * (count == 1)} a data set that is not here, so "
                f"nothing was started: {reason}"
                + (f"; or leave them out with sweep.only.dataset=[{here}]" if here else "")
            )
        if not plan.planned and keys is not None:
            raise ConfigError(
                f"sweep.retry={options['retry']}: none of its {len(keys):,} keys is a run of this sweep; type the "
                "command that the sweep printed when it ended"
            )
        if not plan.planned and plan.impossible:
            raise ConfigError(f"no run of this sweep can be: {plan.impossible.most_common(1)[0][0]}")
        again = command(self._config.hydra)
        return engine.run(
            plan.jobs,
            str(self._config.store_dir),
            name=name,
            budget_seconds=None if budget is None else max(0.0, budget - (time.monotonic() - started)),
            time_limit=options["time_limit"],
            resume_command=again,
            retry_command=lambda file: f"{again} sweep.retry={shlex.quote(str(file))}",
            **_resources(self._config.hydra.launcher),
        ).exit_status

    def plan(
        self,
        arguments: Sequence[str],
        only: Mapping[str, Any],
        shard: tuple[int, int] = (1, 1),
        keys: Collection[str] | None = None,
    ) -> SweepPlan:
        """The plan of the grid under these overrides of the command line."""
        from backdoor_bench.bench import Bench
        from backdoor_bench.store import Store
        from backdoor_bench.sweep.compose import Composer
        from backdoor_bench.sweep.grid import Grid
        from backdoor_bench.sweep.plan import make_plan

        assert self._config is not None
        assert self._context is not None
        spec = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in self._spec.items()
        }
        grid = Grid.read(**spec)  # type: ignore[arg-type]
        constants, axes = split(arguments, grid.axes)
        hydra_overrides = list(self._config.hydra.overrides.hydra)
        composer = Composer(
            self._context.config_loader,
            [*hydra_overrides, *constants.values()],
            str(self._config.hydra.job.config_name),
        )
        grid = grid.with_axes(axes, constants)
        if not grid.axes:
            raise ConfigError("this sweep has no axes; choose one with +sweep=NAME, or give some: +attack=badnet,wanet")
        groups = {axis.split("@")[0]: composer.options(axis.split("@")[0]) for axis in grid.axes if "." not in axis}
        grid = grid.with_names(groups).narrowed(only)
        return make_plan(grid, composer, Bench(Store(self._config.store_dir)), shard=shard, keys=keys)


def command(hydra: DictConfig) -> str:
    """What to type to start this again."""
    given = typed or [*hydra.overrides.hydra, *hydra.overrides.task]
    kept = [text for text in given if not text.startswith("sweep.retry=")]
    return " ".join(["python -m backdoor_bench", *(shlex.quote(text) for text in kept)])


def split(arguments: Sequence[str], known: Collection[str] = ()) -> tuple[dict[str, str], dict[str, list[Any]]]:
    """The command line's overrides: those that every run shares, as they stand, and axes.

    An axis is what has several values, what the grid has as one (``known``), and whatever lies in the attack or the
    defense, which not every run has.
    """
    from backdoor_bench.sweep.compose import PARTS
    from backdoor_bench.sweep.grid import root

    constants: dict[str, str] = {}
    axes: dict[str, list[Any]] = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        assert override.input_line is not None
        written = override.get_key_element()
        plain = written.lstrip("+~")
        new = written.startswith("+") and "." in plain  # an option that is not there yet keeps its sign
        if plain.startswith("sweep."):
            continue
        if override.is_sweep_override() or plain in known or (root(plain) in PARTS and not override.is_delete()):
            axes[written if new else plain] = _values(override)
        else:
            constants[plain] = override.input_line
    return constants, axes


def _values(override: Override) -> list[Any]:
    from backdoor_bench.sweep.grid import values

    assert override.input_line is not None
    name, _, text = override.input_line.partition("=")
    return [None if value == NULL else value for value in values(name, text)]


def shard_of(shard: str | None) -> tuple[int, int]:
    """``3/8`` as (3, 8); None as (1, 1).

    Raises:
        ConfigError: it is no part of a whole.
    """
    if shard is None:
        return 1, 1
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", str(shard))
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"sweep.shard={shard}: expected N/M with N from 1 to M, e.g. 3/8")
    return int(found[1]), int(found[2])


def _keys(path: Path) -> frozenset[str]:
    try:
        return frozenset(path.read_text().split())
    except OSError as error:
        raise ConfigError(
            f"sweep.retry={path}: expected a file with keys of runs, as a sweep leaves it ({error.strerror})"
        ) from None


def _resources(launcher: DictConfig) -> dict[str, Any]:
    """What ``hydra/launcher=ray`` says of workers; the engine's own defaults with any other launcher."""
    if "gpus_per_worker" not in launcher:
        return {}
    return {
        "workers": launcher.workers,
        "gpus_per_worker": launcher.gpus_per_worker,
        "address": launcher.init.address,
    }

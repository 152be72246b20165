"""Hydra's callback when a sweep has ended: the victims with new runs become W&B runs, from their records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from backdoor_bench import progress
from backdoor_bench.errors import BenchError
from backdoor_bench.words import counted


class SendVictims(Callback):
    """With ``logger=wandb`` and ``logger.per=victim``; whatever fails is said, and can be sent later."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from backdoor_bench.tracking.wandb_runs import WandbRuns

        node = OmegaConf.to_container(config.logger, resolve=True)
        if not isinstance(node, dict) or "per" not in node:
            return
        name = str(OmegaConf.select(config, "hydra.runtime.choices.sweep") or "") or None
        try:
            runs = WandbRuns(**{str(key): value for key, value in node.items() if key not in ("_target_", "sweep")})
            runs.group = runs.group or name
            count = send_pending(runs, Path(str(config.store_dir)))
        except (BenchError, ImportError) as error:
            progress.say(
                f"W&B: {error}\nThe records are whole; send them later: python -m backdoor_bench.report wandb --upload"
            )
            return
        if count:
            progress.say(f"{counted(count, 'victim')} written to W&B ({runs.destination}) in {runs.folder}")


def send_pending(runs: Any, store_dir: Path) -> int:
    """Send the victims that have new runs, with all their records in the store; returns how many."""
    from backdoor_bench.store import Store
    from backdoor_bench.tracking import pending, wandb_content

    waiting = pending.victims(runs.folder)
    if not waiting:
        return 0
    store, keys = Store(store_dir), dict[str, list[str]]()
    for key, victim in _victims(store):
        if victim in waiting:
            keys.setdefault(victim, []).append(key)
    count = 0
    for victim, markers in waiting.items():
        records = [store.record(key) or store.attempts(key)[-1] for key in keys.get(victim, [])]
        if records:
            count += runs.send(wandb_content.of_victim(records))
        for path in markers:
            path.unlink(missing_ok=True)
    return count


def _victims(store: Any) -> Iterator[tuple[str, str]]:
    """Key and victim of every run; one victim's records at a time are read again, so that memory stays small."""
    records: Iterable[dict[str, Any]] = store.records()
    for record in records:
        yield str(record["key"]), str(record["victim"])

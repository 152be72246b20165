"""Writes W&B runs: online, or offline as folders that ``wandb sync`` takes. ``wandb`` is imported when it is used.

Not Lightning's WandbLogger: that one sets ``WANDB_MODE`` for the whole process and adds an axis of its own.

A sweep's W&B runs are made in the driver when it ends, from the records (:mod:`sweep_end`), and not while it goes on:
workers come and go, several do the cells of one victim at once or again after a crash, and W&B lets one process at a
time write a run. The records are complete without it, so making them is the same work as sending older ones later.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from backdoor_bench.errors import ConfigError, StoreError
from backdoor_bench.tracking.wandb_content import Content, Table

NO_ACCOUNT = (
    "no W&B account is known here: run `wandb login` or set WANDB_API_KEY, or stay offline (logger.offline=true, "
    "BACKDOOR_BENCH_WANDB_OFFLINE=true) and send the folders later with `wandb sync`"
)
LEDGER = "sent.jsonl"
PER = ("victim", "run")
SECONDS_TO_CONNECT = 60


class WandbRuns:
    """Where W&B runs go; see ``conf/logger/wandb.yaml``.

    Args:
        save_dir: of ``wandb/`` with offline runs, trigger pictures and the ledger of what was sent.
        project: of W&B.
        entity: user or team; None: the account's own.
        offline: write folders, and need no account and no network.
        per: what a sweep makes one W&B run of: ``victim``, its cells as a table, or ``run``, one for every cell.
        group: of the runs; None: the sweep's name, else the attack.
    """

    def __init__(
        self, save_dir: Path | str, project: str = "backdoor_bench", entity: str | None = None, offline: bool = True,
        per: str = "victim", group: str | None = None,
    ) -> None:  # fmt: skip
        if per not in PER:
            raise ConfigError(f"logger.per={per}: expected {' or '.join(PER)}")
        self.save_dir, self.project, self.entity = Path(save_dir), project, entity
        self.offline, self.per, self.group = bool(offline), per, group

    @property
    def folder(self) -> Path:
        return self.save_dir / "wandb"

    @property
    def destination(self) -> str:
        """What the ledger calls the place that runs are sent to."""
        return f"offline/{self.project}" if self.offline else f"{self.entity or '-'}/{self.project}"

    def picture(self, victim: str) -> Path:
        """Where the picture of a victim's trigger is, if there is one."""
        return self.folder / "pictures" / f"{victim}.png"

    def send(self, content: Content) -> bool:
        """Write a W&B run, unless the same is there already. Returns whether it was written.

        A run whose records have changed since is written again under its id: online it is continued (its summary and
        tables are replaced), offline its folder is.

        Raises:
            ConfigError: no account.
            StoreError: W&B does not answer, or the folder cannot be written.
        """
        if self.sent().get(content.id) == content.digest:
            return False
        import wandb

        if not self.offline:
            require_account()
        old = list(self.folder.glob(f"offline-run-*-{content.id}")) if self.offline else []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            run = wandb.init(
                project=self.project, entity=self.entity, id=content.id, name=content.name, tags=list(content.tags),
                group=self.group or content.group, job_type=content.job_type, config=dict(content.config),
                dir=str(self.save_dir), mode="offline" if self.offline else "online",
                resume=None if self.offline else "allow", reinit="create_new", settings=_settings(),
            )  # fmt: skip
            self._write(run, content)
            # A folder of the same id is what a killed process left, or what is replaced now.
            for path in old:
                if path.resolve() != Path(run.dir).resolve().parent:
                    shutil.rmtree(path, ignore_errors=True)
            self._note(content)
        except (wandb.Error, OSError) as error:
            raise StoreError(f"W&B run {content.id} could not be written: {error}; its records are whole") from error
        return True

    def _write(self, run: Any, content: Content) -> None:
        import wandb

        try:
            for step, row in enumerate(content.history):
                run.log({name: value for name, value in row.items() if value is not None}, step=step)
            shown: dict[str, Any] = {name: _table(table) for name, table in content.tables.items()}
            picture = self.picture(content.victim)
            if picture.is_file():
                shown["trigger"] = wandb.Image(str(picture), caption="clean | triggered | residual x5 around grey")
            if shown:
                run.log(shown, step=max(len(content.history) - 1, 0))
            run.summary.update(dict(content.summary))
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()

    def sent(self) -> dict[str, str]:
        """The digests of what was sent to this destination, by run id. A half-written last line does not count."""
        found: dict[str, str] = {}
        try:
            lines = (self.folder / LEDGER).read_text().splitlines()
        except FileNotFoundError:
            return found
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["to"] == self.destination:
                    found[entry["id"]] = entry["digest"]
            except (ValueError, KeyError, TypeError):
                continue
        if self.offline:  # a folder that somebody removed is not there any more
            there = {path.name.split("-", 3)[-1] for path in self.folder.glob("offline-run-*")}
            found = {name: digest for name, digest in found.items() if name in there}
        return found

    def _note(self, content: Content) -> None:
        line = json.dumps({"to": self.destination, "id": content.id, "digest": content.digest})
        with (self.folder / LEDGER).open("a") as file:
            # After a line that a killed process left unfinished, this one starts anew.
            file.write(f"\n{line}\n" if file.tell() else f"{line}\n")
            file.flush()
            os.fsync(file.fileno())


def require_account() -> None:
    """Raise unless W&B has a key on this machine; nothing is asked of the network.

    Raises:
        ConfigError: it has none.
    """
    import wandb

    try:
        known = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise ConfigError(f"{NO_ACCOUNT} ({error})") from error
    if not known:
        raise ConfigError(NO_ACCOUNT)


def _settings() -> Any:
    """Without what W&B watches besides: console, processor, git, packages; half of its start."""
    import wandb

    return wandb.Settings(
        console="off", disable_git=True, save_code=False, init_timeout=SECONDS_TO_CONNECT, silent=True,
        x_disable_meta=True, x_disable_stats=True, x_save_requirements=False,
    )  # fmt: skip


def _table(table: Table) -> Any:
    import wandb

    return wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows], allow_mixed_types=True)

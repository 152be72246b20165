"""Looking after a store: is everything as it was written, does it belong together, and what can go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backdoor_bench.errors import BusyError, StoreError
from backdoor_bench.store import files
from backdoor_bench.store.base import DAMAGE, RECORD_FORMAT, Store, check_network
from backdoor_bench.store.lock import Lock

NETWORKS = ("victims", "purified", "clean")


@dataclass(frozen=True)
class Finding:
    """Something in the store that is not as it should be, or that nothing needs.

    Args:
        path: file or folder.
        what: for people, one phrase.
        kind: ``damaged``: not as it was written. ``lacking``: something it refers to is not there. ``useless``: no
            record needs it. ``unknown``: a newer version's.
    """

    path: Path
    what: str
    kind: Literal["damaged", "lacking", "useless", "unknown"]

    @property
    def bytes(self) -> int:
        """Its size with everything in it."""
        found = [self.path, *self.path.rglob("*")] if self.path.is_dir() else [self.path]
        return sum(path.stat().st_size for path in found if path.is_file())


def verify(store: Store) -> Iterator[Finding]:
    """Everything that is damaged, refers to what is not there, or is needed by nothing. Nothing is changed."""
    named, done = set[str](), set[str]()
    for path in sorted((store.root / "runs").glob("*/[!.]*.json")):
        record, finding = _read(path)
        if finding is not None:
            yield finding
            continue
        named.add(str(record.get("victim")))
        if record.get("status") != "ok":
            continue
        done.add(path.parent.name)
        if not (store.root / "victims" / str(record.get("victim"))).is_dir():
            yield Finding(
                path, f"its victim {record.get('victim')} is not here: it cannot be measured again", "lacking"
            )
        if record.get("purified") and not (store.root / "purified" / path.parent.name).is_dir():
            yield Finding(path, "the purified network that it kept is not here", "lacking")
    for kind, needed in zip(NETWORKS, (named, done, _clean(store, named)), strict=True):
        for folder in _entries(store.root / kind):
            if ".damaged-" in folder.name:
                continue
            try:
                check_network(folder)
            except DAMAGE as error:
                yield Finding(folder, f"damaged: {error}", "damaged")
                continue
            if folder.name not in needed:
                yield Finding(folder, f"no record of a run {'made' if kind == 'purified' else 'names'} it", "useless")
    yield from _waste(store.root)


def garbage(store: Store) -> list[Finding]:
    """What no record needs: victims, purified networks, what was set aside as damaged, what dead processes left.

    Nothing is hashed. A record that cannot be read may need anything, so with one nothing of a network is listed.

    Raises:
        BusyError: runs are going on in the store, whose records are yet to come.
        StoreError: a record cannot be read.
    """
    refuse_while_running(store)
    named, done = set[str](), set[str]()
    for path in sorted((store.root / "runs").glob("*/[!.]*.json")):
        record, finding = _read(path)
        if finding is not None:
            raise StoreError(f"{path}: {finding.what}; what it needs is not known, so nothing is removed. Move it away")
        named.add(str(record.get("victim")))
        if record.get("status") == "ok":
            done.add(path.parent.name)
    found = []
    for kind, needed in zip(NETWORKS, (named, done, _clean(store, named)), strict=True):
        for folder in _entries(store.root / kind):
            if folder.name not in needed and ".damaged-" not in folder.name:
                found.append(Finding(folder, "no record needs it", "useless"))
    return [*found, *_waste(store.root)]


def remove(store: Store, findings: list[Finding]) -> list[Finding]:
    """Remove what :func:`garbage` found; what a process works on meanwhile stays. Returns those that are gone.

    Raises:
        UnwritableError: the store takes nothing.
    """
    removed = []
    for finding in findings:
        path = finding.path
        try:
            if path.parent.name in NETWORKS:
                with store.claim(f"{path.parent.name}-{path.name}", wait=False):
                    files.discard(path, store.root / "tmp")
            elif path.parent.name == "tmp":
                files.leftovers(path.parent, remove=True)
            elif path.parent.name == "runs":
                path.rmdir()  # only if it is still empty
            elif path.suffix == ".lock":
                lock = Lock(path)
                if not lock.acquire(wait=False):
                    continue
                lock.release()  # which removes its file
            else:
                files.discard(path, store.root / "tmp")
            removed.append(finding)
        except (BusyError, FileNotFoundError):
            continue
        except OSError as error:
            raise files.cannot_write(path, error) from error
    return removed


def refuse_while_running(store: Store) -> None:
    """Raise BusyError if a run has this store's lock."""
    for path in _entries(store.root / "locks"):
        if path.name.startswith("run-") and Lock(path).is_held():
            raise BusyError(
                f"a run is going on in {store.root} ({path.stem.removeprefix('run-')}); try again when there is none"
            )


def _waste(root: Path) -> Iterator[Finding]:
    """What processes that are no more left behind."""
    for path in files.leftovers(root / "tmp"):
        yield Finding(path, "half written by a process that is no more", "useless")
    for path in _entries(root / "locks"):
        if not Lock(path).is_held():
            yield Finding(path, "a lock that nobody holds", "useless")
    for place in (*(root / kind for kind in NETWORKS), *_entries(root / "runs")):
        for path in sorted(place.glob("*.damaged-*")):
            yield Finding(path, "set aside as damaged", "useless")
    for folder in _entries(root / "runs"):
        if folder.is_dir() and not any(folder.iterdir()):
            yield Finding(folder, "no attempt in it", "useless")


def _clean(store: Store, victims: set[str]) -> set[str]:
    """The clean networks that these victims' attacks were trained with: other ratios of them will ask again."""
    found = set[str]()
    for folder in _entries(store.root / "victims"):
        if folder.name in victims:
            with suppress(*DAMAGE):
                found |= set(files.read_json(folder / "manifest.json").get("clean", []))
    return found


def _read(path: Path) -> tuple[dict[str, Any], Finding | None]:
    try:
        record = files.read_json(path)
    except (OSError, ValueError) as error:
        return {}, Finding(path, f"damaged: {error}", "damaged")
    if record.get("format", RECORD_FORMAT) > RECORD_FORMAT:
        return {}, Finding(path, f"format {record['format']}: a newer backdoor_bench wrote it", "unknown")
    return record, None


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []

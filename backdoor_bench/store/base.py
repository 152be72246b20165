"""The store: victims and purified networks by content, run records by key. Safetensors and JSON, no pickle."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_bench import progress
from backdoor_bench.errors import BusyError, StoreError, UnwritableError
from backdoor_bench.store import files
from backdoor_bench.store.lock import Lock

if TYPE_CHECKING:
    from torch import Tensor

RECORD_FORMAT = 1
"""Raised when records change so that earlier code would read them wrongly."""


DAMAGE = (OSError, ValueError, KeyError, AttributeError)
"""What reading a stored network raises if it is not as it was written."""


@dataclass(frozen=True)
class Stored:
    """A network as it lies in the store: groups of tensors by file stem, and a manifest of plain values."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    manifest: Mapping[str, Any]


class Store:
    """A folder with ``victims/KEY/``, ``clean/KEY/``, ``purified/KEY/`` and ``runs/KEY/ATTEMPT.json``.

    Whatever has its final name is whole and checked by hash when read. Locks are the operating system's, so a killed
    process leaves none behind.

    Args:
        root: the folder; made when something is written.
        wait: whether :meth:`claim` waits for another process, or raises :class:`BusyError`.
    """

    def __init__(self, root: Path | str, wait: bool = True) -> None:
        if root in ("", None):  # which a path would take for the working folder
            raise StoreError("the store's folder has no name; give one, store_dir=PATH, or unset BACKDOOR_BENCH_STORE")
        self.root = Path(root).resolve()
        self._wait = wait

    # -- networks ------------------------------------------------------------------------------------------------

    def obtain(self, kind: str, key: str, make: Callable[[], Stored]) -> tuple[Stored, bool]:
        """The stored network of this key, made if it is not there; True if it was made now.

        If several processes ask at once, one makes it and the others wait.
        """
        with self.claim(f"{kind}-{key}"):
            found = self.load(kind, key)
            if found is not None:
                return found, False
            made = make()
            return self.save(kind, key, made), True

    def load(self, kind: str, key: str) -> Stored | None:
        """The stored network, or None. A damaged one is said, set aside, and counts as not there."""
        import safetensors.torch  # torch: seconds that readers of records need not spend

        if not re.fullmatch(r"[\w-]+", key):  # it may come from a file: never a path to elsewhere
            raise StoreError(f"'{key}' is no key; expected letters and digits, as records have it")
        folder = self.root / kind / key
        if not folder.is_dir():
            return None
        try:
            manifest = check_network(folder)
            tensors = {Path(name).stem: safetensors.torch.load_file(folder / name) for name in manifest["files"]}
        except (*DAMAGE, safetensors.SafetensorError) as error:
            _set_aside(folder, f"{kind} {key} in the store is damaged ({error})")
            return None
        return Stored(tensors, manifest)

    def save(self, kind: str, key: str, stored: Stored, replace: bool = False) -> Stored:
        """Write a network under its key; what is there already stays. Returns it with its complete manifest.

        ``replace``: what is there already goes, once the new one is whole.
        """
        import safetensors.torch

        with files.whole(self.root / kind / key, self.root / "tmp", replace) as folder:
            digests = {}
            for stem, tensors in stored.tensors.items():
                file = folder / f"{stem}.safetensors"
                try:
                    safetensors.torch.save_file({name: _own(tensor) for name, tensor in tensors.items()}, file)
                    file.chmod(folder.stat().st_mode & 0o666)  # safetensors makes it the user's alone
                except safetensors.SafetensorError as error:
                    raise OSError(f"{error}") from error
                digests[file.name] = files.sha256(file)
            manifest = files.seal({"key": key, **stored.manifest, "files": digests})
            (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, allow_nan=False))
        return Stored(stored.tensors, manifest)

    def replace(self, kind: str, key: str, stored: Stored) -> Stored:
        """Write a network in the place of an earlier one of the same key (a forced run's purified network)."""
        with self.claim(f"{kind}-{key}", wait=True):  # a moment, never worth a run that is done
            return self.save(kind, key, stored, replace=True)

    # -- records -------------------------------------------------------------------------------------------------

    def record(self, key: str) -> dict[str, Any] | None:
        """The latest record of a run whose status is ``ok``, or None."""
        return next((record for _, record in self.done(key)), None)

    def done(self, key: str) -> list[tuple[Path, dict[str, Any]]]:
        """The records of a run whose status is ``ok``, each with its file, the latest first."""
        found = self._attempts(key)
        return [(path, record) for path, record in reversed(found) if record.get("status") == "ok"]

    def attempts(self, key: str) -> list[dict[str, Any]]:
        """All readable records of a run, oldest first; a damaged one is said and set aside.

        Raises:
            StoreError: a record was written by a newer version.
        """
        return [record for _, record in self._attempts(key)]

    def _attempts(self, key: str) -> list[tuple[Path, dict[str, Any]]]:
        found = []
        for path in sorted((self.root / "runs" / key).glob("[!.]*.json")):
            try:
                record = files.read_json(path)
            except (OSError, ValueError) as error:
                _set_aside(path, f"record {key}/{path.name} is damaged ({error})")
                continue
            if record.get("format", RECORD_FORMAT) > RECORD_FORMAT:
                raise StoreError(
                    f"record {key}/{path.name} has format {record['format']}, and this version reads up to "
                    f"{RECORD_FORMAT}: a newer backdoor_bench wrote it; update, or choose another store_dir"
                )
            found.append((path, record))
        return found

    def add_record(self, key: str, record: Mapping[str, Any]) -> Path:
        """Write one more attempt; nothing is overwritten. The caller holds the run's claim."""
        folder = self.root / "runs" / key
        taken = [int(path.name[:4]) for path in folder.glob("[0-9][0-9][0-9][0-9].json*")]
        path = folder / f"{max(taken, default=0) + 1:04d}.json"
        files.write_json(path, record, self.root / "tmp")
        return path

    def records(self) -> Iterator[dict[str, Any]]:
        """The record that counts of every run: the latest ``ok``, else the latest."""
        for folder in sorted((self.root / "runs").glob("*")):
            attempts = self.attempts(folder.name)
            done = [record for record in attempts if record.get("status") == "ok"]
            if attempts:
                yield (done or attempts)[-1]

    # -- the folder ----------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Raise UnwritableError if the folder takes nothing, or cannot be made. Nothing is written."""
        there = next(place for place in (self.root, *self.root.parents) if os.path.exists(place))
        if not there.is_dir():
            raise self._unwritable(os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            raise self._unwritable(os.strerror(errno.EACCES))

    def _unwritable(self, reason: str) -> UnwritableError:
        return UnwritableError(f"cannot write to the store {self.root}: {reason}; choose another with store_dir=PATH")

    # -- locks ---------------------------------------------------------------------------------------------------

    @contextmanager
    def claim(self, name: str, wait: bool | None = None) -> Iterator[None]:
        """Hold the lock of this name. While another process holds it: waits and says so, or raises, as the store does.

        Raises:
            BusyError: another process holds it, and ``wait`` (by default the store's own) is False.
            StoreError: the store cannot be written.
        """
        lock = Lock(self.root / "locks" / f"{name}.lock")
        try:
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            if not lock.acquire(wait=False):
                if not (self._wait if wait is None else wait):
                    raise BusyError(f"another process works on {name}")
                progress.say(f"waiting for another process that works on {name}")
                lock.acquire()
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error
        try:
            yield
        finally:
            lock.release()


def check_network(folder: Path) -> dict[str, Any]:
    """The manifest of a stored network, after its files were compared with it.

    Raises:
        One of :data:`DAMAGE`: something is missing or was altered.
    """
    manifest = files.read_json(folder / "manifest.json")
    if manifest.get("key") != folder.name:
        raise ValueError(f"it says it is {manifest.get('key')}")
    for name, digest in manifest["files"].items():
        if Path(name).name != name:
            raise ValueError(f"it names a file elsewhere: {name}")
        if files.sha256(folder / name) != digest:
            raise ValueError(f"{name} does not match its checksum")
    return manifest


def _own(tensor: Tensor) -> Tensor:
    """Row-major on the CPU, in memory of its own: safetensors refuses tensors that share theirs (tied weights)."""
    import torch

    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _set_aside(path: Path, what: str) -> None:
    try:
        progress.say(f"{what}; set aside as {files.set_aside(path).name}")
    except OSError as error:  # another process did it first, or the store is read-only
        progress.say(f"{what}; left where it is ({error.strerror})")

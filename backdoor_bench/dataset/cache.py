"""Decode once: uint8 images in ``DATA_DIR/.cache``, verified by hash when read, with a manifest beside them."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import safetensors
import safetensors.torch
from filelock import FileLock, Timeout

from backdoor_bench import progress
from backdoor_bench.dataset.augmentation import Augmentation
from backdoor_bench.dataset.base import Data, ImageSet, Manifest, describe
from backdoor_bench.dataset.part import Part, PartedDataset
from backdoor_bench.errors import ConfigError, DataError, StoreError
from backdoor_bench.store import files

FORMAT = 1
"""Of the cache files; raise it when their layout changes."""


@dataclass(frozen=True)
class Decoded:
    """What a source held. ``signature``: of the files it was read from, ``None`` where that is not watched."""

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    variant: str
    source: str
    signature: str | None = None


class Unusable(Exception):
    """Why a cache is not served. ``damaged``: its files are set aside rather than replaced."""

    def __init__(self, reason: str, damaged: bool = False) -> None:
        super().__init__(reason)
        self.damaged = damaged


class CachedDataset(PartedDataset):
    """A data set that is decoded once. Subclasses say where it lies (:meth:`locate`).

    The cache is served first. It is decoded again when the class's ``version`` or its :meth:`settings` change, or
    when the source it was read from is still there and its :meth:`signature` is another one.

    Args:
        data_dir: where data sets lie; the cache is its subfolder ``.cache``. One that cannot be written is said, and
            nothing is cached.
        download: let torchvision fetch what is not there.
        max_train, max_test: see :class:`Part`; a part has a cache of its own beside that of the whole.
    """

    def __init__(
        self,
        name: str,
        augmentation: Augmentation,
        data_dir: str | Path = "./data",
        download: bool = False,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        max_train: int | None = None,
        max_test: int | None = None,
    ) -> None:
        super().__init__(name, augmentation, mean, std, max_train, max_test)
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f"dataset.name={name}: expected letters, digits, '-', '_' or '.', for it names files")
        self.data_dir, self.download = Path(data_dir).expanduser().resolve(), download
        self._uncached: Data | None = None

    @abstractmethod
    def locate(self) -> Callable[[], Decoded]:
        """The first source there is, not decoded yet.

        Raises:
            DataError: there is none; says where it was looked for and how to get it.
        """

    def signature(self) -> str | None:
        """Of the files that the cache should agree with, cheap to make; ``None`` if there are none (any more)."""
        return None

    def settings(self) -> dict[str, Any]:
        """What else determines the decoded pixels."""
        return {}

    @property
    def cache_name(self) -> str:
        return self.name

    @property
    def images_file(self) -> Path:
        return self.data_dir / ".cache" / f"{self.cache_name}{self.part.name}.safetensors"

    @property
    def manifest_file(self) -> Path:
        return self.data_dir / ".cache" / f"{self.cache_name}{self.part.name}.json"

    def manifest(self) -> Manifest:
        """Reads a small file if the cache is there and has the right size; decodes (and caches) otherwise."""
        try:
            return _manifest(self._described())
        except Unusable:
            return self.load().manifest

    def load(self) -> Data:
        """All images on the CPU: the cache, verified by hash, or else decoded now by one process at a time."""
        if self._uncached is not None:
            return self._uncached
        try:
            return self._read()
        except Unusable as error:
            reason = error
        try:
            decode = self._cut if self.part else self.locate()
        except DataError as error:
            raise DataError(f"{error} (The cache is not served: {reason}.)" if str(reason) else str(error)) from None
        with self._claim():
            try:
                return self._read()  # another process may have made it meanwhile
            except Unusable as error:
                self._announce(error)
            started = perf_counter()
            decoded = decode()
            manifest = describe(self.name, decoded.variant, decoded.class_names, decoded.train, decoded.test)
            data = Data(decoded.train, decoded.test, manifest, self.augmentation)
            self._keep(data, decoded, perf_counter() - started)
        return data

    def _cut(self) -> Decoded:
        """The part, out of the whole's cache (which is made now if it is not there)."""
        whole = copy(self)
        whole.part, whole._uncached = Part(), None
        data = self.part.of(whole.load())
        names, variant = data.manifest.class_names, data.manifest.variant
        return Decoded(data.train, data.test, names, variant, str(whole.images_file), self.signature())

    def _described(self) -> dict[str, Any]:
        if not (self.manifest_file.is_file() and self.images_file.is_file()):
            raise Unusable("")
        try:
            stored = files.read_json(self.manifest_file)
            size = self.images_file.stat().st_size
        except FileNotFoundError:  # another process replaces it just now
            raise Unusable("") from None
        except OSError as error:
            raise Unusable(f"it cannot be read ({error})") from None
        except ValueError as error:
            raise Unusable(f"{self.manifest_file} is damaged: {error}", damaged=True) from None
        if stored.get("identity") != self._identity():
            raise Unusable("it was made by another version or with other settings")
        now = self.signature()
        if now is not None and stored["signature"] is not None and now != stored["signature"]:
            raise Unusable(f"{stored['source']} has changed since")
        if size != stored["cache_bytes"]:
            expected = stored["cache_bytes"]
            raise Unusable(f"{self.images_file} is damaged: {size} bytes instead of {expected}", damaged=True)
        return stored

    def _read(self) -> Data:
        stored = self._described()
        try:
            if files.sha256(self.images_file) != stored["cache_sha256"]:
                raise Unusable(f"{self.images_file} is damaged: its sha256 is not the recorded one", damaged=True)
            tensors = safetensors.torch.load_file(self.images_file)
        except FileNotFoundError:
            raise Unusable("") from None
        except (OSError, safetensors.SafetensorError) as error:
            raise Unusable(f"it cannot be read ({error})") from None
        train, test = (ImageSet(tensors[f"{part}.images"], tensors[f"{part}.labels"]) for part in ("train", "test"))
        return Data(train, test, _manifest(stored), self.augmentation)

    def _identity(self) -> dict[str, Any]:
        """What makes a cache ours, as JSON has it."""
        return {
            "format": FORMAT,
            "manifest": [field.name for field in fields(Manifest)],
            "class": type(self).__qualname__,
            "version": self.version,
            "name": self.name,
            **self.settings(),
            **self.part.settings(),
        }

    def _announce(self, error: Unusable) -> None:
        """Say why a cache is not served; move a damaged one out of the way."""
        if not error.damaged:
            if str(error):
                progress.say(f"{self.name}: decoding anew, for the cache is out of date: {error}")
            return
        try:
            aside = [files.set_aside(path) for path in (self.images_file, self.manifest_file) if path.exists()]
            progress.say(f"{self.name}: {error}; set aside as {aside[0].name}, decoding anew")
        except OSError as cannot:
            progress.say(f"{self.name}: {error}; it cannot be set aside ({cannot.strerror}), and is not used")

    def _keep(self, data: Data, decoded: Decoded, seconds: float) -> None:
        """Write the cache: images first, then the manifest that makes them valid. A full disk costs only the cache."""
        done = f"{self.name}: {len(data.train) + len(data.test):,} images ready in {seconds:.1f} s"
        # A folder, for safetensors writes to a temporary file of its own beside the one it is told.
        scratch = self.images_file.with_name(f".{self.images_file.name}.{uuid.uuid4().hex}.tmp")
        temporary = scratch / self.images_file.name
        try:
            # What a killed process left: nobody else writes while we hold the lock.
            for left in scratch.parent.glob(f".{self.images_file.name}.*.tmp"):
                shutil.rmtree(left)
            scratch.mkdir(parents=True)
            parts = {"train": data.train, "test": data.test}
            tensors = {f"{part}.images": images.images for part, images in parts.items()}
            tensors |= {f"{part}.labels": images.labels for part, images in parts.items()}
            safetensors.torch.save_file(tensors, temporary)
            temporary.chmod(scratch.stat().st_mode & 0o666)  # safetensors makes it the user's alone
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            size = temporary.stat().st_size
            facts = {
                "identity": self._identity(),
                "manifest": asdict(data.manifest),
                "source": decoded.source,
                "signature": decoded.signature,
                "cache_bytes": size,
                "cache_sha256": files.sha256(temporary),
            }
            self.manifest_file.unlink(missing_ok=True)  # never an old manifest beside new images
            temporary.replace(self.images_file)
            files.write_json(self.manifest_file, facts)
        except (OSError, StoreError, safetensors.SafetensorError) as error:
            self._uncached = data
            why = error.__cause__ if isinstance(error, StoreError) else error
            progress.say(f"{done}; not cached, for {self.images_file.parent} cannot be written ({why})")
        else:
            progress.say(f"{done}; kept as {self.images_file} ({size / 1e6:.0f} MB)")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @contextmanager
    def _claim(self) -> Iterator[None]:
        """Hold the lock of this cache, so that one process decodes and the others wait."""
        lock = FileLock(self.images_file.with_suffix(".lock"))
        try:
            self.images_file.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                progress.say(f"{self.name}: another process is decoding it; waiting")
                lock.acquire()
        except OSError:  # a folder that cannot be written needs no guard: nothing will be
            pass
        try:
            yield
        finally:
            lock.release()


def _manifest(stored: Mapping[str, Any]) -> Manifest:
    """From JSON, where tuples are lists."""
    entries: dict[str, Any] = stored["manifest"]
    values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in entries.items()}
    return Manifest(**values)

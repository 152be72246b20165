"""Arrays of an ``.npz`` from anywhere: nothing is unpickled, and no header is believed before it is checked."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from backdoor_bench.errors import DataError


@dataclass(frozen=True)
class Declared:
    """An array's header."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Arrays:
    """The arrays of an ``.npz``, by their names without ``.npy``. A context manager, which closes the file.

    Raises:
        DataError: it is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.title = path.name
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is no .npz ({error}); expected an archive as numpy.savez writes it") from None
        members = {info.filename: info for info in self._archive.infolist()}
        self._members = {name.removesuffix(".npy"): info for name, info in members.items() if name.endswith(".npy")}

    def __enter__(self) -> Arrays:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    @property
    def names(self) -> set[str]:
        return set(self._members)

    def declared(self, name: str) -> Declared:
        """The header, which must agree with the length that the archive states: no more than that is ever read.

        Raises:
            DataError: it cannot be read, does not agree, or declares Python objects.
        """
        info = self._members[name]
        try:
            with self._archive.open(info) as file:
                found, length = _header(file), file.tell()
        except Exception as error:  # the parsers of zip, zlib and numpy raise nearly anything on a broken file
            raise self._broken(name, error) from None
        if found.dtype.hasobject:
            raise DataError(
                f"{self.title}: {name} holds Python objects, which only unpickling could read, and that could run "
                "anything; save plain numbers"
            )
        if any(side < 0 for side in found.shape) or length + found.nbytes != info.file_size:
            raise DataError(
                f"{self.title}: the header of {name} declares {found.shape} {found.dtype}, {found.nbytes:,} bytes, but "
                f"{info.file_size - length:,} are there; the file is damaged or lies"
            )
        return found

    def read(self, name: str) -> NDArray[np.generic]:
        try:
            with self._archive.open(self._members[name]) as file:
                array: NDArray[np.generic] = npy.read_array(file, allow_pickle=False)
                return array
        except Exception as error:  # as above
            raise self._broken(name, error) from None

    def _broken(self, name: str, error: Exception) -> DataError:
        reason = str(error).partition("\n")[0] or type(error).__name__
        return DataError(f"{self.title}: {name} cannot be read ({reason}); save the file again")


def _header(file: IO[bytes]) -> Declared:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format, which holds no plain numbers")
    shape, _, dtype = npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    return Declared(shape, dtype)

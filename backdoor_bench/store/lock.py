"""Locks by name that a killed process cannot leave behind, on any file system whose locks work across machines."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

SECONDS_BETWEEN_TRIES = 0.1
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class Lock:
    """The operating system's lock on a file that exists only while somebody holds or wants it.

    The holder removes the file before it lets go. Whoever waited then holds a lock that guards no name: it looks, and
    starts over with the file that has the name now. So 100,000 runs leave no 100,000 files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, wait: bool = True) -> bool:
        """Take the lock; False if ``wait`` is and another holds it.

        Raises:
            OSError: the folder cannot be written, or the file system has no locks.
        """
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                held = lock_descriptor(descriptor, blocking=wait, poll_interval=SECONDS_BETWEEN_TRIES)
                if held and self._has_the_name(descriptor):
                    self._descriptor = descriptor
                    return True
            except OSError as error:
                if error.errno in WITHOUT_LOCKS:
                    why = "its file system has no locks that work here (NFS needs version 4, Lustre -o flock)"
                    raise OSError(error.errno, why) from error
                if error.errno != errno.ESTALE:
                    raise
                held = True  # of a file that another machine has removed: start over
            finally:
                if self._descriptor != descriptor:
                    os.close(descriptor)
            if not held:
                return False

    def release(self) -> None:
        """Remove the file, then let go."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with suppress(OSError):  # gone, or the disk takes nothing any more: a file that is left locks nobody out
            self.path.unlink()
        with suppress(OSError):
            unlock_descriptor(descriptor)  # also where a forked child still has the file open
        with suppress(OSError):  # a network file system may say only now what it could not write
            os.close(descriptor)

    def is_held(self) -> bool:
        """Whether somebody holds it at this moment. Nothing is changed.

        In a store that may only be read, where that cannot be known, it counts as held.
        """
        for mode in (os.O_RDWR, os.O_RDONLY):  # NFS locks for writing alone what is open for writing
            try:
                descriptor = os.open(self.path, mode)
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise
                continue
            try:
                return not lock_descriptor(descriptor, blocking=False)
            except OSError as error:
                if mode == os.O_RDWR or error.errno != errno.EBADF:
                    raise
            finally:
                os.close(descriptor)
        return True

    def _has_the_name(self, descriptor: int) -> bool:
        try:
            named = os.open(self.path, os.O_RDONLY)  # a network file system's stat may be half a minute old
        except FileNotFoundError:
            return False
        try:
            return os.path.samestat(os.fstat(descriptor), os.fstat(named))
        finally:
            os.close(named)

"""Locks that exclude, end with their process, and leave no files."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from backdoor_bench.errors import BusyError, UnwritableError
from backdoor_bench.store import Store
from backdoor_bench.store import lock as module
from backdoor_bench.store.lock import Lock


def count_up(path: Path, counter: Path, times: int) -> None:
    """Reads a number and writes the next: numbers get lost if two do it at once."""
    for _ in range(times):
        lock = Lock(path)
        lock.acquire()
        counter.write_text(str(int(counter.read_text()) + 1))
        lock.release()


def hold(path: Path, holding: multiprocessing.Event) -> None:
    Lock(path).acquire()
    holding.set()
    signal.pause()


def test_one_holder_and_no_file_left(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "x.lock"), Lock(tmp_path / "x.lock")
    assert not first.is_held()
    assert first.acquire()
    assert second.is_held()
    assert not second.acquire(wait=False)
    first.release()
    assert not list(tmp_path.iterdir())
    assert second.acquire(wait=False)
    first.release()  # holds nothing any more: takes nothing from the second
    assert first.is_held()
    second.release()
    assert not list(tmp_path.iterdir())


def test_whoever_waited_on_a_removed_file_starts_over(tmp_path: Path, monkeypatch) -> None:
    """Between opening and locking, the file is removed and another process locks a new one of that name."""
    path, other = tmp_path / "x.lock", Lock(tmp_path / "x.lock")
    real, tries = module.lock_descriptor, []

    def slow(descriptor: int, **options: object) -> bool:
        tries.append(descriptor)
        if len(tries) == 1:
            path.unlink()
            assert other.acquire(wait=False)
        return real(descriptor, **options)

    monkeypatch.setattr(module, "lock_descriptor", slow)
    late = Lock(path)
    assert not late.acquire(wait=False), "the lock on the removed file guards nothing"
    other.release()
    assert late.acquire(wait=False)


def test_a_file_that_another_machine_removed_is_opened_anew(tmp_path: Path, monkeypatch) -> None:
    """On a network file system whoever waited for it then hears that its handle is stale."""
    real, tries = module.lock_descriptor, []

    def stale(descriptor: int, **options: object) -> bool:
        tries.append(descriptor)
        if len(tries) == 1:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(descriptor, **options)

    monkeypatch.setattr(module, "lock_descriptor", stale)
    lock = Lock(tmp_path / "x.lock")
    assert lock.acquire()
    assert len(tries) == 2
    lock.release()


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch) -> None:
    def none(descriptor: int, **_: object) -> bool:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(module, "lock_descriptor", none)
    message = r"cannot write to the store .*: its file system has no locks that work here \(.*Lustre -o flock\); choose"
    with pytest.raises(UnwritableError, match=message), Store(tmp_path).claim("run-x"):
        pass


def test_many_processes_never_hold_it_together(tmp_path: Path) -> None:
    """Every release removes the file, every acquisition makes it: the moments at which such schemes break."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=count_up, args=(tmp_path / "x.lock", counter, 60)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert counter.read_text() == "240"
    assert not (tmp_path / "x.lock").exists()


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    holding = fork.Event()
    process = fork.Process(target=hold, args=(tmp_path / "x.lock", holding))
    process.start()
    assert holding.wait(60)
    lock = Lock(tmp_path / "x.lock")
    assert not lock.acquire(wait=False)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert lock.acquire(wait=False)
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_became_read_only_hides_no_other_error_and_locks_nobody_out(tmp_path: Path, monkeypatch) -> None:
    """What a run says of such a disk has to reach the sweep, which then stops; see ``UnwritableError``."""

    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    store = Store(tmp_path, wait=False)
    with pytest.raises(UnwritableError, match="the run's own"), store.claim("run-x"):
        raise UnwritableError("the run's own")
    monkeypatch.undo()
    with store.claim("run-x"):
        pass
    assert not list((tmp_path / "locks").iterdir())


def test_in_a_store_that_may_only_be_read_it_is_known_who_holds_what(tmp_path: Path, monkeypatch) -> None:
    held, left, secret = (Lock(tmp_path / f"{name}.lock") for name in ("held", "left", "secret"))
    held.acquire()
    left.path.touch()
    opened = os.open

    def read_only(path: Path, flags: int, *mode: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY) or path == secret.path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    assert [lock.is_held() for lock in (held, left, secret)] == [True, False, True]
    monkeypatch.undo()
    held.release()


def test_a_store_that_does_not_wait(tmp_path: Path) -> None:
    store = Store(tmp_path, wait=False)
    with store.claim("run-x"):
        with pytest.raises(BusyError, match="another process works on run-x"), store.claim("run-x"):
            pass
        with store.claim("run-y"):
            pass
    assert not list((tmp_path / "locks").iterdir())

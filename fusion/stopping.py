"""How a run is asked to stop, and how two runs are kept out of one folder."""

from __future__ import annotations

import fcntl
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ..datasets.errors import InputError

_ECHO = 2.0
"""Seconds in which a launcher passes on a Ctrl-C that the terminal has sent to all of its processes already."""


class Stopped(KeyboardInterrupt):
    """Training ended because it was asked to, by Ctrl-C or SIGTERM, after all was saved.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopRequest:
    """Whether this process was asked to stop; 0 until then, and afterwards the signal's number."""

    def __init__(self) -> None:
        self.number = 0
        self._since = math.inf

    def hear(self) -> None:
        """Raise `Stopped` if this process was asked to stop; to be called between two pieces of work."""
        if self.number:
            raise Stopped(self.number)

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGINT and time.monotonic() - self._since > _ECHO:
            # Whoever asks again does not want to wait for the end of the update.
            raise KeyboardInterrupt
        if not self.number:
            self.number, self._since = number, time.monotonic()


@contextmanager
def stopping_in_order() -> Iterator[StopRequest]:
    """Inside the block Ctrl-C and SIGTERM only ask to stop; a later second Ctrl-C interrupts at once.

    Only the main thread of a program can listen to signals; in another one nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_held: ContextVar[frozenset[tuple[int, int]]] = ContextVar("held", default=frozenset())
"""Folders that the block we are in has locked, by device and inode."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder, which is made if it is not there. A kill unlocks it.

    A block inside the block may lock the same folder again. If nothing was written into a folder that was made, it
    goes again.

    Raises:
        InputError: another process writes into it, or it cannot be made or read.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        descriptor, own = _opened(folder)
    except OSError as error:
        why = error.strerror if type(error) is OSError else type(error).__name__
        raise InputError(f"{folder} cannot be written ({why}). Give another place.") from error
    outer = _held.get()
    token = _held.set(outer | {own})
    try:
        if own not in outer:
            _lock(descriptor, own, folder)
        yield
    finally:
        _held.reset(token)
        for place in missing:
            try:
                place.rmdir()
            except OSError:
                # Something was written there.
                break
        os.close(descriptor)


def _opened(folder: Path) -> tuple[int, tuple[int, int]]:
    """A folder that is made if it is not there: open, and what tells it from others under whatever name."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    status = os.fstat(descriptor)
    return descriptor, (status.st_dev, status.st_ino)


def _lock(descriptor: int, own: tuple[int, int], folder: Path) -> None:
    busy = f"Another run writes into {folder}. Give another folder, or wait until that one has ended."
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(busy) from error
    except OSError:
        # Some file systems of networks know no locks.
        return
    if not folder.exists() or (folder.stat().st_dev, folder.stat().st_ino) != own:
        # Another one made it, wrote nothing and removed it again in this moment.
        raise InputError(busy)

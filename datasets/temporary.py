"""Temporary folders that do not outlive who made them by much, even where that was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path

_FRESH = 60.0
"""Seconds in which a folder that was just made may not be locked yet."""


class TemporaryFolder:
    """A folder that goes with this object; if the process is killed before, it goes when the next one is made.

    It is locked, by which others see that it is in use: a kill unlocks it.

    Args:
        prefix: with which its name begins, and those of others that may be left from before.
    """

    def __init__(self, prefix: str) -> None:
        _remove_abandoned(prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        descriptor = None
        # Some file systems know no locks; what is left there stays.
        with suppress(OSError):
            descriptor = _locked(self.path)
        weakref.finalize(self, _remove, self.path, descriptor)


def _remove_abandoned(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # Of somebody else, in use, or gone in this moment.
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _FRESH:
                _remove(folder, _locked(folder))


def _locked(folder: Path) -> int:
    """The folder, open and locked until it is closed.

    Raises:
        OSError: another one has it locked, or it cannot be.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove(folder: Path, descriptor: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)

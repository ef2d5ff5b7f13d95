"""Writing that is whole or not there, and says so when the disk is full."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from .errors import InputError


def reach_disk(file: IO) -> None:
    """Have the system write what was written to a file."""
    file.flush()
    os.fsync(file.fileno())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all."""
    scratch = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            reach_disk(file)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, object]:
    """A JSON file of one object.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    except (OSError, ValueError):
        pass
    raise InputError(f"{path} is missing or damaged. Remove {path.parent} and prepare again: it is made anew.")


@contextmanager
def naming_full_disk(folder: Path, what: str) -> Iterator[None]:
    """Turn the failure to write to a full disk into an `InputError` that says what to do.

    Args:
        folder: on that disk.
        what: is written, such as "the checkpoint 00002-0000000".
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _tells_full_disk(error):
            raise
        raise InputError(
            f"The disk of {folder} is full, and {what} could not be written. What was written before is kept: free "
            "some space and run again, or give a folder on another disk."
        ) from error


def _tells_full_disk(error: OSError | SafetensorError) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in full
    # safetensors passes the number on in words alone.
    return any(f"(os error {number})" in str(error) for number in full)

"""Files and folders that are whole or not there, and that cannot run code when they are read.

A folder holds safetensors, JSON and text, and a `manifest.json` with its schema number and the
SHA-256 of every file. Reading checks all of it before anything is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from ..datasets.disk import naming_full_disk
from ..datasets.errors import InputError

Read = TypeVar("Read")
SCHEMA = 1
MANIFEST = "manifest.json"
_READ_BY = {"model": "FusionModel.load", "ensemble": "chiasm.fusion.Ensemble.load"}
"""What a user reads a folder with, by its kind."""
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, SafetensorError)
"""What reading a description or weights that were tampered with, or made by another version, has raised."""
_NAMED = {"kind", "schema", "files"}
"""What a manifest of this version says, besides its own SHA-256."""
# A scratch folder this old is nobody's any more: to fill one takes minutes.
_ABANDONED = 3600
"""Seconds."""
_GRACE = 1.0
"""Seconds within which a folder that is being replaced is there again, which takes milliseconds."""
_TRIES = 10


def undescribed(folder: Path) -> InputError:
    """What to raise where all files are as they were written, but are no model."""
    return InputError(
        f"{folder} is whole, but does not describe a model that this version of chiasm can make. "
        "Take the folder from a backup, or train again."
    )


class DamagedError(InputError):
    """A folder is not as it was written: a file changed, is missing, or was never there."""


@contextmanager
def new_folder(folder: Path, kind: str) -> Iterator[Path]:
    """A scratch folder to fill; on success it gets its manifest and takes the place of `folder`.

    If anything fails before, `folder` is as it was.

    Args:
        folder: where the result will stand; an older one of the same kind is replaced.
        kind: what it is, such as "model"; checked when it is read.

    Raises:
        InputError: `folder` is something else than such a folder, or holds more, which replacing
            would destroy; or the disk is full.
    """
    folder = Path(os.path.realpath(folder))
    restore_retired(folder)
    clear_abandoned(folder, age=_ABANDONED)
    _refuse_to_replace(folder, kind)
    # Not by mkdtemp, which would leave a folder that only its owner may read.
    scratch = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({type(error).__name__}). Give another place.") from error
    try:
        with naming_full_disk(folder.parent, f"the {kind} {folder.name}"):
            yield scratch
            _seal(scratch, kind)
        _replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _seal(scratch: Path, kind: str) -> None:
    """Write the manifest of a filled folder, and have all of it reach the disk."""
    files = {path.name: _sha256(path) for path in sorted(scratch.iterdir())}
    manifest = {"kind": kind, "schema": SCHEMA, "files": files}
    (scratch / MANIFEST).write_text(json.dumps(manifest | {"sha256": _sha256_of(manifest)}, indent=2))
    for path in (*scratch.iterdir(), scratch):
        flush(path)


def _sha256_of(manifest: Mapping[str, object]) -> str:
    """Of what a manifest says, however it is laid out."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path, kind: str) -> tuple[str, int, dict[str, str]]:
    """Kind, schema and files of a folder that should be of a kind.

    Raises:
        DamagedError: it has no manifest, or one that is not as it was written.
    """
    if not (folder / MANIFEST).is_file():
        raise DamagedError(f"{folder} is no {kind}: it has no {MANIFEST}. Check the path.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        # One that was written before manifests were sealed has none; a newer version may say more, and seals it.
        seal = manifest.pop("sha256", None)
        if set(manifest) != _NAMED if seal is None else seal != _sha256_of(manifest):
            raise ValueError("not as it was written")
        return manifest["kind"], manifest["schema"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{folder / MANIFEST} is damaged. Take the folder from a backup, or train again.") from error


def _refuse_to_replace(folder: Path, kind: str) -> None:
    """Raise `InputError` unless nothing is at `folder` but an older one of the same kind, or nothing at all."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        is_ours, files = manifest["kind"] == kind and "schema" in manifest, set(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        is_ours, files = False, set()
    if not is_ours:
        raise InputError(f"{folder} exists and is no {kind} of chiasm. Give another name, or move it away.")
    strangers = sorted({path.name for path in folder.iterdir()} - files - {MANIFEST})
    if strangers:
        raise InputError(
            f"{folder} holds {strangers[0]}, which is not part of the {kind} and would be lost. Move it away first."
        )


def _replace(scratch: Path, folder: Path) -> None:
    """Put `scratch` where `folder` is. A kill in between leaves the old one beside, never a mixture."""
    retired = folder.with_name(f".{folder.name}-retired")
    try:
        for left in reversed(range(_TRIES)):
            shutil.rmtree(retired, ignore_errors=True)
            if folder.exists():
                folder.rename(retired)
            try:
                scratch.rename(folder)
                break
            except OSError as error:
                # Whoever reads, and finds no folder, brings the old one back.
                if not left or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    finally:
        # Where the new one did not arrive, as after Ctrl-C, the old one comes back.
        restore_retired(folder)
    flush(folder.parent)
    shutil.rmtree(retired, ignore_errors=True)


def restore_retired(folder: Path, *, after: float = 0.0) -> None:
    """Bring back the old folder if a kill came between its retirement and the new one's arrival.

    Args:
        folder: what was to be replaced.
        after: seconds that another process, which may be replacing it at this moment, has for it.
    """
    retired = folder.with_name(f".{folder.name}-retired")
    until = time.monotonic() + after
    while retired.is_dir() and not folder.exists():
        if time.monotonic() >= until:
            # Else it has just arrived.
            with suppress(OSError):
                retired.rename(folder)
            return
        time.sleep(0.01)


def clear_abandoned(folder: Path, *, age: float) -> None:
    """Remove scratch folders that kills have left; each is as large as what was to be saved.

    Args:
        folder: what was to be saved.
        age: seconds from which on a scratch folder is nobody's any more; 0 where no other process can be writing.
    """
    for scratch in folder.parent.glob(f".{folder.name}-{'[0-9a-f]' * 8}"):
        if time.time() - scratch.stat().st_mtime >= age:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch file to write; on success it takes the place of `path`, else `path` is as it was.

    Missing folders above it are made.
    """
    # Not by Path.resolve, which ends a loop of links in an error of its own.
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        with naming_full_disk(path.parent, path.name):
            yield scratch
            flush(scratch)
        scratch.replace(path)
        flush(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file so that it exists whole or not at all."""
    with new_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def checked_folder(folder: Path, kind: str) -> Path:
    """The folder, after every file in it was held against the manifest.

    Raises:
        InputError: it is of another kind or schema, or has a file that does not belong there.
        DamagedError: it is missing, or has a file that changed, or lacks one.
    """
    folder = Path(os.path.realpath(folder))
    restore_retired(folder, after=_GRACE)
    found, schema, files = _read_manifest(folder, kind)
    if found != kind:
        reader = _READ_BY.get(str(found))
        remedy = "Check the path" if reader is None else f"Read it with {reader}"
        raise InputError(f"{folder} holds {_with_article(str(found))}, not {_with_article(kind)}. {remedy}.")
    if schema != SCHEMA:
        raise InputError(
            f"{folder} has the schema {schema}, and this version of chiasm reads {SCHEMA}. "
            "Install the version of chiasm that wrote it, or train again."
        )
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    strangers, missing = sorted(present - set(files)), sorted(set(files) - present)
    if strangers:
        raise InputError(f"{folder} holds {strangers[0]}, which its manifest does not name. Remove it.")
    if missing:
        raise DamagedError(f"{folder} lacks {missing[0]}. Take the folder from a backup, or train again.")
    for name, digest in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or _sha256(path) != digest:
            raise DamagedError(
                f"{path} is not the file that was saved: its SHA-256 differs from the manifest's. "
                "Take the folder from a backup, or train again."
            )
    return folder


def _with_article(kind: str) -> str:
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def read_folder(folder: Path, kind: str, read: Callable[[Path], Read]) -> Read:
    """What `read` makes of a folder that is whole, although another process may replace it meanwhile.

    Args:
        folder: with a manifest.
        kind: of the folder.
        read: is given the checked folder; called again where it may have seen a part of the old one and a part of
            the new one.

    Raises:
        InputError: as `checked_folder`, and what `read` raises.
    """
    for left in reversed(range(_TRIES)):
        before = _manifest_of(folder)
        try:
            made = read(checked_folder(folder, kind))
        except (InputError, OSError):
            if not left or _manifest_of(folder) == before:
                raise
            continue
        if not left or _manifest_of(folder) == before:
            return made
    raise AssertionError("the last try returns or raises")


def _manifest_of(folder: Path) -> bytes | None:
    """What tells a folder from the one that takes its place."""
    try:
        return (folder / MANIFEST).read_bytes()
    except OSError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A folder in which a cohort is kept as arrays: decoded once, mapped into memory ever after."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from .arguments import as_path
from .batch import Part
from .checks import Exclusion, Policy
from .disk import naming_full_disk, read_json, write_json
from .errors import InputError
from .mapped import MappedArray, map_array, write_array
from .prepared import Packed, Reader
from .shelf import Shelf

if TYPE_CHECKING:
    from .cohort import Cohort

_ABOUT, _INDEX = "store.json", "index.json"
# Raised whenever the same bytes under the same settings would become other arrays, or the files change.
_SCHEMA = 1
_PARTS = {kind.__name__: kind for kind in get_args(Part)}


@dataclass(frozen=True)
class Store:
    """Where the arrays of cohorts are kept, and what becomes of files that cannot be read.

    It holds *shelves*, of images or notes that were decoded under some settings, each content once,
    and *packs*, what the samples of one cohort see of one modality. What it holds is found by the
    content that it was made from, the reader's settings, what the reader has fitted, and the version
    of chiasm: what changes is made anew, beside what was there. All of it may be removed at any
    time, and is made again when it is needed.
    """

    folder: Path
    unreadable: Policy = "raise"

    @classmethod
    def open(cls, folder: str | Path, unreadable: Policy | None = None) -> Store:
        """The store in a folder, or a new one there; without `unreadable`, as it was last given.

        Raises:
            InputError: the folder holds something else, or a store of another version.
        """
        if unreadable not in (None, "raise", "exclude"):
            raise InputError(f'unreadable is {unreadable!r}; expected "raise" or "exclude".')
        folder = as_path("folder", folder).resolve()
        about = folder / _ABOUT
        if not about.is_file():
            if folder.is_file() or any(not path.name.startswith(f".{_ABOUT}") for path in _entries(folder)):
                raise InputError(f"{folder} exists and is no store of chiasm. Give another folder.")
            with naming_full_disk(folder, "a new store"):
                folder.mkdir(parents=True, exist_ok=True)
                write_json(about, {"schema": _SCHEMA, "unreadable": unreadable or "raise"})
        told = read_json(about)
        if told.get("schema") != _SCHEMA or told.get("unreadable") not in ("raise", "exclude"):
            raise InputError(
                f"{folder} is a store of the schema {told.get('schema')}, and this version of chiasm reads {_SCHEMA}. "
                "Give another folder, or remove this one."
            )
        if unreadable not in (None, told["unreadable"]):
            write_json(about, told | {"unreadable": unreadable})
        return cls(folder, unreadable or told["unreadable"])

    def shelf(self, name: str, settings: Mapping[str, object], fields: Mapping[str, tuple]) -> Shelf:
        """Rows that were made under these settings by this version."""
        return Shelf(self.folder / f"{name}-{_digest(settings)}", fields, settings)

    def packed(self, name: str, reader: Reader, cohort: Cohort, contents: str) -> Packed:
        """What `reader.pack(cohort)` gives, mapped; packed only if it never was.

        Args:
            name: of the modality.
            reader: fitted.
            cohort: the samples.
            contents: as `cohort_content` tells it of the cohort.

        Raises:
            InputError: as `pack`; or the disk is full, or a file of the store is damaged.
        """
        settings = {key: value for key, value in vars(reader).items() if not key.endswith("_")}
        kind = f"{type(reader).__module__}.{type(reader).__qualname__}"
        key = [kind, settings, reader.state(), contents, self.unreadable]
        folder = self.folder / "packs" / f"{name}-{_digest(key)}"
        if not self._is_current(folder):
            packed = reader.pack(cohort)
            with naming_full_disk(self.folder, f"the prepared {name}"):
                self._write(folder, packed)
        return self._map(folder)

    def _is_current(self, folder: Path) -> bool:
        """Whether there is such a pack, and the shelves that it refers to are those that it was made with."""
        if not folder.is_dir():
            return False
        shelves = read_json(folder / _INDEX).get("shelves", {})
        return all(Shelf.identity(self.folder / name) == identity for name, identity in shelves.items())

    def _write(self, folder: Path, packed: Packed) -> None:
        """Write a pack, whole or not at all; arrays of shelves are referred to."""
        from filelock import FileLock

        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.parent / ".lock"):
            scratch = folder.parent / ".scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            places, shelves = {}, {}
            for field, array in _fields(packed).items():
                place = folder / f"{field}.npy"
                if isinstance(array, MappedArray) and array.source:
                    place = Path(array.source[0])
                    shelves[place.parent.name] = Shelf.identity(place.parent)
                else:
                    write_array(scratch / place.name, array)
                places[field] = [str(place.relative_to(self.folder)), len(array)]
            told = {"part": packed.kind.__name__, "arrays": places, "shelves": shelves, "remarks": packed.remarks}
            write_json(scratch / _INDEX, told | {"exclusions": [asdict(one) for one in packed.exclusions]})
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)

    def _map(self, folder: Path) -> Packed:
        told = read_json(folder / _INDEX)
        groups: dict[str, dict[str, np.ndarray]] = {"": {}, "arrays": {}, "entries": {}}
        try:
            for field, (place, length) in told["arrays"].items():
                group, _, own = field.rpartition(".")
                groups[group][own] = map_array(self.folder / place, length)
            return Packed(
                _PARTS[told["part"]],
                **groups[""],
                arrays=groups["arrays"],
                entries=groups["entries"],
                remarks=tuple(told["remarks"]),
                exclusions=tuple(Exclusion(**one) for one in told["exclusions"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{folder / _INDEX} is damaged. Remove {folder} and prepare again.") from error


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _fields(packed: Packed) -> dict[str, np.ndarray]:
    own = {"offsets": packed.offsets, "rows": packed.rows, "hours": packed.hours}
    own |= {f"arrays.{name}": array for name, array in packed.arrays.items()}
    return own | {f"entries.{name}": array for name, array in packed.entries.items()}


def _digest(settings: object) -> str:
    told = json.dumps([settings, _SCHEMA, version("chiasm")], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]

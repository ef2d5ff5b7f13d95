"""Rows of arrays made from sources, each source once: files that only grow, and a journal of what is in them."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from .disk import naming_full_disk, reach_disk, read_json, write_json
from .errors import InputError
from .mapped import header, map_array, write_rows
from .parallel import CHUNK, in_parallel

_JOURNAL, _ABOUT = "journal.jsonl", "about.json"


class Made(NamedTuple):
    """What became of one item."""

    item: str
    source: str
    """A hash of the content that the rows were made from."""
    rows: dict[str, np.ndarray] | None
    """By field, `[row, ...]`; None where they are there already, or where the item was refused."""
    refused: str = ""
    """Why there are no rows."""


class Shelf:
    """Arrays in .npy files to which rows are added, and never changed.

    Each line of the journal says which rows were added for which sources, and is written when they
    are on the disk: what lies behind the rows of the last whole line does not exist, and is written
    over by the next process that adds some. So a process that is killed loses only what it had in
    hand. One process adds at a time; others wait for it, and find what it has added.

    Args:
        folder: of the arrays and the journal; made with the first rows.
        fields: type and shape of a row, by name.
        about: what the rows are, as plain values; kept for those who look into the folder.

    Raises:
        InputError: the journal is damaged.
    """

    def __init__(
        self, folder: Path, fields: Mapping[str, tuple[str, tuple[int, ...]]], about: Mapping[str, object]
    ) -> None:
        self.folder, self.journal, self.about = folder, folder / _JOURNAL, about
        self.fields = {name: (np.dtype(kind), shape) for name, (kind, shape) in fields.items()}
        self.rows = 0
        self.sources: dict[str, tuple[int, int]] = {}
        """By hash of the content: first row, and how many."""
        self.stamps: dict[str, str] = {}
        """Source of what was seen, by what tells quickly that it is the same as before."""
        self.journal_bytes = 0
        """How much of the journal is taken in."""
        self.refresh()

    @staticmethod
    def identity(folder: Path) -> str | None:
        """Tells the rows of a folder from those that were there before it was removed and made again."""
        return read_json(folder / _ABOUT)["identity"] if (folder / _ABOUT).is_file() else None

    def refresh(self) -> None:
        """Take in what was added since."""
        if not self.journal.is_file():
            return
        with self.journal.open("rb") as file:
            file.seek(self.journal_bytes)
            for line in file:
                # The last line of a process that was killed may be cut short.
                if line.endswith(b"\n"):
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            told = json.loads(line)
            for source, count in told["sources"].items():
                self.sources[source] = (self.rows, int(count))
                self.rows += int(count)
            self.stamps.update(told["stamps"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.journal} is damaged. Remove {self.folder} and prepare again.") from error
        self.journal_bytes += len(line)

    def find(self, stamp: str) -> tuple[int, int] | None:
        """First row and number of rows; None where there is nothing under this stamp or source."""
        return self.sources.get(self.stamps.get(stamp, stamp))

    def arrays(self) -> dict[str, np.ndarray]:
        """All rows, by field.

        Raises:
            InputError: a file is missing or damaged.
        """
        if not self.rows:
            return {name: np.zeros((0, *shape), kind) for name, (kind, shape) in self.fields.items()}
        return {name: map_array(self._path(name), self.rows) for name in self.fields}

    def add(
        self,
        items: Mapping[str, str],
        make: Callable[[list[str]], list[Made]],
        task: str,
        *,
        refuse: Callable[[str, str], None] | None = None,
        chunk: int = CHUNK,
        together: bool = False,
    ) -> None:
        """Make and add the rows of those items that are not there, in parallel.

        Args:
            items: by what rows are made of, such as a path, its stamp.
            make: from some items to what became of each, in their order; can be pickled.
            task: what the progress bar says.
            refuse: is told of each item without rows and the reason; what it raises ends the work, and
                what was added by then is kept. None where no item can be without.
            chunk: items at most that are made, and lost by a process that is killed, at a time.
            together: whether the rows of an item depend, in their last bits, on those that it is made with, so that
                they are to be the same wherever the work was stopped before.

        Raises:
            InputError: the disk is full, or a file is damaged.
        """
        if all(map(self.find, items.values())):
            return
        with naming_full_disk(self.folder, "what was prepared last"), self._opened() as files:
            missing = [item for item, stamp in items.items() if not self.find(stamp)]
            of = list(items) if together else None
            with closing(in_parallel(make, missing, task, chunk=chunk, of=of)) as results:
                for made in results:
                    self._append(files, [one for one in made if not one.refused], items)
                    for one in made:
                        if one.refused:
                            refuse(one.item, one.refused)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    @contextmanager
    def _opened(self) -> Iterator[dict[str, BinaryIO]]:
        """The files, open for adding by this process alone."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"), ExitStack() as opened:
            self.refresh()
            paths = (self.journal, *map(self._path, self.fields))
            if not self.rows:
                write_json(self.folder / _ABOUT, {"rows": self.about, "identity": secrets.token_hex(8)})
                for path in paths:
                    path.touch()
            # Files that lack rows of the journal are not added to.
            self.arrays()
            yield {path.stem: opened.enter_context(path.open("r+b")) for path in paths}

    def _append(self, files: Mapping[str, BinaryIO], made: Sequence[Made], stamps: Mapping[str, str]) -> None:
        """Write rows, then the line of the journal that makes them exist."""
        new = {one.source: one.rows for one in made if one.source not in self.sources and one.rows is not None}
        counts = {source: len(next(iter(rows.values()))) for source, rows in new.items()}
        seen = {stamps[one.item]: one.source for one in made if stamps[one.item] != one.source}
        if not counts and not seen:
            return
        for name, (kind, shape) in self.fields.items():
            head = header(kind, (self.rows + sum(counts.values()), *shape))
            files[name].seek(len(head) + self.rows * kind.itemsize * math.prod(shape))
            for rows in new.values():
                write_rows(files[name], rows[name].astype(kind, copy=False))
            files[name].seek(0)
            files[name].write(head)
            reach_disk(files[name])
        line = json.dumps({"sources": counts, "stamps": seen}).encode() + b"\n"
        files["journal"].seek(self.journal_bytes)
        files["journal"].write(line)
        files["journal"].truncate()
        reach_disk(files["journal"])
        self._take(line)


@lru_cache(maxsize=1)
def sources_in(journal: Path, size: int) -> frozenset[str]:
    """The sources in the first bytes of a journal, for a worker; none where it does not see the file."""
    try:
        lines = journal.read_bytes()[:size].splitlines() if size else []
    except OSError:
        return frozenset()
    return frozenset(source for line in lines for source in json.loads(line)["sources"])

"""NDJSON: one JSON object a line, in files of any size. A line that cannot be used is named, or listed."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

from .checks import Exclusion, Policy
from .errors import InputError
from .files import TABULAR, is_nearly
from .locations import unchanged
from .progress import progress_bar

LONGEST_LINE = 32 << 20
"""Bytes. It bounds the memory that one line can take; a note is far shorter, a scanned document may be longer."""

MOST_PARTS = 1_000_000
"""Lists and objects in one line: an empty one takes 3 bytes in the file and some 200 in memory."""

MOST_LISTED = 100_000
"""Lines of an export that can be left out and listed. Where more are broken, the files are no NDJSON."""

READ = ("Patient", "Encounter", "Observation", "Condition", "DiagnosticReport", "DocumentReference", "ImagingStudy")
"""The resource types of which something is made."""

_ENDINGS = (".ndjson", ".ndjson.gz")
_LINES = re.compile(r"\.(ndjson|jsonl)(\.\w+)?$")
_JSON = re.compile(r"\.json(\.\w+)?$")

_KIND = re.compile(rb'\s*\{\s*"resourceType"\s*:\s*"([A-Za-z]+)"')


class MalformedLineError(Exception):
    """What is wrong with one line, as a clause about it. `Export.read` adds the file, the line and the remedy."""


class Export:
    """A folder of NDJSON files of FHIR resources, plain or gzipped; which file holds what does not matter.

    Args:
        folder: holds `*.ndjson` or `*.ndjson.gz`.
        invalid: "raise" stops at the first line that cannot be used; "exclude" leaves it out and lists it.

    Raises:
        InputError: the folder or its files are not there, or a file that seems to hold resources is not read.
    """

    def __init__(self, folder: str | Path, *, invalid: Policy) -> None:
        if invalid not in ("raise", "exclude"):
            raise InputError(f'invalid is {invalid!r}; expected "raise" or "exclude".')
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}. Check the path.")
        self.folder = folder
        self.invalid = invalid
        self.paths = sorted([*folder.glob("*.ndjson"), *folder.glob("*.ndjson.gz")])
        self.kinds: Counter[str] = Counter()
        """How many lines of each resource type the last reading met."""
        self._refused: dict[tuple[str, int], str] = {}
        _refuse_passed_over(folder)
        if not self.paths:
            raise InputError(f"{folder} has no .ndjson or .ndjson.gz file. A bulk export puts its files there.")

    @property
    def exclusions(self) -> tuple[Exclusion, ...]:
        """The lines that were left out: file, line number and reason."""
        return tuple(Exclusion(name, number, reason) for (name, number), reason in sorted(self._refused.items()))

    def read(self, take: Mapping[str, Callable[[dict], None]]) -> None:
        """Give every resource to the function of its type; resources of other types are not parsed.

        Args:
            take: by resource type; each may raise `MalformedLineError`, and then must have taken nothing.

        Raises:
            InputError: a file cannot be read, or a line cannot be used and the policy is to raise.
        """
        self.kinds.clear()
        size = sum(path.stat().st_size for path in self.paths)
        with progress_bar(f"reading {', '.join(take)}", size) as done:
            for path in self.paths:
                for number, line in _numbered_lines(path, done):
                    try:
                        self._take(line, take)
                    except MalformedLineError as error:
                        self._refuse(path, number, str(error))

    def _take(self, line: bytes | None, take: Mapping[str, Callable[[dict], None]]) -> None:
        if line is None:
            raise MalformedLineError(f"it is longer than {LONGEST_LINE >> 20} MiB")
        if line.isspace():
            return
        head = _KIND.match(line)
        kind = head[1].decode() if head else None
        if kind is None or kind in take:
            resource = parse_line(line)
            kind = resource.get("resourceType")
        if not isinstance(kind, str):
            raise MalformedLineError("it has no resourceType")
        if kind == "Bundle":
            raise MalformedLineError("it is a Bundle, whose resources should stand one a line")
        self.kinds[kind] += 1
        if kind in take:
            take[kind](resource)

    def _refuse(self, path: Path, number: int, reason: str) -> None:
        if self.invalid == "raise":
            raise InputError(
                f"{path}, line {number}: {reason}. Correct the line or export it again, or leave such lines out and "
                'listed with invalid="exclude".'
            )
        self._refused[path.name, number] = reason
        if len(self._refused) > MOST_LISTED:
            raise InputError(
                f"{path}, line {number}: {reason}. With it more than {MOST_LISTED} lines cannot be used: {self.folder} "
                "is no bulk export of FHIR R4, with one resource a line. Export it again."
            )


def _refuse_passed_over(folder: Path) -> None:
    """Raise `InputError` for a file, or a folder of files, that seems to hold resources and would be passed over."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or (entry.is_file() and entry.name.endswith(_ENDINGS)):
            continue
        if entry.is_dir():
            named = any(is_nearly(entry.name.partition(".")[0], kind.lower()) for kind in READ)
            lost = named and any(_holds_resources(one.name) for one in entry.rglob("*"))
        else:
            lost = _holds_resources(entry.name)
        if lost:
            raise InputError(
                f"{folder} has {entry.name}, which is not read: only *.ndjson and *.ndjson.gz directly in the folder "
                "are, with small letters after the dot. If it holds resources of the export, write them so, one a "
                "line; if not, move it to another folder."
            )


def _holds_resources(name: str) -> bool:
    """Whether a file's name says that it holds resources, whatever its form."""
    low = name.lower()
    stem = low.partition(".")[0]
    if _LINES.search(low):
        return True
    if _JSON.search(low):
        return any(kind.lower() in stem for kind in READ)
    return low.endswith(TABULAR) and any(is_nearly(stem, kind.lower()) for kind in READ)


def _numbered_lines(path: Path, done: Callable[[int], None]) -> Iterator[tuple[int, bytes | None]]:
    """Every line and its number, from 1; None in place of a line that is too long."""
    number = told = 0
    try:
        with (
            unchanged(path),
            path.open("rb") as raw,
            gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else nullcontext(raw) as file,
        ):
            while line := file.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                        pass
                    line = None
                elif number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf") or b"\n"
                yield number, line
                if number % 10_000 == 0:
                    done(raw.tell() - told)
                    told = raw.tell()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read after line {number} ({type(error).__name__}): it is damaged, cut short or may not "
            "be opened. Copy it again and check its permissions."
        ) from error
    done(path.stat().st_size - told)


def parse_line(line: bytes) -> dict:
    """One line as a JSON object.

    Raises:
        MalformedLineError: it is not UTF-8, not strict JSON, nested too deeply, or no object.
    """
    if len(line) > MOST_PARTS and line.count(b"{") + line.count(b"[") > MOST_PARTS:
        raise MalformedLineError(f"it has more than {MOST_PARTS} lists and objects")
    try:
        parsed = _DECODER.decode(line.decode())
        if b"\\ud" in line or b"\\uD" in line:
            json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise MalformedLineError(f"it is not UTF-8 (byte {error.start + 1})") from None
    except UnicodeEncodeError:
        raise MalformedLineError("it has code points that are not Unicode text (lone surrogates)") from None
    except json.JSONDecodeError as error:
        raise MalformedLineError(f"it is not JSON (character {error.pos + 1})") from None
    except RecursionError:
        raise MalformedLineError("it is nested too deeply") from None
    except ValueError:
        raise MalformedLineError("it has a number of thousands of digits") from None
    if not isinstance(parsed, dict):
        raise MalformedLineError("it is not a JSON object")
    return parsed


def _no_constant(_name: str) -> None:
    raise MalformedLineError("it has NaN or Infinity, which are no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)

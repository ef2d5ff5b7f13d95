"""Quotation marks of CSV files: whether they hold each text together, and no more than that."""

from __future__ import annotations

import numpy as np

from .errors import InputError

_MARK = ord('"')
# What stands before a mark that opens a text, and after one that closes it; two together are one of a text.
_BESIDE = b',\r\n"'


class Quotation:
    """Follows the quotation marks of a file.

    One that opens a text and is not closed swallows all rows up to the next, which closes it in the middle of
    another text. A reader that goes on from there gives one patient the rows of others.

    Args:
        name: the file's, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name, self._line = name, 1
        self._inside = False
        # Whether the byte before those that are looked at next is a mark that closed a text.
        self._closed = False
        # That byte, and the last one, which waits for the byte after it.
        self._tail = b"\n"

    def take(self, data: bytes) -> None:
        """Look at the next bytes.

        Raises:
            InputError: a mark closes a text that goes on.
        """
        data = self._tail + data
        self._tail = data[-2:]
        if len(data) < 3:
            return
        marks = np.frombuffer(data, np.uint8)
        places = 1 + np.flatnonzero(marks[1:-1] == _MARK)
        if not self._alternate(marks, places):
            self._follow(data, places.tolist())
        self._line += data.count(b"\n", 1, len(data) - 1)

    def _alternate(self, marks: np.ndarray, places: np.ndarray) -> bool:
        """Take the marks if every second one opens a text and every other closes it, as nearly always; whether so."""
        closing = (np.arange(len(places)) + self._inside) % 2 == 1
        beside = marks[np.where(closing, places + 1, places - 1)]
        pair = len(places) and places[0] == 1 and not self._inside and marks[0] == _MARK and not self._closed
        if pair or not np.isin(beside, list(_BESIDE)).all():
            return False
        self._inside ^= bool(len(places) % 2)
        self._closed = bool(len(places) and closing[-1] and places[-1] == len(marks) - 2)
        return True

    def _follow(self, data: bytes, places: list[int]) -> None:
        """Take mark by mark: one inside a cell that none opens is a character like any other."""
        closed = 0 if self._closed else -1
        for place in places:
            if self._inside:
                if data[place + 1] not in _BESIDE:
                    line = self._line + data.count(b"\n", 1, place)
                    raise InputError(
                        f"{self._name}, line {line}: a quotation mark ends a text that goes on, or one before it was "
                        "never closed. Double the marks that belong to a text."
                    )
                self._inside, closed = False, place
            elif data[place - 1] in _BESIDE and (data[place - 1] != _MARK or closed == place - 1):
                self._inside = True
        self._closed = closed == len(data) - 2

    def end(self) -> None:
        """Say that there is no more.

        Raises:
            InputError: the last text is not closed.
        """
        self.take(b"\n")
        if self._inside:
            raise InputError(f"{self._name} has a quotation mark that is never closed. Close it, or double it.")

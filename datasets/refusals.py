"""How decoders of other libraries fail, turned into one error that names the file and shows no header value."""

from __future__ import annotations

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import InvalidOperation
from os import PathLike

from .errors import InputError, UnreadableImageError

_SILENT = logging.CRITICAL + 1
# What pydicom, its decoders and Pillow raise on malformed files, seen on mutated ones, beside pydicom's own
# types: elements of the wrong kind (AttributeError, TypeError, ValueError with UnicodeError), lookups
# (KeyError, IndexError), numbers (OverflowError, ZeroDivisionError, InvalidOperation), short files
# (EOFError, OSError with UnidentifiedImageError, struct.error, zlib.error), decoders (RuntimeError and its
# kinds, of what nests too deep or is not supported), PNG chunks (SyntaxError), sizes no machine has (MemoryError).
MALFORMED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    InvalidOperation,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def _malformed() -> tuple[type[Exception], ...]:
    """The types above and pydicom's, which derive from Exception alone; asked for only after a failure."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (*MALFORMED, BytesLengthException, InvalidDicomError)


@contextmanager
def refusing(reason: str) -> Iterator[None]:
    """Turn a foreign library's failures into a refusal, and keep its warnings and log inside.

    The library's own text is dropped, also from the traceback: it may quote header values, which may
    name a patient.

    Args:
        reason: what failed and what to do, as sentences.

    Raises:
        UnreadableImageError: the block failed with one of those types.
    """
    try:
        with silence():
            yield
    except InputError:
        raise
    except _malformed() as error:
        raise UnreadableImageError(f"{reason} [{type(error).__name__}]") from None


@contextmanager
def silence() -> Iterator[None]:
    """Keep warnings and pydicom's log inside, which may quote header values.

    Inside another silence it costs nothing, so it is worth its while around many a `refusing`.
    """
    logger = logging.getLogger("pydicom")
    level = logger.level
    if level == _SILENT:
        yield
        return
    logger.setLevel(_SILENT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def naming(path: str | PathLike[str]) -> Iterator[None]:
    """Put the file's path before the message of every refusal in the block."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{shown(path)}: {error}") from None


def shown(path: str | PathLike[str]) -> str:
    """A path for messages: without what a URL may carry of secrets, before its host or after a "?"."""
    text = str(path)
    return re.sub(r"(?<=://)[^/@]*@|\?.*", "", text) if "://" in text else text

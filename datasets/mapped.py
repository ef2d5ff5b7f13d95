"""Arrays in .npy files that are mapped into memory: processes share their pages, and none holds a copy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .disk import reach_disk
from .errors import InputError

# Version 1.0 of the format leaves room for a growing first axis, so that a header can be written over.
_VERSION = (1, 0)
# Written at once: a mapped array that is written elsewhere need not be in memory as a whole.
_BLOCK_BYTES = 2**26


class MappedArray(np.memmap):
    """A whole array of a file. Pickled, it is the file's name, so that a loader's worker maps it too.

    What is cut out of it or computed from it is a plain array.
    """

    source: tuple[str, str, tuple[int, ...], int] | None = None

    def __array_finalize__(self, of: object) -> None:
        super().__array_finalize__(of)
        self.source = None

    def __array_wrap__(self, array: np.ndarray, context: object = None, return_scalar: bool = False) -> object:
        return array[()] if return_scalar else np.asarray(array)

    def __getitem__(self, index: object) -> object:
        found = super().__getitem__(index)
        return found.view(np.ndarray) if isinstance(found, MappedArray) else found

    def __reduce__(self) -> tuple:
        return (_mapped, self.source) if self.source else np.array(self).__reduce__()


def _mapped(path: str, dtype: str, shape: tuple[int, ...], offset: int) -> MappedArray:
    array = MappedArray(path, dtype, "r", offset, shape)
    array.source = (path, dtype, shape, offset)
    return array


def map_array(path: Path, length: int) -> MappedArray:
    """The first `length` rows of a .npy file; the file may hold more.

    Raises:
        InputError: the file is missing, is no array, or is shorter.
    """
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != _VERSION:
                raise ValueError
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
        if fortran or dtype.hasobject:
            raise ValueError
        rows = (path.stat().st_size - offset) // max(dtype.itemsize * int(np.prod(shape[1:])), 1)
        if np.prod(shape[1:]) and rows < length:
            raise ValueError
        return _mapped(str(path.resolve()), dtype.str, (length, *shape[1:]), offset)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing or damaged. Remove the folder {path.parent} and prepare again: it is made anew."
        ) from error


def header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file; as many for every length of the first axis."""
    written = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(written, about)
    return written.getvalue()


def write_rows(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array's bytes in C order. `ndarray.tofile` would not say that the disk is full."""
    rows = max(1, _BLOCK_BYTES // max(array.itemsize * int(np.prod(array.shape[1:])), 1))
    for first in range(0, len(array), rows):
        file.write(np.ascontiguousarray(array[first : first + rows]).tobytes())


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file anew."""
    with path.open("wb") as file:
        file.write(header(array.dtype, array.shape))
        write_rows(file, array)
        reach_disk(file)

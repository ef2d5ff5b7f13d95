"""Grey DICOM images brought to working resolution in one pass over their stored values.

`read_image` and `resize` make an image of floats as large as the file's and shrink it, which costs
four times as long as reading the file. Display values of 8 and 16 bits come from a table, and a
pixel of the smaller image is a mean, so both can be done for a few rows at a time.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt

from .dicom import is_marked, read_dataset, text
from .greyscale import frame_window, paint
from .locations import is_folder, opened
from .pixels import LIMIT_BYTES, WindowChoice
from .refusals import naming
from .series import frames_have_places
from .stored_pixels import decode

_HEAD_BYTES = 132
# Levels of a table while means are taken: fine enough to be lost in rounding to 255.
_LEVELS = 65_535


def read_fitted(path: str, size: int, window: WindowChoice | None = None) -> Float[np.ndarray, "1 size size"] | None:
    """`resize(read_image(path, window=window).pixels, size)` within 1 / 65,535, or None where only that can tell.

    Args:
        path: a file, by path or URL.
        size: side of the square in pixels.
        window: as `read_image` takes it.

    Returns:
        float32 in [0, 1]; None for anything but one grey frame of 8 or 16 bits that is to be shrunk.

    Raises:
        UnreadableImageError: as `read_image`.
    """
    with naming(path):
        if is_folder(path):
            return None
        with opened(path, LIMIT_BYTES) as stream:
            if not is_marked(stream.read(_HEAD_BYTES)):
                return None
            stream.seek(0)
            dataset = read_dataset(stream, LIMIT_BYTES)
        if frames_have_places(dataset) or not (text(dataset, "PhotometricInterpretation") or "").startswith("MONO"):
            return None
        stored = decode(dataset, frame=None, limit_bytes=LIMIT_BYTES)
        values = stored.values.astype(stored.values.dtype.newbyteorder("="), copy=False)
        shrunk = size < max(values.shape) <= size * _LEVELS
        if values.dtype.kind not in "iu" or values.itemsize > 2 or not shrunk:
            return None
        shape, _ = frame_window(stored, window)
        every = np.arange(2 ** (8 * values.itemsize), dtype=f"u{values.itemsize}")
        table = np.empty(len(every), np.float32)
        paint(table, every.view(values.dtype), stored, shape)
        fitted = _fitted(values.view(every.dtype), table, size)
        # Whether it is all padding is for the careful path to say.
        return fitted if fitted.any() else None


def _fitted(
    index: UInt[np.ndarray, "row column"], table: Float[np.ndarray, " value"], size: int
) -> Float[np.ndarray, "1 size size"]:
    """Table values, averaged over the area of each new pixel, in the middle of a black square."""
    height, width = index.shape
    scale = size / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    square = np.zeros((1, size, size), np.float32)
    top, left = (size - rows) // 2, (size - columns) // 2
    square[0, top : top + rows, left : left + columns] = _means(index, table, rows, columns)
    return square


def _means(index: np.ndarray, table: np.ndarray, rows: int, columns: int) -> np.ndarray:
    levels = np.rint(table * _LEVELS).astype(np.uint16)
    top, bottom = _extent(index.shape[0], rows)
    left, right = _extent(index.shape[1], columns)
    # One column more, so that an extent may end behind the last.
    sums = np.zeros((rows, index.shape[1] + 1), np.uint32)
    for row, target in enumerate(sums[:, :-1]):
        # A few rows stay in the processor's cache; "clip", which never happens, spares a copy of the indices.
        block = np.take(levels, index[top[row] : bottom[row]], mode="clip")
        np.add.reduce(block, axis=0, dtype=np.uint32, out=target)
    both = np.stack([left, right], axis=1).ravel()
    totals = np.add.reduceat(sums, both, axis=1, dtype=np.float64)[:, ::2]
    return totals / (np.outer(bottom - top, right - left) * float(_LEVELS))


def _extent(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """The first old pixel of each new one, and the one behind its last: those whose centers it holds.

    In the arithmetic of Pillow's box filter, so that centers on an edge, which rounding decides, fall alike.
    """
    scale = before / after
    center, half = (np.arange(after) + 0.5) * scale, 0.5 * scale
    first = np.maximum(np.trunc(center - half + 0.5), 0)
    behind = np.minimum(np.trunc(center + half + 0.5), before)
    first += (first - center + 0.5) * (1 / scale) <= -0.5
    behind -= (behind - 1 - center + 0.5) * (1 / scale) > 0.5
    return first.astype(np.int64), behind.astype(np.int64)

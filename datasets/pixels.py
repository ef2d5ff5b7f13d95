"""Image files to pixels that can be trusted: DICOM, NIfTI, PNG, JPEG and TIFF, single images and volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .errors import InputError, UnreadableImageError
from .locations import Location, MeteredFile, is_folder, opened
from .refusals import naming

if TYPE_CHECKING:
    from pydicom import Dataset

    from .volumes import Volume

# Bytes of one file's decoded pixels: 2**30 holds a 16,384 x 16,384 grey image as float32, ten times the
# largest mammogram (about 4,700 x 5,900), a CT of 1,000 slices of 512 x 512, and a breast tomosynthesis of 100
# frames at 16 bits.
LIMIT_BYTES = 2**30
_HEAD_BYTES = 352
_RATHER = "Expected DICOM, NIfTI, PNG, JPEG or TIFF."
WindowChoice = int | str | tuple[float, float]


@dataclass(frozen=True)
class ImageFile:
    """An image and what its file says about it without naming the patient; None where it says nothing."""

    pixels: Float[np.ndarray, "channel height width"]
    """float32 in [0, 1]; one channel for grey, three for RGB."""
    window: str
    """How stored values became [0, 1], in words."""
    modality: str | None = None
    """Modality (0008,0060), such as CR or CT."""
    view: str | None = None
    """View Position (0018,5101), such as PA or AP."""
    laterality: str | None = None
    """Image Laterality (0020,0062), else Laterality (0020,0060): R, L, B or U."""
    study_uid: str | None = None
    series_uid: str | None = None
    acquired: datetime | None = None
    """By the scanner's clock, without a time zone. The study's date is not taken: it is often earlier."""

    def __repr__(self) -> str:
        # Pixels in a log or a notebook are a patient's.
        return f"ImageFile({' x '.join(map(str, self.pixels.shape))} {self.pixels.dtype}; {self.window})"


def read_image(
    path: Location | Sequence[Location],
    *,
    window: WindowChoice | None = None,
    frame: int | None = None,
    series_uid: str | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> ImageFile | Volume:
    """Read an image, or a volume of slices, judged by its content and not by its name.

    A folder or a list of DICOM files, a DICOM file of several frames that say where they lie, and a NIfTI file
    give a `Volume`; anything else one image.

    Grey DICOM images pass modality LUT or rescale, window or VOI LUT, and one inversion where small values
    are bright; padding becomes black, overlays stay away. Where the file names no window, pixels are
    scaled between percentiles of its values (`greyscale.ROBUST_PERCENTILES`); so are floating-point pixels
    unless a window is asked for, and values of a TIFF of more than 16 bits, floating or signed.
    Transparent pictures are composited on black; the orientation in EXIF is applied; colour profiles are not.
    Colours of 16 bits in PNG and TIFF are read at 8, as Pillow does.

    Args:
        path: a file, a folder, or the files of one series; paths, or URLs that fsspec opens (s3://...).
        window: index from 0 among the file's VOI LUTs and then windows (None: the first), or (center,
            width) in modality values, such as Hounsfield units: center ± width / 2 become 0 and 1, or for CT
            "lung", "mediastinum", "brain" or "bone" (`greyscale.HOUNSFIELD_WINDOWS`). Only for grey images.
            Of a PNG or TIFF of 12 bits that are stored as 16, (2047.5, 4095) is the range.
        frame: index from 0 of one frame of a DICOM file of several, page of a TIFF, or volume of a NIfTI
            file of four dimensions.
        series_uid: which Series Instance UID (0020,000E), where a folder holds several.
        limit_bytes: larger files, and files and volumes that would decode to more bytes, are refused.
            Reading needs at most five times as much memory.

    Raises:
        UnreadableImageError: the file gives no trustworthy pixels, or the slices no one volume; the message
            says why and what to do.
        InputError: the window, frame or series asked for is impossible or not in the file.

    Example:
        >>> read_image("scan.dcm", window=(40, 400)).pixels.shape  # doctest: +SKIP
        (1, 512, 512)

    Source: DICOM PS3.4 N.2, PS3.3 C.7.6.3 and C.11; ISO 15948 (PNG); ISO 10918-1 (JPEG); TIFF 6.0; NIfTI-1.
    """
    check_choice(window, frame)
    if not isinstance(path, str) and isinstance(path, Sequence):
        several = True
    else:
        with naming(path):
            several = is_folder(path)
    if several:
        from .volumes import read_series

        if frame is not None:
            raise InputError("frame is for one file, and this is a series. Leave it out.")
        return read_series(path, window=window, series_uid=series_uid, limit_bytes=limit_bytes)
    if series_uid is not None:
        raise InputError("series_uid is for a folder or a list of files, and this is one file. Leave it out.")
    with naming(path), opened(path, limit_bytes) as stream:
        return _read_file(stream, window, frame, limit_bytes)


def read_stored_values(path: Location, *, frame: int | None = None, limit_bytes: int = LIMIT_BYTES) -> np.ndarray:
    """The decoded pixels of a DICOM file before rescale and window.

    Colour is already RGB, except for palettes, whose indices are returned.

    Args:
        frame: index from 0 of one frame of a file of several.
        limit_bytes: as for `read_image`.

    Returns:
        `[row, column]`, or `[row, column, 3]` for colour, in the file's own type.

    Raises:
        UnreadableImageError: the file is not DICOM or cannot be decoded as declared.
        InputError: there is no such frame.

    Source: DICOM PS3.5 8; Pixel Data (7FE0,0010).
    """
    from .stored_pixels import decode

    check_choice(None, frame)
    with naming(path), opened(path, limit_bytes) as stream:
        head = stream.read(_HEAD_BYTES)
        return decode(_dataset(stream, head, limit_bytes), frame=frame, limit_bytes=limit_bytes).values


def unreadable(path: Location | Sequence[Location], window: WindowChoice | None = None) -> str | None:
    """Why `read_image` refuses a file in this window, or None where it reads it."""
    try:
        read_image(path, window=window)
    except UnreadableImageError as error:
        return str(error)
    return None


def resize(pixels: Float[np.ndarray, "channel height width"], size: int) -> Float[np.ndarray, "channel size size"]:
    """Fit an image into a square, keeping its aspect ratio; the rest of the square is black.

    Shrinking averages over the area of each new pixel, so that fine structure does not alias; enlarging
    interpolates linearly.

    Args:
        pixels: float32 in [0, 1].
        size: side of the square in pixels, at least 1.

    Returns:
        float32 in [0, 1], the image in the middle.

    Raises:
        InputError: the image is not `[channel, height, width]`, has no pixels, or `size` is below 1.
    """
    from PIL import Image

    if pixels.ndim != 3 or not pixels.size or size < 1:
        raise InputError(
            f"pixels have shape {pixels.shape} and size is {size}; expected [channel, height, width] and 1 or more."
        )
    _, height, width = pixels.shape
    scale = size / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    square = np.zeros((len(pixels), size, size), np.float32)
    top, left = (size - rows) // 2, (size - columns) // 2
    for channel, target in zip(pixels, square, strict=True):
        plane = Image.fromarray(np.ascontiguousarray(channel, np.float32))
        fitted = np.asarray(plane.resize((columns, rows), method))
        target[top : top + rows, left : left + columns] = np.clip(fitted, 0, 1)
    return square


def check_choice(window: object, frame: object) -> None:
    """Refuse windows and frames that no file could have.

    Raises:
        InputError: the window is neither an index, a name nor a pair, or the frame no index.
    """
    from .greyscale import HOUNSFIELD_WINDOWS

    index = isinstance(window, int) and not isinstance(window, bool) and window >= 0
    named = isinstance(window, str) and window in HOUNSFIELD_WINDOWS
    pair = isinstance(window, tuple) and len(window) == 2 and all(isinstance(one, int | float) for one in window)
    pair = pair and all(map(math.isfinite, window)) and window[1] > 0
    if not (window is None or index or named or pair):
        raise InputError(
            "window: expected an index from 0, (center, width) with a width above 0, or one of "
            f"{', '.join(HOUNSFIELD_WINDOWS)}."
        )
    if frame is not None and (not isinstance(frame, int) or isinstance(frame, bool) or frame < 0):
        raise InputError("frame: expected an index from 0.")


def _read_file(
    stream: MeteredFile, window: WindowChoice | None, frame: int | None, limit_bytes: int
) -> ImageFile | Volume:
    from .dicom import is_marked
    from .nifti import looks_like_nifti, read_nifti
    from .pictures import kind_of, read_picture

    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    # The preamble of a DICOM file may be the start of a TIFF (PS3.10 7.1), so the mark decides.
    if not is_marked(head):
        if kind := kind_of(head):
            return ImageFile(*read_picture(stream, kind, window, frame, limit_bytes))
        if looks_like_nifti(head):
            return read_nifti(stream, window, frame, limit_bytes)
    return _read_dicom(stream, head, window, frame, limit_bytes)


def _dataset(stream: MeteredFile, head: bytes, limit_bytes: int) -> Dataset:
    from .dicom import looks_like_dicom, read_dataset

    if not looks_like_dicom(head):
        raise UnreadableImageError(f"its content is none of the known image formats. {_RATHER}")
    stream.seek(0)
    return read_dataset(stream, limit_bytes)


def _read_dicom(
    stream: MeteredFile, head: bytes, window: WindowChoice | None, frame: int | None, limit_bytes: int
) -> ImageFile | Volume:
    from .greyscale import render
    from .lookup import palette_colours
    from .origins import origin
    from .series import frames_have_places
    from .stored_pixels import decode
    from .volumes import read_frames

    dataset = _dataset(stream, head, limit_bytes)
    if frame is None and frames_have_places(dataset):
        return read_frames(dataset, window, limit_bytes)
    stored = decode(dataset, frame=frame, limit_bytes=limit_bytes)
    grey = stored.photometric in ("MONOCHROME1", "MONOCHROME2")
    if window is not None and not grey:
        raise InputError("window is for grey images; this one has colours. Leave it out.")
    if grey:
        tones, words = render(stored, window)
        return ImageFile(tones[None], words, **origin(dataset))
    if stored.photometric == "PALETTE COLOR":
        return ImageFile(_channels_first(palette_colours(stored)), "palette", **origin(dataset))
    if stored.photometric != "RGB":
        raise UnreadableImageError("its colours cannot be converted to RGB. Convert the file to RGB.")
    full = 2**stored.bits - 1
    if int(stored.values.max()) > full:
        raise UnreadableImageError("its colours exceed its Bits Stored. Export the file again.")
    colours = stored.values.astype(np.float32) / np.float32(full)
    return ImageFile(_channels_first(colours), "all values", **origin(dataset))


def _channels_first(colours: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(colours, -1, 0))

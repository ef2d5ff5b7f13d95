"""Image files to pixels that can be trusted: DICOM, PNG and JPEG."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from jaxtyping import Float

from .errors import InputError, UnreadableImageError
from .refusals import naming, refusing

if TYPE_CHECKING:
    from PIL.Image import Image
    from pydicom import Dataset

# Bytes of one file's decoded pixels: 2**30 holds a 16,384 x 16,384 grey image as float32, ten times the
# largest mammogram (about 4,700 x 5,900), and a breast tomosynthesis of 100 frames at 16 bits.
LIMIT_BYTES = 2**30
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_HEAD_BYTES = 132
_RATHER = "Expected DICOM, PNG or JPEG."
# Code strings and identifiers have these alphabets (PS3.5 6.2); anything else is text of unknown content.
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_UID = re.compile(r"[0-9.]{1,64}")
_CLOCK = re.compile(r"(\d{12})(\d{2})?(?:\.(\d{1,6}))?(?:[+-]\d{4})?")
# EXIF 4.6.4 A, tag 0x0112: what brings the picture upright, as names of Pillow's transpositions.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


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


def read_image(
    path: str | PathLike[str],
    *,
    window: int | tuple[float, float] | None = None,
    frame: int | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> ImageFile:
    """Read a DICOM, PNG or JPEG file, judged by its content and not by its name.

    Grey DICOM images pass modality LUT or rescale, window or VOI LUT, and one inversion where small values
    are bright; padding becomes black, overlays stay away. Where the file names no window, pixels are
    scaled between percentiles of its values (`greyscale.ROBUST_PERCENTILES`); so are floating-point pixels
    unless a window is asked for. Transparent PNG are
    composited on black; the orientation in EXIF is applied; colour profiles are not.

    Args:
        window: index from 0 among the file's VOI LUTs and then windows (None: the first), or (center,
            width) in modality values, such as Hounsfield units: center ± width / 2 become 0 and 1. Only for
            grey DICOM.
        frame: index from 0 of one frame of a DICOM file of several.
        limit_bytes: larger files, and files that would decode to more bytes, are refused.

    Raises:
        UnreadableImageError: the file gives no trustworthy pixels; the message says why and what to do.
        InputError: the window or frame asked for is impossible or not in the file.

    Example:
        >>> read_image("scan.dcm", window=(40, 400)).pixels.shape  # doctest: +SKIP
        (1, 512, 512)

    Source: DICOM PS3.4 N.2, PS3.3 C.7.6.3 and C.11; ISO 15948 (PNG); ISO 10918-1 (JPEG).
    """
    _check_choice(window, frame)
    with naming(path), _opened(path, limit_bytes) as stream:
        head = stream.read(_HEAD_BYTES)
        stream.seek(0)
        if head.startswith((_PNG, _JPEG)):
            if window is not None or frame:
                raise InputError("window and frame are for DICOM; this is a PNG or JPEG. Leave them out.")
            return ImageFile(_picture(stream, limit_bytes, is_png=head.startswith(_PNG)), "all values")
        return _read_dicom(stream, head, window, frame, limit_bytes)


def read_stored_values(
    path: str | PathLike[str], *, frame: int | None = None, limit_bytes: int = LIMIT_BYTES
) -> np.ndarray:
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
    from .dicom import decode

    _check_choice(None, frame)
    with naming(path), _opened(path, limit_bytes) as stream:
        head = stream.read(_HEAD_BYTES)
        return decode(_dataset(stream, head, limit_bytes), frame=frame, limit_bytes=limit_bytes).values


def unreadable(path: str | PathLike[str]) -> str | None:
    """Why `read_image` refuses a file, or None where it reads it."""
    try:
        read_image(path)
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


def _check_choice(window: object, frame: object) -> None:
    """Refuse windows and frames that no file could have."""
    index = isinstance(window, int) and not isinstance(window, bool) and window >= 0
    pair = isinstance(window, tuple) and len(window) == 2 and all(isinstance(one, int | float) for one in window)
    pair = pair and all(map(math.isfinite, window)) and window[1] > 0
    if not (window is None or index or pair):
        raise InputError("window: expected an index from 0, or (center, width) with a width above 0.")
    if frame is not None and (not isinstance(frame, int) or isinstance(frame, bool) or frame < 0):
        raise InputError("frame: expected an index from 0.")


def _opened(path: str | PathLike[str], limit_bytes: int) -> BinaryIO:
    file = Path(path)
    if file.is_dir():
        raise UnreadableImageError("this is a folder. Give the path of one image file.")
    if not file.is_file():
        raise UnreadableImageError("there is no such file. Check the path.")
    with refusing("it cannot be opened. Check the permissions."):
        size = file.stat().st_size
        if not size:
            raise UnreadableImageError("it is empty. Copy or export it again.")
        if size > limit_bytes:
            raise UnreadableImageError(
                f"it has {size} bytes, more than the limit of {limit_bytes}. If it is a true image, raise limit_bytes."
            )
        return file.open("rb")


def _dataset(stream: BinaryIO, head: bytes, limit_bytes: int) -> Dataset:
    from .dicom import looks_like_dicom, read_dataset

    if not looks_like_dicom(head):
        raise UnreadableImageError(f"its content is none of the known image formats. {_RATHER}")
    stream.seek(0)
    return read_dataset(stream, limit_bytes)


def _read_dicom(
    stream: BinaryIO, head: bytes, window: int | tuple[float, float] | None, frame: int | None, limit_bytes: int
) -> ImageFile:
    from .dicom import decode
    from .greyscale import render
    from .lookup import palette_colours

    dataset = _dataset(stream, head, limit_bytes)
    stored = decode(dataset, frame=frame, limit_bytes=limit_bytes)
    grey = stored.photometric in ("MONOCHROME1", "MONOCHROME2")
    if window is not None and not grey:
        raise InputError("window is for grey images; this one has colours. Leave it out.")
    if grey:
        tones, words = render(stored, window)
        return ImageFile(tones[None], words, **_origin(dataset))
    if stored.photometric == "PALETTE COLOR":
        return ImageFile(_channels_first(palette_colours(stored)), "palette", **_origin(dataset))
    if stored.photometric != "RGB":
        raise UnreadableImageError("its colours cannot be converted to RGB. Convert the file to RGB.")
    full = 2**stored.bits - 1
    if int(stored.values.max()) > full:
        raise UnreadableImageError("its colours exceed its Bits Stored. Export the file again.")
    colours = stored.values.astype(np.float32) / np.float32(full)
    return ImageFile(_channels_first(colours), "all values", **_origin(dataset))


def _channels_first(colours: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(colours, -1, 0))


def _origin(dataset: Dataset) -> dict[str, str | datetime | None]:
    """What the header says about where the image comes from, as far as it cannot be a name."""

    def matching(pattern: re.Pattern[str], *keywords: str) -> str | None:
        # A broken remark about the picture does not make its pixels less true, so it counts as absent.
        from .dicom import text

        for keyword in keywords:
            with suppress(UnreadableImageError):
                value = text(dataset, keyword)
                if value is not None and pattern.fullmatch(value):
                    return value
        return None

    whole = matching(_CLOCK, "AcquisitionDateTime")
    for kind in ("Acquisition", "Content"):
        date = matching(re.compile(r"\d{8}"), f"{kind}Date")
        time = matching(re.compile(r"\d{4,6}(\.\d{1,6})?"), f"{kind}Time")
        whole = whole or (date and time and date + time)
    return {
        "modality": matching(_CODE, "Modality"),
        "view": matching(_CODE, "ViewPosition"),
        "laterality": matching(re.compile("[RLBU]"), "ImageLaterality", "Laterality"),
        "study_uid": matching(_UID, "StudyInstanceUID"),
        "series_uid": matching(_UID, "SeriesInstanceUID"),
        "acquired": _moment(whole),
    }


def _moment(written: str | None) -> datetime | None:
    """A DICOM date and time of at least hours and minutes; None for anything else."""
    match = _CLOCK.fullmatch(written or "")
    if match is None:
        return None
    minutes, seconds, fraction = match.groups()
    with suppress(ValueError):
        return datetime.strptime(f"{minutes}{seconds or '00'}.{fraction or '0'}", "%Y%m%d%H%M%S.%f")
    return None


def _picture(stream: BinaryIO, limit_bytes: int, *, is_png: bool) -> np.ndarray:
    """A PNG or JPEG as `[channel, height, width]`, float32 in [0, 1]."""
    import PIL.Image

    remedy = "The file is damaged: copy or export it again."
    with refusing(f"it cannot be decoded as {'PNG' if is_png else 'JPEG'}. {remedy}"):
        kinds = ("PNG",) if is_png else ("JPEG",)
        try:
            image = PIL.Image.open(stream, formats=kinds)
        except PIL.Image.DecompressionBombError:
            raise UnreadableImageError("its header declares more pixels than Pillow decodes. Crop it.") from None
        width, height = image.size
        # As float32, and with the alpha channel that is composited away.
        needed = 4 * width * height * max(len(image.getbands()), 4 if image.mode == "P" else 1)
        if needed > limit_bytes:
            raise UnreadableImageError(
                f"its header declares {height} x {width} pixels, {needed} bytes, more than the limit of {limit_bytes}. "
                "If it is a true image, raise limit_bytes."
            )
        if is_png:
            if getattr(image, "n_frames", 1) > 1:
                raise UnreadableImageError("it is an animated PNG. Save the one picture that is meant.")
            # Pillow tests the checksums of PNG only when asked, and then wants the file opened anew.
            image.verify()
            stream.seek(0)
            image = PIL.Image.open(stream, formats=kinds)
        orientation = image.getexif().get(0x0112)
        planes = _planes(image)
        if orientation in _UPRIGHT:
            planes = _upright(planes, orientation)
    return np.ascontiguousarray(planes)


def _planes(image: Image) -> np.ndarray:
    """Grey or RGB of a decoded picture, composited on black, `[channel, height, width]`."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        tones = values / np.float32(65_535)
        return np.where(values == clear, 0, tones).astype(np.float32)[None]
    if image.mode in ("1", "L", "LA", "La"):
        image = image.convert("LA" if clear is not None or (image.mode != "1" and "A" in image.mode) else "L")
    elif image.mode in ("RGBA", "RGBa", "PA") or clear is not None:
        image = image.convert("RGBA")
    else:
        image = image.convert("RGB")
    planes = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    return planes[:-1] * planes[-1:] if image.mode in ("LA", "RGBA") else planes


def _upright(planes: np.ndarray, orientation: int) -> np.ndarray:
    from PIL.Image import Transpose, fromarray

    turn = Transpose[_UPRIGHT[orientation]]
    return np.stack([np.asarray(fromarray(plane).transpose(turn)) for plane in planes])

"""PNG, JPEG and TIFF files to display values in [0, 1], through Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .codestreams import MOST_SCANS, TOO_MANY_SCANS
from .errors import InputError, UnreadableImageError
from .greyscale import Window, given_window, robust_window, sample, scaled
from .locations import MeteredFile
from .refusals import refusing

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.TiffImagePlugin import TiffImageFile

KINDS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
# EXIF 4.6.4 A, tag 0x0112: what brings the picture upright, as names of Pillow's transpositions.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# Tags of TIFF 6.0.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 258, 262, 322, 323, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
# The smallest that a TIFF's tile may be counted as: many writers use 256 for pictures of any size.
_COMMON_TILE = 1024
# Pillow's modes of one channel of more than 8 bits.
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L")
_ONLY_DEEP = "window is for a PNG or TIFF of one channel of more than 8 bits"


def kind_of(head: bytes) -> str | None:
    """PNG, JPEG or TIFF, by the first bytes of a file; None for anything else."""
    return next((kind for start, kind in KINDS.items() if head.startswith(start)), None)


def read_picture(
    stream: MeteredFile, kind: str, window: int | str | tuple[float, float] | None, frame: int | None, limit_bytes: int
) -> tuple[Float[np.ndarray, "channel height width"], str]:
    """A picture as float32 in [0, 1], upright and composited on black, and its window in words.

    Args:
        kind: as `kind_of` tells it.
        window: (center, width) in stored values, for a TIFF or a grey PNG of more than 8 bits.
        frame: index from 0 among the pages of a TIFF.

    Raises:
        UnreadableImageError: the file is damaged, too large, animated, or of several pages.
        InputError: window or frame are not for such a file.

    Source: ISO 15948 (PNG); ISO 10918-1 (JPEG); TIFF 6.0; EXIF 4.6.4 A.
    """
    import PIL.Image

    if kind != "TIFF" and frame:
        raise InputError("frame is for DICOM, NIfTI and TIFF; this is a PNG or JPEG. Leave it out.")
    if isinstance(window, int | str):
        raise InputError(f"a {kind} names no windows. Give window=(center, width) in its values, or none.")
    with refusing(f"it cannot be decoded as {kind}. The file is damaged: copy or export it again."):
        try:
            image = PIL.Image.open(stream, formats=(kind,))
            if kind == "TIFF":
                _turn_to_page(image, frame)
        except PIL.Image.DecompressionBombError:
            raise UnreadableImageError("its header declares more pixels than Pillow decodes. Crop it.") from None
        _check_size(image, limit_bytes)
        if kind == "TIFF":
            return _tiff(image, window, limit_bytes)
        if kind == "PNG":
            image = _verified_png(image, stream)
        else:
            _check_scans(stream)
        orientation = image.getexif().get(_ORIENTATION)
        if window is not None and not image.mode.startswith("I"):
            raise InputError(f"{_ONLY_DEEP}. Leave it out.")
        planes = _planes(image, window)
        if orientation in _UPRIGHT:
            planes = _upright(planes, orientation)
    return np.ascontiguousarray(planes), "all values" if window is None else given_window(window)[1]


def _check_size(image: Image, limit_bytes: int) -> None:
    width, height = image.size
    # As float32, and with the alpha channel that is composited away.
    needed = 4 * width * height * max(len(image.getbands()), 4 if image.mode == "P" else 1)
    if needed > limit_bytes:
        raise UnreadableImageError(
            f"its header declares {height} x {width} pixels, {needed} bytes, more than the limit of {limit_bytes}. "
            "If it is a true image, raise limit_bytes."
        )


def _verified_png(image: Image, stream: MeteredFile) -> Image:
    import PIL.Image

    if getattr(image, "n_frames", 1) > 1:
        raise UnreadableImageError("it is an animated PNG. Save the one picture that is meant.")
    # Pillow tests the checksums of PNG only when asked, and then wants the file opened anew.
    image.verify()
    stream.seek(0)
    return PIL.Image.open(stream, formats=("PNG",))


def _check_scans(stream: MeteredFile) -> None:
    at = stream.tell()
    stream.seek(0)
    scans = stream.read().count(b"\xff\xda")
    stream.seek(at)
    if scans > MOST_SCANS:
        raise UnreadableImageError(TOO_MANY_SCANS)


def _turn_to_page(image: TiffImageFile, frame: int | None) -> None:
    pages = image.n_frames
    if frame is None and pages > 1:
        raise UnreadableImageError(
            f"it has {pages} pages, where one image is expected. Choose one with frame=0 to frame={pages - 1}."
        )
    if (frame or 0) >= pages:
        raise InputError(f"frame is {frame}; the file has frames 0 to {pages - 1}.")
    image.seek(frame or 0)
    if image.mode == "LAB":
        raise UnreadableImageError("its colours are LAB, which cannot be converted to RGB. Save it as RGB.")


def _tiff(image: TiffImageFile, window: tuple[float, float] | None, limit_bytes: int) -> tuple[np.ndarray, str]:
    """A page of a TIFF: up to 16 unsigned bits over their range, other values between percentiles."""
    tags = image.tag_v2
    sides = [max(int(tags.get(tag, 0)), 1) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
    if 8 * len(image.getbands()) * sides[0] * sides[1] > max(limit_bytes, 32 * _COMMON_TILE**2):
        raise UnreadableImageError("its tiles are larger than the limit of memory. Save it in strips.")
    forms, bits = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)), max(tags.get(_BITS_PER_SAMPLE, (1,)))
    if image.mode not in _DEEP:
        if window is not None:
            raise InputError(f"{_ONLY_DEEP}. Leave it out.")
        if set(forms) != {_UNSIGNED}:
            raise UnreadableImageError("its values of 8 bits are signed, which Pillow cannot read. Save it unsigned.")
        return np.ascontiguousarray(_planes(image)), "all values"
    values = np.asarray(image)
    if forms == (_UNSIGNED,) and values.dtype == np.int32:
        # Pillow has no mode of 32 unsigned bits.
        values = values.view(np.uint32)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnreadableImageError("its pixels hold NaN or infinity. Replace them and save it again.")
    if window is not None:
        shape, words = given_window(window)
    elif values.dtype.kind == "u" and bits <= 16:
        shape, words = Window(2.0**bits / 2 - 0.5, 2.0**bits - 1, "LINEAR_EXACT"), "all values"
    else:
        shape, words = robust_window(sample(values.ravel()).astype(np.float64), None)
    # Pillow inverts pictures of up to 8 bits only.
    return scaled(values, shape, inverted=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)[None], words


def _planes(image: Image, window: tuple[float, float] | None = None) -> np.ndarray:
    """Grey or RGB of a decoded picture, composited on black, `[channel, height, width]`.

    Args:
        image: as Pillow decodes it.
        window: of grey values of 16 bits; None for their whole range.
    """
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        whole = values.astype(np.float32) / np.float32(65_535)
        tones = whole if window is None else scaled(values, given_window(window)[0])
        if clear is not None:
            tones[values == clear] = 0
        return tones[None]
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

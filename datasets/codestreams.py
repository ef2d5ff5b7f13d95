"""What a compressed frame says about its own size, read before a decoder believes it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .errors import UnreadableImageError

# PS3.5 G.3.1: two bytes of RLE, a repeat count and a value, become at most 128.
_RLE_EXPANSION = 64
# Start-of-frame markers of JPEG (ISO 10918-1 B.1.1.3) and JPEG-LS (ISO 14495-1 C.1.1).
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}

_START_OF_SCAN = 0xDA
# Markers with a length that may stand before the scan (ISO 10918-1 table B.1): neither restarts, start, end nor 0x01.
_MARKERS = {*range(0xC0, 0xFF)} - {*range(0xD0, 0xDA)}
# Every scan of a progressive JPEG passes over the whole picture, and takes some 20 bytes; true ones have up to 20.
MOST_SCANS = 64
TOO_MANY_SCANS = f"it is a JPEG of more than {MOST_SCANS} scans, which would take hours. Export the file again."
# JPEG 2000 (ISO 15444-1 A.4, A.6): a tile takes some 6 kB of its decoder's memory and a precinct some 500 bytes, so
# that with sides of 1 a picture of 16 MB takes 2 GB; encoders use 128 and more.
_LEAST_SIDE = 16
_START_OF_TILE, _START_OF_DATA, _CODING_STYLE, _COMPONENT_STYLE = 0xFF90, 0xFF93, 0xFF52, 0xFF53
# Eight for each of the most tiles that JPEG 2000 has, 65,535; more would only serve to pass the time.
_MOST_MARKERS = 2**19
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"


def check_codestream(
    frame: bytes, declared: tuple[int, int, int], bits_allocated: int, is_rle: bool, limit_bytes: int
) -> None:
    """Hold the size in a compressed frame against the header's, so that no decoder allocates by a lie.

    Args:
        frame: one frame of encapsulated pixel data.
        declared: rows, columns and samples of the header.
        limit_bytes: what one RLE segment may expand to.

    Raises:
        UnreadableImageError: the sizes differ, none is found, or RLE expands beyond the limit.

    Source: DICOM PS3.5 A.4 and Annex G; ISO 10918-1 B.2.2; ISO 15444-1 A.5.1.
    """
    if is_rle:
        _check_rle(frame, declared, bits_allocated, limit_bytes)
        return
    # The last marker, of JPEG and JPEG 2000 alike; real files pad after it with 0 or 255.
    if not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise UnreadableImageError("its compressed data end too early. Copy or export the file again.")
    try:
        found = _jpeg_2000_size(frame) or _jpeg_size(frame, bits_allocated)
    except (struct.error, IndexError):
        found = None
    if frame.count(b"\xff\xda") > MOST_SCANS and not frame.startswith((b"\xff\x4f", _JP2)):
        raise UnreadableImageError(TOO_MANY_SCANS)
    if found != declared:
        raise UnreadableImageError(
            f"its compressed data hold {_size(found)}, its header says {_size(declared)}. Export the file again."
        )


def _size(size: tuple[int, int, int] | None) -> str:
    return "no image" if size is None else "{} x {} pixels of {} sample(s)".format(*size)


def _jpeg_size(frame: bytes, bits_allocated: int) -> tuple[int, int, int] | None:
    """Rows, columns and samples of a JPEG or JPEG-LS whose markers lead unbroken to its scan, or None.

    Where libjpeg would only warn about the markers, and for a precision that the pixels cannot hold, GDCM
    ends the whole process.
    """
    if frame[:2] != b"\xff\xd8":
        return None
    at, size = 2, None
    for _ in range(_MOST_MARKERS):
        if at + 4 > len(frame) or frame[at] != 0xFF:
            break
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == _START_OF_SCAN:
            return None if size is None else tuple(size)
        length = struct.unpack(">H", frame[at + 2 : at + 4])[0]
        if marker not in _MARKERS or not _is_known_variant(frame[at + 4 : at + 2 + length]):
            return None
        if marker in _FRAME_MARKERS:
            precision, *size = struct.unpack(">BHHB", frame[at + 4 : at + 10])
            if not 2 <= precision <= bits_allocated:
                return None
        at += 2 + length
    return None


def _is_known_variant(content: bytes) -> bool:
    """Whether an application segment of JFIF has major version 1, and one of Adobe a transform of three colours."""
    if content.startswith(b"JFIF\0"):
        return content[5:6] == b"\x01"
    # A shorter segment of Adobe's has no transform, and decoders pass over it.
    return not content.startswith(b"Adobe") or len(content) < 12 or content[11:12] in (b"\0", b"\x01")


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of the SIZ marker, which follows the start of a codestream at once."""
    start = _boxed_codestream(frame) if frame.startswith(_JP2) else 0
    if start is None or frame[start : start + 4] != b"\xff\x4f\xff\x51":
        return None
    right, bottom, left, top, tile_width, tile_height = struct.unpack(">6I", frame[start + 8 : start + 32])
    rows, columns = bottom - top, right - left
    components = struct.unpack(">H", frame[start + 40 : start + 42])[0]
    small = tile_width < min(_LEAST_SIDE, columns) or tile_height < min(_LEAST_SIDE, rows)
    if small or any(side < _LEAST_SIDE for side in _precinct_sides(frame, start, 1 if components < 257 else 2)):
        raise UnreadableImageError(
            f"its JPEG 2000 data have tiles or precincts of under {_LEAST_SIDE} pixels, which fill the memory. "
            "Export the file again."
        )
    return rows, columns, components


def _boxed_codestream(frame: bytes) -> int | None:
    """Where the codestream starts in a JP2 file, whose boxes lead unbroken to it (ISO 15444-1 I.4), or None."""
    at = 0
    for _ in range(_MOST_MARKERS):
        if at + 8 > len(frame):
            break
        length, kind = struct.unpack(">I4s", frame[at : at + 8])
        if kind == b"jp2c":
            return at + (16 if length == 1 else 8)
        if length < 8:
            return None
        at += length
    return None


def _precinct_sides(frame: bytes, start: int, index_bytes: int) -> Iterator[int]:
    """Sides of all precincts that some COD or COC marker declares, in pixels (ISO 15444-1 A.6.1 and A.6.2)."""
    at, tile = start + 2, None
    for _ in range(_MOST_MARKERS):
        if at + 4 > len(frame):
            return
        marker, length = struct.unpack(">HH", frame[at : at + 4])
        if marker == _START_OF_DATA:
            if not tile:
                return
            # From one part of a tile to the next; the last may leave its length open.
            at, tile = tile, None
            continue
        if marker < 0xFF00:
            return
        if marker == _START_OF_TILE:
            part = struct.unpack(">I", frame[at + 6 : at + 10])[0]
            tile = at + part if part > 12 else None
        if marker in (_CODING_STYLE, _COMPONENT_STYLE):
            style = at + 4 + (index_bytes if marker == _COMPONENT_STYLE else 0)
            sizes = frame[style + (1 if marker == _COMPONENT_STYLE else 5) + 5 : at + 2 + length]
            for size in sizes if frame[style] & 1 else b"":
                yield 2 ** (size & 15)
                yield 2 ** (size >> 4)
        at += 2 + length
    raise UnreadableImageError("its JPEG 2000 data have more markers than any true picture. Leave the file out.")


def _check_rle(frame: bytes, declared: tuple[int, int, int], bits_allocated: int, limit_bytes: int) -> None:
    """Refuse segments too short for the declared pixels, and those that expand without bound."""
    rows, columns, samples = declared
    if len(frame) < 64:
        raise UnreadableImageError("its RLE data are too short for their header. Copy or export the file again.")
    segments, *offsets = struct.unpack("<16L", frame[:64])
    if segments != samples * bits_allocated // 8:
        raise UnreadableImageError(
            f"its RLE data have {segments} segments, not as many as its header asks. Export again."
        )
    ends = [*offsets[1:segments], len(frame)]
    for start, end in zip(offsets, ends, strict=False):
        segment = frame[start:end]
        if _RLE_EXPANSION * len(segment) < rows * columns:
            raise UnreadableImageError("its RLE data are too short for the declared pixels. Export the file again.")
        if _RLE_EXPANSION * len(segment) > limit_bytes and _rle_length(segment) > limit_bytes:
            raise UnreadableImageError(f"its RLE data expand to more than {limit_bytes} bytes. Leave the file out.")


def _rle_length(segment: bytes) -> int:
    """Bytes that a segment expands to, counted without expanding it (PS3.5 G.3.2)."""
    at = length = 0
    while at < len(segment):
        count = segment[at]
        length += count + 1 if count < 128 else 257 - count if count > 128 else 0
        at += count + 2 if count < 128 else 2 if count > 128 else 1
    return length

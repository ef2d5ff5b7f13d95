"""Stored pixel values of a DICOM file, refusing whatever the header and the data do not agree on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .codestreams import check_codestream
from .dicom import BIG_ENDIAN, PIXELS, element, inflated, number, text
from .errors import InputError, UnreadableImageError
from .refusals import refusing

if TYPE_CHECKING:
    from pydicom import Dataset

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_NO_DECODER = "no decoder is known for its transfer syntax. Convert it to Explicit VR Little Endian."
# GDCM comes last, so only for lossless JPEG: on damaged JPEG it can end the whole process (std::terminate),
# and CharLS is 1.7 times as fast at JPEG-LS. Where several decode a file, they give the same values.
_PLUGINS = ("pyjpegls", "pylibjpeg", "pillow")
_RLE = "1.2.840.10008.1.2.5"
_NATIVE = "1.2.840.10008.1.2.1"
# Frames of native values, each in fragments of its own: as they are, and deflated (PS3.5 A.4 and 8.2.16).
_FRAMED = "1.2.840.10008.1.2.1.98"
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_FLOAT_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
_SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3}
_SAMPLES |= {"YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_ICT": 3, "YBR_RCT": 3}


@dataclass(frozen=True)
class StoredImage:
    """One decoded frame before any grey-scale transformation, and the header that says how to show it."""

    values: np.ndarray
    """As stored: `[row, column]`, or `[row, column, 3]` in RGB."""
    photometric: str
    """Photometric Interpretation (0028,0004) of `values`; YBR ones have become RGB."""
    bits: int
    """Bits Stored (0028,0101)."""
    frame: int
    big_endian: bool
    dataset: Dataset


@dataclass(frozen=True)
class _Layout:
    """The Image Pixel module, PS3.3 C.7.6.3, as plain numbers."""

    element: str
    syntax: str
    photometric: str
    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int
    stored: int

    @property
    def bytes(self) -> int:
        """Of all frames, as stored without compression."""
        bits = self.rows * self.columns * self.frames * self.samples * self.allocated
        # Two pixels of YBR_FULL_422 share their two colours: four samples instead of six.
        return -(-(bits * 2 // 3 if self.photometric == "YBR_FULL_422" else bits) // 8)


def decode(dataset: Dataset, *, frame: int | None, limit_bytes: int) -> StoredImage:
    """Decode one frame, after its size has been checked.

    Args:
        frame: index from 0; may be None where there is one frame.
        limit_bytes: what all frames may take as stored values, and one as float32.

    Raises:
        UnreadableImageError: there are no pixels or several frames, the declared size is impossible or
            too large, the data are shorter or longer than declared, or no decoder reads them.
        InputError: there is no such frame.

    Source: DICOM PS3.3 C.7.6.3 (Image Pixel), C.7.6.24 and C.7.6.25 (floating point); PS3.5 8, A.4.
    """
    layout = _layout(dataset)
    _check_size(layout, limit_bytes)
    if frame is None and layout.frames > 1:
        raise UnreadableImageError(
            f"it has {layout.frames} frames, where one image is expected. "
            f"Choose one with frame=0 to frame={layout.frames - 1}."
        )
    frame = frame or 0
    if not 0 <= frame < layout.frames:
        raise InputError(f"frame is {frame}; the file has frames 0 to {layout.frames - 1}.")
    values, photometric = _decoded(dataset, layout, frame, limit_bytes)
    shape = (layout.rows, layout.columns) + ((3,) if layout.samples == 3 else ())
    assert values.shape == shape
    return StoredImage(values, photometric, layout.stored, frame, layout.syntax == BIG_ENDIAN, dataset)


def _layout(dataset: Dataset) -> _Layout:
    elements = [keyword for keyword in PIXELS if keyword in dataset]
    if not elements:
        raise UnreadableImageError(
            "it has no pixel data: it is no image, or was cut short before them. Leave it out or export it again."
        )
    if len(elements) > 1:
        raise UnreadableImageError(f"it has both {elements[0]} and {elements[1]}. Export the file again.")
    counted = {keyword: _count(dataset, keyword) for keyword in ("Rows", "Columns", "SamplesPerPixel")}
    frames = 1 if element(dataset, "NumberOfFrames") is None else _count(dataset, "NumberOfFrames")
    photometric = text(dataset, "PhotometricInterpretation")
    if photometric not in _SAMPLES or counted["SamplesPerPixel"] != _SAMPLES[photometric]:
        raise UnreadableImageError(
            f"its Photometric Interpretation is not one of {', '.join(_SAMPLES)}, with one sample a pixel "
            "for grey and palette and three for colour. Convert the file."
        )
    kind = elements[0]
    if kind == "PixelData":
        allocated, stored = _whole_bits(dataset, photometric)
    else:
        allocated = stored = _FLOAT_BITS[kind]
        if not photometric.startswith("MONOCHROME"):
            raise UnreadableImageError("its pixels are floating-point colours, which do not exist. Convert the file.")
    with refusing(_NO_DECODER):
        syntax = str(dataset.file_meta.TransferSyntaxUID)
    sizes = (counted["Rows"], counted["Columns"], frames, counted["SamplesPerPixel"], allocated, stored)
    return _Layout(kind, syntax, photometric, *sizes)


def _whole_bits(dataset: Dataset, photometric: str) -> tuple[int, int]:
    """Bits Allocated and Bits Stored of whole numbers, after PS3.5 8.1.1."""
    allocated, stored = _count(dataset, "BitsAllocated"), _count(dataset, "BitsStored")
    if stored > min(allocated, 32) or number(dataset, "HighBit") not in (None, stored - 1):
        raise UnreadableImageError(
            "its Bits Stored, Bits Allocated and High Bit contradict each other or exceed 32 bits. Convert the file."
        )
    signed = number(dataset, "PixelRepresentation")
    if signed not in (0, 1) or (signed and _SAMPLES[photometric] == 3):
        raise UnreadableImageError("its Pixel Representation is absent or impossible. Correct it or convert the file.")
    if allocated != 8 and photometric.startswith("YBR_FULL"):
        raise UnreadableImageError("its colours are YBR_FULL of more than 8 bits. Convert the file to RGB.")
    return allocated, stored


def _count(dataset: Dataset, keyword: str) -> int:
    value = number(dataset, keyword)
    if value is None or value < 1 or value != int(value):
        raise UnreadableImageError(f"its element {keyword} is absent or not a whole number from 1. Export it again.")
    return int(value)


def _check_size(layout: _Layout, limit_bytes: int) -> None:
    needed = max(layout.bytes, 4 * layout.rows * layout.columns * layout.samples)
    if needed > limit_bytes:
        raise UnreadableImageError(
            f"its header declares {layout.rows} x {layout.columns} pixels in {layout.frames} frame(s), {needed} bytes, "
            f"more than the limit of {limit_bytes}. If it is a true image, raise limit_bytes."
        )


def _decoded(dataset: Dataset, layout: _Layout, frame: int, limit_bytes: int) -> tuple[np.ndarray, str]:
    from pydicom.pixels import as_pixel_options, get_decoder

    framed = layout.syntax in (_FRAMED, _DEFLATED_FRAMES)
    with refusing(_NO_DECODER):
        decoder = get_decoder(_NATIVE if framed else layout.syntax)
    data = element(dataset, layout.element) or b""
    if not framed and not decoder.is_encapsulated:
        _check_length(layout, len(data))
    with refusing(f"its pixel data cannot be decoded. {_remedy(layout)}"):
        options = as_pixel_options(dataset)
        if framed:
            return _native_frame(_fragments(data, layout, frame, options), layout, options)
        if decoder.is_encapsulated:
            declared = (layout.rows, layout.columns, layout.samples)
            fragments = _fragments(data, layout, frame, options)
            check_codestream(fragments, declared, layout.allocated, layout.syntax == _RLE, limit_bytes)
        elif layout.allocated == 1 and layout.samples == 1:
            return _single_bits(dataset, layout, frame), layout.photometric
        plugin = next((name for name in _PLUGINS if name in decoder.available_plugins), "")
        values, properties = decoder.as_array(dataset, index=frame, decoding_plugin=plugin, **options)
    return values, str(properties["photometric_interpretation"])


def _fragments(data: bytes, layout: _Layout, frame: int, options: dict[str, object]) -> bytes:
    from pydicom.encaps import get_frame

    tables = options.get("extended_offsets")
    return get_frame(data, frame, number_of_frames=layout.frames, extended_offsets=tables)


def _single_bits(dataset: Dataset, layout: _Layout, frame: int) -> np.ndarray:
    """One frame of native single bits, which need not start at a byte; pydicom cuts it a byte short."""
    size = layout.rows * layout.columns
    first = frame * size // 16 * 2
    packed = np.frombuffer(element(dataset, layout.element)[first : -(-(frame + 1) * size // 16) * 2], "u1")
    if layout.syntax == BIG_ENDIAN and dataset[layout.element].VR == "OW":
        packed = packed[: len(packed) // 2 * 2].view(">u2").astype("<u2").view("u1")
    start = frame * size - 8 * first
    return np.unpackbits(packed, bitorder="little")[start : start + size].reshape(layout.rows, layout.columns)


def _native_frame(fragments: bytes, layout: _Layout, options: dict[str, object]) -> tuple[np.ndarray, str]:
    """One frame that is native but for its fragments, and deflated or not."""
    from pydicom.pixels import get_decoder

    one = replace(layout, frames=1)
    if layout.syntax == _DEFLATED_FRAMES:
        # One byte more than may be, so that the end of the stream is seen.
        fragments = inflated(fragments, one.bytes + one.bytes % 2 + 1, "Its header is wrong: export it again.")
    _check_length(one, len(fragments))
    settings = {**options, "number_of_frames": 1, "pixel_keyword": layout.element}
    values, properties = get_decoder(_NATIVE).as_array(fragments[: one.bytes], **settings)
    return values, str(properties["photometric_interpretation"])


def _check_length(layout: _Layout, actual: int) -> None:
    # PS3.5 8.1.1: one byte of padding makes the length even. Any other excess means that a size is wrong.
    if actual not in (layout.bytes, layout.bytes + layout.bytes % 2):
        raise UnreadableImageError(
            f"its pixel data have {actual} bytes, where its header makes it {layout.bytes}: the file is cut short "
            "or its header is wrong. Copy or export it again."
        )


def _remedy(layout: _Layout) -> str:
    if layout.syntax == _JPEG_EXTENDED and layout.stored > 8:
        return (
            "JPEG Extended with 12 bits has no decoder under a permissive licence: convert it with dcmdjpeg (DCMTK), "
            "or install pylibjpeg-libjpeg (GPL-3)."
        )
    return "The data are damaged, or their kind is not supported: export the file again without compression."

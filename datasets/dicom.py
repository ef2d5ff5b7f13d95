"""The header of a DICOM file: only what concerns the image, and never more than the memory allows."""

from __future__ import annotations

import math
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

from .errors import UnreadableImageError
from .locations import MeteredFile
from .refusals import refusing

if TYPE_CHECKING:
    from pydicom import Dataset

# Explicit VR gives numbers and text a 16-bit length, and a lookup table has at most 65,536 entries of
# two bytes; a longer element would only serve to fill the memory with Python objects.
LONGEST_ELEMENT = 2 * 65_536
# Eight bytes of a header, an empty item, become 660 bytes of Python objects: a header of this part of the memory
# limit fills it. By default 16 MiB, where the functional groups of 1,000 frames take about one.
_HEADER_PART = 64
_LEAST_HEADER = 2**20
BIG_ENDIAN = "1.2.840.10008.1.2.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Only these top-level elements are read: what names the patient never enters the memory.
IMAGE_ELEMENTS = [
    *PIXELS,
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"),
    *("PhotometricInterpretation", "PlanarConfiguration", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    *("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "RescaleType", "PresentationLUTShape"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{kind}PaletteColorLookupTableDescriptor" for kind in ("Red", "Green", "Blue")),
    *(f"{kind}PaletteColorLookupTableData" for kind in ("Red", "Green", "Blue")),
    *(f"Segmented{kind}PaletteColorLookupTableData" for kind in ("Red", "Green", "Blue")),
    *("Modality", "ViewPosition", "Laterality", "ImageLaterality", "StudyInstanceUID", "SeriesInstanceUID"),
    *("AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime"),
]


def is_marked(head: bytes) -> bool:
    """Whether a file that starts so has DICOM's mark after its preamble (PS3.10 7.1)."""
    return head[128:132] == b"DICM"


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that starts so is DICOM: the mark after the preamble, or a first element of group 2 or 8.

    Source: DICOM PS3.10 7.1 (preamble), PS3.5 7.1 (elements).
    """
    if is_marked(head):
        return True
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    if head[:2] == b"\x00\x08":
        return explicit
    return head[:2] in (b"\x02\x00", b"\x08\x00") and (explicit or head[6:8] == b"\x00\x00")


def read_dataset(
    stream: MeteredFile, limit_bytes: int, *, wanted: list[str] = IMAGE_ELEMENTS, pixels: bool = True
) -> Dataset:
    """Read the elements that are wanted, inflating at most `limit_bytes`.

    Args:
        pixels: False to stop before the pixel data.

    Raises:
        UnreadableImageError: the elements cannot be parsed or are too many, or a deflated file is cut short or
            too large.

    Source: DICOM PS3.10 7.1; PS3.5 A.5 (deflated).
    """
    import pydicom
    from pydicom import filereader, uid

    preamble = stream.read(132)[128:] == b"DICM"
    with refusing("its DICOM header cannot be parsed. Export the file again from its source."):
        stream.seek(132 if preamble else 0)
        meta = filereader.read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            stream = _inflated(stream.read(), limit_bytes)
        else:
            stream.seek(0)
        before = stream.bytes_read
        dataset = pydicom.dcmread(stream, force=True, specific_tags=wanted, stop_before_pixels=not pixels)
        _check_header(dataset, stream.bytes_read - before, limit_bytes)
        if "TransferSyntaxUID" not in dataset.file_meta:
            # Old files lack the meta group; pydicom then tells the encoding from the first element.
            implicit, little = dataset.original_encoding
            native = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = native if little else uid.ExplicitVRBigEndian
    return dataset


def _check_header(dataset: Dataset, read: int, limit_bytes: int) -> None:
    """Refuse a header that is too long to be unfolded, before its sequences are."""
    stored = [dataset.get_item(keyword) for keyword in PIXELS if keyword in dataset]
    header = read - sum(len(raw.value or b"") for raw in stored)
    most = max(limit_bytes // _HEADER_PART, _LEAST_HEADER)
    if header > most:
        raise UnreadableImageError(
            f"its header has {header} bytes beside the pixels, more than {most}. If it is a true image, raise "
            "limit_bytes."
        )


def _inflated(deflated: bytes, limit_bytes: int) -> MeteredFile:
    """The same file without compression, so that nothing else inflates it without a bound."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filewriter import write_file_meta_info

    stream = BytesIO()
    stream.write(bytes(128) + b"DICM")
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    write_file_meta_info(stream, meta, enforce_standard=False)
    stream.write(inflated(deflated, limit_bytes, "If it is a true image, raise limit_bytes."))
    size = stream.tell()
    stream.seek(0)
    return MeteredFile(stream, size, limit_bytes)


def inflated(deflated: bytes, most: int, remedy: str) -> bytes:
    """What a deflated stream of RFC 1951 holds.

    Raises:
        UnreadableImageError: it inflates to more than `most` bytes, or is cut short.
    """
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    body = machine.decompress(deflated, most)
    if not machine.eof and len(body) >= most:
        raise UnreadableImageError(f"it inflates to more than {most} bytes. {remedy}")
    if not machine.eof:
        raise UnreadableImageError("its deflated data end too early. Copy or export the file again.")
    return body


def element(dataset: Dataset, keyword: str) -> object:
    """An element's value, or None where it is absent or empty.

    Raises:
        UnreadableImageError: the element cannot be parsed or is longer than any true one.
    """
    with refusing(f"its element {keyword} is malformed. Export the file again from its source."):
        if keyword not in dataset:
            return None
        raw = dataset.get_item(keyword)
        sequence = keyword.endswith("Sequence")
        if not sequence and keyword not in PIXELS and (getattr(raw, "length", 0) or 0) > LONGEST_ELEMENT:
            raise UnreadableImageError(
                f"its element {keyword} is longer than {LONGEST_ELEMENT} bytes. Export it again."
            )
        value = dataset[keyword].value
        if sequence:
            return list(value) or None
        return None if value is None or (hasattr(value, "__len__") and not len(value)) else value


def number(dataset: Dataset, keyword: str) -> float | None:
    """An element of one finite number, or None where it is absent or empty.

    Raises:
        UnreadableImageError: it is not one finite number.
    """
    value = element(dataset, keyword)
    if value is None:
        return None
    with refusing(f"its element {keyword} is not one number. Correct it or export the file again."):
        value = float(value)
    if not math.isfinite(value):
        raise UnreadableImageError(f"its element {keyword} is not finite. Correct it or export the file again.")
    return value


def text(dataset: Dataset, keyword: str) -> str | None:
    """An element of text without surrounding blanks, or None where it is absent or empty."""
    value = element(dataset, keyword)
    return None if value is None else str(value).strip() or None

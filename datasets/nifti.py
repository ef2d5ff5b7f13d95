"""NIfTI files (.nii, .nii.gz) to volumes that lie like axial DICOM slices."""

from __future__ import annotations

import zlib
from gzip import GzipFile
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from .errors import InputError, UnreadableImageError
from .greyscale import given_window
from .locations import MeteredFile
from .refusals import refusing
from .volumes import Volume, scale_by_percentiles

if TYPE_CHECKING:
    from nibabel import Nifti1Header

_GZIP = b"\x1f\x8b"
# Length of the header, where its mark stands, and the mark of one file; of a header apart from its pixels.
_FORMS = {348: (344, b"n+1\0", b"ni1\0"), 540: (4, b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")}
# Extensions between header and values hold remarks, or a DICOM header.
_LONGEST_OFFSET = 2**24
_BLOCK = 2**20
# Units of space, in mm; a file that names none is in mm, as its writers mean it.
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_DAMAGED = "it cannot be read as NIfTI. The file is damaged: copy or export it again."


def looks_like_nifti(head: bytes) -> bool:
    """Whether a file that starts so is NIfTI, in one file or of two, compressed or not.

    Args:
        head: 352 bytes at least, where the file has so many.
    """
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, 352)
        except zlib.error:
            return False
    sizes = [int.from_bytes(head[:4], order) for order in ("little", "big")]
    return any(head[_FORMS[size][0] :].startswith(_FORMS[size][1:]) for size in sizes if size in _FORMS)


def read_nifti(
    stream: MeteredFile, window: int | str | tuple[float, float] | None, frame: int | None, limit_bytes: int
) -> Volume:
    """A NIfTI file as a volume of axial slices from foot to head, rows from front to back, columns from the
    patient's right to left ("SPL"), as DICOM shows them: the nearest such order of its axes, without resampling.

    Args:
        window: (center, width) in its scaled values, or a name, by which the caller says that it is a CT in
            Hounsfield units, since NIfTI does not; None for percentiles.
        frame: index from 0 of a volume in a file of four dimensions or more.

    Raises:
        UnreadableImageError: the file is damaged, too large, of values that are no grey, or does not say how it
            lies in the patient.
        InputError: the window or frame is not for such a file.

    Source: NIfTI-1.1 and NIfTI-2 (nifti1.h, nifti2.h): dim, datatype, scl_slope, qform, sform, xyzt_units.
    """
    from nibabel.spatialimages import HeaderDataError

    if isinstance(window, int):
        raise InputError("a NIfTI file names no windows. Give window=(center, width) in its values, or none.")
    with refusing(_DAMAGED):
        try:
            packed = stream.read(2) == _GZIP
            stream.seek(0)
            source = GzipFile(fileobj=stream) if packed else stream
            header = _header(source)
            values = _values(source, header, frame, limit_bytes)
            view, spacing = _as_axial_slices(values, header)
            slope, intercept = header.get_slope_inter()
        except HeaderDataError:
            raise UnreadableImageError(_DAMAGED) from None
    scale = (1.0 if slope is None else slope, intercept or 0.0)
    pixels, words = _painted(view, scale, window)
    return Volume(pixels, words, spacing, "SPL")


def _header(source: BinaryIO) -> Nifti1Header:
    from nibabel import Nifti1Header, Nifti2Header

    start = source.read(4)
    size = next(size for order in ("little", "big") if (size := int.from_bytes(start, order)) in _FORMS)
    header = (Nifti1Header if size == 348 else Nifti2Header)(start + _exactly(source, size - 4), check=False)
    if bytes(header["magic"])[:3] != _FORMS[size][1][:3]:
        raise UnreadableImageError("it is a header whose values stand in another file. Save it as one .nii file.")
    return header


def _values(source: BinaryIO, header: Nifti1Header, frame: int | None, limit_bytes: int) -> np.ndarray:
    """Stored values of one volume, in the order of the file's axes, after their size has been checked."""
    count, *sides = (int(side) for side in header["dim"])
    dtype = header.get_data_dtype()
    if not 3 <= count <= 7 or min(sides[:count]) < 1:
        raise UnreadableImageError("its dimensions are not those of a volume. Save it in three dimensions.")
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or header["bitpix"] != 8 * dtype.itemsize:
        raise UnreadableImageError(
            "its values are no numbers of up to 64 bits: colours, complex or contradictory. Save them as grey values."
        )
    voxels, volumes = int(np.prod(sides[:3], dtype=object)), int(np.prod(sides[3:count], dtype=object))
    needed = voxels * max(4, volumes * dtype.itemsize)
    if needed > limit_bytes:
        raise UnreadableImageError(
            f"its header declares {' x '.join(map(str, sides[:count]))} values, {needed} bytes, more than the limit of "
            f"{limit_bytes}. If it is a true volume, raise limit_bytes."
        )
    if frame is None and volumes > 1:
        raise UnreadableImageError(
            f"it has {volumes} volumes, where one is expected. Choose one with frame=0 to frame={volumes - 1}."
        )
    chosen = frame or 0
    if chosen >= volumes:
        raise InputError(f"frame is {frame}; the file has frames 0 to {volumes - 1}.")
    size = voxels * dtype.itemsize
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset <= _LONGEST_OFFSET or offset != int(offset):
        raise UnreadableImageError("its values start at an impossible place. Export it again.")
    _skip(source, int(offset) - header.sizeof_hdr + chosen * size)
    values = np.frombuffer(_exactly(source, size), dtype).reshape(sides[:3], order="F")
    _skip(source, (volumes - 1 - chosen) * size)
    if source.read(1):
        raise UnreadableImageError("it holds more values than its header declares. Export it again.")
    return values


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise UnreadableImageError("it is cut short. Copy or export it again.")
    return data


def _skip(source: BinaryIO, size: int) -> None:
    for start in range(0, size, _BLOCK):
        _exactly(source, min(_BLOCK, size - start))


def _as_axial_slices(values: np.ndarray, header: Nifti1Header) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A view `[slice, row, column]` of values, counted toward head, back and left, and mm between each."""
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import io_orientation

    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
        raise UnreadableImageError(
            "it does not say how it lies in the patient (qform_code and sform_code are 0), so that left and right are "
            "unknown. Convert it anew from DICOM."
        )
    affine = header.get_best_affine()
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < np.finfo(np.float32).tiny:
        raise UnreadableImageError("its affine is impossible. Convert it anew from DICOM.")
    # World axes lead to the right, front and head; which of the file's axes runs along each, and which way.
    orientation = io_orientation(affine)
    axes = [int(np.flatnonzero(orientation[:, 0] == world)[0]) for world in (2, 1, 0)]
    view = values.transpose(axes)
    backward = [orientation[axis, 1] * way < 0 for axis, way in zip(axes, (1, -1, -1), strict=True)]
    view = view[tuple(slice(None, None, -1 if flip else 1) for flip in backward)]
    unit = _UNITS.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        raise UnreadableImageError("its unit of space is unknown. Convert it anew from DICOM.")
    sizes = voxel_sizes(affine) * unit
    return view, tuple(float(sizes[axis]) for axis in axes)


def _painted(
    view: np.ndarray, scale: tuple[float, float], window: str | tuple[float, float] | None
) -> tuple[np.ndarray, str]:
    slope, intercept = scale
    shape, words = (None, "") if window is None else given_window(window)
    pixels = np.empty(view.shape, np.float32)
    for target, plane in zip(pixels, view, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            measured = plane.astype(np.float64) * slope + intercept
            target[...] = measured if shape is None else shape(measured)
        if not np.isfinite(measured).all() or not np.isfinite(target).all():
            raise UnreadableImageError("its values hold NaN or infinity. Set what is outside the body to a number.")
    return pixels, words or scale_by_percentiles(pixels, inverted=False)

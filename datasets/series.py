"""The slices of a CT or MR series: what their headers say, whether they make one volume, and their order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .dicom import BIG_ENDIAN, element, looks_like_dicom, number, read_dataset, text
from .errors import InputError, UnreadableImageError
from .greyscale import functional_group, voi_transforms
from .locations import Location, opened
from .lookup import Lookup
from .origins import origin
from .patients import patient_digest
from .refusals import naming, refusing, silence

if TYPE_CHECKING:
    from pydicom import Dataset

# Positions and cosines are written with few decimals: 0.06° of orientation, and a micrometre of place.
_SAME_COSINE = 1e-3
_SAME_PLACE = 1e-3
# Direction cosines are rounded too, so that their length and angle are right to about 1 %.
_UNIT = 1e-2
# Tables move unevenly by some per cent; a missing slice is 100 %.
_EVEN = 0.05
# Files of these names are meant to be DICOM; others that are not are no part of a series.
_DICOM_NAMES = (".dcm", ".dicom", ".ima")
_DIRECTIONS = ("LR", "PA", "SI")
_SLICE_ELEMENTS = [
    *("SOPInstanceUID", "PatientID", "FrameOfReferenceUID", "Rows", "Columns", "NumberOfFrames"),
    *("PhotometricInterpretation", "PresentationLUTShape"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "FloatPixelData", "DoubleFloatPixelData"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("Modality", "ViewPosition", "Laterality", "ImageLaterality", "StudyInstanceUID", "SeriesInstanceUID"),
    *("AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime"),
]
# What the slices of one volume share, and what to do where they do not.
_LOCALIZER = "Leave out localizers and other planes: give the files of one stack as a list."
_SHARED = {
    "modality": ("modality", "Give the files of one as a list."),
    "frame_of_reference": ("Frame of Reference UID (0020,0052)", "Their places cannot be compared: give one's files."),
    "size": ("rows or columns", _LOCALIZER),
    "orientation": ("Image Orientation (Patient) (0020,0037)", _LOCALIZER),
    "spacing": ("Pixel Spacing (0028,0030)", _LOCALIZER),
    "tones": ("Photometric Interpretation or Presentation LUT Shape", "Convert them to MONOCHROME2."),
}


@dataclass(frozen=True)
class Slice:
    """One slice before it is decoded."""

    path: str
    frame: int | None
    """Index from 0 in a file of several frames."""
    position: np.ndarray
    """Image Position (Patient) (0020,0032): mm toward the patient's left, back and head."""
    orientation: np.ndarray
    """Cosines along a row and along a column (0020,0037)."""
    spacing: np.ndarray
    """mm between rows and between columns (0028,0030)."""
    size: tuple[int, int]
    tones: tuple[str | None, str | None]
    modality: str | None
    frame_of_reference: str | None
    instance: str | None
    windows: str | None
    """A hash of all windows and VOI LUTs; None where they do not matter, since the caller gave one."""
    origin: dict[str, object]

    @property
    def name(self) -> str:
        name = self.path.rsplit("/", 1)[-1]
        return name if self.frame is None else f"frame {self.frame} of {name}".removesuffix(" of ")


@dataclass(frozen=True)
class Member:
    """A DICOM image among the files of a series, and its slices or why they have no place in one."""

    path: str
    patient: str | None
    """A keyed hash of the Patient ID, which says no more than whether two are the same."""
    study_uid: str | None
    series_uid: str
    slices: tuple[Slice, ...] = ()
    refusal: str = ""
    """An error if the file is of the series that is read."""


@dataclass(frozen=True)
class Stack:
    """Slices in their order along the normal, and where they lie."""

    slices: tuple[Slice, ...]
    spacing: tuple[float, float, float]
    """mm between slices, rows and columns."""
    axes: str
    """Toward which side of the patient slices, rows and columns are counted, such as SPL."""
    tilt: float
    """Degrees between the normal and the way from slice to slice."""


def frames_have_places(dataset: Dataset) -> bool:
    """Whether a file has several frames, each with a place of its own (PS3.3 C.7.6.16.2.3)."""
    if (number(dataset, "NumberOfFrames") or 1) == 1:
        return False
    frames = element(dataset, "PerFrameFunctionalGroupsSequence")
    return frames is not None and element(frames[0], "PlanePositionSequence") is not None


def member_of_file(path: Location, key: bytes, *, windowed: bool, limit_bytes: int) -> Member | None:
    """What the header of one file says; None where it is no DICOM image.

    Args:
        key: of the patient's hash.
        windowed: whether the windows of the file matter.

    Raises:
        UnreadableImageError: it is named like a DICOM file and is none, or its header cannot be read.
    """
    with naming(path), silence(), opened(path, limit_bytes) as stream:
        head = stream.read(352)
        stream.seek(0)
        if not looks_like_dicom(head):
            if str(path).lower().endswith(_DICOM_NAMES):
                raise UnreadableImageError("it lies among the slices and is no DICOM file. Copy or export it again.")
            return None
        dataset = read_dataset(stream, limit_bytes, wanted=_SLICE_ELEMENTS, pixels=False)
        if element(dataset, "Rows") is None:
            return None
        said = origin(dataset)
        member = Member(str(path), patient_digest(dataset, key), said["study_uid"], str(said["series_uid"]))
    try:
        with silence():
            return replace(member, slices=tuple(slices_of_dataset(dataset, str(path), windowed=windowed)))
    except UnreadableImageError as error:
        return replace(member, refusal=str(error))


def slices_of_dataset(dataset: Dataset, path: str, *, windowed: bool) -> list[Slice]:
    """The slices of one header, in the order of its frames.

    Raises:
        UnreadableImageError: it does not say where each lies.
    """
    if not frames_have_places(dataset):
        if (number(dataset, "NumberOfFrames") or 1) > 1:
            raise UnreadableImageError("it has several frames without places. Choose one: path=, frame=.")
        return [_slice(dataset, path, None, windowed)]
    frames = element(dataset, "PerFrameFunctionalGroupsSequence")
    if number(dataset, "NumberOfFrames") != len(frames):
        raise UnreadableImageError("it has not as many places as frames. Export it again from its source.")
    first = _slice(dataset, path, 0, windowed)
    # All but place and window is the file's; the frames' own groups may still name another plane.
    return [first, *(_slice(dataset, path, frame, windowed, first) for frame in range(1, len(frames)))]


def _slice(dataset: Dataset, path: str, frame: int | None, windowed: bool, first: Slice | None = None) -> Slice:
    position = _numbers(dataset, frame, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _numbers(dataset, frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _numbers(dataset, frame, "PixelMeasuresSequence", "PixelSpacing", 2)
    row, column = orientation[:3], orientation[3:]
    right = abs(row @ row - 1) < 2 * _UNIT and abs(column @ column - 1) < 2 * _UNIT and abs(row @ column) < _UNIT
    if not right or spacing.min() <= 0:
        raise UnreadableImageError(
            "its Image Orientation (Patient) or Pixel Spacing is impossible. Export it again from its source."
        )
    windows = _windows_hash(dataset, frame or 0) if windowed else None
    if first is not None:
        return replace(first, frame=frame, position=position, orientation=orientation, spacing=spacing, windows=windows)
    sizes = number(dataset, "Rows"), number(dataset, "Columns")
    if None in sizes or min(sizes) < 1:
        raise UnreadableImageError("its Rows or Columns are absent or impossible. Export it again from its source.")
    photometric, shape = text(dataset, "PhotometricInterpretation"), text(dataset, "PresentationLUTShape")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableImageError("its pixels are not grey, where a volume is. Read the files one by one.")
    return Slice(
        path,
        frame,
        position,
        orientation,
        spacing,
        (int(sizes[0]), int(sizes[1])),
        (photometric, shape),
        text(dataset, "Modality"),
        text(dataset, "FrameOfReferenceUID"),
        text(dataset, "SOPInstanceUID"),
        windows,
        origin(dataset),
    )


def _numbers(dataset: Dataset, frame: int | None, macro: str, keyword: str, count: int) -> np.ndarray:
    """An element of the slice: of a frame's functional groups, else of the file."""
    group = None if frame is None else functional_group(dataset, frame, macro)
    value = element(dataset if group is None else group, keyword)
    if value is None:
        raise UnreadableImageError(
            f"its {keyword} is absent, so that its place in a volume is unknown. Give the path of one image file, or "
            "export the series again."
        )
    with refusing(f"its {keyword} is not {count} numbers. Export it again from its source."):
        numbers = np.asarray([float(one) for one in value])
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise ValueError
    return numbers


def _windows_hash(dataset: Dataset, frame: int) -> str:
    machine = hashlib.sha256()
    for offered in voi_transforms(dataset, frame, dataset.file_meta.TransferSyntaxUID == BIG_ENDIAN):
        if isinstance(offered, Lookup):
            machine.update(f"LUT {offered.first} {offered.bits} ".encode() + offered.entries.tobytes())
        else:
            machine.update(f"{offered!r} ".encode())
    return machine.hexdigest()


def one_series(members: Sequence[Member], series_uid: str | None) -> list[Slice]:
    """The slices of one series of one patient.

    Raises:
        UnreadableImageError: there are several series and none is chosen, or several patients, or a file of the
            series does not say where it lies.
        InputError: the series that was chosen is not there.
    """
    patients = {(one.patient, one.study_uid) for one in members if one.patient}
    count = len({patient for patient, _ in patients})
    if count > 1:
        where = "one study" if len({study for _, study in patients}) < len(patients) else "its files"
        raise UnreadableImageError(
            f"{count} patients stand in {where} (Patient ID (0010,0020)). Ask the archive whose they are, and keep "
            "the files of each apart."
        )
    counts = Counter(one.series_uid for one in members)
    listed = ", ".join(f"{uid} ({count})" for uid, count in counts.most_common(5))
    if series_uid is None and len(counts) > 1:
        raise UnreadableImageError(
            f"it holds {len(counts)} series, of so many files each: {listed}. Choose one with series_uid=."
        )
    if series_uid is not None and series_uid not in counts:
        raise InputError(f"it holds no series of that series_uid, but these: {listed}. Choose one of them.")
    own = [one for one in members if series_uid in (None, one.series_uid)]
    for one in own:
        if one.refusal:
            raise UnreadableImageError(f"{one.path.rsplit('/', 1)[-1]}: {one.refusal}")
    return [part for one in own for part in one.slices]


def stacked(slices: Sequence[Slice]) -> Stack:
    """Order slices along their normal, after whatever would make the volume untrue has been refused.

    A slice that is missing at either end leaves no gap, and cannot be noticed.

    Raises:
        UnreadableImageError: the slices differ in what one volume shares, lie at the same place or apart by
            unequal distances, or are not stacked along one line.

    Source: DICOM PS3.3 C.7.6.2.1.1 (place and orientation of an image plane).
    """
    if len(slices) < 2:
        raise UnreadableImageError("it holds one slice, and a volume has two or more. Give the path of the file.")
    for trait, (words, remedy) in _SHARED.items():
        _require_shared(slices, trait, words, remedy)
    first = slices[0]
    row, column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    heights = np.array([one.position @ normal for one in slices])
    ordered = [slices[i] for i in np.argsort(heights, kind="stable")]
    gaps = np.diff(np.sort(heights))
    _require_distinct(ordered, gaps)
    spacing = float(np.median(gaps))
    _require_even(ordered, gaps, spacing)
    places = np.stack([one.position for one in ordered])
    step = (places[-1] - places[0]) / (len(ordered) - 1)
    off = places - places[0] - np.outer(np.arange(len(ordered)), step)
    aside = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1).max()
    # Half a pixel shows, beside what an uneven table adds where the planes are tilted.
    if aside > first.spacing.min() / 2 + _EVEN * spacing:
        raise UnreadableImageError("its slices are not stacked along one line. Give the files of one stack as a list.")
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    axes = "".join(_side(direction) for direction in (normal, column, row))
    rows, columns = map(float, first.spacing)
    return Stack(tuple(ordered), (spacing, rows, columns), axes, tilt)


def _require_shared(slices: Sequence[Slice], trait: str, words: str, remedy: str) -> None:
    first = getattr(slices[0], trait)
    for one in slices[1:]:
        value = getattr(one, trait)
        same = (
            np.allclose(value, first, rtol=_SAME_COSINE, atol=_SAME_COSINE)
            if isinstance(value, np.ndarray)
            else (value == first)
        )
        if not same:
            raise UnreadableImageError(
                f"its slices differ in {words}: {slices[0].name} and {one.name}, for example. {remedy}"
            )


def _require_distinct(ordered: Sequence[Slice], gaps: np.ndarray) -> None:
    at = np.flatnonzero(gaps < _SAME_PLACE)
    if not len(at):
        return
    one, other = ordered[at[0]], ordered[at[0] + 1]
    if one.frame is None and one.instance is not None and one.instance == other.instance:
        raise UnreadableImageError(f"{one.name} and {other.name} are the same slice twice. Remove one.")
    more = f" (and {len(at) - 1} more such pairs)" if len(at) > 1 else ""
    raise UnreadableImageError(
        f"{one.name} and {other.name} lie at the same place{more}: several times, echoes or reconstructions. Give the "
        "files of one as a list."
    )


def _require_even(ordered: Sequence[Slice], gaps: np.ndarray, spacing: float) -> None:
    at = int(np.argmax(abs(gaps - spacing)))
    if abs(gaps[at] - spacing) <= _EVEN * spacing:
        return
    raise UnreadableImageError(
        f"its slices are {spacing:.4g} mm apart, but {gaps[at]:.4g} mm between {ordered[at].name} and "
        f"{ordered[at + 1].name}: a slice is missing, or two spacings are mixed. Copy the series again, or give the "
        "files of an even stack as a list."
    )


def _side(direction: np.ndarray) -> str:
    """The side of the patient that a direction points to most: DICOM's axes lead to left, back (P) and head (S)."""
    axis = int(np.argmax(abs(direction)))
    return _DIRECTIONS[axis][int(direction[axis] < 0)]

"""Volumes of slices: CT and MR series, enhanced multi-frame files, and what 2-D models see of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .arguments import require_counts
from .dicom import read_dataset
from .errors import InputError, UnreadableImageError
from .greyscale import chosen_window, is_inverted, paint, require_hounsfield_units, robust_window, sample
from .locations import Location, files_in, opened
from .refusals import naming, silence
from .series import Slice, Stack, member_of_file, one_series, slices_of_dataset, stacked
from .stored_pixels import StoredImage, decode

if TYPE_CHECKING:
    from pydicom import Dataset

WindowChoice = int | str | tuple[float, float]


@dataclass(frozen=True)
class Volume:
    """Slices of one patient in their order, and what their files say without naming the patient."""

    pixels: Float[np.ndarray, "slice height width"]
    """float32 in [0, 1], one window for all slices."""
    window: str
    """How modality values became [0, 1], in words."""
    spacing: tuple[float, float, float]
    """mm between the centers of slices, rows and columns."""
    axes: str
    """Toward which side of the patient slices, rows and columns are counted, the nearest of L, R, A, P, S
    (head) and I (feet): SPL is axial from foot to head, front to back, the patient's right to left."""
    tilt: float = 0.0
    """Degrees by which the way from slice to slice leaves their normal, as with a tilted CT gantry: slices are
    then sheared against each other, which is not corrected."""
    modality: str | None = None
    laterality: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    acquired: datetime | None = None
    """Of the latest slice, by the scanner's clock, without a time zone."""
    passed_over: tuple[str, ...] = ()
    """Files of the folder that are no DICOM image, such as DICOMDIR or a report."""

    def __repr__(self) -> str:
        # Pixels in a log or a notebook are a patient's.
        shape, apart = " x ".join(map(str, self.pixels.shape)), " x ".join(f"{one:g}" for one in self.spacing)
        return f"Volume({shape} {self.pixels.dtype}; {apart} mm; {self.axes}; {self.window})"


def slabs(
    pixels: Float[np.ndarray, "slice height width"], *, images: int = 1, channels: int = 1
) -> Float[np.ndarray, "image channels height width"]:
    """Neighbouring slices as the channels of images evenly spread through a volume, for 2-D models (2.5-D).

    `images=1, channels=3` is the middle with both its neighbours; `images=8` are eight single slices. No slice
    is repeated to fill up: a volume of fewer slices than images gives as many images as it has slices.

    Args:
        images: images at most, at least 1.
        channels: neighbouring slices in each image, from 1 to the number of slices.

    Returns:
        A copy, images and channels in the order of the slices.

    Raises:
        InputError: the volume has fewer slices than channels, or a number is below 1.

    Source: 2.5-D sampling, Roth et al. 2014, doi:10.1007/978-3-319-10404-1_65, there with three planes.
    """
    require_counts(images=images, channels=channels)
    if not isinstance(pixels, np.ndarray):
        raise InputError(f"pixels came as a {type(pixels).__name__}; expected an array [slice, height, width].")
    if pixels.ndim != 3 or images < 1 or not 1 <= channels <= len(pixels):
        raise InputError(
            f"pixels have shape {pixels.shape}, images is {images} and channels is {channels}; expected [slice, "
            "height, width], 1 image or more, and from 1 channel to as many as there are slices."
        )
    starts = len(pixels) - channels + 1
    count = min(images, starts)
    first = ((np.arange(count) + 0.5) * starts / count).astype(int)
    return pixels[first[:, None] + np.arange(channels)]


def read_series(
    path: Location | Sequence[Location], *, window: WindowChoice | None, series_uid: str | None, limit_bytes: int
) -> Volume:
    """A folder, or the files of one series, as a volume; see `pixels.read_image`.

    Without a window the volume has that of its files where all name the same, and else percentiles of all its
    values, since slices under different windows could not be compared.

    Raises:
        UnreadableImageError: a file cannot be read, or the slices do not make one volume of one patient.
        InputError: there is no such series or window.
    """
    folder = isinstance(path, str | os.PathLike)
    listed = path if folder else f"{path[0]} (the first of {len(path)} files)" if path else "the list of files"
    with naming(listed):
        files = files_in(path) if folder else [str(file) for file in path]
    key, windowed = os.urandom(16), not isinstance(window, str | tuple)
    found = [member_of_file(file, key, windowed=windowed, limit_bytes=limit_bytes) for file in files]
    members = [member for member in found if member is not None]
    passed_over = tuple(file for file, member in zip(files, found, strict=True) if member is None)
    with naming(listed):
        if passed_over and not folder:
            raise UnreadableImageError(f"{passed_over[0].rsplit('/', 1)[-1]} is no DICOM image. Leave it out.")
        if not members:
            raise UnreadableImageError(
                "it holds no DICOM image. Give the folder of one series, or the path of one image file."
            )
        stack = stacked(one_series(members, series_uid))
    return _volume(stack, _decoded(stack, limit_bytes), listed, window, limit_bytes, passed_over)


def read_frames(dataset: Dataset, window: WindowChoice | None, limit_bytes: int) -> Volume:
    """The frames of an enhanced multi-frame file as a volume; see `read_series`."""
    stack = stacked(slices_of_dataset(dataset, "", windowed=not isinstance(window, str | tuple)))
    frames = (decode(dataset, frame=one.frame, limit_bytes=limit_bytes) for one in stack.slices)
    return _volume(stack, frames, None, window, limit_bytes, ())


def _decoded(stack: Stack, limit_bytes: int) -> Iterator[StoredImage]:
    path, dataset = None, None
    for one in stack.slices:
        # Frames of one file follow each other, mostly.
        if one.path != path:
            with naming(one.path), silence(), opened(one.path, limit_bytes) as stream:
                path, dataset = one.path, read_dataset(stream, limit_bytes)
        with naming(one.path), silence():
            stored = decode(dataset, frame=one.frame, limit_bytes=limit_bytes)
            if stored.values.shape != one.size:
                raise UnreadableImageError("it changed while it was read. Wait until it is copied.")
        yield stored


def _volume(
    stack: Stack,
    frames: Iterator[StoredImage],
    listed: Location | None,
    window: WindowChoice | None,
    limit_bytes: int,
    passed_over: tuple[str, ...],
) -> Volume:
    """Decode the slices of a stack one by one into one array, under one window."""
    rows, columns = stack.slices[0].size
    needed = 4 * len(stack.slices) * rows * columns
    with _named(listed):
        if needed > limit_bytes:
            raise UnreadableImageError(
                f"its {len(stack.slices)} slices of {rows} x {columns} take {needed} bytes, more than the limit of "
                f"{limit_bytes}. If it is a true volume, raise limit_bytes."
            )
        alike = len({one.windows for one in stack.slices}) == 1
        if isinstance(window, int) and not alike:
            raise InputError("its slices name different windows. Give window=(center, width), or none.")
    pixels = np.empty((len(stack.slices), rows, columns), np.float32)
    chosen, found, inverted = None, False, False
    for i, (one, stored) in enumerate(zip(stack.slices, frames, strict=True)):
        with _named(one.path):
            if isinstance(window, str):
                require_hounsfield_units(stored.dataset, stored.frame)
            if i == 0 and (alike or window is not None):
                floats = stored.values.dtype.kind == "f"
                chosen = chosen_window(stored.dataset, stored.frame, stored.big_endian, floats, window)
            inverted = is_inverted(stored)
            found = paint(pixels[i], stored.values, stored, chosen and chosen[0]) or found
    with _named(listed):
        if not found:
            raise UnreadableImageError("all its pixels are padding (0028,0120). Leave it out.")
    words = chosen[1] if chosen else scale_by_percentiles(pixels, inverted)
    return Volume(
        pixels, words, stack.spacing, stack.axes, stack.tilt, passed_over=passed_over, **_origin(stack.slices)
    )


def scale_by_percentiles(pixels: Float[np.ndarray, "slice height width"], inverted: bool) -> str:
    """Turn modality values into [0, 1] in place, by percentiles of all of them; NaN, for padding, becomes black.

    Args:
        inverted: whether small values are bright.

    Returns:
        The window in words.
    """
    for some in (sample(pixels.reshape(-1)), pixels.reshape(-1)):
        known = some[~np.isnan(some)].astype(np.float64)
        if len(known):
            break
    shape, words = robust_window(known, None)
    for plane in pixels:
        padding = np.isnan(plane)
        tones = shape(np.where(padding, 0, plane).astype(np.float64))
        plane[...] = np.where(padding, 0, 1 - tones if inverted else tones)
    return words


def _named(path: Location | None) -> AbstractContextManager:
    """Where errors get the name of the file, unless the caller gives it."""
    return naming(path) if path else nullcontext()


def _origin(slices: Sequence[Slice]) -> dict[str, object]:
    """What all slices say alike of where they come from; of the time, the latest."""
    kept = {}
    for part in ("modality", "laterality", "study_uid", "series_uid"):
        said = {one.origin[part] for one in slices}
        kept[part] = said.pop() if len(said) == 1 else None
    moments = [one.origin["acquired"] for one in slices]
    return kept | {"acquired": None if None in moments else max(moments)}

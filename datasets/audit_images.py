"""Images that stand for more than one patient: the same file, or the same picture encoded anew, resized,
cropped, turned, mirrored, inverted or of other contrast."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from .audit_copies import same_pictures
from .audit_findings import MANY, Finding, Material, Place, Shared, counted, linked, row_groups, single_rows
from .audit_overlay import DETAIL, GRID, blurred
from .cohort import Cohort
from .errors import UnreadableImageError
from .fingerprints import file_content
from .greyscale import ROBUST_PERCENTILES, sample
from .parallel import in_parallel
from .pixels import LIMIT_BYTES, read_image
from .volumes import Volume

_BLANK = 1 / 255
"""Standard deviation of the grid below which an image is blank: one step of 8 bits."""

DIM = 0.1
"""Share of the range from black to white in which nearly all of an image lies that uses little of it. Pictures of 10
and 12 bits that are stored as 16 lie in 0.02 and 0.06; the darkest of 299 of the COVID-19 collection reaches 0.49."""

_COPIED = 1024
"""Longest side in pixels that a copy is made of."""


@dataclass(frozen=True)
class Look:
    """What is kept of one image file."""

    path: str
    digest: str = ""
    """SHA-256 of its bytes."""
    shape: str = ""
    """Height x width in pixels."""
    cells: np.ndarray | None = None
    """uint8 `[grid, grid]` from its darkest to its brightest; None where it has no detail."""
    blank: bool = False
    dim: bool = False
    """Whether nearly all of it lies in one end of the range from black to white."""
    reason: str | None = None
    """Why it cannot be read."""


@dataclass(frozen=True)
class Pictures:
    """The image files of a cohort."""

    looks: tuple[Look, ...]
    """One a file."""
    look: np.ndarray
    """int64 `[row]`: the file of each row of `images`."""
    patient: np.ndarray
    """int64 `[row]`: the position of its patient."""


def look_at(cohort: Cohort, patient: np.ndarray) -> Pictures:
    """Read every image file once, in parallel where there are many."""
    look, paths = pd.factorize(cohort.images["path"])
    looks = {one.path: one for chunk in in_parallel(_looks, list(paths), "looking at images") for one in chunk}
    return Pictures(tuple(looks[path] for path in paths), look, patient)


def _looks(paths: list[str]) -> list[Look]:
    return [_look(path) for path in paths]


def _look(path: str) -> Look:
    try:
        digest, plane = file_content(path, LIMIT_BYTES), _plane(path)
    except UnreadableImageError as error:
        return Look(path, reason=str(error))
    shape = " x ".join(map(str, plane.shape))
    cells = _grid(plane)
    if cells.std() < _BLANK:
        return Look(path, digest, shape, blank=True)
    darkest, brightest = np.percentile(sample(plane.ravel()), ROBUST_PERCENTILES)
    dim = bool(brightest < DIM or darkest > 1 - DIM)
    if np.abs(cells - blurred(cells, DETAIL)).mean() < _BLANK / 8:
        return Look(path, digest, shape, dim=dim)
    return Look(path, digest, shape, _stretched(cells), dim=dim)


def _plane(path: str) -> Float[np.ndarray, "height width"]:
    """What is looked at of a file: of a volume, the slice in the middle; colours as their mean."""
    image = read_image(path)
    return image.pixels[len(image.pixels) // 2] if isinstance(image, Volume) else image.pixels.mean(axis=0)


def _stretched(cells: np.ndarray) -> UInt8[np.ndarray, "grid grid"]:
    low, high = cells.min(), cells.max()
    return np.rint((cells - low) / (high - low) * 255).astype(np.uint8)


def _grid(plane: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "grid grid"]:
    from PIL import Image

    # Of what is finer than a cell nothing must be left, or it comes out otherwise in each crop.
    sharp = min(plane.shape) >= GRID
    method = Image.Resampling.BICUBIC if sharp else Image.Resampling.BILINEAR
    image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(image.resize((GRID, GRID), method, reducing_gap=3.0), np.float64)


def _copied(path: str) -> UInt8[np.ndarray, "grid grid"]:
    """What a copy of an image looks like that was cropped, turned, made smaller and compressed."""
    from PIL import Image

    plane = _plane(path)
    low, high = plane.min(), plane.max()
    image = Image.fromarray(np.rint((plane - low) / (high - low) * 255).astype(np.uint8))
    image.thumbnail((_COPIED, _COPIED), Image.Resampling.BICUBIC, reducing_gap=3.0)
    wide, high = image.size
    image = image.rotate(3, Image.Resampling.BICUBIC)
    image = image.crop((round(0.03 * wide), round(0.02 * high), round(0.98 * wide), round(0.97 * high)))
    image = image.resize((round(0.8 * wide), round(0.8 * high)), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "jpeg", quality=60)
    return _stretched(_grid(np.asarray(Image.open(file), np.float32)))


# Findings


def check_images(material: Material) -> Iterator[Finding]:
    """Images that more than one patient has, that show nothing, or that cannot be read."""
    pictures = material.pictures
    yield from _unusable(pictures)
    identical, near = material.picture_groups
    for severity, groups, parts in material.shared(identical):
        yield Finding(
            severity,
            "identical images",
            len(groups),
            Place("images", "path", row_groups(groups), parts),
            f"{counted(len(groups), 'image file stands', 'files of the same bytes stand')} for more than one patient.",
            _ONE_PATIENT,
        )
    for severity, groups, parts in material.shared(near):
        yield Finding(
            severity,
            "near-identical images",
            len(groups),
            Place("images", "path", row_groups(groups), parts),
            f"{counted(len(groups), 'picture stands', 'pictures stand')} for more than one patient, alike but for "
            "encoding, size, a crop, orientation or contrast.",
            _ONE_PATIENT,
        )
    own = pd.DataFrame(
        {"file": _digests(pictures), "patient": pictures.patient, "time": material.cohort.images["time"]}
    )
    again = own[own["file"] >= 0].duplicated(["file", "patient"])
    rows = again.index[again]
    if len(rows):
        yield Finding(
            "note",
            "images twice",
            len(rows),
            Place("images", "path", single_rows(rows)),
            f"{counted(len(rows), 'image stands', 'images stand')} for the same patient once more.",
            "Remove the copies, or correct the path if another image was meant.",
        )


_ONE_PATIENT = (
    "Give the images of one patient one subject_id, or remove the copies, before the cohort is divided; look at the "
    "rows that stand together."
)


_ANOTHER_WINDOW = "give another: ImageEncoder(window=(center, width)), and read_image likewise"


def _unusable(pictures: Pictures) -> Iterator[Finding]:
    blank = np.array([look.blank for look in pictures.looks], bool)[pictures.look]
    if blank.any():
        yield Finding(
            "misleads",
            "blank images",
            int(blank.sum()),
            Place("images", "path", single_rows(np.flatnonzero(blank))),
            f"{counted(int(blank.sum()), 'image shows', 'images show')} one even shade, to a step of 8 bits.",
            "An image that was not taken is no row: remove these rows, or export the files again. If the window of a "
            f"file lies beside its values, or 10 bits are stored as 16, {_ANOTHER_WINDOW}.",
        )
    dim = np.array([look.dim for look in pictures.looks], bool)[pictures.look]
    if dim.any():
        yield Finding(
            "misleads" if dim.mean() > MANY else "note",
            "images in a small part of the range",
            int(dim.sum()),
            Place("images", "path", single_rows(np.flatnonzero(dim))),
            f"{counted(int(dim.sum()), 'image lies', 'images lie')} but for a few pixels in the darkest or brightest "
            f"{100 * DIM:.0f} % of the range from black to white.",
            f"If they have 12 bits that are stored as 16, or a window that is not theirs, {_ANOTHER_WINDOW}, such as "
            "(2047.5, 4095) for 12 bits; or export them over their whole range.",
        )
    unreadable = np.array([look.reason is not None for look in pictures.looks], bool)[pictures.look]
    if unreadable.any():
        yield Finding(
            "misleads" if unreadable.mean() > MANY else "note",
            "unreadable images",
            int(unreadable.sum()),
            Place("images", "path", single_rows(np.flatnonzero(unreadable))),
            f"{counted(int(unreadable.sum()), 'image file')} cannot be read, so nothing else was checked of them.",
            "See why with read_image(path), or leave them out, counted, with cohort.keep_readable_images(); give both "
            "the window of your ImageEncoder, if it has one.",
        )


def _digests(pictures: Pictures) -> np.ndarray:
    """int64 `[row]`: a number for each content of a file; -1 where it is blank or unreadable."""
    content = pd.Series([None if look.blank or look.reason else look.digest for look in pictures.looks], dtype=object)
    return pd.factorize(content)[0][pictures.look]


def shared_pictures(pictures: Pictures) -> tuple[list[Shared], list[Shared]]:
    """Images of more than one patient: of the same bytes, and beside those, of the same picture."""
    content = _digests(pictures)
    rows = pd.DataFrame({"content": content, "patient": pictures.patient, "row": np.arange(len(content))})
    rows = rows[rows["content"] >= 0]
    identical = [
        Shared(np.unique(group["patient"]), group["row"].to_numpy())
        for _, group in rows[rows.groupby("content")["patient"].transform("nunique") > 1].groupby("content")
    ]
    # One of the files of the same bytes stands for all.
    first = rows.drop_duplicates("content")
    first = first[[pictures.looks[pictures.look[row]].cells is not None for row in first["row"]]]
    if len(first) < 2:
        return identical, []
    cells = np.stack([pictures.looks[pictures.look[row]].cells for row in first["row"]])
    near = []
    paths = [pictures.looks[pictures.look[row]].path for row in first["row"]]
    for group in linked(same_pictures(cells, first["patient"].to_numpy(), lambda one: _copied(paths[one]))):
        members = rows[rows["content"].isin(first["content"].to_numpy()[group])]
        near.append(Shared(np.unique(members["patient"]), members["row"].to_numpy()))
    return identical, near

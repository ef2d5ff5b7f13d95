"""Images that stand for more than one patient: the same file, or the same picture encoded anew, resized,
mirrored, rotated, inverted or of other contrast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .audit_findings import MANY, Finding, Material, Place, Shared, counted, linked, row_groups, single_rows
from .cohort import Cohort
from .errors import UnreadableImageError
from .fingerprints import file_content
from .parallel import in_parallel
from .pixels import LIMIT_BYTES, read_image
from .volumes import Volume

GRID = 64
"""Side in pixels of the square that every image is averaged down to, whatever its proportions."""

KEPT = 32
"""Frequencies kept along each side of its cosine transform."""

DETAIL = 8
"""Two images are compared by their frequencies (sum of both directions) from here on: the coarser ones
are alike in all chests. 64 grid cells across the image, so structures below about an eighth of it."""

SAME_DETAIL = 0.93
"""Correlation of detail from which two images are one picture.

Measured on 299 chest images of the COVID-19 collection (44,551 pairs; with several images of one patient
and neighbouring CT slices among them): the most alike of different files reach 0.87, half of them
pairs of one patient. The same file through JPEG of quality 30, half or 1.5 times the size,
gamma 0.7 to 1.4, contrast 0.7 to 1.3, or 3 % noise stays above 0.95. A margin of 2 % cut off
brings it down to 0.6: crops are not found."""

CLOSER = 0.1
"""And their distance (1 - correlation) is at most this share of that to the tenth nearest image of other
patients, in the middle of the cohort: where images are alike by the protocol (one view of one phantom,
taken again and again), a copy is still far more alike than they."""

_NEIGHBOUR, _ASKED = 10, 256

# Bits above the cohort's median of these frequencies (6 <= sum < 16: 115 of them) find candidates: in
# 32 tables, those that agree in 20 drawn bits. A copy differs in 1 % of its bits (JPEG, size) to 5 %
# (gamma): it is missed by all tables with a chance below 1e-5. Different chests agree in a table with a
# chance of 1e-5 each, so 100,000 images give some million candidates, not 5 thousand million.
_CODED = (6, 16)
_TABLES, _BITS = 32, 20
# Of the 115 bits, so many may differ before the details are compared: a third more than in any copy measured.
_DIFFERING = 20
# In one table an image is compared with at most so many of its bucket, or a series of one phantom
# would cost the square of its length.
_BUCKET = 64
_PAIRS_AT_ONCE = 8192

_BLANK = 1 / 255
"""Standard deviation of the grid below which an image is blank: one step of 8 bits."""

_SUM = np.add.outer(np.arange(KEPT), np.arange(KEPT))
_ANGLE = np.pi * np.outer(np.arange(KEPT), 2 * np.arange(GRID) + 1) / (2 * GRID)
# The first rows of the orthonormal cosine transform (DCT-II).
_COSINES = np.sqrt(2 / GRID) * np.cos(_ANGLE) * np.where(np.arange(KEPT) == 0, np.sqrt(0.5), 1)[:, None]


@dataclass(frozen=True)
class Look:
    """What is kept of one image file."""

    path: str
    digest: str = ""
    """SHA-256 of its bytes."""
    shape: str = ""
    """Height x width in pixels."""
    spectrum: np.ndarray | None = None
    """float16 `[frequency down, frequency across]`, detail of length 1; None where it has no detail."""
    blank: bool = False
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
        digest, image = file_content(path, LIMIT_BYTES), read_image(path)
    except UnreadableImageError as error:
        return Look(path, reason=str(error))
    # Of a volume, the slice in the middle; colours as their mean.
    plane = image.pixels[len(image.pixels) // 2] if isinstance(image, Volume) else image.pixels.mean(axis=0)
    shape = " x ".join(map(str, plane.shape))
    cells = _grid(plane)
    if cells.std() < _BLANK:
        return Look(path, digest, shape, blank=True)
    spectrum = _COSINES @ cells @ _COSINES.T
    length = np.linalg.norm(spectrum[_SUM >= DETAIL])
    if length / GRID < _BLANK / 2:
        return Look(path, digest, shape)
    return Look(path, digest, shape, (spectrum / length).clip(-1e4, 1e4).astype(np.float16))


def _grid(plane: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "grid grid"]:
    from PIL import Image

    shrinks = min(plane.shape) >= GRID
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize((GRID, GRID), method), np.float64)


# Candidates and their comparison


def _turned(transposed: bool, down: bool, across: bool, inverted: bool) -> tuple[np.ndarray, np.ndarray]:
    """An image turned and mirrored, as places and signs of its frequencies: `spectrum[place] * sign`."""
    place = np.arange(KEPT * KEPT).reshape(KEPT, KEPT)
    place = place.T if transposed else place
    parity = (-1.0) ** np.arange(KEPT)
    sign = np.outer(parity if down else parity**0, parity if across else parity**0) * (-1 if inverted else 1)
    return place.ravel(), sign.ravel().astype(np.float32)


_TURNS = [_turned(bool(k & 1), bool(k & 2), bool(k & 4), inverted) for inverted in (False, True) for k in range(8)]
"""As it is first; then mirrored, rotated by quarters, and all of it again with black and white exchanged."""


def same_pictures(
    spectra: Float[np.ndarray, "image down across"], patient: Int[np.ndarray, " image"]
) -> Int[np.ndarray, "pair two"]:
    """Pairs of images of different patients that are one picture, each once, in ascending order.

    Args:
        spectra: as in `Look`.
        patient: of each image.
    """
    count = len(spectra)
    flat = spectra.reshape(count, -1)
    detail, coded = (
        np.flatnonzero(rows.ravel()) for rows in (_SUM >= DETAIL, (_CODED[0] <= _SUM) & (_CODED[1] > _SUM))
    )
    median = np.median(flat[:, coded].astype(np.float32), axis=0) if count else np.zeros(len(coded))
    generator = np.random.default_rng(0)
    tables = [generator.choice(len(coded), _BITS, replace=False) for _ in range(_TABLES)]
    powers = 1 << np.arange(_BITS)
    bits = flat[:, coded] > median
    words = _words(bits)
    buckets = []
    for table in tables:
        key = bits[:, table] @ powers
        order = np.argsort(key, kind="stable")
        buckets.append((key[order], order))
    limit = _limit(flat[:, detail], patient)
    found = [np.zeros((0, 2), np.int64)]
    for place, sign in _TURNS:
        turned_bits = flat[:, place[coded]] * sign[coded] > median
        turned_words = _words(turned_bits)
        for (key, order), table in zip(buckets, tables, strict=True):
            pairs = _met(key, order, turned_bits[:, table] @ powers)
            pairs = pairs[patient[pairs[:, 0]] != patient[pairs[:, 1]]]
            differing = np.bitwise_count(words[pairs[:, 0]] ^ turned_words[pairs[:, 1]]).sum(axis=1)
            pairs = pairs[differing <= _DIFFERING]
            for first in range(0, len(pairs), _PAIRS_AT_ONCE):
                some = pairs[first : first + _PAIRS_AT_ONCE]
                left = flat[some[:, :1], detail].astype(np.float32)
                right = flat[some[:, 1:], place[detail]] * sign[detail]
                found.append(some[np.einsum("pf,pf->p", left, right) >= limit])
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _limit(detail: np.ndarray, patient: np.ndarray) -> float:
    """The correlation from which two images of this cohort are one picture."""
    asked = np.unique(np.linspace(0, len(detail) - 1, _ASKED).astype(int)) if len(detail) else []
    ordinary = []
    for one in asked:
        others = detail[patient != patient[one]]
        if len(others) >= 2 * _NEIGHBOUR:
            likeness = others @ detail[one].astype(np.float32)
            ordinary.append(1 - np.partition(likeness, -_NEIGHBOUR)[-_NEIGHBOUR])
    if not ordinary:
        return SAME_DETAIL
    return 1 - min(1 - SAME_DETAIL, CLOSER * max(float(np.median(ordinary)), 0.0))


def _words(bits: np.ndarray) -> np.ndarray:
    """uint64 `[image, word]`: bits packed, to be compared many at once."""
    packed = np.packbits(bits, axis=1)
    return np.ascontiguousarray(np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))).view(np.uint64)


def _met(key: np.ndarray, order: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """int64 `[pair, 2]`: images whose key (sorted, with the image of each in `order`) another's question equals."""
    low, high = np.searchsorted(key, asked, "left"), np.searchsorted(key, asked, "right")
    counts = np.minimum(high - low, _BUCKET)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([order[np.repeat(low, counts) + within], np.repeat(np.arange(len(asked)), counts)], axis=1)


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
            "encoding, size, orientation or contrast.",
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


def _unusable(pictures: Pictures) -> Iterator[Finding]:
    blank = np.array([look.blank for look in pictures.looks], bool)[pictures.look]
    if blank.any():
        yield Finding(
            "misleads",
            "blank images",
            int(blank.sum()),
            Place("images", "path", single_rows(np.flatnonzero(blank))),
            f"{counted(int(blank.sum()), 'image shows', 'images show')} one even shade.",
            "An image that was not taken is no row: remove these rows, or export the files again.",
        )
    unreadable = np.array([look.reason is not None for look in pictures.looks], bool)[pictures.look]
    if unreadable.any():
        yield Finding(
            "misleads" if unreadable.mean() > MANY else "note",
            "unreadable images",
            int(unreadable.sum()),
            Place("images", "path", single_rows(np.flatnonzero(unreadable))),
            f"{counted(int(unreadable.sum()), 'image file')} cannot be read, so nothing else was checked of them.",
            "See why with read_image(path), or leave them out, counted, with cohort.keep_readable_images().",
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
    first = first[[pictures.looks[pictures.look[row]].spectrum is not None for row in first["row"]]]
    if len(first) < 2:
        return identical, []
    spectra = np.stack([pictures.looks[pictures.look[row]].spectrum for row in first["row"]])
    near = []
    for group in linked(same_pictures(spectra, first["patient"].to_numpy())):
        members = rows[rows["content"].isin(first["content"].to_numpy()[group])]
        near.append(Shared(np.unique(members["patient"]), members["row"].to_numpy()))
    return identical, near

"""Images of a cohort as integers at working resolution, each file decoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .arguments import require_counts
from .batch import Images
from .checks import Exclusion
from .cohort import Cohort
from .errors import InputError, UnreadableImageError
from .fingerprints import file_content, file_stamp
from .fitted import read_fitted
from .parallel import in_parallel
from .pixels import LIMIT_BYTES, ImageFile, WindowChoice, check_choice, read_image, resize
from .prepared import Packed
from .recent import expanded, most_recent, runs, select
from .shelf import Made, sources_in
from .store import Store
from .volumes import slabs
from .windows import Window

_TASK = "decoding images"
_TONES = np.arange(256) / 255
# Images that are looked at together when mean and spread are learned.
_TOGETHER = 64
# glibc keeps what is freed for the next request up to the size of the largest that was freed, of 32 MiB at most
# (mallopt(3), M_MMAP_THRESHOLD).
_LARGEST_KEPT = 31 * 2**20


class ImageReader:
    """Reads images, and slices of volumes, into squares of `size` pixels.

    Args:
        size: side of the square in pixels; the aspect ratio is kept, the rest is black.
        channels: 1 for grey, 3 for colour (a grey image is repeated; a volume gives three neighbouring slices).
        most: files a sample at most; the most recent ones stay.
        slices: images that are taken of a volume, evenly spread through it.
        window: of every image, as `read_image` takes it: (center, width), a name such as "lung", or an index;
            None for each file's own.
    """

    def __init__(
        self,
        size: int = 224,
        *,
        channels: int = 1,
        most: int = 4,
        slices: int = 1,
        window: WindowChoice | list[float] | None = None,
    ) -> None:
        require_counts(size=size, channels=channels, most=most, slices=slices)
        if channels not in (1, 3):
            raise InputError(f"channels is {channels}; expected 1 (grey) or 3 (colour).")
        if size < 32 or most < 1 or slices < 1:
            raise InputError(
                f"size is {size}, most is {most} and slices is {slices}; expected at least 32 pixels, 1 file and "
                "1 image of a volume."
            )
        # JSON, in which settings are saved, knows no tuples.
        window = tuple(window) if isinstance(window, list) else window
        check_choice(window, None)
        self.size, self.channels, self.most, self.slices, self.window = size, channels, most, slices, window
        self.mean_, self.std_ = 0.5, 0.25

    def fit(self, cohort: Cohort) -> None:
        """Learn mean and spread of the training patients' pixels, in [0, 1]."""
        files = self._seen(cohort).files
        rows = runs(files.first, files.counts)
        tones = np.zeros(256, np.int64)
        for start in range(0, len(rows), _TOGETHER):
            tones += np.bincount(files.pixels[rows[start : start + _TOGETHER]].ravel(), minlength=256)
        if len(rows):
            self.mean_ = float(np.average(_TONES, weights=tones))
            self.std_ = float(max(np.sqrt(np.average((_TONES - self.mean_) ** 2, weights=tones)), 1 / 255))

    def pack(self, cohort: Cohort) -> Packed:
        """Decode every image that some sample sees, unless the cohort's store has it.

        Raises:
            UnreadableImageError: a file is missing or gives no trustworthy pixels.
        """
        seen = self._seen(cohort)
        window = expanded(seen.window, seen.files.first[seen.entries], seen.files.counts[seen.entries])
        remarks = []
        if seen.refused:
            remarks.append(f"images: {len(seen.refused)} that cannot be read")
        if seen.older:
            remarks.append(f"images: {seen.older} older than the {self.most} most recent of their patient")
        exclusions = [Exclusion("images", row + 1, reason) for row, reason in sorted(seen.refused.items())]
        return Packed(
            Images,
            window.offsets,
            window.rows,
            window.hours,
            {"pixels": seen.files.pixels},
            remarks=tuple(remarks),
            exclusions=tuple(exclusions),
        )

    def _seen(self, cohort: Cohort) -> _Seen:
        """The files that samples see, decoded; where some cannot be read, those before them instead."""
        window, refused = cohort.window("images"), {}
        while True:
            recent, older = most_recent(window, self.most)
            used, entries = np.unique(recent.rows, return_inverse=True)
            paths = [] if cohort.images is None else cohort.images["path"].iloc[used].tolist()
            files = self._stored(cohort.store, paths) if cohort.store else self._held(cohort, paths)
            if not files.refused:
                return _Seen(recent, entries, files, older, refused)
            reasons = {int(row): files.refused.get(path) for row, path in zip(used, paths, strict=True)}
            refused |= {row: reason for row, reason in reasons.items() if reason}
            window = select(window, ~np.isin(window.rows, list(refused)))

    def _held(self, cohort: Cohort, paths: Sequence[str]) -> _Decoded:
        """In memory, decoded once a cohort, however often it is packed: to fit, to train, to compare models."""
        own = tuple(dict.fromkeys(paths))
        key = (*self._decoding.values(), own)
        if key not in cohort.decoded:
            # Memory that nothing is written to is not taken: not every file is a volume.
            pixels = np.zeros((len(own) * self.slices, *self._shape), np.uint8)
            place, end = {}, 0
            with closing(in_parallel(self._read_named, own, _TASK)) as results:
                for path, images in chain.from_iterable(results):
                    pixels[end : end + len(images)] = images
                    place[path] = (end, len(images))
                    end += len(images)
            cohort.decoded[key] = pixels[:end], place
        pixels, place = cohort.decoded[key]
        return _Decoded(*_placed(paths, place), pixels, {})

    def _stored(self, store: Store, paths: Sequence[str]) -> _Decoded:
        """In a store, each content once."""
        shelf = store.shelf("images", self._decoding, {"pixels": ("u1", self._shape)})
        stamps = {path: file_stamp(path) for path in paths}
        refused: dict[str, str] = {}

        def refuse(path: str, reason: str) -> None:
            if store.unreadable == "raise":
                remedy = 'unreadable="exclude" (chiasm prepare --exclude)'
                raise UnreadableImageError(f"{reason} Or leave such files out, and listed, with {remedy}.")
            refused[path] = reason

        shelf.add(stamps, partial(_made, self, shelf.journal, shelf.journal_bytes), _TASK, refuse=refuse)
        place = {path: shelf.find(stamp) or (0, 0) for path, stamp in stamps.items()}
        return _Decoded(*_placed(paths, place), shelf.arrays()["pixels"], refused)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    @property
    def _decoding(self) -> dict[str, object]:
        """The settings that a file's pixels depend on."""
        settings = {"size": self.size, "channels": self.channels, "slices": self.slices}
        # Without a window they are named as they were before there was one, so that no image is decoded again.
        return settings if self.window is None else settings | {"window": self.window}

    def _read_named(self, paths: Sequence[str]) -> list[tuple[str, np.ndarray]]:
        _keep_freed_memory()
        return [(path, self.read(path)) for path in paths]

    def read(self, path: str) -> np.ndarray:
        """A file, or a folder of slices, as uint8 `[image, channel, size, size]`.

        Raises:
            UnreadableImageError: it is missing or gives no trustworthy pixels.
        """
        fitted = read_fitted(path, self.size, self.window)
        images = [resize(image, self.size) for image in self._images(path)] if fitted is None else [fitted]
        return np.stack([np.rint(np.clip(self._coloured(image), 0, 1) * 255).astype(np.uint8) for image in images])

    def _images(self, path: str) -> Sequence[np.ndarray]:
        """The image of a file; of a volume, slices evenly spread, with their neighbours as channels."""
        file = read_image(path, window=self.window)
        if isinstance(file, ImageFile):
            return [file.pixels]
        if len(file.pixels) < self.channels:
            raise UnreadableImageError(f"{path}: it has fewer slices than the {self.channels} channels of an image.")
        return slabs(file.pixels, images=self.slices, channels=self.channels)

    def _coloured(self, pixels: np.ndarray) -> np.ndarray:
        if len(pixels) == 3 and self.channels == 1:
            # Luma of ITU-R BT.601, which JPEG uses.
            return np.tensordot(np.float32([0.299, 0.587, 0.114]), pixels, 1)[None]
        if len(pixels) == 1 and self.channels == 3:
            return np.repeat(pixels, 3, axis=0)
        return pixels

    def state(self) -> dict[str, object]:
        return {"mean_": self.mean_, "std_": self.std_}

    def restore(self, state: Mapping[str, object]) -> None:
        self.mean_, self.std_ = float(state["mean_"]), float(state["std_"])


class _Decoded(NamedTuple):
    """Files and where their images are."""

    first: np.ndarray
    """int64 `[file]`: row of its first image among the pixels; equal files may share rows."""
    counts: np.ndarray
    """int64 `[file]`: how many images it has."""
    pixels: np.ndarray
    """uint8 `[row, channel, size, size]`."""
    refused: dict[str, str]
    """By path: why a file cannot be read."""


class _Seen(NamedTuple):
    """The files that some sample sees."""

    window: Window
    entries: np.ndarray
    """int64 `[entry]`: number of the file that each entry of the window is."""
    files: _Decoded
    older: int
    """How many entries were passed over for more recent ones."""
    refused: dict[int, str]
    """By row of the cohort's table: why a file cannot be read."""


def _placed(paths: Sequence[str], place: Mapping[str, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    first, counts = np.array([place[path] for path in paths], np.int64).reshape(-1, 2).T
    return first, counts


def _made(reader: ImageReader, journal: Path, size: int, paths: list[str]) -> list[Made]:
    """Decode files whose content is not in the first bytes of a journal; a worker's part of the work."""
    _keep_freed_memory()
    there, made = sources_in(journal, size), []
    for path in paths:
        try:
            content = file_content(path, LIMIT_BYTES)
            made.append(Made(path, content, None if content in there else {"pixels": reader.read(path)}))
        except UnreadableImageError as error:
            made.append(Made(path, "", None, str(error)))
    return made


def _keep_freed_memory() -> None:
    """Spare every image the system's clearing of new pages, which takes a third of the time of a radiograph."""
    _ = np.empty(_LARGEST_KEPT, np.uint8)

"""Images of a cohort as integers at working resolution, each file decoded once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .batch import Images
from .cohort import Cohort
from .errors import InputError
from .pixels import read_image, resize
from .prepared import Packed
from .recent import most_recent

# Starting worker processes costs about two seconds, as much as reading this many small files.
_FILES_WORTH_PROCESSES = 256


class ImageReader:
    """Reads DICOM, PNG and JPEG files into squares of `size` pixels.

    Args:
        size: side of the square in pixels; the aspect ratio is kept, the rest is black.
        channels: 1 for grey, 3 for colour (a grey image is repeated).
        most: images a sample at most; the most recent ones stay.
    """

    def __init__(self, size: int = 224, *, channels: int = 1, most: int = 4) -> None:
        if channels not in (1, 3):
            raise InputError(f"channels is {channels}; expected 1 (grey) or 3 (colour).")
        if size < 32 or most < 1:
            raise InputError(f"size is {size} and most is {most}; expected at least 32 pixels and 1 image.")
        self.size, self.channels, self.most = size, channels, most
        self.mean_, self.std_ = 0.5, 0.25

    def fit(self, cohort: Cohort) -> None:
        """Learn mean and spread of the training patients' pixels, in [0, 1]."""
        pixels = self.pack(cohort).arrays["pixels"]
        if len(pixels):
            # Sums in float64, image by image, so that memory does not grow with the cohort.
            sums = np.array([(image.mean(dtype=np.float64), np.square(image / 255.0).mean()) for image in pixels])
            self.mean_ = float(sums[:, 0].mean() / 255)
            self.std_ = float(max(np.sqrt(max(sums[:, 1].mean() - self.mean_**2, 0)), 1 / 255))

    def pack(self, cohort: Cohort) -> Packed:
        """Decode every image that some sample sees.

        Raises:
            UnreadableImageError: a file is missing or gives no trustworthy pixels.
        """
        window, dropped = most_recent(cohort.window("images"), self.most)
        used, rows = np.unique(window.rows, return_inverse=True)
        paths = () if cohort.images is None else tuple(cohort.images["path"].iloc[used])
        # Decoded once a cohort, however often it is packed: to fit, to train, to compare models.
        key = (self.size, self.channels, paths)
        if key not in cohort.decoded:
            cohort.decoded[key] = self._decode(paths)
        pixels = cohort.decoded[key]
        remarks = (f"images: {dropped} older than the {self.most} most recent of their patient",) if dropped else ()
        return Packed(Images, window.offsets, rows, window.hours, {"pixels": pixels}, remarks=remarks)

    def read(self, path: str) -> np.ndarray:
        """One file as uint8 `[channel, size, size]`."""
        pixels = resize(read_image(path).pixels, self.size)
        if len(pixels) == 3 and self.channels == 1:
            # Luma of ITU-R BT.601, which JPEG uses.
            pixels = np.tensordot(np.float32([0.299, 0.587, 0.114]), pixels, 1)[None]
        elif len(pixels) == 1 and self.channels == 3:
            pixels = np.repeat(pixels, 3, axis=0)
        return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)

    def _decode(self, paths: tuple[str, ...]) -> np.ndarray:
        """All files as uint8 `[image, channel, size, size]`, in parallel where there are many."""
        from joblib import Parallel, cpu_count, delayed

        pixels = np.zeros((len(paths), self.channels, self.size, self.size), np.uint8)
        jobs = cpu_count() if len(paths) >= _FILES_WORTH_PROCESSES else 1
        decoded = Parallel(n_jobs=jobs, return_as="generator")(delayed(self.read)(path) for path in paths)
        for i, image in enumerate(decoded):
            pixels[i] = image
        return pixels

    def state(self) -> dict[str, object]:
        return {"mean_": self.mean_, "std_": self.std_}

    def restore(self, state: Mapping[str, object]) -> None:
        self.mean_, self.std_ = float(state["mean_"]), float(state["std_"])

"""Stored grey values to display values in [0, 1]: modality values, window, inversion, padding.

DICOM's grey-scale pipeline (PS3.4 N.2) acts on each value alone, so for 8- and 16-bit integers it is
computed once for every possible value and then looked up; floats and wider integers pass through the
same functions pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .dicom import element, number, text
from .errors import InputError, UnreadableImageError
from .lookup import Lookup, lookup_table
from .refusals import refusing
from .stored_pixels import StoredImage

if TYPE_CHECKING:
    from pydicom import Dataset

# Where a file names no window: between these percentiles of its modality values lies the picture; a few
# dead pixels, burnt-in letters and metal lie outside.
ROBUST_PERCENTILES = (0.5, 99.5)
# Hounsfield units, (center, width). Source: Radiopaedia, "Windowing (CT)": lungs, mediastinum, brain, bone of the
# spine. Institutions differ by some tens of units.
HOUNSFIELD_WINDOWS = {"lung": (-600, 1500), "mediastinum": (50, 350), "brain": (40, 80), "bone": (400, 1800)}
# Percentiles of more values are those of every n-th, so that memory stays bounded: of 2 million values a percentile
# of 0.5 is that of 0.5 ± 0.005 (binomial), nearer than a window is ever known.
LARGEST_SAMPLE = 2**21
# Values at a time: float64 temporaries of 8 MB.
_BLOCK = 2**20
_ALL_PADDING = "all its pixels are padding (0028,0120). Leave the file out."
# exp(700) is about the largest that float64 holds; a sigmoid is 0 or 1 long before.
_LARGEST_EXPONENT = 700.0
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_OWN_WINDOW = "Give window=(center, width) in its place: to read_image, or to ImageEncoder for the images of a table."
Transform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rescale:
    """Stored to modality values, such as Hounsfield units (PS3.3 C.11.1.1.2)."""

    slope: float
    intercept: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float64) * self.slope + self.intercept


@dataclass(frozen=True)
class Window:
    """Modality values to [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    center: float
    width: float
    function: str = "LINEAR"

    def __call__(self, values: np.ndarray) -> np.ndarray:
        center, width = self.center, self.width
        if self.function == "SIGMOID":
            exponent = -4 * (values - center) / width
            return 1 / (1 + np.exp(np.clip(exponent, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)))
        if self.function == "LINEAR":
            center, width = center - 0.5, width - 1
        if width == 0:
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0, 1)

    def __str__(self) -> str:
        return f"{self.function} {self.center:g}/{self.width:g}"


def render(
    stored: StoredImage, window: int | str | tuple[float, float] | None
) -> tuple[Float[np.ndarray, "row column"], str]:
    """Display values of a grey frame, float32 in [0, 1], and the window in words.

    Args:
        window: index among the file's VOI LUTs and windows, LUTs first; or (center, width) in modality
            values, applied as LINEAR_EXACT, so that it means the same in every unit; or a name of
            HOUNSFIELD_WINDOWS; or None for the file's first, and for the percentiles ROBUST_PERCENTILES where
            it has none or its pixels are floats (files of these carry LINEAR windows that turn values between
            0 and 1 into black and white).

    Raises:
        UnreadableImageError: a table, window or value is impossible, or all pixels are padding.
        InputError: the file has no window of that index, or no Hounsfield units where a name needs them.

    Source: DICOM PS3.4 N.2; PS3.3 C.11.1, C.11.2, C.7.6.3.1.2 (MONOCHROME1), C.7.5.1.1.2 (padding).
    """
    shape, words = frame_window(stored, window)
    tones = np.empty(stored.values.shape, np.float32)
    if not paint(tones, stored.values, stored, shape):
        raise UnreadableImageError(_ALL_PADDING)
    return tones, words


def frame_window(stored: StoredImage, window: int | str | tuple[float, float] | None) -> tuple[Transform, str]:
    """How modality values of a frame become display values, and the window in words; see `render`."""
    native = stored.values.astype(stored.values.dtype.newbyteorder("="), copy=False)
    if isinstance(window, str):
        require_hounsfield_units(stored.dataset, stored.frame)
    chosen = chosen_window(stored.dataset, stored.frame, stored.big_endian, native.dtype.kind == "f", window)
    return chosen or _robust(native, stored)


def paint(tones: np.ndarray, values: np.ndarray, stored: StoredImage, shape: Transform | None) -> bool:
    """Fill `tones` with the display values of stored values, padding black, without a large temporary.

    Args:
        tones: float32, contiguous, of the shape of `values`.
        shape: modality values to [0, 1]; None to fill with modality values, and NaN for padding.

    Returns:
        Whether anything is there but padding.

    Raises:
        UnreadableImageError: values are not finite, before or after rescale.
    """
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    inverted = is_inverted(stored)

    def painted(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        measured, padding = _measured(some, stored)
        if shape is None:
            return np.where(padding, np.nan, measured).astype(np.float32), padding
        return _shown(measured, padding, shape, inverted), padding

    table = _every_value(values)
    shades, is_padding = painted(table[0]) if table else (None, None)
    target, source, found = tones.reshape(-1), (table[1] if table else values).reshape(-1), False
    for start in range(0, len(source), _BLOCK):
        block = source[start : start + _BLOCK]
        shown, padding = (shades[block], is_padding[block]) if table else painted(block)
        target[start : start + _BLOCK] = shown
        found = found or not padding.all()
    return found


def _every_value(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """All values of integers of up to 16 bits, and which of them each pixel has; None where there are fewer pixels."""
    size = values.dtype.itemsize
    if values.dtype.kind == "f" or size > 2 or values.size < 2 ** (8 * size):
        return None
    return np.arange(2 ** (8 * size), dtype=f"u{size}").view(values.dtype), values.view(f"u{size}")


def _robust(values: np.ndarray, stored: StoredImage) -> tuple[Transform, str]:
    """The window between percentiles of a frame's modality values."""
    if table := _every_value(values):
        every, index = table
        measured, padding = _measured(every, stored)
        counts = _counts(index.ravel(), len(every))
        present = ~padding & (counts > 0)
        if present.any():
            return robust_window(measured[present], counts[present])
        raise UnreadableImageError(_ALL_PADDING)
    flat = values.ravel()
    for some in (sample(flat), flat):
        measured, padding = _measured(some, stored)
        if not padding.all():
            return robust_window(measured[~padding], None)
    raise UnreadableImageError(_ALL_PADDING)


def _counts(indices: np.ndarray, length: int) -> np.ndarray:
    """How often each index occurs; a block at a time, since counting widens each to eight bytes."""
    blocks = (indices[start : start + _BLOCK] for start in range(0, len(indices), _BLOCK))
    return sum(np.bincount(block, minlength=length) for block in blocks)


def sample(values: np.ndarray) -> np.ndarray:
    """Every n-th of a flat array, at most LARGEST_SAMPLE; n is odd, so that no even width of rows is a multiple."""
    step = -(-len(values) // LARGEST_SAMPLE)
    return values[:: step | 1] if step > 1 else values


def scaled(values: np.ndarray, shape: Transform, *, inverted: bool = False) -> np.ndarray:
    """Values in [0, 1], float32, of modality values that are finite, a block at a time."""
    tones = np.empty(values.shape, np.float32)
    target, source = tones.reshape(-1), values.reshape(-1)
    for start in range(0, len(source), _BLOCK):
        block = shape(source[start : start + _BLOCK].astype(np.float64))
        target[start : start + _BLOCK] = 1 - block if inverted else block
    return tones


def _measured(values: np.ndarray, stored: StoredImage) -> tuple[np.ndarray, np.ndarray]:
    """Modality values, float64 and finite, and which of them are padding (those have any value)."""
    padding = _padding(values, stored)
    if padding.all():
        return np.zeros(values.shape), padding
    first = values[np.argmin(padding)]
    if values.dtype.kind == "f" and not np.isfinite(values[~padding]).all():
        raise UnreadableImageError("its pixels hold NaN or infinity that is not declared as padding. Export it again.")
    # Padding may be NaN, which no table can look up; it is painted black at the end anyway.
    with np.errstate(over="ignore", invalid="ignore"):
        measured = modality_transform(stored)(np.where(padding, first, values))
    if not np.isfinite(measured).all():
        raise UnreadableImageError("its Rescale Slope and Intercept make values infinite. Correct them.")
    return measured, padding


def _shown(measured: np.ndarray, padding: np.ndarray, shape: Transform, inverted: bool) -> np.ndarray:
    tones = shape(measured)
    if inverted:
        tones = 1 - tones
    tones[padding] = 0
    return tones.astype(np.float32)


def modality_transform(stored: StoredImage) -> Transform:
    """The Modality LUT or rescale of a frame; stored values themselves where there is neither.

    Raises:
        UnreadableImageError: only one of slope and intercept is there, the slope is 0, or the LUT is broken.

    Source: DICOM PS3.3 C.11.1; C.7.6.16.2.9 (Pixel Value Transformation of enhanced images).
    """
    if tables := element(stored.dataset, "ModalityLUTSequence"):
        table = lookup_table(tables[0], stored.big_endian)
        return lambda values: table.entries[table.index(values)]
    where = functional_group(stored.dataset, stored.frame, "PixelValueTransformationSequence") or stored.dataset
    slope, intercept = number(where, "RescaleSlope"), number(where, "RescaleIntercept")
    if slope is None and intercept is None:
        return Rescale(1.0, 0.0)
    if slope is None or intercept is None or slope == 0:
        raise UnreadableImageError("its Rescale Slope is 0, or slope and intercept are not both there. Correct them.")
    return Rescale(slope, intercept)


def voi_transforms(dataset: Dataset, frame: int, big_endian: bool) -> list[Lookup | Window]:
    """A frame's VOI LUTs, then its windows, in the file's order.

    Raises:
        UnreadableImageError: centers and widths are not as many, or one is impossible.

    Source: DICOM PS3.3 C.11.2; C.7.6.16.2.10 (Frame VOI LUT of enhanced images).
    """
    where = functional_group(dataset, frame, "FrameVOILUTSequence") or dataset
    tables = [lookup_table(item, big_endian) for item in element(where, "VOILUTSequence") or ()]
    centers, widths = _numbers(where, "WindowCenter"), _numbers(where, "WindowWidth")
    function = (text(where, "VOILUTFunction") or "LINEAR").upper()
    if wrong := _impossible(centers, widths, function):
        raise UnreadableImageError(f"{wrong}. {_OWN_WINDOW}")
    return [*tables, *(Window(center, width, function) for center, width in zip(centers, widths, strict=True))]


def _impossible(centers: Sequence[float], widths: Sequence[float], function: str) -> str | None:
    """What is wrong with a file's windows, without its text, which may be anything."""
    if len(centers) != len(widths):
        return f"its Window Center has {len(centers)} values and its Window Width {len(widths)}"
    if function not in FUNCTIONS:
        return f"its VOI LUT Function is none of {', '.join(FUNCTIONS)}"
    least = 1 if function == "LINEAR" else np.nextafter(0, 1)
    narrow = [width for width in widths if width < least]
    if not narrow:
        return None
    return f"its Window Width is {narrow[0]:g}, and {function} takes one {'of 1 or more' if least == 1 else 'above 0'}"


def _numbers(dataset: Dataset, keyword: str) -> list[float]:
    value = element(dataset, keyword)
    if value is None:
        return []
    with refusing(f"its element {keyword} is not numbers. {_OWN_WINDOW}"):
        numbers = [float(one) for one in np.atleast_1d(np.asarray(value, dtype=np.float64))]
    if not np.isfinite(numbers).all():
        raise UnreadableImageError(f"its element {keyword} is not finite. {_OWN_WINDOW}")
    return numbers


def chosen_window(
    dataset: Dataset, frame: int, big_endian: bool, floats: bool, window: int | str | tuple[float, float] | None
) -> tuple[Transform, str] | None:
    """The window asked for, or the file's first, in words too; None where percentiles decide.

    Raises:
        UnreadableImageError: a window of the file is impossible.
        InputError: the file has no window of that index.
    """
    if isinstance(window, str | tuple):
        return given_window(window)
    offered = [] if window is None and floats else voi_transforms(dataset, frame, big_endian)
    if window is None and not offered:
        return None
    index = window or 0
    if index >= len(offered):
        raise InputError(f"window is {window}; the file has {len(offered)}. Give window=(center, width), or none.")
    chosen = offered[index]
    words = f"{index + 1} of {len(offered)}"
    if isinstance(chosen, Window):
        return chosen, f"{chosen} ({words})"
    return chosen.shades, f"VOI LUT ({words})"


def given_window(window: str | tuple[float, float]) -> tuple[Window, str]:
    """A window that the caller gave, by name or as (center, width), and what it is called."""
    center, width = HOUNSFIELD_WINDOWS[window] if isinstance(window, str) else window
    given = Window(float(center), float(width), "LINEAR_EXACT")
    return given, f"{window}, {given}" if isinstance(window, str) else str(given)


def require_hounsfield_units(dataset: Dataset, frame: int) -> None:
    """Refuse a window by name for anything but CT in Hounsfield units.

    Raises:
        InputError: the modality is not CT, or its values are not rescaled to Hounsfield units.

    Source: DICOM PS3.3 C.8.2.1 and C.11.1.1.2: without a Rescale Type (0028,1054) a CT is in Hounsfield units.
    """
    where = functional_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    rescaled = number(where, "RescaleSlope") is not None
    if text(dataset, "Modality") != "CT" or not rescaled or text(where, "RescaleType") not in (None, "HU"):
        raise InputError(
            "a window by name is in Hounsfield units, and this is no CT rescaled to them. Give window=(center, width)."
        )


def robust_window(values: np.ndarray, counts: np.ndarray | None) -> tuple[Transform, str]:
    """A linear window between percentiles; between the extremes where those agree, black if these do too.

    Args:
        values: float64, finite, at least one.
        counts: how often each occurs; None for once.
    """
    low, high = np.percentile(values, ROBUST_PERCENTILES, weights=counts, method="inverted_cdf")
    words = "percentiles {:g} to {:g}".format(*ROBUST_PERCENTILES)
    if low == high:
        low, high = values.min(), values.max()
        words = "all values"
    # Halves: the difference of two finite numbers may be infinite, that of their halves is not.
    half = high / 2 - low / 2 or 1.0
    return lambda shown: np.clip((shown / 2 - low / 2) / half, 0, 1), f"{words}, {low:g} to {high:g}"


def is_inverted(stored: StoredImage) -> bool:
    """Whether small values are bright; both ways to say so together still mean one inversion.

    MONOCHROME1 decides even against IDENTITY, which contradicts it (PS3.3 C.8.11.1.1.1).

    Raises:
        UnreadableImageError: the Presentation LUT Shape is unknown.
    """
    shape = (text(stored.dataset, "PresentationLUTShape") or "IDENTITY").upper()
    if shape not in ("IDENTITY", "INVERSE"):
        raise UnreadableImageError("its Presentation LUT Shape is neither IDENTITY nor INVERSE. Convert the file.")
    return stored.photometric == "MONOCHROME1" or shape == "INVERSE"


def _padding(values: np.ndarray, stored: StoredImage) -> np.ndarray:
    """Which stored values are padding, as truth values (PS3.3 C.7.5.1.1.2, C.7.6.24, C.7.6.25)."""
    kind = {"f4": "Float", "f8": "DoubleFloat"}.get(values.dtype.str[1:], "")
    bounds = []
    for keyword in (f"{kind}PixelPaddingValue", f"{kind}PixelPaddingRangeLimit"):
        value = element(stored.dataset, keyword)
        if value is None:
            continue
        bounds.append(_padding_number(value, keyword, values.dtype))
    if not bounds:
        return np.zeros(values.shape, bool)
    if np.isnan(bounds).any():
        return np.isnan(values)
    return (values >= min(bounds)) & (values <= max(bounds))


def _padding_number(value: object, keyword: str, dtype: np.dtype) -> float:
    with refusing(f"its element {keyword} is not one number. Correct it or export the file again."):
        bound = float(value)
        if dtype.kind == "i" and bound > np.iinfo(dtype).max:
            # Signed pixels whose padding was written with the unsigned VR: the same bits, read as signed.
            bound -= 2.0 ** (8 * dtype.itemsize)
        return bound if dtype.kind != "f" else float(dtype.type(bound))


def functional_group(dataset: Dataset, frame: int, keyword: str) -> Dataset | None:
    """The first item of a macro of one frame, or of all frames, in an enhanced multi-frame image.

    Source: DICOM PS3.3 C.7.6.16.
    """
    frames = element(dataset, "PerFrameFunctionalGroupsSequence") or []
    groups = [frames[frame]] if frame < len(frames) else []
    for group in [*groups, *(element(dataset, "SharedFunctionalGroupsSequence") or [])]:
        if items := element(group, keyword):
            return items[0]
    return None

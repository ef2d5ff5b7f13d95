"""DICOM's lookup tables: modality, VOI, and palettes of colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .dicom import element
from .errors import UnreadableImageError
from .refusals import refusing
from .stored_pixels import StoredImage

if TYPE_CHECKING:
    from pydicom import Dataset

_BROKEN = "its {} is broken: descriptor and data disagree. Export the file again from its source."


@dataclass(frozen=True)
class Lookup:
    """Entries for the values from `first` on; values beyond either end get the nearest entry."""

    first: int
    bits: int
    entries: np.ndarray
    """float64 `[entry]`, 0 to 2**bits - 1."""

    def index(self, values: np.ndarray) -> np.ndarray:
        """Positions of values among the entries; fractions are cut off."""
        return np.clip(np.floor(values.astype(np.float64)) - self.first, 0, len(self.entries) - 1).astype(np.intp)

    def shades(self, values: np.ndarray) -> np.ndarray:
        """The entries of values, scaled to [0, 1] by the range of their bits."""
        return np.minimum(self.entries[self.index(values)] / (2.0**self.bits - 1), 1)


def lookup_table(item: Dataset, big_endian: bool) -> Lookup:
    """A table of a Modality or VOI LUT Sequence item.

    Raises:
        UnreadableImageError: descriptor and data disagree.

    Source: DICOM PS3.3 C.11.1.1.1 and C.11.2.1.1; LUT Descriptor (0028,3002), LUT Data (0028,3006).
    """
    return _table(element(item, "LUTDescriptor"), element(item, "LUTData"), big_endian, "LUT")


def _table(descriptor: object, data: object, big_endian: bool, name: str, *, segmented: bool = False) -> Lookup:
    with refusing(_BROKEN.format(name)):
        count, first, bits = (int(value) for value in descriptor)
        # 0 stands for 65,536 entries; a signed VR makes counts from 32,768 on negative.
        count = count % 65_536 or 65_536
        if not 1 <= bits <= 16:
            raise ValueError
        wide = (16 if segmented else 8 * (len(data) // count)) if isinstance(data, bytes) else 16
        if isinstance(data, bytes):
            words = np.frombuffer(data[: len(data) // 2 * 2], ">u2" if big_endian else "<u2")
            # 8-bit entries stand two to a word, the first in its low byte.
            data = words.astype("<u2").view("u1") if wide == 8 or (segmented and bits == 8) else words
        entries = np.atleast_1d(np.asarray(data, dtype=np.float64))
        entries = _expanded(entries.astype(int).tolist(), count, bits) if segmented else entries
        if len(entries) < count or not wide:
            raise ValueError
    return Lookup(first, bits, np.asarray(entries[:count], dtype=np.float64))


def _expanded(fields: list[int], count: int, bits: int) -> list[int]:
    """The entries of a segmented palette, at most `count` (PS3.3 C.7.9.2)."""
    entries: list[int] = []
    starts = [0]
    while starts[-1] + 2 < len(fields) and len(entries) < count:
        starts.append(_add_segment(fields, starts[-1], entries, count, bits))
    return entries


def _add_segment(fields: list[int], at: int, entries: list[int], count: int, bits: int, nested: bool = False) -> int:
    """Append one segment's entries, and say where the next segment starts."""
    code, length = fields[at : at + 2]
    if code == 0:
        entries.extend(fields[at + 2 : at + 2 + length])
        return at + 2 + length
    if code == 1:
        steps = np.arange(1, length + 1) / max(length, 1)
        entries.extend(np.rint(entries[-1] + (fields[at + 2] - entries[-1]) * steps).astype(int).tolist())
        return at + 3
    if code != 2 or nested:
        raise ValueError
    # The copied segments are named by the offset of their first byte, in two words, the low one first.
    if bits == 8:
        size, offset = 4, int.from_bytes(bytes(fields[at + 2 : at + 6]), "little")
    else:
        size, offset = 2, (fields[at + 2] | fields[at + 3] << 16) // 2
    for _ in range(length):
        if len(entries) >= count:
            break
        offset = _add_segment(fields, offset, entries, count, bits, nested=True)
    return at + 2 + size


def palette_colours(stored: StoredImage) -> Float[np.ndarray, "row column 3"]:
    """Palette indices as RGB, float32 in [0, 1].

    Raises:
        UnreadableImageError: a colour's table is absent or broken.

    Source: DICOM PS3.3 C.7.9; descriptors (0028,1101) to (0028,1103), data (0028,1201) to (0028,1203),
    segmented data (0028,1221) to (0028,1223).
    """
    native = stored.values.astype(np.int64)
    channels = []
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTable"
        plain = element(stored.dataset, f"{name}Data")
        data = element(stored.dataset, f"Segmented{name}Data") if plain is None else plain
        descriptor = element(stored.dataset, f"{name}Descriptor")
        if data is None or descriptor is None:
            raise UnreadableImageError(f"its {colour} palette is absent. Export the file again from its source.")
        table = _table(descriptor, data, stored.big_endian, f"{colour} palette", segmented=plain is None)
        shades = np.minimum(table.entries / (2.0**table.bits - 1), 1).astype(np.float32)
        channels.append(shades[table.index(native)])
    return np.stack(channels, axis=-1)

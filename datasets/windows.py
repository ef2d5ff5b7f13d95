"""Which events a sample may see: the as-of-time law, as slices of sorted tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Window:
    """The events of one table that each sample may see, sample after sample."""

    offsets: np.ndarray
    """int64 `[sample + 1]`: the events of sample i are `offsets[i]:offsets[i + 1]`."""
    rows: np.ndarray
    """int64 `[event]`: positions in the cohort's table."""
    hours: np.ndarray
    """float32 `[event]`: when the event became available, relative to the prediction time, ≤ 0."""

    @property
    def samples(self) -> np.ndarray:
        """int64 `[event]`: the sample each event belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


class LabEvent(NamedTuple):
    """A measurement as one sample sees it; hours relative to the prediction time (≤ 0)."""

    hours: float
    code: str
    value: float
    unit: str | None


class NoteEvent(NamedTuple):
    """A note as one sample sees it; hours relative to the prediction time (≤ 0)."""

    hours: float
    text: str
    kind: str | None


class ImageEvent(NamedTuple):
    """An image as one sample sees it; hours relative to the prediction time (≤ 0)."""

    hours: float
    path: str
    view: str | None
    study_uid: str | None


EVENTS = {"labs": LabEvent, "notes": NoteEvent, "images": ImageEvent}


@dataclass(frozen=True)
class Sample:
    """What was known of one patient at one moment. A modality that is lacking is an empty tuple."""

    subject_id: int | str
    prediction_time: pd.Timestamp
    labs: tuple[LabEvent, ...]
    notes: tuple[NoteEvent, ...]
    images: tuple[ImageEvent, ...]
    static: tuple[tuple[str, float | str], ...]


def available_time(events: pd.DataFrame) -> pd.Series:
    """When each event became available: `available_at`, and `time` where that is blank or later.

    A result cannot be known before the moment it describes, so an `available_at` that lies before
    `time` (a clock that was wrong) is not believed: the later of the two counts.
    """
    if "available_at" not in events.columns:
        return events["time"]
    return events[["time", "available_at"]].max(axis=1).astype("datetime64[us]")


def sorted_events(events: pd.DataFrame | None) -> pd.DataFrame | None:
    """Events by patient and available time; ties in an order that the order of the rows cannot change.

    Where there is a column `available_at`, it holds the available time in every row.
    """
    if events is None:
        return None
    if "available_at" in events.columns:
        events = events.assign(available_at=available_time(events))
    first = ["subject_id", "available_at", "time", "code", "value"]
    keys = [column for column in first if column in events.columns]
    keys += [column for column in events.columns if column not in first]
    # The last key of lexsort is the first to be sorted by.
    order = np.lexsort([_rank(events[column]) for column in reversed(keys)])
    return events.iloc[order].reset_index(drop=True)


def _rank(column: pd.Series) -> np.ndarray:
    """Numbers in the order of the column's values, whatever their type."""
    if pd.api.types.is_datetime64_dtype(column.dtype):
        return column.to_numpy().astype("int64")
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy()
    return pd.factorize(column, sort=True)[0]


def visible_events(
    events: pd.DataFrame,
    subject_codes: np.ndarray,
    samples: pd.DataFrame,
    sample_codes: np.ndarray,
    history: float | None,
) -> Window:
    """The events that each sample may see.

    Args:
        events: one event table, sorted by patient and then by available time.
        subject_codes: int64 `[event]`, the patient of each event, ascending.
        samples: the outcomes table, for its prediction times.
        sample_codes: int64 `[sample]`, the patient of each sample, in the same numbering.
        history: hours before the prediction time that inputs reach back; None for all of them.

    Returns:
        Events available at or before the prediction time, and not before the history began.
    """
    available = available_time(events).to_numpy().astype("int64")
    predicted = samples["prediction_time"].to_numpy().astype("int64")
    # No time of the calendar lies further back than the largest reach, 146,000 years.
    reach = None if history is None else round(min(history * 3.6e9, 2.0**62))
    first = np.searchsorted(subject_codes, sample_codes, "left")
    last = np.searchsorted(subject_codes, sample_codes, "right")
    start, stop = first.copy(), last.copy()
    for i, (low, high, moment) in enumerate(zip(first, last, predicted, strict=True)):
        own = available[low:high]
        stop[i] = low + np.searchsorted(own, moment, "right")
        if reach is not None:
            start[i] = low + np.searchsorted(own, moment - reach, "left")
    counts = np.maximum(stop - start, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype("int64")
    rows = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], counts)
    microseconds = available[rows] - np.repeat(predicted, counts)
    return Window(offsets, rows, (microseconds / 3.6e9).astype("float32"))

"""Which events a sample may see: the as-of-time law, as slices of sorted tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from .arguments import require_cohort
from .errors import InputError
from .words import as_codes

if TYPE_CHECKING:
    from .cohort import Cohort


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

    def seen(self, rows: int) -> np.ndarray:
        """bool `[row]`: which of the table's rows, so many, some sample may see."""
        seen = np.zeros(rows, bool)
        seen[self.rows] = True
        return seen


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
    later = np.fmax(events["time"].to_numpy("datetime64[us]"), events["available_at"].to_numpy("datetime64[us]"))
    return pd.Series(later, index=events.index)


def early_results(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """For each table, the rows whose `available_at` lies before their `time`: `row` (from 1), `hours` by which."""
    found = {}
    for name, events in tables.items():
        if "available_at" in events.columns and name in EVENTS:
            early = events[(events["available_at"] < events["time"]).to_numpy()]
            hours = (early["time"] - early["available_at"]) / np.timedelta64(1, "h")
            found[name] = pd.DataFrame({"row": early.index + 1, "hours": hours.to_numpy()})
    return found


def sorted_events(events: pd.DataFrame | None) -> pd.DataFrame | None:
    """Events by patient and available time; ties in an order that the order of the rows cannot change.

    Where there is a column `available_at`, it holds the available time in every row.
    """
    if events is None:
        return None
    if "available_at" in events.columns:
        events = events.assign(available_at=available_time(events))
    if "code" in events.columns:
        events = events.assign(code=as_codes(events["code"]))
    first = ["subject_id", "available_at", "time", "code", "value"]
    keys = [column for column in first if column in events.columns]
    keys += [column for column in events.columns if column not in first]
    order, stay = _order([events[key] for key in keys])
    if stay == len(keys):
        return events.reset_index(drop=True)
    columns = {name: events[name].array for name in events.columns}
    moved = {name: cells.take(order) for name, cells in columns.items() if name not in keys[:stay]}
    return pd.DataFrame(columns | moved, copy=False)


def _order(columns: Sequence[pd.Series]) -> tuple[np.ndarray, int]:
    """The rows by the first column, those that tie in it by the second, and so on.

    Events mostly come by patient and time, and few tie in what follows, so that no more is sorted
    than is out of order.

    Returns:
        The order, and how many of the first columns are the same in it as they lie.
    """
    order, stay = np.arange(len(columns[0])), len(columns)
    # Whether a row ties, in all columns so far, with the one before it.
    ties = np.ones(len(order), bool)
    ties[:1] = False
    for number, column in enumerate(columns):
        if not ties.any():
            break
        moved = stay < len(columns)
        tied = slice(None) if ties.mean() > 0.5 else np.flatnonzero(ties | np.append(ties[1:], False))
        rank = _rank(column.take(order[tied]) if moved or ties.mean() <= 0.5 else column)
        within = ties[tied][1:]
        falls = within & (rank[1:] < rank[:-1])
        if falls.any():
            rows, group = _out_of_order(within, falls)
            by, own, rank = rows[_by_group(group, rank[rows])], order[tied], rank.copy()
            own[rows], rank[rows] = own[by], rank[by]
            order[tied], stay = own, min(stay, number)
        ties[tied] = np.append(False, within & (rank[1:] == rank[:-1]))
    return order, stay


def _out_of_order(within: np.ndarray, falls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of groups that are out of order, ascending, and the number of the group of each.

    Args:
        within: bool `[row - 1]`: whether a row is in one group with the row before it.
        falls: bool `[row - 1]`: whether it is, and should come before it.
    """
    starts = np.flatnonzero(np.append(True, ~within))
    group = np.searchsorted(starts, np.flatnonzero(falls), side="right") - 1
    group = group[np.append(True, group[1:] != group[:-1])]
    counts = np.append(starts[1:], len(within) + 1)[group] - starts[group]
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) + np.repeat(starts[group] - (ends - counts), counts), np.repeat(group, counts)


def _by_group(group: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The order by an ascending group and, within it, by rank."""
    if rank.dtype.kind == "i":
        least = int(rank.min())
        width = int(rank.max()) - least + 1
        if (int(group[-1]) + 1) * width < 2**63:
            # Both in one number sort several times faster than one after the other.
            return np.argsort(group * width + (rank.astype(np.int64) - least), kind="stable")
    return np.lexsort((rank, group))


def _rank(column: pd.Series) -> np.ndarray:
    """Numbers in the order of the column's values, whatever their type."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy()
    if pd.api.types.is_datetime64_dtype(column.dtype):
        return column.to_numpy().view("int64")
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy()
    return pd.factorize(column, sort=True)[0]


def subject_runs(subjects: pd.Series) -> tuple[pd.Index, np.ndarray]:
    """The patients of a sorted column, and where the rows of each begin (int64 `[patient + 1]`, with the end)."""
    cells = subjects.array
    changes = np.flatnonzero(np.asarray(cells[1:] != cells[:-1], bool)) + 1
    starts = np.concatenate([[0], changes]) if len(cells) else changes
    return pd.Index(cells[starts]), np.append(starts, len(cells))


def runs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where equal rows that follow each other begin, and how many they are."""
    starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])[: len(rows)])
    return starts, np.diff(starts, append=len(rows))


def of_patients(table: pd.DataFrame, patients: pd.Index) -> pd.DataFrame:
    """The rows of these patients, of a table sorted by patient."""
    own, starts = subject_runs(table["subject_id"])
    ours = own.isin(patients)
    if ours.all():
        return table
    kept = table[np.repeat(ours, np.diff(starts))].reset_index(drop=True)
    return kept.assign(code=as_codes(kept["code"])) if "code" in kept.columns else kept


def bisect_runs(
    ascending: np.ndarray, low: np.ndarray, high: np.ndarray, sought: np.ndarray, side: Literal["left", "right"]
) -> np.ndarray:
    """For each i, where `sought[i]` belongs in `ascending[low[i]:high[i]]`, as `np.searchsorted` has it."""
    low, high = low.copy(), high.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        probe = ascending[np.where(open_, middle, 0)]
        beyond = (probe <= sought) if side == "right" else (probe < sought)
        low = np.where(open_ & beyond, middle + 1, low)
        high = np.where(open_ & ~beyond, middle, high)
    return low


def require_history(history: object) -> None:
    """Raise `InputError` unless this is a positive number of hours, or None."""
    if history is not None and not (isinstance(history, Real) and 0 < history < math.inf):
        raise InputError(f"history is {history}; expected a positive number of hours, or None for all.")


def reach(history: float | None) -> int | None:
    """A history in hours as whole microseconds; None for all."""
    # No time of the calendar lies further back than the largest, 146,000 years.
    return None if history is None else round(min(history * 3.6e9, 2.0**62))


def visible_events(events: pd.DataFrame, samples: pd.DataFrame, history: float | None) -> Window:
    """The events that each sample may see.

    Args:
        events: one event table, sorted by patient and then by available time.
        samples: the outcomes table, for its patients and prediction times.
        history: hours before the prediction time that inputs reach back; None for all of them.

    Returns:
        Events available at or before the prediction time, and not before the history began.
    """
    available = available_time(events).to_numpy().view("int64")
    predicted = samples["prediction_time"].to_numpy().view("int64")
    patients, starts = subject_runs(events["subject_id"])
    # A patient without events has an empty run, behind the last.
    starts = np.append(starts, len(events))
    patient = patients.get_indexer(samples["subject_id"])
    patient = np.where(patient < 0, len(patients), patient)
    low, high = starts[patient], starts[patient + 1]
    start, stop = low, bisect_runs(available, low, high, predicted, "right")
    if history is not None:
        start = bisect_runs(available, low, stop, predicted - reach(history), "left")
    counts = stop - start
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype("int64")
    rows = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], counts)
    microseconds = available[rows]
    microseconds -= np.repeat(predicted, counts)
    return Window(offsets, rows, np.divide(microseconds, 3.6e9, dtype="float64").astype("float32"))


def as_far_back(cohort: Cohort, history: float | None) -> Cohort:
    """The cohort with inputs so many hours back (None for all), as those were that a model was trained on.

    Raises:
        InputError: it is no cohort.
    """
    require_cohort(cohort)
    if cohort.history == history:
        return cohort
    # A copy, whose windows are not drawn yet.
    cohort = cohort.noted("inputs as far back as in training")
    cohort.history = history
    return cohort

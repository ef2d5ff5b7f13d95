"""The cohort: whose risk is predicted, when, from what, and who was left out on the way."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from . import splits
from .arguments import as_path, require_by_patient, require_counts, require_mask, require_table
from .checks import Excerpt, Exclusion, Policy
from .errors import InputError
from .outcomes import OutcomeKind, infer_kinds, told_as_numbers, typed_outcomes
from .subject_ids import of_one_type
from .tables import EVENT_TABLES, as_excerpt, no_patient_in_common, parse_rows, sorted_facts, sorted_samples
from .times import require_one_clock
from .windows import (
    EVENTS,
    Sample,
    Window,
    early_results,
    of_patients,
    require_history,
    sorted_events,
    subject_runs,
    visible_events,
)

if TYPE_CHECKING:
    from .pixels import WindowChoice
    from .store import Store


class Cohort:
    """Patients, what was known of them, and what is to be predicted.

    A *sample* is one row of `outcomes`: a patient at a prediction time. Everything that became
    available up to and including that moment may be used, and nothing later. The tables are
    checked once, here; what follows may rely on them.

    Args:
        outcomes: `subject_id`, `prediction_time`, and one column an outcome (blank = unknown).
        labs: `subject_id`, `time`, `code`, `value`, optional `unit`, `available_at`.
        notes: `subject_id`, `time`, `text`, optional `kind`, `available_at`.
        images: `subject_id`, `time`, `path`, optional `view`, `study_uid`, `available_at`.
        static: `subject_id` and further columns, numeric or categorical.
        history: hours before the prediction time that inputs reach back; None for all.
        outcome_kinds: the kind of an outcome where it should not be inferred, such as
            `{"stage": "categorical"}`.
        invalid: "raise" stops at the first row that cannot be used; "exclude" leaves such rows out
            and lists them in `exclusions`.

    Raises:
        InputError: a column is missing, or a row cannot be used; says which, and what to do.

    Example:
        >>> cohort = Cohort(outcomes=outcomes, labs=labs, history=48)
        >>> train, valid, test = cohort.split((0.7, 0.1, 0.2), seed=0)
    """

    def __init__(
        self,
        outcomes: pd.DataFrame | Excerpt,
        *,
        labs: pd.DataFrame | Excerpt | None = None,
        notes: pd.DataFrame | Excerpt | None = None,
        images: pd.DataFrame | Excerpt | None = None,
        static: pd.DataFrame | None = None,
        history: float | None = None,
        outcome_kinds: Mapping[str, str] | None = None,
        invalid: Policy = "raise",
    ) -> None:
        require_history(history)
        if invalid not in ("raise", "exclude"):
            raise InputError(f'invalid is {invalid!r}; expected "raise" or "exclude".')
        given = {"labs": labs, "notes": notes, "images": images, "static": static}
        given = {"outcomes": outcomes} | {name: table for name, table in given.items() if table is not None}
        excerpts = {name: as_excerpt(name, table, invalid) for name, table in given.items()}
        checks = {name: excerpt.check for name, excerpt in excerpts.items()}
        whole_numbers = all(excerpt.whole_numbers for excerpt in excerpts.values())
        tables = of_one_type({name: excerpt.table for name, excerpt in excerpts.items()}, checks, whole_numbers)
        self.history = history
        self.subject_splits: pd.Series | None = None
        """Patient to `train`, `tuning` or `held_out`, where the source came with such a division."""
        zones: dict[str, bool] = {}
        parsed = {name: parse_rows(table, checks[name], zones) for name, table in tables.items()}
        require_one_clock(zones)
        usable = parsed["outcomes"][checks["outcomes"].usable]
        rows = len(parsed["outcomes"])
        if not len(usable):
            # What is wrong with the rows is told first, if they are to be raised.
            checks["outcomes"].settle(parsed["outcomes"])
            raise InputError(
                f"outcomes has no rows that can be used (of {rows}). A cohort needs at least one patient and "
                "prediction time."
            )
        self.outcome_kinds: dict[str, OutcomeKind] = infer_kinds(usable, outcome_kinds or {})
        parsed["outcomes"] = typed_outcomes(parsed["outcomes"], self.outcome_kinds, checks["outcomes"])
        settled = {name: checks[name].settle(table) for name, table in parsed.items()}
        self.exclusions: tuple[Exclusion, ...] = tuple(left_out for _, some in settled.values() for left_out in some)
        """Rows that were left out because `invalid="exclude"` asked for it, or because nothing stands in them."""

        checked = {name: table for name, (table, _) in settled.items()}
        self.early_results = early_results(checked)
        """By table, results that were available before their time; there `available_at` is not believed."""
        self.outcomes = sorted_samples(checked["outcomes"])
        self.labs, self.notes, self.images = (sorted_events(checked.get(name)) for name in EVENT_TABLES)
        self.static = sorted_facts(checked.get("static"))
        self.decoded: dict[object, np.ndarray] = {}
        """Images that a reader has decoded, kept while the cohort lives."""
        self.store: Store | None = None
        """Where what readers make of it is kept, if not in memory."""
        steps = ("read", *told_as_numbers(self.outcomes, self.outcome_kinds, outcome_kinds or {}))
        self._attrition = [(step, self.subjects, len(self)) for step in steps]
        self._refuse_strangers_alone()
        before = {name: excerpt.strangers + len(checked[name]) for name, excerpt in excerpts.items()}
        self._drop_strangers()
        self._tell_strangers(before)

    # What is in it

    def __len__(self) -> int:
        return len(self.outcomes)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{name} ({kind})" for name, kind in self.outcome_kinds.items())
        tables_ = ", ".join(self.modalities) or "none"
        return f"Cohort({self.subjects} patients, {len(self)} samples; inputs: {tables_}; outcomes: {kinds})"

    @property
    def subjects(self) -> int:
        """The number of patients."""
        return int(self.outcomes["subject_id"].nunique())

    @property
    def modalities(self) -> tuple[str, ...]:
        """The input tables that have rows."""
        return tuple(
            name for name in (*EVENT_TABLES, "static") if getattr(self, name) is not None and len(getattr(self, name))
        )

    @property
    def attrition(self) -> pd.DataFrame:
        """Who was left, step by step: columns `step`, `patients`, `samples`."""
        return pd.DataFrame(self._attrition, columns=["step", "patients", "samples"])

    @cached_property
    def _patients(self) -> pd.Index:
        return pd.Index(np.sort(self.outcomes["subject_id"].unique()))

    def window(self, table: str) -> Window:
        """The events of a table ("labs", "notes", "images") that each sample may see."""
        if table not in EVENT_TABLES:
            raise InputError(f"There is no table of events {table!r}; expected labs, notes or images.")
        return self._windows[table]

    @cached_property
    def _windows(self) -> dict[str, Window]:
        windows = {}
        for name in EVENT_TABLES:
            events = getattr(self, name)
            if events is None:
                nothing = np.zeros(0)
                windows[name] = Window(np.zeros(len(self) + 1, int), nothing.astype(int), nothing.astype("float32"))
                continue
            windows[name] = visible_events(events, self.outcomes, self.history)
        return windows

    def sample(self, position: int) -> Sample:
        """Everything that was known of one sample, to look at.

        Raises:
            InputError: there is no sample at this position.
        """
        require_counts(position=position)
        if not 0 <= position < len(self):
            raise InputError(f"There is no sample {position}; the cohort's samples are 0 to {len(self) - 1}.")
        row = self.outcomes.iloc[position]
        events = {}
        for name, kind in EVENTS.items():
            window = self.window(name)
            span = slice(window.offsets[position], window.offsets[position + 1])
            table = getattr(self, name)
            fields = [field for field in kind._fields if table is not None and field in table.columns]
            rows = [] if table is None else table.iloc[window.rows[span]][fields].itertuples(index=False)
            blank = dict.fromkeys(kind._fields)
            events[name] = tuple(
                kind(**blank | {"hours": float(hours)} | _known(zip(fields, values, strict=True)))
                for hours, values in zip(window.hours[span], rows, strict=True)
            )
        facts: tuple = ()
        if self.static is not None:
            own = self.static[self.static["subject_id"] == row["subject_id"]].drop(columns="subject_id")
            facts = tuple(_known(own.iloc[0].items()).items()) if len(own) else ()
        return Sample(row["subject_id"], row["prediction_time"], static=facts, **events)

    def has_input(self) -> pd.DataFrame:
        """Which modalities each sample has: bool `[sample]` a column of "labs", "notes", "images", "static"."""
        present = {name: np.diff(self.window(name).offsets) > 0 for name in EVENT_TABLES}
        present["static"] = np.zeros(len(self), bool)
        if self.static is not None:
            stated = self.static.drop(columns="subject_id").notna().any(axis=1)
            present["static"] = self.outcomes["subject_id"].isin(self.static["subject_id"][stated]).to_numpy(bool)
        return pd.DataFrame(present)

    # Who stays

    def keep(self, mask: Sequence[bool] | np.ndarray | pd.Series, *, why: str) -> Cohort:
        """A cohort of the samples where `mask` (bool `[sample]`) is True; `why` enters the attrition log.

        Raises:
            InputError: the mask is not one truth value a sample, or nothing would be left.
        """
        return self._take(require_mask(mask, self.outcomes.index, why), why)

    def keep_with_input(self) -> Cohort:
        """The samples of which at least something is known at the prediction time."""
        return self.keep(self.has_input().any(axis=1), why="something known before the prediction time")

    def keep_readable_images(self, window: WindowChoice | None = None) -> Cohort:
        """The same samples without the image files that cannot be read; those enter `exclusions`.

        Reads every file once, in the `window` of the image encoder, in which one whose own is broken can be read.
        One that takes no such window is an `InputError`.
        """
        from .pixels import unreadable

        if self.images is None:
            return self
        reasons = [unreadable(path, window) for path in self.images["path"]]
        bad = np.array([reason is not None for reason in reasons], bool)
        derived = self._derive(images=self.images[~bad].reset_index(drop=True))
        derived.exclusions += tuple(Exclusion("images", row + 1, reasons[row]) for row in np.flatnonzero(bad))
        return derived.noted(f"unreadable images left out: {int(bad.sum())}")

    def with_store(self, folder: str | Path, *, unreadable: Policy | None = None) -> Cohort:
        """The same cohort, whose arrays are made once, kept in a folder, and mapped from there.

        So are those of its parts (`split`, `keep`). Several cohorts may share a folder.

        Args:
            folder: a store, or a new or empty folder.
            unreadable: "raise" stops at an image file that cannot be read; "exclude" leaves such files
                out and lists them in `PreparedSamples.exclusions`. None: as last for this folder ("raise").

        Raises:
            InputError: the folder holds something else, or a store of another version.
        """
        from .store import Store

        return self._derive(store=Store.open(folder, unreadable))

    def with_splits(self, table: pd.DataFrame) -> Cohort:
        """The same cohort with `subject_splits` from a table of `subject_id` and `split`. See `splits`."""
        return self._derive(subject_splits=splits.as_subject_splits(table, self.outcomes["subject_id"]))

    def with_tables(self, why: str, **changed: pd.DataFrame | None) -> Cohort:
        """The same samples with other rows in `labs`, `notes`, `images` or `static` (None for none).

        The new tables are subsets or edits of this cohort's own: they are sorted again, not checked.
        """
        unknown = set(changed) - {*EVENT_TABLES, "static"}
        if unknown:
            raise InputError(f"Unknown table {min(unknown)}; expected labs, notes, images or static.")
        for name in (name for name, table in changed.items() if table is not None):
            require_table(name, changed[name])
        fresh = {name: (sorted_facts if name == "static" else sorted_events)(table) for name, table in changed.items()}
        derived = self._derive(**fresh)
        derived._drop_strangers()
        return derived.noted(why)

    def rename_subjects(self, names: pd.Series) -> Cohort:
        """The same cohort with other patient ids.

        Args:
            names: the new id of each patient, by the old one, in the same order: a smaller old id
                has a smaller new one.

        Raises:
            InputError: a patient has no new id, or the order is another.
        """
        require_by_patient("The new patient ids", names)
        new = names.reindex(self._patients)
        if new.isna().any() or not new.is_monotonic_increasing or not new.is_unique:
            raise InputError("The new patient ids must be one for each patient, unlike each other, in the old order.")
        changed = {}
        for name in ("outcomes", *EVENT_TABLES, "static"):
            table = getattr(self, name)
            if table is not None:
                changed[name] = table.assign(subject_id=new.reindex(table["subject_id"]).array)
        if self.subject_splits is not None:
            kept = self.subject_splits[self.subject_splits.index.isin(new.index)]
            changed["subject_splits"] = kept.set_axis(new.reindex(kept.index).array)
        return self._derive(**changed)

    def _take(self, mask: np.ndarray, why: str) -> Cohort:
        kept = self._derive(outcomes=self.outcomes[mask].reset_index(drop=True))
        kept._drop_strangers()
        return kept.noted(why)

    def _derive(self, **changes: object) -> Cohort:
        derived = copy.copy(self)
        for cached in ("_patients", "_windows"):
            derived.__dict__.pop(cached, None)
        derived.decoded = {}
        derived._attrition = list(self._attrition)
        for name, value in changes.items():
            setattr(derived, name, value)
        return derived

    def noted(self, step: str) -> Cohort:
        """The same cohort with one more line in the attrition log."""
        derived = self._derive()
        derived._attrition.append((step, self.subjects, len(self)))
        return derived

    def with_earlier_steps(self, steps: Iterable[tuple[str, int, int]]) -> Cohort:
        """The same cohort with its source's steps (step, patients, samples) at the head of the attrition log."""
        return self._derive(_attrition=[*steps, *self._attrition])

    def _refuse_strangers_alone(self) -> None:
        """Raise `InputError` where a table has rows and none is of a patient of the outcomes."""
        for name in self.modalities:
            patients, _ = subject_runs(getattr(self, name)["subject_id"])
            if not patients.isin(self._patients).any():
                raise no_patient_in_common(name)

    def _drop_strangers(self) -> None:
        """Remove the rows of patients of whom nothing is to be predicted."""
        for name in (*EVENT_TABLES, "static"):
            table = getattr(self, name)
            if table is not None:
                setattr(self, name, of_patients(table, self._patients))

    def _tell_strangers(self, before: Mapping[str, int]) -> None:
        """Note, of each table that had so many rows before, how many are of patients who have no outcome."""
        for name in (*EVENT_TABLES, "static"):
            if name in before and (gone := before[name] - len(getattr(self, name))):
                step = f"{name}: {gone:,} rows left out, of patients who are not in outcomes"
                self._attrition.append((step, self.subjects, len(self)))

    # Divisions, always by patient

    def split(self, fractions: Sequence[float] = (0.7, 0.1, 0.2), *, seed: int = 0) -> tuple[Cohort, ...]:
        """Divide the patients at random; a patient is in one part only. See `splits.by_fraction`."""
        return splits.by_fraction(self, fractions, seed)

    def split_by_time(self, *dates: str | pd.Timestamp) -> tuple[Cohort, ...]:
        """Divide at dates of prediction, earliest part first. See `splits.by_time`."""
        return splits.by_time(self, dates)

    def split_by_site(self, column: str, *sites: Sequence[str]) -> tuple[Cohort, ...]:
        """Divide by a static column such as the hospital. See `splits.by_site`."""
        return splits.by_site(self, column, sites)

    def split_by_table(self, table: pd.DataFrame | None = None) -> tuple[Cohort, ...]:
        """Divide as a table of `subject_id` and `split` says. See `splits.by_table`."""
        return splits.by_table(self, table)

    def folds(self, count: int, *, seed: int = 0) -> Iterator[tuple[Cohort, Cohort]]:
        """Cross-validation by patient: `count` pairs of (rest, fold). See `splits.folds`."""
        return splits.folds(self, count, seed)

    # Files

    @classmethod
    def read(cls, folder: str | Path, **settings: object) -> Cohort:
        """Read a folder of CSV or Parquet tables, or a MEDS dataset.

        Labs, notes and images are read piece by piece, and of other patients nothing is kept. Where
        `history` is given, neither is what no sample sees: tables of any size are then read in the
        memory that the samples need. Without it, all rows of the patients are kept in memory.

        Args:
            folder: holds `outcomes.csv` (or `.parquet`) and any of labs, notes, images, static; or
                MEDS's `data/` and `metadata/`. Relative image paths are taken from this folder.
            settings: `history`, `outcome_kinds` and `invalid` of `Cohort`.

        Raises:
            InputError: the folder or a table is missing or cannot be used.
        """
        from .files import read_cohort

        return read_cohort(cls, as_path("folder", folder), settings)

    def write(self, folder: str | Path) -> None:
        """Write as a MEDS 0.4 dataset; `Cohort.read` gives an equal cohort back. See `meds`."""
        from .meds import write_meds

        write_meds(self, as_path("folder", folder))


def _known(pairs: Iterator[tuple[str, object]]) -> dict[str, object]:
    return {name: value for name, value in pairs if not pd.isna(value)}

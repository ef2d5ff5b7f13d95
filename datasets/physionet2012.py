"""The PhysioNet/Computing in Cardiology Challenge 2012: 48 hours of intensive care, and who died."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .cohort import Cohort
from .errors import InputError
from .files import naming_folder
from .physionet2012_files import SETS, Events, read_outcomes, read_set

__all__ = ["read_physionet2012"]

ADMISSION = pd.Timestamp("2000-01-01")
"""The published times are hours and minutes since admission to the unit; this date is fictional."""

HOURS = 48
"""The risk is predicted this many hours after admission, from everything since admission."""

NOT_RECORDED = -1

DESCRIPTORS = {"Age": "age", "Gender": "gender", "Height": "height", "Weight": "weight", "ICUType": "icu_type"}
LEVELS = {
    "gender": {0: "female", 1: "male"},
    "icu_type": {
        1: "Coronary Care Unit",
        2: "Cardiac Surgery Recovery Unit",
        3: "Medical ICU",
        4: "Surgical ICU",
    },
}

POSSIBLE = {
    # Adults: the shortest and the tallest on record measured 54.6 and 272 cm, weighed 2.1 and 635 kg.
    "Height": (50.0, 272.0),
    "Weight": (2.0, 635.0),
    # Surgery under deep hypothermia cools to 10 °C and more; the highest fever survived was 46.5 °C.
    "Temp": (9.0, 47.0),
    # Survivors have been reported from pH 6.3 to 8.
    "pH": (6.0, 9.0),
}
"""Closed ranges (cm, kg, °C, pH) beyond which a number cannot be what its parameter's unit says."""


def read_physionet2012(folder: str | Path, *, sets: Sequence[str] = ("a",)) -> Cohort:
    """Read stays of the PhysioNet Challenge 2012: in-hospital death, predicted 48 h after admission.

    What the tables hold, and what was decided on the way:

    - `outcomes`: `died` (binary) alone. SAPS-I, SOFA, Length_of_stay and Survival of the published
      outcomes are no inputs: the last two lie in the future.
    - `labs`: the time series, code = the parameter's name, value in its published unit. Several
      readings of one parameter at one minute are kept as simultaneous events. Readings later than
      48:00, if any, are kept and never seen. MechVent is an indicator, always 1.
    - `static`: `age` (years; 90 stands for 90 and over), `gender`, `height` (cm), `weight` (kg, at
      admission), `icu_type`. Weight is published both as a descriptor and as a series: the first
      Weight at minute 0 is the descriptor, every other one a reading.
    - A stay of which only descriptors were recorded is kept, with static facts alone.
    - -1 means not recorded. It is published for descriptors; in a series it is left out as well,
      since none of the parameters can be -1.
    - Readings in `POSSIBLE`'s four parameters that no living adult can have (a height of 1.8 cm, a
      weight of 0 kg, a temperature of -17.8 °C, a pH of 735) are left out, not corrected: the unit
      that was meant is a guess. All other readings stay as published, wild ones included; the lab
      reader scales by quantiles, which they cannot move.

    Each kind of row left out is counted in `attrition`.

    Args:
        folder: holds `set-a` and so on, as published (`set-a/*.txt` with `Outcomes-a.txt` in the
            folder or in `set-a`) or as Parquet (`set-a/events.parquet`: record_id, minutes,
            parameter, value; `set-a/outcomes.parquet`: record_id, in_hospital_death).
        sets: which of "a", "b", "c" to read. Their record numbers do not overlap; a table of
            record number and split divides them (`Cohort.split_by_table`).

    Returns:
        One sample a stay. `subject_id` is the record number, times count from 1 January 2000, a
        fictional date of admission; `history` is 48 h.

    Raises:
        InputError: a set, or its outcomes, is not there; a line or row is malformed; a record has
            no outcome.

    Example:
        >>> cohort = read_physionet2012("challenge-2012", sets=("a", "b"))

    Source: Silva et al., Predicting In-Hospital Mortality of ICU Patients, Computing in Cardiology
        39:245-248 (2012), https://physionet.org/content/challenge-2012/1.0.0/
    """
    letters = _checked_sets(sets)
    with naming_folder(Path(folder)):
        return _read(Path(folder), letters)


def _read(folder: Path, letters: Sequence[str]) -> Cohort:
    parts = [read_set(folder, letter) for letter in letters]
    died = pd.concat([outcomes for _, outcomes in parts])
    if died.index.has_duplicates:
        raise InputError(
            f"{int(died.index.duplicated().sum())} records stand in more than one of the sets {', '.join(letters)}. "
            "A record is in one set: restore the folder from the published files."
        )
    events = Events.joined([events for events, _ in parts])
    labs, static, left_out = _settle(events)
    absent = ~died.index.isin(events.records)
    if absent.all():
        raise InputError(f"No record of the sets {', '.join(letters)} has an outcome. Take both from one release.")
    left_out = {"outcomes without a record": int(absent.sum())} | left_out
    died = died[~absent]
    outcomes = pd.DataFrame(
        {
            "subject_id": died.index.to_numpy(),
            "prediction_time": ADMISSION + pd.Timedelta(HOURS, "h"),
            "died": died.to_numpy(),
        }
    )
    cohort = Cohort(outcomes, labs=labs, static=static, history=HOURS, outcome_kinds={"died": "binary"})
    for what, count in left_out.items():
        if count:
            cohort = cohort.noted(f"{what} left out: {count}")
    return cohort


def sets_in(folder: str | Path) -> tuple[str, ...]:
    """Which of the sets a, b, c the folder has."""
    return tuple(letter for letter in SETS if (Path(folder) / f"set-{letter}").is_dir())


def stays_of(folder: str | Path, letter: str) -> np.ndarray:
    """The record numbers of one set, int64, from its outcomes.

    Raises:
        InputError: the set or its outcomes are not there.
    """
    return read_outcomes(Path(folder), letter).index.to_numpy()


def _checked_sets(sets: Sequence[str]) -> tuple[str, ...]:
    letters = tuple(sets)
    if not letters or len(set(letters)) != len(letters) or not set(letters) <= set(SETS):
        raise InputError(f"sets is {letters}; expected one or more of {', '.join(SETS)}, each once.")
    return letters


def _settle(events: Events) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Labs, static facts, and how many rows of each kind were left out."""
    is_descriptor = events.named(*(set(DESCRIPTORS) - {"Weight"}))
    # The descriptor of a record is its first Weight at minute 0; a reading may stand at that minute too.
    weights = np.flatnonzero(events.named("Weight"))
    weights = weights[events.minutes[weights] == 0]
    is_descriptor[weights[~pd.Series(events.record[weights]).duplicated().to_numpy()]] = True

    nameless = events.named("")
    unrecorded = (events.value == NOT_RECORDED) & ~nameless
    left_out = {
        "rows with a blank parameter": int(nameless.sum()),
        "readings of -1 in a series": int((unrecorded & ~is_descriptor).sum()),
    }
    usable = ~(nameless | unrecorded)
    for name, (low, high) in POSSIBLE.items():
        rows = np.flatnonzero(events.named(name) & usable)
        rows = rows[(events.value[rows] < low) | (events.value[rows] > high)]
        usable[rows] = False
        left_out[f"impossible values of {name}"] = len(rows)

    series = usable & ~is_descriptor & ~events.named("RecordID")
    microseconds = events.minutes[series].astype(np.int64)
    microseconds *= 60_000_000
    microseconds += ADMISSION.to_numpy().astype("datetime64[us]").view(np.int64)
    labs = {
        "subject_id": events.record[series],
        "time": microseconds.view("datetime64[us]"),
        "code": pd.Categorical.from_codes(events.parameter[series], events.names),
        "value": events.value[series],
    }
    return pd.DataFrame(labs, copy=False), _static(events, is_descriptor, usable), left_out


def _static(events: Events, is_descriptor: np.ndarray, usable: np.ndarray) -> pd.DataFrame:
    """One row a record; what was not recorded or cannot be is missing."""
    rows = np.flatnonzero(is_descriptor)
    names = pd.Categorical.from_codes(events.parameter[rows], events.names)
    stated = pd.DataFrame({"record": events.record[rows], "parameter": names, "value": events.value[rows]})
    doubled = stated.duplicated(["record", "parameter"])
    if doubled.any():
        raise InputError(
            f"{stated.loc[doubled, 'record'].nunique()} records state {stated.loc[doubled, 'parameter'].iloc[0]} "
            "more than once, and a fact has one value. Restore the published files."
        )
    columns = {}
    for parameter, column in DESCRIPTORS.items():
        own = stated[(stated["parameter"] == parameter) & usable[rows]]
        facts = pd.Series(own["value"].to_numpy(), index=own["record"])
        levels = LEVELS.get(column)
        if levels is not None and not facts.isin(list(levels)).all():
            raise InputError(
                f"A {parameter} is {facts[~facts.isin(list(levels))].iloc[0]:g}; expected one of "
                f"{', '.join(map(str, levels))}, or {NOT_RECORDED} where not recorded. Correct the record."
            )
        columns[column] = facts if levels is None else facts.map(levels).astype("category")
    static = pd.DataFrame(columns, index=pd.Index(events.records))
    return static.rename_axis("subject_id").reset_index()

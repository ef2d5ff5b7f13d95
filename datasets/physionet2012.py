"""The PhysioNet/Computing in Cardiology Challenge 2012: 48 hours of intensive care, and who died."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_float_dtype, is_integer_dtype, union_categoricals
from pyarrow import csv

from .cohort import Cohort
from .errors import InputError
from .files import read_table

__all__ = ["read_physionet2012"]

SETS = ("a", "b", "c")

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

HEADER = "Time,Parameter,Value"
_TIME = re.compile(r"(\d{2,4}):([0-5]\d)", re.ASCII)
_PARAMETER = re.compile(r"[A-Za-z0-9]*", re.ASCII)
_VALUE = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
_WORDS = pa.dictionary(pa.int32(), pa.string())


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
    parts = [_read_set(Path(folder), letter) for letter in letters]
    died = pd.concat([outcomes for _, outcomes in parts])
    if died.index.has_duplicates:
        raise InputError(
            f"{int(died.index.duplicated().sum())} records stand in more than one of the sets {', '.join(letters)}. "
            "A record is in one set: restore the folder from the published files."
        )
    events = _joined([events for events, _ in parts])
    labs, static, left_out = _settle(events)
    absent = ~died.index.isin(events["record"].unique())
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
    return _read_outcomes(Path(folder), letter).index.to_numpy()


def _checked_sets(sets: Sequence[str]) -> tuple[str, ...]:
    letters = tuple(sets)
    if not letters or len(set(letters)) != len(letters) or not set(letters) <= set(SETS):
        raise InputError(f"sets is {letters}; expected one or more of {', '.join(SETS)}, each once.")
    return letters


def _read_set(folder: Path, letter: str) -> tuple[pd.DataFrame, pd.Series]:
    """Events (record, minutes, parameter, value, in file order) and outcomes (0 or 1, by record)."""
    home = folder / f"set-{letter}"
    if not home.is_dir():
        have = ", ".join(f"set-{other}" for other in SETS if (folder / f"set-{other}").is_dir()) or "none of the sets"
        raise InputError(f"There is no folder {home}; {folder} holds {have}. Check the path, or ask for another set.")
    parquet, texts = home / "events.parquet", sorted(home.glob("[0-9]*.txt"))
    if parquet.is_file() and texts:
        raise InputError(f"{home} has both events.parquet and text files. Remove one of them.")
    if parquet.is_file():
        events = _parquet_events(parquet)
    elif texts:
        events = _text_events(texts)
    else:
        raise InputError(f"{home} has neither events.parquet nor record files such as 132539.txt. Put them there.")
    outcomes = _read_outcomes(folder, letter)
    records = events["record"].unique()
    unknown = int((~np.isin(records, outcomes.index)).sum())
    if unknown:
        raise InputError(
            f"{unknown} of {len(records)} records of {home} have no row in the outcomes. "
            "Take both from one release, or move those records elsewhere."
        )
    return events, outcomes


def _read_outcomes(folder: Path, letter: str) -> pd.Series:
    home, name = folder / f"set-{letter}", f"Outcomes-{letter}.txt"
    if (home / "events.parquet").is_file():
        return _outcomes([home / "outcomes.parquet"], "record_id", "in_hospital_death")
    return _outcomes([folder / name, home / name], "RecordID", "In-hospital_death")


def _parquet_events(path: Path) -> pd.DataFrame:
    table = read_table(path)
    _require_columns(table, path, ("record_id", "minutes", "parameter", "value"))
    for column in ("record_id", "minutes"):
        if not is_integer_dtype(table[column].dtype) or table[column].isna().any() or (table[column] < 0).any():
            raise InputError(f"{path}: {column} must be whole numbers from 0, without blanks. Correct the column.")
    numeric = is_float_dtype(table["value"].dtype) or is_integer_dtype(table["value"].dtype)
    finite = (
        np.isfinite(table["value"].to_numpy(np.float64, na_value=np.nan)) if numeric else np.zeros(len(table), bool)
    )
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0]) + 1
        raise InputError(f"{path}, data row {row}: value is not a finite number. Correct or remove the row.")
    parameter = table["parameter"].astype("category")
    if parameter.isna().any():
        parameter = parameter.cat.add_categories([""] if "" not in parameter.cat.categories else []).fillna("")
    columns = {"minutes": table["minutes"], "parameter": parameter, "value": table["value"].astype("float32")}
    return pd.DataFrame({"record": table["record_id"].astype("int64"), **columns})


def _text_events(paths: Sequence[Path]) -> pd.DataFrame:
    """Events of many record files, in file order, parsed as one text.

    No work is left for each file but reading it and counting lines. Only when the whole cannot be
    parsed are the files gone through line by line, to name the line.
    """
    texts = [_text(path) for path in paths]
    events = _parse_together(texts)
    if events is None:
        raise next(_malformed_lines(paths, texts))
    is_id = (events["parameter"] == "RecordID").to_numpy()
    files, stated = events["record"].to_numpy()[is_id], events["value"].to_numpy()[is_id]
    for position, path in enumerate(paths):
        low, high = np.searchsorted(files, [position, position + 1])
        if high - low != 1 or str(int(stated[low])) != path.stem:
            raise InputError(f"{path} does not state its own name as RecordID, once. Restore the published file.")
    records = stated.astype("int64")[events["record"].to_numpy()]
    events = events.assign(record=records, value=events["value"].astype("float32"))
    return events[~is_id].reset_index(drop=True)


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes().rstrip()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Check the file and its permissions.") from error


def _parse_together(texts: Sequence[bytes]) -> pd.DataFrame | None:
    """All lines, with the number of the file as `record`; None if any line is malformed."""
    heads = {text[: len(HEADER) + 2].split(b"\n")[0].rstrip(b"\r") for text in texts}
    counts = [text.count(b"\n") for text in texts]
    if heads != {HEADER.encode()} or min(counts) == 0:
        return None
    lines = b"\n".join(text.partition(b"\n")[2] for text in texts)
    names = ["time", "parameter", "value"]
    try:
        table = csv.read_csv(
            pa.py_buffer(lines),
            read_options=csv.ReadOptions(column_names=names),
            parse_options=csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(
                column_types=dict(zip(names, (_WORDS, _WORDS, pa.float64()), strict=True)),
                null_values=[],
            ),
        )
    except pa.ArrowInvalid:
        return None
    events = table.unify_dictionaries().to_pandas()
    times = [_TIME.fullmatch(time) for time in events["time"].cat.categories]
    named = all(_PARAMETER.fullmatch(name) for name in events["parameter"].cat.categories)
    if len(events) != sum(counts) or not all(times) or not named or not np.isfinite(events["value"]).all():
        return None
    minutes = np.array([60 * int(time[1]) + int(time[2]) for time in times], "int64")
    columns = {"record": np.repeat(np.arange(len(texts)), counts), "minutes": minutes[events["time"].cat.codes]}
    return pd.DataFrame(columns | {"parameter": events["parameter"], "value": events["value"]})


def _malformed_lines(paths: Sequence[Path], texts: Sequence[bytes]) -> Iterator[InputError]:
    for path, text in zip(paths, texts, strict=True):
        header, *lines = text.decode(errors="replace").replace("\r\n", "\n").split("\n")
        if header != HEADER or not lines:
            yield InputError(f"{path}, line 1: expected the header {HEADER} and lines below it. Restore the file.")
        for number, line in enumerate(lines, 2):
            problem = _problem(line)
            if problem:
                yield InputError(f"{path}, line {number}: {problem}. Correct the line or restore the file.")


def _problem(line: str) -> str | None:
    """What is wrong with one line; its content stays out of the message."""
    cells = line.split(",")
    if len(cells) != 3:
        return f"expected time, parameter and value, found {len(cells)} cells"
    if not _TIME.fullmatch(cells[0]):
        return "the time is not hours and minutes since admission (HH:MM)"
    if not _PARAMETER.fullmatch(cells[1]):
        return "the parameter is not a plain name of letters and digits"
    if not _VALUE.fullmatch(cells[2]) or not math.isfinite(float(cells[2])):
        return "the value is not a finite number"
    return None


def _outcomes(paths: Sequence[Path], record: str, death: str) -> pd.Series:
    """In-hospital death, int8 by record number, from the first of `paths` that is there."""
    found = [path for path in paths if path.is_file()]
    if not found:
        raise InputError(f"The outcomes are missing: there is no file {paths[0]}. Put it there.")
    path = found[0]
    table = read_table(path)
    _require_columns(table, path, (record, death))
    records, died = (pd.to_numeric(table[column], errors="coerce") for column in (record, death))
    wrong = (records.isna() | (records % 1 != 0) | ~died.isin([0, 1])).to_numpy()
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0]) + 1
        raise InputError(
            f"{path}, data row {row}: expected a record number and 0 or 1 in {death}. Restore the published file."
        )
    outcomes = pd.Series(died.to_numpy("int8"), index=pd.Index(records.astype("int64"), name="record"))
    if outcomes.index.has_duplicates:
        row = int(np.flatnonzero(outcomes.index.duplicated())[0]) + 1
        raise InputError(f"{path}, data row {row}: the record stands there twice. Keep one row a record.")
    return outcomes


def _require_columns(table: pd.DataFrame, path: Path, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]}; it needs {', '.join(columns)}.")


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    if len(parts) == 1:
        return parts[0]
    rest = pd.concat([part.drop(columns="parameter") for part in parts], ignore_index=True)
    return rest.assign(parameter=union_categoricals([part["parameter"] for part in parts]))


def _settle(events: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Labs, static facts, and how many rows of each kind were left out."""
    parameter, value = events["parameter"], events["value"].to_numpy()
    is_descriptor = parameter.isin(set(DESCRIPTORS) - {"Weight"}).to_numpy().copy()
    # The descriptor of a record is its first Weight at minute 0; a reading may stand at that minute too.
    weights = np.flatnonzero(((parameter == "Weight") & (events["minutes"] == 0)).to_numpy())
    is_descriptor[weights[~events["record"].iloc[weights].duplicated().to_numpy()]] = True

    nameless = (parameter == "").to_numpy()
    unrecorded = (value == NOT_RECORDED) & ~nameless
    impossible = {name: _is_impossible(name, parameter, value) & ~unrecorded for name in POSSIBLE}
    left_out = {
        "rows with a blank parameter": int(nameless.sum()),
        "readings of -1 in a series": int((unrecorded & ~is_descriptor).sum()),
    } | {f"impossible values of {name}": int(rows.sum()) for name, rows in impossible.items()}

    usable = ~(nameless | unrecorded | np.logical_or.reduce(list(impossible.values())))
    series = events[usable & ~is_descriptor]
    labs = pd.DataFrame(
        {
            "subject_id": series["record"],
            "time": ADMISSION + series["minutes"].to_numpy("timedelta64[m]").astype("timedelta64[us]"),
            "code": series["parameter"].astype("str"),
            "value": series["value"],
        }
    )
    return labs, _static(events, is_descriptor, usable), left_out


def _is_impossible(name: str, parameter: pd.Series, value: np.ndarray) -> np.ndarray:
    low, high = POSSIBLE[name]
    return (parameter == name).to_numpy() & ((value < low) | (value > high))


def _static(events: pd.DataFrame, is_descriptor: np.ndarray, usable: np.ndarray) -> pd.DataFrame:
    """One row a record; what was not recorded or cannot be is missing."""
    stated = events[is_descriptor]
    doubled = stated.duplicated(["record", "parameter"])
    if doubled.any():
        raise InputError(
            f"{stated.loc[doubled, 'record'].nunique()} records state {stated.loc[doubled, 'parameter'].iloc[0]} "
            "more than once, and a fact has one value. Restore the published files."
        )
    columns = {}
    for parameter, column in DESCRIPTORS.items():
        rows = stated[(stated["parameter"] == parameter) & usable[is_descriptor]]
        facts = pd.Series(rows["value"].to_numpy(), index=rows["record"])
        levels = LEVELS.get(column)
        if levels is not None and not facts.isin(list(levels)).all():
            raise InputError(
                f"A {parameter} is {facts[~facts.isin(list(levels))].iloc[0]:g}; expected one of "
                f"{', '.join(map(str, levels))}, or {NOT_RECORDED} where not recorded. Correct the record."
            )
        columns[column] = facts if levels is None else facts.map(levels).astype("category")
    static = pd.DataFrame(columns, index=pd.Index(events["record"].unique()))
    return static.rename_axis("subject_id").reset_index()

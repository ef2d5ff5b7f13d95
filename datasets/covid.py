"""The COVID-19 image data collection: who will need intensive care, judged on the day of an image."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from .cohort import Cohort
from .errors import InputError
from .files import read_table
from .leakage import names_later_day, remove_outcome_text, sentences

__all__ = ["covid_sources", "read_covid"]

DAY_ZERO = pd.Timestamp("2020-01-01")
"""The collection counts days (`offset`) from first symptoms or admission; this date is fictional."""

SAME_PATIENT = {"178": "97"}
"""One case that was published twice, under two numbers."""

UNKNOWN = ("", "?", "Not visible", "Would have been stated", "Unclear")
"""Words of the collection for what its source does not say. "Would have been stated" is the
collectors' guess at "no" from silence; it is no observation, and stays unknown here."""

LABS = {
    "temperature": "Cel",
    "pO2_saturation": "%",
    "leukocyte_count": "10*9/L",
    "neutrophil_count": "10*9/L",
    "lymphocyte_count": "10*9/L",
}
"""Columns of measurements and their units (UCUM)."""

PRESSURE_SOURCE = "ml-workgroup/covid-19-image-repository"
"""In `pO2_saturation`, the rows from this repository (Hannover) reach from 20 to 340, in steps of 5: no
percentage of saturation. They are taken as partial pressures of oxygen in mmHg, with the code `pO2`."""

_COLUMNS = ("patientid", "offset", "sex", "age", "went_icu", *LABS, "view", "modality", "location", "finding")
_COLUMNS += ("image", "url", "clinical_notes")


def read_covid(folder: str | Path, *, keep_outcome_text: bool = False) -> Cohort:
    """Read the COVID-19 image collection: intensive care (`icu`), predicted on each day with an image.

    One sample is a patient and a day with at least one image; it sees everything up to that day.

    - `outcomes`: `icu` (binary) is went_icu, Y or N: intensive care at any point of the illness.
      Blank of patients of whom it is not known, or whose rows contradict each other.
    - `images`: all kinds, CT slices among them; `view` as published.
    - `labs`: temperature (°C), pO2_saturation (%) and pO2 (mmHg; see `PRESSURE_SOURCE`), leukocyte,
      neutrophil and lymphocyte counts (10^9/L), on the day of the row where they stand.
    - `notes`: clinical_notes, on the day of the row where they stand. They are published case
      histories, written when the end was known, so they are cut back to what the day may have known:
      a "Discussion:" goes to the end; before day 0, sentences that a later row repeats; sentences
      that speak of a later day; and sentences that tell the outcome (`remove_outcome_text`).
    - `static`: `sex` (M, F) and `age` (years). Where a patient's rows contradict each other, blank.
    - Survival, intubated, extubated, needed_supplemental_O2 and other_notes are no inputs: the former
      lie in the future, the last names the source. Finding, location and source say which
      publication an image is from, and publications differ in who went to intensive care;
      `covid_sources` gives them for that audit.

    Rows without a day: of a patient none of whose images has one, the first published image alone is
    kept, on day 0; other undated images may be from after the outcome and are left out. One number
    can cover two cases (197 and 380 each come from two publications); they stay one patient, so that
    no division can part them should they be one.

    What remains: the collection does not say on which day intensive care began. Many later images,
    and some first ones, were taken there, and show tubes or were taken supine at the bedside; from them
    a model recognises intensive care rather than foreseeing it. The first day of each patient is
    the least affected (see the example). The sources choose remarkable cases: no score on this
    collection says how a model would do in a hospital, and its authors ask to claim none.

    Args:
        folder: holds `metadata.csv` and `images/`.
        keep_outcome_text: leave the notes as published, to measure what they give away.

    Returns:
        `subject_id` is the collection's patientid; days count from 1 January 2020, a fictional date.

    Raises:
        InputError: the table, a column or an image file is not there, or a value is not a number or
            a word that the collection uses; names the row.

    Example:
        >>> cohort = read_covid("covid")
        >>> first = cohort.keep(~cohort.outcomes["subject_id"].duplicated(), why="first day with an image")

    Source: Cohen et al., COVID-19 Image Data Collection: Prospective Predictions Are the Future,
        arXiv:2006.11988 (2020), https://github.com/ieee8023/covid-chestxray-dataset
    """
    table = _read_metadata(Path(folder))
    dated = _dated(table)
    day = DAY_ZERO + pd.to_timedelta(dated["day"], unit="D").astype("timedelta64[us]")
    events = pd.DataFrame({"subject_id": dated["subject_id"], "time": day})
    icu = _one_value(table, "icu")
    outcomes = events.drop_duplicates(ignore_index=True).rename(columns={"time": "prediction_time"})
    notes, changes = _notes(dated.assign(time=day), keep_outcome_text)
    cohort = Cohort(
        outcomes.assign(icu=outcomes["subject_id"].map(icu)),
        labs=_labs(dated, events),
        notes=notes,
        images=events.assign(path=dated["path"], view=dated["view"]),
        static=pd.DataFrame({"sex": _one_value(table, "sex"), "age": _one_value(table, "age")}).reset_index(),
        outcome_kinds={"icu": "binary"},
    )
    undated = len(table) - len(dated)
    for change in [f"images of unknown day left out: {undated}"] * bool(undated) + changes:
        cohort = cohort.noted(change)
    return cohort


def covid_sources(folder: str | Path) -> pd.DataFrame:
    """Where each image comes from, to audit what the source alone gives away; never an input.

    Args:
        folder: holds `metadata.csv` and `images/`.

    Returns:
        One row an image: `subject_id` (text), `path` (as in the cohort's images, to join by), `source`
        (the host of its page), `location`, `finding`, `view`, `modality` ("X-ray" or "CT"); unknown is
        missing.

    Raises:
        InputError: as `read_covid`.
    """
    table = _read_metadata(Path(folder))
    return table[["subject_id", "path", "source", "location", "finding", "view", "modality"]]


def _read_metadata(folder: Path) -> pd.DataFrame:
    """The published table with checked values, one row an image."""
    path = folder / "metadata.csv"
    table = read_table(path)
    missing = [column for column in _COLUMNS if column not in table.columns]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]}. Restore the published table.")
    table = table.apply(lambda column: column.fillna("").str.strip())
    words = table.apply(lambda column: column.mask(column.isin(UNKNOWN)))
    _refuse(path, table["patientid"] == "", "patientid is blank", "Every image must name its patient")
    _refuse(
        path, ~words["went_icu"].isin(["Y", "N"]) & words["went_icu"].notna(), "went_icu is not Y or N", "Correct it"
    )
    files = [folder / image for image in table["image"]]
    lost = pd.Series([not file.is_file() for file in files], index=table.index)
    _refuse(path, lost, "the image file is not there", "Restore it, or remove the row")
    numbers = {column: _numbers(path, words, column) for column in ("offset", "age", *LABS)}
    return words.assign(
        **numbers,
        subject_id=table["patientid"].replace(SAME_PATIENT),
        path=[str(file.resolve()) for file in files],
        day=numbers["offset"],
        icu=words["went_icu"].map({"Y": 1.0, "N": 0.0}),
        source=words["url"].map(lambda url: urlsplit(url).netloc.removeprefix("www."), na_action="ignore"),
        clinical_notes=table["clinical_notes"],
    )


def _refuse(path: Path, rows: pd.Series, reason: str, remedy: str) -> None:
    if rows.any():
        row = int(rows.to_numpy().argmax()) + 1
        more = f" (and {int(rows.sum()) - 1} more such rows)" if rows.sum() > 1 else ""
        raise InputError(f"{path}, data row {row}{more}: {reason}. {remedy}.")


def _numbers(path: Path, words: pd.DataFrame, column: str) -> pd.Series:
    numbers = pd.to_numeric(words[column], errors="coerce").astype("float64")
    finite = numbers.abs() < float("inf")
    _refuse(path, words[column].notna() & ~finite, f"{column} is not a number", "Correct it, or leave it blank")
    return numbers


def _dated(table: pd.DataFrame) -> pd.DataFrame:
    """The images whose day is known, and the first image of patients without any day, on day 0."""
    undated = table["day"].isna()
    none_dated = undated.groupby(table["subject_id"]).transform("all")
    first = ~table["subject_id"].duplicated()
    return table[~undated | (none_dated & first)].fillna({"day": 0.0})


def _one_value(table: pd.DataFrame, column: str) -> pd.Series:
    """The value that a patient's rows agree on; missing where they do not, or none has one."""
    by_patient = table.groupby("subject_id")[column]
    return by_patient.first().where(by_patient.nunique() == 1)


def _labs(dated: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    parts = [events.assign(code=code, value=dated[code], unit=unit)[dated[code].notna()] for code, unit in LABS.items()]
    labs = pd.concat(parts)
    hannover = dated["url"].str.contains(PRESSURE_SOURCE, regex=False, na=False).reindex(labs.index)
    pressure = (labs["code"] == "pO2_saturation") & hannover
    labs = labs.assign(code=labs["code"].mask(pressure, "pO2"), unit=labs["unit"].mask(pressure, "mm[Hg]"))
    # Two views of one day repeat the day's measurements.
    return labs.drop_duplicates(ignore_index=True)


def _notes(dated: pd.DataFrame, keep_outcome_text: bool) -> tuple[pd.DataFrame, list[str]]:
    """The notes of each day, and what was taken out of them."""
    notes = dated[["subject_id", "time", "day", "clinical_notes"]].rename(columns={"clinical_notes": "text"})
    notes = notes[notes["text"] != ""].drop_duplicates(ignore_index=True)
    if keep_outcome_text:
        return notes.drop(columns="day"), ["notes as published: they tell the outcome"]
    published = notes["text"].str.len().sum()
    notes = notes.assign(text=notes["text"].str.replace(r"(?s)\bDiscussion:.*", "", regex=True).str.strip())
    last_day = _last_day_of_sentence(notes)
    texts = []
    for subject, day, text in zip(notes["subject_id"], notes["day"], notes["text"], strict=True):
        early = [
            sentence
            for sentence in sentences(text)
            if not names_later_day(sentence, day) and not (day < 0 and last_day[subject, sentence.strip()] > day)
        ]
        texts.append("".join(early).strip())
    notes = notes.assign(text=texts)
    # What is left of the characters after the first steps, before the sentences that tell the outcome.
    retrospect = 1 - notes["text"].str.len().sum() / published if published else 0.0
    notes, report = remove_outcome_text(notes.drop(columns="day"))
    return notes.drop_duplicates(), [
        f"notes: later parts removed, {retrospect:.1%} of the characters",
        f"notes: {report}",
    ]


def _last_day_of_sentence(notes: pd.DataFrame) -> dict[tuple[str, str], float]:
    last: dict[tuple[str, str], float] = {}
    for subject, day, text in zip(notes["subject_id"], notes["day"], notes["text"], strict=True):
        for sentence in sentences(text):
            key = (subject, sentence.strip())
            last[key] = max(day, last.get(key, day))
    return last

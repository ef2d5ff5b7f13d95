"""MIMIC-IV with MIMIC-CXR and MIMIC-IV-Note, in their published files: four questions asked of hospital stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import pandas as pd

from .checks import Policy
from .cohort import Cohort
from .errors import InputError
from .mimic_cxr import cxr_splits, read_radiographs
from .mimic_events import CHARTED, Measurements, read_notes, set_samples
from .mimic_files import DEMOGRAPHICS, MimicFolder
from .mimic_phenotypes import PHENOTYPES
from .mimic_stays import AFTER, KINDS, Stays, Task, ask, tables_of
from .progress import progress_bar

__all__ = ["CHARTED", "PHENOTYPES", "cxr_splits", "read_mimic"]

NOTES = ("radiology", "discharge")


def read_mimic(
    folder: str | Path,
    *,
    task: Task = "mortality",
    after: float | None = None,
    history: float | None = 48.0,
    stays: Stays = "first",
    notes: Sequence[str] = ("radiology",),
    charted: Mapping[int, str] = CHARTED,
    demographics: Sequence[str] = (),
    invalid: Policy = "raise",
) -> Cohort:
    """Read MIMIC-IV 3.x (2.x too), with MIMIC-CXR and MIMIC-IV-Note where they are in the folder.

    Tasks, and when they are asked (`stays.predictions` tells more):

    - "mortality": death in hospital, asked 48 h into a stay in intensive care of those still there.
    - "phenotypes": the 25 phenotypes (`PHENOTYPES`) that the hospital stay was billed with, asked at
      the end of the stay in intensive care, as the public benchmark does, or `after` some hours. An
      admission without any diagnosis leaves them unknown.
    - "length-of-stay": days that remain in intensive care, asked 24 h into the stay.
    - "readmission": another admission within 30 days, asked at discharge from hospital. A planned
      return counts: MIMIC does not tell it from others. MIMIC shifts the dates of each patient, so
      that nobody can see whose follow-up ends with the data; those count as not readmitted.

    What the tables hold, all of it known by the moment of the question:

    - `labs`: numeric results of labevents, code = label (fluid, category), `available_at` = storetime;
      and the items of chartevents in `charted`. Implausible values and those with a `warning` stay:
      the lab reader's scales do not follow them. Results are found by patient and time, since many
      lack the number of the admission.
    - `notes`: radiology reports, available at storetime. Discharge summaries are read on request, and
      never enter a question asked during the stay that they tell of.
    - `images`: radiographs by StudyDate and StudyTime, `study_uid` = study_id.
    - `static`: `sex`, and of the stay `age` (years on admission; who was over 89 in the
      anchor year is published as 91 in it),
      `admission_type`, `care_unit` (the first), and the `demographics` asked for. Where a patient may
      have several samples (`stays` other than "first"), what differs from stay to stay is no static
      fact: it stands in `labs` at the moment of the question, as `age` or as an indicator such as
      `care_unit: Medical Intensive Care Unit (MICU)`, always 1.
    - Diagnoses, procedures and the place of discharge are never inputs: they are coded at the end.

    Large tables are filtered and joined in DuckDB, on disk where its memory does not suffice; only
    what some sample sees is loaded. `cohort.write(folder)` keeps the result, so that it is read once.

    Args:
        folder: holds `hosp/` and `icu/` of MIMIC-IV, and any of MIMIC-IV-Note, MIMIC-CXR and
            MIMIC-CXR-JPG, at any depth under any folder names (such as `mimiciv/3.1/hosp`). Tables keep
            their published names and end in `.csv.gz`, `.csv` or `.parquet`, each in one file.
        task: what is to be predicted.
        after: hours from the start of the stay to the question; None for the task's own (`AFTER`). Not
            for "readmission".
        history: hours before the question that inputs reach back; None for all that there is.
        stays: "first" keeps each patient's first stay in intensive care (for "readmission": first
            admission); "single-unit" keeps admissions with one stay in one unit, as the benchmark does;
            "all" keeps all.
        notes: any of "radiology", "discharge".
        charted: items of chartevents by `itemid`, with the code that each gets; empty for none.
        demographics: any of "insurance", "language", "marital_status", "race".
        invalid: as for `Cohort`; "exclude" also leaves out, and lists, images whose file is not there
            (a partial download).

    Raises:
        InputError: a table or column is not there, a row or setting cannot be used; says which.

    Example:
        >>> cohort = read_mimic("physionet.org", task="length-of-stay", after=48, stays="all")
        >>> print(cohort.attrition)

    Source: Johnson et al., MIMIC-IV, Scientific Data 10:1 (2023); MIMIC-CXR, Scientific Data 6:317
        (2019); https://mimic.mit.edu. Tasks and "single-unit": Harutyunyan et al., Scientific Data 6:96
        (2019). Where we differ: the benchmark asks for the length of stay at every hour, and here it is
        asked once; it takes charttime for the moment at which a result is known.
    """
    _check_settings(task, after, history, stays, notes, demographics, invalid)
    with MimicFolder(Path(folder)) as source:
        kinds = [kind for kind in notes if kind in source]
        tables = (*tables_of(task), "d_labitems", "labevents", *(["chartevents"] if charted else []), *kinds)
        with progress_bar("reading MIMIC", source.bytes(*tables)) as source.read:
            asked = ask(source, task, AFTER[task] if after is None else after, stays)
            set_samples(source, asked.outcomes, asked.stays["hadm_id"], history)
            measured = Measurements()
            measured.read_labs(source)
            if charted:
                measured.read_charted(source, charted)
            reports = read_notes(source, kinds, during_stay=task != "readmission")
            images, left_out, remark = read_radiographs(source, invalid)
    varying = ["age", "admission_type", *(["care_unit"] if task != "readmission" else []), *demographics]
    static = asked.stays[["subject_id", "sex", *varying]]
    if stays != "first":
        measured.add(_as_measurements(asked.outcomes["prediction_time"], static, varying))
        static = static[["subject_id", "sex"]].drop_duplicates("subject_id")
    cohort = Cohort(
        asked.outcomes,
        labs=measured.table(),
        notes=reports,
        images=images,
        static=static,
        history=history,
        outcome_kinds=KINDS[task],
        invalid=invalid,
    )
    cohort.exclusions += left_out
    absent = [
        f"notes: no {kind}, since MIMIC-IV-Note's table is not in the folder" for kind in notes if kind not in kinds
    ]
    for step in (*measured.remarks, *absent, remark):
        cohort = cohort.noted(step)
    return cohort.with_earlier_steps(asked.steps)


def _as_measurements(moments: pd.Series, facts: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Facts that hold for one stay, as rows of `labs` at the moment of its question."""
    parts = []
    for column in columns:
        stated = facts[column].notna()
        rows = pd.DataFrame({"subject_id": facts["subject_id"], "time": moments})[stated]
        if column == "age":
            parts.append(rows.assign(code="age", value=facts["age"][stated], unit="years"))
        else:
            parts.append(rows.assign(code=f"{column}: " + facts[column][stated], value=1.0, unit=None))
    return pd.concat(parts, ignore_index=True)


def _check_settings(
    task: Task,
    after: float | None,
    history: float | None,
    stays: Stays,
    notes: Sequence[str],
    demographics: Sequence[str],
    invalid: Policy,
) -> None:
    """Raise `InputError` for a setting that cannot be used, before anything is read."""
    choices = [
        ("task", task, get_args(Task)),
        ("stays", stays, get_args(Stays)),
        ("invalid", invalid, get_args(Policy)),
    ]
    choices += [("notes", kind, NOTES) for kind in ([notes] if isinstance(notes, str) else notes)]
    choices += [("demographics", name, DEMOGRAPHICS) for name in demographics]
    for name, value, allowed in choices:
        if value not in allowed:
            raise InputError(f"{name} has {value!r}; expected {', '.join(map(repr, allowed))}.")
    if history is not None and not history > 0:
        raise InputError(f"history is {history}; expected a positive number of hours, or None for all.")
    if task == "readmission" and after is not None:
        raise InputError(f'after is {after}, but "readmission" is asked at discharge. Leave it out.')
    if task == "readmission" and stays == "single-unit":
        raise InputError('stays is "single-unit", which is for stays in intensive care. Give "first" or "all".')

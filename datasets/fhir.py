"""FHIR R4 bulk exports: folders of NDJSON as a cohort of hospital stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from .checks import Policy
from .cohort import Cohort
from .errors import InputError
from .fhir_events import Events
from .fhir_stays import INPATIENT, Reach, Register, facts
from .locations import walked
from .ndjson import Export
from .stays import Task, predictions

__all__ = ["read_fhir"]

_KINDS = {"mortality": ("died", "binary"), "length-of-stay": ("remaining_days", "continuous")}
_KINDS |= {"readmission": ("readmitted", "binary")}


def read_fhir(
    folder: str | Path,
    *,
    task: Task = "mortality",
    after: float = 48.0,
    classes: Sequence[str] = INPATIENT,
    history: float | None = None,
    images: str | Path | pd.DataFrame | None = None,
    invalid: Policy = "raise",
) -> Cohort:
    """Read a FHIR R4 bulk export (NDJSON, plain or gzipped): stays in hospital, and what was known when.

    The files are read line by line, twice: Patient and Encounter first, then the events of patients
    of whom something is predicted. Memory grows with what the cohort keeps, not with the export.

    - Stays are Encounters of the given classes, joined with those that overlap or begin within an hour of
      the end (another ward, another class); one that is `partOf` another stay is not a stay of its own.
      The patient died in it if its dischargeDisposition is `exp` (or its code in NUBC, HL7 v2 or MIMIC), or
      deceasedDateTime lies within it; a date alone, on the first or last day, does not say.
      A stay without an end, or with one more than 5 years after its start (2099-12-31), goes on.
      See `stays.predictions` for the three tasks.
    - A Patient whom another replaces (`link`) is that one: a hospital merged the records of one person.
    - `labs`: Observation, with its components. The code is the LOINC code where there is one, else
      `system|code`, else the text. valueQuantity and valueInteger are numbers (a `<` or `>` beside them
      is dropped and counted), valueBoolean is 0 or 1, a coded answer is a code of its own,
      `CODE: ANSWER`, with value 1. Answers in free words, ranges and waves are left out. Condition:
      `condition: CODE`, value 1.
    - `notes`: the text of DiagnosticReport (presentedForm, else conclusion) and DocumentReference,
      inline and plain or HTML; `kind` is the code of its type.
    - `images`: the files of each ImagingStudy, where `images` says where they are.
    - `static`: `sex`, and `age` in years at the patient's first prediction.

    What counts as known when (`available_at`):

    - Observation and DiagnosticReport: `issued`. An Observation without it counts as known at its
      effective time, which for a laboratory may be early; the attrition log says how many. A report
      without it counts from its form's date of creation, or is left out.
    - DocumentReference: the later of its `date` and its attachment's creation.
    - A discharge summary never before the stay that it falls into has ended, whatever date it carries.
    - Condition: recordedDate; a diagnosis of an encounter only from after its end, so that it enters no
      prediction of its own stay.
    - ImagingStudy: the latest `started` of the study and its series. R4 has no time at which images
      could be seen.
    - A date without a time of day counts from its end, and so does a month or a year. It has no zone, so
      it ends where it ends last on earth, at 12:00 UTC of the day after. All times become UTC.

    Resources that are preliminary, cancelled or in error are left out. Amended ones count from their own
    `issued`; without it they are left out. Of several versions of a resource the one with the latest
    `meta.lastUpdated` counts, then the last in the files. All that is left out is counted in `attrition`.

    Args:
        folder: holds `*.ndjson` or `*.ndjson.gz`. The resource types are told by the lines, not by the names.
        task: "mortality", "length-of-stay" or "readmission".
        after: hours from the start of a stay to the prediction; not for "readmission".
        classes: Encounter.class codes that make a stay; `("EMER",)` for visits to the emergency department.
        history: hours before the prediction that inputs reach back; None for all.
        images: a folder in which, at any depth, each study has a folder named by its StudyInstanceUID; or a
            table of `study_uid` and `path`.
        invalid: "raise" stops at the first line that cannot be used; "exclude" leaves such lines out and lists
            them in `exclusions`, as file and line number.

    Raises:
        InputError: a file or line cannot be used, or no stay qualifies.

    Example:
        >>> cohort = read_fhir("export/", task="mortality", after=48)
        >>> print(cohort.attrition)

    Source: HL7 FHIR R4 (4.0.1), https://hl7.org/fhir/R4/; FHIR Bulk Data Access 2.0.0.
    """
    if isinstance(classes, str):
        raise InputError(f"classes is {classes!r}; expected a list of Encounter classes, such as ({classes!r},).")
    _require_images(images)
    export = Export(folder, invalid=invalid)
    register = Register(classes)
    export.read({"Patient": register.take_patient, "Encounter": register.take_encounter})
    _require(export, "Patient", "Encounter")
    register.merge()
    patients, encounters = register.patients(), register.encounters()
    if task == "mortality":
        register.require_deaths(encounters, patients)
    asked = predictions(register.stays(encounters, patients), task, after=after)
    names = pd.Series(list(register.numbers), dtype="str")
    static = facts(asked.outcomes, patients)
    outcomes, static = (
        table.assign(subject_id=names.take(table["subject_id"]).array) for table in (asked.outcomes, static)
    )
    name, kind = _KINDS[task]
    # Alone first: what is wrong with the settings shows before hours of reading.
    settings = {"history": history, "outcome_kinds": {name: kind}}
    Cohort(outcomes, **settings)

    events = Events(register.numbers, _reach(asked.outcomes, asked.stays, encounters, history))
    take = {
        "Observation": events.take_observation,
        "Condition": events.take_condition,
        "DiagnosticReport": events.take_report,
        "DocumentReference": events.take_document,
    }
    if images is not None:
        take["ImagingStudy"] = events.take_study
    export.read(take)
    tables = {"labs": events.labs(names), "notes": events.notes(names)}
    if images is not None:
        tables["images"] = _with_paths(events.studies(names), images, events)
    tables = {table: rows for table, rows in tables.items() if len(rows)}
    cohort = Cohort(outcomes, static=static, **tables, **settings).with_earlier_steps(asked.steps)
    cohort.exclusions = export.exclusions
    if cohort.exclusions:
        cohort = cohort.noted(f"lines that cannot be used left out: {len(cohort.exclusions)}")
    unmet = int((~asked.outcomes["subject_id"].isin(patients["patient"])).sum())
    if unmet:
        cohort = cohort.noted(f"samples whose patient has no Patient in the export, without sex and age: {unmet}")
    if register.without_patient:
        cohort = cohort.noted(f"encounters that refer to no Patient by its id left out: {register.without_patient}")
    if register.merged:
        cohort = cohort.noted(f"patients whom another replaces (Patient.link) taken as that one: {register.merged}")
    if register.joined:
        cohort = cohort.noted(
            f"encounters that overlap another stay or go on from it joined with it: {register.joined}"
        )
    for kind in take:
        if not export.kinds[kind]:
            cohort = cohort.noted(f"no {kind} in the export")
    for what, count in sorted(events.told.items()):
        cohort = cohort.noted(f"{what}: {count}")
    return cohort


def _require(export: Export, *kinds: str) -> None:
    """Raise `InputError` where the export has no line of one of these resource types."""
    for kind in kinds:
        if not export.kinds[kind]:
            found = ", ".join(f"{name} ({count})" for name, count in export.kinds.most_common(20)) or "nothing"
            raise InputError(
                f"{export.folder} has no {kind} resource; it holds {found}. Put the files of one bulk export there: "
                "NDJSON with one resource a line, no Bundle."
            )


def _reach(outcomes: pd.DataFrame, stays: pd.DataFrame, encounters: pd.DataFrame, history: float | None) -> Reach:
    own = outcomes.groupby("subject_id")["prediction_time"]
    seen = pd.DataFrame({"first": own.min(), "last": own.max()})
    if history is None:
        seen["first"] = pd.Timestamp("1800-01-01")
    else:
        seen["first"] -= pd.Timedelta(history, "h")
    return Reach(seen.rename_axis("patient").reset_index(), stays, encounters)


def _require_images(images: str | Path | pd.DataFrame | None) -> None:
    """Raise `InputError` unless `images` is a folder, a table with the columns that it needs, or None."""
    if isinstance(images, pd.DataFrame):
        missing = [name for name in ("study_uid", "path") if name not in images.columns]
        if missing:
            raise InputError(f"The table of images lacks the column {missing[0]}; it needs study_uid and path.")
    elif images is not None and not Path(images).is_dir():
        raise InputError(f"There is no folder {images} of images. Check the path.")


def _with_paths(studies: pd.DataFrame, images: str | Path | pd.DataFrame, events: Events) -> pd.DataFrame:
    """One row a file of each study; studies of which there is no file are counted."""
    if isinstance(images, pd.DataFrame):
        files = images[["study_uid", "path"]].astype({"study_uid": "str"})
    else:
        files = _files_by_study(Path(images), set(studies["study_uid"]))
    without = int((~studies["study_uid"].isin(files["study_uid"])).sum())
    if without:
        events.told["imaging studies without files left out"] = without
    return studies.merge(files, "inner", "study_uid")


def _files_by_study(folder: Path, wanted: set[str]) -> pd.DataFrame:
    """`study_uid` and `path` of all files below folders that are named by one of the wanted studies."""
    rows = []
    for home, inner, files in walked(folder):
        study = next((name for name in Path(home).relative_to(folder).parts if name in wanted), None)
        inner.sort()
        if study is not None:
            shown = (name for name in sorted(files) if not name.startswith(".") and name != "DICOMDIR")
            rows += [(study, str(Path(home, name).resolve())) for name in shown]
    return pd.DataFrame(rows, columns=["study_uid", "path"], dtype="str")

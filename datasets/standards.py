"""Folders of other standards, told by the names of their files where five tables were expected."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError
from .tables import REQUIRED

_OMOP = {"visit_occurrence", "observation_period", "measurement", "condition_occurrence", "note"}
# Where the files of MIMIC-IV lie in what is downloaded of it, from the folder of a module to that of the site.
_MIMIC = ("patients.csv*", "hosp/patients.csv*", "*/hosp/patients.csv*", "files/mimiciv/*/hosp/patients.csv*")


def refuse_other_standards(folder: Path) -> None:
    """Raise `InputError`, with what reads it, where a folder without `outcomes` is of another standard."""
    names = {entry.name.lower() for entry in folder.iterdir()}
    stems = {name.partition(".")[0] for name in names}
    if "outcomes" in stems:
        return
    if "person" in stems and stems & _OMOP:
        raise _read_by(folder, "OMOP", "omop")
    if any(name.endswith((".ndjson", ".ndjson.gz")) for name in names) and not stems & set(REQUIRED):
        raise _read_by(folder, "a bulk export of FHIR", "fhir")
    if any(True for pattern in _MIMIC for _ in folder.glob(pattern)):
        raise _read_by(folder, "MIMIC-IV", "mimic")


def _read_by(folder: Path, standard: str, module: str) -> InputError:
    return InputError(
        f"{folder} looks like {standard}, and no five tables. Read it with read_{module} of chiasm.datasets.{module}, "
        f'and to audit what comes out, write it: read_{module}("{folder}").write("mine"), then chiasm audit mine.'
    )

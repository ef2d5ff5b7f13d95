"""A synthetic hospital in real files, whose true risks are known: what a model reaches can be held
against what anyone could reach. `truth` states the law of the outcome, `chart` draws labs and notes,
`phantom` radiographs.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from .chart import draw_labs, draw_notes
from .errors import InputError
from .phantom import draw_chest, draw_radiograph, instance_uid, write_radiograph
from .truth import MODALITIES, Truth, draw_truth, patient_generator

__all__ = ["MODALITIES", "Truth", "draw_truth", "write_hospital"]

FIRST_DAY = np.datetime64("2021-01-01T00:00")
DAYS = 730
"""Prediction times are uniform over these two years, to the minute."""

SITES = ("north", "south", "harbour")
"""Hospital sites; radiographs of the last are Computed Radiography, of the others Digital X-Ray."""

LATER_IMAGE_RATE = 0.08
"""Share of patients with images who have one more after the prediction time."""

LAYOUT = 2
"""Number of the files' layout and content; raised when either changes."""


def _draw_facts(truth: Truth, *, seed: int) -> pd.DataFrame:
    """Prediction times and the static facts that carry no risk, one row a patient."""
    facts = []
    for patient in range(1, len(truth.table) + 1):
        generator = patient_generator(seed, patient, 2)
        minutes = int(generator.integers(DAYS * 24 * 60))
        unsaid = generator.random(2)
        sex = "F" if generator.random() < 0.5 else "M"
        admission = str(generator.choice(("emergency", "elective", "transfer"), p=(0.6, 0.3, 0.1)))
        facts.append(
            {
                "prediction_time": FIRST_DAY + np.timedelta64(minutes, "m"),
                "sex": None if unsaid[0] < 0.03 else sex,
                "admission": None if unsaid[1] < 0.05 else admission,
                "site": SITES[int(generator.integers(len(SITES)))],
            }
        )
    table = truth.table[["subject_id", "age", "died"]].join(pd.DataFrame(facts))
    table["age"] = table["age"].astype("Int64").where(truth.table["age_recorded"])
    return table


def _moments(prediction_times: np.ndarray, hours: np.ndarray) -> np.ndarray:
    """ISO times to the second, of hours relative to prediction times, rounded to the minute."""
    minutes = np.rint(np.asarray(hours) * 60).astype("timedelta64[m]")
    return np.datetime_as_string(prediction_times.astype("datetime64[m]") + minutes, unit="s")


def _write_table(path: Path, columns: dict | pd.DataFrame) -> None:
    pd.DataFrame(columns).to_csv(path, index=False, lineterminator="\n")


def _write_labs(folder: Path, truth: Truth, facts: pd.DataFrame, *, seed: int) -> None:
    charts = []
    for place in np.flatnonzero(truth.table["has_labs"]):
        patient = truth.table.iloc[place]
        generator = patient_generator(seed, int(place) + 1, 3)
        rising, died = bool(patient["crp_trend"] > 0), bool(patient["died"])
        labs = draw_labs(generator, renal=patient["renal"], rising=rising, died=died)
        charts.append({"place": np.full(len(labs["hours"]), place)} | labs)
    names = ("place", "hours", "available", "code", "value", "unit")
    rows = {name: np.concatenate([[], *(chart[name] for chart in charts)]) for name in names}
    place = rows["place"].astype(int)
    start = facts["prediction_time"].to_numpy()[place]
    _write_table(
        folder / "labs.csv",
        {
            "subject_id": facts["subject_id"].to_numpy()[place],
            "time": _moments(start, rows["hours"].astype(float)),
            "available_at": _moments(start, rows["available"].astype(float)),
            "code": rows["code"],
            "value": rows["value"],
            "unit": rows["unit"],
        },
    )


def _write_notes(folder: Path, truth: Truth, facts: pd.DataFrame, *, seed: int) -> None:
    rows = []
    for place in np.flatnonzero(truth.table["has_notes"]):
        patient = truth.table.iloc[place]
        generator = patient_generator(seed, int(place) + 1, 4)
        failing, died = bool(patient["heart_failure"] > 0), bool(patient["died"])
        start = facts["prediction_time"].to_numpy()[place]
        for hours, text, kind in draw_notes(generator, heart_failure=failing, died=died):
            rows.append((patient["subject_id"], _moments(start, hours), text, kind))
    _write_table(folder / "notes.csv", pd.DataFrame(rows, columns=["subject_id", "time", "text", "kind"]))


def _write_images(folder: Path, truth: Truth, facts: pd.DataFrame, *, seed: int, size: int) -> None:
    (folder / "images").mkdir()
    rows = []
    for place in np.flatnonzero(truth.table["has_image"]):
        patient, subject_id = int(place) + 1, facts["subject_id"].iloc[place]
        start = facts["prediction_time"].to_numpy()[place]
        generator = patient_generator(seed, patient, 5)
        chest = draw_chest(generator, consolidation=bool(truth.table["consolidation"].iloc[place] > 0))
        hours = np.sort(generator.uniform(-48, -1, int(generator.choice((1, 2, 3), p=(0.65, 0.25, 0.1)))))
        if generator.random() < LATER_IMAGE_RATE:
            hours = np.append(hours, generator.uniform(3, 36))
        for index, time in enumerate(_moments(start, hours)):
            exposure = patient_generator(seed, patient, 6 + index)
            inverted, anteroposterior = (bool(side) for side in exposure.random(2) < (0.5, 0.4))
            uids = tuple(instance_uid(kind, seed, patient, index) for kind in ("study", "series", "image"))
            path, view = f"images/{subject_id}-{index + 1}.dcm", "AP" if anteroposterior else "PA"
            density = draw_radiograph(chest, exposure, size=size, anteroposterior=anteroposterior)
            write_radiograph(
                folder / path,
                density,
                exposure,
                subject_id=subject_id,
                time=np.datetime64(time),
                uids=uids,
                inverted=inverted,
                computed=facts["site"].iloc[place] == SITES[-1],
                view=view,
            )
            rows.append((subject_id, time, path, view, uids[0]))
    names = ["subject_id", "time", "path", "view", "study_uid"]
    _write_table(folder / "images.csv", pd.DataFrame(rows, columns=names))


def _is_written(folder: Path, settings: dict[str, int | str]) -> bool:
    """Whether the folder already holds this very hospital; an error if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "hospital.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"{folder}: expected a new or empty folder, or a synthetic hospital; it holds something else. "
            "Choose another folder."
        ) from None
    if found != settings:
        raise InputError(
            f"{folder}: holds a hospital written with {found}, not {settings}. Delete that folder or choose another."
        )
    return True


def write_hospital(folder: str | Path, *, patients: int = 2000, seed: int = 0, image_size: int = 128) -> Truth:
    """Write a synthetic hospital as real files: five CSV tables and 12-bit DICOM radiographs.

    The folder then holds `outcomes.csv` (`subject_id`, `prediction_time`, `died`), `labs.csv`
    (`subject_id`, `time`, `available_at`, `code`, `value`, `unit`), `notes.csv` (`subject_id`, `time`,
    `text`, `kind`), `images.csv` (`subject_id`, `time`, `path`, `view`, `study_uid`), `static.csv`
    (`subject_id`, `age`, `sex`, `admission`, `site`), `images/*.dcm`, `hospital.json` (the settings) and
    `truth.csv` (the table of `Truth`, which no model may read). Some labs, notes and images lie
    after the prediction time, and some of them give the outcome away. Times are local, without zone.

    The same settings write the same bytes, and patient k is the same whatever `patients` is. The
    folder appears whole or not at all; if it already holds this hospital, nothing is written.

    Args:
        folder: a new or empty folder, or one written before with the same settings.
        patients: how many, at least 1.
        seed: 0 or more.
        image_size: height and width of the radiographs in pixels, at least 32.

    Returns:
        What is true of the hospital: latents, risks, and the best AUROC that can be reached.

    Raises:
        InputError: a setting is out of range, or the folder holds something else.
    """
    if image_size < 32:
        raise InputError(f"image_size: expected at least 32 pixels; got {image_size}.")
    folder = Path(folder)
    truth = draw_truth(patients, seed=seed)
    settings = {
        "written_by": "chiasm.datasets.synthetic",
        "layout": LAYOUT,
        "patients": patients,
        "seed": seed,
        "image_size": image_size,
    }
    if _is_written(folder, settings):
        return truth

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_files(partial, truth, seed=seed, size=image_size)
        (partial / "hospital.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return truth


def _write_files(folder: Path, truth: Truth, *, seed: int, size: int) -> None:
    facts = _draw_facts(truth, seed=seed)
    times = _moments(facts["prediction_time"].to_numpy(), np.zeros(len(facts)))
    outcomes = facts[["subject_id", "died"]].copy()
    outcomes.insert(1, "prediction_time", times)
    _write_table(folder / "outcomes.csv", outcomes)
    static = facts.loc[truth.table["has_static"], ["subject_id", "age", "sex", "admission", "site"]]
    _write_table(folder / "static.csv", static)
    _write_table(folder / "truth.csv", truth.table)
    _write_labs(folder, truth, facts, seed=seed)
    _write_notes(folder, truth, facts, seed=seed)
    _write_images(folder, truth, facts, seed=seed, size=size)

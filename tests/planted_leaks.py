"""Leaks to plant in a clean cohort, and by which check, how grave, and in which tables each must be found."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from chiasm.datasets import Cohort
from chiasm.datasets.audit import Audit, audit
from chiasm.datasets.phantom import write_radiograph
from PIL import Image, ImageOps

from .hospital_tables import PATIENTS, Tables, texture


@dataclasses.dataclass
class Scene:
    """A clean cohort's tables and division, to plant one leak in."""

    tables: Tables
    split: pd.DataFrame | None
    sources: dict | None = None
    deaths: pd.Series | None = None

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.tables[name]

    def __setitem__(self, name: str, table: pd.DataFrame) -> None:
        self.tables[name] = table

    def pair(self, *tables: str) -> tuple[str, str]:
        """A training and a held-out patient who stand in all of these tables."""
        both = set.intersection(*(set(self[name]["subject_id"]) for name in ("outcomes", *tables)))
        own = self.split[self.split["subject_id"].isin(both)]
        return own["subject_id"][own["split"] == "train"].iloc[0], own["subject_id"][own["split"] == "held_out"].iloc[0]

    def died(self) -> pd.Series:
        """The outcome by patient."""
        return self["outcomes"].groupby("subject_id")["died"].first()

    def copy_rows(self, table: str, one: str, other: str, **changed: object) -> None:
        """Give the second patient the rows of the first, in place of his own."""
        rows = self[table]
        copied = rows[rows["subject_id"] == one].assign(subject_id=other, **changed)
        self[table] = pd.concat([rows[rows["subject_id"] != other], copied], ignore_index=True)

    def audit(self) -> Audit:
        return audit(Cohort(**self.tables), self.split, sources=self.sources, deaths=self.deaths)


def in_two_splits(own: Scene, _: Path) -> None:
    own.split = pd.concat([own.split, own.split[own.split["split"] == "train"].head(2).assign(split="held_out")])


def same_labs(own: Scene, _: Path) -> None:
    own.copy_rows("labs", *own.pair("labs"))


def same_labs_of_other_dates(own: Scene, _: Path) -> None:
    one, other = own.pair("labs")
    own.copy_rows("labs", one, other)
    rows = own["labs"]["subject_id"] == other
    for column in ("time", "available_at"):
        own["labs"].loc[rows, column] += pd.Timedelta(days=41, minutes=7)
    late = own["labs"].loc[rows, "time"].max() + pd.Timedelta(hours=2)
    own["outcomes"].loc[own["outcomes"]["subject_id"] == other, "prediction_time"] = late


def same_facts_and_image(own: Scene, _: Path) -> None:
    pair = own.pair("images", "static")
    for table, changed in (("static", {}), ("images", {"study_uid": None})):
        own.copy_rows(table, *pair, **changed)


def same_facts(own: Scene, _: Path) -> None:
    own["static"]["insurance_number"] = np.random.default_rng(0).permutation(len(own["static"]))
    own["static"]["height"] = np.random.default_rng(1).normal(170, 10, len(own["static"])).round(1)
    own.copy_rows("static", *own.pair("static"))


def same_patient_undivided(own: Scene, folder: Path) -> None:
    same_labs(own, folder)
    own.split = None


def identical_image(own: Scene, folder: Path) -> None:
    changed_image(own, folder, lambda path, target: target.write_bytes(path.read_bytes()), "png")


def reencoded_image(own: Scene, folder: Path) -> None:
    changed_image(own, folder, lambda path, target: Image.open(path).save(target, quality=40), "jpg")


def resized_image(own: Scene, folder: Path) -> None:
    changed_image(own, folder, lambda path, target: Image.open(path).resize((60, 60)).save(target), "png")


def mirrored_image(own: Scene, folder: Path) -> None:
    changed_image(own, folder, lambda path, target: ImageOps.mirror(Image.open(path)).save(target), "png")


def contrasted_image(own: Scene, folder: Path) -> None:
    flatter = lambda path: Image.open(path).point(lambda value: 40 + 0.7 * value)  # noqa: E731
    changed_image(own, folder, lambda path, target: flatter(path).save(target), "png")


def negative_turned_image(own: Scene, folder: Path) -> None:
    changed_image(own, folder, lambda path, target: ImageOps.invert(Image.open(path).rotate(90)).save(target), "png")


def cropped_image(own: Scene, folder: Path) -> None:
    crop = lambda path: Image.open(path).crop((1, 2, 94, 95))  # noqa: E731
    changed_image(own, folder, lambda path, target: crop(path).save(target), "png")


def turned_image(own: Scene, folder: Path) -> None:
    turn = lambda path: Image.open(path).rotate(2, Image.Resampling.BICUBIC)  # noqa: E731
    changed_image(own, folder, lambda path, target: turn(path).save(target), "png")


def cropped_turned_mirrored_image(own: Scene, folder: Path) -> None:
    turn = lambda path: ImageOps.mirror(Image.open(path)).rotate(-3, Image.Resampling.BICUBIC)  # noqa: E731
    changed_image(own, folder, lambda path, target: turn(path).crop((2, 1, 95, 93)).save(target, quality=80), "jpg")


def changed_image(own: Scene, folder: Path, change: Callable[[Path, Path], object], ending: str) -> None:
    one, other = own.pair("images")
    images = own["images"]
    source = images["path"][images["subject_id"] == one].iloc[0]
    target = folder / f"other.{ending}"
    change(Path(source), target)
    images.loc[images["subject_id"] == other, "path"] = str(target)


def study_of_two(own: Scene, _: Path) -> None:
    one, other = own.pair("images")
    images = own["images"]
    study = images["study_uid"][images["subject_id"] == one].iloc[0]
    images.loc[images["subject_id"] == other, "study_uid"] = study


def dicom_of_another(own: Scene, folder: Path) -> None:
    for number, who in enumerate(own.pair("images")):
        row = own["images"].index[own["images"]["subject_id"] == who][0]
        write_dicom(own, folder, row, named="4711", study=str(number))


def write_dicom(own: Scene, folder: Path, row: int, *, named: str, study: str) -> None:
    """Make an image of the cohort a DICOM file whose header names this patient and study."""
    random = np.random.default_rng(row)
    density = texture(random).astype(np.float32) / 255
    told = {"subject_id": named, "uids": (f"1.2.{study}", f"1.3.{row}", f"1.4.{row}"), "inverted": False}
    path = folder / f"{row}.dcm"
    write_radiograph(path, density, random, time=np.datetime64("2031-05-01T10:00"), computed=True, **told)
    own["images"].loc[row, "path"] = str(path)


def blank_images(own: Scene, folder: Path) -> None:
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(folder / "blank.png")
    own["images"].loc[:2, "path"] = str(folder / "blank.png")


def window_beside_the_values(own: Scene, folder: Path) -> None:
    write_dicom(own, folder, 0, named="1", study="1")
    dataset = pydicom.dcmread(folder / "0.dcm")
    dataset.WindowCenter, dataset.WindowWidth = 60_000, 100
    dataset.save_as(folder / "0.dcm")


def twelve_bits_in_sixteen(own: Scene, folder: Path) -> None:
    for row, path in enumerate(own["images"]["path"]):
        tones = np.asarray(Image.open(path)).astype(np.uint16) * 16
        Image.fromarray(tones).save(folder / f"{row}.png")
    own["images"]["path"] = [str(folder / f"{row}.png") for row in range(len(own["images"]))]


def overexposed_images(own: Scene, folder: Path) -> None:
    for row in range(10):
        tones = 250 - np.asarray(Image.open(own["images"].loc[row, "path"])) // 16
        Image.fromarray(tones).save(folder / f"{row}.png")
        own["images"].loc[row, "path"] = str(folder / f"{row}.png")


def impossible_ages(own: Scene, _: Path) -> None:
    own["static"].loc[:1, "age"] = [-1, 999]


def code_in_two_cases(own: Scene, _: Path) -> None:
    rows = own["labs"].index[own["labs"]["code"] == own["labs"]["code"].iloc[0]][:4]
    own["labs"].loc[rows, "code"] = own["labs"]["code"].iloc[0].swapcase()


def identical_note(own: Scene, _: Path) -> None:
    own.copy_rows("notes", *own.pair("notes"))


def shouted_note(own: Scene, _: Path) -> None:
    one, other = own.pair("notes")
    own.copy_rows("notes", one, other)
    rows = own["notes"]["subject_id"] == other
    own["notes"].loc[rows, "text"] = own["notes"].loc[rows, "text"].str.upper().str.replace(" ", "\n  ")


def sample_twice(own: Scene, _: Path) -> None:
    again = own["outcomes"].head(12)
    again = again.assign(prediction_time=again["prediction_time"] + pd.Timedelta(seconds=30))
    own["outcomes"] = pd.concat([own["outcomes"], again], ignore_index=True)


def outcome_as_fact(own: Scene, _: Path) -> None:
    own["static"]["flag"] = own["static"]["subject_id"].map(own.died())


def outcome_turned_round(own: Scene, _: Path) -> None:
    own["static"]["flag"] = 7 - 3 * own["static"]["subject_id"].map(own.died())


def outcome_nearly(own: Scene, _: Path) -> None:
    flag = own["static"]["subject_id"].map(own.died())
    own["static"]["flag"] = flag.mask(flag.index == flag.index[3], 1 - flag)


def outcome_as_category(own: Scene, _: Path) -> None:
    died = own["static"]["subject_id"].map(own.died())
    own["static"]["destination"] = np.where(died == 1, "pathology", np.where(died.index % 2, "home", "ward"))


def outcome_as_lab(own: Scene, _: Path) -> None:
    add_lab(own, lambda died: 0.1 + died, own.died().index, "score")


def lab_of_the_dying(own: Scene, _: Path) -> None:
    died = own.died()
    add_lab(own, lambda _: 4.2, died.index[died == 1], "adrenaline")


def add_lab(own: Scene, value: Callable[[int], float], patients: pd.Index, code: str) -> None:
    first = own["outcomes"].groupby("subject_id")["prediction_time"].first()
    rows = [
        {"subject_id": who, "time": first[who] - pd.Timedelta(hours=3), "code": code, "value": value(own.died()[who])}
        for who in patients
    ]
    own["labs"] = pd.concat([own["labs"], pd.DataFrame(rows)], ignore_index=True)


def class_as_fact(own: Scene, _: Path) -> None:
    stage = np.resize(["mild", "severe", "critical"], PATIENTS)
    own["outcomes"]["stage"] = stage
    ranks = dict(zip(own["outcomes"]["subject_id"], stage == "severe", strict=True))
    own["static"]["grade"] = own["static"]["subject_id"].map(ranks).astype(int)


def number_as_fact(own: Scene, _: Path) -> None:
    days = np.random.default_rng(3).gamma(2, 3, PATIENTS)
    own["outcomes"]["days"] = days
    own["static"]["hours_billed"] = own["static"]["subject_id"].map(pd.Series(24 * days, own["outcomes"]["subject_id"]))


def images_of_the_dying(own: Scene, _: Path) -> None:
    died, images = own.died(), own["images"]
    own["images"] = images[images["subject_id"].map(died) == 1].reset_index(drop=True)
    unseen = died.index[(died == 1) & ~died.index.isin(images["subject_id"])]
    own["outcomes"] = own["outcomes"][~own["outcomes"]["subject_id"].isin(unseen)].reset_index(drop=True)
    own.tables = {name: rows[~rows["subject_id"].isin(unseen)] for name, rows in own.tables.items()}


def more_labs_of_the_dying(own: Scene, _: Path) -> None:
    rows, random = own["labs"], np.random.default_rng(0)
    thinned = (rows["subject_id"].map(own.died()) == 0) & (random.random(len(rows)) < 0.4)
    own["labs"] = rows[~thinned].reset_index(drop=True)


def site_of_the_dying(own: Scene, _: Path) -> None:
    random = np.random.default_rng(0)
    died = own["static"]["subject_id"].map(own.died()) == 1
    own["static"]["site"] = np.where(died ^ (random.random(len(died)) < 0.1), "north", "south")


def view_of_the_dying(own: Scene, _: Path) -> None:
    random = np.random.default_rng(0)
    died = own["images"]["subject_id"].map(own.died()) == 1
    own["images"]["view"] = np.where(died ^ (random.random(len(died)) < 0.1), "AP", "PA")


def file_type_of_the_dying(own: Scene, folder: Path) -> None:
    died = own["images"]["subject_id"].map(own.died()) == 1
    for row in np.flatnonzero(died):
        target = folder / f"{row}.jpg"
        Image.open(own["images"].loc[row, "path"]).save(target)
        own["images"].loc[row, "path"] = str(target)


def given_source(own: Scene, _: Path) -> None:
    wrong = np.random.default_rng(0).random(PATIENTS) < 0.1
    own.sources = {"journal": np.where((own["outcomes"]["died"] == 1) ^ wrong, "A", "B")}


def told_in_notes(own: Scene, _: Path) -> None:
    died = own["notes"]["subject_id"].map(own.died()) == 1
    own["notes"].loc[died, "text"] += " Family was told that he died this morning."


def two_clouds(own: Scene, _: Path) -> None:
    labs = own["labs"]
    rows = labs.index[labs["code"] == "creatinine"][::3]
    labs["code"] = labs["code"].astype(object)
    labs.loc[rows, "value"] /= 88.42


def two_units(own: Scene, _: Path) -> None:
    rows = own["labs"].index[own["labs"]["code"] == "sodium"][::10]
    own["labs"].loc[rows, "unit"] = "mg/dL"
    own["labs"].loc[rows, "value"] *= 2.3


def before_birth(own: Scene, _: Path) -> None:
    own["labs"].loc[[4, 40], "time"] -= pd.Timedelta(days=120 * 365)
    who = own["labs"]["subject_id"].iloc[[4, 40]]
    own["static"]["age"] = own["static"]["age"].mask(own["static"]["subject_id"].isin(who), 30)


def after_death(own: Scene, _: Path) -> None:
    own["labs"].loc[0, ["code", "value", "unit"]] = ["MEDS_DEATH", 1.0, None]
    own["labs"].loc[0, "time"] -= pd.Timedelta(days=9)


def predicted_after_death(own: Scene, _: Path) -> None:
    last = own["outcomes"].iloc[[5]]
    own.deaths = (last["prediction_time"] - pd.Timedelta(days=2)).set_axis(last["subject_id"])


def early_results(own: Scene, _: Path) -> None:
    own["labs"].loc[::3, "available_at"] = own["labs"]["time"] - pd.Timedelta(hours=1)


def site_with_another_clock(own: Scene, _: Path) -> None:
    site = own["static"].set_index("subject_id")["site"]
    south = own["labs"]["subject_id"].map(site) == "south"
    for column in ("time", "available_at"):
        own["labs"].loc[south, column] -= pd.Timedelta(hours=12)


def site_with_slow_results(own: Scene, _: Path) -> None:
    site = own["static"].set_index("subject_id")["site"]
    own["labs"].loc[own["labs"]["subject_id"].map(site) == "south", "available_at"] += pd.Timedelta(hours=1)


def a_year_off(own: Scene, _: Path) -> None:
    rows = own["labs"]["subject_id"] == own["labs"]["subject_id"].iloc[0]
    for column in ("time", "available_at"):
        own["labs"].loc[rows, column] -= pd.Timedelta(days=365)


def dates_only(own: Scene, _: Path) -> None:
    own["labs"] = own["labs"].assign(time=own["labs"]["time"].dt.normalize()).drop(columns="available_at")


def far_away(own: Scene, _: Path) -> None:
    own["notes"]["time"] = own["notes"]["time"].astype("datetime64[us]")
    own["notes"].loc[0, "time"] = pd.Timestamp("1900-01-01")
    own["notes"].loc[9, "time"] = pd.Timestamp("2999-12-31")


def predicted_too_early(own: Scene, _: Path) -> None:
    own["outcomes"].loc[:9, "prediction_time"] -= pd.Timedelta(days=20)


def after_the_prediction(own: Scene, _: Path) -> None:
    own["labs"].loc[:5, "available_at"] += pd.Timedelta(days=9)


PLANTED = {
    in_two_splits: ("patients in two parts", "invalidates", ()),
    same_labs: ("one patient under two ids", "invalidates", ("labs",)),
    same_labs_of_other_dates: ("one patient under two ids", "invalidates", ("labs",)),
    same_facts: ("one patient under two ids", "invalidates", ("static",)),
    same_facts_and_image: ("one patient under two ids", "invalidates", ("images", "static")),
    same_patient_undivided: ("one patient under two ids", "misleads", ("labs",)),
    identical_image: ("identical images", "invalidates", ("images",)),
    reencoded_image: ("near-identical images", "invalidates", ("images",)),
    resized_image: ("near-identical images", "invalidates", ("images",)),
    mirrored_image: ("near-identical images", "invalidates", ("images",)),
    contrasted_image: ("near-identical images", "invalidates", ("images",)),
    cropped_image: ("near-identical images", "invalidates", ("images",)),
    turned_image: ("near-identical images", "invalidates", ("images",)),
    cropped_turned_mirrored_image: ("near-identical images", "invalidates", ("images",)),
    negative_turned_image: ("near-identical images", "invalidates", ("images",)),
    study_of_two: ("studies of two patients", "invalidates", ("images",)),
    dicom_of_another: ("patients of DICOM headers", "invalidates", ("images",)),
    blank_images: ("blank images", "misleads", ("images",)),
    window_beside_the_values: ("blank images", "misleads", ("images",)),
    twelve_bits_in_sixteen: ("images in a small part of the range", "misleads", ("images",)),
    overexposed_images: ("images in a small part of the range", "misleads", ("images",)),
    identical_note: ("identical notes", "invalidates", ("notes",)),
    shouted_note: ("identical notes", "invalidates", ("notes",)),
    sample_twice: ("samples twice", "misleads", ("labs",)),
    outcome_as_fact: ("column equals outcome", "invalidates", ("static",)),
    outcome_turned_round: ("column equals outcome", "invalidates", ("static",)),
    outcome_nearly: ("column equals outcome", "misleads", ("static",)),
    outcome_as_category: ("column equals outcome", "invalidates", ("static",)),
    outcome_as_lab: ("column equals outcome", "invalidates", ("labs",)),
    lab_of_the_dying: ("column equals outcome", "invalidates", ("labs",)),
    class_as_fact: ("column equals outcome", "invalidates", ("static",)),
    number_as_fact: ("column equals outcome", "invalidates", ("static",)),
    images_of_the_dying: ("missingness predicts", "invalidates", ("labs", "images")),
    more_labs_of_the_dying: ("missingness predicts", "misleads", ("labs",)),
    site_of_the_dying: ("source predicts", "misleads", ("static",)),
    view_of_the_dying: ("source predicts", "misleads", ("images",)),
    file_type_of_the_dying: ("source predicts", "invalidates", ("images",)),
    given_source: ("source predicts", "misleads", ()),
    told_in_notes: ("outcome words: death", "invalidates", ("notes",)),
    two_clouds: ("units in two clouds", "misleads", ("labs",)),
    code_in_two_cases: ("codes alike but for case", "note", ("labs",)),
    impossible_ages: ("impossible ages", "misleads", ("static",)),
    two_units: ("two units of one code", "misleads", ("labs",)),
    before_birth: ("events before birth", "misleads", ("labs", "static")),
    after_death: ("events after death", "misleads", ("labs",)),
    predicted_after_death: ("predictions after death", "misleads", ("labs",)),
    early_results: ("available before its time", "misleads", ("labs",)),
    site_with_another_clock: ("shifted clocks", "misleads", ("labs", "static")),
    site_with_slow_results: ("shifted clocks", "misleads", ("labs", "static")),
    a_year_off: ("shifted clocks", "misleads", ("labs",)),
    dates_only: ("dates without time", "misleads", ("labs",)),
    far_away: ("times far away", "misleads", ("notes",)),
    predicted_too_early: ("predictions before any event", "misleads", ("labs",)),
    after_the_prediction: ("after the prediction", "note", ("labs",)),
}
"""What plants a leak, and by which check, how grave, and in which tables it must be found."""

LISTED = {
    "patients in two splits": in_two_splits,
    "patients under different ids with equal static data": same_facts,
    "patients under different ids with equal images": same_facts_and_image,
    "identical images": identical_image,
    "re-encoded images": reencoded_image,
    "rescaled images": resized_image,
    "flipped images": mirrored_image,
    "cropped images": cropped_image,
    "turned images": turned_image,
    "identical notes": identical_note,
    "anything after the prediction time": after_the_prediction,
    "outcome words in notes": told_in_notes,
    "an outcome that missingness alone predicts": more_labs_of_the_dying,
    "an outcome that the source alone predicts": site_of_the_dying,
    "duplicated samples": sample_twice,
    "a column that equals the outcome": outcome_as_fact,
    "units in two clouds": two_clouds,
    "events before birth": before_birth,
    "events after death": after_death,
    "clock shifts": a_year_off,
    "two patients in one study": study_of_two,
    "a header's patient other than the table's": dicom_of_another,
}
"""What an audit promises to look for, and a leak that stands for each."""

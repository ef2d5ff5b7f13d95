"""The audit: planted leaks are found, nothing is invented in clean cohorts, and nobody is named."""

import ast
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chiasm import datasets
from chiasm.datasets import Cohort, InputError
from chiasm.datasets.audit import CHECKS, Audit, audit
from chiasm.datasets.audit_outcomes import predictive_power
from chiasm.datasets.audit_reading import open_folder
from PIL import Image

from .hospital_tables import PATIENTS, clean_tables, divided, write_pictures
from .planted_leaks import LISTED, PLANTED, Scene, mirrored_image, same_labs, site_of_the_dying, write_dicom


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 140)


@pytest.fixture(scope="module")
def scene(pictures):
    """A function that gives a fresh clean cohort with its division: `scene("labs", "static")`."""
    whole = clean_tables(pictures, patients=PATIENTS)
    split = divided(whole)

    def copy(*tables: str) -> "Scene":
        return Scene({name: whole[name].copy() for name in ("outcomes", *tables)}, split.copy())

    return copy


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_leak_is_found_with_its_place_and_a_remedy(plant, scene, tmp_path):
    check, severity, tables = PLANTED[plant]
    own = scene(*tables)
    plant(own, tmp_path)
    report = own.audit()
    found = [finding for finding in report.findings if finding.check == check]
    assert severity in {finding.severity for finding in found}, str(report)
    assert report.invalidates == any(finding.severity == "invalidates" for finding in report.findings)
    for finding in found:
        assert finding.count > 0
        assert finding.where.table in (*tables, "outcomes", "sources")
        assert finding.remedy.endswith((".", ")"))
    told = json.dumps(report.to_dict()) + str(report)
    assert not [who for who in own["outcomes"]["subject_id"] if who in told]


# That all is looked at

ONLY_NOTED = (
    *("patients in no part", "images twice", "unreadable images", "lab rows twice", "no available_at"),
    *("notes from templates", "identifiers that stand for many"),
)
OF_FOLDERS = ("dates that are no input", "patients twice", "rows that are refused")


def test_every_leak_that_an_audit_promises_to_find_is_planted():
    assert set(LISTED.values()) <= set(PLANTED)
    assert len(PLANTED) >= 30


def test_every_kind_of_finding_has_a_test():
    sources = [path.read_text() for path in Path(datasets.__file__).parent.glob("audit*.py")]
    calls = [node for text in sources for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    kinds = [call.args[1] for call in calls if getattr(call.func, "id", "") == "Finding"]
    words = {node.value for kind in kinds for node in ast.walk(kind) if isinstance(node, ast.Constant)}
    tested = [*(check for check, _, _ in PLANTED.values()), *ONLY_NOTED, *OF_FOLDERS]
    assert not [word for word in words if " " in word and not any(word in check for check in tested)]
    assert len(kinds) >= len(CHECKS)


# Nothing is invented

CLEAN = {
    "100 patients": {},
    "12 patients": {"patients": 12},
    "30 patients": {"patients": 30},
    "300 patients": {"patients": 300, "tables": ("labs", "static")},
    "one patient": {"patients": 1, "missing": 0.0},
    "rare outcome": {"patients": 200, "rate": 0.06, "tables": ("labs", "notes", "static")},
    "common outcome": {"rate": 0.8},
    "outcome of nobody": {"rate": 0.0},
    "three samples a patient": {"samples": 3},
    "ten samples a patient": {"samples": 10, "patients": 40, "tables": ("labs", "static")},
    "three images a patient": {"images": 3, "patients": 45},
    "half of it missing": {"missing": 0.5},
    "nothing missing": {"missing": 0.0},
    "labs only": {"tables": ("labs",)},
    "notes only": {"tables": ("notes",), "patients": 200},
    "images only": {"tables": ("images",)},
    "facts only": {"tables": ("static",), "patients": 400},
    "outcomes only": {"tables": ()},
}


def grave(report: Audit) -> list[str]:
    return [f"{one.severity}: {one.check}: {one.what}" for one in report.findings if one.severity != "note"]


@pytest.mark.parametrize("name", CLEAN)
def test_nothing_is_invented_in_a_clean_cohort(name, pictures):
    tables = clean_tables(pictures, seed=len(name), **CLEAN[name])
    assert grave(audit(Cohort(**tables), divided(tables))) == []


def test_nothing_is_invented_where_there_is_no_division(scene):
    own = scene("labs", "notes", "images", "static")
    own.split = None
    assert grave(own.audit()) == []


def test_nothing_is_invented_in_a_clean_meds_dataset(pictures, tmp_path):
    tables = clean_tables(pictures, patients=40)
    cohort = Cohort(**tables).with_splits(divided(tables).assign(split=["train", "held_out"] * 20))
    cohort.write(tmp_path)
    opened = open_folder(tmp_path)
    report = audit(opened.cohort, opened.division, births=opened.births, deaths=opened.deaths, found=opened.found)
    assert grave(report) == []
    assert report.parts == ("train", "held_out")


def only_finding(own: Scene, check: str) -> str:
    """The severity of the one finding of a check."""
    found = [finding.severity for finding in own.audit().findings if finding.check == check]
    assert len(found) == 1
    return found[0]


def test_a_copied_record_is_found_where_most_of_its_rows_stand_in_many(scene):
    own = scene("labs")
    who = own["outcomes"]["subject_id"]
    own["outcomes"]["prediction_time"] = asked = own["outcomes"]["prediction_time"].max()
    pulse = pd.DataFrame([(one, 2 * hour) for one in who for hour in range(30)], columns=["subject_id", "hours"])
    pulse = pulse.assign(time=asked - pd.to_timedelta(pulse.pop("hours"), unit="h"), code="pulse")
    pulse["value"] = np.random.default_rng(0).choice([70.0, 80.0, 90.0], len(pulse))
    own["labs"] = pd.concat([own["labs"].drop(columns="available_at"), pulse], ignore_index=True)
    assert grave(own.audit()) == []
    own.copy_rows("labs", *own.pair("labs"))
    assert only_finding(own, "one patient under two ids") == "invalidates"


def test_a_stock_text_is_no_copy_however_long_it_is(scene):
    own = scene("notes")
    own["notes"].loc[own["notes"].index[:24:2], "text"] = " ".join(f"Then comes step {word}." for word in "abcdefghij")
    assert only_finding(own, "notes from templates") == "note"
    assert grave(own.audit()) == []


def test_a_fact_that_follows_from_another_is_no_evidence_of_one_patient(scene):
    own = scene("static")
    static, random = own["static"], np.random.default_rng(0)
    clinic = random.integers(0, 25, len(static))
    for column, spread in (("clinic", 1), ("town", 7), ("north", 0.25), ("east", 3.5), ("height_above_sea", 40)):
        static[column] = spread * clinic
    static.loc[[3, 50], ["age", "sex", "weight", "site"]] = [70, "f", 80.0, "north"]
    static.loc[[3, 50], ["clinic", "town", "north", "east", "height_above_sea"]] = 0
    assert grave(own.audit()) == []


def test_a_word_for_all_in_the_headers_is_no_link_between_patients(scene, tmp_path):
    own = scene("images")
    for row in range(12):
        write_dicom(own, tmp_path, row, named="ANONYMOUS", study=str(row))
    assert only_finding(own, "identifiers that stand for many") == "note"
    assert grave(own.audit()) == []


def test_pseudonyms_of_files_are_no_wrong_links(scene, tmp_path):
    own = scene("images")
    own["images"] = own["images"].head(8)
    own["images"]["subject_id"] = own["images"]["subject_id"].iloc[[0, 0, 1, 1, 2, 2, 3, 3]].array
    for row in range(8):
        write_dicom(own, tmp_path, row, named=f"file {row}", study=str(row // 2))
    own["images"]["study_uid"] = None
    own.split = None
    assert [finding.severity for finding in own.audit().findings if "headers" in finding.check] == ["note", "note"]


def test_a_header_that_names_another_than_the_table_is_found_where_asked_for(scene, tmp_path):
    own = scene("images")
    who = own["images"]["subject_id"].tolist()
    for row in range(4):
        write_dicom(own, tmp_path, row, named=who[row] if row else "somebody", study=str(row))
    cohort = Cohort(**own.tables)
    assert grave(audit(cohort, own.split)) == []
    found = [one for one in audit(cohort, own.split, same_identifiers=True).findings if one.severity != "note"]
    assert [(one.check, one.severity, one.count) for one in found] == [("patients of DICOM headers", "misleads", 1)]
    (row,) = found[0].where.rows[0]
    assert cohort.images["path"].iloc[row - 1].endswith("0.dcm")


def test_a_study_that_stands_for_many_is_taken_for_a_word(scene):
    own = scene("images")
    own["images"]["study_uid"] = "unknown"
    assert only_finding(own, "identifiers that stand for many") == "note"


def test_the_birth_of_the_very_old_is_not_far_away(scene):
    own = scene("labs")
    own["labs"].loc[0, ["code", "value", "unit"]] = ["MEDS_BIRTH", 1.0, None]
    own["labs"].loc[0, ["time", "available_at"]] -= pd.Timedelta(days=97 * 365)
    assert grave(own.audit()) == []


def test_ten_bits_in_sixteen_are_not_told_to_be_removed_alone(scene, tmp_path):
    own = scene("images")
    tones = np.asarray(Image.open(own["images"].loc[0, "path"])).astype(np.uint16) * 4
    Image.fromarray(tones).save(tmp_path / "ten.png")
    own["images"].loc[0, "path"] = str(tmp_path / "ten.png")
    found = next(finding for finding in own.audit().findings if finding.check == "blank images")
    assert (found.count, found.where.rows) == (1, ((1,),))
    assert "10 bits are stored as 16, give another: ImageEncoder(window=" in found.remedy


def test_what_is_not_there_is_said_not_to_be_checked(scene):
    told = scene().audit().not_checked
    assert told["ages that cannot be"] == "there are no static facts"
    assert told["codes that are written in two ways"] == "there are no labs"


def test_ages_that_are_scaled_are_no_impossible_ones(scene):
    own = scene("static")
    own["static"]["age"] = (own["static"]["age"] - own["static"]["age"].mean()) / own["static"]["age"].std()
    assert "impossible ages" not in {finding.check for finding in own.audit().findings}


def test_the_rarer_of_two_ways_to_write_a_code_is_the_odd_one(scene):
    own = scene("labs")
    codes = own["labs"]["code"]
    rows = codes.index[codes == codes.iloc[0]][:4]
    own["labs"].loc[rows, "code"] = f" {codes.iloc[0].upper()}  "
    found = next(finding for finding in own.audit().findings if finding.check == "codes alike but for case")
    assert f"{codes.iloc[0].upper()!r} beside {codes.iloc[0]!r}" in found.what
    assert (found.count, len(found.where.rows)) == (1, 4)


def test_patients_who_are_asked_about_on_arrival_are_noted_only(scene):
    own = scene("labs")
    first = own["labs"].groupby("subject_id")["time"].min()
    arrived = own["outcomes"]["subject_id"].isin(first.index[:9])
    times = own["outcomes"]["subject_id"].map(first) - pd.Timedelta(minutes=5)
    own["outcomes"]["prediction_time"] = own["outcomes"]["prediction_time"].mask(arrived, times)
    assert only_finding(own, "predictions before any event") == "note"


def test_a_rare_spelling_of_a_unit_is_noted_only(scene):
    own = scene("labs")
    rows = own["labs"].index[own["labs"]["code"] == "lactate"][:3]
    own["labs"].loc[rows, "unit"] = "millimole per litre"
    own["labs"].loc[rows, "value"] = [1.5, 2.9, 2.8]
    assert only_finding(own, "two units of one code") == "note"


def test_what_is_good_to_know_is_noted(scene, tmp_path):
    own = scene("labs", "images")
    own.split = own.split.iloc[:-3]
    own["labs"] = pd.concat([own["labs"], own["labs"].head(5)], ignore_index=True)
    own["images"] = pd.concat([own["images"], own["images"].head(2)], ignore_index=True)
    (tmp_path / "broken.png").write_bytes(b"no image")
    own["images"].loc[9, "path"] = str(tmp_path / "broken.png")
    report = own.audit()
    counts = {finding.check: finding.count for finding in report.of("note")}
    wanted = {"patients in no part": 3, "lab rows twice": 5, "images twice": 2, "unreadable images": 1}
    assert wanted.items() <= counts.items()
    assert grave(report) == []


def test_many_unreadable_images_mislead(scene):
    own = scene("images")
    own["images"].loc[:9, "path"] = "nowhere.png"
    assert only_finding(own, "unreadable images") == "misleads"


# What is given to an audit


def test_a_division_may_be_given_in_any_form(scene):
    own = scene("labs")
    cohort = Cohort(**own.tables)
    parts = cohort.split((0.6, 0.2, 0.2), seed=0)
    assert audit(cohort, parts).parts == ("train", "valid", "test")
    assert audit(cohort, parts[:2]).parts == ("train", "test")
    assert audit(cohort, [*parts, parts[0]]).parts == ("part 1", "part 2", "part 3", "part 4")
    assert audit(cohort, {"old": parts[0], "new": parts[2]}).parts == ("old", "new")
    assert audit(cohort.with_splits(own.split)).parts == ("train", "held_out")
    assert audit(cohort).not_checked["the division: patients in two parts, or in none"] == "no division was given"


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([], "The division has no part"),
        (pd.DataFrame({"subject_id": ["nobody"], "split": ["train"]}), "names none of the cohort's patients"),
        (pd.DataFrame({"subject_id": ["P1000"], "split": [None]}), "The split table names no part"),
        (pd.DataFrame({"subject_id": ["P1000"], "part": ["train"]}), "lacks the column split"),
    ],
)
def test_a_division_that_divides_nothing_is_refused(parts, told, scene):
    cohort = Cohort(**scene("static").tables)
    with pytest.raises(InputError, match=told):
        audit(cohort, parts)


def test_a_source_of_another_length_is_refused(scene):
    with pytest.raises(InputError, match=f"'site' has 3 values; expected one for each of {PATIENTS} samples"):
        audit(Cohort(**scene("static").tables), sources={"site": ["a", "b", "a"]})


def test_the_order_of_rows_changes_no_finding(scene, tmp_path):
    own = scene("labs", "images", "static")
    for plant in (mirrored_image, same_labs, site_of_the_dying):
        plant(own, tmp_path)
    first = own.audit()
    own.tables = {name: rows.sample(frac=1, random_state=0) for name, rows in own.tables.items()}
    own.split = own.split.sample(frac=1, random_state=1)
    assert first == own.audit()
    assert first.invalidates


def test_the_auroc_and_its_interval_are_those_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    event = random.random(300) < 0.3
    score = np.round(event + random.normal(0, 1, 300), 1)
    patient = np.arange(300) // 3
    power = predictive_power(event, score, patient)
    assert power.auroc == pytest.approx(roc_auc_score(event, score))
    drawn = []
    for _ in range(200):
        rows = np.concatenate([np.flatnonzero(patient == one) for one in random.integers(0, 100, 100)])
        drawn.append(roc_auc_score(event[rows], score[rows]))
    assert (power.low, power.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)

"""The synthetic hospital: files repeat to the byte, and what is true of it is what it says."""

import filecmp
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from chiasm.datasets.chart import ABSENT, ANALYTES, PRESENT, draw_labs, draw_notes
from chiasm.datasets.errors import InputError
from chiasm.datasets.phantom import draw_chest, draw_radiograph
from chiasm.datasets.synthetic import write_hospital
from chiasm.datasets.truth import (
    AGE_CENTRE,
    AGE_SPREAD,
    INTERACTION,
    INTERCEPT,
    LATENTS,
    LOG_ODDS,
    MODALITIES,
    Truth,
    draw_truth,
    expected_risk,
)
from pydicom.pixels import apply_voi_lut
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

TABLES = ("outcomes", "labs", "notes", "images", "static", "truth")
PATIENTS = 80


@pytest.fixture(scope="module")
def truth() -> Truth:
    return draw_truth(12_000, seed=11)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "hospital"
    write_hospital(folder, patients=PATIENTS, seed=3, image_size=64)
    return folder


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def timed(folder: Path, name: str, column: str = "time") -> pd.Series:
    """Hours of a table's rows relative to the prediction time."""
    table = read(folder, name).merge(read(folder, "outcomes"), on="subject_id")
    return (pd.to_datetime(table[column]) - pd.to_datetime(table["prediction_time"])) / pd.Timedelta("1h")


def displayed(folder: Path, path: str, *, inverted: bool = True) -> np.ndarray:
    """Pixels in [0, 1] after window and, unless told otherwise, inversion of MONOCHROME1."""
    record = pydicom.dcmread(folder / path)
    pixels = apply_voi_lut(record.pixel_array, record).astype(float)
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    return 1 - pixels if inverted and record.PhotometricInterpretation == "MONOCHROME1" else pixels


# Files


def test_the_same_settings_write_the_same_bytes(hospital: Path, tmp_path: Path) -> None:
    write_hospital(tmp_path / "again", patients=PATIENTS, seed=3, image_size=64)
    names = files(hospital)
    assert names == files(tmp_path / "again")
    assert filecmp.cmpfiles(hospital, tmp_path / "again", names, shallow=False)[0] == names


def test_another_seed_writes_another_hospital(hospital: Path, tmp_path: Path) -> None:
    write_hospital(tmp_path / "other", patients=PATIENTS, seed=4, image_size=64)
    for name in TABLES:
        assert not filecmp.cmp(hospital / f"{name}.csv", tmp_path / "other" / f"{name}.csv", shallow=False)


def test_a_patient_is_the_same_in_a_smaller_hospital(hospital: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    write_hospital(few, patients=10, seed=3, image_size=64)
    kept = read(few, "outcomes")["subject_id"]
    for name in TABLES:
        table = read(hospital, name)
        same = table[table["subject_id"].isin(kept)].reset_index(drop=True)
        pd.testing.assert_frame_equal(same, read(few, name), check_dtype=False)
    for path in read(few, "images")["path"]:
        assert filecmp.cmp(hospital / path, few / path, shallow=False)


def test_every_table_has_the_columns_it_promises(hospital: Path) -> None:
    promised = {
        "outcomes": "subject_id prediction_time died",
        "labs": "subject_id time available_at code value unit",
        "notes": "subject_id time text kind",
        "images": "subject_id time path view study_uid",
        "static": "subject_id age sex admission site",
    }
    for name, columns in promised.items():
        assert list(read(hospital, name).columns) == columns.split()


def test_a_patient_has_rows_exactly_where_the_truth_says_so(hospital: Path) -> None:
    table = read(hospital, "truth")
    for name, modality in zip(("images", "labs", "notes", "static"), MODALITIES, strict=True):
        present = table["subject_id"].isin(read(hospital, name)["subject_id"])
        assert present.equals(table[f"has_{modality}"].rename("subject_id")), name
    ages = read(hospital, "static").set_index("subject_id")["age"].dropna()
    assert set(ages.index) == set(table.loc[table["age_recorded"], "subject_id"])


def test_each_present_modality_has_something_known_before_the_prediction_time(hospital: Path) -> None:
    for name, column in (("labs", "available_at"), ("notes", "time"), ("images", "time")):
        hours, patients = timed(hospital, name, column), read(hospital, name)["subject_id"]
        assert hours.groupby(patients).min().lt(0).all(), name
        assert (hours > 0).any(), name


def test_a_laboratory_result_follows_its_draw_by_half_an_hour_to_two(hospital: Path) -> None:
    wait = timed(hospital, "labs", "available_at") - timed(hospital, "labs")
    bedside = read(hospital, "labs")["code"].map(lambda code: ANALYTES[code].bedside)
    assert (wait[bedside] == 0).all()
    assert wait[~bedside].between(0.5 - 1 / 60, 2 + 1 / 60).all()


def test_radiographs_are_twelve_bit_files_of_both_photometric_kinds(hospital: Path) -> None:
    table = read(hospital, "images")
    records = [pydicom.dcmread(hospital / path) for path in table["path"]]
    inverted = np.mean([record.PhotometricInterpretation == "MONOCHROME1" for record in records])
    assert abs(inverted - 0.5) < 4 * 0.5 / np.sqrt(len(records))
    assert {(record.BitsAllocated, record.BitsStored, record.Rows) for record in records} == {(16, 12, 64)}
    assert max(int(record.pixel_array.max()) for record in records) <= 4095
    assert {record.Modality for record in records} == {"CR", "DX"}
    assert {np.size(record.get("WindowCenter", ())) for record in records} == {0, 1, 2}
    assert [record.StudyInstanceUID for record in records] == list(table["study_uid"])
    assert [record.PatientID for record in records] == list(table["subject_id"])
    assert len({record.SOPInstanceUID for record in records}) == len(records)


def test_lungs_are_darker_than_the_spine_only_after_inverting_monochrome1(hospital: Path) -> None:
    for path in read(hospital, "images")["path"]:
        right = displayed(hospital, path)
        assert right[18:26, 14:22].mean() < right[18:26, 30:34].mean() - 0.1
        if pydicom.dcmread(hospital / path).PhotometricInterpretation == "MONOCHROME1":
            wrong = displayed(hospital, path, inverted=False)
            assert wrong[18:26, 14:22].mean() > wrong[18:26, 30:34].mean() + 0.1


def test_a_finished_hospital_is_not_written_again(hospital: Path) -> None:
    before = {name: (hospital / name).stat().st_mtime_ns for name in files(hospital)}
    again = write_hospital(hospital, patients=PATIENTS, seed=3, image_size=64)
    assert before == {name: (hospital / name).stat().st_mtime_ns for name in files(hospital)}
    stored = read(hospital, "truth")
    pd.testing.assert_frame_equal(stored, again.table, check_dtype=False, rtol=1e-14, atol=0)


def test_an_empty_folder_may_be_written_to_and_nothing_else_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_hospital(tmp_path / "empty", patients=2, image_size=32)
    assert json.loads((tmp_path / "empty" / "hospital.json").read_text())["patients"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chiasm.datasets.synthetic.write_radiograph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_hospital(tmp_path / "hospital", patients=5)
    assert list(tmp_path.iterdir()) == []


def test_a_hospital_whose_patients_lack_a_modality_still_has_that_table(tmp_path: Path) -> None:
    # By chance one seed in 0.3⁴ ≈ 1/123 has a first patient with nothing at all.
    seed = next(s for s in range(2000) if not draw_truth(1, seed=s).table.filter(like="has_").to_numpy().any())
    write_hospital(tmp_path / "bare", patients=1, seed=seed)
    for name in ("labs", "notes", "images", "static"):
        assert read(tmp_path / "bare", name).empty


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else\. Choose another folder"):
        write_hospital(tmp_path, patients=2)
    with pytest.raises(InputError, match="holds something else"):
        write_hospital(tmp_path / "thesis.txt", patients=2)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_hospital_with_other_settings_is_refused_and_kept(hospital: Path) -> None:
    with pytest.raises(InputError, match=r"'seed': 3.*not .*'seed': 5.*Delete that folder"):
        write_hospital(hospital, patients=PATIENTS, seed=5, image_size=64)


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="patients >= 1 and seed >= 0; got patients=0"):
        write_hospital(tmp_path / "none", patients=0)
    with pytest.raises(InputError, match="got patients=5, seed=-1"):
        draw_truth(5, seed=-1)
    with pytest.raises(InputError, match="at least 32 pixels; got 8"):
        write_hospital(tmp_path / "tiny", image_size=8)


# What is drawn carries the latents


def test_the_direction_of_crp_and_the_level_of_creatinine_can_be_read_from_the_labs() -> None:
    generator = np.random.default_rng(0)
    latents, slopes, levels = [], [], []
    for _ in range(200):
        renal, rising = generator.standard_normal(), bool(generator.random() < 0.5)
        labs = draw_labs(generator, renal=renal, rising=rising, died=False)
        known = labs["available"] <= 0
        crp, creatinine = known & (labs["code"] == "crp"), known & (labs["code"] == "creatinine")
        slopes.append(np.polyfit(labs["hours"][crp], np.log(labs["value"][crp]), 1)[0])
        levels.append(np.log(labs["value"][creatinine]).mean())
        latents.append((rising, renal))
    rising, renal = np.transpose(latents)
    assert roc_auc_score(rising, slopes) > 0.99
    assert np.corrcoef(levels, renal)[0, 1] > 0.99


def test_laboratory_values_stay_in_what_a_laboratory_sees() -> None:
    generator = np.random.default_rng(1)
    ranges = {
        "creatinine": (10, 1000),
        "potassium": (2, 8),
        "sodium": (115, 165),
        "haemoglobin": (50, 200),
        "crp": (0.5, 1000),
        "lactate": (0.2, 20),
        "heart_rate": (30, 200),
        "temperature": (34, 42),
    }
    for place in range(200):
        labs = draw_labs(generator, renal=(-4, 4)[place % 2], rising=True, died=True)
        for code, (low, high) in ranges.items():
            values = labs["value"][labs["code"] == code]
            assert ((values >= low) & (values <= high)).all(), code


def test_notes_state_heart_failure_or_deny_it_and_never_both() -> None:
    generator = np.random.default_rng(2)
    for failing in (True, False) * 100:
        notes = draw_notes(generator, heart_failure=failing, died=False)
        text = " ".join(note for hours, note, _ in notes if hours <= 0)
        assert any(phrase in text for phrase in PRESENT) == failing
        assert not (failing and any(phrase in text for phrase in ABSENT))


def test_a_consolidation_brightens_one_lower_zone_and_nothing_else() -> None:
    for patient in range(30):
        pair = []
        for finding in (True, False):
            chest = draw_chest(np.random.default_rng(patient), consolidation=finding)
            pair.append(draw_radiograph(chest, np.random.default_rng([patient, 1]), size=64))
        added = pair[0] - pair[1]
        half = np.s_[:, :32] if chest.side < 0 else np.s_[:, 32:]
        assert added.min() > -1e-6
        assert added[half].max() > 0.15
        assert added[:20].max() < 0.02
        assert added.sum() == pytest.approx(added[half].sum(), rel=0.02)


def test_a_consolidation_can_be_told_from_its_look_alikes() -> None:
    images, findings = [], np.arange(500) % 2
    for patient, finding in enumerate(findings):
        generator = np.random.default_rng([7, patient])
        chest = draw_chest(generator, consolidation=bool(finding))
        drawn = draw_radiograph(chest, generator, size=64, anteroposterior=patient % 3 == 0)
        images.append(drawn.reshape(16, 4, 16, 4).mean(axis=(1, 3)).ravel())
    model = LogisticRegression(C=10, max_iter=2000).fit(images[:300], findings[:300])
    assert roc_auc_score(findings[300:], model.decision_function(images[300:])) > 0.97


# The law of the outcome


def test_three_in_ten_patients_lack_each_modality_independently(truth: Truth) -> None:
    present = truth.table[[f"has_{name}" for name in MODALITIES]].to_numpy(dtype=float)
    error = np.sqrt(0.3 * 0.7 / len(present))
    assert np.abs(present.mean(axis=0) - 0.7).max() < 4 * error
    assert np.abs(np.corrcoef(present.T) - np.eye(4)).max() < 4 / np.sqrt(len(present))


def test_risks_are_calibrated_to_the_outcomes(truth: Truth) -> None:
    table = truth.table
    assert 0.25 < table["died"].mean() < 0.30
    for score in [column for column in table if column.startswith(("reachable_", "risk"))]:
        if score == "reachable_additive":
            continue
        for _, rows in table.groupby(pd.qcut(table[score], 5, duplicates="drop")):
            error = np.sqrt((rows["risk"] * (1 - rows["risk"])).mean() / len(rows))
            assert abs(rows["died"].mean() - rows[score].mean()) < 4 * error + 0.01, score


def test_the_reachable_risk_is_the_mean_over_what_is_unseen() -> None:
    generator = np.random.default_rng(0)
    draws = 400_000
    age = (generator.integers(30, 91, draws) - AGE_CENTRE) / AGE_SPREAD
    logit = (
        INTERCEPT
        + LOG_ODDS["consolidation"]
        + generator.choice((-1, 1), draws) * (LOG_ODDS["crp_trend"] + INTERACTION)
        + LOG_ODDS["renal"] * generator.standard_normal(draws)
        - LOG_ODDS["heart_failure"]
        + LOG_ODDS["age_score"] * age
    )
    drawn = 1 / (1 + np.exp(-logit))
    latents = np.array([[1.0, np.nan, np.nan, -1.0, np.nan]])
    known = np.array([[True, False, False, True, False]])
    assert expected_risk(latents, known)[0] == pytest.approx(drawn.mean(), abs=4 * drawn.std() / np.sqrt(draws))


def test_the_best_reachable_auroc_is_as_stated(truth: Truth) -> None:
    single = [truth.expected_auroc(f"reachable_{name}") for name in MODALITIES]
    assert 0.88 < truth.expected_auroc() < 0.91
    assert 0.68 < max(single) < 0.72
    assert min(single) > 0.59
    assert truth.expected_auroc() - max(single) > 0.10
    assert truth.expected_auroc() - truth.expected_auroc("reachable_additive") > 0.03
    assert truth.auroc() == pytest.approx(truth.expected_auroc(), abs=0.015)


def test_the_interaction_is_invisible_to_each_modality_and_to_their_sum(truth: Truth) -> None:
    table = truth.table
    interaction = table["share_interaction"]
    for name in LATENTS:
        assert abs(np.corrcoef(interaction, table[name])[0, 1]) < 4 / np.sqrt(len(table)), name

    # All that sums can say, against the same with the one product: fitted on half, judged on the rest.
    known = {name: table[name] * table[f"has_{modality}"] for name, modality in LATENTS.items()}
    known |= {f"has_{name}": table[f"has_{name}"].astype(float) for name in MODALITIES}
    sums = pd.DataFrame(known).to_numpy()
    products = np.column_stack([sums, sums[:, 0] * sums[:, 1]])
    half = len(table) // 2
    scores = []
    for columns in (sums, products):
        model = LogisticRegression(max_iter=1000).fit(columns[:half], table["died"][:half])
        scores.append(roc_auc_score(table["died"][half:], model.decision_function(columns[half:])))
    assert scores[1] - scores[0] > 0.03


def test_expected_auroc_counts_pairs_by_their_chance() -> None:
    table = pd.DataFrame({"subject_id": ["a", "b"], "risk": [0.2, 0.9], "died": [0, 1]})
    # Pairs (case, other) weighted risk·(1 − risk); a patient against itself is a tie.
    a_first, b_first, ties = 0.2 * 0.1, 0.9 * 0.8, 0.2 * 0.8 + 0.9 * 0.1
    expected = (b_first + ties / 2) / (a_first + b_first + ties)
    assert Truth(table).expected_auroc("risk") == pytest.approx(expected)
    assert Truth(table).auroc("risk") == 1.0


def test_auroc_of_some_patients_is_that_of_their_rows(truth: Truth) -> None:
    some = truth.table.iloc[:500]
    expected = roc_auc_score(some["died"], some["reachable_risk"])
    assert truth.auroc(subject_ids=list(some["subject_id"])) == expected


def test_a_score_or_patient_that_is_not_there_is_refused(truth: Truth) -> None:
    with pytest.raises(InputError, match=r"score: expected one of risk, reachable_risk.*got 'died'"):
        truth.auroc("died")
    with pytest.raises(InputError, match="1 of 2 are not in this hospital"):
        truth.expected_auroc(subject_ids=["P00001", "nobody"])

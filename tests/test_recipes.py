"""Every recipe runs on a handful of patients, and learns them by heart."""

import shutil

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import InputError
from chiasm.datasets.synthetic import write_hospital
from chiasm.fusion import fit, predict
from chiasm.recipes.recipe import load_recipe
from PIL import Image
from sklearn.metrics import roc_auc_score


def physionet(folder, stays: int = 24) -> None:
    """Stays in the published text layout, of sets a and b."""
    draw = np.random.default_rng(0)
    for letter, first in (("a", 1), ("b", 1001)):
        (folder / f"set-{letter}").mkdir(parents=True)
        rows = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"]
        for record in range(first, first + stays):
            died = int(draw.random() < 0.5)
            rows.append(f"{record},1,1,5,-1,{died}")
            lines = ["Time,Parameter,Value", f"00:00,RecordID,{record}", f"00:00,Age,{draw.integers(20, 90)}"]
            lines += ["00:00,Gender,1", "00:00,Height,-1", "00:00,ICUType,3", "00:00,Weight,80"]
            lines += [f"{hour:02d}:07,HR,{70 + 30 * died + draw.normal():.0f}" for hour in range(0, 48, 6)]
            (folder / f"set-{letter}" / f"{record}.txt").write_text("\n".join(lines) + "\n")
        (folder / f"Outcomes-{letter}.txt").write_text("\n".join(rows) + "\n")


def covid(folder, patients: int = 20) -> None:
    """Patients in the layout of the COVID-19 image collection."""
    (folder / "images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    rows = []
    for patient in range(patients):
        icu = patient % 2
        pixels = draw.integers(0, 100, (96, 96)) + 120 * icu
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{patient}.png")
        row = {"patientid": patient + 1, "offset": 3, "sex": "M", "age": 50 + patient, "went_icu": "NY"[icu]}
        row |= {"temperature": 38.2, "pO2_saturation": 95 - 9 * icu, "view": "PA", "modality": "X-ray"}
        row |= {"leukocyte_count": "", "neutrophil_count": "", "lymphocyte_count": "", "location": "Ward"}
        row |= {"finding": "COVID-19", "filename": f"{patient}.png", "image": f"images/{patient}.png"}
        row |= {"url": "https://example.org/case", "clinical_notes": "Bilateral opacities." if icu else "Clear lungs."}
        rows.append(row | {"other_notes": "", "survival": "", "intubated": "", "date": "", "license": "CC BY"})
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)


DATA = {
    "demo": lambda folder: write_hospital(folder, patients=24, seed=1, image_size=64),
    "icu-mortality": physionet,
    "covid-icu": covid,
}
SETTINGS = {
    "demo": ["size=64", "width=32"],
    "icu-mortality": ["width=32", "tuning=0.25"],
    "covid-icu": ["image_model=test_resnet", "size=64", "width=32"],
}


@pytest.mark.parametrize("name", DATA)
def test_a_recipe_learns_a_handful_of_patients_by_heart(name, tmp_path):
    DATA[name](tmp_path / "data")
    recipe = load_recipe(name, SETTINGS[name])
    train, _, _ = recipe.divide(recipe.read(tmp_path / "data"))
    model = recipe.model(train)
    arguments = recipe.training() | {"epochs": 30, "learning_rate": 3e-3, "average": 0.0, "batch_size": 8}

    fit(model, train, None, **arguments, progress=False)

    risks = predict(model, train)
    assert roc_auc_score(train.outcomes.iloc[:, 2], risks["risk"]) > 0.95


@pytest.mark.parametrize("name", DATA)
def test_a_recipe_keeps_patients_apart(name, tmp_path):
    DATA[name](tmp_path / "data")
    recipe = load_recipe(name, SETTINGS[name])
    parts = recipe.divide(recipe.read(tmp_path / "data"))
    patients = [set(part.outcomes["subject_id"]) for part in parts]
    assert all(patients)
    assert sum(map(len, patients)) == len(set.union(*patients))


def test_icu_mortality_follows_a_split_file(tmp_path):
    physionet(tmp_path / "data")
    words = ["train"] * 12 + ["tuning"] * 6 + ["held_out"] * 6
    table = pd.DataFrame({"subject_id": range(1, 25), "split": words})
    table.to_csv(tmp_path / "split.csv", index=False)
    recipe = load_recipe("icu-mortality", [f"split_file={tmp_path / 'split.csv'}"])
    parts = recipe.divide(recipe.read(tmp_path / "data"))
    assert [len(part) for part in parts] == [12, 6, 6]


def test_icu_mortality_trains_on_no_stay_that_a_split_file_has_for_tuning(tmp_path):
    physionet(tmp_path / "data")
    words = ["train"] * 12 + ["tuning"] * 6 + ["held_out"] * 6
    pd.DataFrame({"subject_id": range(1, 25), "split": words}).to_csv(tmp_path / "split.csv", index=False)
    settings = [f"split_file={tmp_path / 'split.csv'}", "members=2"]
    recipe = load_recipe("icu-mortality", settings)
    with pytest.raises(InputError, match=r"split_file says who is for tuning alone.* Set rotating=false"):
        recipe.training()
    assert not load_recipe("icu-mortality", [*settings, "rotating=false"]).rotates


def test_icu_mortality_refuses_a_set_that_is_for_both(tmp_path):
    physionet(tmp_path / "data")
    recipe = load_recipe("icu-mortality", ["train_sets=a", "test_sets=a,b"])
    with pytest.raises(ValueError, match="both train_sets and test_sets"):
        recipe.divide(recipe.read(tmp_path / "data"))


def test_icu_mortality_names_a_training_set_that_is_not_there(tmp_path):
    physionet(tmp_path / "data")
    recipe = load_recipe("icu-mortality", ["train_sets=a,c"])
    with pytest.raises(InputError, match=r"train_sets names c, and .* has no set-c\. Bring it, or leave it out"):
        recipe.read(tmp_path / "data")


def test_icu_mortality_predicts_for_whatever_sets_are_there(tmp_path):
    physionet(tmp_path / "data")
    recipe = load_recipe("icu-mortality")
    assert len(recipe.patients(tmp_path / "data")) == 48
    # A folder of a set that was neither trained nor tested on.
    (tmp_path / "data" / "set-b").rename(tmp_path / "data" / "set-c")
    (tmp_path / "data" / "Outcomes-b.txt").rename(tmp_path / "data" / "Outcomes-c.txt")
    shutil.rmtree(tmp_path / "data" / "set-a")
    assert sorted(recipe.patients(tmp_path / "data").outcomes["subject_id"]) == list(range(1001, 1025))
    with pytest.raises(InputError, match="There is no folder"):
        recipe.read(tmp_path / "data")


def test_covid_icu_predicts_for_patients_whose_outcome_is_not_known(tmp_path):
    covid(tmp_path / "data")
    table = pd.read_csv(tmp_path / "data" / "metadata.csv").astype({"went_icu": object})
    table.loc[:4, "went_icu"] = ""
    table.to_csv(tmp_path / "data" / "metadata.csv", index=False)
    recipe = load_recipe("covid-icu", SETTINGS["covid-icu"])
    known, everyone = recipe.read(tmp_path / "data"), recipe.patients(tmp_path / "data")
    assert sorted(known.outcomes["subject_id"]) == list(range(6, 21))
    assert sorted(everyone.outcomes["subject_id"]) == list(range(1, 21))
    assert known.attrition["step"].iloc[-1] == "patients of whom went_icu is stated"


def test_covid_icu_is_scored_by_cross_validation_with_and_without_notes(tmp_path):
    from chiasm.recipes.cross_validation import cross_validate, cross_validated_risks
    from chiasm.recipes.runs import Run

    covid(tmp_path / "data")
    settings = [*SETTINGS["covid-icu"], "epochs=1", "folds=2", "repeats=1"]
    run = Run(load_recipe("covid-icu", settings), tmp_path / "run")
    cross_validate(run, tmp_path / "data", say=lambda _: None)
    folder = tmp_path / "run" / "folds"
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    assert len(written) == 4
    # Folds that are there are not trained again, also where the data were moved.
    (tmp_path / "data").rename(tmp_path / "moved")
    cross_validate(run, tmp_path / "moved", say=lambda _: None)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*")} == written

    risks, cohort = cross_validated_risks(run, tmp_path / "moved")
    assert set(risks) == {"with notes", "without notes", "source alone", "view alone"}
    assert all(len(own) == len(cohort) == 20 for own in risks.values())

    # A picture that changed is another patient's as far as the folds know.
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(tmp_path / "moved" / "images" / "3.png")
    with pytest.raises(InputError, match="2 are not there for these data"):
        cross_validated_risks(run, tmp_path / "moved")


# What a recipe must be


def own_recipe(folder, code: str) -> str:
    path = folder / "own.py"
    path.write_text(code)
    return str(path)


def test_a_recipe_that_lacks_a_part_is_refused_with_what_it_needs(tmp_path):
    with pytest.raises(InputError, match=r"lacks CARD\. A recipe has CARD, Settings, read, divide, model, training"):
        load_recipe(own_recipe(tmp_path, "x = 1"))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys\n\nsys.exit(0)", r"own\.py cannot be run, line 3: SystemExit: 0\. Mend"),
        ("import sys\n\nimport a_package_of_mine", r"own\.py cannot be run, line 3: ModuleNotFoundError: No module"),
        (
            "def f():\n    return 1 / 0\n\n\nf()",
            r"own\.py cannot be run, line 2: ZeroDivisionError: division by zero. Mend",
        ),
        ("from pathlib import Path\nPath('nowhere').read_text()", r"own\.py cannot be run, line 2: FileNotFoundError"),
    ],
)
def test_a_recipe_that_fails_when_it_is_read_is_refused_with_its_line(tmp_path, code, told):
    with pytest.raises(InputError, match=told):
        load_recipe(own_recipe(tmp_path, code))


def test_a_recipe_that_is_no_python_is_refused_with_its_line(tmp_path):
    with pytest.raises(InputError, match=r"own\.py is not valid Python \(line 2\)"):
        load_recipe(own_recipe(tmp_path, "x = 1\nx = = 2"))


@pytest.mark.parametrize(
    "lacking", ["", "def sources(data, cohort): return {}\n", "folds"], ids=["all", "the settings", "sources"]
)
def test_a_recipe_with_variants_needs_what_cross_validation_needs(tmp_path, lacking):
    settings = "    folds: int = 2\n    repeats: int = 2\n" if lacking == "folds" else "    folds: int = 2\n"
    parts = "CARD = read = divide = model = training = None\nVARIANTS = {}\n"
    code = f"from dataclasses import dataclass\n{parts}@dataclass(frozen=True)\nclass Settings:\n{settings}"
    with pytest.raises(InputError, match="has VARIANTS, so it also needs sources, and the settings folds and repeats"):
        load_recipe(own_recipe(tmp_path, code + (lacking if lacking != "folds" else "")))


@pytest.mark.parametrize(
    ("name", "setting", "match"),
    [
        ("icu-mortality", "seed=-1", "seed is -1; expected a whole number from 0 to 4294967295"),
        ("demo", "seed=4294967296", "seed is 4294967296"),
        ("covid-icu", "repeats=0", "repeats is 0; expected a whole number of at least 1"),
        ("covid-icu", "folds=1", "folds is 1; expected a whole number of at least 2"),
        ("covid-icu", "pretrained=perhaps", "The setting pretrained is 'perhaps'; expected true or false"),
        ("icu-mortality", "width=wide", "The setting width is 'wide'; expected a value of type int"),
        ("icu-mortality", "width", "expected name=value"),
        ("icu-mortality", "depth=3", "has no setting depth"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_read(name, setting, match):
    with pytest.raises(InputError, match=match):
        load_recipe(name, [setting])

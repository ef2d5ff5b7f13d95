"""Every recipe runs on a handful of patients, and learns them by heart."""

import numpy as np
import pandas as pd
import pytest
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


def test_icu_mortality_refuses_a_set_that_is_for_both(tmp_path):
    physionet(tmp_path / "data")
    recipe = load_recipe("icu-mortality", ["train_sets=a", "test_sets=a,b"])
    with pytest.raises(ValueError, match="both train_sets and test_sets"):
        recipe.divide(recipe.read(tmp_path / "data"))


def test_covid_icu_is_scored_by_cross_validation_with_and_without_notes(tmp_path):
    from chiasm.recipes.cross_validation import cross_validate, score_cross_validation
    from chiasm.recipes.runs import Run

    covid(tmp_path / "data")
    settings = [*SETTINGS["covid-icu"], "epochs=1", "folds=2", "repeats=1"]
    run = Run(load_recipe("covid-icu", settings), tmp_path / "run")
    said: list[str] = []
    cross_validate(run, tmp_path / "data", say=said.append)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "folds").iterdir()}
    assert len(written) == 4
    # Folds that are there are not trained again.
    cross_validate(run, tmp_path / "data", say=said.append)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "folds").iterdir()} == written

    risks = score_cross_validation(run, tmp_path / "data", resamples=10, say=said.append)

    assert set(risks) == {"with notes", "without notes", "source alone", "view alone"}
    assert all(len(own) == 20 for own in risks.values())
    assert any("should not predict the outcome" in line for line in said)

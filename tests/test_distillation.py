"""What a network learns from gradient boosting, and that its teacher never saw the patient it speaks of."""

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.encoders import LabEncoder, NoteEncoder, StaticEncoder
from chiasm.fusion import FusionModel, fit
from chiasm.fusion.baselines import BaselineFeatures, boosting
from chiasm.fusion.distillation import cross_fitted_risks, distilled
from sklearn.metrics import roc_auc_score

from .trained import SHORT, same, weights

DAY = pd.Timestamp("2031-05-17 08:00")


def cohort_of(patients: int, *, samples: int = 1, effect: float = 0.0, seed: int = 0) -> Cohort:
    """Patients with lactate and age, who die by a coin that these bend; each predicted for on some days."""
    draw = np.random.default_rng(seed)
    severity = draw.normal(size=patients)
    died = (draw.random(patients) < 1 / (1 + np.exp(-effect * severity))).astype(int)
    ids = np.array([f"P{k:04}" for k in range(patients)])
    outcomes = pd.concat(
        [
            pd.DataFrame({"subject_id": ids, "prediction_time": DAY + pd.Timedelta(days=day), "died": died})
            for day in range(samples)
        ]
    )
    labs = pd.DataFrame({"subject_id": ids, "time": DAY - pd.Timedelta(hours=3), "code": "lactate"})
    labs["value"] = 2 + severity
    static = pd.DataFrame({"subject_id": ids, "age": 60 + 5 * draw.normal(size=patients)})
    return Cohort(outcomes, labs=labs, static=static)


def labels_of(cohort: Cohort) -> np.ndarray:
    return cohort.outcomes["died"].to_numpy(int)


def risks_of(cohort: Cohort, seed: int = 0) -> np.ndarray:
    features = BaselineFeatures().fit(cohort).transform(cohort).to_numpy()
    return cross_fitted_risks(features, labels_of(cohort), cohort.outcomes["subject_id"].to_numpy(), seed=seed)


def model_of(cohort: Cohort, **encoders: object) -> FusionModel:
    encoders = encoders or {"labs": LabEncoder(16), "static": StaticEncoder(16)}
    return FusionModel(**encoders, outcomes=cohort.outcome_kinds)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_teacher_cannot_tell_labels_that_are_chance(samples):
    cohort = cohort_of(200, samples=samples)
    labels = labels_of(cohort)
    told = risks_of(cohort)
    assert roc_auc_score(labels, told) < 0.65
    # One that saw them learns them by heart, so that the test above would notice.
    inputs = BaselineFeatures().fit(cohort).transform(cohort)
    seen = boosting(len(labels)).fit(inputs, labels).predict_proba(inputs)[:, 1]
    assert roc_auc_score(labels, seen) > 0.8


def test_the_teacher_finds_what_boosting_finds():
    cohort = cohort_of(300, effect=3.0)
    assert roc_auc_score(labels_of(cohort), risks_of(cohort)) > 0.8


def test_a_share_of_each_known_label_is_the_teachers_risk():
    cohort = cohort_of(100, effect=2.0)
    unknown = np.arange(100) < 5
    blank = cohort.outcomes.assign(died=cohort.outcomes["died"].astype("Float64").mask(unknown))
    cohort = Cohort(blank, labs=cohort.labs, static=cohort.static)
    model = model_of(cohort)
    model.build(cohort, seed=0)
    samples = model.read(cohort, labelled=True)
    taught, remarks = distilled(samples, cohort, model, share=0.75, seed=3)
    known = cohort.keep(~unknown, why="known")
    expected = 0.25 * labels_of(known) + 0.75 * risks_of(known, seed=3)
    assert taught.outcomes[~unknown, 0] == pytest.approx(expected, abs=1e-6)
    assert (taught.known == samples.known).all()
    assert remarks == ()
    assert set(samples.outcomes[:, 0]) == {0.0, 1.0}


def test_the_teacher_sees_no_modality_that_the_model_does_not():
    cohort = cohort_of(100, effect=2.0)
    model = model_of(cohort, static=StaticEncoder(16))
    model.build(cohort, seed=0)
    samples = model.read(cohort, labelled=True)
    without, _ = distilled(samples, cohort, model, share=1.0, seed=0)
    changed = cohort.with_tables("others", labs=cohort.labs.assign(value=1.0))
    again, _ = distilled(samples, changed, model, share=1.0, seed=0)
    assert (again.outcomes == without.outcomes).all()


def test_the_teacher_looks_no_further_back_than_the_model():
    cohort = cohort_of(100, effect=2.0)
    older = cohort.labs.assign(time=cohort.labs["time"] - pd.Timedelta(hours=90), value=cohort.labs["value"] * 7)
    both = Cohort(cohort.outcomes, labs=pd.concat([cohort.labs, older]), static=cohort.static)
    recent = Cohort(both.outcomes, labs=both.labs, static=both.static, history=6)
    model = model_of(recent)
    model.build(recent, seed=0)
    samples = model.read(both, labelled=True)
    expected = risks_of(cohort, seed=0)
    taught, _ = distilled(samples, both, model, share=1.0, seed=0)
    assert taught.outcomes[:, 0] == pytest.approx(expected, abs=1e-6)


def test_training_from_a_teacher_repeats_itself_and_differs_from_training_without():
    cohort = cohort_of(80, effect=2.0)
    halves = next(iter(cohort.folds(4, seed=0)))
    plain, first, second = (model_of(cohort) for _ in range(3))
    fit(plain, *halves, epochs=2, **SHORT)
    for own in (first, second):
        fit(own, *halves, epochs=2, distillation=0.8, **SHORT)
    assert same(weights(first), weights(second))
    assert not same(weights(plain), weights(first))


def test_a_model_of_no_binary_outcome_has_no_teacher():
    cohort = cohort_of(40)
    days = Cohort(cohort.outcomes.drop(columns="died").assign(days=np.arange(40) / 7), labs=cohort.labs)
    with pytest.raises(InputError, match=r"is for binary outcomes \(0 and 1\), and the model predicts none"):
        fit(model_of(days, labs=LabEncoder(16)), days, distillation=0.5, **SHORT)


def test_a_model_of_notes_alone_has_no_teacher():
    cohort = cohort_of(40)
    notes = cohort.labs[["subject_id", "time"]].assign(text="Stable overnight.")
    cohort = Cohort(cohort.outcomes, notes=notes, labs=cohort.labs)
    with pytest.raises(InputError, match="The model reads neither"):
        fit(model_of(cohort, notes=NoteEncoder()), cohort, distillation=0.5, **SHORT)


def test_a_single_patient_of_a_class_has_no_teacher_and_two_have():
    cohort = cohort_of(40)
    two = Cohort(cohort.outcomes.assign(died=(np.arange(40) < 2).astype(int)), labs=cohort.labs)
    assert np.isfinite(risks_of(two)).all()
    one = Cohort(cohort.outcomes.assign(died=(np.arange(40) < 1).astype(int)), labs=cohort.labs)
    with pytest.raises(InputError, match="needs two training patients of each class at least, and died has fewer"):
        fit(model_of(one, labs=LabEncoder(16)), one, distillation=0.5, **SHORT)
    # One outcome of several stays as it is, and that is told.
    several = Cohort(one.outcomes.assign(stayed=cohort.outcomes["died"]), labs=cohort.labs)
    history = fit(model_of(several, labs=LabEncoder(16)), several, epochs=1, distillation=0.5, **SHORT)
    assert "outcomes: died has too few patients of a class to be learned from boosting" in history.remarks


def test_patients_of_many_samples_take_no_class_with_them():
    # Divided so that samples are balanced, the two patients with positive ones often end in one fold.
    patients = np.repeat([0, 1, 2, 3, 4, 5, 6], [6, 6, 6, 3, 1, 8, 6])
    labels = (patients == 5).astype(int)
    labels[10] = 1
    features = np.random.default_rng(0).normal(size=(len(labels), 2))
    for seed in range(20):
        risks = cross_fitted_risks(features, labels, patients, seed=seed)
        assert risks is not None
        assert np.isfinite(risks).all()
    # Both classes in the one fold of a patient who has all of one of them.
    assert cross_fitted_risks(features, (patients == 5).astype(int), patients) is None

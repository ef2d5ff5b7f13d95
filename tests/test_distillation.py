"""What a network learns from gradient boosting, and that its teacher never saw the patient it speaks of."""

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.encoders import LabEncoder, NoteEncoder, StaticEncoder
from chiasm.fusion import FusionModel, fit
from chiasm.fusion.baselines import SummaryFeatures, boosting
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


def model_of(cohort: Cohort, **encoders: object) -> FusionModel:
    encoders = encoders or {"labs": LabEncoder(16), "static": StaticEncoder(16)}
    return FusionModel(**encoders, outcomes=cohort.outcome_kinds)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_teacher_cannot_tell_labels_that_are_chance(samples):
    cohort = cohort_of(200, samples=samples)
    labels = labels_of(cohort)
    told = cross_fitted_risks(cohort, labels)
    assert roc_auc_score(labels, told) < 0.65
    # One that saw them learns them by heart, so that the test above would notice.
    inputs = SummaryFeatures().fit(cohort).transform(cohort)
    seen = boosting(len(labels)).fit(inputs, labels).predict_proba(inputs)[:, 1]
    assert roc_auc_score(labels, seen) > 0.8


def test_the_teacher_finds_what_boosting_finds():
    cohort = cohort_of(300, effect=3.0)
    assert roc_auc_score(labels_of(cohort), cross_fitted_risks(cohort, labels_of(cohort))) > 0.8


def test_a_share_of_each_known_label_is_the_teachers_risk():
    cohort = cohort_of(100, effect=2.0)
    unknown = np.arange(100) < 5
    blank = cohort.outcomes.assign(died=cohort.outcomes["died"].astype("Float64").mask(unknown))
    cohort = Cohort(blank, labs=cohort.labs, static=cohort.static)
    model = model_of(cohort)
    model.build(cohort, seed=0)
    samples = model.read(cohort, labelled=True)
    taught = distilled(samples, cohort, model, share=0.75, seed=3)
    known = cohort.keep(~unknown, why="known")
    expected = 0.25 * labels_of(known) + 0.75 * cross_fitted_risks(known, labels_of(known), seed=3)
    assert taught.outcomes[~unknown, 0] == pytest.approx(expected, abs=1e-6)
    assert (taught.known == samples.known).all()
    assert set(samples.outcomes[:, 0]) == {0.0, 1.0}


def test_the_teacher_sees_no_modality_that_the_model_does_not():
    cohort = cohort_of(100, effect=2.0)
    model = model_of(cohort, static=StaticEncoder(16))
    model.build(cohort, seed=0)
    samples = model.read(cohort, labelled=True)
    without = distilled(samples, cohort, model, share=1.0, seed=0)
    changed = cohort.with_tables("others", labs=cohort.labs.assign(value=1.0))
    assert (distilled(samples, changed, model, share=1.0, seed=0).outcomes == without.outcomes).all()


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
    with pytest.raises(InputError, match="is for binary outcomes, and the model predicts none"):
        fit(model_of(days, labs=LabEncoder(16)), days, distillation=0.5, **SHORT)


def test_a_model_of_notes_alone_has_no_teacher():
    cohort = cohort_of(40)
    notes = cohort.labs[["subject_id", "time"]].assign(text="Stable overnight.")
    cohort = Cohort(cohort.outcomes, notes=notes, labs=cohort.labs)
    with pytest.raises(InputError, match="have neither"):
        fit(model_of(cohort, notes=NoteEncoder()), cohort, distillation=0.5, **SHORT)


def test_a_single_patient_of_a_class_has_no_teacher_and_two_have():
    cohort = cohort_of(40)
    two = Cohort(cohort.outcomes.assign(died=(np.arange(40) < 2).astype(int)), labs=cohort.labs)
    assert np.isfinite(cross_fitted_risks(two, labels_of(two))).all()
    few = Cohort(cohort.outcomes.assign(died=(np.arange(40) < 1).astype(int)), labs=cohort.labs)
    with pytest.raises(InputError, match="needs two training patients of each class"):
        fit(model_of(few, labs=LabEncoder(16)), few, distillation=0.5, **SHORT)

"""Logistic regression and boosting on summary features, as they stand beside every fused model."""

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.fusion.baselines import BASELINES, BaselineFeatures, baseline_risks, boosting
from sklearn.metrics import f1_score, roc_auc_score

DAY = pd.Timestamp("2031-05-17 08:00")


def cohort_of(patients: int, seed: int) -> Cohort:
    """Patients whose outcome follows the lactate and the age, some without either."""
    draw = np.random.default_rng(seed)
    severity = draw.normal(size=patients)
    ids = [f"{seed}-{k}" for k in range(patients)]
    outcomes = pd.DataFrame({"subject_id": ids, "prediction_time": DAY, "died": (severity > 0).astype(int)})
    labs = pd.DataFrame(
        [
            {"subject_id": own, "time": DAY - pd.Timedelta(hours=hour), "code": "lactate", "value": 2 + s + 0.1 * hour}
            for own, s in zip(ids[5:], severity[5:], strict=True)
            for hour in (6, 3, 1)
        ]
    )
    static = pd.DataFrame({"subject_id": ids, "age": 60 + 5 * severity, "sex": np.where(severity > 1, "F", "M")})
    return Cohort(outcomes, labs=labs, static=static)


def test_summary_features_are_last_min_max_mean_and_count():
    cohort = cohort_of(20, seed=0)
    table = BaselineFeatures().fit(cohort).transform(cohort)
    values = cohort.labs[cohort.labs["subject_id"] == cohort.outcomes["subject_id"].iloc[-1]]["value"]
    own = table.iloc[-1]
    expected = [values.iloc[-1], values.min(), values.max(), values.mean(), 3]
    names = [f"lactate {name}" for name in ("last", "min", "max", "mean", "count")]
    assert own[names].to_numpy() == pytest.approx(np.array(expected, float))
    assert {"age", "sex=F", "sex=M"} <= set(table.columns)


def test_a_patient_without_labs_has_missing_values_and_a_count_of_zero():
    cohort = cohort_of(20, seed=0)
    table = BaselineFeatures().fit(cohort).transform(cohort)
    without = ~cohort.has_input()["labs"].to_numpy()
    assert without.sum() == 5
    assert table.loc[without, "lactate last"].isna().all()
    assert (table.loc[without, "lactate count"] == 0).all()


def test_detailed_features_tell_the_course_of_an_analyte():
    outcomes = pd.DataFrame({"subject_id": ["a", "b"], "prediction_time": DAY, "died": [0, 1]})
    hours, values = [30.0, 26.0, 20.0, 4.0, 2.0], [1.0, 3.0, 2.0, 5.0, 4.0]
    labs = pd.DataFrame({"time": DAY - pd.to_timedelta(hours, unit="h"), "code": "lactate", "value": values})
    # Codes that fewer than five patients have are not read; the second patient has one measurement.
    one = labs.tail(1)
    cohort = Cohort(
        pd.concat([outcomes.assign(subject_id=[f"{k}a", f"{k}b"]) for k in range(5)]),
        labs=pd.concat(
            [part.assign(subject_id=f"{k}{own}") for k in range(5) for own, part in (("a", labs), ("b", one))]
        ),
    )
    features = BaselineFeatures(detailed=True).fit(cohort)
    table = features.transform(cohort)
    told = {name.removeprefix("lactate "): value for name, value in table.iloc[0].items()}
    # 30 hours are longer than a shift and a day, and shorter than a week.
    expected = {
        "last min max mean count": (4, 1, 5, 3, 5),
        "first std sum step": (1, np.std(values, ddof=1), 15, (2 + 1 + 3 + 1) / 4),
        "since until slope": (-30, -2, -np.polyfit(hours, values, 1)[0]),
    }
    expected = {
        name: own for names, all_of in expected.items() for name, own in zip(names.split(), all_of, strict=True)
    }
    for when, level in (("in 6 h", (4.5, 4, 5, 2)), ("in 24 h", (11 / 3, 2, 5, 3)), ("before 24 h", (2, 1, 3))):
        expected |= {f"{name} {when}": own for name, own in zip(("mean", "min", "max", "count"), level, strict=False)}
    assert told == pytest.approx(expected)
    single = table.iloc[1]
    assert single[["lactate std", "lactate slope", "lactate step", "lactate mean before 24 h"]].isna().all()
    assert list(table.columns) == features.columns == BaselineFeatures.restored(features.state()).columns


@pytest.mark.parametrize("kind", BASELINES)
def test_a_baseline_finds_a_plain_signal(kind):
    train, test = cohort_of(200, seed=1), cohort_of(100, seed=2)
    risks = baseline_risks(kind, train, test, "died")
    assert roc_auc_score(test.outcomes["died"], risks["risk"]) > 0.9
    assert (risks["status"] == "ok").all()


@pytest.mark.parametrize("kind", BASELINES)
def test_a_baseline_is_called_positive_from_the_threshold_that_is_best_for_validation_patients(kind):
    train, valid, test = cohort_of(120, seed=1), cohort_of(60, seed=2), cohort_of(60, seed=3)
    plain = baseline_risks(kind, train, test, "died")
    assert "thresholds" not in plain.attrs
    tuned = baseline_risks(kind, train, test, "died", valid=valid)
    assert tuned.equals(plain)
    risk = baseline_risks(kind, train, valid, "died")["risk"].to_numpy()
    scores = {one: f1_score(valid.outcomes["died"], risk >= one) for one in risk}
    chosen = tuned.attrs["thresholds"]["died"]
    assert scores[chosen["value"]] == max(scores.values())
    assert chosen["chosen"] == "maximises F1 on the validation patients"
    # Validation patients of one class leave nothing to choose by.
    alive = valid.keep(valid.outcomes["died"].eq(0).to_numpy(), why="alive")
    assert "thresholds" not in baseline_risks(kind, train, test, "died", valid=alive).attrs


def test_a_column_that_is_missing_at_prediction_counts_as_missing():
    train, test = cohort_of(100, seed=1), cohort_of(30, seed=2).with_tables("no facts", static=None)
    assert baseline_risks("gradient boosting", train, test, "died")["risk"].between(0, 1).all()


@pytest.mark.parametrize("kind", BASELINES)
def test_a_column_that_no_patient_with_a_known_outcome_has_teaches_nothing(kind):
    train = cohort_of(60, seed=1)
    died = train.outcomes["died"].astype("float64").mask(np.arange(60) < 30)
    height = pd.Series(170.0).reindex(range(60))
    train = Cohort(train.outcomes.assign(died=died), labs=train.labs, static=train.static.assign(height=height))
    assert baseline_risks(kind, train, cohort_of(20, seed=2), "died")["risk"].notna().all()


def test_facts_are_read_as_networks_read_them():
    train = cohort_of(20, seed=0)
    features = BaselineFeatures().fit(Cohort(train.outcomes, static=train.static.assign(stage=["1", "b"] * 10)))
    coded = Cohort(train.outcomes, static=train.static.assign(stage=[1, 2] * 10))
    table = features.transform(coded)
    assert table["stage=1"].tolist() == [1, 0] * 10
    assert (table["stage=b"] == 0).all()
    words = Cohort(train.outcomes, static=train.static.assign(age="old"))
    with pytest.raises(InputError, match=r"static\.age held numbers in training, and 20 values here are none"):
        features.transform(words)


def test_outcomes_that_are_not_binary_are_refused():
    cohort = cohort_of(20, seed=0)
    with pytest.raises(InputError, match=r"predict binary outcomes; los is None"):
        baseline_risks("gradient boosting", cohort, cohort, "los")


def test_a_cohort_without_labs_and_facts_is_refused():
    cohort = cohort_of(20, seed=0).with_tables("nothing", static=None, labs=None)
    with pytest.raises(InputError, match="has neither"):
        baseline_risks("gradient boosting", cohort, cohort, "died")


def test_boosting_learns_from_all_rows_however_many_they_are():
    assert boosting(20_000).get_params()["early_stopping"] is False

"""Laws of evaluation: risks joined to labels, intervals over patients, differences between models."""

import io
import json
import time

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.fusion.evaluation import evaluate, interval_cell, paired_difference, percentile_interval
from chiasm.fusion.matching import labelled_risks
from sklearn.metrics import roc_auc_score


def _hospital(patients=60, visits=2, seed=0):
    """A cohort with a binary, a categorical and a continuous outcome, and risks of all three."""
    generator = np.random.default_rng(seed)
    samples = patients * visits
    risk = generator.random(samples)
    stage_risk = generator.dirichlet([1, 1, 1], samples)
    classes = ("mild", "moderate", "severe")
    days = generator.gamma(2, 2, samples)
    outcomes = pd.DataFrame(
        {
            "subject_id": np.repeat(np.arange(patients) + 1000, visits),
            "prediction_time": pd.Timestamp("2024-01-01") + np.tile(np.arange(visits), patients) * pd.Timedelta("1D"),
            "died": (generator.random(samples) < risk).astype(float),
            "stage": [classes[generator.choice(3, p=row)] for row in stage_risk],
            "days": days,
        }
    ).astype({"prediction_time": "datetime64[us]"})
    columns = {"died": risk, "days": days + generator.normal(size=samples)}
    columns |= {f"stage={name}": stage_risk[:, k] for k, name in enumerate(classes)}
    risks = pd.concat(
        [
            outcomes[["subject_id", "prediction_time"]].assign(outcome=k, risk=v, status="ok")
            for k, v in columns.items()
        ],
        ignore_index=True,
    )
    return Cohort(outcomes), risks


KEY = ["subject_id", "prediction_time"]


def _died(cohort, risks):
    """The same with the outcome died alone."""
    return Cohort(cohort.outcomes[[*KEY, "died"]]), risks[risks["outcome"] == "died"].reset_index(drop=True)


def _with(cohort, **columns):
    """The same patients with other values in some columns, and the same kinds of outcome."""
    return Cohort(cohort.outcomes.assign(**columns), outcome_kinds=cohort.outcome_kinds)


def test_values_are_those_of_scikit_learn_on_the_joined_samples():
    cohort, risks = _hospital()
    evaluation = evaluate(risks.sample(frac=1, random_state=0), cohort, resamples=20)
    risk = risks.loc[risks["outcome"] == "died", "risk"]
    assert evaluation.value("died", "AUROC") == pytest.approx(roc_auc_score(cohort.outcomes["died"], risk))
    days = risks.loc[risks["outcome"] == "days", "risk"].to_numpy()
    assert evaluation.value("days", "MAE") == pytest.approx(np.abs(days - cohort.outcomes["days"]).mean())
    stages = risks[risks["outcome"].str.startswith("stage=")]["risk"].to_numpy().reshape(3, -1).T
    expected = roc_auc_score(cohort.outcomes["stage"], stages, multi_class="ovr")
    assert evaluation.value("stage", "macro AUROC") == pytest.approx(expected)


def test_each_value_lies_in_its_interval_and_a_higher_level_is_wider():
    cohort, risks = _died(*_hospital())
    narrow = evaluate(risks, cohort, level=0.5, resamples=200).table
    wide = evaluate(risks, cohort, level=0.95, resamples=200).table
    unbiased = wide["metric"] != "ECE"
    assert (wide["low"] <= wide["value"])[unbiased].all()
    assert (wide["value"] <= wide["high"])[unbiased].all()
    assert ((wide["high"] - wide["low"]) > (narrow["high"] - narrow["low"])).all()


def test_the_result_does_not_depend_on_the_order_of_rows_and_repeats_with_its_seed():
    cohort, risks = _died(*_hospital())
    shuffled = Cohort(cohort.outcomes.sample(frac=1, random_state=3))
    first = evaluate(risks, cohort, resamples=50).table
    second = evaluate(risks.sample(frac=1, random_state=4), shuffled, resamples=50).table
    pd.testing.assert_frame_equal(first, second, rtol=1e-9)
    assert not first.equals(evaluate(risks, cohort, resamples=50, seed=1).table)


def test_patients_are_resampled_so_copies_of_a_patients_samples_do_not_narrow_the_interval():
    once, risks_once = _died(*_hospital(patients=80, visits=1))
    copies = []
    for day in range(4):
        copies.append(once.outcomes.assign(prediction_time=once.outcomes["prediction_time"] + pd.Timedelta(days=day)))
    same_patients = pd.concat(copies, ignore_index=True)
    new_patients = same_patients.assign(subject_id=np.arange(len(same_patients)))
    tables = {}
    for name, outcomes in (("once", once.outcomes), ("same", same_patients), ("new", new_patients)):
        risks = outcomes[["subject_id", "prediction_time"]].assign(
            outcome="died", risk=np.tile(risks_once["risk"], len(outcomes) // 80), status="ok"
        )
        tables[name] = evaluate(risks, Cohort(outcomes), resamples=300).table.set_index("metric")
    width = {name: (table["high"] - table["low"])["AUROC"] for name, table in tables.items()}
    assert tables["same"]["value"]["AUROC"] == pytest.approx(tables["once"]["value"]["AUROC"])
    assert width["same"] == pytest.approx(width["once"], rel=1e-6)
    assert width["new"] < 0.6 * width["same"]


def test_samples_refused_and_unknown_add_up_to_the_cohort():
    cohort, risks = _died(*_hospital())
    cohort = _with(cohort, died=cohort.outcomes["died"].mask(cohort.outcomes.index < 5))
    risks.loc[3:9, "risk"] = np.nan
    risks.loc[3:9, "status"] = "image unreadable"
    count = evaluate(risks, cohort, resamples=5).counts.iloc[0]
    assert (count["samples"], count["refused"], count["unknown"]) == (110, 5, 5)
    assert count["samples"] + count["refused"] + count["unknown"] == len(cohort.outcomes)
    assert count["events"] == cohort.outcomes.loc[10:, "died"].sum()
    assert count["patients"] == 55


def test_resamples_without_both_classes_are_left_out_and_counted():
    outcomes = pd.DataFrame(
        {"subject_id": range(6), "prediction_time": pd.Timestamp("2024-01-01"), "died": [1, 0, 0, 0, 0, 0]}
    )
    risks = outcomes[["subject_id", "prediction_time"]].assign(
        outcome="died", risk=[0.6, 0.7, 0.3, 0.2, 0.1, 0.1], status="ok"
    )
    evaluation = evaluate(risks, Cohort(outcomes), resamples=400)
    undefined = evaluation.table.set_index("metric").loc["AUROC", "undefined"]
    assert undefined / 400 == pytest.approx((5 / 6) ** 6, abs=0.08)  # the one event is not drawn
    assert evaluation.counts["undefined_resamples"].iloc[0] >= undefined
    assert f"undefined in {undefined} of 400 resamples" in str(evaluation)


def test_a_threshold_is_the_callers_else_the_fitted_else_one_half_and_says_so():
    cohort, risks = _died(*_hospital())
    default = evaluate(risks, cohort, resamples=0)
    assert default.thresholds["died"]["value"] == 0.5
    assert "default" in default.thresholds["died"]["chosen"]
    fitted = {"value": 0.3, "chosen": "maximises F1 on the validation patients"}
    risks.attrs["thresholds"] = {"died": fitted}
    assert evaluate(risks, cohort, resamples=0).thresholds == {"died": fitted}
    given = evaluate(risks, cohort, thresholds={"died": 0.8}, resamples=0)
    assert given.thresholds == {"died": {"value": 0.8, "chosen": "given by the caller"}}
    called = risks["risk"] >= 0.8
    assert given.value("died", "recall") == pytest.approx(called[cohort.outcomes["died"] == 1].mean())


def test_risks_read_back_from_csv_give_the_same_values():
    cohort, risks = _hospital()
    csv = risks.to_csv(index=False)
    expected = evaluate(risks, cohort, resamples=0).table
    for options in ({}, {"dtype": {"subject_id": str}}, {"parse_dates": ["prediction_time"]}):
        back = pd.read_csv(io.StringIO(csv), **options)
        pd.testing.assert_frame_equal(evaluate(back, cohort, resamples=0).table, expected)


def test_outcomes_without_risks_are_named_and_rows_of_other_patients_unused():
    cohort, risks = _hospital()
    first_half = cohort.keep(np.arange(120) < 60, why="the first half")
    evaluation = evaluate(risks[risks["outcome"] == "died"], first_half, resamples=0)
    assert evaluation.not_predicted == ("stage", "days")
    assert evaluation.counts["samples"].tolist() == [60]
    assert "not evaluated: stage, days" in str(evaluation)


@pytest.mark.parametrize("dtype", ["bool", "boolean", "Int64", "object"])
def test_labels_may_be_of_any_dtype_that_holds_0_and_1(dtype):
    cohort, risks = _died(*_hospital())
    expected = evaluate(risks, cohort, resamples=0).table
    other = _with(cohort, died=cohort.outcomes["died"].astype("int64").astype(dtype))
    pd.testing.assert_frame_equal(evaluate(risks, other, resamples=0).table, expected)


def test_class_risks_rounded_in_a_file_are_divided_by_their_sum():
    cohort, risks = _hospital()
    rounded = risks.assign(risk=risks["risk"].round(4))
    labelled = labelled_risks(rounded, cohort, outcome="stage")
    np.testing.assert_allclose(labelled.risk.sum(axis=1), 1, atol=1e-12)


def test_the_text_aligns_and_states_threshold_counts_and_level():
    cohort, risks = _died(*_hospital())
    text = str(evaluate(risks, cohort, resamples=50, level=0.9))
    events = int(cohort.outcomes["died"].sum())
    assert f"died (binary): 60 patients, 120 samples, {events} events; 0 risks refused, 0 labels unknown" in text
    assert "threshold 0.5: the default; none was chosen on validation patients" in text
    assert "90% percentile intervals from 50 resamples of patients (seed 0)" in text
    rows = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(rows) == 12
    starts = 2 + len("calibration intercept") + 2
    assert all(line[starts - 2 : starts] == "  " and line[starts] != " " for line in rows)


def test_a_cell_shows_value_and_interval_or_that_it_is_undefined():
    assert interval_cell(0.8531, 0.836, 0.8701) == "0.853 (0.836–0.870)"
    assert interval_cell(0.1, -0.2, 0.4) == "0.100 (-0.200 to 0.400)"
    assert interval_cell(0.5, np.nan, np.nan) == "0.500"
    assert interval_cell(np.nan, np.nan, np.nan) == "undefined"


def test_the_interval_of_values_never_defined_is_undefined():
    low, high, undefined = percentile_interval(np.full(7, np.nan), level=0.95)
    assert np.isnan(low)
    assert np.isnan(high)
    assert undefined == 7


def test_an_evaluation_is_plain_json(tmp_path):
    cohort, risks = _hospital()
    risks.loc[risks["outcome"] == "died", "risk"] *= 0.4  # nobody reaches 0.5: precision is undefined
    evaluation = evaluate(risks, cohort, resamples=5)
    evaluation.to_json(tmp_path / "metrics.json")
    read = json.loads((tmp_path / "metrics.json").read_text())
    assert read == evaluation.to_dict()
    assert [row["value"] for row in read["table"] if row["metric"] == "precision"] == [None]
    assert read["counts"][0]["samples"] == 120
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_the_difference_of_a_model_from_itself_is_zero_with_an_interval_of_zero():
    cohort, risks = _hospital()
    for outcome, metric in (("died", "AUROC"), ("died", "F1"), ("stage", "macro AUROC"), ("days", "RMSE")):
        difference = paired_difference(risks, risks, cohort, outcome=outcome, metric=metric, resamples=20)
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_a_paired_difference_is_narrower_than_the_two_intervals_and_changes_sign_with_the_order():
    cohort, risks = _died(*_hospital(patients=150))
    noise = np.random.default_rng(0).normal(0, 0.1, len(risks))
    other = risks.assign(risk=(risks["risk"] + noise).clip(0, 1))
    forth = paired_difference(risks, other, cohort, outcome="died", resamples=200)
    back = paired_difference(other, risks, cohort, outcome="died", resamples=200)
    values = [evaluate(each, cohort, resamples=200) for each in (risks, other)]
    alone = values[0].table.set_index("metric").loc["AUROC"]
    assert forth.value == pytest.approx(values[0].value("died", "AUROC") - values[1].value("died", "AUROC"))
    assert (back.value, back.low, back.high) == pytest.approx((-forth.value, -forth.high, -forth.low))
    assert forth.high - forth.low < 0.7 * (alone["high"] - alone["low"])
    assert str(forth).startswith(f"AUROC of died differs by {forth.value:+.3f} ({forth.low:+.3f} to")


def test_a_paired_difference_uses_only_samples_that_neither_refused():
    cohort, risks = _died(*_hospital())
    refused = risks.copy()
    refused.loc[:9, ["risk", "status"]] = [np.nan, "no modality"]
    difference = paired_difference(risks, refused, cohort, outcome="died", resamples=0)
    assert (difference.value, difference.samples, difference.patients) == (0, 110, 55)
    assert str(difference).startswith("AUROC of died differs by +0.000: 55 patients, 110 samples")


def test_an_undefined_difference_says_so():
    cohort, risks = _died(*_hospital())
    risks["risk"] *= 0.4
    difference = paired_difference(risks, risks, cohort, outcome="died", metric="precision", resamples=3)
    assert str(difference) == "precision of died: the difference is undefined"


def test_paired_differences_refuse_what_they_cannot_compare():
    cohort, risks = _died(*_hospital())
    half = len(risks) // 2
    first, second = risks.copy(), risks.copy()
    first.loc[: half - 1, ["risk", "status"]] = [np.nan, "refused"]
    second.loc[half:, ["risk", "status"]] = [np.nan, "refused"]
    with pytest.raises(InputError, match="no sample of the cohort has a risk of 'died' in both"):
        paired_difference(first, second, cohort, outcome="died")
    with pytest.raises(InputError, match="no risks of 'stage'; there are risks of died"):
        paired_difference(risks, risks, cohort, outcome="stage")
    with pytest.raises(InputError, match="no metric is called 'AUC'"):
        paired_difference(risks, risks, cohort, outcome="died", metric="AUC")


def _one(column, value, rows=7):
    def change(risks):
        values = risks[column].astype(object)
        values.loc[rows] = value
        return risks.assign(**{column: values if isinstance(value, str) else values.infer_objects()})

    return change


def test_another_hospital_that_lacks_a_class_is_evaluated_with_the_outcomes_of_the_model():
    stages = ["mild", "severe", "fatal"] * 4
    keys = {"subject_id": range(12), "prediction_time": pd.Timestamp("2031-05-17")}
    kinds = Cohort(pd.DataFrame(keys | {"stage": stages})).outcome_kinds
    fewer = pd.DataFrame(keys | {"stage": [None if stage == "fatal" else stage for stage in stages]})
    classes = ["stage=fatal", "stage=mild", "stage=severe"]
    risks = pd.DataFrame(keys).merge(pd.DataFrame({"outcome": classes, "risk": [0.2, 0.5, 0.3]}), how="cross")
    risks["status"] = "ok"
    with pytest.raises(InputError, match=r"risks of stage=fatal: .* outcome_kinds=model\.outcomes"):
        evaluate(risks, Cohort(fewer), resamples=0)
    found = evaluate(risks, Cohort(fewer, outcome_kinds=kinds), resamples=0)
    assert found.value("stage", "accuracy") == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda risks: risks[["subject_id", "outcome"]], "lack the columns prediction_time, risk, status; expected"),
        (lambda risks: risks.assign(subject_id=risks["subject_id"] + 10**6), r"none of the 120 rows .* 120 samples"),
        (lambda risks: risks.assign(subject_id=risks["subject_id"] + 0.0), "decimal numbers"),
        (lambda risks: risks.iloc[3:], "'died': 3 of the cohort's 120 samples have no row"),
        (lambda risks: risks.iloc[:0], "none of the 0 rows"),
        (
            lambda risks: risks.assign(outcome="alive"),
            r"risks of alive: the cohort has no such .* Give .*=model\.outcomes",
        ),
        (
            lambda risks: pd.concat([risks, risks.iloc[:2]]),
            "2 of 122 rows of risks repeat a patient, prediction time and outcome",
        ),
        (_one("prediction_time", "yesterday"), "1 of 120 prediction times are not times"),
        (
            lambda risks: risks.assign(prediction_time=risks["prediction_time"].dt.tz_localize("UTC")),
            "carry a time zone",
        ),
        (
            lambda risks: risks.assign(prediction_time=["2031-03-01T08:00+01:00", "2031-06-01T08:00+02:00"] * 60),
            r"carry a time zone, .* UTC. Convert yours .* utc=True\)\.dt\.tz_localize\(None\)",
        ),
        (_one("risk", np.nan), "1 of 120 risks with status ok are not finite"),
        (_one("risk", np.inf), "1 of 120 risks with status ok are not finite"),
        (_one("risk", 1.2), r"risks must lie in \[0, 1\], came .* to 1.2"),
        (_one("risk", "high"), "column risk must hold numbers, not object"),
        (_one("status", None), "rows without a value in status"),
        (lambda risks: risks.assign(status="refused"), r"no sample has both .* 0 have no known .* 120 a refused"),
    ],
)
def test_unusable_risks_are_errors_that_count(change, message):
    cohort, risks = _died(*_hospital())
    with pytest.raises(InputError, match=message):
        evaluate(change(risks), cohort, resamples=1)


def test_labels_of_one_class_are_errors_that_count():
    cohort, risks = _hospital()
    for outcome, value, message in (
        ("died", 0.0, r"'died': all 120 known labels .* are 0; AUROC needs both 0 and 1"),
        ("stage", "mild", r"'stage': all 120 known labels .* are mild; .* and another class"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(risks, _with(cohort, **{outcome: value}), resamples=1)


def test_unusable_class_risks_are_refused():
    cohort, risks = _hospital()
    lacking = risks[risks["outcome"] != "stage=mild"]
    with pytest.raises(InputError, match="'stage': 120 of the cohort's 120 samples have no row"):
        evaluate(lacking, cohort)
    doubled = risks.assign(risk=risks["risk"].where(risks["outcome"] != "stage=mild", 0.99))
    with pytest.raises(InputError, match="'stage': the risks of the classes do not sum to 1"):
        evaluate(doubled, cohort)


def test_unusable_arguments_are_refused():
    cohort, risks = _hospital()
    with pytest.raises(InputError, match="at least 0, not -1"):
        evaluate(risks, cohort, resamples=-1)
    with pytest.raises(InputError, match=r"between 0 and 1, such as 0.95; not 95"):
        evaluate(risks, cohort, level=95)
    with pytest.raises(InputError, match=r"threshold was given for 'days'; .* are died"):
        evaluate(risks, cohort, thresholds={"days": 0.5})
    with pytest.raises(InputError, match=r"threshold must lie in \[0, 1\], not 50"):
        evaluate(risks, cohort, thresholds={"died": 50})
    with pytest.raises(InputError, match="no metric 'AUC' of an outcome 'died' here; there are died: AUROC"):
        evaluate(risks, cohort, resamples=0).value("died", "AUC")


def test_no_message_names_a_patient():
    cohort, risks = _died(*_hospital())
    for broken in (pd.concat([risks, risks]), risks.iloc[1:], risks.assign(subject_id="p-1234567")):
        with pytest.raises(InputError) as raised:
            evaluate(broken, cohort)
        assert not any(str(subject) in str(raised.value) for subject in (*range(1000, 1060), "p-1234567"))


def test_a_thousand_resamples_of_four_thousand_patients_take_seconds():
    cohort, risks = _died(*_hospital(patients=4000, visits=1))
    start = time.process_time()
    evaluate(risks, cohort, resamples=50)
    assert (time.process_time() - start) * 20 < 30  # about 7 s on one core; wide, for busy machines

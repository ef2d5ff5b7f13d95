"""Boosted trees beside networks: scikit-learn's risks from plain arrays, in one ensemble and one folder."""

import json
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.encoders import LabEncoder, NoteEncoder
from chiasm.fusion import ConcatenationFusion, Ensemble, FusionModel, contributions, fit_ensemble, predict
from chiasm.fusion.baselines import boosting
from chiasm.fusion.boosted_trees import BoostedTrees, Trees
from chiasm.fusion.ensemble import load_trained
from chiasm.fusion.inference import NOTHING_KNOWN
from sklearn.metrics import roc_auc_score

from .trained import make_model

DAY = pd.Timestamp("2031-05-17 08:00")
TRAINING = {"epochs": 1, "batch_size": 16, "progress": False}


def cohort_of(patients: int, seed: int, **columns: object) -> Cohort:
    """Patients whose outcome follows the lactate and the age; some lack a series, some facts, the first both."""
    draw = np.random.default_rng(seed)
    severity = draw.normal(size=patients)
    ids = [f"{seed}-{k}" for k in range(patients)]
    outcomes = pd.DataFrame({"subject_id": ids, "prediction_time": DAY, "died": (severity > 0).astype(int), **columns})
    hours = np.tile([40.0, 6.0, 1.0], patients - 5)
    labs = {"subject_id": np.repeat(ids[5:], 3), "time": DAY - pd.to_timedelta(hours, unit="h"), "code": "lactate"}
    static = pd.DataFrame({"subject_id": ids, "age": 60 + 5 * severity})
    value = np.repeat(severity[5:], 3) + 0.1 * hours
    return Cohort(outcomes, labs=pd.DataFrame({**labs, "value": value}), static=static.drop(index=[0, 7, 8]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("ensemble") / "run"
    train, valid = cohort_of(120, 1).keep_with_input(), cohort_of(40, 2)
    ensemble, histories = fit_ensemble(make_model, train, valid, members=3, boosted=2, training=TRAINING, out=out)
    assert [type(member) for member in ensemble.members] == [FusionModel, BoostedTrees, BoostedTrees]
    assert len(histories) == 1
    return ensemble, out


def test_trees_give_the_risks_of_scikit_learn():
    draw = np.random.default_rng(0)
    table = draw.normal(size=(3000, 6))
    labels = (table[:, 0] * table[:, 1] + table[:, 2] > 0).astype(int)
    table[draw.random(table.shape) < 0.3] = np.nan
    # Some values come again and again, so that a threshold may be one of them.
    table[:, 3] = table[:, 3].round()
    learned = boosting(len(table), 0).fit(table, labels)
    trees = Trees.of(learned)
    trees.require_sound(table.shape[1])
    others = np.where(draw.random(table.shape) < 0.3, np.nan, draw.normal(scale=2, size=table.shape))
    for asked in (table, others, np.full((1, 6), np.inf), table[:0]):
        expected = learned.predict_proba(asked)[:, 1] if len(asked) else []
        np.testing.assert_allclose(trees.risks(asked), expected, rtol=0, atol=1e-12)


def test_the_risk_is_the_mean_of_networks_and_trees_which_differ(trained):
    test = cohort_of(60, 3).keep(np.arange(60) > 0, why="known")
    own = [predict(member, test) for member in trained[0].members]
    assert not np.array_equal(own[1]["risk"], own[2]["risk"])
    joint = predict(trained[0], test)
    np.testing.assert_allclose(joint["risk"], np.mean([table["risk"] for table in own], 0), rtol=0, atol=1e-12)
    assert roc_auc_score(test.outcomes["died"], own[1]["risk"]) > 0.9
    assert list(own[0].columns) == list(own[1].columns)
    assert (own[0].dtypes == own[1].dtypes).all()


def test_a_loaded_ensemble_predicts_to_the_bit_what_the_saved_one_did(trained):
    ensemble, out = trained
    test = cohort_of(60, 3)
    again = load_trained(out / "model")
    pd.testing.assert_frame_equal(predict(again, test), predict(ensemble, test), check_exact=True)
    pd.testing.assert_frame_equal(contributions(again, test), contributions(ensemble, test), check_exact=True)


def test_contributions_add_up_to_the_risk(trained):
    test = cohort_of(60, 3)
    for asked in (trained[0], trained[0].members[1]):
        table = contributions(asked, test)
        assert set(table["modality"]) == {"labs", "static"}
        joint = table.groupby("subject_id").agg(total=("contribution", "sum"), baseline=("baseline", "first"))
        risks = predict(asked, test).set_index("subject_id")["risk"]
        known = risks.notna()
        assert known.sum() == 59
        np.testing.assert_allclose(
            (joint["total"] + joint["baseline"]).loc[risks.index][known], risks[known], atol=1e-6
        )
    absent = table[~table["present"]]
    assert len(absent) == 5 + 3
    assert absent["contribution"].dropna().abs().max() == 0


def test_a_patient_of_whom_nothing_is_known_is_refused_a_risk(trained):
    told = predict(trained[0].members[1], cohort_of(60, 3))
    assert told["status"].tolist() == [NOTHING_KNOWN] + ["ok"] * 59
    assert told["risk"].isna().tolist() == [True] + [False] * 59


def test_what_comes_later_and_the_order_of_patients_mean_nothing(trained):
    member, test = trained[0].members[1], cohort_of(60, 3)
    later = test.labs.assign(time=DAY + pd.Timedelta("1h"), value=1e6)
    outcomes = test.outcomes.sample(frac=1, random_state=0)
    other = Cohort(outcomes, labs=pd.concat([later, test.labs]), static=test.static)
    risks = predict(member, test).set_index("subject_id")["risk"]
    pd.testing.assert_series_equal(predict(member, other).set_index("subject_id")["risk"][risks.index], risks)


def test_simultaneous_measurements_may_come_in_any_order_and_a_patient_alone(trained):
    member, test = trained[0].members[1], cohort_of(60, 3)
    twice = pd.concat([test.labs, test.labs.assign(value=test.labs["value"] + 1)])
    orders = [
        Cohort(test.outcomes, labs=twice.sample(frac=1, random_state=seed), static=test.static) for seed in (0, 1)
    ]
    first, second = (predict(member, cohort)["risk"] for cohort in orders)
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)
    alone = orders[0].keep(np.arange(60) == 20, why="one")
    assert predict(member, alone)["risk"].tolist() == [first[20]]


def test_trees_look_as_far_back_as_in_training():
    train = cohort_of(120, 1)
    train.history = 24.0
    member = BoostedTrees(train.outcome_kinds, ("labs",))
    member.fit(train)
    assert "lactate mean in 24 h" not in member.features_.columns
    test = cohort_of(60, 3)
    lately = test.with_tables("lately", labs=test.labs[test.labs["time"] > DAY - pd.Timedelta("24h")])
    pd.testing.assert_series_equal(predict(member, test)["risk"], predict(member, lately)["risk"])


def test_what_no_training_patient_has_is_not_learned_from():
    train = cohort_of(60, 1)
    # One measurement each: nobody's has a spread, a slope or a step.
    last = train.with_tables("the last alone", labs=train.labs.drop_duplicates("subject_id", keep="last"))
    member = BoostedTrees(train.outcome_kinds, ("labs", "static"))
    member.fit(last)
    told = predict(member, cohort_of(60, 3))
    assert told["risk"].notna().sum() == 59


def test_each_outcome_has_its_trees_and_unknown_labels_teach_none():
    again = np.where(np.arange(120) % 4, np.arange(120) % 2, np.nan)
    train = cohort_of(120, 1, again=again)
    member = BoostedTrees(train.outcome_kinds, ("labs", "static"))
    member.fit(train)
    told = predict(member, train)
    assert told["outcome"].tolist()[:2] == ["died", "again"]
    alone = BoostedTrees({"died": train.outcome_kinds["died"]}, ("labs", "static"))
    alone.fit(train)
    own = told[told["outcome"] == "died"]["risk"].to_numpy()
    assert np.array_equal(predict(alone, train)["risk"], own, equal_nan=True)


def test_what_trees_cannot_serve_is_refused_before_any_training():
    train = cohort_of(120, 1).keep_with_input()

    def refused(match: str, boosted: int = 1, **parts: object) -> None:
        given = {"labs": LabEncoder(8), "fusion": ConcatenationFusion(8), "outcomes": {"died": "binary"}} | parts
        with pytest.raises(InputError, match=match):
            fit_ensemble(lambda: FusionModel(**given), train, members=2, boosted=boosted, training=TRAINING)

    refused("the model also reads notes", notes=NoteEncoder())
    refused("age is continuous", outcomes={"age": "continuous"})
    refused("boosted is 2", boosted=2)
    refused("boosted is -1", boosted=-1)
    with pytest.raises(InputError, match="The boosted trees are not trained"):
        predict(BoostedTrees(train.outcome_kinds, ("labs",)), train)
    with pytest.raises(InputError, match="also reads nothing"):
        BoostedTrees(train.outcome_kinds, ())


def test_one_class_or_nothing_to_read_teaches_nothing():
    train = cohort_of(120, 1)
    ill = train.keep(train.outcomes["died"].to_numpy() == 1, why="ill")
    for cohort, read in ((ill, ("labs",)), (train.with_tables("none", labs=None), ("labs",))):
        with pytest.raises(InputError, match="need training patients of both classes of died, and a lab code"):
            BoostedTrees(train.outcome_kinds, read).fit(cohort)


def test_an_ensemble_begins_with_a_network(trained):
    with pytest.raises(InputError, match="begins with boosted trees"):
        Ensemble(trained[0].members[::-1])
    with pytest.raises(InputError, match="Member 2 is not trained"):
        Ensemble([trained[0].members[0], BoostedTrees(trained[0].outcomes, ("labs",))])


@pytest.mark.parametrize("field", [field.name for field in fields(Trees)])
def test_arrays_that_are_no_trees_are_refused(trained, tmp_path, field):
    member = trained[0].members[1]
    trees = member.trees_["died"]
    wrong = {
        "feature": np.where(trees.feature >= 0, 10_000, -1).astype(np.int32),
        "threshold": np.full_like(trees.threshold, np.nan),
        "missing_left": trees.missing_left[:, :2],
        # A node that is its own child would be walked for ever.
        "left": np.zeros_like(trees.left),
        "right": np.full_like(trees.right, 1_000),
        "value": np.full_like(trees.value, np.inf),
        "start": np.array([np.nan]),
    }
    other = BoostedTrees(member.outcomes, member.modalities)
    other.features_, other.trees_ = member.features_, {"died": replace(trees, **{field: wrong[field]})}
    other.save_weights(tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="does not describe a model"):
        BoostedTrees.described(json.loads(json.dumps(member.describe())), tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    "changed",
    [
        {"outcomes": {"died": {"kind": "continuous", "classes": []}}},
        {"outcomes": {}},
        {"modalities": ["notes"]},
        {"features": {}},
        {"history": -1.0},
    ],
)
def test_a_description_that_does_not_fit_is_refused(trained, tmp_path, changed):
    member = trained[0].members[1]
    member.save_weights(tmp_path / "weights.safetensors")
    assert BoostedTrees.described(member.describe(), tmp_path / "weights.safetensors").is_built
    with pytest.raises(InputError, match="does not describe a model"):
        BoostedTrees.described(member.describe() | changed, tmp_path / "weights.safetensors")


def test_trees_of_other_types_without_nodes_or_of_endless_sums_are_refused(trained):
    trees, wide = trained[0].members[1].trees_["died"], trained[0].members[1].features_.columns
    for field in fields(trees):
        for other in ("float16", "uint64"):
            with pytest.raises(ValueError, match=f"{field.name} is {other}"):
                replace(trees, **{field.name: getattr(trees, field.name).astype(other)}).require_sound(len(wide))
    for part in (np.s_[:0], np.s_[:, :0]):
        cut = {field.name: getattr(trees, field.name)[part] for field in fields(trees) if field.name != "start"}
        with pytest.raises(ValueError, match="nothing in it"):
            replace(trees, **cut).require_sound(len(wide))
    signs = np.where(np.arange(len(trees.value)) % 2, -1.7e308, 1.7e308)[:, None]
    with pytest.raises(ValueError, match="do not add up"):
        replace(trees, value=np.broadcast_to(signs, trees.value.shape)).require_sound(len(wide))

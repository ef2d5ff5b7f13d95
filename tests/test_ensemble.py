"""Models that predict together: as good as their mean, in one folder, and of one task."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import InputError
from chiasm.encoders import StaticEncoder
from chiasm.fusion import (
    ConcatenationFusion,
    Ensemble,
    FusionModel,
    contributions,
    evaluate,
    fit,
    fit_ensemble,
    predict,
)
from chiasm.fusion.ensemble import load_trained
from chiasm.fusion.metrics import best_threshold

from .trained import make_model

TRAINING = {"epochs": 2, "batch_size": 16, "progress": False}


@pytest.fixture(scope="module")
def parts(cohort):
    known = cohort.with_tables("labs and facts", images=None, notes=None).keep_with_input()
    place = np.arange(len(known)) // 3
    return tuple(known.keep(place % 4 == part if part else place % 4 % 3 == 0, why="part") for part in (0, 1, 2))


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("ensemble") / "run"
    began = []
    ensemble, histories = fit_ensemble(
        make_model, *parts[:2], members=2, seed=3, training=TRAINING, out=out, on_start=lambda _: began.append(1)
    )
    assert began == [1]
    assert [len(history.epochs) for history in histories] == [2, 2]
    return ensemble, out


def test_the_risk_is_the_mean_of_the_members_and_the_first_is_what_fit_makes_of_the_seed(parts, trained):
    ensemble, _ = trained
    own = [predict(member, parts[2])["risk"].to_numpy() for member in ensemble.members]
    assert not np.array_equal(*own)
    risks = predict(ensemble, parts[2])
    np.testing.assert_allclose(risks["risk"], np.mean(own, 0), rtol=0, atol=1e-12)
    assert set(risks["status"]) == {"ok"}
    alone = make_model()
    fit(alone, *parts[:2], seed=3, **TRAINING)
    assert np.array_equal(predict(alone, parts[2])["risk"], own[0])


def test_an_ensemble_is_evaluated_with_its_own_threshold(parts, trained):
    ensemble, _ = trained
    assert set(ensemble.thresholds_) == {"died"}
    told = evaluate(predict(ensemble, parts[2]), parts[2], resamples=0).thresholds["died"]
    assert told["value"] == ensemble.thresholds_["died"]


def test_contributions_still_add_up_to_the_risk(parts, trained):
    table = contributions(trained[0], parts[2])
    keys = ["subject_id", "prediction_time", "outcome"]
    joint = table.groupby(keys).agg(total=("contribution", "sum"), baseline=("baseline", "first"))
    risks = predict(trained[0], parts[2]).set_index(keys)["risk"]
    np.testing.assert_allclose((joint["total"] + joint["baseline"]).loc[risks.index], risks, atol=1e-6)


def test_a_loaded_ensemble_predicts_to_the_bit_what_the_saved_one_did(parts, trained):
    ensemble, out = trained
    again = load_trained(out / "model")
    assert isinstance(again, Ensemble)
    assert again.thresholds_ == ensemble.thresholds_
    pd.testing.assert_frame_equal(predict(again, parts[2]), predict(ensemble, parts[2]), check_exact=True)
    assert isinstance(load_trained(out / "members" / "0" / "model"), FusionModel)


def test_a_folder_of_another_kind_or_a_damaged_one_is_refused(trained, tmp_path):
    _, out = trained
    with pytest.raises(InputError, match=r"holds an ensemble, not a model. Read it with chiasm.fusion.Ensemble.load"):
        FusionModel.load(out / "model")
    with pytest.raises(InputError, match=r"it has no manifest\.json"):
        load_trained(tmp_path)
    ensemble = trained[0]
    ensemble.save(tmp_path / "copy")
    (tmp_path / "copy" / "weights-1.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="SHA-256 differs"):
        Ensemble.load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ([], "does not describe an ensemble"),
        ({"members": [{}], "thresholds": {}}, "does not describe a model"),
        ({"members": [], "thresholds": {}}, "The ensemble has no member"),
    ],
)
def test_a_description_that_says_something_else_is_refused(trained, tmp_path, told, match):
    trained[0].save(tmp_path / "copy")
    told = json.dumps(told).encode()
    (tmp_path / "copy" / "ensemble.json").write_bytes(told)
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"]["ensemble.json"] = hashlib.sha256(told).hexdigest()
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=match):
        Ensemble.load(tmp_path / "copy")


def test_members_of_different_outcomes_or_spans_are_refused(parts, trained):
    first = trained[0].members[0]
    other = FusionModel(static=StaticEncoder(8), fusion=ConcatenationFusion(8), outcomes={"age": "continuous"})
    other.build(parts[0])
    with pytest.raises(InputError, match=r"Member 2 predicts age \(continuous\), and member 1 died \(binary\)"):
        Ensemble([first, other])
    with pytest.raises(InputError, match="The ensemble has no member"):
        Ensemble([])
    with pytest.raises(InputError, match="Member 1 is not trained"):
        Ensemble([make_model()])
    shorter = make_model()
    shorter.build(parts[0])
    shorter.history_ = 12.0
    with pytest.raises(InputError, match=r"Member 2 looks 12\.0 hours back"):
        Ensemble([first, shorter])


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"members": 0}, "members is 0"),
        ({"valid": 0.0}, r"valid is 0\.0; expected a cohort, or a share of the patients"),
        ({"valid": 0.6}, r"valid is 0\.6; expected a cohort, or a share of the patients"),
        ({"valid": float("nan")}, "valid"),
        ({"valid": "a tenth"}, "valid"),
        ({"seed": 2**32 - 1}, "seed is 4294967295"),
        ({"training": {"seed": 1}}, "training= gives seed"),
        ({"training": {"valid": None}}, "training= gives valid"),
        ({"training": {"foo": 1}}, "training= has foo; expected arguments of fit"),
        ({"training": [1]}, "training= has list; expected arguments of fit"),
    ],
)
def test_what_cannot_be_trained_is_refused(parts, wrong, match):
    with pytest.raises(InputError, match=match):
        fit_ensemble(make_model, **{"train": parts[0], "valid": parts[1], "members": 2} | wrong)


def test_members_that_hold_out_others_each_learn_from_all_together(parts, tmp_path):
    everyone, test = parts[0], parts[2]
    given = {"members": 3, "boosted": 1, "seed": 5, "training": TRAINING}
    ensemble, _ = fit_ensemble(make_model, everyone, 1 / 3, **given, out=tmp_path)
    folds = list(everyone.folds(3, seed=5))
    seen = [set(train.outcomes["subject_id"]) for train, _ in folds]
    assert set.union(*seen) == set(everyone.outcomes["subject_id"])

    alone = make_model()
    fit(alone, *folds[1], seed=6, **TRAINING)
    assert np.array_equal(predict(alone, test)["risk"], predict(ensemble.members[1], test)["risk"])
    # Each speaks of those whom it did not see.
    risks = [predict(member, own)["risk"] for member, (_, own) in zip(ensemble.members, folds, strict=True)]
    labels = np.concatenate([own.outcomes["died"] for _, own in folds])
    assert ensemble.thresholds_["died"] == best_threshold(np.concatenate(risks), labels)

    # More members than parts: the third holds out those whom the first did.
    again, _ = fit_ensemble(make_model, everyone, 0.5, **given | {"boosted": 0})
    halves = list(everyone.folds(2, seed=5))
    joint = np.mean([predict(again.members[place], halves[0][1])["risk"] for place in (0, 2)], 0)
    risks = [joint, predict(again.members[1], halves[1][1])["risk"]]
    labels = np.concatenate([own.outcomes["died"] for _, own in halves])
    assert again.thresholds_["died"] == best_threshold(np.concatenate(risks), labels)


def test_a_share_of_too_few_patients_is_refused_in_its_own_words(parts):
    few = parts[0].keep(np.arange(len(parts[0])) < 4, why="few")
    with pytest.raises(InputError, match=r"valid is 0\.05: of \d patients 20 parts .* Give a larger share"):
        fit_ensemble(make_model, few, 0.05, members=2, training=TRAINING)


def test_a_model_that_was_trained_before_is_no_new_member(parts, trained):
    with pytest.raises(InputError, match="make_model gave a model that was trained before"):
        fit_ensemble(lambda: trained[0].members[0], *parts[:2], members=2, training=TRAINING)


def test_members_of_different_modalities_predict_together_and_are_explained_alone(parts, trained):
    facts = FusionModel(static=StaticEncoder(8), fusion=ConcatenationFusion(8), outcomes={"died": "binary"})
    facts.build(parts[0])
    both = Ensemble([trained[0].members[0], facts])
    assert len(predict(both, parts[2])) == len(parts[2])
    with pytest.raises(InputError, match=r"read different modalities, labs, static and static, .* Ask each alone"):
        contributions(both, parts[2])


def test_what_one_member_refuses_is_refused(trained):
    tables = [
        pd.DataFrame({"risk": risk, "status": status})
        for risk, status in (([0.2, 0.4], ["ok", "ok"]), ([0.4, np.nan], ["ok", "refused: because"]))
    ]
    joint = trained[0].mean(tables)
    np.testing.assert_allclose(joint["risk"], [0.3, np.nan])
    assert joint["status"].tolist() == ["ok", "refused: because"]

"""The laws of the whole model, and what it refuses to be."""

import copy
import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.datasets import Cohort, InputError, OutcomeKind
from chiasm.datasets.batch import Batch
from chiasm.datasets.prepared import prepare
from chiasm.encoders import ImageEncoder, LabEncoder, StaticEncoder, Tokens
from chiasm.fusion import ConcatenationFusion, CrossAttentionFusion, FusionModel, contributions, fit, predict
from chiasm.fusion.inference import NOT_FINITE, NOTHING_KNOWN, infer
from chiasm.fusion.model import withhold_at_random
from torch.testing import assert_close

MODALITIES = ("image", "labs", "notes", "static")
FUSIONS = {
    "cross-attention": lambda: CrossAttentionFusion(32, depth=2, heads=4, latents=2),
    "concatenation": lambda: ConcatenationFusion(16),
}


@pytest.fixture(scope="module", params=FUSIONS)
def model(request, cohort, small_model) -> FusionModel:
    made = small_model(outcomes=cohort.outcome_kinds, fusion=FUSIONS[request.param]())
    made.build(cohort, seed=0)
    return made.eval()


@pytest.fixture(scope="module")
def samples(model, cohort):
    return prepare(cohort, model.readers, model.outcomes)


def risks(model: FusionModel, cohort: Cohort, **settings) -> np.ndarray:
    return predict(model, cohort, **settings)["risk"].to_numpy().reshape(len(cohort), -1)


def only(batch: Batch, modalities: frozenset[str]) -> Batch:
    """The same batch as if every other modality were lacking."""
    return batch._replace(
        parts={
            name: part if name in modalities else type(part)(*(column[:0] for column in part))
            for name, part in batch.parts.items()
        }
    )


# Law 1: absence is emptiness


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_every_subset_of_modalities_gives_finite_risks_and_gradients(model, samples, training, precision, together):
    model = copy.deepcopy(model).train(training)
    torch.manual_seed(0)
    for positions in [range(16)] if together else [[i] for i in range(16)]:
        model.zero_grad()
        batch = samples[positions]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            risk = model(batch)
        loss, _ = model.loss(risk, batch)
        loss.backward()
        assert risk.logits.dtype == torch.float32
        assert risk.logits.isfinite().all()
        assert risk.value.isfinite().all()
        assert all(own.grad is None or own.grad.isfinite().all() for own in model.parameters())


def test_a_modality_that_is_absent_is_as_if_its_encoder_had_never_run(model, samples):
    batch = samples[range(16)]
    with torch.no_grad():
        for name in MODALITIES:
            others = frozenset(MODALITIES) - {name}
            ours = model(only(batch, others)).value
            has = model.encode(batch)[name].mask.any(1)
            assert_close(ours[~has], model(batch).value[~has], atol=1e-5, rtol=0)
            assert (ours[has] - model(batch).value[has]).abs().amax(1).min() > 0


# Law 2: time


def test_what_comes_after_the_prediction_time_leaves_risks_bit_identical(model, cohort, hospital, tmp_path):
    now = hospital["outcomes"]["prediction_time"].iloc[0]
    later, soon = now + pd.Timedelta(days=30), now + pd.Timedelta(microseconds=1)
    everyone = hospital["outcomes"]["subject_id"]
    # The file of the later image does not even exist; a lab of before the prediction came back after it.
    strange = {
        "images": pd.DataFrame({"subject_id": everyone, "time": soon, "path": str(tmp_path / "nowhere.png")}),
        "notes": pd.DataFrame({"subject_id": everyone, "time": soon, "text": "died"}),
        "labs": pd.DataFrame(
            {"subject_id": everyone, "time": now - pd.Timedelta(hours=1), "available_at": later, "code": "lactate"}
        ).assign(value=15.0),
    }
    labs = hospital["labs"].assign(available_at=hospital["labs"]["time"])
    tables = hospital | {"labs": labs}
    grown = tables | {name: pd.concat([tables[name], rows], ignore_index=True) for name, rows in strange.items()}
    ours, theirs = predict(model, cohort), predict(model, Cohort(**grown))
    assert ours.equals(theirs)


def test_a_model_looks_as_far_back_as_it_was_trained_to_whatever_the_cohort_says(hospital, small_model, tmp_path):
    days = Cohort(**hospital, history=9)
    made = small_model(("labs", "static"), outcomes=days.outcome_kinds)
    made.build(days)
    expected = predict(made, days)
    # Labs lie up to 30 hours back, so that another span is another input.
    assert len(days.window("labs").rows) < len(Cohort(**hospital).window("labs").rows)
    made.save(tmp_path / "model")
    for one in (made, FusionModel.load(tmp_path / "model")):
        for history in (None, 3, 500):
            other = Cohort(**hospital, history=history)
            assert predict(one, other).equals(expected)
            assert contributions(one, other).equals(contributions(made, days))
            assert other.history == history


# Law 3: order and padding


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_no_risk_depends_on_who_else_is_predicted(model, cohort, samples, batch_size):
    together = infer(model, samples)
    np.testing.assert_allclose(infer(model, samples, batch_size=batch_size), together, atol=1e-5, rtol=1e-5)
    known = cohort.outcomes["subject_id"].to_numpy()
    alone = risks(model, cohort.keep(known == 15, why="one"))
    np.testing.assert_allclose(alone[0], together[15], atol=1e-5, rtol=1e-5)


def test_the_order_of_rows_and_tables_means_nothing(model, cohort, hospital):
    shuffled = {name: table.sample(frac=1, random_state=4) for name, table in reversed(hospital.items())}
    np.testing.assert_allclose(risks(model, Cohort(**shuffled)), risks(model, cohort), atol=1e-5, rtol=1e-5)


def test_the_order_of_samples_means_nothing(model, samples):
    order = np.random.default_rng(0).permutation(16)
    with torch.no_grad():
        assert_close(model(samples[order]).value, model(samples[range(16)]).value[order], atol=1e-5, rtol=1e-5)


# Law 5: a risk is finite, or it is refused with a reason


def test_a_sample_of_which_nothing_is_known_is_refused_and_says_why(model, cohort):
    table = predict(model, cohort)
    assert list(table.columns) == ["subject_id", "prediction_time", "outcome", "risk", "status"]
    nothing = table["subject_id"] == 0
    assert (table["status"][nothing] == NOTHING_KNOWN).all()
    assert table["risk"][nothing].isna().all()
    assert (table["status"][~nothing] == "ok").all()
    assert np.isfinite(table["risk"][~nothing]).all()
    shares = table[table["outcome"].str.startswith("stage=")].groupby("subject_id")["risk"].sum(min_count=1)
    np.testing.assert_allclose(shares.dropna(), 1, atol=1e-6)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_risk_that_is_not_finite_is_refused(model, cohort, wrong):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.heads.heads[0].bias.fill_(wrong)
    table = predict(broken, cohort)
    died, nothing = table["outcome"] == "died", table["subject_id"] == 0
    assert (table["status"][died & ~nothing] == NOT_FINITE).all()
    assert table["risk"][died].isna().all()
    assert (table["status"][nothing] == NOTHING_KNOWN).all()
    assert (table["status"][~died & ~nothing] == "ok").all()


def test_prediction_does_not_look_at_outcomes(model, cohort, hospital):
    keys = hospital["outcomes"][["subject_id", "prediction_time"]]
    other = hospital["outcomes"].assign(died=1 - hospital["outcomes"]["died"], days=1.0, stage="mild")
    expected = predict(model, cohort)
    assert predict(model, Cohort(**hospital | {"outcomes": keys})).equals(expected)
    kinds = {"stage": OutcomeKind("categorical", ["mild", "severe", "critical"])}
    assert predict(model, Cohort(**hospital | {"outcomes": other}, outcome_kinds=kinds)).equals(expected)


def test_prediction_leaves_the_model_as_it_was(model, cohort):
    model = copy.deepcopy(model).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, cohort)
    contributions(model, cohort)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8"])
def test_a_batch_size_that_would_predict_nobody_is_refused(model, cohort, batch_size):
    for act in (predict, contributions):
        with pytest.raises(InputError, match=rf"batch_size is {batch_size!r}; expected a whole number of at least 1"):
            act(model, cohort, batch_size=batch_size)


# Modality dropout


def present(patients: int, modalities: int, has) -> dict[str, Tokens]:
    tokens = {}
    for i in range(modalities):
        mask = torch.full((patients, 2), has(i))
        tokens[str(i)] = Tokens(torch.zeros(patients, 2, 1), mask, torch.zeros(patients, 2))
    return tokens


def test_modality_dropout_withholds_at_its_rate_and_never_everything():
    torch.manual_seed(0)
    patients, rate = 40_000, 0.4
    kept = withhold_at_random(present(patients, 3, lambda _: True), rate)
    there = torch.stack([own.mask.any(1) for own in kept.values()], 1)
    assert there.any(1).all()
    # Where all three would go, all three stay.
    expected = rate - rate**3
    error = math.sqrt(expected * (1 - expected) / patients)
    assert_close(1 - there.float().mean(0), torch.full((3,), expected), atol=5 * error, rtol=0)


def test_modality_dropout_leaves_the_only_modality_of_a_patient():
    kept = withhold_at_random(present(500, 3, lambda i: i == 1), 0.9)
    assert kept["1"].mask.all()
    assert not kept["0"].mask.any()


# Contributions


def test_contributions_add_up_and_are_nothing_for_what_is_absent(model, cohort):
    table = contributions(model, cohort, batch_size=5)
    risk = predict(model, cohort)
    key = ["subject_id", "outcome"]
    # Whoever predict refuses gets no number here either, and the same reason.
    statuses = table.drop_duplicates(key).set_index(key)["status"]
    assert statuses.to_dict() == risk.set_index(key)["status"].to_dict()
    refused = table["status"] != "ok"
    assert table.loc[refused, ["baseline", "risk", "contribution"]].isna().all(axis=None)
    assert set(table.loc[refused, "subject_id"]) == {0}
    table = table[~refused]
    sums = table.groupby(key)["contribution"].sum()
    first = table.drop_duplicates(key).set_index(key)
    difference = first["risk"] - first["baseline"]
    np.testing.assert_allclose(sums, difference.loc[sums.index], atol=1e-6, rtol=1e-6)
    assert (table["contribution"][~table["present"]] == 0).all()
    assert (table["contribution"][table["present"]] != 0).all()
    known = risk[risk["status"] == "ok"].set_index(key)["risk"]
    np.testing.assert_allclose(first["risk"].loc[known.index], known, atol=1e-5, rtol=1e-5)
    has = cohort.has_input().set_axis(cohort.outcomes["subject_id"])
    for name, own in table.groupby("modality"):
        expected = has["images" if name == "image" else name].loc[own["subject_id"]]
        assert len(own)
        assert (own["present"].to_numpy() == expected.to_numpy()).all()


def test_contributions_are_the_mean_gain_over_all_orders(model, cohort, samples):
    with torch.no_grad():
        batch = samples[range(16)]
        worth = {
            subset: model(only(batch, subset)).value.double().numpy()
            for subset in {frozenset(order[:k]) for order in permutations(MODALITIES) for k in range(5)}
        }
    columns = list(model.heads.columns)
    table = contributions(model, cohort).set_index(["modality", "subject_id", "outcome"])["contribution"]
    for name in MODALITIES:
        gains = []
        for order in permutations(MODALITIES):
            before = frozenset(order[: order.index(name)])
            gains.append(worth[before | {name}] - worth[before])
        expected = np.mean(gains, axis=0)
        ours = table[name].unstack()[columns].to_numpy()
        # Of the patient with the number 0 nothing is known.
        np.testing.assert_allclose(ours[1:], expected[1:], atol=1e-5, rtol=1e-4)
        assert np.isnan(ours[0]).all()


# Attention


def test_a_model_shows_where_it_looked_or_says_that_it_cannot(model, samples):
    if isinstance(model.fusion, ConcatenationFusion):
        with pytest.raises(InputError, match="ConcatenationFusion has no attention weights"):
            model.attention(samples[range(16)])
        return
    with torch.no_grad():
        looked = model.attention(samples[range(16)])
    assert set(looked) == set(MODALITIES)
    assert_close(sum(own.sum(-1) for own in looked.values()), torch.ones(16, 3))


# What the model refuses to be


def test_a_model_is_the_same_for_one_seed_and_does_not_touch_the_generator(cohort, small_model):
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(17)
        made = small_model(outcomes=cohort.outcome_kinds)
        made.build(cohort, seed=seed)
        weights.append(made.state_dict())
        after = torch.rand(1)
        torch.manual_seed(17)
        assert after == torch.rand(1)
    first, second, other = weights
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


BINARY = {"died": "binary"}


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"outcomes": BINARY}, "The model has no encoder. Give at least one of image, labs, notes, static"),
        ({"labs": LabEncoder(), "outcomes": {3: "binary"}}, "outcomes= names an outcome 3; expected the name of a"),
        ({"labs": LabEncoder(), "outcomes": {"": "binary"}}, "outcomes= names an outcome ''; expected the name of"),
        ({"labs": LabEncoder(), "outcomes": {}}, "The model has no outcome.* the table outcomes needs a column"),
        ({"labs": LabEncoder(), "outcomes": ["died"]}, r"outcomes= was given a list; expected cohort.outcome_kinds"),
        ({"labs": ImageEncoder(), "outcomes": BINARY}, r"labs= was given a ImageEncoder, which belongs to image="),
        ({"image": StaticEncoder(), "outcomes": BINARY}, r"image= was given a StaticEncoder, which belongs to static="),
        ({"labs": "GRU", "outcomes": BINARY}, r"labs= was given a str; expected an encoder"),
        ({"labs": LabEncoder(), "outcomes": {"died": "fate"}}, "The outcome kind is 'fate'"),
        ({"labs": LabEncoder(), "outcomes": {"stage": "categorical"}}, "stage is categorical, but its classes"),
        ({"labs": LabEncoder(), "outcomes": BINARY, "modality_dropout": 1.0}, r"modality_dropout is 1\.0"),
        ({"labs": LabEncoder(), "outcomes": BINARY, "modality_dropout": -0.1}, r"modality_dropout is -0\.1"),
        ({"labs": LabEncoder(), "outcomes": BINARY, "auxiliary": -1.0}, r"auxiliary is -1\.0"),
        (
            {"labs": LabEncoder(), "outcomes": BINARY, "label_smoothing": 1.0},
            r"label_smoothing is 1\.0; expected a share",
        ),
        ({"labs": LabEncoder(), "outcomes": BINARY, "label_smoothing": -0.1}, r"label_smoothing is -0\.1"),
        (
            {"labs": LabEncoder(), "outcomes": BINARY, "label_smoothing": None},
            "label_smoothing is None; expected a number",
        ),
        ({"labs": LabEncoder(), "outcomes": BINARY, "fusion": LabEncoder()}, "fusion= was given a LabEncoder"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong, match):
    with pytest.raises(InputError, match=match):
        FusionModel(**wrong)


def test_a_model_that_is_not_trained_predicts_nothing(cohort, small_model):
    plan = small_model(("labs",), outcomes=cohort.outcome_kinds)
    for act in (predict, contributions):
        with pytest.raises(InputError, match="The model is not trained"):
            act(plan, cohort)


def test_samples_that_are_no_cohort_are_refused(cohort, small_model):
    model = small_model(("labs",), outcomes=cohort.outcome_kinds)
    match = r"Samples came as a DataFrame; expected a Cohort\. Make one"
    with pytest.raises(InputError, match=match):
        fit(model, cohort.outcomes, epochs=1, progress=False)
    model.build(cohort)
    for act in (predict, contributions):
        with pytest.raises(InputError, match=match):
            act(model, cohort.outcomes)


def test_an_encoder_that_chiasm_does_not_know_is_used_but_not_saved(cohort, tmp_path):
    class OwnEncoder(LabEncoder):
        pass

    model = FusionModel(labs=OwnEncoder(8, rare=1), fusion=ConcatenationFusion(8), outcomes=cohort.outcome_kinds)
    model.build(cohort)
    assert (predict(model, cohort)["status"] == "ok").any()
    with pytest.raises(InputError, match="has a OwnEncoder, which chiasm does not know"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_parts_of_one_model_cannot_be_taken_for_another(cohort):
    labs = LabEncoder(8, rare=1)
    first = FusionModel(labs=labs, fusion=ConcatenationFusion(8), outcomes=cohort.outcome_kinds)
    first.build(cohort, seed=0)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    second = FusionModel(labs=labs, fusion=ConcatenationFusion(8), outcomes=cohort.outcome_kinds)
    with pytest.raises(InputError, match="labs= was built before"):
        second.build(cohort, seed=1)
    third = FusionModel(labs=LabEncoder(8, rare=1), fusion=first.fusion, outcomes=cohort.outcome_kinds)
    with pytest.raises(InputError, match="fusion= was built before"):
        third.build(cohort, seed=1)
    assert all(torch.equal(before[name], value) for name, value in first.state_dict().items())

"""Comparisons: what is said of models, and what is built to be compared."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.encoders import LabEncoder, StaticEncoder
from chiasm.fusion import ConcatenationFusion, CrossAttentionFusion, FusionModel
from chiasm.fusion.model import FUSIONS
from chiasm.recipes.comparison import Comparison, compare, compare_by_folds, require_binary
from chiasm.recipes.variants import restricted, variants

DAY = pd.Timestamp("2031-05-17")
PATIENTS = 200


@pytest.fixture(scope="module")
def patients() -> Cohort:
    died = np.arange(PATIENTS) % 2
    return Cohort(pd.DataFrame({"subject_id": range(PATIENTS), "prediction_time": DAY, "died": died}))


def risks_of(patients: Cohort, noise: float, seed: int) -> pd.DataFrame:
    """Risks that follow the outcome, the less the noisier."""
    draw = np.random.default_rng(seed)
    score = patients.outcomes["died"].to_numpy() + noise * draw.normal(size=PATIENTS)
    keys = patients.outcomes[["subject_id", "prediction_time"]]
    return keys.assign(outcome="died", risk=1 / (1 + np.exp(-score)), status="ok")


def comparison(patients: Cohort, fused: float, alone: float, resamples: int) -> Comparison:
    made = Comparison("died", patients, resamples).with_model("fused", risks_of(patients, fused, 1), 2.0)
    return made.with_model("labs alone", risks_of(patients, alone, 2), 1.0)


def test_the_verdict_goes_by_the_interval_of_the_difference(patients):
    assert comparison(patients, 0.3, 3.0, 100).verdict.startswith(
        "Fusion helped here: it differs from the best single modality (labs alone) by +0."
    )
    assert comparison(patients, 3.0, 0.3, 100).verdict.startswith("Fusion hurt here: it differs")
    even = comparison(patients, 1.0, 1.0, 100).verdict
    assert even.startswith("These data do not show that fusion helps: it differs")
    assert even.endswith("which includes zero.")


def test_without_resamples_nothing_is_said_of_an_interval(patients):
    made = comparison(patients, 0.3, 3.0, 0)
    assert made.verdict.startswith("Whether fusion helped here cannot be told without resamples: it differs")
    assert made.verdict.endswith("AUROC, with no interval.")
    cell = made.table.set_index("model").loc["labs alone", "fused less this"]
    assert cell == f"{made.differences['labs alone'].value:+.3f}"
    assert "nan" not in made.verdict + made.table.to_string()


def test_one_modality_leaves_nothing_to_fuse(patients):
    made = Comparison("died", patients, 0).with_model("fused", risks_of(patients, 1.0, 1))
    assert made.verdict == "There is only one modality, so there is nothing to fuse."


def test_models_of_a_cohort_without_a_binary_outcome_cannot_be_compared():
    outcomes = pd.DataFrame({"subject_id": range(4), "prediction_time": DAY, "days": [0.5, 1.5, 2.5, 3.5]})
    with pytest.raises(InputError, match="compared by AUROC, and this cohort has no binary outcome"):
        require_binary(Cohort(outcomes))


def model(fusion: object) -> FusionModel:
    return FusionModel(
        labs=LabEncoder(16),
        static=StaticEncoder(16),
        fusion=fusion,
        outcomes={"died": "binary"},
        modality_dropout=0.2,
        label_smoothing=0.1,
    )


@pytest.mark.parametrize(
    "own",
    [
        lambda: CrossAttentionFusion(24, heads=3, dropout=0.3),
        lambda: ConcatenationFusion(24, dropout=0.3),
    ],
    ids=["cross-attention", "concatenation"],
)
def test_each_other_head_is_compared_in_the_size_and_with_the_dropout_of_the_recipes_own(own):
    recipe = SimpleNamespace(model=lambda _: model(own()))
    built = variants(recipe, None, pairs=True)
    others = {name: head for name, head in FUSIONS.items() if head is not type(own())}
    assert list(built) == ["fused", "labs alone", "static alone", *others]
    # The labels are the same for all.
    assert {one.label_smoothing for one in built.values()} == {0.1}
    for name, head in others.items():
        fusion = built[name].fusion
        assert type(fusion) is head
        assert (fusion.width, fusion.dropout) == (24, 0.3)
        assert built[name].modality_dropout == 0.2
        assert built[name].modalities == ("labs", "static")


def test_of_other_heads_those_that_are_named_are_built_and_never_the_recipes_own_again():
    recipe = SimpleNamespace(model=lambda _: model(ConcatenationFusion(20)))
    names = ["labs alone", "static alone"]
    built = variants(recipe, None, pairs=True, heads=["bottleneck", "late", "concatenation"])
    assert list(built) == ["fused", *names, "late", "bottleneck"]
    # Of 8 heads, the usual number, 4 are the most that divide a width of 20.
    assert built["bottleneck"].fusion.heads == 4
    assert list(variants(recipe, None, pairs=True, heads=[])) == ["fused", *names]
    with pytest.raises(InputError, match="There is no fusion head 'early'; there are cross-attention, concatenation"):
        variants(recipe, None, pairs=True, heads=["late", "early"])


def test_a_modality_that_the_model_does_not_read_is_refused():
    with pytest.raises(InputError, match="The model does not read 'image'; it reads labs, static"):
        restricted(model(None), ["image"])


@pytest.mark.parametrize(
    ("rare", "match"),
    [
        (0.0, r"outcome 'rare': all 200 known labels of 200 samples to evaluate on are 0; AUROC needs both 0 and 1"),
        (np.nan, r"outcome 'rare': none of the 200 samples to evaluate on has a known label"),
    ],
)
def test_what_could_not_be_evaluated_is_refused_before_anything_is_trained(patients, rare, match):
    test = Cohort(patients.outcomes.assign(rare=rare), outcome_kinds={"died": "binary", "rare": "binary"})
    own = FusionModel(static=StaticEncoder(16), outcomes=test.outcome_kinds)
    # Nothing is told of how to train, so that training would fail; and so it does where one outcome alone is predicted.
    recipe = SimpleNamespace(model=lambda _: own, settings=SimpleNamespace(folds=2, seed=0))
    with pytest.raises(InputError, match=match):
        compare(recipe, (test, None, test), {"fused": own}, resamples=0)
    with pytest.raises(InputError, match=match):
        compare_by_folds(recipe, test, pairs=False, resamples=0, say=print)
    with pytest.raises(AttributeError, match="no attribute 'training'"):
        compare(recipe, (test, None, test), {"fused": model(None)}, resamples=0)


def test_models_that_are_trained_two_at_a_time_are_those_that_are_trained_in_turn(patients):
    ages = 60 + 10 * patients.outcomes["died"] + np.random.default_rng(0).normal(0, 8, PATIENTS)
    static = pd.DataFrame({"subject_id": range(PATIENTS), "age": ages})
    whole = Cohort(patients.outcomes, static=static)
    parts = whole.split((0.6, 0.2, 0.2), seed=0)
    recipe = SimpleNamespace(training=lambda **_: {"epochs": 2, "seed": 0})

    def small(fusion: ConcatenationFusion) -> FusionModel:
        return FusionModel(static=StaticEncoder(8), fusion=fusion, outcomes={"died": "binary"})

    def trained(jobs: int) -> Comparison:
        plan = {name: small(ConcatenationFusion(8)) for name in ("fused", "other")}
        made = compare(recipe, parts, plan, resamples=0, jobs=jobs, say=lambda _: None)
        # The recipe's own model comes back from the other process.
        assert plan["fused"].is_built
        assert list(made.risks) == ["fused", "other", "gradient boosting", "logistic regression"]
        return made

    in_turn, together = trained(1), trained(2)
    for name, risks in in_turn.risks.items():
        pd.testing.assert_frame_equal(risks, together.risks[name], rtol=1e-4)

"""Modalities that go missing: from whom they are withheld, what is left, and what is said of it."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.fusion import CrossAttentionFusion, predict
from chiasm.fusion.missingness import missing_curve, risks_without
from chiasm.recipes.missing_modalities import missingness
from sklearn.metrics import roc_auc_score

DAY = pd.Timestamp("2031-05-17")
PATIENTS = 120
MODALITIES = ("labs", "notes")


@pytest.fixture(scope="module")
def patients() -> Cohort:
    """Each with two samples."""
    keys = {"subject_id": np.repeat(range(PATIENTS), 2), "prediction_time": [DAY, DAY + pd.Timedelta("1D")] * PATIENTS}
    return Cohort(pd.DataFrame(keys | {"died": np.repeat(np.arange(PATIENTS) % 2, 2)}))


def risks_of(patients: Cohort, noise: float, seed: int) -> pd.DataFrame:
    """Risks that follow the outcome, the less the noisier."""
    score = patients.outcomes["died"].to_numpy() + noise * np.random.default_rng(seed).normal(size=len(patients))
    keys = patients.outcomes[["subject_id", "prediction_time"]]
    return keys.assign(outcome="died", risk=1 / (1 + np.exp(-score)), status="ok")


def lacking(patients: Cohort, noise: float, seed: int, *, holders: int = PATIENTS) -> pd.DataFrame:
    """Risks without a modality, which the first patients have."""
    made = risks_of(patients, noise, seed)
    return made.assign(present=made["subject_id"] < holders)


def auroc(risks: np.ndarray, patients: Cohort) -> float:
    return roc_auc_score(patients.outcomes["died"], risks)


# From whom, and what is left


def test_a_modality_is_withheld_from_a_share_of_those_who_have_it(patients):
    whole = risks_of(patients, 0.5, 1)
    without = {"labs": lacking(patients, 5.0, 2, holders=80)}
    curve = missing_curve(whole, without, patients, outcome="died", resamples=0)
    assert list(curve["share"]) == [0, 0.25, 0.5, 0.75, 1]
    assert list(curve["patients"]) == [0, 20, 40, 60, 80]
    assert curve["AUROC"].iloc[0] == pytest.approx(auroc(whole["risk"], patients))
    # From whom it is withheld wholly: those have the risk without it, in all their samples, and the others their own.
    joint = np.where(without["labs"]["present"], without["labs"]["risk"], whole["risk"])
    assert curve["AUROC"].iloc[-1] == pytest.approx(auroc(joint, patients))
    assert curve["low"].isna().all()


def test_whoever_lacks_it_at_one_share_lacks_it_at_every_larger_one(patients, monkeypatch):
    from chiasm.fusion import missingness as module

    chosen, real = [], module._exchanged
    monkeypatch.setattr(module, "_exchanged", lambda *given: chosen.append(set(given[-1])) or real(*given))
    whole, without = risks_of(patients, 0.5, 1), {"labs": lacking(patients, 5.0, 2)}
    curves = [missing_curve(whole, without, patients, outcome="died", resamples=0, seed=seed) for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(curves[0], curves[1])
    first, again, other = chosen[:4], chosen[4:8], chosen[8:]
    assert first == again
    assert first[:3] != other[:3]
    assert first[3] == other[3] == set(range(PATIENTS))
    assert all(less < more for less, more in pairwise(first))


def test_a_curve_has_intervals_and_is_level_for_a_modality_that_the_model_does_not_read(patients):
    whole, without = risks_of(patients, 1.0, 1), {"labs": lacking(patients, 5.0, 2)}
    curve = missing_curve(whole, without, patients, outcome="died", modalities=MODALITIES, resamples=30)
    assert ((curve["low"] <= curve["AUROC"]) & (curve["AUROC"] <= curve["high"])).all()
    notes = curve[curve["withheld"] == "notes"]
    assert notes["AUROC"].nunique() == 1
    assert not notes["patients"].any()


@pytest.mark.parametrize("shares", [[], [0, 1.5], [-0.1]])
def test_shares_out_of_range_are_refused(patients, shares):
    with pytest.raises(InputError, match=r"shares are .*; expected numbers from 0 to 1, at least one"):
        missing_curve(risks_of(patients, 1.0, 1), {}, patients, outcome="died", shares=shares)


def test_risks_of_other_samples_are_refused(patients):
    whole, other = risks_of(patients, 1.0, 1), lacking(patients, 1.0, 2)
    with pytest.raises(InputError, match="with and without a modality are of different samples"):
        missing_curve(whole, {"labs": other.iloc[::-1]}, patients, outcome="died", resamples=0)


def test_risks_without_a_modality_are_those_of_patients_who_never_had_it(cohort, small_model):
    model = small_model(("labs", "static"), outcomes={"died": "binary"}, fusion=CrossAttentionFusion(8, heads=2))
    model.build(cohort, seed=1)
    without = risks_without(model, cohort)
    assert list(without) == ["labs", "static"]
    bare = predict(model, cohort.with_tables("no labs", labs=None))
    known = bare["status"] == "ok"
    assert known.any()
    np.testing.assert_allclose(without["labs"].loc[known, "risk"], bare.loc[known, "risk"], atol=1e-5)
    # A patient of whom nothing is left has a risk, the one that was learned for that.
    assert without["labs"].loc[~known, "risk"].nunique() == 1
    has = cohort.has_input()
    for name in without:
        assert without[name]["present"].tolist() == has[name].tolist()


# What is said


def told(patients: Cohort, without_labs: float):
    """Fused, better than labs, better than notes; and how noisy fused is without labs."""
    noise = {"fused": 0.3, "labs alone": 0.8, "notes alone": 1.5}
    risks = {name: risks_of(patients, own, seed) for seed, (name, own) in enumerate(noise.items())}
    without = {
        "fused": {"labs": lacking(patients, without_labs, 7), "notes": lacking(patients, 0.4, 8)},
        "labs alone": {"labs": lacking(patients, 100.0, 9)},
        "notes alone": {"notes": lacking(patients, 100.0, 10)},
    }
    return missingness(risks, without, patients, outcome="died", resamples=20)


def test_without_a_modality_fused_is_held_against_the_best_of_the_rest(patients):
    made = told(patients, 1.0)
    assert {name: rest for name, (rest, _) in made.against_rest.items()} == {
        "labs": "notes alone",
        "notes": "labs alone",
    }
    found = made.against_rest["labs"][1].value
    expected = auroc(lacking(patients, 1.0, 7)["risk"], patients) - auroc(risks_of(patients, 1.5, 2)["risk"], patients)
    assert found == pytest.approx(expected)
    assert made.verdict.startswith("Without any one modality, fused is nowhere more than 0.01 AUROC below the best of")
    assert "95 % interval" in made.verdict


def test_where_fused_falls_below_the_rest_it_is_said_of_which_modality(patients):
    verdict = told(patients, 50.0).verdict
    assert verdict.startswith("Fused falls more than 0.01 AUROC below the best of the rest alone without labs (-0.")
    assert "against notes alone" in verdict
    assert "without notes" not in verdict


def test_the_table_holds_fused_the_best_single_modality_and_the_best_of_the_rest(patients):
    made = told(patients, 1.0)
    shown = made.table.groupby("withheld")["model"].unique().map(list).to_dict()
    assert shown == {"labs": ["fused", "labs alone", "notes alone"], "notes": ["fused", "labs alone"]}
    assert (made.table.groupby(["withheld", "model"]).size() == 5).all()
    assert list(made.summary.columns) == ["withheld", "0 %", "25 %", "50 %", "75 %", "100 %"]
    assert list(made.summary["withheld"]) == ["labs", "notes"]


def test_of_one_modality_nothing_is_withheld(patients):
    risks = {"fused": risks_of(patients, 1.0, 1)}
    without = {"fused": {"labs": lacking(patients, 5.0, 2)}}
    assert missingness(risks, without, patients, outcome="died", resamples=0) is None

"""Arguments of another type than was asked for are refused by name, in one line, and never by a foreign exception."""

import inspect

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError, slabs
from chiasm.datasets.arguments import require_truth
from chiasm.encoders import ImageEncoder, LabAugmentation, LabEncoder, NoteEncoder, StaticEncoder
from chiasm.fusion import (
    BottleneckFusion,
    CrossAttentionFusion,
    Ensemble,
    FusionModel,
    LateFusion,
    contributions,
    evaluate,
    fit_ensemble,
    paired_difference,
    predict,
)
from chiasm.fusion.ensemble import load_trained
from chiasm.fusion.memory import memory_bytes
from chiasm.fusion.weight_limit import limited_weights
from torch import nn

OUTCOMES = pd.DataFrame(
    {"subject_id": range(4), "prediction_time": pd.Timestamp("2031-05-17 08:00"), "died": [0, 1, 0, 1]}
)
COHORT = Cohort(OUTCOMES, static=pd.DataFrame({"subject_id": range(4), "age": [50, 60, 70, 80]}))
RISKS = OUTCOMES[["subject_id", "prediction_time"]].assign(outcome="died", risk=0.5, status="ok")
KINDS = {"died": "binary"}


def model(**changes: object) -> FusionModel:
    return FusionModel(**{"static": StaticEncoder(8), "fusion": LateFusion(8), "outcomes": KINDS} | changes)


def bare(kind: type, *arguments: object, **settings: object) -> object:
    """An encoder or head without the check of types that only tests have."""
    made = kind.__new__(kind)
    inspect.unwrap(kind.__init__)(made, *arguments, **settings)
    return made


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Cohort(outcomes=None), "outcomes is a NoneType; expected a pandas DataFrame"),
        (lambda: Cohort(outcomes="file.csv"), "outcomes is a str; expected a pandas DataFrame"),
        (lambda: Cohort(OUTCOMES, static="static.csv"), "static is a str; expected a pandas DataFrame"),
        (lambda: Cohort(OUTCOMES, outcome_kinds=["died"]), "outcome_kinds is a list; expected a kind by outcome"),
        (lambda: Cohort.read(None), "folder is a NoneType; expected a path"),
        (lambda: Cohort.read(OUTCOMES), "folder is a DataFrame; expected a path"),
        (lambda: COHORT.write(3), "folder is a int; expected a path"),
        (lambda: COHORT.with_store(3), "folder is a int; expected a path"),
        (lambda: COHORT.split("abc"), "The fractions are no numbers but a str; expected two or more"),
        (lambda: COHORT.split(("a", "b")), "The fractions are no numbers but a tuple; expected two or more"),
        (lambda: COHORT.split({"train": 0.7}), "The fractions are no numbers but a dict; expected two or more"),
        (lambda: COHORT.split([[0.5, 0.5], [0.5]]), "The fractions are no numbers but a list; expected two or more"),
        (lambda: COHORT.split([[0.5, 0.5]]), "The fractions are 0.5, 0.5; expected two or more"),
        (lambda: COHORT.split((0.5,)), r"The fractions are 0.5; expected .* such as \(0.7, 0.1, 0.2\)"),
        (lambda: COHORT.split_by_table("x"), "The split table is a str; expected a pandas DataFrame"),
        (lambda: COHORT.with_splits({}), "The split table is a dict; expected a pandas DataFrame"),
        (lambda: COHORT.sample("1"), "position is '1'; expected a whole number"),
        (lambda: COHORT.window("lab"), "There is no table of events 'lab'; expected labs, notes or images"),
        (lambda: COHORT.with_tables("why", labs="x"), "labs is a str; expected a pandas DataFrame"),
        (lambda: evaluate(None, COHORT), "risks came as a NoneType; expected the DataFrame that predict returns"),
        (lambda: evaluate("risks.csv", COHORT), r"risks came as a str; .* Of a file: pandas.read_csv"),
        (lambda: evaluate(RISKS, None), "Samples came as a NoneType; expected a Cohort"),
        (lambda: evaluate(RISKS, COHORT, thresholds=0.5), "thresholds is a float; expected a risk by outcome"),
        (lambda: evaluate(RISKS, COHORT, thresholds={"died": "x"}), "The threshold of died is 'x'; expected a number"),
        (lambda: evaluate(RISKS, COHORT, resamples=1.5), "resamples is 1.5; expected a whole number"),
        (lambda: evaluate(RISKS, COHORT, seed="a"), "seed is 'a'; expected a whole number of at least 0"),
        (lambda: evaluate(RISKS, COHORT, level="95"), "level is '95'; expected a number"),
        (lambda: paired_difference(RISKS, None, COHORT, outcome="died"), "risks came as a NoneType"),
        (lambda: predict("icu-model/", COHORT), r"model is a str; expected a FusionModel. Of a folder, read it with"),
        (lambda: predict(COHORT, model()), "model is a Cohort; expected a FusionModel"),
        (lambda: contributions(None, COHORT), "model is a NoneType; expected a FusionModel"),
        (lambda: model().build(OUTCOMES), "Samples came as a DataFrame; expected a Cohort"),
        (lambda: FusionModel.load(None), "folder is a NoneType; expected a path"),
        (lambda: load_trained(3), "folder is a int; expected a path"),
        (lambda: Ensemble.load(3), "folder is a int; expected a path"),
        (lambda: Ensemble(None), "Member 1 is a NoneType; expected a trained FusionModel"),
        (lambda: Ensemble([3]), "Member 1 is a int; expected a trained FusionModel"),
        (lambda: fit_ensemble(model(), COHORT), "make_model is a FusionModel; expected a function that makes a model"),
        (lambda: model(modality_dropout="0.1"), "modality_dropout is '0.1'; expected a number"),
        (lambda: model(auxiliary=None), "auxiliary is None; expected a number"),
        (lambda: model(outcomes=["died"]), "outcomes= was given a list; expected cohort.outcome_kinds"),
        (lambda: model(static=StaticEncoder), "static= was given a type; expected an encoder"),
        (lambda: bare(LabEncoder, width="64"), "width is '64'; expected a whole number"),
        (lambda: bare(LabEncoder, layers=1.5), "layers is 1.5; expected a whole number"),
        (lambda: bare(LabEncoder, width=10**30), r"width is 10{30}; expected a whole number, of 1e9 at most"),
        (lambda: bare(LabEncoder, dropout="0.1"), "dropout is '0.1'; expected a number"),
        (lambda: bare(LabEncoder, augmentation=None), "augmentation has NoneType; expected a LabAugmentation"),
        (lambda: bare(LabEncoder, augmentation=0.1), "augmentation has float; expected a LabAugmentation"),
        (lambda: bare(LabEncoder, augmentation={"turned": 1.0}), "augmentation has turned; expected a LabAugmentation"),
        (lambda: bare(LabAugmentation, dropped="0.1"), "dropped is '0.1'; expected a number"),
        (lambda: bare(LabEncoder, summary_dropout=None), "summary_dropout is None; expected a number"),
        (lambda: bare(LabEncoder, bends="no"), "bends is 'no'; expected True or False"),
        (lambda: bare(LabEncoder, rare="5"), "rare is '5'; expected a whole number"),
        (lambda: bare(StaticEncoder, width=None), "width is None; expected a whole number"),
        (lambda: bare(ImageEncoder, None), "model is a NoneType; expected a timm model's name, or a local folder"),
        (lambda: bare(ImageEncoder, size="224"), "size is '224'; expected a whole number"),
        (lambda: bare(ImageEncoder, grid=1.5), "grid is 1.5; expected a whole number"),
        (lambda: bare(ImageEncoder, most=True), "most is True; expected a whole number"),
        (lambda: bare(ImageEncoder, pretrained=3), "pretrained is a int; expected True, False, a safetensors file"),
        (lambda: bare(ImageEncoder, augment="no"), "augment is 'no'; expected True or False"),
        (lambda: bare(NoteEncoder, length="256"), "length is '256'; expected a whole number"),
        (lambda: bare(NoteEncoder, most=1.5), "most is 1.5; expected a whole number"),
        (lambda: bare(NoteEncoder, "bert/", pretrained=5), "pretrained is a int; expected True, False"),
        (lambda: bare(NoteEncoder, word_dropout="x"), "word_dropout is 'x'; expected a number"),
        (lambda: bare(CrossAttentionFusion, width="256"), "width is '256'; expected a whole number"),
        (lambda: bare(CrossAttentionFusion, latents=1.5), "latents is 1.5; expected a whole number"),
        (lambda: bare(CrossAttentionFusion, dropout="x"), "dropout is 'x'; expected a number"),
        (lambda: bare(BottleneckFusion, dropout=None), "dropout is None; expected a number"),
        (lambda: bare(LateFusion, "8"), "width is '8'; expected a whole number of at least 1"),
        (lambda: slabs([[1, 2]]), "pixels came as a list; expected an array"),
        (lambda: slabs(np.zeros((3, 4, 4), "f4"), images="2"), "images is '2'; expected a whole number"),
        (lambda: require_truth(bends=[0] * 99), "bends is a list; expected True or False"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_its_name(call, told):
    with pytest.raises(InputError, match=told) as error:
        call()
    assert "\n" not in str(error.value)


# Sizes that no machine has


@pytest.mark.parametrize("width", [300_000, 10**9])
def test_a_model_that_no_memory_holds_is_refused_before_its_weights_are_drawn(width):
    with pytest.raises(InputError, match=r"would have .* weights .* in the memory of this machine. Choose smaller"):
        model(fusion=CrossAttentionFusion(width, heads=1)).build(COHORT)


def test_weights_are_counted_while_layers_are_made_and_other_failures_stay_what_they_are():
    with limited_weights(20):
        nn.Linear(4, 4)
    with pytest.raises(InputError, match="more than 24 weights, where 20 can be trained"), limited_weights(20):
        nn.Sequential(nn.Linear(4, 4), nn.Linear(2, 2))
    nn.Linear(100, 100)
    with pytest.raises(RuntimeError, match="negative dimension"), limited_weights():
        nn.Linear(-1, 4)
    assert 2**28 < memory_bytes() < 2**50

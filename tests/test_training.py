"""The laws of training: it learns, it repeats itself, it forgets nothing, and it says no."""

import json
import math
import os
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from chiasm.datasets import Cohort, InputError
from chiasm.encoders import ImageEncoder, LabAugmentation, LabEncoder, NoteEncoder, StaticEncoder
from chiasm.fusion import (
    ConcatenationFusion,
    CrossAttentionFusion,
    Ensemble,
    FusionModel,
    ensemble_training,
    epoch_end,
    fit,
    numerics,
    predict,
    sample_hashes,
    training,
    updating,
)
from chiasm.fusion.inference import NOTHING_KNOWN, choose_thresholds
from torch.testing import assert_close
from transformers import BertConfig

from .trained import SHORT, same, weights

TABLES = ("labs", "notes", "images", "static")


@pytest.fixture(scope="module")
def quick(halves) -> Cohort:
    """Training patients with labs or static facts, without their images and notes."""
    train = halves[0]
    return train.keep(train.has_input()[["labs", "static"]].any(axis=1), why="labs or static").with_tables(
        "labs and static facts", images=None, notes=None
    )


# It learns


@pytest.mark.parametrize(
    "fusion",
    [
        lambda: CrossAttentionFusion(32, depth=1, heads=4, latents=2, dropout=0.0),
        lambda: ConcatenationFusion(32, dropout=0.0),
    ],
    ids=["cross-attention", "concatenation"],
)
def test_a_dozen_patients_are_learned_by_heart(patients, fusion):
    # Outcomes that no modality shows: nothing but memory can get them right.
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = FusionModel(
        # Without batch norms and random numbers, so that what is learned is what is predicted with.
        image=ImageEncoder("test_convnext", size=64, grid=1, augment=False),
        labs=LabEncoder(16, rare=1, dropout=0.0, summary_dropout=0.0, augmentation=LabAugmentation(dropped=0.0)),
        notes=NoteEncoder(BertConfig(**sizes, **no_dropout, max_position_embeddings=64), length=32, overlap=4),
        static=StaticEncoder(16, dropout=0.0),
        fusion=fusion(),
        outcomes={"died": "binary", "stage": patients.outcome_kinds["stage"]},
        modality_dropout=0.0,
        auxiliary=0.0,
    )
    history = fit(model, patients, epochs=40, batch_size=16, learning_rate=5e-3, weight_decay=0.0, **SHORT)
    assert history.epochs[0]["train_loss"] > 0.5
    assert history.epochs[-1]["train_loss"] < 0.05
    table = predict(model, patients).pivot(index="subject_id", columns="outcome", values="risk")
    truth = patients.outcomes.set_index("subject_id")
    assert ((table["died"] > 0.5) == (truth["died"] == 1)).all()
    stages = table.drop(columns="died")
    assert (stages.idxmax(axis=1) == "stage=" + truth["stage"]).all()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_optimizer_learns_in_each_precision(patients, small_model, optimizer, precision):
    model = small_model(outcomes=patients.outcome_kinds)
    rate = 3e-3 if optimizer == "adamw" else 3e-2
    settings = {"optimizer": optimizer, "precision": precision, "learning_rate": rate, "batch_size": 8}
    # Of a dozen patients single epochs rise and fall by a tenth; in 12 all seeds tried fell by more than that.
    history = fit(model, patients, epochs=12, **settings, **SHORT)
    losses = [record["train_loss"] for record in history.epochs]
    assert losses[-1] < losses[0]
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point())
    assert all(value.dtype != torch.bfloat16 for value in model.state_dict().values())


def test_a_batch_in_parts_trains_what_the_whole_batch_trains(patients, halves):
    def trained(**settings: object) -> dict[str, torch.Tensor]:
        model = FusionModel(
            labs=LabEncoder(16, rare=1, dropout=0.0, summary_dropout=0.0, augmentation=LabAugmentation(dropped=0.0)),
            static=StaticEncoder(16, dropout=0.0),
            fusion=ConcatenationFusion(16, dropout=0.0),
            outcomes=patients.outcome_kinds,
            modality_dropout=0.0,
        )
        fit(model, *halves, epochs=2, batch_size=6, optimizer="sgd", learning_rate=0.05, **settings, **SHORT)
        return weights(model)

    whole = trained()
    for parts in (2, 4, 50):
        for name, value in trained(accumulate=parts).items():
            assert_close(value, whole[name], atol=1e-5, rtol=1e-5)


def test_only_deterministic_algorithms_are_used_where_that_is_asked_for(halves, plan, monkeypatch):
    seen = []
    real = training.update
    monkeypatch.setattr(
        training, "update", lambda *given: seen.append(torch.are_deterministic_algorithms_enabled()) or real(*given)
    )
    for deterministic in (True, False):
        fit(plan(), *halves, epochs=1, batch_size=100, deterministic=deterministic, **SHORT)
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_has_no_deterministic_algorithm_is_told_with_the_remedy(halves, plan, monkeypatch):
    real = FusionModel.loss

    def loss(*given):
        pooled, where = torch.nn.functional.max_pool1d(torch.ones(1, 4), 2, return_indices=True)
        torch.nn.functional.max_unpool1d(pooled, where, 2)
        return real(*given)

    monkeypatch.setattr(FusionModel, "loss", loss)
    fit(plan(), *halves, epochs=1, **SHORT)
    with pytest.raises(InputError, match=r"no deterministic algorithm for max_unpool.* Leave deterministic out"):
        fit(plan(), *halves, epochs=1, deterministic=True, **SHORT)
    with pytest.raises(RuntimeError, match="something else"), numerics.repeatable(True):
        raise RuntimeError("something else")


def test_cublas_is_told_to_repeat_itself_before_the_gpu_is_used(monkeypatch):
    name = "CUBLAS_WORKSPACE_CONFIG"
    # So that it is taken back whatever happens.
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    numerics.prepare_to_repeat(True)
    assert name not in os.environ
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    numerics.prepare_to_repeat(False)
    assert name not in os.environ
    numerics.prepare_to_repeat(True)
    assert os.environ[name] == ":4096:8"
    monkeypatch.setenv(name, ":16:8")
    numerics.prepare_to_repeat(True)
    assert os.environ[name] == ":16:8"
    monkeypatch.setenv(name, ":0:0")
    with pytest.raises(InputError, match=r"needs CUBLAS_WORKSPACE_CONFIG=:4096:8 .* and it is :0:0\. Set it"):
        numerics.prepare_to_repeat(True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.delenv(name)
    with pytest.raises(InputError, match=r"before the GPU is first used, and it is not set\. Set it"):
        numerics.prepare_to_repeat(True)


def test_the_rate_rises_over_the_warm_up_and_falls_as_a_cosine(halves, plan):
    history = fit(plan(), halves[0], epochs=10, batch_size=100, learning_rate=1e-2, warmup=0.2, **SHORT)
    # After step k of ten, the rate of step k + 1: two steps of rise, then half a cosine over eight.
    expected = [1.0] + [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(9)]
    assert [record["learning_rate"] for record in history.epochs] == pytest.approx([1e-2 * x for x in expected])


def test_labels_are_smoothed_in_training_and_not_in_validation(halves, plan, tmp_path):
    smooth, plain = plan(label_smoothing=0.5), plan()
    ours, theirs = (fit(own, *halves, epochs=1, learning_rate=1e-9, **SHORT).epochs[0] for own in (smooth, plain))
    assert ours["valid_loss"] == pytest.approx(theirs["valid_loss"], rel=1e-5)
    assert ours["train_loss"] != pytest.approx(theirs["train_loss"], rel=1e-3)
    smooth.save(tmp_path / "model")
    assert FusionModel.load(tmp_path / "model").label_smoothing == 0.5


def test_balancing_starts_from_even_odds_and_weighs_the_rare_class_more(patients, plan):
    rare = (np.arange(len(patients)) < 2).astype(float)
    train = Cohort(patients.outcomes.assign(died=rare), **{name: getattr(patients, name) for name in TABLES})
    model, plain = plan(), plan()
    fit(model, train, epochs=1, learning_rate=1e-9, balanced=True, **SHORT)
    fit(plain, train, epochs=1, learning_rate=1e-9, **SHORT)
    n = len(train)
    weight = model.heads.class_weight[0, :2].tolist()
    assert weight == pytest.approx([n / (2 * (n - 2)), n / (2 * 2)], rel=1e-5)
    assert model.heads.heads[0].bias.item() == pytest.approx(0, abs=1e-6)
    assert plain.heads.heads[0].bias.item() == pytest.approx(math.log(2 / (n - 2)), abs=1e-5)
    assert plain.heads.class_weight[0, :2].tolist() == [1, 1]
    # A model that is trained further weighs as it is told by then, and begins where it was.
    before, mean = plain.heads.heads[0].bias.item(), plain.heads.mean.clone()
    fit(plain, train, epochs=1, learning_rate=1e-9, balanced=True, **SHORT)
    fit(model, train, epochs=1, learning_rate=1e-9, **SHORT)
    assert plain.heads.class_weight[0, :2].tolist() == weight
    assert plain.heads.heads[0].bias.item() == pytest.approx(before, abs=1e-6)
    assert torch.equal(plain.heads.mean, mean)
    assert model.heads.class_weight[0, :2].tolist() == [1, 1]


# It repeats itself


@pytest.mark.parametrize("grouped", [True, False])
def test_batches_are_of_like_size_where_it_is_asked_for(patients, plan, grouped, monkeypatch):
    seen, update = [], updating.update
    monkeypatch.setattr(training, "update", lambda *given: seen.append(given[:4]) or update(*given))
    fit(plan(), patients, epochs=1, batch_size=2, group_by_length=grouped, **SHORT)
    sizes = seen[0][0].samples.sizes
    # All lie in one pool: sorted batches do not overlap in size, shuffled ones do.
    ranges = sorted((sizes[own].min(), sizes[own].max()) for *_, own in seen)
    apart = all(before[1] <= after[0] for before, after in pairwise(ranges))
    assert len(seen) > 3
    assert apart == grouped


def test_one_seed_gives_one_model_and_another_seed_another(halves, small_model, patients):
    results = []
    for seed in (0, 0, 1):
        model = small_model(outcomes=patients.outcome_kinds)
        torch.manual_seed(len(results))
        fit(model, *halves, epochs=2, batch_size=4, seed=seed, **SHORT)
        results.append(weights(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_test_patients_change_neither_readers_nor_weights(cohort, hospital, plan):
    known = cohort.keep_with_input().outcomes["subject_id"]
    tested = [patient for patient in known if patient.bit_count() % 2 == 0]
    changed = {name: table.copy() for name, table in hospital.items()}
    for name, column in (("labs", "value"), ("static", "age"), ("outcomes", "days")):
        of_test = changed[name]["subject_id"].isin(tested)
        changed[name].loc[of_test, column] = changed[name].loc[of_test, column] * 3 + 1
    results = []
    for tables in (hospital, changed):
        whole = Cohort(**tables).keep_with_input()
        train = whole.keep((~whole.outcomes["subject_id"].isin(tested)).to_numpy(), why="train")
        model = plan()
        fit(model, train, epochs=2, batch_size=4, **SHORT)
        results.append((weights(model), {name: reader.state() for name, reader in model.readers.items()}))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_readers_and_scales_are_fitted_on_training_patients_alone(halves, plan):
    train, valid = halves
    model = plan()
    fit(model, train, valid, epochs=1, **SHORT)
    alone = plan()
    alone.build(train)
    assert {name: own.state() for name, own in model.readers.items()} == {
        name: own.state() for name, own in alone.readers.items()
    }
    days = train.outcomes["days"].dropna()
    assert model.heads.mean[2].item() == pytest.approx(days.mean(), rel=1e-5)
    assert model.heads.std[2].item() == pytest.approx(days.std(ddof=0), rel=1e-5)


# Its best weights are what the model has


def scripted(monkeypatch, losses):
    """Validation that gives these losses, one after the other; an exception is raised."""
    script, seen = iter(losses), []

    def loss(model, *_):
        seen.append(weights(model))
        value = next(script)
        if isinstance(value, BaseException):
            raise value
        return value

    monkeypatch.setattr(training, "validation_loss", loss)
    return seen


def test_training_stops_early_and_keeps_the_best_weights(halves, plan, monkeypatch):
    seen = scripted(monkeypatch, [3.0, 2.0, 2.5, 2.1, 2.0, 1.0])
    model = plan()
    history = fit(model, *halves, epochs=10, patience=3, **SHORT)
    # Equal is not better: the third epoch in a row without a better loss is the fifth.
    assert [record["valid_loss"] for record in history.epochs] == [3.0, 2.0, 2.5, 2.1, 2.0]
    assert [record["epoch"] for record in history.epochs] == [1, 2, 3, 4, 5]
    assert history.best_epoch == 2
    assert same(weights(model), seen[1])
    assert not model.training


def test_without_patience_all_epochs_are_run(halves, plan, monkeypatch):
    scripted(monkeypatch, [1.0, 2.0, 3.0, 4.0])
    assert len(fit(plan(), *halves, epochs=4, patience=None, **SHORT).epochs) == 4


def test_the_last_weights_are_kept_where_that_is_asked_for(halves, plan, monkeypatch):
    seen = scripted(monkeypatch, [1.0, 2.0, 3.0])
    model = plan()
    history = fit(model, *halves, epochs=3, patience=1, keep="last", **SHORT)
    assert history.best_epoch == 3
    assert same(weights(model), seen[2])


def test_without_validation_patients_the_last_weights_are_kept(halves, plan):
    model = plan()
    history = fit(model, halves[0], epochs=3, **SHORT)
    assert history.best_epoch == 3
    assert "valid_loss" not in history.epochs[0]
    assert model.thresholds_ == {}


def test_a_threshold_is_chosen_on_the_patients_whose_risks_are_not_refused(halves, small_model):
    train, valid = (half.with_tables("labs alone", images=None, notes=None, static=None) for half in halves)
    train = train.keep(train.has_input()["labs"], why="with labs")
    model = small_model(("labs",), outcomes={"died": "binary"})
    fit(model, train, epochs=1, **SHORT)
    risks = predict(model, valid)
    assert set(risks["status"]) == {"ok", NOTHING_KNOWN}
    # Of those with a risk, the one at the highest has the outcome; of the others, all have.
    highest = risks["risk"].max()
    died = (risks["status"] != "ok") | (risks["risk"] == highest)
    relabelled = Cohort(valid.outcomes.assign(died=died.to_numpy(int)), labs=valid.labs)
    assert choose_thresholds(model, model.read(relabelled, labelled=True)) == {"died": highest}
    assert ensemble_training._thresholds(Ensemble([model]), [relabelled]) == {"died": highest}


def test_ctrl_c_leaves_the_best_weights_in_the_model_and_in_the_folder(halves, plan, monkeypatch, tmp_path):
    seen = scripted(monkeypatch, [2.0, 1.0, 3.0, KeyboardInterrupt()])
    model = plan()
    with pytest.raises(KeyboardInterrupt):
        fit(model, *halves, epochs=9, out=tmp_path, **SHORT)
    assert same(weights(model), seen[1])
    assert not model.training
    again = FusionModel.load(tmp_path / "model")
    assert same(weights(again), seen[1])
    assert again.thresholds_ == model.thresholds_
    assert predict(again, halves[1]).equals(predict(model, halves[1]))


@pytest.mark.parametrize("processes", [1, 2])
def test_other_processes_are_told_of_a_failure_before_anything_is_computed_for_the_end(
    halves, plan, monkeypatch, processes
):
    order: list[str] = []

    class Ending(training.EndingTogether):
        def __exit__(self, *given: object) -> None:
            super().__exit__(*given)
            order.append("told")
            monkeypatch.setattr(Accelerator, "num_processes", processes)

    monkeypatch.setattr(training, "EndingTogether", Ending)
    monkeypatch.setattr(epoch_end, "choose_thresholds", lambda *_: order.append("chosen") or {"died": 0.3})
    scripted(monkeypatch, [1.0, InputError("scan 7 cannot be read.")])
    model = plan()
    with pytest.raises(InputError, match="scan 7"):
        fit(model, *halves, epochs=2, **SHORT)
    # Where a launcher ends all, nobody waits for thresholds.
    assert order == ["told", "chosen"][: 3 - processes]
    assert model.thresholds_ == ({"died": 0.3} if processes == 1 else {})


def test_a_validation_loss_that_is_never_finite_is_an_error_and_not_an_untrained_model(halves, plan, monkeypatch):
    scripted(monkeypatch, [math.nan] * 9)
    with pytest.raises(InputError, match="validation loss is not finite"):
        fit(plan(), *halves, epochs=3, **SHORT)


# It is trained further


def test_a_model_that_is_built_is_trained_further(halves, plan):
    model = plan()
    fit(model, *halves, epochs=1, **SHORT)
    before = weights(model)
    readers = {name: own.state() for name, own in model.readers.items()}
    fit(model, halves[0], epochs=1, seed=1, **SHORT)
    assert not same(before, weights(model))
    assert readers == {name: own.state() for name, own in model.readers.items()}


# It says no


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"epochs": 0}, "epochs is 0; expected a whole number of at least 1"),
        ({"epochs": 2.5}, r"epochs is 2\.5"),
        ({"epochs": True}, "epochs is True"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "8"}, "batch_size is '8'"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"seed": 1.5}, r"seed is 1\.5"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; expected a positive number"),
        ({"balanced": "yes"}, "balanced is 'yes'; expected True or False"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"optimizer": "adam"}, "optimizer is 'adam'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"accumulate": 0}, "accumulate is 0; expected a whole number of at least 1"),
        ({"deterministic": 2}, "deterministic is 2; expected True or False"),
        ({"sharded": "yes"}, "sharded is 'yes'; expected True or False"),
        ({"compile": None}, "compile is None; expected True or False"),
        ({"compile": True, "sharded": True}, "compile=True was not tried with sharded=True"),
        ({"compile": True, "recompute": True}, "compile=True was not tried with recompute=True"),
        ({"recompute": 1}, "recompute is 1; expected True or False"),
        ({"checkpoints": 0}, "checkpoints is 0; expected a whole number of at least 1"),
        ({"skip": -1}, "skip is -1; expected a whole number of at least 0"),
        ({"save_every": -1}, "save_every is -1; expected a number of minutes of 0 or more"),
        ({"save_every": math.nan}, "save_every is nan"),
        ({"timeout": 0}, "timeout is 0; expected a number of seconds from 1 to 1e7"),
        ({"weight_decay": -1.0}, r"weight_decay is -1\.0"),
        ({"warmup": 2.0}, r"warmup is 2\.0"),
        ({"clip": 0.0}, r"clip is 0\.0"),
        ({"average": 1.0}, r"average is 1\.0"),
        ({"distillation": True}, "distillation is True; expected a share"),
        ({"distillation": 1.5}, r"distillation is 1\.5; expected a share of the labels, from 0 to 1"),
        ({"group_by_length": "long"}, "group_by_length is 'long'; expected True or False"),
        ({"patience": 0}, r"patience is 0"),
        ({"keep": "first"}, "keep is 'first'; expected 'best' or 'last'"),
        ({"patience": 1.0}, r"patience is 1\.0"),
    ],
)
def test_settings_out_of_range_are_refused(halves, plan, wrong, match):
    with pytest.raises(InputError, match=match):
        fit(plan(), *halves, **{"progress": False} | wrong)


def test_validation_patients_without_a_known_outcome_are_refused(halves, plan):
    train, valid = halves
    unknown = dict.fromkeys(valid.outcome_kinds)
    tables = {name: getattr(valid, name) for name in TABLES}
    nobody = Cohort(valid.outcomes.assign(**unknown), **tables, outcome_kinds=valid.outcome_kinds)
    with pytest.raises(InputError, match="No validation patient has a known outcome"):
        fit(plan(), train, nobody, epochs=1, **SHORT)


def test_processes_that_were_given_other_data_are_refused(halves, plan, monkeypatch):
    monkeypatch.setattr(training, "from_main_process", lambda _accelerator, compute: compute() + 1)
    with pytest.raises(InputError, match="Process 0 was given other data or settings than the first one"):
        fit(plan(), *halves, epochs=1, **SHORT)


def test_on_start_is_called_once_all_was_found_in_order_and_before_anything_is_written(halves, plan, tmp_path):
    seen = []
    settings = {"out": tmp_path / "run", "on_start": lambda _: seen.append(list((tmp_path / "run").iterdir()))} | SHORT
    for wrong in ({"epochs": 0}, {"seed": -1}):
        with pytest.raises(InputError):
            fit(plan(), *halves, **settings | {"epochs": 1} | wrong)
    assert not seen
    fit(plan(), *halves, epochs=1, **settings)
    assert seen == [[]]
    with pytest.raises(InputError, match="other data or other settings"):
        fit(plan(), *halves, epochs=2, **settings)
    assert seen == [[]]


@pytest.mark.parametrize("model", [None, "icu-model", Ensemble])
def test_what_is_no_model_is_refused(halves, model):
    with pytest.raises(InputError, match="expected a FusionModel"):
        fit(model, *halves)


def test_what_is_no_path_is_refused(halves, plan):
    with pytest.raises(InputError, match="out is a int; expected a path"):
        fit(plan(), *halves, out=3)


def test_patients_in_both_parts_are_refused(patients, halves, plan):
    with pytest.raises(InputError, match=r"patients are both in train and in valid\. Divide with cohort\.split"):
        fit(plan(), patients, halves[1], epochs=1, **SHORT)


def test_samples_of_which_nothing_is_known_are_refused(cohort, plan):
    with pytest.raises(InputError, match=r"Of 1 of 16 training samples nothing is known .* data row 1\)"):
        fit(plan(), cohort, epochs=1, **SHORT)


def test_a_modality_of_which_there_is_no_table_is_told_in_training_and_in_prediction(quick):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = FusionModel(
        labs=LabEncoder(8),
        static=StaticEncoder(8),
        notes=NoteEncoder(BertConfig(**sizes)),
        fusion=ConcatenationFusion(8),
        outcomes=quick.outcome_kinds,
    )
    absent = "{}: there is no such table; every sample counts as having none".format
    assert absent("notes") in fit(model, quick, **SHORT).remarks
    remarks = predict(model, quick.with_tables("without labs", labs=None)).attrs["remarks"]
    assert [remark for remark in remarks if "no such table" in remark] == [absent("labs"), absent("notes")]


def test_samples_of_which_the_model_reads_nothing_train_what_absence_means(halves, patients, small_model):
    model = small_model(("static",), outcomes=patients.outcome_kinds)
    model.build(halves[0])
    before = weights(model)
    fit(model, halves[0], epochs=1, batch_size=100, **SHORT)
    assert not halves[0].has_input()["static"].all()
    assert not torch.equal(before["fusion.entry.absent.static"], weights(model)["fusion.entry.absent.static"])


@pytest.mark.parametrize(
    ("column", "values", "match"),
    [
        ("died", 1.0, r"died does not vary among the training patients: all \d known ones are 1"),
        ("died", None, "died does not vary among the training patients: none is known"),
        ("stage", "mild", r"stage does not vary among the training patients: all \d known ones are of one class"),
        ("days", 3.5, r"days does not vary among the training patients: all \d known ones are 3\.5"),
    ],
)
def test_an_outcome_that_does_not_vary_is_refused(quick, plan, column, values, match):
    train = quick
    kinds = dict(train.outcome_kinds)
    outcomes = train.outcomes.assign(**{column: pd.Series([values] * len(train), dtype="object")})
    train = Cohort(outcomes, labs=train.labs, static=train.static, outcome_kinds=kinds)
    with pytest.raises(InputError, match=match):
        fit(plan(), train, epochs=1, **SHORT)


def test_an_outcome_that_is_not_there_is_refused(quick, plan):
    fewer = Cohort(quick.outcomes.drop(columns="died"), labs=quick.labs, static=quick.static)
    with pytest.raises(InputError, match="outcomes lacks the column died"):
        fit(plan(), fewer, epochs=1, **SHORT)


def broken(monkeypatch, *, steps: set[int], part: str):
    """In some updates of the first epoch, counted from 0, a loss or a gradient is not finite."""
    real, calls = FusionModel.loss, []

    def loss(model, risk, batch):
        total, labels = real(model, risk, batch)
        if model.training:
            calls.append(1)
            if len(calls) - 1 in steps:
                # The square root of 0 is 0, and its slope is infinite.
                total = total * math.nan if part == "loss" else total + (total * 0).sqrt()
        return total, labels

    monkeypatch.setattr(FusionModel, "loss", loss)


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_a_batch_that_is_not_finite_is_left_out_and_named_and_leaves_nothing_behind(
    patients, halves, small_model, monkeypatch, tmp_path, part
):
    broken(monkeypatch, steps={1}, part=part)
    seen = []
    real = training.update

    def update(loop, epoch, step, positions, batches):
        before = weights(loop.state.model)
        result = real(loop, epoch, step, positions, batches)
        seen.append((positions, same(before, weights(loop.state.model))))
        return result

    monkeypatch.setattr(training, "update", update)
    model = small_model(outcomes=patients.outcome_kinds)
    history = fit(model, *halves, epochs=1, batch_size=3, out=tmp_path, **SHORT)
    # The second update changed no weight and no statistic of a batch norm.
    assert [unchanged for _, unchanged in seen] == [number == 1 for number in range(len(seen))]
    assert all(value.isfinite().all() for value in weights(model).values() if value.is_floating_point())
    assert math.isfinite(history.epochs[0]["train_loss"])
    hashes = sample_hashes(halves[0], history.salt)
    left_out = {"epoch": 1, "step": 2, "salt": history.salt, "samples": [hashes[i] for i in seen[1][0]]}
    assert history.skipped == [left_out]
    assert json.loads((tmp_path / "skipped.jsonl").read_text()) == left_out


def test_a_loss_that_is_not_finite_is_left_out_in_fp16_too(halves, plan, monkeypatch):
    broken(monkeypatch, steps={1}, part="loss")
    history = fit(plan(), *halves, epochs=2, batch_size=3, precision="fp16", **SHORT)
    assert [(own["epoch"], own["step"]) for own in history.skipped] == [(1, 2)]
    assert len(history.epochs) == 2


def narrow(monkeypatch, change):
    """Change losses by `change(loss, step)`, where steps are counted from 0; returns the scales after each update."""
    real_loss, real_backward, real_update, now, scales = FusionModel.loss, updating._backward, training.update, [], []

    def backward(loop, epoch, step, *given):
        now[:] = [step]
        return real_backward(loop, epoch, step, *given)

    def loss(model, risk, batch):
        total, labels = real_loss(model, risk, batch)
        return (change(total, now[0]) if model.training else total), labels

    def update(loop, *given):
        result = real_update(loop, *given)
        scales.append(loop.state.scaler.get_scale())
        return result

    monkeypatch.setattr(updating, "_backward", backward)
    monkeypatch.setattr(FusionModel, "loss", loss)
    monkeypatch.setattr(training, "update", update)
    return scales


def test_a_gradient_that_no_scale_makes_finite_is_left_out_in_fp16_at_once(halves, plan, monkeypatch):
    # The square root of 0 is 0, and its slope is infinite.
    scales = narrow(monkeypatch, lambda total, step: total + (total * 0).sqrt() if step == 1 else total)
    history = fit(plan(), *halves, epochs=2, batch_size=3, precision="fp16", **SHORT)
    assert [(own["epoch"], own["step"]) for own in history.skipped] == [(1, 2), (2, 2)]
    # A smaller one would only have made the other gradients vanish.
    assert set(scales) == {65536.0}


def test_a_gradient_that_is_too_large_for_fp16_alone_halves_the_scale_and_is_no_fault_of_the_batch(
    halves, plan, monkeypatch
):
    scales = narrow(monkeypatch, lambda total, _: total * 100)
    history = fit(plan(), *halves, epochs=8, batch_size=3, precision="fp16", **SHORT)
    assert history.skipped == []
    # It falls until the gradients are finite, and no further.
    assert all(after in (before, before / 2) for before, after in pairwise([65536.0, *scales]))
    assert 1 < scales[-2] == scales[-1] < 65536


def test_a_scale_that_cannot_fall_further_ends_the_training_with_the_remedy(halves, plan, monkeypatch):
    scales = narrow(monkeypatch, lambda total, _: total * 1e9)
    with pytest.raises(InputError, match=r"are too large for fp16, .* Give precision=\"bf16\" or \"fp32\", or lower"):
        fit(plan(), *halves, epochs=20, batch_size=3, precision="fp16", **SHORT)
    assert scales == [65536.0 / 2**count for count in range(1, 17)]


def test_too_many_batches_that_are_not_finite_end_the_training_and_all_are_named(halves, plan, monkeypatch, tmp_path):
    broken(monkeypatch, steps={0, 1, 2}, part="loss")
    with pytest.raises(InputError, match=r"epoch 1, step 3\. 2 batches were left out for that before\. Lower the"):
        fit(plan(), *halves, epochs=1, batch_size=3, skip=2, out=tmp_path, **SHORT)
    told = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(batch["epoch"], batch["step"]) for batch in told] == [(1, 1), (1, 2), (1, 3)]


def test_a_loss_that_is_not_finite_names_the_step_and_the_remedy(halves, plan):
    model = plan()
    with pytest.raises(InputError, match=r"not finite in epoch \d+.*Lower the learning rate \(it is 1e\+30\)"):
        fit(
            model,
            halves[0],
            epochs=10,
            batch_size=2,
            learning_rate=1e30,
            clip=1e30,
            warmup=0.0,
            optimizer="sgd",
            **SHORT,
        )
    # What it has is what it had at its best, and not what broke it.
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_tensorboard_is_told_losses_and_nothing_of_any_patient(halves, plan, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = fit(plan(), *halves, epochs=2, out=tmp_path, trackers=["tensorboard"], **SHORT)
    told = EventAccumulator(str(tmp_path / "trackers" / "chiasm")).Reload()
    names = ["epoch", "train_loss", "valid_loss", "learning_rate", "seconds"]
    tags = told.Tags()
    assert tags.pop("scalars") == names
    assert not any(tags.values())
    for name in ("train_loss", "valid_loss"):
        values = [event.value for event in told.Scalars(name)]
        assert values == pytest.approx([record[name] for record in history.epochs])


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (["wandbox"], "There is no tracker 'wandbox'; there are aim, .*tensorboard"),
        (["aim"], "The tracker aim is not installed"),
        (["tensorboard"], "The tracker tensorboard writes into the run's folder"),
        ("tensorboard", "trackers is 'tensorboard'; expected a list of names"),
    ],
)
def test_trackers_that_cannot_be_told_are_refused(halves, plan, wrong, match):
    with pytest.raises(InputError, match=match):
        fit(plan(), *halves, epochs=1, trackers=wrong, **SHORT)

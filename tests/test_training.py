"""The laws of training: it learns, it repeats itself, it forgets nothing, and it says no."""

import json
import math
import shutil
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.datasets import Cohort, InputError
from chiasm.encoders import ImageEncoder, LabEncoder, NoteEncoder, StaticEncoder
from chiasm.fusion import ConcatenationFusion, CrossAttentionFusion, FusionModel, fit, predict, training
from chiasm.fusion.artifact import new_folder
from transformers import BertConfig

TABLES = ("labs", "notes", "images", "static")
# Short runs: the moving average of weights would hardly have left the start.
SHORT = {"average": 0.0, "progress": False}


@pytest.fixture(scope="module")
def patients(cohort) -> Cohort:
    """The patients of whom something is known."""
    return cohort.keep_with_input()


def trains(patient: int) -> bool:
    """Whether a patient is a training patient: those with one or three modalities, so that each is in both parts."""
    return patient.bit_count() % 2 == 1


@pytest.fixture(scope="module")
def halves(patients) -> tuple[Cohort, Cohort]:
    """Training and validation patients; both kinds of outcome are in both."""
    train = patients.outcomes["subject_id"].map(trains).to_numpy()
    return patients.keep(train, why="train"), patients.keep(~train, why="valid")


@pytest.fixture(scope="module")
def quick(halves) -> Cohort:
    """Training patients with labs or static facts, without their images and notes."""
    train = halves[0]
    return train.keep(train.has_input()[["labs", "static"]].any(axis=1), why="labs or static").with_tables(
        "labs and static facts", images=None, notes=None
    )


@pytest.fixture
def plan(patients, small_model):
    """A function that plans a quick model of labs and static facts."""
    return lambda **settings: small_model(("labs", "static"), outcomes=patients.outcome_kinds, **settings)


def weights(model: FusionModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


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
        # Without batch norms, so that what is learned is what is predicted with.
        image=ImageEncoder("test_convnext", size=64, grid=1, augment=False),
        labs=LabEncoder(16, rare=1, dropout=0.0),
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
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_optimizer_learns_in_each_precision(patients, small_model, optimizer, precision):
    model = small_model(outcomes=patients.outcome_kinds)
    rate = 3e-3 if optimizer == "adamw" else 3e-2
    settings = {"optimizer": optimizer, "precision": precision, "learning_rate": rate, "batch_size": 8}
    history = fit(model, patients, epochs=6, **settings, **SHORT)
    losses = [record["train_loss"] for record in history.epochs]
    assert losses[-1] < losses[0]
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point())
    assert all(value.dtype != torch.bfloat16 for value in model.state_dict().values())


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


# It repeats itself


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
    tested = [patient for patient in known if not trains(patient)]
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

    monkeypatch.setattr(training, "_validation_loss", loss)
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


def test_a_validation_loss_that_is_never_finite_is_an_error_and_not_an_untrained_model(halves, plan, monkeypatch):
    scripted(monkeypatch, [math.nan] * 9)
    with pytest.raises(InputError, match="validation loss is not finite"):
        fit(plan(), *halves, epochs=3, **SHORT)


# It goes on where it was stopped


@contextmanager
def stopped(monkeypatch, *, after: int):
    """Ctrl-C when the epoch after so many is validated."""
    real, calls = training._validation_loss, []

    def stop(*given):
        calls.append(1)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(training, "_validation_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        yield
    monkeypatch.setattr(training, "_validation_loss", real)


@pytest.mark.parametrize("stopped_after", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"average": 0.9}], ids=["adamw", "sgd", "average"])
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(
    halves, plan, monkeypatch, tmp_path, stopped_after, settings
):
    settings = {"epochs": 4, "batch_size": 3, "seed": 5} | SHORT | settings
    whole = plan()
    expected = fit(whole, *halves, out=tmp_path / "whole", **settings)

    with stopped(monkeypatch, after=stopped_after):
        fit(plan(), *halves, out=tmp_path / "run", **settings)
    resumed = plan()
    history = fit(resumed, *halves, out=tmp_path / "run", **settings)

    assert same(weights(resumed), weights(whole))
    assert same(weights(FusionModel.load(tmp_path / "run" / "model")), weights(whole))
    assert resumed.thresholds_ == whole.thresholds_
    assert history.best_epoch == expected.best_epoch
    keys = ("epoch", "train_loss", "valid_loss", "learning_rate")
    assert [[own[key] for key in keys] for own in history.epochs] == [
        [own[key] for key in keys] for own in expected.epochs
    ]


def test_a_run_with_images_and_notes_goes_on_too(halves, patients, small_model, monkeypatch, tmp_path):
    train = halves[0].keep(halves[0].has_input()[["images", "notes"]].any(axis=1), why="image or note")

    def run(folder: str) -> FusionModel:
        model = small_model(("image", "notes"), outcomes=patients.outcome_kinds)
        fit(model, train, halves[1], epochs=2, batch_size=4, out=tmp_path / folder, **SHORT)
        return model

    whole = run("whole")
    with stopped(monkeypatch, after=1):
        run("stopped")
    resumed = run("stopped")
    assert same(weights(resumed), weights(whole))
    assert predict(resumed, halves[1]).equals(predict(whole, halves[1]))


def test_a_finished_run_is_not_run_again(halves, plan, monkeypatch, tmp_path):
    first, again = plan(), plan()
    fit(first, *halves, epochs=2, out=tmp_path, **SHORT)
    scripted(monkeypatch, [])
    history = fit(again, *halves, epochs=2, out=tmp_path, **SHORT)
    assert same(weights(first), weights(again))
    assert len(history.epochs) == 2


OTHERS = {
    "epochs": {"epochs": 3},
    "batch size": {"batch_size": 4},
    "learning rate": {"learning_rate": 1e-2},
    "optimizer": {"optimizer": "sgd"},
    "weight decay": {"weight_decay": 0.5},
    "warm-up": {"warmup": 0.5},
    "clipping": {"clip": 0.1},
    "average": {"average": 0.5},
    "patience": {"patience": 1},
    "what is kept": {"keep": "last"},
    "balancing": {"balanced": True},
    "precision": {"precision": "bf16"},
    "seed": {"seed": 1},
}


@pytest.fixture(scope="module")
def run_folder(halves, patients, small_model, tmp_path_factory):
    """The folder of a finished run of labs and static facts."""
    folder = tmp_path_factory.mktemp("run")
    model = small_model(("labs", "static"), outcomes=patients.outcome_kinds)
    fit(model, *halves, epochs=2, out=folder, **SHORT)
    return folder


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_other_settings_cannot_go_on_in_the_same_folder(halves, plan, run_folder, other):
    with pytest.raises(InputError, match="holds a run with other data or other settings"):
        fit(plan(), *halves, **{"epochs": 2, "out": run_folder} | SHORT | other)


def test_other_data_or_another_model_cannot_go_on_in_the_same_folder(halves, patients, small_model, plan, run_folder):
    train, valid = halves
    labs = train.labs.assign(value=train.labs["value"] + np.arange(len(train.labs)) % 3)
    others = [
        (plan(), train.keep(np.arange(len(train)) > 0, why="fewer"), valid),
        (plan(), train.with_tables("another value", labs=labs), valid),
        (plan(), train, valid.keep(np.arange(len(valid)) > 0, why="fewer")),
        (plan(), train, None),
        (plan(modality_dropout=0.5), train, valid),
        (plan(fusion=CrossAttentionFusion(16, depth=2, heads=4)), train, valid),
        (plan(fusion=ConcatenationFusion(16)), train, valid),
        (
            small_model(("static",), outcomes=patients.outcome_kinds),
            train.keep(train.has_input()["static"], why="s"),
            valid,
        ),
    ]
    for model, own, held_out in others:
        with pytest.raises(InputError, match="holds a run with other data or other settings"):
            fit(model, own, held_out, epochs=2, out=run_folder, **SHORT)


def test_a_damaged_checkpoint_is_refused(halves, plan, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    state = folder / "checkpoint" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(InputError, match="is not the file that was saved"):
        fit(plan(), *halves, epochs=2, out=folder, **SHORT)


def test_a_checkpoint_without_its_manifest_is_refused_before_the_best_model_is_replaced(
    halves, plan, run_folder, tmp_path
):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "checkpoint" / "manifest.json").unlink()
    before = (folder / "model" / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=r"is no checkpoint: it has no manifest\.json"):
        fit(plan(), *halves, epochs=2, out=folder, **SHORT)
    assert (folder / "model" / "manifest.json").read_bytes() == before


def test_a_checkpoint_that_another_version_wrote_is_refused(halves, plan, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    told = json.loads((folder / "checkpoint" / "run.json").read_text())
    with new_folder(folder / "checkpoint", "checkpoint") as scratch:
        shutil.copy(folder / "checkpoint" / "state.safetensors", scratch)
        (scratch / "run.json").write_text(json.dumps(told | {"groups": told["groups"][:1]}))
    with pytest.raises(InputError, match=r"this version of chiasm cannot go on from it\. Go on with the version"):
        fit(plan(), *halves, epochs=2, out=folder, **SHORT)


def test_a_run_folder_holds_a_readable_history_a_model_and_a_checkpoint_without_pickles(run_folder):
    lines = (run_folder / "history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["epoch"] for record in records] == [1, 2]
    assert set(records[0]) == {"epoch", "train_loss", "valid_loss", "learning_rate", "seconds"}
    files = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*") if path.is_file()}
    assert files == {
        "history.jsonl",
        *(f"model/{name}" for name in ("manifest.json", "model.json", "weights.safetensors")),
        *(f"checkpoint/{name}" for name in ("manifest.json", "run.json", "state.safetensors")),
    }
    json.loads((run_folder / "checkpoint" / "run.json").read_text())


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
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"weight_decay": -1.0}, r"weight_decay is -1\.0"),
        ({"warmup": 2.0}, r"warmup is 2\.0"),
        ({"clip": 0.0}, r"clip is 0\.0"),
        ({"average": 1.0}, r"average is 1\.0"),
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
    settings = {"out": tmp_path / "run", "on_start": lambda: seen.append((tmp_path / "run").exists())} | SHORT
    for wrong in ({"epochs": 0}, {"seed": -1}):
        with pytest.raises(InputError):
            fit(plan(), *halves, **settings | {"epochs": 1} | wrong)
    assert not seen
    fit(plan(), *halves, epochs=1, **settings)
    assert seen == [False]
    with pytest.raises(InputError, match="other data or other settings"):
        fit(plan(), *halves, epochs=2, **settings)
    assert seen == [False]


def test_patients_in_both_parts_are_refused(patients, halves, plan):
    with pytest.raises(InputError, match=r"patients are both in train and in valid\. Divide with cohort\.split"):
        fit(plan(), patients, halves[1], epochs=1, **SHORT)


def test_samples_of_which_nothing_is_known_are_refused(cohort, plan):
    with pytest.raises(InputError, match=r"Of 1 of 16 training samples nothing is known .* data row 1\)"):
        fit(plan(), cohort, epochs=1, **SHORT)


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

"""The laws of kept tokens: a frozen network is run once a row, and nobody sees a difference but in time."""

import gc
import os
import re
import signal
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from chiasm.datasets import Cohort, InputError
from chiasm.datasets.prepared import prepare
from chiasm.datasets.store import Store
from chiasm.encoders import Encoded, ImageEncoder, LabEncoder, NoteEncoder, Tokens
from chiasm.fusion import CrossAttentionFusion, FusionModel, contributions, fit, frozen_tokens, predict, training
from chiasm.fusion.frozen_tokens import TokenKeeper, encode_once
from chiasm.fusion.stopping import Stopped
from numpy.testing import assert_allclose
from torch.testing import assert_close
from transformers import BertConfig

BERT = BertConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64
)


def model_of(image: str = "frozen", notes: str = "frozen", **settings) -> FusionModel:
    return FusionModel(
        image=ImageEncoder("test_resnet", size=64, grid=2, tuning=image, **settings),
        notes=NoteEncoder(BERT, length=12, overlap=4, tuning=notes),
        labs=LabEncoder(16, rare=1),
        fusion=CrossAttentionFusion(32, depth=1, heads=2, latents=2),
        outcomes={"died": "binary"},
    )


@pytest.fixture(scope="module")
def halves(cohort) -> tuple[Cohort, Cohort]:
    """Training and validation patients; some lack images or notes."""
    some = cohort.keep_with_input()
    mask = np.arange(len(some)) % 3 > 0
    return some.keep(mask, why="train"), some.keep(~mask, why="valid")


@pytest.fixture
def model(halves) -> FusionModel:
    made = model_of()
    made.build(halves[0])
    made.fit_scales(torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool), balanced=False)
    return made.eval()


@pytest.fixture
def runs(monkeypatch) -> Counter[str]:
    """How many rows of each kind of part the networks were shown."""
    called: Counter[str] = Counter()
    for kind in (ImageEncoder, NoteEncoder):

        def counted(self, part, *, real=kind.encoded):
            called[type(part).__name__] += len(part.patient)
            return real(self, part)

        monkeypatch.setattr(kind, "encoded", counted)
    return called


def rows_of(model: FusionModel, *cohorts: Cohort) -> Counter[str]:
    """How many images and pieces of notes some cohorts have, each counted once a cohort."""
    counts: Counter[str] = Counter()
    for cohort in cohorts:
        for name, kind in (("image", "Images"), ("notes", "Notes")):
            counts[kind] += len(np.unique(model.read(cohort).parts[name].rows))
    return counts


def shelves(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("tokens-*")}


# Nobody sees a difference


def test_tokens_that_were_kept_are_those_that_would_be_made(model, halves, tmp_path):
    samples = model.read(halves[0])
    kept = encode_once(model, samples, Store.open(tmp_path))
    positions = list(range(len(samples)))[::-1]
    batch, plain = kept[positions], samples[positions]
    assert {name: type(part).__name__ for name, part in batch.parts.items()} == {
        "image": "Encoded",
        "notes": "Encoded",
        "labs": "Labs",
    }
    with torch.no_grad():
        ours, theirs = model.encode(batch), model.encode(plain)
    for name, own in ours.items():
        assert isinstance(own, Tokens)
        assert torch.equal(own.mask, theirs[name].mask)
        assert torch.equal(own.hours, theirs[name].hours)
        assert_close(own.values, theirs[name].values, atol=1e-6, rtol=1e-5)
    for name in ("keys", "outcomes", "known", "sizes", "empty", "remarks", "exclusions", "parts"):
        assert getattr(kept, name) is getattr(samples, name) or np.array_equal(
            getattr(kept, name), getattr(samples, name)
        )
    assert len(kept) == len(samples)


def test_predictions_and_explanations_are_the_same_with_a_store_and_without(model, halves, tmp_path, runs):
    valid = halves[1]
    plain, explained = predict(model, valid), contributions(model, valid)
    stored = valid.with_store(tmp_path)
    runs.clear()
    first, again = predict(model, stored), predict(model, stored)
    assert runs == rows_of(model, valid)
    assert_allclose(first["risk"], plain["risk"], atol=1e-6, rtol=0)
    assert first.equals(again)
    ours = contributions(model, stored)
    assert ours.columns.equals(explained.columns)
    numbers = ["contribution", "risk", "baseline"]
    assert_allclose(ours[numbers], explained[numbers], atol=1e-6, rtol=0)
    assert runs == rows_of(model, valid)


def test_training_ends_where_it_would_without(halves, monkeypatch):
    # Adam would make a whole step of a gradient that is nothing but rounding.
    settings = {"epochs": 2, "batch_size": 4, "optimizer": "sgd", "learning_rate": 0.05, "progress": False}
    kept, plain = model_of(), model_of()
    fit(kept, *halves, **settings)
    monkeypatch.setattr(TokenKeeper, "keep", lambda _, samples, __: samples)
    fit(plain, *halves, **settings)
    for name, value in plain.state_dict().items():
        assert_close(kept.state_dict()[name], value, atol=1e-5, rtol=1e-5)
    ours, theirs = predict(kept, halves[1]), predict(plain, halves[1])
    assert_allclose(ours["risk"], theirs["risk"], atol=1e-5, rtol=0)


# It is run once


def test_epochs_after_the_first_touch_neither_images_nor_notes(halves, runs, monkeypatch):
    batches: list[set[str]] = []
    real = FusionModel.encode

    def seen(self, batch):
        batches.append({type(part).__name__ for part in batch.parts.values()})
        return real(self, batch)

    monkeypatch.setattr(FusionModel, "encode", seen)
    model = model_of()
    history = fit(model, *halves, epochs=3, batch_size=4, progress=False)
    assert runs == rows_of(model, *halves)
    assert all(kinds == {"Encoded", "Labs"} for kinds in batches)
    assert re.fullmatch(
        r"image: \d+ rows encoded once, without augmentation, and kept in a temporary folder, since .*",
        history.tuning[2],
    )


def test_only_what_never_learns_is_kept(halves, runs):
    train, valid = halves
    model = model_of(notes="gradual")
    fit(model, train, valid, epochs=1, batch_size=20, progress=False)
    # Of notes: a step, a validation, and a choice of thresholds.
    seen = rows_of(model, train, valid, valid)
    assert runs == {"Images": rows_of(model, train, valid)["Images"], "Notes": seen["Notes"]}
    runs.clear()
    history = fit(model_of("full", "lora:4"), train, valid, epochs=1, batch_size=20, progress=False)
    assert runs == seen
    assert not any("kept in" in told for told in history.tuning)


def test_a_network_that_learns_and_a_cohort_without_a_store_are_left_as_they_are(model, halves, tmp_path):
    samples = model.read(halves[0])
    assert encode_once(model, samples, None) is samples
    learning = model_of("full", "full")
    learning.build(halves[0])
    assert encode_once(learning, samples, Store.open(tmp_path)) is samples
    assert not shelves(tmp_path)


def test_a_temporary_folder_goes_when_training_is_over(halves, monkeypatch):
    made: list[Path] = []
    real = tempfile.mkdtemp

    def noted(**settings):
        made.append(Path(real(**settings)))
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", noted)
    fit(model_of(), *halves, epochs=1, progress=False)
    gc.collect()
    assert len(made) == 1
    assert not made[0].exists()


def test_what_a_store_has_is_found_after_a_restart_by_any_part_of_the_cohort(halves, tmp_path, runs):
    train, valid = (half.with_store(tmp_path) for half in halves)
    settings = {"epochs": 1, "batch_size": 4, "progress": False}
    history = fit(model_of(), train, valid, **settings)
    assert history.tuning[2].endswith(f"kept in the store {tmp_path}")
    assert len(shelves(tmp_path)) == 2
    runs.clear()
    again = model_of()
    fit(again, train, valid, **settings)
    # The weights that are drawn from the seed are the same; a smaller part of the patients has been seen, too.
    predict(again, train.keep(np.arange(len(train)) < 3, why="a few"))
    assert not runs


def test_a_model_that_was_saved_and_loaded_finds_what_was_kept(model, halves, tmp_path, runs):
    train = halves[0].with_store(tmp_path / "store")
    first = predict(model, train)
    model.save(tmp_path / "model")
    runs.clear()
    assert predict(FusionModel.load(tmp_path / "model"), train).equals(first)
    assert not runs


def test_patients_without_images_and_notes_have_no_tokens(model, halves, tmp_path):
    nobody = halves[0].with_tables("labs alone", images=None, notes=None).keep_with_input()
    stored = nobody.with_store(tmp_path)
    assert_allclose(predict(model, stored)["risk"], predict(model, nobody)["risk"], atol=1e-6)


def test_a_killed_process_loses_what_it_had_in_hand_alone(model, halves, tmp_path, runs, monkeypatch):
    store, samples = Store.open(tmp_path), model.read(halves[0])
    monkeypatch.setattr(frozen_tokens, "_ROWS_A_CHUNK", 2)
    real, done = ImageEncoder.encoded, []

    def failing(self, part):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return real(self, part)

    assert rows_of(model, halves[0])["Images"] > 8
    monkeypatch.setattr(ImageEncoder, "encoded", failing)
    with pytest.raises(KeyboardInterrupt):
        encode_once(model, samples, store)
    monkeypatch.setattr(ImageEncoder, "encoded", real)
    runs.clear()
    encode_once(model, samples, store)
    rows = len(np.unique(samples.parts["image"].rows))
    assert runs["Images"] == rows - 4


def test_equal_rows_are_encoded_once(model, halves, tmp_path, hospital):
    outcomes = halves[0].outcomes
    twice = Cohort(
        outcomes, images=hospital["images"].assign(path=hospital["images"]["path"].iloc[0]), notes=hospital["notes"]
    )
    samples = prepare(twice, model.readers)
    kept = encode_once(model, samples, Store.open(tmp_path))
    assert len(kept[range(len(kept))].parts["image"].patient) > 4
    (folder,) = tmp_path.glob("tokens-image-*")
    assert len(np.load(folder / "values.npy")) == 4


# It is never that of others


def test_tokens_of_other_weights_statistics_or_settings_are_never_used(halves, tmp_path, runs):
    train = halves[0].with_store(tmp_path)
    models: list[FusionModel] = []

    def kept(change) -> torch.Tensor:
        model = model_of()
        models.append(model)
        model.build(halves[0], seed=0)
        model.eval()
        change(model.encoders["image"])
        samples = encode_once(model, model.read(train), train.store)
        plain = model.read(train)
        positions = range(len(plain))
        with torch.no_grad():
            ours, theirs = (model.encode(own[positions])["image"] for own in (samples, plain))
        assert_close(ours.values, theirs.values, atol=1e-6, rtol=1e-5)
        return ours.values

    def nothing(_):
        pass

    def weight(encoder):
        encoder.backbone.conv1[0].weight.data[0] += 1.0

    def statistic(encoder):
        encoder.backbone.conv1[1].running_mean[0] += 1.0

    def scaling(encoder):
        encoder.mean += 0.1

    changes = (nothing, weight, statistic, scaling)
    values = [kept(change) for change in changes]
    assert len({path for path in shelves(tmp_path) if path.startswith("tokens-image")}) == len(changes)
    assert all(not torch.equal(values[0], other) for other in values[1:])
    runs.clear()
    kept(nothing)
    # What is seen again is what the plain samples show.
    assert runs == rows_of(models[0], halves[0])


def test_another_grid_or_another_library_has_tokens_of_its_own(model, halves, tmp_path, monkeypatch):
    samples, store = model.read(halves[0]), Store.open(tmp_path)
    encode_once(model, samples, store)
    before = shelves(tmp_path)
    monkeypatch.setattr(frozen_tokens, "version", lambda _: "0.0")
    encode_once(model, samples, store)
    assert len(shelves(tmp_path)) == 2 * len(before)
    monkeypatch.undo()
    coarse = model_of()
    coarse.encoders["image"].grid = 1
    coarse.build(halves[0])
    encode_once(coarse, coarse.read(halves[0]), store)
    assert len([name for name in shelves(tmp_path) if name.startswith("tokens-image")]) == 3


def test_a_damaged_store_is_refused_with_the_remedy(model, halves, tmp_path):
    samples, store = model.read(halves[0]), Store.open(tmp_path)
    encode_once(model, samples, store)
    (folder,) = tmp_path.glob("tokens-image-*")
    values = folder / "values.npy"
    values.write_bytes(values.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"missing or damaged\. Remove the folder"):
        encode_once(model, samples, store)


def test_a_part_of_tokens_is_a_part_like_others():
    part = Encoded(torch.tensor([0, 0, 2]), torch.tensor([-1.0, -1, -2]), torch.ones(3, 4))
    encoder = NoteEncoder(BERT)
    encoder.width, encoder.transformer = 4, torch.nn.Linear(1, 1)
    tokens = encoder(part, 3)
    assert tokens.mask.tolist() == [[True, True], [False, False], [True, False]]
    nobody = encoder(part._replace(patient=part.patient[:0], hours=part.hours[:0], values=part.values[:0]), 3)
    assert nobody.values.shape == (3, 0, 4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_request_to_stop_is_heard_between_two_chunks_and_what_was_encoded_stays(
    halves, tmp_path, monkeypatch, number
):
    train, valid = (half.with_store(tmp_path / "store") for half in halves)
    settings = {"epochs": 1, "batch_size": 4, "progress": False}
    chunks: list[int] = []
    real = frozen_tokens._made

    def made(*given):
        chunks.append(len(given[-1]))
        if len(chunks) == 2:
            os.kill(os.getpid(), number)
        return real(*given)

    monkeypatch.setattr(frozen_tokens, "_made", made)
    with pytest.raises(Stopped, match=f"stopped by {number.name}"):
        fit(model_of(), train, valid, out=tmp_path / "run", **settings)
    assert len(chunks) == 2
    rows = sum(chunks)
    model = model_of()
    fit(model, train, valid, out=tmp_path / "run", **settings)
    # Each row once, whichever of the two runs did it.
    assert rows < sum(chunks) == len(all_rows(model, train, valid))
    whole = model_of()
    fit(whole, *halves, **settings)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in model.state_dict().items())


def all_rows(model: FusionModel, *cohorts: Cohort) -> set[str]:
    """What tells the rows of some cohorts that frozen networks read."""
    parts = [model.read(cohort).parts[name] for cohort in cohorts for name in ("image", "notes")]
    return {frozen_tokens._row_content(part, row) for part in parts for row in np.unique(part.rows)}


def test_a_run_that_is_finished_is_not_encoded_again(halves, tmp_path, runs, monkeypatch):
    settings = {"epochs": 1, "batch_size": 20, "progress": False, "out": tmp_path}
    fit(model_of(), *halves, **settings)
    runs.clear()
    monkeypatch.setattr(training, "encoded_once", lambda *_: pytest.fail("encoded"))
    again = model_of()
    fit(again, *halves, **settings)
    assert not runs

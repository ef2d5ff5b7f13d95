"""The laws of budgets: however many images and notes, so many tokens, the newest in detail, and nobody left out."""

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.datasets import Cohort, InputError
from chiasm.datasets.batch import Images
from chiasm.datasets.prepared import prepare
from chiasm.datasets.store import Store
from chiasm.encoders import Encoded, ImageEncoder, LabEncoder, NoteEncoder, budget
from chiasm.encoders.budget import StudyAttention, encoded_in_turns, in_detail
from chiasm.fusion import CrossAttentionFusion, FusionModel, fit, predict
from chiasm.fusion.frozen_tokens import encode_once
from torch import nn
from torch.testing import assert_close
from transformers import BertConfig

BERT = BertConfig(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
# Fewer than the patients with most images or pieces of notes have tokens.
IMAGES, PIECES = 9, 40


def encoder_of(modality: str, tokens: int | None, **settings) -> ImageEncoder | NoteEncoder:
    if modality == "image":
        return ImageEncoder("test_resnet", size=64, grid=2, budget=tokens, **settings)
    return NoteEncoder(BERT, length=12, overlap=4, budget=tokens, **settings)


@pytest.fixture(scope="module")
def busy(hospital) -> Cohort:
    """The hospital, with some images and notes more than once, and two of one moment."""
    tables = dict(hospital)
    for name in ("images", "notes"):
        again = [
            hospital[name].assign(time=hospital[name]["time"] - pd.Timedelta(hours=hours)) for hours in (0, 30, 31)
        ]
        tables[name] = pd.concat([hospital[name], *again], ignore_index=True)
    return Cohort(**tables).keep_with_input()


@pytest.fixture(scope="module", params=["image", "notes"])
def case(request, busy):
    """An encoder with a budget, one with the same weights and none, and a batch of all samples."""
    within = encoder_of(request.param, {"image": 12, "notes": PIECES}[request.param], most=12)
    whole = encoder_of(request.param, None, most=12)
    for encoder in (within, whole):
        torch.manual_seed(0)
        encoder.build(busy)
    samples = prepare(busy, {request.param: within.reader})
    return within.eval(), whole.eval(), samples


# Which are read in detail


def test_the_newest_keep_their_tokens_as_far_as_the_others_have_one_each():
    patient = torch.tensor([0, 0, 0, 1, 2, 2])
    hours = torch.tensor([-9.0, -5, -1, -3, -2, -1])
    tokens = torch.tensor([4, 4, 4, 30, 4, 4])
    kept = {size: in_detail(patient, hours, tokens, size).tolist() for size in (5, 6, 8, 9, 12, 30)}
    assert kept[5] == [False, False, False, False, False, True]
    # Four of the newest and one of each of the two others.
    assert kept[6] == [False, False, True, False, False, True]
    assert kept[8] == [False, False, True, False, True, True]
    assert kept[9] == [False, True, True, False, True, True]
    assert kept[12] == [True, True, True, False, True, True]
    assert all(kept[30])
    assert in_detail(patient[:0], hours[:0], tokens[:0], 5).tolist() == []


def test_rows_of_one_hour_all_keep_their_tokens_or_none_does():
    patient, tokens = torch.zeros(3, dtype=torch.int64), torch.tensor([4, 4, 4])
    for hours in ([-1.0, -1, -5], [-1.0, -5, -1], [-5.0, -1, -1]):
        newer = [hour == -1 for hour in hours]
        assert in_detail(patient, torch.tensor(hours), tokens, 8).tolist() == [False] * 3
        assert in_detail(patient, torch.tensor(hours), tokens, 9).tolist() == newer


def test_what_is_kept_is_what_a_plain_loop_over_studies_keeps():
    random = np.random.default_rng(0)
    for _ in range(50):
        counts = random.integers(0, 7, 4)
        patient = np.repeat(np.arange(4), counts)
        hours, tokens = -random.integers(1, 5, len(patient)).astype(np.float32), random.integers(1, 9, len(patient))
        expected = np.zeros(len(patient), bool)
        for one in range(4):
            for hour in sorted(set(hours[patient == one]), reverse=True):
                wished = expected | ((patient == one) & (hours == hour))
                own = patient == one
                if np.where(wished, tokens, 1)[own].sum() > 9:
                    break
                expected = wished
        found = in_detail(*(torch.from_numpy(column) for column in (patient, hours, tokens)), 9)
        assert found.tolist() == expected.tolist()


# What becomes of the others


def test_nobody_has_more_tokens_than_the_budget_and_every_row_has_one(case):
    within, whole, samples = case
    (part,) = samples[range(len(samples))].parts.values()
    with torch.no_grad():
        ours, theirs = within(part, len(samples)), whole(part, len(samples))
    assert ours.mask.sum(1).max() <= within.budget < theirs.mask.sum(1).max()
    for i in range(len(samples)):
        assert set(ours.hours[i][ours.mask[i]].tolist()) == set(part.hours[part.patient == i].tolist())


def test_a_patient_within_the_budget_has_all_tokens_and_others_have_means_of_theirs(case):
    within, whole, samples = case
    (part,) = samples[range(len(samples))].parts.values()
    (packed,) = samples.parts.values()
    detailed = torch.from_numpy(within.detailed(packed))
    assert detailed.any()
    assert not detailed.all()
    with torch.no_grad():
        ours, theirs = within(part, len(samples)), whole(part, len(samples))
    for i in range(len(samples)):
        tokens, place = theirs.values[i], 0
        expected = []
        for row in torch.nonzero(part.patient == i).flatten():
            count = len(whole.position) if isinstance(part, Images) else int(part.length[row])
            own = tokens[place : place + count]
            place += count
            expected.append(own if detailed[row] else own.mean(0, keepdim=True))
        if expected:
            assert_close(ours.values[i][ours.mask[i]], torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_encoding_a_few_at_a_time_gives_the_same_tokens_and_gradients(case, monkeypatch):
    within, _, samples = case
    (part,) = samples[range(len(samples))].parts.values()
    found = []
    for at_once in (3, 1000):
        monkeypatch.setattr(budget, "AT_ONCE", at_once)
        within.zero_grad()
        tokens = within(part, len(samples))
        (tokens.values[tokens.mask].square().sum() + tokens.gist.square().sum()).backward()
        found.append((tokens.values.detach(), {name: own.grad.clone() for name, own in within.named_parameters()}))
    within.zero_grad()
    assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    for name, own in found[0][1].items():
        assert_close(own, found[1][1][name], atol=1e-4 * (1 + own.abs().max()), rtol=1e-4)


def test_what_is_kept_for_the_gradient_does_not_grow_with_what_a_network_computes(case):
    within, whole, samples = case
    (part,) = samples[range(len(samples))].parts.values()
    kept = {}
    for encoder in (within, whole):
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor, sizes=sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            encoder(part, len(samples))
        kept[encoder] = sum(sizes.values())
    assert kept[within] < kept[whole] / 3


def test_statistics_of_batch_norms_move_once_a_step(busy):
    encoder = encoder_of("image", 12, most=12, augment=False)
    encoder.build(busy)
    (part,) = prepare(busy, {"image": encoder.reader})[range(len(busy))].parts.values()
    start = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = []
    for backward in (False, True):
        encoder.load_state_dict(start)
        tokens = encoder.train()(part, len(busy))
        if backward:
            tokens.values.sum().backward()
        found.append({name: own.clone() for name, own in encoder.state_dict().items() if "running" in name})
    assert any(not torch.equal(own, start[name]) for name, own in found[0].items())
    assert all(torch.equal(own, found[1][name]) for name, own in found[0].items())
    assert all(layer.momentum == 0.1 for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d))


def test_a_hidden_word_is_hidden_again_when_the_way_is_computed_anew(busy):
    encoder = encoder_of("notes", PIECES, most=12, word_dropout=0.5)
    encoder.build(busy)
    encoder.train()
    (part,) = prepare(busy, {"notes": encoder.reader})[range(len(busy))].parts.values()
    seen: list[list[int]] = []

    def noted(part, real=encoder.encoded) -> Encoded:
        encoded = real(part)
        seen.append(encoded.place.tolist())
        return encoded

    detailed = in_detail(part.patient, part.hours, part.length, PIECES)
    encoded_in_turns(noted, encoder.transformer, part, detailed).values.sum().backward()
    turns = len(seen) // 2
    assert len({len(places) for places in seen}) > 1
    assert sorted(seen[:turns]) == sorted(seen[turns:])


# What they say in sum


def test_studies_weigh_the_same_until_attention_learns_which_and_how_old():
    place = torch.tensor([0, 1, -1, 0, 1, 2])
    values = torch.tensor([[1.0, 3], [3, 1], [8, 0], [2, 2], [4, 4], [6, 6]])
    encoded = Encoded(torch.tensor([0, 0, 0, 2, 2, 2]), torch.tensor([-1.0, -1, -50, -3, -3, -3]), values, place)
    attention = StudyAttention(2)
    with torch.no_grad():
        assert attention(encoded, 3).gist.tolist() == [[5, 1], [0, 0], [4, 4]]
        # The feature that falls from 1 within an hour.
        attention.score.weight[0, 3] = 100.0
        assert_close(attention(encoded, 3).gist, torch.tensor([[2.0, 2], [0, 0], [4, 4]]))


# In a model


def model_of(**settings) -> FusionModel:
    return FusionModel(
        image=encoder_of("image", IMAGES, most=8, **settings),
        notes=encoder_of("notes", PIECES, most=10, **settings),
        labs=LabEncoder(16, rare=1),
        fusion=CrossAttentionFusion(32, depth=1, heads=2, latents=2),
        outcomes={"died": "binary"},
    )


def test_what_is_read_as_one_token_and_what_is_dropped_is_reported(busy, tmp_path):
    model = model_of()
    history = fit(model, busy, epochs=1, batch_size=8, progress=False)
    counted = [remark.split(" ", 2)[1] for remark in history.remarks]
    read = model.read(busy).parts
    images = int((~model.encoders["image"].detailed(read["image"])).sum())
    pieces = int((~model.encoders["notes"].detailed(read["notes"])).sum())
    dropped = sum(max(0, 4 * (1 + patient // 2 % 3) - 8) for patient in range(16) if patient & 1)
    assert images
    assert pieces
    assert history.remarks[:2] == (
        f"images: {dropped} older than the 8 most recent of their patient",
        f"images: {images} of {len(read['image'].rows)} are read as one token each, for a budget of 9 tokens a sample",
    )
    assert counted[-1] == str(pieces)
    assert history.remarks[-1].endswith("are read as one token each, for a budget of 40 tokens a sample")
    risks = predict(model, busy)
    assert tuple(risks.attrs["remarks"]) == history.remarks
    model.save(tmp_path / "model")
    assert predict(FusionModel.load(tmp_path / "model"), busy).equals(risks)
    # Prepared in a store, the same is told.
    assert tuple(predict(model, busy.with_store(tmp_path / "store")).attrs["remarks"]) == history.remarks


def test_a_patient_within_the_budget_is_not_reported(cohort):
    model = model_of()
    model.encoders["image"].budget, model.encoders["notes"].budget = 100, 1000
    model.build(cohort)
    assert model.read(cohort).remarks == ()


def test_kept_tokens_are_within_the_budget_too_and_those_that_would_be_made(busy, tmp_path):
    model = model_of(tuning="frozen")
    model.build(busy)
    model.fit_scales(torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool), balanced=False)
    model.eval()
    samples = model.read(busy)
    kept = encode_once(model, samples, Store.open(tmp_path))
    positions = list(range(len(samples)))[::-1]
    for name, most in (("image", IMAGES), ("notes", PIECES)):
        part = kept[positions].parts[name]
        assert isinstance(part, Encoded)
        assert torch.bincount(part.patient).max() <= most
    with torch.no_grad():
        ours, theirs = model.encode(kept[positions]), model.encode(samples[positions])
    for name, own in ours.items():
        assert torch.equal(own.mask, theirs[name].mask)
        assert torch.equal(own.hours, theirs[name].hours)
        assert_close(own.values, theirs[name].values, atol=1e-5, rtol=1e-5)
        assert_close(own.gist, theirs[name].gist, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ImageEncoder(most=8, budget=7), r"budget is 7; expected a token for each of 8 × 1 images, or None"),
        (lambda: ImageEncoder(most=2, slices=4, budget=7), r"budget is 7; expected a token for each of 2 × 4 images"),
        (lambda: NoteEncoder(most=300, budget=0), r"budget is 0; expected a token for each of 300 pieces, or None"),
    ],
)
def test_a_budget_without_a_token_for_every_row_is_refused(make, match):
    with pytest.raises(InputError, match=match):
        make()

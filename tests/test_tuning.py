"""The laws of tuning: what learns, how fast and from when on, in the same words for images and notes."""

import numpy as np
import pytest
import timm
import torch
from chiasm.datasets import Cohort, InputError
from chiasm.datasets.note_reader import train_wordpiece
from chiasm.datasets.prepared import prepare
from chiasm.encoders import Encoder, ImageEncoder, NoteEncoder, Tuned, Tuning
from chiasm.encoders.tuning import PRETRAINED_RATE, STAGES, layer_depths
from chiasm.fusion import CrossAttentionFusion, FusionModel, fit, predict, training
from chiasm.fusion.learning import MovingAverage, make_optimizer, tell_tuning, thaw
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close
from transformers import BertConfig, BertModel, DistilBertConfig

WORDS = ("full", "frozen", "gradual", "layerwise", "lora:4")
SHORT = {"average": 0.0, "progress": False}
BERT = BertConfig(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64
)


def image(tuning: str, **settings) -> ImageEncoder:
    return ImageEncoder("test_resnet", size=64, grid=2, tuning=tuning, **settings)


def notes(tuning: str, **settings) -> NoteEncoder:
    return NoteEncoder(BERT, length=32, overlap=4, tuning=tuning, **settings)


KINDS = {"image": image, "notes": notes}


@pytest.fixture(params=KINDS)
def modality(request) -> str:
    return request.param


def built(encoder: Encoder, cohort: Cohort) -> Encoder:
    torch.manual_seed(0)
    encoder.build(cohort)
    # A fresh ResNet begins with branches that are switched off, as no published one is.
    for layer in encoder.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(layer.weight)
    return encoder


def network_of(encoder: Encoder) -> torch.nn.Module:
    return encoder.backbone if isinstance(encoder, ImageEncoder) else encoder.transformer


def whole_part(encoder: Encoder, cohort: Cohort):
    (part,) = prepare(cohort, {"own": encoder.reader})[range(len(cohort))].parts.values()
    return part


def learning_shares(encoder: Encoder) -> dict[str, float]:
    shares = {id(weight): share for weight, share in encoder.rates()}
    return {name: shares[id(weight)] for name, weight in network_of(encoder).named_parameters() if id(weight) in shares}


def moved(encoder: Encoder, cohort: Cohort) -> set[str]:
    """The names of the network's weights and statistics that a step of training changes."""
    part, before = whole_part(encoder, cohort), {k: v.clone() for k, v in network_of(encoder).state_dict().items()}
    rule = torch.optim.Adam([weight for weight in encoder.parameters() if weight.requires_grad] or [torch.zeros(1)])
    # Twice: an adapter's first half has no gradient while its second is zero.
    for _ in range(2):
        values = encoder.train()(part, len(cohort)).values
        if values.requires_grad:
            (values * torch.randn_like(values)).sum().backward()
        rule.step()
    return {name for name, value in network_of(encoder).state_dict().items() if not torch.equal(value, before[name])}


# Words


def test_a_way_of_tuning_is_a_word_or_a_word_and_its_number():
    for text in ("full", "frozen", "gradual", "layerwise", "lora", "full:0.5", "gradual:3", "layerwise:0.9", "lora:4"):
        assert str(Tuning.parse(text)) == text
    assert Tuning.parse("lora").number == 8


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("linear", "expected full, frozen, gradual, layerwise, lora, such as tuning='frozen'"),
        ("frozen:1", "expected 'frozen' alone"),
        ("full:0", "expected 'full' alone, or with a share of the learning rate"),
        ("gradual:0.5", "whole number of epochs a stage"),
        ("layerwise:1.5", "decay a layer, above 0 to 1"),
        ("lora:none", "whole number as rank"),
        ("lora:", "whole number as rank"),
        ("lora:inf", "whole number as rank"),
        ("gradual:inf", "whole number of epochs a stage"),
    ],
)
def test_other_words_and_numbers_are_refused_alike_by_both_encoders(modality, text, match):
    with pytest.raises(InputError, match=match):
        KINDS[modality](text)


@pytest.mark.parametrize("tuning", WORDS)
def test_every_encoder_of_a_pretrained_network_is_tuned_and_the_words_survive_its_description(modality, tuning, cohort):
    encoder = built(KINDS[modality](tuning), cohort)
    assert isinstance(encoder, Tuned)
    assert encoder.describe()["settings"]["tuning"] == tuning


# What learns


def test_a_frozen_network_does_not_change_and_sees_in_training_what_it_sees_in_use(modality, cohort):
    encoder = built(KINDS[modality]("frozen"), cohort)
    assert not moved(encoder, cohort)
    part = whole_part(encoder, cohort)
    with torch.no_grad():
        ours, theirs = encoder.train()(part, len(cohort)), encoder.eval()(part, len(cohort))
    assert torch.equal(ours.values, theirs.values)


def test_where_a_region_lies_is_learned_beside_a_frozen_network(cohort):
    encoder = built(image("frozen"), cohort)
    assert [name for name, own in encoder.named_parameters() if own.requires_grad] == ["position"]


def test_the_whole_network_learns_unless_told_otherwise(modality, cohort):
    encoder = built(KINDS[modality]("full"), cohort)
    assert moved(encoder, cohort) >= {name for name, _ in network_of(encoder).named_parameters()}


def test_adapters_learn_alone_and_begin_as_nothing(modality, cohort):
    encoder, plain = built(KINDS[modality]("lora:4"), cohort), built(KINDS[modality]("full"), cohort)
    part = whole_part(encoder, cohort)
    with torch.no_grad():
        ours, theirs = encoder.eval()(part, len(cohort)), plain.eval()(part, len(cohort))
    assert torch.equal(ours.values, theirs.values)
    changed = moved(encoder, cohort)
    assert changed
    assert changed == {name for name, _ in network_of(encoder).named_parameters() if ".lora_" in name}


def test_convolutions_have_adapters_too_but_not_depthwise_ones_and_not_those_at_the_input(cohort):
    encoder = built(ImageEncoder("test_efficientnet", size=64, tuning="lora:4"), cohort)
    adapted = {name.split(".lora_")[0] for name, _ in encoder.backbone.named_parameters() if ".lora_" in name}
    layers = {name: layer for name, layer in encoder.backbone.named_modules() if hasattr(layer, "base_layer")}
    assert adapted == set(layers)
    assert all(layer.base_layer.groups == 1 for layer in layers.values())
    assert len(layers) > 5
    assert "conv_stem" not in layers


def test_a_rank_that_no_layer_is_wide_enough_for_is_refused(modality, cohort):
    with pytest.raises(InputError, match="no linear layer or convolution wider than 5000"):
        KINDS[modality]("lora:5000").build(cohort)


def test_a_network_thaws_from_its_last_layers_to_its_first_a_stage_every_so_many_epochs(modality, cohort):
    encoder = built(KINDS[modality]("gradual:2"), cohort)
    network, depths = network_of(encoder), layer_depths(network_of(encoder))
    learning = []
    for epoch in range(2 * STAGES + 1):
        encoder.thaw(epoch)
        learning.append({name for name, own in network.named_parameters() if own.requires_grad})
    assert not learning[0]
    assert learning[-1] == set(depths)
    for earlier, later in zip(learning[::2], learning[2::2], strict=False):
        # Each stage adds some, all of them nearer to the input.
        assert earlier < later
        assert max(depths[name] for name in later - earlier) < min((depths[name] for name in earlier), default=99)
    assert learning[::2][:-1] == learning[1::2]
    encoder.thaw(0)
    assert not moved(encoder, cohort)
    encoder.thaw(2)
    # Statistics of what does not learn yet stay as they are, too.
    assert {depths.get(name, max(depths.values())) for name in moved(encoder, cohort)} == {max(depths.values())}
    encoder.thaw(None)
    assert all(own.requires_grad for own in network.parameters())


# How fast


def test_each_layer_learns_more_slowly_than_the_one_above(modality, cohort):
    encoder = built(KINDS[modality]("layerwise:0.5"), cohort)
    shares, depths = learning_shares(encoder), layer_depths(network_of(encoder))
    assert set(shares) == set(depths)
    top = max(depths.values())
    assert top == 4
    assert all(share == 0.5 ** (top - depths[name]) for name, share in shares.items())


def test_layers_of_a_transformer_lie_between_its_embeddings_and_what_follows_them():
    depths = layer_depths(BertModel(BERT))
    assert {depth for name, depth in depths.items() if name.startswith("embeddings")} == {0}
    assert {depth for name, depth in depths.items() if name.startswith("encoder.layer.2.")} == {3}
    assert {depth for name, depth in depths.items() if name.startswith("pooler")} == {4}


def test_a_network_without_a_list_of_layers_has_one_depth():
    assert set(layer_depths(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))).values()) == {0}


def test_published_weights_learn_at_a_tenth_of_the_rate_and_fresh_ones_and_adapters_at_all_of_it(cohort):
    fresh = built(image("full"), cohort)
    published = fresh.backbone.state_dict()
    assert set(learning_shares(fresh).values()) == {1.0}
    assert set(learning_shares(built(image("full", pretrained=published), cohort)).values()) == {PRETRAINED_RATE}
    assert set(learning_shares(built(image("full:0.3", pretrained=published), cohort)).values()) == {0.3}
    assert set(learning_shares(built(image("lora:4", pretrained=published), cohort)).values()) == {1.0}
    assert max(learning_shares(built(image("layerwise", pretrained=published), cohort)).values()) == PRETRAINED_RATE


def model_of(tuning: str) -> FusionModel:
    fusion = CrossAttentionFusion(32, depth=1, heads=2, latents=2)
    return FusionModel(image=image(tuning), notes=notes(tuning), fusion=fusion, outcomes={"died": "binary"})


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_optimizer_takes_each_weight_once_at_its_share_of_the_rate(name, cohort):
    model = model_of("layerwise:0.5")
    model.build(cohort)
    rule = make_optimizer(model, name, 1e-2, 0.1)
    rates = {id(weight): group["lr"] for group in rule.param_groups for weight in group["params"]}
    assert sum(len(group["params"]) for group in rule.param_groups) == len(list(model.parameters())) == len(rates)
    for encoder in model.encoders.values():
        assert all(rates[id(weight)] == pytest.approx(1e-2 * share) for weight, share in encoder.rates())
    assert all(rates[id(weight)] == 1e-2 for weight in model.fusion.parameters())
    for group in rule.param_groups:
        assert all((weight.ndim > 1) == (group["weight_decay"] == 0.1) for weight in group["params"])


def test_a_model_tells_how_many_weights_of_each_network_learn(cohort):
    model = model_of("frozen")
    model.build(cohort)
    whole = [sum(own.numel() for own in encoder.parameters()) for encoder in model.encoders.values()]
    learned = model.encoders["image"].position.numel()
    assert tell_tuning(model, 9) == (
        f"image: frozen; {learned:,} of {whole[0]:,} weights learn",
        f"notes: frozen; 0 of {whole[1]:,} weights learn",
    )
    model = model_of("layerwise:0.5")
    model.build(cohort)
    assert tell_tuning(model, 9)[1].endswith("weights learn, at 0.062 to 1 of the learning rate")


def test_a_model_tells_what_gradual_unfreezing_reaches_in_so_many_epochs(cohort):
    model = model_of("gradual")
    model.build(cohort)
    whole = sum(own.numel() for own in model.encoders["notes"].parameters())
    told = [tell_tuning(model, epochs)[1] for epochs in (1, 2, 9)]
    assert told[0] == f"notes: gradual; 0 of {whole:,} weights learn"
    assert told[2] == f"notes: gradual; {whole:,} of {whole:,} weights learn"
    assert told[1] not in (told[0], told[2])
    assert all(weight.requires_grad for weight in model.encoders["notes"].parameters())


# In training


@pytest.fixture(scope="module")
def halves(cohort) -> tuple[Cohort, Cohort]:
    """Training and validation patients who have an image or a note."""
    some = cohort.keep(cohort.has_input()[["images", "notes"]].any(axis=1), why="image or note")
    mask = np.arange(len(some)) % 3 > 0
    return some.keep(mask, why="train"), some.keep(~mask, why="valid")


def state(model: FusionModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("tuning", ["frozen", "gradual", "lora:4"])
def test_a_tuned_model_is_saved_with_all_that_it_has_and_a_stopped_run_goes_on_to_the_same_bits(
    tuning, halves, monkeypatch, tmp_path
):
    settings = {"epochs": 2, "batch_size": 5, "learning_rate": 1e-2, **SHORT, "average": 0.5}
    whole = model_of(tuning)
    history = fit(whole, *halves, out=tmp_path / "whole", **settings)
    real, calls = training.validation_loss, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "validation_loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(model_of(tuning), *halves, out=tmp_path / "run", **settings)
    monkeypatch.setattr(training, "validation_loss", real)
    resumed = model_of(tuning)
    fit(resumed, *halves, out=tmp_path / "run", **settings)
    assert same(state(resumed), state(whole))
    loaded = FusionModel.load(tmp_path / "run" / "model")
    assert same(state(loaded), state(whole))
    assert predict(loaded, halves[1]).equals(predict(whole, halves[1]))
    assert tell_tuning(loaded, settings["epochs"]) == history.tuning[:2]


def test_training_changes_of_a_frozen_network_nothing_and_keeps_it_out_of_checkpoints(halves, tmp_path):
    model = model_of("frozen")
    model.build(halves[0])
    before = state(model)
    fit(model, *halves, epochs=2, learning_rate=1e-2, out=tmp_path, progress=False)
    after = state(model)
    fixed = [name for name in before if ".backbone." in name or ".transformer." in name]
    assert fixed
    assert all(torch.equal(before[name], after[name]) for name in fixed)
    assert not torch.equal(before["fusion.queries"], after["fusion.queries"])
    weights = {name for name, _ in model.named_parameters()} & set(fixed)
    written = load_file(max((tmp_path / "checkpoints").iterdir()) / "state.safetensors")
    assert not [name for name in written if any(name.endswith(own) for own in weights)]


def test_adapters_change_in_training_and_what_they_stand_beside_does_not(halves):
    model = model_of("lora:4")
    model.build(halves[0])
    before = state(model)
    fit(model, *halves, epochs=2, learning_rate=1e-2, **SHORT)
    after = state(model)
    base = [name for name in before if (".backbone." in name or ".transformer." in name) and ".lora_" not in name]
    assert all(torch.equal(before[name], after[name]) for name in base)
    assert any(not torch.equal(before[name], after[name]) for name in before if ".lora_B" in name)


def test_a_model_that_was_trained_a_little_thaws_again_when_it_is_trained_further(halves):
    model = model_of("gradual")
    fit(model, halves[0], epochs=1, **SHORT)
    assert not any(own.requires_grad for own in model.encoders["image"].backbone.parameters())
    before = state(model)
    fit(model, halves[0], epochs=STAGES + 1, learning_rate=1e-2, **SHORT)
    after = state(model)
    assert not torch.equal(
        before["encoders.image.backbone.conv1.0.weight"], after["encoders.image.backbone.conv1.0.weight"]
    )
    thaw(model, None)
    assert all(own.requires_grad for own in model.parameters())


def test_layers_of_another_family_are_found_too(cohort):
    distilled = DistilBertConfig(dim=32, n_layers=3, n_heads=2, hidden_dim=32, max_position_embeddings=64)
    encoder = built(NoteEncoder(distilled, length=32, overlap=4, tuning="layerwise:0.5"), cohort)
    assert set(learning_shares(encoder).values()) == {0.125, 0.25, 0.5, 1.0}


# As it stands in the README.
EXAMPLE = """
from chiasm.datasets import Cohort
from chiasm.encoders import ImageEncoder, LabEncoder, NoteEncoder
from chiasm.fusion import FusionModel, fit

cohort = Cohort.read("hospital/").with_store("prepared/")  # decoded images and kept tokens live here
train, valid, test = cohort.split((0.7, 0.1, 0.2), seed=0)

model = FusionModel(
    image=ImageEncoder("cnn/", pretrained=True, tuning="frozen"),  # a local folder, or a name of the hub
    notes=NoteEncoder("bert/", tuning="lora:8"),
    labs=LabEncoder(),
    outcomes=cohort.outcome_kinds,
)
history = fit(model, train, valid, epochs=20)
print(history.tuning)  # how many weights of each network learn, and what was kept where
"""


def test_the_worked_example_runs(tmp_path, monkeypatch, capsys):
    from chiasm.datasets.synthetic import write_hospital

    write_hospital(tmp_path / "hospital", patients=60, seed=1, image_size=64)
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn" / "config.json").write_text('{"architecture": "test_resnet"}')
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "cnn" / "model.safetensors")
    tokenizer = train_wordpiece(["fever cough clear lungs", "no effusion"] * 2, 100)
    BertModel(BertConfig.from_dict(BERT.to_dict() | {"vocab_size": tokenizer.get_vocab_size()})).save_pretrained(
        tmp_path / "bert"
    )
    tokenizer.save(str(tmp_path / "bert" / "tokenizer.json"))
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert EXAMPLE.count("epochs=20") == 1
    exec(compile(EXAMPLE.replace("epochs=20", "epochs=1"), "example", "exec"), names)
    told = names["history"].tuning
    assert "image: frozen" in capsys.readouterr().out
    assert told[0].startswith("image: frozen; ")
    assert told[1].startswith("notes: lora; ")
    assert "kept in the store" in told[2]
    assert list((tmp_path / "prepared").glob("tokens-image-*"))
    assert not list((tmp_path / "prepared").glob("tokens-notes-*"))


def test_recurrent_weights_of_the_moving_average_are_laid_together(monkeypatch):
    model = torch.nn.Sequential(torch.nn.GRU(3, 4))
    laid = []
    monkeypatch.setattr(torch.nn.GRU, "flatten_parameters", lambda layer: laid.append(layer))
    averaged = MovingAverage(model, 0.9)
    assert laid == [averaged.module[0]]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_moving_average_is_that_of_torch_and_shares_what_never_learns(decay):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    model[0].bias.requires_grad_(False)

    def average(kept, new, updates):
        own = min(decay, (1 + int(updates)) / (10 + int(updates)))
        return torch.lerp(new, kept, own) if kept.is_floating_point() else new

    ours, theirs = MovingAverage(model, decay), AveragedModel(model, avg_fn=average, use_buffers=True)
    for _ in range(4):
        torch.nn.init.normal_(model[0].weight)
        # A module may put another tensor in the place of a buffer.
        model[1].running_mean = torch.randn(4)
        model(torch.randn(8, 3))
        ours.update()
        theirs.update_parameters(model)
    # The same but for the rounding: theirs goes from the new weight, and ours from the kept one.
    assert_close(ours.state_dict(), theirs.state_dict())
    assert ours.module[0].bias.data_ptr() == model[0].bias.data_ptr()
    assert ours.module[0].weight.data_ptr() != model[0].weight.data_ptr()

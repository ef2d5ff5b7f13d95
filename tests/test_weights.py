"""The laws of weights: taken from wherever they are, wholly or not at all, and seen alike in grey and in colour."""

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from chiasm.datasets import Cohort, InputError
from chiasm.datasets.batch import Images
from chiasm.encoders import ImageEncoder, NoteEncoder
from chiasm.encoders.weights import read_weights
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM, BertModel

BERT = BertConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64
)


def network(name: str = "test_resnet", **settings) -> torch.nn.Module:
    """A timm network with a classifier, whose batch norms have seen something."""
    torch.manual_seed(1)
    made = timm.create_model(name, num_classes=10, **settings)
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return made.eval()


def encoder_of(weights: object, cohort: Cohort, name: str | Path = "test_resnet", **settings) -> ImageEncoder:
    encoder = ImageEncoder(name, pretrained=weights, **{"size": 64, "grid": 2} | settings)
    encoder.build(cohort)
    return encoder.eval()


def refuses(weights: object, cohort: Cohort, match: str, name: str = "test_resnet", **settings) -> None:
    with pytest.raises(InputError, match=match):
        encoder_of(weights, cohort, name, **settings)


# Files and dictionaries


def test_given_weights_do_not_stay_beside_the_network_that_they_went_into(bert_folder, cohort):
    sources = (network().state_dict(), load_file(bert_folder / "model.safetensors"))
    given = [weakref.ref(value) for source in sources for value in source.values()]
    encoders = [encoder_of(sources[0], cohort), note_encoder(bert_folder, cohort, sources[1])]
    del sources
    gc.collect()
    assert not any(reference() is not None for reference in given)
    assert [encoder.describe()["settings"]["pretrained"] for encoder in encoders] == [True, True]


def test_a_file_and_a_state_dict_give_the_same_network_and_stay_as_they_are(tmp_path, cohort):
    weights = network().state_dict()
    kept = {name: value.clone() for name, value in weights.items()}
    save_file(weights, tmp_path / "weights.safetensors")
    ours, theirs = encoder_of(weights, cohort), encoder_of(tmp_path / "weights.safetensors", cohort)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    with torch.no_grad():
        for value in ours.state_dict().values():
            value += 1
    assert all(torch.equal(weights[name], kept[name]) for name in kept)
    # Where they came from is nobody's business afterwards.
    assert ours.describe() == theirs.describe()
    assert ours.describe()["settings"]["pretrained"] is True


def test_half_precision_becomes_single(tmp_path, cohort):
    weights = {name: own.bfloat16() if own.is_floating_point() else own for name, own in network().state_dict().items()}
    save_file(weights, tmp_path / "half.safetensors")
    encoder = encoder_of(tmp_path / "half.safetensors", cohort, channels=3)
    own = encoder.backbone.state_dict()
    assert {value.dtype for value in own.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(own[name], weights[name].to(own[name].dtype)) for name in own)


def test_a_file_that_is_cut_short_or_pickled_or_not_there_is_refused(tmp_path, cohort):
    path = tmp_path / "weights.safetensors"
    refuses(path, cohort, "There is no file of weights .*weights.safetensors")
    save_file(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    refuses(path, cohort, "could not be loaded .* cut short, damaged or no safetensors file")
    path.write_bytes(path.read_bytes()[:100])
    refuses(path, cohort, "could not be loaded")
    torch.save(network().state_dict(), path)
    refuses(path, cohort, "could not be loaded .* can run code")


def test_what_is_no_state_dict_is_refused(cohort):
    refuses({}, cohort, "0 entries, of which 0 are no named tensors in memory")
    refuses(
        {"model": network().state_dict(), "epoch": 3}, cohort, "2 entries, of which 2 are no named tensors in memory"
    )
    weights = network().state_dict()
    name = "layer1.0.conv1.weight"
    for strange in (weights[name].to("meta"), weights[name].to_sparse(), None):
        refuses(weights | {name: strange}, cohort, "of which 1 are no named tensors in memory")
    refuses(weights | {3: weights[name]}, cohort, "of which 1 are no named tensors in memory")


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.complex64])
def test_weights_of_a_quantised_network_are_refused(cohort, kind):
    weights = network().state_dict()
    weights["layer1.0.conv1.weight"] = weights["layer1.0.conv1.weight"].to(kind)
    refuses(weights, cohort, rf"1 are {kind}, as of a quantised network \(first: layer1")


def test_weights_that_are_no_numbers_are_refused(cohort):
    weights = network().state_dict()
    weights["layer1.0.conv1.weight"][0] = torch.nan
    with pytest.raises(InputError, match=r"the state dict, 1 hold values that are not finite \(first: layer1"):
        read_weights(weights)
    refuses(weights, cohort, "not finite")


# What does not match


def test_weights_of_another_network_are_refused_and_what_differs_is_counted(cohort):
    other = network("test_efficientnet").state_dict()
    refuses(other, cohort, r"not those of 'test_resnet' .* missing \(first: .*\), \d+ unexpected \(first: ")


def test_weights_of_a_longer_or_shorter_network_are_refused(cohort):
    whole = network()
    longer = whole.state_dict() | {"layer1.1.conv1.weight": torch.zeros(2, 2)}
    refuses(longer, cohort, r"of \d+ tensors: 1 unexpected \(first: layer1.1.conv1.weight\)")
    shorter = {name: own for name, own in whole.state_dict().items() if not name.startswith("layer4.0.conv1")}
    refuses(shorter, cohort, r"of \d+ tensors: 1 missing \(first: layer4.0.conv1.weight\)")


def test_weights_of_another_number_of_channels_are_refused_with_their_shapes(cohort):
    grey = network(in_chans=1).state_dict()
    refuses(grey, cohort, r"1 of another shape \(first: conv1.0.weight \[16, 1, 3, 3\] for \[16, 3", channels=3)
    assert encoder_of(grey, cohort).planes == 1
    four = network(in_chans=4).state_dict()
    for channels in (1, 3):
        refuses(four, cohort, r"first: conv1.0.weight \[16, 4, 3, 3\] for \[16, 3, 3", channels=channels)


def test_counts_of_batches_may_be_missing(cohort):
    weights = {name: own for name, own in network().state_dict().items() if "num_batches" not in name}
    encoder_of(weights, cohort)


def folder_of(path: Path, name: str, arguments: dict, **told) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"architecture": name, "model_args": arguments} | told))
    return path


def test_torchvisions_names_of_layers_are_understood(tmp_path, cohort):
    arguments = {"growth_rate": 8, "block_config": [2, 2]}
    folder = folder_of(tmp_path, "densenet121", arguments)
    ours = network("densenet121", **arguments).state_dict()
    old = {}
    for name, value in ours.items():
        layers = {"norm1": "norm.1", "norm2": "norm.2", "conv1": "conv.1", "conv2": "conv.2"}
        for new, earlier in layers.items():
            name = name.replace(f".{new}.", f".{earlier}.") if "denselayer" in name else name
        old[name] = value
    assert old.keys() != ours.keys()
    encoder = encoder_of(old, cohort, folder, channels=3)
    own = encoder.backbone.state_dict()
    assert all(torch.equal(own[name], ours[name]) for name in own if "num_batches" not in name)


@pytest.mark.parametrize(
    "scale", [{"mean": [0.5, 0.5]}, {"std": [0.0, 1, 1]}, {"mean": [float("nan")] * 3}, {"mean": "dark"}, 3]
)
def test_a_folder_whose_scaling_is_none_of_colours_is_refused(tmp_path, cohort, scale):
    folder = folder_of(tmp_path, "test_resnet", {}, pretrained_cfg=scale)
    save_file(network().state_dict(), folder / "model.safetensors")
    refuses(True, cohort, r"expected a number for each colour\. Check pretrained_cfg", str(folder))


def test_a_network_that_is_not_there_is_refused_with_near_names_and_with_what_serves(cohort):
    refuses(False, cohort, "Did you mean .*efficientnet.*Convolutional networks serve: resnet", "eficientnet_b0")
    refuses(False, cohort, "Convolutional networks serve: resnet", "vit_tiny_patch16_224", size=224)


# Grey and colour

SCALES = {
    "one scaling": ({"mean": [0.5] * 3, "std": [0.5] * 3}, 1),
    "one mean": ({"mean": [0.4] * 3, "std": [0.5, 0.25, 0.2]}, 1),
    "ImageNet's": ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, 2),
}


def features(made: torch.nn.Module, pixels: torch.Tensor, scale: dict, cells: int) -> torch.Tensor:
    """What a network for colour sees in three copies of grey images."""
    mean, std = (torch.tensor(scale[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        seen = made.forward_features((pixels.repeat(1, 3, 1, 1).float() / 255 - mean) / std)
    return torch.nn.functional.adaptive_avg_pool2d(seen, cells).flatten(2).transpose(1, 2).flatten(0, 1)


def images(size: int = 64) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, size, size), np.uint8)
    return Images(torch.arange(2), torch.zeros(2), torch.from_numpy(pixels))


@pytest.mark.parametrize("scaling", SCALES)
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_a_grey_image_has_the_features_of_its_three_copies(name, scaling, tmp_path, cohort):
    scale, planes = SCALES[scaling]
    made, folder = network(name), folder_of(tmp_path, name, {}, pretrained_cfg=scale)
    save_file(made.state_dict(), folder / "model.safetensors")
    encoder, part = encoder_of(True, cohort, folder), images()
    assert encoder.planes == planes
    with torch.no_grad():
        ours = encoder.encoded(part).values
    expected = features(made, part.pixels, scale, encoder.tokens_per_side)
    assert_close(ours, expected, atol=1e-5 * expected.abs().max(), rtol=0)
    description = json.loads(json.dumps(encoder.describe()))
    again = ImageEncoder(**description["settings"])
    again.rebuild(description)
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval().encoded(part).values, ours)


def test_a_first_layer_that_cannot_be_folded_sees_three_copies(tmp_path, cohort):
    # Its weights are standardised whenever it is used.
    scale = SCALES["ImageNet's"][0]
    made, folder = network("test_nfnet"), folder_of(tmp_path, "test_nfnet", {}, pretrained_cfg=scale)
    save_file(made.state_dict(), folder / "model.safetensors")
    encoder, part = encoder_of(True, cohort, folder), images()
    assert encoder.planes == 3
    with torch.no_grad():
        ours = encoder.encoded(part).values
    assert_close(ours, features(made, part.pixels, scale, encoder.tokens_per_side), atol=1e-5, rtol=1e-5)
    assert encoder.reader.channels == 1


# Transformers


@pytest.fixture
def bert_folder(tmp_path, cohort) -> Path:
    """A model in a folder: config, weights, tokenizer."""
    encoder = NoteEncoder(BERT, length=16, overlap=4)
    encoder.build(cohort)
    BertModel(encoder.transformer.config).save_pretrained(tmp_path)
    encoder.reader.tokenizer_.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return tmp_path


def note_encoder(folder: Path, cohort: Cohort, weights: object = True) -> NoteEncoder:
    encoder = NoteEncoder(folder, length=16, overlap=4, pretrained=weights)
    encoder.build(cohort)
    return encoder


def config_of(folder: Path) -> BertConfig:
    return BertConfig.from_pretrained(folder)


def test_a_transformer_takes_weights_of_a_file_or_a_state_dict_without_their_heads(bert_folder, tmp_path, cohort):
    whole = BertForMaskedLM(config_of(bert_folder))
    weights = {name: value.clone() for name, value in whole.state_dict().items()}
    save_file(weights, tmp_path / "other.safetensors")
    for source in (weights, tmp_path / "other.safetensors"):
        own = note_encoder(bert_folder, cohort, source).transformer.state_dict()
        assert own
        assert all(torch.equal(value, weights[f"bert.{name}"]) for name, value in own.items())


def test_a_transformer_may_have_the_words_of_a_model_and_weights_at_random(bert_folder, cohort):
    torch.manual_seed(0)
    encoder = note_encoder(bert_folder, cohort, False)
    published = note_encoder(bert_folder, cohort)
    assert encoder.reader.state() == published.reader.state()
    ours, theirs = encoder.transformer.state_dict(), published.transformer.state_dict()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert {share for _, share in encoder.rates()} == {1.0}
    assert {share for _, share in published.rates()} == {0.1}


def test_what_a_network_is_known_by_does_not_depend_on_where_it_came_from(bert_folder, cohort):
    encoder = note_encoder(bert_folder, cohort)
    description = json.loads(json.dumps(encoder.describe()))
    again = NoteEncoder(**description["settings"])
    again.rebuild(description)
    again.load_state_dict(encoder.state_dict())
    assert again.identity() == encoder.identity()
    assert str(bert_folder) not in json.dumps(encoder.identity())


def test_half_precision_of_a_transformer_becomes_single(bert_folder, cohort):
    BertModel(config_of(bert_folder)).bfloat16().save_pretrained(bert_folder)
    own = note_encoder(bert_folder, cohort).transformer.state_dict()
    assert {value.dtype for value in own.values() if value.is_floating_point()} == {torch.float32}


def test_a_transformers_file_that_is_cut_short_is_refused(bert_folder, cohort):
    weights = bert_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="SafetensorError: its file of weights is cut short or damaged"):
        note_encoder(bert_folder, cohort)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_hidden_layers": 3}, r"16 unexpected \(first: encoder.layer.2.attention"),
        ({"num_hidden_layers": 1}, r"16 missing \(first: encoder.layer.1.attention"),
        ({"intermediate_size": 16}, r"6 of another shape \(first: encoder.layer.0.intermediate.dense.bias \[16\] for"),
    ],
)
def test_a_transformer_and_weights_of_another_size_are_refused_with_what_differs(bert_folder, cohort, change, match):
    config = config_of(bert_folder)
    config.update(change)
    other = BertModel(config)
    with pytest.raises(InputError, match=match):
        note_encoder(bert_folder, cohort, other.state_dict())
    kept = (bert_folder / "config.json").read_text()
    other.save_pretrained(bert_folder)
    (bert_folder / "config.json").write_text(kept)
    with pytest.raises(InputError, match=match):
        note_encoder(bert_folder, cohort)


def test_weights_of_a_transformer_that_are_no_numbers_are_refused(bert_folder, cohort):
    broken = BertModel(config_of(bert_folder))
    torch.nn.init.constant_(broken.encoder.layer[0].output.dense.bias, torch.inf)
    broken.save_pretrained(bert_folder)
    with pytest.raises(InputError, match=r"1 hold values that are not finite \(first: encoder.layer.0.output"):
        note_encoder(bert_folder, cohort)


def test_weights_without_the_tokenizer_that_they_were_made_with_are_refused():
    with pytest.raises(InputError, match="no model whose tokenizer they were made with"):
        NoteEncoder(BERT, pretrained={"a": torch.zeros(1)})

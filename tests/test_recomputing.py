"""Activations that are computed again: the same training, with less that is kept."""

import pytest
import torch
from chiasm.encoders import ImageEncoder, LabEncoder, NoteEncoder
from chiasm.encoders.recomputing import recompute_images, statistics_stay
from chiasm.fusion import CrossAttentionFusion, FusionModel, fit
from torch import nn
from transformers import BertConfig

from .trained import SHORT, same, weights


@pytest.fixture
def deep(patients):
    """A function that plans a model of a residual network with batch norms and a transformer with dropout."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}

    def plan(**notes: object) -> FusionModel:
        return FusionModel(
            image=ImageEncoder("test_resnet", size=64, grid=2),
            labs=LabEncoder(16, rare=1),
            notes=NoteEncoder(BertConfig(**sizes, max_position_embeddings=64), length=32, overlap=4, **notes),
            fusion=CrossAttentionFusion(16, depth=1, heads=2, latents=1),
            outcomes=patients.outcome_kinds,
        )

    return plan


@pytest.mark.parametrize("notes", [{}, {"tuning": "lora:4"}, {"tuning": "gradual"}, {"budget": 20}], ids=str)
def test_training_is_the_same_to_the_last_bit_also_with_dropout_and_batch_norms(halves, deep, notes):
    results = []
    for again in (False, True):
        model = deep(**notes)
        history = fit(model, *halves, epochs=2, batch_size=4, recompute=again, **SHORT)
        results.append((weights(model), [(own["train_loss"], own["valid_loss"]) for own in history.epochs]))
    assert results[0][1] == results[1][1]
    assert same(results[0][0], results[1][0])
    # What was trained keeps them again.
    assert not any(getattr(module, "grad_checkpointing", False) for module in model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_a_transformer_that_computes_again_warns_of_nothing_that_it_would_cache(halves, deep, caplog):
    from transformers.utils import logging

    logging.get_logger().addHandler(caplog.handler)
    try:
        # What was warned of once in a program is not said again.
        type(logging.get_logger()).warning_once.cache_clear()
        fit(deep(), *halves, epochs=1, recompute=True, **SHORT)
    finally:
        logging.get_logger().removeHandler(caplog.handler)
    assert not caplog.records


def kept(model: FusionModel, batch: object, *, network: str) -> int:
    """Bytes that one network keeps for the gradient."""
    sizes = []
    torch.manual_seed(0)
    encoder = model.encoders[network]
    own = {id(weight) for weight in encoder.parameters()}

    def keep(value: torch.Tensor) -> torch.Tensor:
        sizes.append(0 if id(value) in own else value.numel() * value.element_size())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        encoder(batch.parts[network], len(batch.sample))
    return sum(sizes)


@pytest.mark.parametrize(("network", "share"), [("image", 0.8), ("notes", 0.5)])
def test_less_is_kept_for_the_gradient(patients, deep, network, share):
    model = deep()
    model.build(patients)
    batch = model.read(patients)[list(range(8))]
    before = kept(model, batch, network=network)
    assert model.encoders[network].recompute(True)
    assert kept(model, batch, network=network) < share * before
    assert model.encoders[network].recompute(False)
    assert kept(model, batch, network=network) == before


def test_networks_that_keep_their_activations_in_any_case_are_told(halves, deep, monkeypatch):
    import timm

    assert not recompute_images(timm.create_model("dla46_c", num_classes=0), True)
    assert not recompute_images(nn.Identity(), True)
    model = deep()
    monkeypatch.setattr("transformers.BertModel.supports_gradient_checkpointing", False)
    history = fit(model, *halves, epochs=1, recompute=True, **SHORT)
    assert history.tuning[-1] == "notes: activations are kept, since this network cannot compute them again"
    assert len(fit(model, *halves, epochs=1, **SHORT).tuning) == len(history.tuning) - 1


def test_statistics_of_batch_norms_stay_where_there_are_some():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    before = weights(network)
    with statistics_stay(network):
        network(torch.randn(5, 3))
    assert same(weights(network), before)
    assert network[0].momentum == 0.1

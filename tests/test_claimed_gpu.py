"""Where there is a GPU, nothing meets what was left on the CPU, in any encoder, head or step of training."""

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.datasets import Cohort
from chiasm.encoders import ImageEncoder, LabAugmentation, LabEncoder, NoteEncoder, StaticEncoder, Tuning
from chiasm.fusion import Ensemble, FusionModel, contributions, fit, largest_batch, predict, training
from chiasm.fusion.ensemble import load_trained
from chiasm.fusion.inference import to_device
from chiasm.fusion.model import FUSIONS
from chiasm.fusion.numerics import autocast
from transformers import BertConfig

from .claimed_gpu import claimed_gpu
from .trained import SHORT, same, weights

CUDA = torch.device("cuda")
BERT = BertConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64
)


def refused(operation) -> str:
    with pytest.raises((RuntimeError, TypeError)) as error:
        operation()
    return str(error.value)


def test_what_a_gpu_refuses_is_refused():
    plain, place = torch.ones(4, 3), torch.tensor([1])
    with claimed_gpu():
        there = torch.ones(4, 3, device=CUDA)
        assert there.device == torch.device("cuda", 0)
        assert "on the same device" in refused(lambda: there + plain)
        assert "on the same device" in refused(lambda: plain[place.to(CUDA)])
        assert "on the same device" in refused(lambda: torch.cat([there, plain]))
        assert "to numpy" in refused(lambda: there.numpy())
        assert "to numpy" in refused(lambda: np.asarray(there))
        assert "generator" in refused(lambda: torch.rand(2, device=CUDA, generator=torch.Generator()))
        assert (there[place] + torch.tensor(1.0)).cpu().tolist() == [[2.0] * 3]
        assert np.array_equal(plain.to(there).cpu().numpy(), plain.numpy())
        weight = torch.nn.Linear(3, 2).to(CUDA).weight
        (there @ weight.T).sum().backward()
        assert weight.grad.is_cuda
        assert weight.grad.tolist() == [[4.0] * 3] * 2


def test_it_is_told_where_the_gpu_is_waited_for():
    with claimed_gpu() as waits:
        there = torch.tensor([1.0, 2.0]).to(CUDA)
        assert waits == ["aten::_to_copy"]
        torch.ones(2).to(CUDA, non_blocking=True)
        there.double() + there
        there[0] = 3
        assert len(waits) == 1
        there[there > 2].sum().item()
        there.cpu()
        assert waits[1:] == ["aten::index.Tensor", "aten::_local_scalar_dense", "aten::_to_copy"]


def step_on_gpu(model: FusionModel, cohort: Cohort, precision: str) -> list[str]:
    """A training step and a prediction, all of whose results are on the GPU; where it was waited for in the step."""
    model.build(cohort, seed=0)
    samples = model.read(cohort, labelled=True)
    with claimed_gpu() as waits:
        model.to(CUDA).train()
        batch = to_device(samples[range(len(samples))], CUDA)
        before = len(waits)
        with autocast(CUDA, precision):
            risk = model(batch)
        loss, _ = model.loss(risk, batch)
        loss.backward()
        step = waits[before:]
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        assert len(gradients) > 4
        assert all(own.is_cuda for own in (loss, risk.value, *gradients))
        assert model.eval()(batch).value.is_cuda
    return step


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_head_is_all_there(patients, small_model, fusion):
    model = small_model(("labs", "static"), outcomes=patients.outcome_kinds, fusion=FUSIONS[fusion](32))
    waits = step_on_gpu(model, patients, "fp32")
    # For which measurements are left, in which steps, of whom, and how many steps and how many facts one has at most.
    of_labs = ["aten::nonzero", "aten::unique_consecutive", "aten::unique_consecutive", "aten::_local_scalar_dense"]
    assert waits == [*of_labs, "aten::_local_scalar_dense"]


@pytest.mark.parametrize("budget", [None, 8])
@pytest.mark.parametrize("tuning", ["full", "frozen", "gradual", "layerwise", "lora:4"])
def test_every_encoder_is_all_there(patients, tuning, budget):
    model = FusionModel(
        image=ImageEncoder("test_resnet", size=64, grid=2, tuning=tuning, budget=budget),
        labs=LabEncoder(16, rare=1, layers=2, augmentation=LabAugmentation(dropped=0.2, jitter=0.1, shift=3.0)),
        notes=NoteEncoder(BERT, length=12, overlap=4, most=8, tuning=tuning, sentence_dropout=0.2, budget=budget),
        static=StaticEncoder(16),
        outcomes=patients.outcome_kinds,
        label_smoothing=0.1,
    )
    waits = step_on_gpu(model, patients, "bf16")
    # What is looked up by a mask waits for it column by column.
    assert "aten::index.Tensor" not in waits


def test_a_killed_run_goes_on_there_to_the_same_weights_and_predicts_as_on_a_cpu(
    halves, small_model, monkeypatch, tmp_path
):
    real, calls = training.update, []

    def killed(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    def trained(folder: str) -> FusionModel:
        model = small_model(("labs", "notes", "static"), outcomes=halves[0].outcome_kinds)
        model.encoders["notes"].tuning = Tuning.parse("frozen")
        fit(model, *halves, epochs=1, batch_size=3, precision="fp16", out=tmp_path / folder, save_every=0, **SHORT)
        return model

    with claimed_gpu():
        whole = trained("whole")
        with monkeypatch.context() as patched:
            patched.setattr(training, "update", killed)
            with pytest.raises(KeyboardInterrupt):
                trained("killed")
        ours = trained("killed")
        assert all(value.is_cuda for value in ours.state_dict().values())
        assert same(weights(ours), weights(whole))
        risks, told = predict(ours, halves[1]), contributions(ours, halves[1])
    loaded = FusionModel.load(tmp_path / "killed" / "model")
    for there, here in ((risks, predict(loaded, halves[1])), (told, contributions(loaded, halves[1]))):
        pd.testing.assert_frame_equal(there, here, rtol=1e-4)


@pytest.mark.parametrize("members", [1, 2])
def test_what_was_saved_predicts_there_in_full_precision(halves, plan, members, monkeypatch, tmp_path):
    model = plan()
    fit(model, halves[0], epochs=1, **SHORT)
    (Ensemble([model, model]) if members == 2 else model).save(tmp_path / "saved")
    seen, forward = [], FusionModel.forward
    before = torch.backends.cudnn.allow_tf32

    def watched(own, batch):
        seen.append((next(own.parameters()).device, torch.backends.cudnn.allow_tf32))
        return forward(own, batch)

    monkeypatch.setattr(FusionModel, "forward", watched)
    with claimed_gpu():
        loaded = load_trained(tmp_path / "saved")
        risks = predict(loaded, halves[1])
    assert set(seen) == {(torch.device("cuda", 0), False)}
    assert torch.backends.cudnn.allow_tf32 == before
    pd.testing.assert_frame_equal(risks, predict(model, halves[1]), rtol=1e-5)


def test_the_largest_batch_is_looked_for_there(halves, plan):
    with claimed_gpu():
        assert largest_batch(plan(), halves[0], precision="bf16", most=2) == 2

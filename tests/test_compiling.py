"""Compiled networks: the same training up to rounding, under the same names, and as they are written afterwards."""

import pytest
from chiasm.datasets import InputError
from chiasm.encoders import NoteEncoder, StaticEncoder, compiling
from chiasm.fusion import ConcatenationFusion, FusionModel, fit
from torch import nn
from torch.testing import assert_close
from transformers import BertConfig

from .trained import SHORT, weights


@pytest.fixture
def still(patients):
    """A function that plans a model in which nothing is drawn at random."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**sizes, **drops, max_position_embeddings=64)
    return lambda: FusionModel(
        notes=NoteEncoder(config, length=32, overlap=4, word_dropout=0.0),
        static=StaticEncoder(8, dropout=0.0),
        fusion=ConcatenationFusion(16, dropout=0.0),
        outcomes=patients.outcome_kinds,
        modality_dropout=0.0,
    )


@pytest.mark.filterwarnings("ignore")  # of PyTorch's own compiler
def test_compiled_networks_train_the_same_and_are_gone_on_with_as_written(halves, still, monkeypatch, tmp_path):
    # The networks are read and guarded as by the compiler, and then run as they are: machine code takes minutes.
    monkeypatch.setattr(compiling, "_BACKEND", "eager")
    settings = {"epochs": 1, "batch_size": 6, "optimizer": "sgd", "learning_rate": 0.02} | SHORT
    plain, compiled = still(), still()
    seen = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda own, real=nn.Module.compile, **how: seen.append(how) or real(own, **how)
    )
    fit(plain, *halves, **settings)
    assert not seen
    fit(compiled, *halves, compile=True, out=tmp_path, **settings)
    assert [how["dynamic"] for how in seen] == [True, True]
    ours, theirs = weights(compiled), weights(plain)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert_close(value, theirs[name], atol=1e-4, rtol=1e-3)
    assert all(module._compiled_call_impl is None for module in compiled.modules())
    now = "going on with 1 process where 1 process with compiled networks stopped"
    said = f"{now}: the same training, but not to the last bit"
    assert fit(still(), *halves, out=tmp_path, **settings).warnings == (said,)


@pytest.mark.parametrize(("has_gpu", "variable", "language"), [(False, "CXX", r"C\+\+"), (True, "CC", "C")])
def test_without_a_compiler_it_is_said_in_a_line(halves, plan, monkeypatch, has_gpu, variable, language):
    monkeypatch.setenv(variable, "no-such-compiler")
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    with pytest.raises(
        InputError, match=rf"compile=True needs a {language} compiler, and there is none \(no-such-compiler\)"
    ):
        fit(plan(), *halves, epochs=1, compile=True, **SHORT)

"""Notes to tokens: any Hugging Face encoder, one token a word piece."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..datasets.batch import Notes
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.note_reader import NoteReader
from .augmentation import hide_words
from .tokens import Tokens, gather_tokens, no_tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class NoteEncoder(nn.Module):
    """A transformer whose last hidden states become the tokens.

    Notes longer than the model can take are read in overlapping pieces.

    Args:
        model: name of a Hugging Face encoder, a local folder of one, or a `transformers` config,
            from which a fresh model is made with a WordPiece tokenizer trained on the training
            notes. None makes a small BERT (2 layers of width 128), for use without a hub.
        length: tokens a piece at most; the model's own limit, if that is lower.
        overlap: tokens that neighbouring pieces share.
        most: pieces a sample at most; the most recent stay.
        word_dropout: share of the word pieces that are hidden in training, drawn anew at every step, so
            that few notes are not learned by heart.

    Raises:
        InputError: sizes that do not agree; or, when built, a model or tokenizer that cannot be
            loaded, or that is no encoder.
    """

    def __init__(
        self,
        model: str | Path | PretrainedConfig | None = None,
        *,
        length: int = 256,
        overlap: int = 32,
        most: int = 16,
        word_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= word_dropout < 1:
            raise InputError(f"word_dropout is {word_dropout}; expected a share from 0 to below 1.")
        self.word_dropout = word_dropout
        named = isinstance(model, (str, Path))
        if not named and model is not None and not hasattr(model, "to_diff_dict"):
            raise InputError(
                f"model is a {type(model).__name__}; expected the name of a Hugging Face encoder, a local folder, "
                "a transformers config, or None."
            )
        self.model = str(model) if named else None
        self.config: dict[str, object] = {} if named or model is None else model.to_dict()
        self.length, self.overlap, self.most = length, overlap, most
        self.reader = NoteReader(self.model, length=length, overlap=overlap, most=most)
        self.width = 0

    def build(self, cohort: Cohort) -> None:
        if self.model is None:
            self._build_fresh(cohort)
        else:
            self.transformer = load_transformer(self.model)
            self._set_limits()
            self.reader.fit(cohort)
        vocabulary = self.reader.tokenizer_.get_vocab_size()
        rows = self.transformer.get_input_embeddings().num_embeddings
        if vocabulary > rows:
            raise InputError(
                f"The tokenizer of {self.model!r} knows {vocabulary} words, the model only {rows}. They do not belong "
                "together; give a folder that holds both of one model."
            )

    def _build_fresh(self, cohort: Cohort) -> None:
        config = self._fresh_config(int(self.config.get("vocab_size", 8000)))
        self.reader.vocabulary = config.vocab_size
        self.reader.fit(cohort)
        # The vocabulary may come out smaller than asked; the embedding has no row without a word.
        self._make_layers(self._fresh_config(self.reader.tokenizer_.get_vocab_size()))

    def _fresh_config(self, words: int) -> PretrainedConfig:
        from transformers import AutoConfig, BertConfig

        if self.config:
            return AutoConfig.for_model(**self.config | {"vocab_size": words, "pad_token_id": 0})
        return BertConfig(
            vocab_size=words,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            hidden_dropout_prob=0.2,
            max_position_embeddings=max(self.length, 32),
            pad_token_id=0,
        )

    def _make_layers(self, config: PretrainedConfig) -> None:
        from transformers import AutoModel

        try:
            model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
        except ValueError as error:
            raise InputError(f"No model can be made of this config of type {config.model_type!r}: {error}") from error
        self.transformer = _encoder_only(model)
        self._set_limits()

    def _set_limits(self) -> None:
        limit = _longest_input(self.transformer)
        if limit < 8:
            raise InputError(f"The model takes {limit} tokens at once, too few to read notes. Give another model.")
        self.width = self.transformer.config.hidden_size
        self.reader.length = min(self.length, limit)
        self.reader.overlap = min(self.overlap, self.reader.length // 4)

    def describe(self) -> dict[str, object]:
        names = ("length", "overlap", "most", "word_dropout")
        settings = {name: getattr(self, name) for name in names}
        config = self.transformer.config.to_diff_dict() | {"model_type": self.transformer.config.model_type}
        config.pop("_name_or_path", None)
        return {"settings": settings, "model": self.model, "reader": self.reader.state(), "config": config}

    def rebuild(self, description: Mapping[str, object]) -> None:
        from transformers import AutoConfig

        self.model = description["model"]
        self.reader.restore(description["reader"])
        self.config = dict(description["config"])
        config = AutoConfig.for_model(**self.config)
        # Attention that is named by a repository would be fetched and run; transformers chooses among its own.
        config._attn_implementation = None
        self._make_layers(config)

    def forward(self, part: Notes, patients: int) -> Tokens:
        # Nobody has a note: the transformer is not run.
        if not len(part.patient):
            return no_tokens(patients, self.width, next(self.transformer.parameters()))

        # Padding is masked by length; the transformer never attends to it.
        real = torch.arange(part.tokens.shape[1], device=part.tokens.device) < part.length[:, None]
        if self.training and self.word_dropout:
            real = hide_words(real, self.word_dropout)
        states = self.transformer(input_ids=part.tokens, attention_mask=real.long()).last_hidden_state

        # One token a word piece, in reading order, each with the hour of its note.
        chunk, _ = real.nonzero(as_tuple=True)
        return gather_tokens(states[real], part.hours[chunk], part.patient[chunk], patients)


def load_transformer(source: str) -> nn.Module:
    """A Hugging Face encoder in float32, without its pooling layer.

    Raises:
        InputError: it cannot be found, reached or read, lacks weights, needs code of its own, or is
            no encoder.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel

    try:
        # Code that comes with a model is never run, nor is the user asked whether it should be.
        model, report = AutoModel.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise InputError(
            f"No model could be loaded from {source!r} ({type(error).__name__}). Give the name of a Hugging Face "
            "encoder that can be reached, or a local folder with config.json, weights and tokenizer.json."
        ) from error
    # What the file lacks would stay random without a word.
    missing = sorted(name for name in report["missing_keys"] if "pooler." not in name)
    if missing:
        raise InputError(
            f"{source!r} has no weights for {missing[0]} and {len(missing) - 1} more. Its config.json and its weights "
            "do not belong together; take both from one model."
        )
    return _encoder_only(model)


def _encoder_only(model: nn.Module) -> nn.Module:
    """The model without the layer that chiasm does not use, so that every parameter learns.

    Raises:
        InputError: a decoder is part of it.
    """
    if model.config.is_encoder_decoder:
        raise InputError(
            f"A model of type {model.config.model_type!r} has a decoder besides its encoder. Give an encoder, such "
            "as one of the families of BERT, RoBERTa, ELECTRA, DeBERTa or ModernBERT."
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _longest_input(model: nn.Module) -> int:
    """Tokens that the model takes at once; 512 where its config sets no limit."""
    positions = int(getattr(model.config, "max_position_embeddings", None) or 512)
    # RoBERTa and its descendants number positions from the padding's number + 1 on.
    reserved = [
        layer.padding_idx + 1
        for name, layer in model.named_modules()
        if name.endswith("position_embeddings") and getattr(layer, "padding_idx", None) is not None
    ]
    return (positions if positions > 0 else 512) - max(reserved, default=0)

"""Notes to tokens: any Hugging Face encoder, one token a word piece."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..datasets.batch import Notes
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.note_reader import NoteReader
from .augmentation import hide_words
from .note_network import fresh_transformer, load_transformer, longest_input
from .tokens import Encoded, Tokens, gather_tokens, no_tokens
from .tuning import Tuning, settle, weights_hash

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
            that few notes are not learned by heart. A frozen model reads every note as it is, once.
        pretrained: of a model by name or folder, start from its published weights (True), from a
            safetensors file or a state dict, or at random (False). A model from a config is fresh.
        tuning: "full", "frozen", "gradual", "layerwise" or "lora", or one of them with a number, such as
            "lora:16"; see `Tuning`.

    Raises:
        InputError: settings that do not agree; or, when built, a model or tokenizer that cannot be
            loaded, or that is no encoder, or weights of another model.
    """

    def __init__(
        self,
        model: str | Path | PretrainedConfig | None = None,
        *,
        length: int = 256,
        overlap: int = 32,
        most: int = 16,
        word_dropout: float = 0.1,
        pretrained: bool | str | Path | Mapping[str, object] = True,
        tuning: str = "full",
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
        if not named and not isinstance(pretrained, bool):
            raise InputError(
                "pretrained= gives weights, but no model whose tokenizer they were made with. Give that as model=, by "
                "name or as a local folder."
            )
        self.pretrained, self.tuning = pretrained, Tuning.parse(tuning)
        self.model = str(model) if named else None
        self.config: dict[str, object] = {} if named or model is None else model.to_dict()
        self.length, self.overlap, self.most = length, overlap, most
        self.reader = NoteReader(self.model, length=length, overlap=overlap, most=most)
        self.width = 0

    def build(self, cohort: Cohort) -> None:
        if self.model is None:
            self._build_fresh(cohort)
        else:
            self._take(load_transformer(self.model, self.pretrained))
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
        self._take(fresh_transformer(self._fresh_config(self.reader.tokenizer_.get_vocab_size())))

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

    def _take(self, transformer: nn.Module) -> None:
        """Make the layers around a network."""
        limit = longest_input(transformer)
        if limit < 8:
            raise InputError(f"The model takes {limit} tokens at once, too few to read notes. Give another model.")
        self.transformer, self.width = transformer, transformer.config.hidden_size
        self.tuning.prepare(transformer)
        self.train(self.training)
        self.reader.length = min(self.length, limit)
        self.reader.overlap = min(self.overlap, self.reader.length // 4)

    def describe(self) -> dict[str, object]:
        names = ("length", "overlap", "most", "word_dropout")
        settings = {name: getattr(self, name) for name in names} | {"tuning": str(self.tuning)}
        settings["pretrained"] = self.pretrained is not False
        return {"settings": settings, "model": self.model, "reader": self.reader.state(), "config": self._told_config()}

    def _told_config(self) -> dict[str, object]:
        """The network's config as plain JSON values, without where it came from."""
        config = self.transformer.config.to_diff_dict() | {"model_type": self.transformer.config.model_type}
        config.pop("_name_or_path", None)
        return config

    def rebuild(self, description: Mapping[str, object]) -> None:
        from transformers import AutoConfig

        self.model = description["model"]
        self.reader.restore(description["reader"])
        self.config = dict(description["config"])
        config = AutoConfig.for_model(**self.config)
        # Attention that is named by a repository would be fetched and run; transformers chooses among its own.
        config._attn_implementation = None
        self._take(fresh_transformer(config))

    def train(self, mode: bool = True) -> NoteEncoder:
        super().train(mode)
        if hasattr(self, "transformer"):
            settle(self.transformer)
        return self

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        published = self.model is not None and self.pretrained is not False
        return self.tuning.rates(self.transformer, pretrained=published)

    def thaw(self, epoch: int | None) -> None:
        self.tuning.thaw(self.transformer, epoch)
        self.train(self.training)

    def identity(self) -> dict[str, object]:
        return {"config": self._told_config(), "weights": weights_hash(self.transformer, {})}

    def encoded(self, part: Notes) -> Encoded:
        # Padding is masked by length; the transformer never attends to it.
        real = torch.arange(part.tokens.shape[1], device=part.tokens.device) < part.length[:, None]
        if self.training and self.word_dropout and not self.tuning.is_frozen:
            real = hide_words(real, self.word_dropout)
        states = self.transformer(input_ids=part.tokens, attention_mask=real.long()).last_hidden_state

        # One token a word piece, in reading order, each with the hour of its note.
        chunk, _ = real.nonzero(as_tuple=True)
        return Encoded(part.patient[chunk], part.hours[chunk], states[real])

    def forward(self, part: Notes | Encoded, patients: int) -> Tokens:
        # Nobody has a note: the transformer is not run.
        if not len(part.patient):
            return no_tokens(patients, self.width, next(self.transformer.parameters()))
        if isinstance(part, Notes):
            part = self.encoded(part)
        return gather_tokens(part.values, part.hours, part.patient, patients)

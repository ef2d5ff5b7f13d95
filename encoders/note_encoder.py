"""Notes to tokens: any Hugging Face encoder, one token a word piece."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..datasets.arguments import require_counts, require_numbers
from ..datasets.batch import Notes
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.note_reader import NoteReader
from ..datasets.prepared import Packed
from .augmentation import hide_sentences, hide_words, sentence_marks
from .budget import StudyAttention, detailed_entries, encoded_in_turns, in_detail
from .compiling import compile_network
from .note_network import fresh_transformer, load_transformer, longest_input
from .recomputing import recompute_notes
from .tokens import Encoded, Tokens, gather_tokens, no_tokens
from .tuning import Tuning, settle, weights_hash
from .weights import require_weights

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
        budget: tokens a sample at most, at least one a piece. The most recent pieces keep all of theirs, and
            each of the others becomes one, with its hour; what the pieces say in sum is attention over them.
            They are encoded a few at a time, in bounded memory, however many there are. None: all keep theirs.
        word_dropout: share of the word pieces that are hidden in training, drawn anew at every step, so
            that few notes are not learned by heart. A frozen model reads every note as it is, once.
        sentence_dropout: the same of whole sentences; one of each piece is always read.
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
        budget: int | None = None,
        word_dropout: float = 0.1,
        sentence_dropout: float = 0.0,
        pretrained: bool | str | Path | Mapping[str, object] = True,
        tuning: str = "full",
    ) -> None:
        super().__init__()
        require_weights(pretrained)
        require_counts(most=most, **({} if budget is None else {"budget": budget}))
        require_numbers(word_dropout=word_dropout, sentence_dropout=sentence_dropout)
        for name, share in (("word_dropout", word_dropout), ("sentence_dropout", sentence_dropout)):
            if not 0 <= share < 1:
                raise InputError(f"{name} is {share}; expected a share from 0 to below 1.")
        if budget is not None and budget < most:
            raise InputError(f"budget is {budget}; expected a token for each of {most} pieces, or None.")
        self.word_dropout, self.sentence_dropout, self.budget = word_dropout, sentence_dropout, budget
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
            # A state dict is not to lie beside the network that it went into, nor beside all copies of that.
            self.pretrained = self.pretrained is not False
            self.reader.fit(cohort)
        self._mark_sentences()
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
        # Only what generates text has something to cache, and asking for it is warned of in recomputing.
        transformer.config.use_cache = False
        self.tuning.prepare(transformer)
        self.train(self.training)
        self.reader.length = min(self.length, limit)
        self.reader.overlap = min(self.overlap, self.reader.length // 4)
        if self.budget:
            self.studies = StudyAttention(self.width)

    def describe(self) -> dict[str, object]:
        names = ("length", "overlap", "most", "budget", "word_dropout", "sentence_dropout")
        settings = {name: getattr(self, name) for name in names} | {"tuning": str(self.tuning)}
        settings["pretrained"] = self.pretrained is not False
        return {"settings": settings, "model": self.model, "reader": self.reader.state(), "config": self._told_config()}

    def _told_config(self) -> dict[str, object]:
        """The network's config as plain JSON values, without where it came from and what `_take` sets."""
        config = self.transformer.config.to_diff_dict() | {"model_type": self.transformer.config.model_type}
        for name in ("_name_or_path", "use_cache"):
            config.pop(name, None)
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
        self._mark_sentences()

    def _mark_sentences(self) -> None:
        """Which words end a sentence, and which begin with a digit; told by the tokenizer, and so not saved."""
        for name, marks in zip(("ends", "digits"), sentence_marks(self.reader.tokenizer_.get_vocab()), strict=True):
            self.register_buffer(name, marks, persistent=False)

    def train(self, mode: bool = True) -> NoteEncoder:
        super().train(mode)
        if hasattr(self, "transformer"):
            settle(self.transformer)
        return self

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        published = self.model is not None and self.pretrained is not False
        return self.tuning.rates(self.transformer, pretrained=published)

    def thaw(self, epoch: int | None) -> None:
        if self.tuning.thaw(self.transformer, epoch):
            self.train(self.training)

    def recompute(self, on: bool) -> bool:
        # Under a budget they are computed again in any case.
        return bool(self.budget) or recompute_notes(self.transformer, on)

    def compile_network(self, on: bool) -> None:
        compile_network(self.transformer, on)

    def identity(self) -> dict[str, object]:
        return {"config": self._told_config(), "weights": weights_hash(self.transformer, {})}

    def detailed(self, packed: Packed) -> np.ndarray:
        return detailed_entries(packed, packed.arrays["length"][packed.rows].astype(np.int64), self.budget)

    def encoded(self, part: Notes) -> Encoded:
        # Padding is masked by length; the transformer never attends to it.
        real = torch.arange(part.tokens.shape[1], device=part.tokens.device) < part.length[:, None]
        if self.training and not self.tuning.is_frozen:
            real = self._varied(part.tokens, real)
        states = self.transformer(input_ids=part.tokens, attention_mask=real.long()).last_hidden_state

        # One token a word piece, in reading order, each with the hour of its note.
        piece, place = real.nonzero(as_tuple=True)
        return Encoded(part.patient[piece], part.hours[piece], states[piece, place], place)

    def _varied(self, words: Int[Tensor, "piece token"], real: Bool[Tensor, "piece token"]) -> Tensor:
        """The words that are read when sentences and words are hidden."""
        if self.sentence_dropout:
            follows = torch.cat([self.digits[words[:, 1:]], self.digits.new_zeros(len(words), 1)], 1)
            real = hide_sentences(real, self.ends[words] & ~follows, self.sentence_dropout)
        return hide_words(real, self.word_dropout) if self.word_dropout else real

    def forward(self, part: Notes | Encoded, patients: int) -> Tokens:
        # Nobody has a note: the transformer is not run.
        if not len(part.patient):
            return no_tokens(patients, self.width, next(self.transformer.parameters()))
        if isinstance(part, Notes):
            part = self.encoded(part) if self.budget is None else self._in_turns(part)
        if self.budget:
            return self.studies(part, patients)
        return gather_tokens(part.values, part.hours, part.patient, patients)

    def _in_turns(self, part: Notes) -> Encoded:
        detailed = in_detail(part.patient, part.hours, part.length, self.budget)
        return encoded_in_turns(self.encoded, self.transformer, part, detailed)

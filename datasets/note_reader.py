"""Clinical notes of a cohort as token numbers, in overlapping pieces that a transformer can take."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .arguments import require_counts
from .batch import Notes
from .cohort import Cohort
from .errors import InputError
from .fingerprints import content
from .prepared import Packed
from .recent import expanded, most_recent
from .shelf import Made
from .store import Store

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

# A note takes a millisecond or so to cut, far less than an image to decode.
_NOTES_A_CHUNK = 256
LONGEST_WORD = 100
"""Letters that WordPiece takes at most; it calls a longer word unknown, and learning from one takes time
that grows with the square of its length."""
# About a second of work; a tokenizer of 30,000 words takes 30 ms to reach a worker.
_NOTES_A_CHUNK = 256
_SPECIAL = {"pad": "[PAD]", "unknown": "[UNK]", "begin": "[CLS]", "end": "[SEP]", "mask": "[MASK]"}


class NoteReader:
    """Turns notes into pieces of at most `length` tokens that overlap by `overlap`.

    Args:
        source: a Hugging Face tokenizer by name or local folder; None trains a WordPiece tokenizer
            on the training patients' notes.
        vocabulary: size of the trained vocabulary, at most.
        length: tokens a piece at most, begin and end marks included.
        overlap: tokens that neighbouring pieces share.
        most: pieces a sample at most; the most recent stay.
    """

    def __init__(
        self, source: str | None = None, *, vocabulary: int = 8000, length: int = 256, overlap: int = 32, most: int = 16
    ) -> None:
        require_counts(vocabulary=vocabulary, length=length, overlap=overlap, most=most)
        if not 0 <= overlap < length - 2 or most < 1 or vocabulary < 32:
            raise InputError(
                f"length is {length}, overlap {overlap}, most {most} and vocabulary {vocabulary}; expected an "
                "overlap shorter than length - 2, at least 1 piece and 32 words."
            )
        self.source, self.vocabulary = source, vocabulary
        self.length, self.overlap, self.most = length, overlap, most
        self.tokenizer_: Tokenizer | None = None

    def fit(self, cohort: Cohort) -> None:
        """Load the tokenizer, or train one on the notes that training samples may see.

        Raises:
            InputError: the tokenizer cannot be found.
        """
        if self.source is None:
            rows = np.unique(cohort.window("notes").rows)
            texts = [] if cohort.notes is None else cohort.notes["text"].iloc[rows].tolist()
            self.tokenizer_ = train_wordpiece(texts, self.vocabulary)
        else:
            self.tokenizer_ = load_tokenizer(self.source)
        self.tokenizer_.no_truncation()
        self.tokenizer_.no_padding()

    def pack(self, cohort: Cohort) -> Packed:
        """Pieces of every note that some sample sees; those beyond `most` are counted in the remarks."""
        window = cohort.window("notes")
        used = np.unique(window.rows)
        texts = [] if cohort.notes is None else cohort.notes["text"].iloc[used].tolist()
        first, counts, arrays = self._stored(cohort.store, texts) if cohort.store else self._held(texts)
        remarks = []
        blank = int((counts == 0).sum())
        if blank:
            remarks.append(f"notes: {blank} in which the tokenizer found no word")
        note = np.searchsorted(used, window.rows)
        by_piece = expanded(window, first[note], counts[note])
        by_piece, dropped = most_recent(by_piece, self.most)
        if dropped:
            remarks.append(f"notes: {dropped} pieces older than the {self.most} most recent of their patient")
        return Packed(Notes, by_piece.offsets, by_piece.rows, by_piece.hours, arrays, remarks=tuple(remarks))

    def _cutting(self) -> Tokenizer:
        """The tokenizer, set to this reader's length and overlap; what was fitted stays as it was."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_.to_str())
        tokenizer.enable_truncation(self.length, stride=self.overlap)
        return tokenizer

    def _held(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """In memory: the first piece of each text, how many it has, and all pieces."""
        tokenizer = self._cutting()
        pieces = [_pieces(tokenizer, text) for text in texts]
        counts = np.array([len(own) for own in pieces], np.int64)
        return np.cumsum(counts) - counts, counts, _as_arrays([piece for own in pieces for piece in own])

    def _stored(self, store: Store, texts: list[str]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """The same in a store, each text once."""
        settings = {"length": self.length, "overlap": self.overlap, "tokenizer": content(self.tokenizer_.to_str())}
        shelf = store.shelf("notes", settings, {"tokens": ("i4", (self.length,)), "length": ("i4", ())})
        contents = {text: content(text) for text in texts}
        make = partial(_made, self._cutting(), self.length)
        shelf.add(contents, make, "tokenizing notes", chunk=_NOTES_A_CHUNK)
        found = np.array([shelf.find(contents[text]) for text in texts], np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1], shelf.arrays()

    def state(self) -> dict[str, object]:
        return {"tokenizer_": self.tokenizer_.to_str()}

    def restore(self, state: Mapping[str, object]) -> None:
        from tokenizers import Tokenizer

        self.tokenizer_ = Tokenizer.from_str(state["tokenizer_"])


def _pieces(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """Token numbers of each piece of a text; none where there is no word."""
    encoded = tokenizer.encode(text)
    return [piece.ids for piece in (encoded, *encoded.overflowing) if not all(piece.special_tokens_mask)]


def _as_arrays(pieces: list[list[int]], width: int = 0) -> dict[str, np.ndarray]:
    """Pieces padded with zeros to the longest, or to `width`."""
    length = np.array([len(piece) for piece in pieces], np.int32)
    tokens = np.zeros((len(pieces), width or max(length, default=0)), np.int32)
    for row, piece in zip(tokens, pieces, strict=True):
        row[: len(piece)] = piece
    return {"tokens": tokens, "length": length}


def _made(tokenizer: Tokenizer, width: int, texts: list[str]) -> list[Made]:
    """Tokenize texts; a worker's part of the work."""
    return [Made(text, content(text), _as_arrays(_pieces(tokenizer, text), width)) for text in texts]


def train_wordpiece(texts: list[str], vocabulary: int) -> Tokenizer:
    """A lower-casing WordPiece tokenizer learned from texts; [PAD] is 0, [UNK] is 1.

    The same texts give the same tokenizer, in every run.

    Source: Schuster and Nakajima, Japanese and Korean voice search, ICASSP 2012; as in BERT.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    special = list(_SPECIAL.values())
    texts = [_without_long_words(text, normalizer, pre_tokenizer) for text in texts]
    counts = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    # Each character is a piece twice, as the beginning of a word and as its continuation.
    most = (vocabulary - len(special)) // 2
    by_count = sorted((-count, letter) for letter, count in counts.items() if not letter.isspace())[:most]
    alphabet = sorted(letter for _, letter in by_count)
    # The trainer numbers continuations in the order of a hash table, and breaks ties by those numbers,
    # so that it differs from run to run; given as special tokens, they have their numbers beforehand.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=[*special, *(f"##{letter}" for letter in alphabet)],
        show_progress=False,
    )
    learner = Tokenizer(models.WordPiece(unk_token=_SPECIAL["unknown"]))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizer
    learner.train_from_iterator(texts, trainer)
    # In the tokenizer that is used, continuations are pieces like others.
    tokenizer = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token=_SPECIAL["unknown"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    ends = [(_SPECIAL[name], tokenizer.token_to_id(_SPECIAL[name])) for name in ("begin", "end")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _without_long_words(text: str, normalizer: Normalizer, pre_tokenizer: PreTokenizer) -> str:
    """A text without the words that the tokenizer will not look into."""
    normal = normalizer.normalize_str(text)
    if not re.search(rf"\S{{{LONGEST_WORD + 1}}}", normal):
        return text
    return " ".join(word for word, _ in pre_tokenizer.pre_tokenize_str(normal) if len(word) <= LONGEST_WORD)


def load_tokenizer(source: str) -> Tokenizer:
    """The fast tokenizer of a Hugging Face model, by name or local folder.

    Raises:
        InputError: there is none, it cannot be reached, or it has no vocabulary.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"No tokenizer could be loaded from {source!r}. Give the name of a Hugging Face model that can be "
            "reached, or a local folder with its tokenizer.json."
        ) from error
    if not tokenizer.is_fast:
        raise InputError(f"The tokenizer of {source!r} has no tokenizer.json. Convert it to a fast tokenizer.")
    # Without a vocabulary file, transformers makes a tokenizer of special tokens alone, and says nothing.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise InputError(f"The tokenizer of {source!r} knows no word. Put its tokenizer.json into the folder.")
    return tokenizer.backend_tokenizer

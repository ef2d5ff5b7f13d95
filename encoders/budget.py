"""Many images and long notes inside a budget of tokens: the newest in detail, each of the others as one token.

A row of a part is an image or a piece of a note. Rows with the same hour are one study.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..datasets.batch import Images, Notes
from ..datasets.prepared import Packed
from .recomputing import statistics_stay
from .tokens import TIME_FEATURES, Encoded, Tokens, gather_tokens, time_features

AT_ONCE = 32
"""Rows that a network sees at once under a budget: enough to use a processor and a batch norm well."""


@runtime_checkable
class Budgeted(Protocol):
    """An encoder that may have a budget."""

    budget: int | None
    """Tokens a sample at most; None for all there are."""

    def detailed(self, packed: Packed) -> Bool[np.ndarray, " entry"]:
        """Which entries of all samples keep all of their tokens under the budget."""


def has_budget(encoder: object) -> bool:
    """Whether an encoder is one that was given a budget."""
    return isinstance(encoder, Budgeted) and encoder.budget is not None


def in_detail(
    patient: Int[Tensor, " row"], hours: Float[Tensor, " row"], tokens: Int[Tensor, " row"], budget: int
) -> Bool[Tensor, " row"]:
    """Which rows keep all of their tokens, so that with one of each other row a patient has no more than the budget.

    They are the most recent ones; of rows with the same hour all do or none, since their order means nothing.

    Args:
        patient: ascending.
        hours: relative to the prediction time.
        tokens: how many each row has.
        budget: tokens a patient, at least as many as rows.
    """
    if not len(patient):
        return torch.zeros(0, dtype=torch.bool, device=patient.device)
    newest_first = torch.argsort(hours, descending=True, stable=True)
    order = newest_first[torch.argsort(patient[newest_first], stable=True)]
    own, when = patient[order], hours[order]
    other = own.diff() != 0
    # What each row takes beyond the one token that it has anyway, summed up over its patient's newer ones.
    beyond = tokens[order] - 1
    taken = beyond.cumsum(0)
    before = torch.where(torch.cat([other.new_ones(1), other]), taken - beyond, 0).cummax(0).values
    # A study takes what the last of its rows does.
    study = torch.cat([own.new_zeros(1), (other | (when.diff() != 0)).cumsum(0)])
    taken = torch.zeros_like(taken).scatter_reduce(0, study, taken - before, "amax")[study]
    kept = taken <= budget - torch.bincount(patient)[own]
    return torch.zeros_like(kept).scatter(0, order, kept)


def detailed_entries(packed: Packed, tokens: Int[np.ndarray, " entry"], budget: int) -> Bool[np.ndarray, " entry"]:
    """The same of all samples, each with so many tokens an entry."""
    sample = np.repeat(np.arange(len(packed.offsets) - 1), np.diff(packed.offsets))
    # Copies: those of a store cannot be written to, of which torch warns.
    columns = (torch.from_numpy(np.array(column)) for column in (sample, packed.hours, tokens))
    return in_detail(*columns, budget).numpy()


def tell_shortened(packed: Packed, detailed: Bool[np.ndarray, " entry"], budget: int) -> Packed:
    """The samples with a remark on how many entries are read as one token each."""
    shortened = int((~detailed).sum())
    if not shortened:
        return packed
    counted = f"images: {shortened} of" if packed.kind is Images else f"notes: {shortened} pieces of"
    remark = f"{counted} {len(detailed)} are read as one token each, for a budget of {budget} tokens a sample"
    return replace(packed, remarks=(*packed.remarks, remark))


def encoded_in_turns(
    encode: Callable[[Images | Notes], Encoded],
    network: nn.Module,
    part: Images | Notes,
    detailed: Bool[Tensor, " row"],
) -> Encoded:
    """Rows as tokens, encoded a few at a time: all tokens of those in detail, and the mean of each other.

    Where the network learns, what is computed on the way to the tokens is not kept but computed again for the
    gradient (Chen et al., Training deep nets with sublinear memory cost, 2016), so that the memory of a few rows
    is enough.

    Args:
        encode: what makes the tokens of some rows.
        network: that it runs.
        part: the rows.
        detailed: as `in_detail` tells it.
    """
    learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in network.parameters())
    turns = []
    for rows in torch.arange(len(detailed), device=detailed.device).tensor_split(-(-len(detailed) // AT_ONCE)):
        some = type(part)(*(column[rows] for column in part))
        if isinstance(some, Notes):
            some = some._replace(tokens=some.tokens[:, : int(some.length.max())])
        if learns:
            again = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), statistics_stay(network))}
            turns.append(checkpoint(_shortened, encode, some, detailed[rows], **again))
        else:
            turns.append(_shortened(encode, some, detailed[rows]))
    return Encoded(*(torch.cat(column) for column in zip(*turns, strict=True)))


def _shortened(
    encode: Callable[[Images | Notes], Encoded], part: Images | Notes, detailed: Bool[Tensor, " row"]
) -> Encoded:
    """Some rows as tokens: all of those in detail, and the mean of each other."""
    encoded = encode(part)
    row = _row_of(encoded)
    # Looked up once: a GPU is waited for to tell how many there are.
    kept, others = detailed[row].nonzero()[:, 0], (~detailed).nonzero()[:, 0]
    means = Encoded(part.patient, part.hours, _means(encoded, row), torch.full_like(part.patient, -1))
    whole = (column[kept] for column in encoded)
    both = Encoded(*(torch.cat([own, column[others]]) for own, column in zip(whole, means, strict=True)))
    order = torch.cat([row[kept], others]).argsort(stable=True)
    return Encoded(*(column[order] for column in both))


def _row_of(encoded: Encoded) -> Int[Tensor, " token"]:
    """The row that each token is of, numbered from 0."""
    return (encoded.place <= 0).cumsum(0) - 1


def _means(encoded: Encoded, row: Int[Tensor, " token"]) -> Float[Tensor, "row width"]:
    """Of each row the mean of its tokens, as global average pooling and sentence embeddings have it."""
    counts = torch.bincount(row)[:, None]
    total = encoded.values.new_zeros(len(counts), encoded.values.shape[1], dtype=torch.float32)
    return (total.index_add(0, row, encoded.values.float()) / counts).to(encoded.values.dtype)


class StudyAttention(nn.Module):
    """Tokens of a patient, and what they say in sum: attention over images or pieces of notes and their hours.

    Each is read as the mean of its tokens. Untrained, all weigh the same.

    Args:
        width: of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width + TIME_FEATURES, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, encoded: Encoded, patients: int) -> Tokens:
        row = _row_of(encoded)
        first = (encoded.place <= 0).nonzero()[:, 0]
        rows = gather_tokens(_means(encoded, row), encoded.hours[first], encoded.patient[first], patients)
        told = torch.cat([self.norm(rows.values), time_features(rows.hours)], -1)
        score = self.score(told)[..., 0].float().masked_fill(~rows.mask, torch.finfo(torch.float32).min)
        summary = (score.softmax(1)[..., None] * rows.values).sum(1)
        tokens = gather_tokens(encoded.values, encoded.hours, encoded.patient, patients)
        return replace(tokens, summary=summary)

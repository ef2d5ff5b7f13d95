"""The product of all modalities, of low rank: every interaction of any of them, in few weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from ..encoders.dropout import Dropout
from ..encoders.tokens import Tokens
from .state import FusedState, refuse_attention, refuse_other_sizes, require_sizes
from .token_entry import GistEntry


class LowRankFusion(nn.Module):
    """The outer product of all modalities, each with a 1 appended, through a tensor of low rank.

    The tensor is never made: with weights of rank r, what it gives is the sum over r of products of
    one linear map a modality. The 1s let the modalities, and pairs of them, speak without the others.

    Args:
        width: of each pooled modality and of the state an outcome.
        rank: of the weights.
        dropout: probability that a unit of a pooled modality is dropped in training.

    Raises:
        InputError: sizes that make no sense.

    Source: low-rank multimodal fusion, Liu et al., ACL 2018. We differ: the 1 of every modality starts with a weight
    of one, so that a product starts near 1 and the sum of its parts, where a product of small numbers would
    start near 0 and learn nothing; a linear layer an outcome reads the product; an absent modality is a learned token.
    """

    def __init__(self, width: int = 256, *, rank: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        require_sizes(dropout, width=width, rank=rank)
        self.width, self.rank, self.dropout = width, rank, dropout
        self.widths: dict[str, int] = {}
        self.outcomes = 0

    def build(self, widths: Mapping[str, int], outcomes: int) -> None:
        refuse_other_sizes(self, widths, outcomes)
        self.widths, self.outcomes = dict(widths), outcomes
        self.entry = GistEntry(widths, self.width)
        self.drop = Dropout(self.dropout)
        # The bias is the weight of the appended 1.
        self.factor = nn.ModuleDict({name: nn.Linear(self.width, self.rank * self.width) for name in widths})
        for factor in self.factor.values():
            nn.init.ones_(factor.bias)
        self.weight = nn.Parameter(torch.full((self.rank, 1), 1 / self.rank))
        self.out = nn.Linear(self.width, outcomes * self.width)

    def describe(self) -> dict[str, object]:
        return {"width": self.width, "rank": self.rank, "dropout": self.dropout}

    def forward(self, tokens: Mapping[str, Tokens], *, attention: bool = False) -> FusedState:
        refuse_attention(self, attention)
        factors = [self.factor[name](self.drop(gist)) for name, gist in self.entry(tokens).items()]
        product = math.prod(factors).unflatten(-1, (self.rank, self.width))
        fused = (self.weight * product).sum(-2)
        return FusedState(self.out(fused).unflatten(-1, (self.outcomes, self.width)))

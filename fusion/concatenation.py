"""The plain alternative: the pooled modalities side by side, through a perceptron."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..encoders.dropout import Dropout
from ..encoders.tokens import Tokens
from .state import FusedState, refuse_attention, refuse_other_sizes, require_sizes
from .token_entry import GistEntry


class ConcatenationFusion(nn.Module):
    """The gist of each modality, concatenated, then two layers.

    Args:
        width: of each pooled modality and of the state an outcome.
        dropout: probability that a hidden unit is dropped in training.

    Raises:
        InputError: sizes that make no sense.
    """

    def __init__(self, width: int = 256, *, dropout: float = 0.1) -> None:
        super().__init__()
        require_sizes(dropout, width=width)
        self.width, self.dropout = width, dropout
        self.widths: dict[str, int] = {}
        self.outcomes = 0

    def build(self, widths: Mapping[str, int], outcomes: int) -> None:
        refuse_other_sizes(self, widths, outcomes)
        self.widths, self.outcomes = dict(widths), outcomes
        self.entry = GistEntry(widths, self.width)
        self.mix = nn.Sequential(
            nn.LayerNorm(self.width * len(widths)),
            nn.Linear(self.width * len(widths), 2 * self.width),
            nn.GELU(),
            Dropout(self.dropout),
            nn.Linear(2 * self.width, outcomes * self.width),
        )

    def describe(self) -> dict[str, object]:
        return {"width": self.width, "dropout": self.dropout}

    def forward(self, tokens: Mapping[str, Tokens], *, attention: bool = False) -> FusedState:
        refuse_attention(self, attention)
        pooled = torch.cat(list(self.entry(tokens).values()), -1)
        return FusedState(self.mix(pooled).unflatten(-1, (self.outcomes, self.width)))

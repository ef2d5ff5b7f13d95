"""Every modality predicts by itself, and the predictions are averaged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..encoders.dropout import Dropout
from ..encoders.tokens import Tokens
from .state import FusedState, refuse_attention, refuse_other_sizes, require_sizes
from .token_entry import GistEntry, presence


class LateFusion(nn.Module):
    """The mean of what the modalities that a patient has say alone; the others say nothing.

    The mean is of states, and as one linear layer reads them afterwards, it is the mean of logits. Of a
    patient who has nothing, the learned tokens of absence are averaged.

    Args:
        width: of each pooled modality and of the state an outcome.
        dropout: probability that a hidden unit is dropped in training.

    Raises:
        InputError: sizes that make no sense.

    Source: the mean rule for combining classifiers, Kittler et al., IEEE TPAMI 20 (1998), and the
    practice that Baltrušaitis et al., IEEE TPAMI 41 (2019), call late fusion. We differ: log-odds are
    averaged, not probabilities, and the loss of the mean is what is learned from.
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
        self.alone = nn.ModuleDict({name: self._perceptron() for name in widths})

    def _perceptron(self) -> nn.Module:
        return nn.Sequential(
            nn.LayerNorm(self.width),
            nn.Linear(self.width, 2 * self.width),
            nn.GELU(),
            Dropout(self.dropout),
            nn.Linear(2 * self.width, self.outcomes * self.width),
        )

    def describe(self) -> dict[str, object]:
        return {"width": self.width, "dropout": self.dropout}

    def forward(self, tokens: Mapping[str, Tokens], *, attention: bool = False) -> FusedState:
        refuse_attention(self, attention)
        said = torch.stack([self.alone[name](gist) for name, gist in self.entry(tokens).items()], 1)
        present = presence(tokens, self.widths)
        speaks = (present | ~present.any(1, keepdim=True)).to(said.dtype)
        mean = (speaks[..., None] * said).sum(1) / speaks.sum(1, keepdim=True)
        return FusedState(mean.unflatten(-1, (self.outcomes, self.width)))

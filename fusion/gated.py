"""Gates that decide, for each patient, how much each modality has to say."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..encoders.dropout import Dropout
from ..encoders.tokens import Tokens
from .state import FusedState, refuse_attention, refuse_other_sizes, require_sizes
from .token_entry import GistEntry


class GatedFusion(nn.Module):
    """The sum of what each modality says, every unit of it behind a gate that all modalities work.

    Args:
        width: of each pooled modality and of the state an outcome.
        dropout: probability that a unit of a pooled modality is dropped in training.

    Raises:
        InputError: sizes that make no sense.

    Source: the gated multimodal unit of Arevalo et al., ICLR 2017 workshop, in its form for more than
    two modalities: each has a gate of its own, and gates need not sum to 1. We differ: each outcome has
    units of its own, and a modality that is absent enters as a learned token, through its gate like any other.
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
        self.drop = Dropout(self.dropout)
        self.say = nn.ModuleDict({name: nn.Linear(self.width, outcomes * self.width) for name in widths})
        self.gate = nn.Linear(self.width * len(widths), outcomes * self.width * len(widths))

    def describe(self) -> dict[str, object]:
        return {"width": self.width, "dropout": self.dropout}

    def forward(self, tokens: Mapping[str, Tokens], *, attention: bool = False) -> FusedState:
        refuse_attention(self, attention)
        gists = {name: self.drop(gist) for name, gist in self.entry(tokens).items()}
        gates = self.gate(torch.cat(list(gists.values()), -1)).sigmoid().chunk(len(gists), -1)
        said = [gate * self.say[name](gists[name]).tanh() for name, gate in zip(gists, gates, strict=True)]
        return FusedState(torch.stack(said).sum(0).unflatten(-1, (self.outcomes, self.width)))

"""A recurrent network that reads the modalities that are there, one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..encoders.dropout import Dropout
from ..encoders.tokens import Tokens
from .state import FusedState, refuse_attention, refuse_other_sizes, require_sizes
from .token_entry import GistEntry, presence


class RecurrentFusion(nn.Module):
    """An LSTM over the modalities of a patient: what is absent is no step, and leaves its state as it was.

    Modalities come in the order of the alphabet, whatever order they are given in. A patient who has
    nothing is one step of the mean of the learned tokens of absence.

    Args:
        width: of each pooled modality, of the LSTM and of the state an outcome.
        dropout: probability that a unit of its last state is dropped in training.

    Raises:
        InputError: sizes that make no sense.

    Source: MedFuse, Hayat et al., Machine Learning for Healthcare 2022 (PMLR 182), whose LSTM reads one
    vector a modality, of one modality or of several. We differ: there may be more than two, all are projected to
    one width, and encoders and fusion are trained together instead of first alone.
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
        self.read = nn.LSTMCell(self.width, self.width)
        self.out = nn.Sequential(Dropout(self.dropout), nn.Linear(self.width, outcomes * self.width))

    def describe(self) -> dict[str, object]:
        return {"width": self.width, "dropout": self.dropout}

    def forward(self, tokens: Mapping[str, Tokens], *, attention: bool = False) -> FusedState:
        refuse_attention(self, attention)
        gists = self.entry(tokens)
        order = sorted(gists)
        present = presence(tokens, order)

        # Nothing at all is a step too, before all others; whoever has something skips it.
        absent = torch.stack([self.entry.absent[name] for name in order]).mean(0)
        first = absent.to(gists[order[0]].dtype).expand_as(gists[order[0]])
        steps = [(first, ~present.any(1)), *zip([gists[name] for name in order], present.unbind(1), strict=True)]

        hidden = cell = torch.zeros_like(first)
        for step, is_real in steps:
            after = self.read(step, (hidden, cell))
            hidden, cell = (
                torch.where(is_real[:, None], new, old) for new, old in zip(after, (hidden, cell), strict=True)
            )
        return FusedState(self.out(hidden).unflatten(-1, (self.outcomes, self.width)))

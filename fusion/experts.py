"""Experts for what patients have: who is asked depends on which modalities are there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..encoders.dropout import Dropout
from ..encoders.tokens import Tokens
from .state import FusedState, refuse_attention, refuse_other_sizes, require_sizes
from .token_entry import GistEntry, presence


class ExpertFusion(nn.Module):
    """Perceptrons over all modalities, weighted by a router that sees who has what, and what it says.

    Args:
        width: of each pooled modality and of the state an outcome.
        experts: how many perceptrons there are.
        dropout: probability that a hidden unit of an expert is dropped in training.

    Raises:
        InputError: sizes that make no sense.

    Source: experts for combinations of modalities follow Flex-MoE (Yun et al., NeurIPS 2024), which
    assigns a patient's first expert by the combination; a router that learns from what is there, whichever it is,
    follows FuseMoE (Han et al., NeurIPS 2024). We differ: experts are few and all are
    asked (no sparse gates, no loss that balances them); the combination enters as one weight a modality and expert,
    so that one that training never saw has a router too; and absence is one learned token a
    modality, where Flex-MoE has one for each combination that was observed.
    """

    def __init__(self, width: int = 256, *, experts: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        require_sizes(dropout, width=width, experts=experts)
        self.width, self.experts, self.dropout = width, experts, dropout
        self.widths: dict[str, int] = {}
        self.outcomes = 0

    def build(self, widths: Mapping[str, int], outcomes: int) -> None:
        refuse_other_sizes(self, widths, outcomes)
        self.widths, self.outcomes = dict(widths), outcomes
        self.entry = GistEntry(widths, self.width)
        self.norm = nn.LayerNorm(self.width * len(widths))
        self.by_pattern = nn.Linear(len(widths), self.experts)
        self.by_content = nn.Linear(self.width * len(widths), self.experts, bias=False)
        self.expert = nn.ModuleList([self._perceptron() for _ in range(self.experts)])

    def _perceptron(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(self.width * len(self.widths), self.width),
            nn.GELU(),
            Dropout(self.dropout),
            nn.Linear(self.width, self.outcomes * self.width),
        )

    def describe(self) -> dict[str, object]:
        return {"width": self.width, "experts": self.experts, "dropout": self.dropout}

    def forward(self, tokens: Mapping[str, Tokens], *, attention: bool = False) -> FusedState:
        refuse_attention(self, attention)
        known = self.norm(torch.cat(list(self.entry(tokens).values()), -1))
        pattern = presence(tokens, self.widths).to(known.dtype)
        share = (self.by_pattern(pattern) + self.by_content(known)).softmax(-1)
        said = torch.stack([expert(known) for expert in self.expert], 1)
        return FusedState((share[..., None] * said).sum(1).unflatten(-1, (self.outcomes, self.width)))

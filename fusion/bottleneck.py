"""Modalities that read themselves, and each other through a few tokens only."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..datasets.errors import InputError
from ..encoders.tokens import Tokens
from .state import FusedState, refuse_attention, refuse_other_sizes, require_sizes
from .token_entry import TokenEntry


class BottleneckFusion(nn.Module):
    """A transformer a modality, joined by bottleneck tokens that all of them share.

    Args:
        width: of the joint tokens and of the state an outcome.
        depth: layers; what one modality says reaches the others from the second on.
        heads: attention heads; they divide the width.
        bottlenecks: tokens through which modalities speak to each other.
        dropout: probability that a hidden unit is dropped in training.

    Raises:
        InputError: sizes that do not agree.

    Source: the multimodal bottleneck transformer of Nagrani et al., NeurIPS 2021: in a layer each
    modality updates the bottlenecks beside its own tokens, then these are averaged over modalities, and in the end
    the predictions at each modality's first token are averaged. We differ: the first token is the
    gist of the modality or its learned absence, tokens carry their hour, layers are pre-norm, and the modalities
    share bottlenecks from the first layer on, since the encoders have read each by itself before.
    """

    def __init__(
        self, width: int = 256, *, depth: int = 2, heads: int = 8, bottlenecks: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__()
        require_sizes(dropout, width=width, depth=depth, heads=heads, bottlenecks=bottlenecks)
        if width % heads:
            raise InputError(f"width is {width} and heads {heads}; expected heads that divide the width.")
        self.width, self.depth, self.heads = width, depth, heads
        self.bottlenecks, self.dropout = bottlenecks, dropout
        self.widths: dict[str, int] = {}
        self.outcomes = 0

    def build(self, widths: Mapping[str, int], outcomes: int) -> None:
        refuse_other_sizes(self, widths, outcomes)
        self.widths, self.outcomes = dict(widths), outcomes
        self.entry = TokenEntry(widths, self.width)
        self.shared = nn.Parameter(0.02 * torch.randn(self.bottlenecks, self.width))
        self.layers = nn.ModuleList(
            [nn.ModuleDict({name: self._layer() for name in widths}) for _ in range(self.depth)]
        )
        self.out = nn.Sequential(nn.LayerNorm(self.width), nn.Linear(self.width, outcomes * self.width))

    def _layer(self) -> nn.Module:
        return nn.TransformerEncoderLayer(
            self.width,
            self.heads,
            dim_feedforward=4 * self.width,
            dropout=self.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )

    def describe(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("width", "depth", "heads", "bottlenecks", "dropout")}

    def forward(self, tokens: Mapping[str, Tokens], *, attention: bool = False) -> FusedState:
        refuse_attention(self, attention)
        entered = self.entry(tokens)
        own = {name: part.values for name, part in entered.items()}
        shared = self.shared.expand(len(next(iter(own.values()))), -1, -1)
        # Of torch's masks, unlike ours, True means that nothing is there; a bottleneck always is.
        nothing = {name: nn.functional.pad(~part.mask, (self.bottlenecks, 0)) for name, part in entered.items()}

        for layer in self.layers:
            updates = []
            for name, read in layer.items():
                both = read(torch.cat([shared.to(own[name].dtype), own[name]], 1), src_key_padding_mask=nothing[name])
                update, own[name] = both.split([self.bottlenecks, own[name].shape[1]], 1)
                updates.append(update)
            shared = torch.stack(updates).mean(0)

        # The mean of what is said at the first tokens; the last layer after it is linear.
        said = torch.stack([self.out(values[:, 0]) for values in own.values()]).mean(0)
        return FusedState(said.unflatten(-1, (self.outcomes, self.width)))

"""Where tokens of all modalities become one sequence: same width, marked by modality and by time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..encoders.tokens import TIME_FEATURES, Tokens, time_features


class TokenEntry(nn.Module):
    """Brings every modality to one width and adds what it is and when it was.

    Each modality gets one place in front: its gist, or, where a patient lacks it, a learned "absent"
    token, so that absence is something the model can learn from, and no attention has nothing to
    read.

    Args:
        widths: width of each modality's tokens.
        width: of the joint sequence.
    """

    def __init__(self, widths: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.modalities = tuple(widths)
        self.project, self.project_gist = (
            nn.ModuleDict(
                {name: nn.Sequential(nn.LayerNorm(own), nn.Linear(own, width)) for name, own in widths.items()}
            )
            for _ in range(2)
        )
        self.time = nn.Linear(TIME_FEATURES, width, bias=False)
        self.kind = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(width)) for name in widths})
        self.absent = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(width)) for name in widths})

    def forward(self, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Tokens by modality, each with the gist or the absent token in front, which is always real."""
        return {name: self._enter(name, tokens[name]) for name in self.modalities}

    def _enter(self, name: str, tokens: Tokens) -> Tokens:
        hours = torch.where(tokens.mask, tokens.hours, 0.0)
        values = tokens.each(self.project[name]) + self.kind[name] + self.time(time_features(hours))

        present = tokens.mask.any(1, keepdim=True)
        gist = torch.where(present, self.project_gist[name](tokens.gist), self.absent[name].to(values.dtype))
        return Tokens(
            values=torch.cat([(gist + self.kind[name])[:, None], values], 1),
            mask=torch.cat([torch.ones_like(present), tokens.mask], 1),
            hours=torch.cat([hours.new_zeros(len(hours), 1), hours], 1),
        )


class GistEntry(nn.Module):
    """The same for heads that read one thing a modality: its gist, or the learned "absent" token.

    Args:
        widths: width of each modality's tokens.
        width: of what comes out.
    """

    def __init__(self, widths: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.modalities = tuple(widths)
        self.project = nn.ModuleDict(
            {name: nn.Sequential(nn.LayerNorm(own), nn.Linear(own, width)) for name, own in widths.items()}
        )
        self.absent = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(width)) for name in widths})

    def forward(self, tokens: Mapping[str, Tokens]) -> dict[str, Float[Tensor, "batch width"]]:
        gists = {}
        for name in self.modalities:
            gist = self.project[name](tokens[name].gist)
            present = tokens[name].mask.any(1, keepdim=True)
            gists[name] = torch.where(present, gist, self.absent[name].to(gist.dtype))
        return gists


def presence(tokens: Mapping[str, Tokens], modalities: Iterable[str]) -> Bool[Tensor, "batch modality"]:
    """Who has which modality."""
    return torch.stack([tokens[name].mask.any(1) for name in modalities], 1)

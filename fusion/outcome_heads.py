"""From fused states to risks, and from risks to losses, for every kind of outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ..datasets.outcomes import OutcomeKind
from .state import FusedState


class Risk(NamedTuple):
    """What is predicted for each patient: one column a binary or continuous outcome, one a class."""

    logits: Float[Tensor, "patient column"]
    """float32, whatever the precision of the network."""
    value: Float[Tensor, "patient column"]
    """Probability in [0, 1], or expected value in the outcome's own unit; NaN where a logit is not finite."""
    alone: dict[str, Float[Tensor, "patient column"]] = {}  # noqa: RUF012 - never changed
    """In training: logits of what each modality predicts by itself."""
    present: dict[str, Bool[Tensor, " patient"]] = {}  # noqa: RUF012 - never changed
    """In training: who has each modality."""


class OutcomeHeads(nn.Module):
    """One linear head an outcome.

    It reads the state as it is, not brought to one length: what modalities say adds up in the log-odds, and
    a norm would take from each what the others add.

    Args:
        kinds: the outcomes, in the order of `Batch.outcomes`.
        width: of the fused state.
    """

    def __init__(self, kinds: Mapping[str, OutcomeKind], width: int) -> None:
        super().__init__()
        self.kinds = dict(kinds)
        self.heads = nn.ModuleList([nn.Linear(width, kind.logits) for kind in kinds.values()])
        # Continuous outcomes are learned in standard deviations from the training patients' mean.
        self.register_buffer("mean", torch.zeros(len(kinds)))
        self.register_buffer("std", torch.ones(len(kinds)))
        # Class weights, by outcome; 1 unless balancing was asked for.
        self.register_buffer("class_weight", torch.ones(len(kinds), max(2, *(kind.logits for kind in kinds.values()))))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `Risk`."""
        return tuple(column for name, kind in self.kinds.items() for column in kind.columns(name))

    @torch.no_grad()
    def fit_scales(self, outcomes: Tensor, known: Tensor, *, balanced: bool) -> None:
        """Learn means, spreads, class weights and the starting point of each head from training outcomes."""
        self.weigh_classes(outcomes, known, balanced=balanced)
        for i, kind in enumerate(self.kinds.values()):
            own = outcomes[known[:, i], i]
            if not len(own):
                continue
            bias = self.heads[i].bias
            if kind == "continuous":
                self.mean[i], self.std[i] = own.mean(), own.std(correction=0).clamp(min=1e-6)
                bias.zero_()
                continue
            share = _shares(own, kind)
            if balanced:
                share = torch.full_like(share, 1 / len(share))
            # Of a state that says nothing the untrained head predicts the rate of the outcome: training starts there.
            bias.copy_(share.log() if kind == "categorical" else (share[1:] / share[:1]).log())

    @torch.no_grad()
    def weigh_classes(self, outcomes: Tensor, known: Tensor, *, balanced: bool) -> None:
        """Learn from training outcomes how much a label counts: by the inverse of its class's rate, or as any other."""
        self.class_weight.fill_(1)
        for i, kind in enumerate(self.kinds.values()):
            own = outcomes[known[:, i], i]
            if balanced and len(own) and kind != "continuous":
                share = _shares(own, kind)
                self.class_weight[i, : len(share)] = 1 / (len(share) * share)

    def forward(self, state: FusedState) -> Risk:
        with torch.autocast(state.values.device.type, enabled=False):
            states = state.values.float()
            logits = [head(states[:, i]) for i, head in enumerate(self.heads)]
        return Risk(torch.cat(logits, -1), torch.cat([self._value(i, own) for i, own in enumerate(logits)], -1))

    def _value(self, i: int, logits: Tensor) -> Tensor:
        kind = list(self.kinds.values())[i]
        if kind == "continuous":
            value = logits * self.std[i] + self.mean[i]
        else:
            value = logits.sigmoid() if kind == "binary" else logits.softmax(-1)
        # An infinite logit would make a probability of exactly 0 or 1, which looks like knowledge.
        return value.masked_fill(~logits.isfinite().all(-1, keepdim=True), torch.nan)

    def loss(
        self,
        logits: Float[Tensor, "patient column"],
        outcomes: Tensor,
        known: Bool[Tensor, "patient outcome"],
        *,
        smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Sum of the losses over what is known, and how many labels that is.

        Cross-entropy for classes, half the squared error in standard deviations for numbers. An
        unknown label adds nothing to either.

        Args:
            logits: of `forward`.
            outcomes: 0/1 or a probability, class number, or value.
            known: which of them are known.
            smoothing: share of a label that is spread evenly over all classes; numbers stay as they are.

        Source: Szegedy et al., Rethinking the Inception architecture, CVPR 2016, section 7.
        """
        total = logits.new_zeros(())
        own_logits = logits.split([kind.logits for kind in self.kinds.values()], -1)
        for i, (kind, own) in enumerate(zip(self.kinds.values(), own_logits, strict=True)):
            target = torch.where(known[:, i], outcomes[:, i], 0.0)
            if kind == "binary":
                softened = target.lerp(torch.full_like(target, 0.5), smoothing) if smoothing else target
                negative, positive = self.class_weight[i, :2]
                each = negative * functional.binary_cross_entropy_with_logits(
                    own[:, 0], softened, reduction="none", pos_weight=positive / negative
                )
            elif kind == "categorical":
                each = functional.cross_entropy(own, target.long(), reduction="none", label_smoothing=smoothing)
                each = each * self.class_weight[i][target.long()]
            else:
                each = 0.5 * (own[:, 0] - (target - self.mean[i]) / self.std[i]).square()
            total = total + torch.where(known[:, i], each, 0.0).sum()
        return total, known.sum()


def _shares(labels: Float[Tensor, " label"], kind: OutcomeKind) -> Float[Tensor, " class"]:
    """Of labels, the share of each class; one that does not occur counts as half a label."""
    assert labels.eq(labels.long()).all(), "labels are counted before any of them is a probability"
    counts = torch.bincount(labels.long(), minlength=max(2, kind.logits)).float()
    return counts.clamp(min=0.5) / counts.sum()

"""What every encoder gives and every fusion head reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Time constants in hours: a shift's hour, a quarter day, a day, a week, a month. Within a stay the
# first ones tell steps apart, over an outpatient's years the last.
_TIME_CONSTANTS = (1.0, 6.0, 24.0, 168.0, 720.0)
TIME_FEATURES = 1 + len(_TIME_CONSTANTS)


def time_features(hours: Float[Tensor, "batch token"]) -> Float[Tensor, "batch token feature"]:
    """Age of a token on several scales: its logarithm, and exponential decays; all within about [0, 2]."""
    age = -hours[..., None]
    # Without waiting for what a GPU is at.
    constants = torch.tensor(_TIME_CONSTANTS).to(age, non_blocking=True)
    return torch.cat([torch.log1p(age) / 5, torch.exp(-age / constants)], -1)


@dataclass(frozen=True)
class Tokens:
    """One modality of a batch, as tokens padded to the patient who has most.

    A patient who lacks the modality has a row of padding: nothing is invented here. What stands in
    for absence is learned, by the fusion head.
    """

    values: Float[Tensor, "batch token width"]
    mask: Bool[Tensor, "batch token"]
    """True = real. Values under False mean nothing."""
    hours: Float[Tensor, "batch token"]
    """Relative to the prediction time, ≤ 0."""
    summary: Float[Tensor, "batch width"] | None = None
    """What the modality says in sum, from an encoder that has a way of its own to say it. Means
    nothing for a patient without a real token."""

    @cached_property
    def gist(self) -> Float[Tensor, "batch width"]:
        """The summary, or else the mean of the real tokens; 0 for a patient who has none."""
        real = self.mask[..., None]
        if self.summary is not None:
            return torch.where(real.any(1), self.summary, 0.0)
        return torch.where(real, self.values, 0.0).sum(1) / real.sum(1).clamp(min=1)

    def of(self, kept: Bool[Tensor, " batch"]) -> Tokens:
        """The same, as if all other patients lacked the modality."""
        # What is said in sum of those who are kept stays, and so is not computed once more.
        return replace(self, mask=self.mask & kept[:, None], summary=self.gist)

    def each(self, network: Callable[[Tensor], Tensor]) -> Float[Tensor, "batch token width"]:
        """What a network makes of each token by itself; under the mask it means nothing, but is finite."""
        # Where one patient of a batch has three images, most of it is padding, which is not computed with; a GPU does
        # so sooner than it tells where the real tokens are.
        if self.mask.device.type == "cpu":
            real = network(self.values[self.mask])
            return real.new_zeros(*self.mask.shape, real.shape[-1]).index_put((self.mask,), real)
        # Under a mask anything may stand, even NaN: it is cleared before anything is computed.
        return network(torch.where(self.mask[..., None], self.values, 0.0))


class Encoded(NamedTuple):
    """What a network made of the rows of a part, one row a token: a part of a batch like those that it was made of."""

    patient: Int[Tensor, " token"]
    hours: Float[Tensor, " token"]
    values: Float[Tensor, "token width"]
    place: Int[Tensor, " token"] | None = None
    """Where in its image or piece of a note a token stood, from 0; -1 for the mean of one. Only budgets ask for it."""


def gather_tokens(
    values: Float[Tensor, "row width"],
    hours: Float[Tensor, " row"],
    patient: Int[Tensor, " row"],
    patients: int,
) -> Tokens:
    """Rows, sorted by patient, as padded tokens.

    Args:
        values: one row a token.
        hours: when each token's source became available, relative to the prediction time.
        patient: the patient of each row, ascending.
        patients: how many there are in the batch; some may have no row.
    """
    # Not by bincount, which waits for a GPU to tell it how many there are.
    counts = patient.new_zeros(patients).index_add(0, patient, torch.ones_like(patient))
    longest = int(counts.max()) if len(patient) else 0
    place = torch.arange(len(patient), device=patient.device) - (counts.cumsum(0) - counts)[patient]
    padded = values.new_zeros(patients, longest, values.shape[-1]).index_put((patient, place), values)
    when = hours.new_zeros(patients, longest).index_put((patient, place), hours)
    mask = torch.arange(longest, device=patient.device) < counts[:, None]
    return Tokens(padded, mask, when)


def no_tokens(patients: int, width: int, like: Tensor) -> Tokens:
    """The tokens of a batch in which nobody has the modality."""
    return Tokens(
        values=torch.zeros(patients, 0, width, device=like.device),
        mask=torch.zeros(patients, 0, dtype=torch.bool, device=like.device),
        hours=torch.zeros(patients, 0, device=like.device),
    )

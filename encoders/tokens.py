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
class Rows:
    """Real tokens of a batch, one a row, sorted by patient."""

    values: Float[Tensor, "row width"]
    patient: Int[Tensor, " row"]
    place: Int[Tensor, " row"]
    """Number of the token among its patient's, from 0."""

    def padded(self, shape: torch.Size, values: Float[Tensor, "row width"]) -> Float[Tensor, "batch token width"]:
        """What was made of the rows, where they stand in a batch of so many patients and tokens; 0 elsewhere."""
        return values.new_zeros(*shape, values.shape[-1]).index_put((self.patient, self.place), values)


@dataclass(frozen=True)
class Tokens:
    """One modality of a batch, as tokens padded to the patient who has most.

    A patient who lacks the modality has a row of padding: nothing is invented here. What stands in
    for absence is learned, by the fusion head.
    """

    given: Float[Tensor, "batch token width"] | Rows
    """As they are, or only those that are real, which are padded when they are needed so."""
    mask: Bool[Tensor, "batch token"]
    """True = real. Values under False mean nothing."""
    hours: Float[Tensor, "batch token"]
    """Relative to the prediction time, ≤ 0."""
    summary: Float[Tensor, "batch width"] | None = None
    """What the modality says in sum, from an encoder that has a way of its own to say it. Means
    nothing for a patient without a real token."""

    @cached_property
    def values(self) -> Float[Tensor, "batch token width"]:
        """The tokens with their padding."""
        rows = self.given
        return rows.padded(self.mask.shape, rows.values) if isinstance(rows, Rows) else rows

    @cached_property
    def gist(self) -> Float[Tensor, "batch width"]:
        """The summary, or else the mean of the real tokens; 0 for a patient who has none."""
        if self.summary is not None:
            return torch.where(self.mask.any(1, keepdim=True), self.summary, 0.0)
        count, rows = self.mask.sum(1, keepdim=True).clamp(min=1), self.given
        # On a GPU, rows would be added up in another order each time.
        if not isinstance(rows, Rows) or self.mask.device.type != "cpu":
            return torch.where(self.mask[..., None], self.values, 0.0).sum(1) / count
        # Those under the mask go to a patient who is none.
        patient = torch.where(self._real(rows), rows.patient, len(count))
        total = rows.values.new_zeros(len(count) + 1, rows.values.shape[-1], dtype=torch.float32)
        total = total.index_add(0, patient, rows.values.float())[:-1]
        return (total / count).to(rows.values.dtype)

    def of(self, kept: Bool[Tensor, " batch"]) -> Tokens:
        """The same, as if all other patients lacked the modality."""
        # What is said in sum of those who are kept stays, and so is not computed once more.
        return replace(self, mask=self.mask & kept[:, None], summary=self.gist)

    def each(self, network: Callable[[Tensor], Tensor]) -> Float[Tensor, "batch token width"]:
        """What a network makes of each token by itself; under the mask it means nothing, but is finite.

        Padding of rows is not computed with: where one patient of a batch has three images, it is most of the batch.
        """
        rows = self.given
        # Under a mask anything may stand, even NaN: it is cleared before anything is computed.
        if not isinstance(rows, Rows):
            return network(torch.where(self.mask[..., None], rows, 0.0))
        return rows.padded(self.mask.shape, network(torch.where(self._real(rows)[:, None], rows.values, 0.0)))

    def _real(self, rows: Rows) -> Bool[Tensor, " row"]:
        return self.mask[rows.patient, rows.place]


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
    when = hours.new_zeros(patients, longest).index_put((patient, place), hours)
    mask = torch.arange(longest, device=patient.device) < counts[:, None]
    return Tokens(Rows(values, patient, place), mask, when)


def no_tokens(patients: int, width: int, like: Tensor) -> Tokens:
    """The tokens of a batch in which nobody has the modality."""
    return Tokens(
        torch.zeros(patients, 0, width, device=like.device),
        mask=torch.zeros(patients, 0, dtype=torch.bool, device=like.device),
        hours=torch.zeros(patients, 0, device=like.device),
    )

"""A series on time steps of its own, and what a recurrent network is told at each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ..datasets.batch import Labs


@dataclass(frozen=True)
class Grid:
    """The series of the patients who have one, on their own time steps.

    In memory the steps of an analyte lie side by side, as what is still known of it is looked up along them.
    """

    value: Float[Tensor, "series step code"]
    """Mean of the step's measurements; 0 where there is none."""
    count: Float[Tensor, "series step code"]
    """How many these are."""
    hours: Float[Tensor, "series step"]
    """Of the step's latest measurement, relative to the prediction time (≤ 0)."""
    real: Bool[Tensor, "series step"]

    @property
    def observed(self) -> Float[Tensor, "series step code"]:
        """1 where there is a measurement, 0 where there is none."""
        return self.count.clamp(max=1)


def lab_grid(part: Labs, series: int, codes: int) -> Grid:
    """Measurements, one row each, as one dense grid of each patient's own time steps."""
    steps = int(part.step.max()) + 1
    cell = (part.patient * codes + part.code) * steps + part.step
    nothing = part.value.new_zeros(series * codes * steps)
    count = nothing.index_add(0, cell, torch.ones_like(part.value)).view(series, codes, steps)
    total = nothing.index_add(0, cell, part.value).view(series, codes, steps)
    moment = part.patient * steps + part.step
    hours = part.hours.new_full((series * steps,), -torch.inf).scatter_reduce(0, moment, part.hours, "amax")
    real = hours.isfinite()
    hours = torch.where(real, hours, 0.0)
    mean = total / count.clamp(min=1)
    return Grid(mean.mT, count.mT, hours.view(series, steps), real.view(series, steps))


def step_features(grid: Grid) -> Float[Tensor, "series step feature"]:
    """What the GRU is told at each step.

    Returns:
        For each analyte its last known value (0 before the first), whether it was measured in this
        step, and how fresh the last value is: 1 when just measured, falling with the logarithm of
        its age, 0 when never measured. Then the hours to the prediction time and since the last
        step, as logarithms.
    """
    observed, hours = grid.observed.mT, grid.hours[:, None]
    # In which step each analyte was last measured, counted from 1: before the first, all was 0 an infinite time ago.
    steps = observed.shape[-1]
    latest = (observed * torch.arange(1.0, 1 + steps, device=observed.device)).long().cummax(-1).values
    value = functional.pad(grid.value.mT, (1, 0)).gather(-1, latest)
    measured_at = functional.pad(hours, (1, 0), value=-torch.inf).expand(-1, observed.shape[1], -1).gather(-1, latest)
    # In place, and not by log1p, which takes five times as long for digits that only ages of less than a second have.
    fresh = (hours - measured_at).clamp_(min=0).add_(1).log_().add_(1).reciprocal_()
    gap = torch.diff(hours, dim=2, prepend=hours[..., :1]).clamp(min=0)
    told = torch.cat([value, observed, fresh, torch.log1p(-hours), torch.log1p(gap)], 1)
    # In memory one step lies after the other, as the GRU goes through them.
    return told.permute(2, 0, 1).contiguous().transpose(0, 1)

"""A series on time steps of its own, and what a recurrent network is told at each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..datasets.batch import Labs


@dataclass(frozen=True)
class Grid:
    """The series of the patients who have one, on their own time steps."""

    value: Float[Tensor, "series step code"]
    """Mean of the step's measurements; 0 where there is none."""
    observed: Bool[Tensor, "series step code"]
    hours: Float[Tensor, "series step"]
    """Of the step's latest measurement, relative to the prediction time (≤ 0)."""
    real: Bool[Tensor, "series step"]


def lab_grid(part: Labs, series: int, codes: int) -> Grid:
    """Measurements, one row each, as one dense grid of each patient's own time steps."""
    steps = int(part.step.max()) + 1
    cell = (part.patient * steps + part.step) * codes + part.code
    count = part.value.new_zeros(series * steps * codes).index_add(0, cell, torch.ones_like(part.value))
    total = part.value.new_zeros(series * steps * codes).index_add(0, cell, part.value)
    observed = (count > 0).view(series, steps, codes)
    value = (total / count.clamp(min=1)).view(series, steps, codes)
    moment = part.patient * steps + part.step
    hours = part.hours.new_full((series * steps,), -torch.inf).scatter_reduce(0, moment, part.hours, "amax")
    real = hours.isfinite()
    hours = torch.where(real, hours, 0.0)
    return Grid(value, observed, hours.view(series, steps), real.view(series, steps))


def step_features(grid: Grid) -> Float[Tensor, "series step feature"]:
    """What the GRU is told at each step.

    Returns:
        For each analyte its last known value (0 before the first), whether it was measured in this
        step, and how fresh the last value is: 1 when just measured, falling with the logarithm of
        its age, 0 when never measured. Then the hours to the prediction time and since the last
        step, as logarithms.
    """
    steps = grid.value.shape[1]
    order = torch.arange(steps, device=grid.value.device)[None, :, None]
    latest = torch.where(grid.observed, order, -1).cummax(1).values
    seen = latest >= 0
    source = latest.clamp(min=0)
    value = torch.where(seen, grid.value.gather(1, source), 0.0)
    measured_at = grid.hours[:, :, None].expand_as(grid.value).gather(1, source)
    age = (grid.hours[:, :, None] - measured_at).clamp(min=0)
    fresh = torch.where(seen, 1 / (1 + torch.log1p(age)), 0.0)
    gap = torch.diff(grid.hours, dim=1, prepend=grid.hours[:, :1]).clamp(min=0)
    clock = torch.stack([torch.log1p(-grid.hours), torch.log1p(gap)], -1)
    return torch.cat([value, grid.observed.float(), fresh, clock], -1)

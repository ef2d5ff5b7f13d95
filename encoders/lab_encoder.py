"""Lab series to tokens: a GRU over irregular times, and a summary beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..datasets.batch import Labs
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.lab_reader import LabReader
from .augmentation import drop_measurements
from .tokens import Tokens, no_tokens


@dataclass(frozen=True)
class Grid:
    """The series of the patients who have one, on their own time steps."""

    value: Float[Tensor, "series step code"]
    """Mean of the step's measurements; 0 where there is none."""
    observed: Bool[Tensor, "series step code"]
    hours: Float[Tensor, "series step"]
    """Of the step's latest measurement, relative to the prediction time (≤ 0)."""
    real: Bool[Tensor, "series step"]


class LabEncoder(nn.Module):
    """A GRU that is told, at every step, what was measured, what is still known, and since when.

    The recurrent tokens keep order and timing. The summary holds level, extremes, last value,
    count and recency of each analyte, which a recurrent network is slow to learn and which
    gradient boosting on summary features lives on.

    Args:
        width: of the tokens and of the recurrent state.
        layers: recurrent layers.
        dropout: probability that a hidden unit is dropped in training.
        measurement_dropout: mean share of a patient's measurements that are left out in training, drawn
            anew at every step.
        rare: a code that fewer training patients than this have is not in the vocabulary.
        resolution: hours that one time step covers.
        steps: time steps a sample at most; the most recent stay.

    Source: what is fed at each step follows GRU-D (Che et al., Scientific Reports 8:6085, 2018,
    section "GRU-D"): last value, mask, time since. We differ: the decay is a feature and not a
    gate, so that the fused GRU kernel can be used, and a step exists only where something was
    measured.
    """

    def __init__(
        self,
        width: int = 128,
        *,
        layers: int = 1,
        dropout: float = 0.2,
        measurement_dropout: float = 0.1,
        rare: int = 5,
        resolution: float = 1.0,
        steps: int = 256,
    ) -> None:
        super().__init__()
        if width < 1 or layers < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"width is {width}, layers {layers} and dropout {dropout}; expected at least 1, at least 1, "
                "and 0 to below 1."
            )
        if not 0 <= measurement_dropout < 0.5:
            raise InputError(f"measurement_dropout is {measurement_dropout}; expected a share from 0 to below 0.5.")
        self.width, self.layers, self.dropout = width, layers, dropout
        self.measurement_dropout = measurement_dropout
        self.reader = LabReader(rare=rare, resolution=resolution, steps=steps)

    def build(self, cohort: Cohort) -> None:
        self.reader.fit(cohort)
        self._make_layers()

    def describe(self) -> dict[str, object]:
        names = ("width", "layers", "dropout", "measurement_dropout")
        settings = {name: getattr(self, name) for name in names}
        reader = {"rare": self.reader.rare, "resolution": self.reader.resolution, "steps": self.reader.steps}
        return {"settings": settings | reader, "reader": self.reader.state()}

    def rebuild(self, description: Mapping[str, object]) -> None:
        self.reader.restore(description["reader"])
        self._make_layers()

    def _make_layers(self) -> None:
        self.codes = max(1, len(self.reader.codes_))
        # Three features an analyte and two of time: see `step_features`.
        self.step_in = nn.Sequential(nn.Linear(3 * self.codes + 2, self.width), nn.LayerNorm(self.width))
        between = self.dropout if self.layers > 1 else 0.0
        self.gru = nn.GRU(self.width, self.width, self.layers, batch_first=True, dropout=between)
        self.summary = nn.Sequential(
            nn.Dropout(self.dropout),
            nn.Linear(_SUMMARIES * self.codes, 2 * self.width),
            nn.GELU(),
            nn.Dropout(self.dropout),
            nn.Linear(2 * self.width, self.width),
        )
        self.drop = nn.Dropout(self.dropout)

    def forward(self, part: Labs, patients: int) -> Tokens:
        # Nobody has a measurement: a GRU never sees length 0.
        if not len(part.patient):
            return no_tokens(patients, self.width, self.gru.weight_hh_l0)

        if self.training and self.measurement_dropout:
            part = drop_measurements(part, self.measurement_dropout, patients)

        # Only patients who have a series are encoded, numbered 0, 1, ... among themselves.
        present, series = torch.unique_consecutive(part.patient, return_inverse=True)
        grid = lab_grid(part._replace(patient=series), len(present), self.codes)

        # Padding stands after the last real step, where a forward GRU cannot see it.
        states, _ = self.gru(self.drop(self.step_in(step_features(grid))))
        summary = self.summary(summary_features(grid, part._replace(patient=series)))

        return _spread(Tokens(self.drop(states), grid.real, grid.hours, summary), present, patients)


def _spread(tokens: Tokens, present: Tensor, patients: int) -> Tokens:
    """The tokens of some patients as those of the whole batch; the others get padding."""
    if len(present) == patients:
        return tokens

    def place(rows: Tensor) -> Tensor:
        return rows.new_zeros(patients, *rows.shape[1:]).index_copy(0, present, rows)

    return Tokens(place(tokens.values), place(tokens.mask), place(tokens.hours), place(tokens.summary))


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


_SUMMARIES = 8


def summary_features(grid: Grid, part: Labs) -> Float[Tensor, "series feature"]:
    """What the whole series says of each analyte, in robust standard deviations where it is a value.

    Returns:
        Mean, lowest, highest, first and last value, last minus first, the logarithm of the count,
        and how recent the last value is; all 0 for an analyte that was never measured.
    """
    series, steps, codes = grid.value.shape
    cell = part.patient * codes + part.code
    flat = part.value.new_zeros(series * codes)
    count = flat.index_add(0, cell, torch.ones_like(part.value))
    mean = flat.index_add(0, cell, part.value) / count.clamp(min=1)
    lowest = flat.scatter_reduce(0, cell, part.value, "amin", include_self=False)
    highest = flat.scatter_reduce(0, cell, part.value, "amax", include_self=False)
    order = torch.arange(steps, device=grid.value.device)[None, :, None]
    last_step = torch.where(grid.observed, order, -1).amax(1).clamp(min=0)
    first_step = torch.where(grid.observed, order, steps).amin(1).clamp(max=steps - 1)
    last = grid.value.gather(1, last_step[:, None])[:, 0].flatten()
    first = grid.value.gather(1, first_step[:, None])[:, 0].flatten()
    recency = 1 / (1 + torch.log1p(-grid.hours.gather(1, last_step))).flatten()
    columns = torch.stack([mean, lowest, highest, first, last, last - first, torch.log1p(count), recency], -1)
    columns = torch.where((count > 0)[:, None], columns, 0.0)
    return columns.view(series, codes * _SUMMARIES)

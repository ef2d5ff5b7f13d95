"""Lab series to tokens: a GRU over irregular times, and a summary beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.arguments import require_counts, require_numbers, require_truth
from ..datasets.batch import Labs
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.lab_reader import LabReader
from .augmentation import LabAugmentation
from .dropout import Dropout
from .gru import states_of
from .lab_grid import lab_grid, step_features
from .lab_summary import PlainFeatures, SummaryFeatures, summary_table
from .tokens import Tokens, no_tokens

# Quantiles of so many samples are known to about 1 %, and memory stays bounded.
_SUMMARISED = 4096
# Samples that are summarised together: 1,000 codes of them are about 0.5 GB.
_AT_ONCE = 64


class LabEncoder(nn.Module):
    """A GRU that is told, at every step, what was measured, what is still known, and since when.

    The recurrent tokens keep order and timing. The summary holds level, extremes, trend, spread,
    first and last value, count and recency of each analyte, bent at their quantiles: what gradient
    boosting on summary features lives on, and a recurrent network is slow to learn.

    What has no value, such as a diagnosis code or the letter of a sequence, is a measurement of
    value 1: that it is there, in which step and how often, is what is told of it.

    Args:
        width: of the tokens and of the recurrent state.
        layers: recurrent layers.
        dropout: probability that a hidden unit is dropped in training.
        bends: whether a risk may bend at the quantiles of each feature of the summary. Thousands of patients
            teach where; hundreds are learned by heart instead.
        summary_dropout: probability that a feature of the summary is dropped in training. They are
            many and say much the same, so that it may be high.
        augmentation: how series are varied in training: which share of the measurements is left out, and more.
        rare: a code that fewer training patients than this have is not in the vocabulary.
        resolution: hours that one time step covers.
        steps: time steps a sample at most; the most recent stay.

    Source: what is fed at each step follows GRU-D (Che et al., Scientific Reports 8:6085, 2018,
    section "GRU-D"): last value, mask, time since. We differ: the decay is a feature and not a
    gate, so that the fused GRU kernel can be used, and a step exists only where something was
    measured. The summary: see `SummaryFeatures`.
    """

    def __init__(
        self,
        width: int = 128,
        *,
        layers: int = 1,
        dropout: float = 0.2,
        bends: bool = True,
        summary_dropout: float = 0.5,
        augmentation: LabAugmentation | Mapping[str, float] = LabAugmentation(),  # noqa: B008 - never changed
        rare: int = 5,
        resolution: float = 1.0,
        steps: int = 256,
    ) -> None:
        super().__init__()
        require_counts(width=width, layers=layers)
        require_numbers(dropout=dropout, summary_dropout=summary_dropout)
        require_truth(bends=bends)
        if width < 1 or layers < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"width is {width}, layers {layers} and dropout {dropout}; expected at least 1, at least 1, "
                "and 0 to below 1."
            )
        if not 0 <= summary_dropout < 1:
            raise InputError(f"summary_dropout is {summary_dropout}; expected a probability from 0 to below 1.")
        self.width, self.layers, self.dropout, self.bends = width, layers, dropout, bends
        self.summary_dropout, self.augmentation = summary_dropout, LabAugmentation.of(augmentation)
        self.reader = LabReader(rare=rare, resolution=resolution, steps=steps)

    def build(self, cohort: Cohort) -> None:
        self.reader.fit(cohort)
        self._make_layers()
        if self.bends:
            self._fit_summary(cohort)

    def _fit_summary(self, cohort: Cohort) -> None:
        """Learn where the summary bends, and its scales, from training samples."""
        chosen = np.zeros(len(cohort), bool)
        chosen[np.linspace(0, len(cohort) - 1, min(len(cohort), _SUMMARISED)).astype(int)] = True
        packed = self.reader.pack(cohort.keep(chosen, why="summarised"))
        with_series = np.flatnonzero(np.diff(packed.offsets))
        tables = []
        for start in range(0, len(with_series), _AT_ONCE):
            part = packed.take(with_series[start : start + _AT_ONCE])
            tables.append(summary_table(lab_grid(part, int(part.patient[-1]) + 1, self.codes), part))
        if tables:
            self.bend.fit(torch.cat(tables))

    def describe(self) -> dict[str, object]:
        names = ("width", "layers", "dropout", "bends", "summary_dropout")
        settings = {name: getattr(self, name) for name in names} | {"augmentation": asdict(self.augmentation)}
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
        self.gru = nn.GRU(self.width, self.width, self.layers, dropout=between)
        self.bend = (SummaryFeatures if self.bends else PlainFeatures)(self.codes)
        self.summary = nn.Sequential(
            Dropout(self.summary_dropout),
            nn.Linear(self.bend.features, self.width),
            nn.GELU(),
            Dropout(self.dropout),
            nn.Linear(self.width, self.width),
        )
        self.drop = Dropout(self.dropout)

    def forward(self, part: Labs, patients: int) -> Tokens:
        # Nobody has a measurement: a GRU never sees length 0.
        if not len(part.patient):
            return no_tokens(patients, self.width, self.gru.weight_hh_l0)

        if self.training:
            part = self.augmentation(part, patients)

        # Only patients who have a series are encoded, numbered 0, 1, ... among themselves.
        present, series = torch.unique_consecutive(part.patient, return_inverse=True)
        grid = lab_grid(part._replace(patient=series), len(present), self.codes)

        # Padding stands after the last real step, where a forward GRU cannot see it.
        steps = self.drop(self.step_in(step_features(grid).transpose(0, 1)))
        states = self.drop(states_of(self.gru, steps)).transpose(0, 1)
        summary = self.summary(self.bend(summary_table(grid, part._replace(patient=series))))

        return _spread(Tokens(states, grid.real, grid.hours, summary), present, patients)


def _spread(tokens: Tokens, present: Tensor, patients: int) -> Tokens:
    """The tokens of some patients as those of the whole batch; the others get padding."""
    if len(present) == patients:
        return tokens

    def place(rows: Tensor) -> Tensor:
        return rows.new_zeros(patients, *rows.shape[1:]).index_copy(0, present, rows)

    return Tokens(place(tokens.values), place(tokens.mask), place(tokens.hours), place(tokens.summary))

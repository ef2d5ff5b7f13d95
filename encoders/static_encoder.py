"""Static facts to tokens: one token a known fact."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from ..datasets.arguments import require_counts, require_numbers
from ..datasets.batch import Static
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.static_reader import StaticReader
from .dropout import Dropout
from .tokens import Tokens, gather_tokens, no_tokens


class StaticEncoder(nn.Module):
    """Each fact becomes its column's embedding, moved along by its number or its category.

    Numbers enter through a small network of their own, so that a risk may bend with age.

    Args:
        width: of the tokens.
        dropout: probability that a hidden unit is dropped in training.
    """

    def __init__(self, width: int = 32, *, dropout: float = 0.1) -> None:
        super().__init__()
        require_counts(width=width)
        require_numbers(dropout=dropout)
        if width < 1 or not 0 <= dropout < 1:
            raise InputError(f"width is {width} and dropout {dropout}; expected at least 1, and 0 to below 1.")
        self.width, self.dropout = width, dropout
        self.reader = StaticReader()

    def build(self, cohort: Cohort) -> None:
        self.reader.fit(cohort)
        self._make_layers()

    def describe(self) -> dict[str, object]:
        return {"settings": {"width": self.width, "dropout": self.dropout}, "reader": self.reader.state()}

    def rebuild(self, description: Mapping[str, object]) -> None:
        self.reader.restore(description["reader"])
        self._make_layers()

    def _make_layers(self) -> None:
        columns = max(1, len(self.reader.columns))
        self.column = nn.Embedding(columns, self.width)
        self.slope = nn.Embedding(columns, self.width)
        self.level = nn.Embedding(self.reader.levels, self.width)
        # A category that no training patient had says nothing, rather than something random.
        nn.init.zeros_(self.level.weight)
        self.bend = nn.Sequential(nn.GELU(), Dropout(self.dropout), nn.Linear(self.width, self.width))

    def forward(self, part: Static, patients: int) -> Tokens:
        if not len(part.patient):
            return no_tokens(patients, self.width, self.column.weight)
        fact: Float[Tensor, "fact width"] = self.column(part.column) + self.level(part.level)
        fact = fact + part.value[:, None] * self.slope(part.column)
        return gather_tokens(fact + self.bend(fact), part.hours, part.patient, patients)

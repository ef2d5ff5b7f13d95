"""The contract that every encoder keeps; a test suite runs over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from ..datasets.batch import Part
from ..datasets.cohort import Cohort
from ..datasets.prepared import Reader
from .tokens import Tokens


@runtime_checkable
class Encoder(Protocol):
    """Both sides of one modality: the reader that makes arrays, and the network that makes tokens.

    An encoder is constructed as a plan. `build` fits its reader on the training patients and makes
    its layers, so that everything random or learned from data happens inside `fit`, under its seed.
    """

    reader: Reader
    width: int
    """Of its tokens; known once it is built."""

    def build(self, cohort: Cohort) -> None:
        """Fit the reader on training patients and make the layers."""

    def describe(self) -> dict[str, object]:
        """Everything but the weights, as plain JSON values."""

    def rebuild(self, description: Mapping[str, object]) -> None:
        """Make the layers again from what `describe` gave; the weights are loaded after."""

    def __call__(self, part: Part, patients: int) -> Tokens:
        """Encode the packed part of a batch of so many patients."""

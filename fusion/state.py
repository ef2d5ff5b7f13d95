"""What a fusion head gives, and the contract it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..datasets.arguments import require_numbers, require_whole
from ..datasets.errors import InputError
from ..encoders.tokens import Tokens


@dataclass(frozen=True)
class FusedState:
    """Everything known of each patient, as one vector an outcome."""

    values: Float[Tensor, "batch outcome width"]
    attention: dict[str, Float[Tensor, "batch outcome token"]] | None = None
    """By modality: how much each outcome's query looked at each token, mean over heads and blocks.
    The first token of a modality stands for it as a whole: its gist, or its absence. Sums to 1 over all modalities."""


@runtime_checkable
class Fusion(Protocol):
    """A fusion head: tokens of all modalities to one state an outcome."""

    width: int
    """Of the state an outcome."""
    widths: dict[str, int]
    """Of the tokens by modality; empty until it is built."""
    outcomes: int
    """How many states it gives; 0 until it is built."""

    def build(self, widths: Mapping[str, int], outcomes: int) -> None:
        """Make the layers for modalities of these token widths.

        Raises:
            InputError: the head was built for other widths or outcomes before.
        """

    def describe(self) -> dict[str, object]:
        """Its constructor's arguments, as plain JSON values."""

    def __call__(self, tokens: Mapping[str, Tokens], *, attention: bool = False) -> FusedState:
        """Fuse; `attention` asks for weights, from heads that have them."""


def refuse_other_sizes(head: Fusion, widths: Mapping[str, int], outcomes: int) -> None:
    """Raise `InputError` if a head that was built for some widths and outcomes is given others."""
    if head.widths and (head.widths, head.outcomes) != (dict(widths), outcomes):
        raise InputError(
            f"This fusion head was built for {head.outcomes} outcomes and tokens of the widths {head.widths}, and now "
            f"meets {outcomes} and {dict(widths)}. Make a new head for the new model."
        )


def refuse_attention(head: Fusion, asked: bool) -> None:
    """Raise `InputError` if a head that has no attention weights is asked for them."""
    if asked:
        raise InputError(f"{type(head).__name__} has no attention weights. Use CrossAttentionFusion to have them.")


def require_sizes(dropout: object, **sizes: object) -> None:
    """Raise `InputError` unless the dropout is a probability below 1, and every size a whole number of at least 1."""
    for name, value in sizes.items():
        require_whole(name, value, least=1)
    require_numbers(dropout=dropout)
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}; expected a probability from 0 to below 1.")

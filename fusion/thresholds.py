"""From which risk on a patient counts as positive: chosen on validation patients, and told beside the risks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from ..datasets.outcomes import OutcomeKind
from .metrics import best_threshold

_CHOSEN = "maximises F1 on the validation patients"


def chosen_thresholds(
    risks: Float[np.ndarray, "sample column"],
    columns: Sequence[str],
    kinds: Mapping[str, OutcomeKind],
    outcomes: Float[np.ndarray, "sample outcome"],
    known: Bool[np.ndarray, "sample outcome"],
) -> dict[str, float]:
    """By binary outcome, the threshold that maximises F1; none for an outcome of one class only.

    Args:
        risks: of validation patients; NaN where one is refused, as such a patient is not evaluated either.
        columns: their names.
        kinds: the outcomes.
        outcomes: 0 or 1, in the order of `kinds`.
        known: which of them are known.
    """
    chosen = {}
    for i, (name, kind) in enumerate(kinds.items()):
        if kind != "binary":
            continue
        own = risks[:, columns.index(name)]
        usable = known[:, i] & np.isfinite(own)
        labels = outcomes[usable, i]
        if len(np.unique(labels)) == 2:
            chosen[name] = best_threshold(own[usable], labels)
    return chosen


def told_thresholds(chosen: Mapping[str, float]) -> dict[str, dict[str, object]]:
    """Thresholds as they stand in the attrs of a table of risks: by outcome, the value and how it was chosen."""
    return {name: {"value": value, "chosen": _CHOSEN} for name, value in chosen.items()}

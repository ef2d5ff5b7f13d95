"""How much each modality is missed: curves as it is withheld, and fused without it against the best of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .variants import ALONE, FUSED

if TYPE_CHECKING:
    from ..datasets import Cohort
    from ..fusion.evaluation import Difference

TOLERANCE = 0.01
"""Of AUROC: how far fused without a modality may lie below the best of the others alone."""


@dataclass(frozen=True)
class Missingness:
    """Curves of fused and of single modalities, and what fused is worth where a modality is withheld from all."""

    table: pd.DataFrame
    """One row a model, modality and share: model, withheld, share, patients, AUROC, low, high."""
    against_rest: dict[str, tuple[str, Difference]]
    """By modality that is withheld from all: the best of the rest alone, and fused less it on the same patients."""

    @property
    def summary(self) -> pd.DataFrame:
        """The curves of fused alone, one row a modality."""
        own = self.table[self.table["model"] == FUSED]
        wide = own.pivot(index="withheld", columns="share", values="AUROC").loc[list(self.against_rest)]
        wide.columns = [f"{100 * share:g} %" for share in wide.columns]
        return wide.map("{:.3f}".format).reset_index()

    @property
    def verdict(self) -> str:
        """A sentence that says whether fused without any one modality keeps up with the best of the rest alone."""
        told = {name: _told(name, *found) for name, found in self.against_rest.items()}
        gaps = {name: gap.value for name, (_, gap) in self.against_rest.items()}
        below = [told[name] for name, gap in gaps.items() if gap < -TOLERANCE]
        if below:
            return f"Fused falls more than {TOLERANCE} AUROC below the best of the rest alone {'; '.join(below)}."
        worst = min(gaps, key=gaps.__getitem__)
        return (
            f"Without any one modality, fused is nowhere more than {TOLERANCE} AUROC below the best of the rest alone; "
            f"the margin is smallest {told[worst]}."
        )


def _told(name: str, rest: str, gap: Difference) -> str:
    interval = "" if np.isnan(gap.low) else f", {100 * gap.level:g} % interval {gap.low:+.3f} to {gap.high:+.3f}"
    return f"without {name} ({gap.value:+.3f} against {rest}{interval})"


def missingness(
    risks: Mapping[str, pd.DataFrame],
    without: Mapping[str, Mapping[str, pd.DataFrame]],
    test: Cohort,
    *,
    outcome: str,
    resamples: int,
) -> Missingness | None:
    """Withhold each modality in turn from more and more of the held-out patients.

    Args:
        risks: by model.
        without: by model, risks without each modality that it reads: of fused and of each modality alone.
        test: the held-out patients.
        outcome: a binary one.
        resamples: of patients, for the intervals.

    Returns:
        The curves; None where there is only one modality, and nothing remains when it is withheld.
    """
    from ..fusion import paired_difference
    from ..fusion.missingness import missing_curve

    modalities = [name for name in without[FUSED] if f"{name}{ALONE}" in without]
    if len(modalities) < 2:
        return None
    settings = {"outcome": outcome, "resamples": resamples}
    curves = {
        model: missing_curve(risks[model], own, test, modalities=modalities, **settings).assign(model=model)
        for model, own in without.items()
    }
    score = {model: own.loc[own["share"] == 0, "AUROC"].iloc[0] for model, own in curves.items()}
    singles = sorted((f"{name}{ALONE}" for name in modalities), key=score.__getitem__, reverse=True)
    shown, against_rest = [], {}
    for name in modalities:
        rest = next(model for model in singles if model != f"{name}{ALONE}")
        fused_without = without[FUSED][name].drop(columns="present")
        against_rest[name] = (rest, paired_difference(fused_without, risks[rest], test, **settings))
        shown += [
            curves[model][curves[model]["withheld"] == name] for model in dict.fromkeys([FUSED, singles[0], rest])
        ]
    columns = ["model", "withheld", "share", "patients", "AUROC", "low", "high"]
    return Missingness(pd.concat(shown, ignore_index=True)[columns], against_rest)

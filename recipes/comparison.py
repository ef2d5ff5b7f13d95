"""Does fusion help here? Each modality alone, pairs, all, each fusion head, and the plain baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..datasets.errors import InputError
from .recipe import Recipe

if TYPE_CHECKING:
    from ..datasets import Cohort
    from ..fusion import Evaluation, FusionModel
    from ..fusion.evaluation import Difference

FUSED, CONCATENATION = "fused", "concatenation"


@dataclass(frozen=True)
class Comparison:
    """Risks and metrics of several models on the same held-out patients."""

    outcome: str
    risks: dict[str, pd.DataFrame]
    evaluations: dict[str, Evaluation]
    differences: dict[str, Difference] = field(default_factory=dict)
    """Fused less each other model, on the same resampled patients."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """One row a model: AUROC and AUPRC with intervals, and how far fused lies above it."""
        rows = []
        for name, evaluation in self.evaluations.items():
            gap = self.differences.get(name)
            rows.append(
                {
                    "model": name,
                    "AUROC": evaluation.cell(self.outcome, "AUROC"),
                    "AUPRC": evaluation.cell(self.outcome, "AUPRC"),
                    "fused less this": "" if gap is None else f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})",
                }
            )
        return pd.DataFrame(rows)

    @property
    def verdict(self) -> str:
        """A sentence that says whether fusion helped here."""
        singles = [name for name in self.evaluations if name.endswith(" alone")]
        if not singles:
            return "There is only one modality, so there is nothing to fuse."
        best = max(singles, key=lambda name: self.evaluations[name].value(self.outcome, "AUROC"))
        gap = self.differences[best]
        interval = f"by {gap.value:+.3f} AUROC (95 % interval {gap.low:+.3f} to {gap.high:+.3f})"
        if gap.low > 0:
            return f"Fusion helped here: it differs from the best single modality ({best}) {interval}."
        if gap.high < 0:
            return f"Fusion hurt here: it differs from the best single modality ({best}) {interval}."
        return (
            f"These data do not show that fusion helps: it differs from the best single modality ({best}) "
            f"{interval}, which includes zero."
        )


def variants(recipe: Recipe, train: Cohort, *, pairs: bool) -> dict[str, FusionModel]:
    """The recipe's model, its modalities alone (and in pairs), and with each other fusion head.

    Args:
        recipe: the recipe.
        train: training patients.
        pairs: whether to build pairs of modalities too.

    Returns:
        Models that are not trained yet, by name; the recipe's own is "fused".
    """
    from ..fusion import ConcatenationFusion

    whole = recipe.model(train)
    names = whole.modalities
    models = {FUSED: whole}
    sizes = [1] if len(names) > 1 else []
    sizes += [2] if pairs and len(names) > 2 else []
    for size in sizes:
        for chosen in combinations(names, size):
            models[" + ".join(chosen) + (" alone" if size == 1 else "")] = restricted(recipe.model(train), chosen)
    if len(names) > 1:
        plain = ConcatenationFusion(whole.fusion.width)
        models[CONCATENATION] = restricted(recipe.model(train), names, fusion=plain)
    return models


def restricted(model: FusionModel, modalities: Sequence[str], *, fusion: object = None) -> FusionModel:
    """An untrained model with only some of its encoders, or with another fusion head.

    Raises:
        InputError: a modality that the model does not read.
    """
    from ..fusion import FusionModel

    unknown = sorted(set(modalities) - set(model.modalities))
    if unknown:
        raise InputError(f"The model does not read {unknown[0]!r}; it reads {', '.join(model.modalities)}.")
    return FusionModel(
        **{name: model.encoders[name] for name in modalities},
        fusion=fusion or model.fusion,
        outcomes=model.outcomes,
        modality_dropout=model.modality_dropout if len(modalities) > 1 else 0.0,
        auxiliary=model.auxiliary,
    )


def compare(
    recipe: Recipe,
    parts: tuple[Cohort, Cohort, Cohort],
    models: Mapping[str, FusionModel],
    *,
    resamples: int = 1000,
    say: object = print,
) -> Comparison:
    """Train every model on the same patients and evaluate it on the same held-out ones.

    All patients count for every model: one that lacks what a model reads gets the risk that the
    model has learned for that absence.

    Args:
        recipe: gives the arguments of `fit`.
        parts: training, validation and held-out patients.
        models: from `variants`, trained in place.
        resamples: of patients, for the intervals.
        say: called with a line of text as each model is done.

    Raises:
        InputError: the first outcome is not binary.
    """
    import time

    from ..fusion import evaluate, fit, paired_difference
    from ..fusion.baselines import BASELINES, baseline_risks

    train, valid, test = parts
    outcome = next((name for name, kind in train.outcome_kinds.items() if kind == "binary"), None)
    if outcome is None:
        raise InputError("Models are compared by AUROC, and this cohort has no binary outcome.")
    risks: dict[str, pd.DataFrame] = {}
    evaluations: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    for name, model in models.items():
        began = time.perf_counter()
        fit(model, train, valid, **recipe.training())
        risks[name] = unrefused_risks(model, test)
        seconds[name] = time.perf_counter() - began
        evaluations[name] = evaluate(risks[name], test, resamples=resamples)
        say(f"  {name:<24} AUROC {evaluations[name].cell(outcome, 'AUROC')}  {seconds[name]:.0f} s")
    if train.labs is not None or train.static is not None:
        for name in BASELINES:
            began = time.perf_counter()
            risks[name] = baseline_risks(name, train, test, outcome)
            seconds[name] = time.perf_counter() - began
            evaluations[name] = evaluate(risks[name], test, resamples=resamples)
            say(f"  {name:<24} AUROC {evaluations[name].cell(outcome, 'AUROC')}  {seconds[name]:.0f} s")
    differences = {
        name: paired_difference(risks[FUSED], own, test, outcome=outcome, resamples=resamples)
        for name, own in risks.items()
        if name != FUSED
    }
    return Comparison(outcome, risks, evaluations, differences, seconds)


def unrefused_risks(model: FusionModel, cohort: Cohort) -> pd.DataFrame:
    """Risks for all samples, also where `predict` would refuse one because nothing is known."""
    from ..datasets.prepared import prepare
    from ..fusion import predict
    from ..fusion.inference import NOTHING_KNOWN, infer

    risks = predict(model, cohort)
    values = infer(model, prepare(cohort, model.readers)).ravel()
    unknown = (risks["status"] == NOTHING_KNOWN).to_numpy() & np.isfinite(values)
    risks.loc[unknown, "risk"], risks.loc[unknown, "status"] = values[unknown], "ok"
    return risks


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the table as `comparison.csv` and what lies behind it as `comparison.json`."""
    import json

    from ..fusion.artifact import write_whole

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "comparison.csv", comparison.table.to_csv(index=False))
    detail = {
        "outcome": comparison.outcome,
        "verdict": comparison.verdict,
        "evaluations": {name: own.to_dict() for name, own in comparison.evaluations.items()},
        "seconds": comparison.seconds,
    }
    write_whole(folder / "comparison.json", json.dumps(detail, indent=2) + "\n")

"""Does fusion help here? Each modality alone, pairs, all, each fusion head, and the plain baselines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..datasets.errors import InputError
from .missing_modalities import Missingness, missingness
from .recipe import Recipe
from .variants import ALONE, FUSED, Parts, Trained, train_all, variants

if TYPE_CHECKING:
    from ..datasets import Cohort
    from ..fusion import Evaluation, FusionModel
    from ..fusion.evaluation import Difference

Say = Callable[[object], None]


@dataclass(frozen=True)
class Comparison:
    """Risks and metrics of several models on the same held-out patients."""

    outcome: str
    test: Cohort
    resamples: int
    risks: dict[str, pd.DataFrame] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    """Fused less each other model, on the same resampled patients."""
    seconds: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    """What the fused model's readers left out, of training and of held-out patients."""
    missingness: Missingness | None = None
    """How much each modality is missed; None where there is only one."""

    def with_model(self, name: str, risks: pd.DataFrame, seconds: float = 0.0) -> Comparison:
        """The same with one more model; the first is "fused"."""
        from ..fusion import evaluate, paired_difference

        settings = {"resamples": self.resamples}
        differences = dict(self.differences)
        if name != FUSED:
            differences[name] = paired_difference(self.risks[FUSED], risks, self.test, outcome=self.outcome, **settings)
        return replace(
            self,
            risks=self.risks | {name: risks},
            evaluations=self.evaluations | {name: evaluate(risks, self.test, **settings)},
            differences=differences,
            seconds=self.seconds | {name: seconds},
        )

    def with_missingness(self, without: Mapping[str, Mapping[str, pd.DataFrame]]) -> Comparison:
        """The same with curves of modalities that go missing; `without` as `missingness` takes it."""
        found = missingness(self.risks, without, self.test, outcome=self.outcome, resamples=self.resamples)
        return replace(self, missingness=found)

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
                    "fused less this": "" if gap is None else _gap(gap),
                }
            )
        return pd.DataFrame(rows)

    @property
    def verdict(self) -> str:
        """A sentence that says whether fusion helped here."""
        singles = [name for name in self.evaluations if name.endswith(ALONE)]
        if not singles:
            return "There is only one modality, so there is nothing to fuse."
        best = max(singles, key=lambda name: self.evaluations[name].value(self.outcome, "AUROC"))
        gap = self.differences[best]
        found = f"it differs from the best single modality ({best}) by {gap.value:+.3f} AUROC"
        if np.isnan(gap.low):
            return f"Whether fusion helped here cannot be told without resamples: {found}, with no interval."
        found += f" ({100 * gap.level:g} % interval {gap.low:+.3f} to {gap.high:+.3f})"
        if gap.low > 0:
            return f"Fusion helped here: {found}."
        if gap.high < 0:
            return f"Fusion hurt here: {found}."
        return f"These data do not show that fusion helps: {found}, which includes zero."


def _gap(gap: Difference) -> str:
    """How far fused lies above another model, as a cell of the table."""
    if np.isnan(gap.value):
        return "undefined"
    return f"{gap.value:+.3f}" + ("" if np.isnan(gap.low) else f" ({gap.low:+.3f} to {gap.high:+.3f})")


def first_binary(cohort: Cohort) -> str | None:
    """The outcome that models are compared by and pictures are drawn of: the first binary one."""
    return next((name for name, kind in cohort.outcome_kinds.items() if kind == "binary"), None)


def require_binary(cohort: Cohort) -> str:
    """The first binary outcome.

    Raises:
        InputError: there is none.
    """
    outcome = first_binary(cohort)
    if outcome is None:
        raise InputError("Models are compared by AUROC, and this cohort has no binary outcome.")
    return outcome


def compare(
    recipe: Recipe,
    parts: Parts,
    models: dict[str, FusionModel],
    *,
    resamples: int = 1000,
    jobs: int = 1,
    say: Say = print,
) -> Comparison:
    """Train every model on the same patients and evaluate it on the same held-out ones.

    All patients count for every model: one that lacks what a model reads gets the risk that the
    model has learned for that absence.

    Args:
        recipe: gives the arguments of `fit`.
        parts: training, validation and held-out patients.
        models: from `variants`; the recipe's own is trained when this returns.
        resamples: of patients, for the intervals.
        jobs: models that are trained at a time, each by a process of its own.
        say: called with a line of text as each model is done.

    Raises:
        InputError: no outcome is binary, or one of which held-out patients have no label, or labels of one class.
    """
    from ..fusion import evaluate
    from ..fusion.matching import require_labels

    comparison = Comparison(require_binary(parts[0]), parts[2], resamples)
    # Before hours of training.
    require_labels(comparison.test, models[FUSED].outcomes)
    ready: dict[str, Trained] = {}
    for own in train_all(recipe, parts, models, comparison.outcome, jobs=jobs):
        ready[own.name] = own
        auroc = evaluate(own.risks, comparison.test, resamples=0).value(comparison.outcome, "AUROC")
        say(f"  {own.name:<24} AUROC {auroc:.3f}  {own.seconds:.0f} s")
    for name in _in_order(models, ready):
        comparison = comparison.with_model(name, ready[name].risks, ready[name].seconds)
    without = {name: own.without for name, own in ready.items() if own.without}
    return replace(comparison.with_missingness(without), remarks=tuple(comparison.risks[FUSED].attrs["remarks"]))


def compare_by_folds(
    recipe: Recipe,
    cohort: Cohort,
    *,
    pairs: bool,
    heads: Sequence[str] | None = None,
    resamples: int,
    jobs: int = 1,
    say: Say,
) -> Comparison:
    """The same where patients are few: each is predicted by models of the folds that never saw the patient.

    Args:
        recipe: with a setting `folds`.
        cohort: as the recipe reads it.
        pairs: whether to train pairs of modalities too.
        heads: fusion heads to train besides the recipe's own, by name; every one unless given.
        resamples: of patients, for the intervals.
        jobs: models that are trained at a time.
        say: called with a line of text as each fold is done.

    Raises:
        InputError: no outcome is binary, an outcome that cannot be evaluated, no head of such a name, or fewer
            patients than folds.
    """
    from ..fusion.matching import require_labels

    comparison = Comparison(require_binary(cohort), cohort, resamples)
    risks: dict[str, list[pd.DataFrame]] = {}
    without: dict[str, dict[str, list[pd.DataFrame]]] = {}
    seconds: dict[str, float] = {}
    remarks: list[str] = []
    folds = recipe.settings.folds
    for number, (rest, fold) in enumerate(cohort.folds(folds, seed=recipe.settings.seed), 1):
        models = variants(recipe, rest, pairs=pairs, heads=heads)
        require_labels(cohort, models[FUSED].outcomes)
        parts = (rest, None, fold)
        ready = {own.name: own for own in train_all(recipe, parts, models, comparison.outcome, jobs=jobs)}
        for name in _in_order(models, ready):
            risks.setdefault(name, []).append(ready[name].risks)
            seconds[name] = seconds.get(name, 0.0) + ready[name].seconds
            for modality, own in ready[name].without.items():
                without.setdefault(name, {}).setdefault(modality, []).append(own)
        remarks += [f"fold {number}: {remark}" for remark in risks[FUSED][-1].attrs["remarks"]]
        say(f"  fold {number} of {folds}: {len(risks)} models trained on {rest.subjects} patients")
    for name, own in risks.items():
        comparison = comparison.with_model(name, pd.concat(own, ignore_index=True), seconds[name])
    joined = {
        name: {modality: pd.concat(own, ignore_index=True) for modality, own in of_model.items()}
        for name, of_model in without.items()
    }
    return replace(comparison.with_missingness(joined), remarks=tuple(remarks))


def _in_order(models: dict[str, FusionModel], ready: dict[str, Trained]) -> list[str]:
    """The fused model first, as the others are held against it, and the baselines last."""
    return [*models, *sorted(set(ready) - set(models))]


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the table as `comparison.csv`, the curves as `missingness.csv`, and what lies behind as JSON."""
    from ..fusion.artifact import write_whole

    write_whole(folder / "comparison.csv", comparison.table.to_csv(index=False))
    missing = comparison.missingness
    if missing is not None:
        write_whole(folder / "missingness.csv", missing.table.to_csv(index=False))
    detail = {
        "outcome": comparison.outcome,
        "verdict": comparison.verdict,
        "missingness": missing and missing.verdict,
        "evaluations": {name: own.to_dict() for name, own in comparison.evaluations.items()},
        "seconds": comparison.seconds,
        "remarks": list(comparison.remarks),
    }
    write_whole(folder / "comparison.json", json.dumps(detail, indent=2) + "\n")

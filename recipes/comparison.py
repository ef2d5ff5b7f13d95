"""Does fusion help here? Each modality alone, pairs, all, each fusion head, and the plain baselines."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    from ..fusion.state import Fusion

Say = Callable[[object], None]
FUSED = "fused"


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
        singles = [name for name in self.evaluations if name.endswith(" alone")]
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


def variants(recipe: Recipe, train: Cohort, *, pairs: bool) -> dict[str, FusionModel]:
    """The recipe's model, its modalities alone (and in pairs), and with each other fusion head.

    Args:
        recipe: the recipe.
        train: training patients.
        pairs: whether to build pairs of modalities too.

    Returns:
        Models that are not trained yet, by name; the recipe's own is "fused".
    """
    from ..fusion.model import FUSIONS

    whole = recipe.model(train)
    names = whole.modalities
    models = {FUSED: whole}
    sizes = [1] if len(names) > 1 else []
    sizes += [2] if pairs and len(names) > 2 else []
    for size in sizes:
        for chosen in combinations(names, size):
            models[" + ".join(chosen) + (" alone" if size == 1 else "")] = restricted(recipe.model(train), chosen)
    for name, head in FUSIONS.items() if len(names) > 1 else ():
        if type(whole.fusion) is not head:
            models[name] = restricted(recipe.model(train), names, fusion=_like(head, whole.fusion))
    return models


def _like(head: type[Fusion], own: Fusion) -> Fusion:
    """Another head with what it has in common with the recipe's own, so that heads are compared and not sizes."""
    known = inspect.signature(head).parameters
    return head(**{name: value for name, value in own.describe().items() if name in known})


def restricted(model: FusionModel, modalities: Sequence[str], *, fusion: Fusion | None = None) -> FusionModel:
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
    say: Say = print,
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
        InputError: no outcome is binary.
    """
    comparison = Comparison(require_binary(parts[0]), parts[2], resamples)
    for name, risks, seconds in _trained_risks(recipe, parts, models, comparison.outcome):
        comparison = comparison.with_model(name, risks, seconds)
        auroc = comparison.evaluations[name].cell(comparison.outcome, "AUROC")
        say(f"  {name:<24} AUROC {auroc}  {seconds:.0f} s")
    return replace(comparison, remarks=tuple(comparison.risks[FUSED].attrs["remarks"]))


def compare_by_folds(recipe: Recipe, cohort: Cohort, *, pairs: bool, resamples: int, say: Say) -> Comparison:
    """The same where patients are few: each is predicted by models of the folds that never saw the patient.

    Args:
        recipe: with a setting `folds`.
        cohort: as the recipe reads it.
        pairs: whether to train pairs of modalities too.
        resamples: of patients, for the intervals.
        say: called with a line of text as each fold is done.

    Raises:
        InputError: no outcome is binary, or fewer patients than folds.
    """
    comparison = Comparison(require_binary(cohort), cohort, resamples)
    risks: dict[str, list[pd.DataFrame]] = {}
    seconds: dict[str, float] = {}
    remarks: list[str] = []
    folds = recipe.settings.folds
    for number, (rest, fold) in enumerate(cohort.folds(folds, seed=recipe.settings.seed), 1):
        models = variants(recipe, rest, pairs=pairs)
        for name, own, took in _trained_risks(recipe, (rest, None, fold), models, comparison.outcome):
            risks.setdefault(name, []).append(own)
            seconds[name] = seconds.get(name, 0.0) + took
        remarks += [f"fold {number}: {remark}" for remark in risks[FUSED][-1].attrs["remarks"]]
        say(f"  fold {number} of {folds}: {len(risks)} models trained on {rest.subjects} patients")
    for name, own in risks.items():
        comparison = comparison.with_model(name, pd.concat(own, ignore_index=True), seconds[name])
    return replace(comparison, remarks=tuple(remarks))


def _trained_risks(
    recipe: Recipe,
    parts: tuple[Cohort, Cohort | None, Cohort],
    models: Mapping[str, FusionModel],
    outcome: str,
) -> Iterator[tuple[str, pd.DataFrame, float]]:
    """Name, risks of the held-out patients and seconds of each model and of the baselines, trained here."""
    from ..fusion import fit
    from ..fusion.baselines import BASELINES, baseline_risks

    train, valid, test = parts
    for name, model in models.items():
        began = time.perf_counter()
        history = fit(model, train, valid, **recipe.training())
        risks = unrefused_risks(model, test)
        risks.attrs["remarks"] = [*(f"in training, {remark}" for remark in history.remarks), *risks.attrs["remarks"]]
        yield name, risks, time.perf_counter() - began
    if train.labs is not None or train.static is not None:
        for name in BASELINES:
            began = time.perf_counter()
            risks = baseline_risks(name, train, test, outcome, valid=valid)
            yield name, risks, time.perf_counter() - began


def unrefused_risks(model: FusionModel, cohort: Cohort) -> pd.DataFrame:
    """Risks for all samples, also where `predict` would refuse one because nothing is known."""
    from ..fusion import predict
    from ..fusion.inference import NOTHING_KNOWN, infer

    risks = predict(model, cohort)
    values = infer(model, model.read(cohort)).ravel()
    unknown = (risks["status"] == NOTHING_KNOWN).to_numpy() & np.isfinite(values)
    risks.loc[unknown, "risk"], risks.loc[unknown, "status"] = values[unknown], "ok"
    return risks


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the table as `comparison.csv` and what lies behind it as `comparison.json`."""
    from ..fusion.artifact import write_whole

    write_whole(folder / "comparison.csv", comparison.table.to_csv(index=False))
    detail = {
        "outcome": comparison.outcome,
        "verdict": comparison.verdict,
        "evaluations": {name: own.to_dict() for name, own in comparison.evaluations.items()},
        "seconds": comparison.seconds,
        "remarks": list(comparison.remarks),
    }
    write_whole(folder / "comparison.json", json.dumps(detail, indent=2) + "\n")

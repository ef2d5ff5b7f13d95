"""Evaluating runs and comparing models: what is printed, and the report that is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .comparison import FUSED, Comparison, compare, variants, write_comparison
from .cross_validation import is_cross_validated, score_cross_validation
from .recipe import Recipe
from .runs import Run

if TYPE_CHECKING:
    from ..datasets import Cohort

Say = Callable[[object], None]


def score_run(run: Run, data: Path, *, baselines: bool, resamples: int, say: Say) -> None:
    """Print and write the metrics of a run on its held-out patients.

    Args:
        run: a trained run.
        data: the data it was trained on.
        baselines: whether to fit logistic regression and boosting on the same patients beside it.
        resamples: of patients, for the intervals.
        say: prints a line.
    """
    from ..fusion import evaluate, paired_difference
    from ..fusion.report import Report, write_report

    if is_cross_validated(run.recipe):
        risks = score_cross_validation(run, data, resamples=resamples, say=say)
        test = run.recipe.read(data)
        outcome = first_binary(test)
    else:
        risks, test, outcome = _held_out_risks(run, data, baselines=baselines)
    first = next(iter(risks))
    evaluations = {name: evaluate(own, test, resamples=resamples) for name, own in risks.items()}
    for remark in risks[first].attrs.get("remarks", ()):
        say(f"left out: {remark}")
    say(evaluations[first])
    differences = {}
    for name, own in risks.items():
        if name == first:
            continue
        say(
            f"\n{name}: AUROC {evaluations[name].cell(outcome, 'AUROC')}, "
            f"AUPRC {evaluations[name].cell(outcome, 'AUPRC')}"
        )
        differences[f"{first} less {name}"] = paired_difference(
            risks[first], own, test, outcome=outcome, resamples=resamples
        )
        say(f"  {first} less {name}: {differences[f'{first} less {name}']}")
    evaluations[first].to_json(run.folder / "evaluation.json")
    report = Report(
        title=f"{run.recipe.name}: held-out patients",
        evaluations=evaluations,
        synthetic=run.recipe.name == "demo",
        differences=differences,
        curves=curves(risks, test, outcome),
        curves_outcome=outcome or "",
        attrition=test.attrition,
        history=read_history(run.folder),
    )
    write_report(report, run.folder / "report.html")
    say(f"\nThe report is {run.folder / 'report.html'}.")


def _held_out_risks(run: Run, data: Path, *, baselines: bool) -> tuple[dict[str, pd.DataFrame], Cohort, str | None]:
    """Risks of the held-out patients from the run's model and from the baselines, and those patients."""
    from ..fusion import predict
    from ..fusion.baselines import BASELINES, baseline_risks

    model = run.model()
    train, _, test = run.recipe.divide(run.recipe.read(data))
    run.refuse_training_patients(test)
    risks = {FUSED: predict(model, test)}
    outcome = first_binary(test)
    if baselines and outcome and (train.labs is not None or train.static is not None):
        risks |= {name: baseline_risks(name, train, test, outcome) for name in BASELINES}
    return risks, test, outcome


def first_binary(cohort: Cohort) -> str | None:
    """The outcome that pictures are drawn of: the first binary one."""
    return next((name for name, kind in cohort.outcome_kinds.items() if kind == "binary"), None)


def compare_recipe(recipe: Recipe, data: Path, out: Path, *, pairs: bool, resamples: int, say: Say) -> Comparison:
    """Train all variants of a recipe, print the table and the verdict, write both and a report."""
    from ..fusion.report import Report, write_report

    cohort = recipe.read(data)
    say(cohort.attrition.to_string(index=False))
    parts = recipe.divide(cohort)
    comparison = compare(recipe, parts, variants(recipe, parts[0], pairs=pairs), resamples=resamples, say=say)
    say("\n" + comparison.table.to_string(index=False))
    say("\n" + comparison.verdict)
    write_comparison(comparison, out)
    report = Report(
        title=f"{recipe.name}: does fusion help here?",
        evaluations=comparison.evaluations,
        summary=comparison.verdict,
        synthetic=recipe.name == "demo",
        differences={f"{FUSED} less {name}": gap for name, gap in comparison.differences.items()},
        curves=curves(comparison.risks, parts[2], comparison.outcome),
        curves_outcome=comparison.outcome,
        attrition=parts[2].attrition,
    )
    write_report(report, out / "report.html")
    say(f"\nThe table is {out / 'comparison.csv'}, the report {out / 'report.html'}.")
    return comparison


def curves(
    risks: dict[str, pd.DataFrame], test: Cohort, outcome: str | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Risks and labels of each model, for the report's plots."""
    from ..fusion.matching import labelled_risks

    if outcome is None:
        return {}
    matched = {name: labelled_risks(own, test, outcome=outcome) for name, own in risks.items()}
    return {name: (own.risk, own.label) for name, own in matched.items()}


def read_history(folder: Path) -> list[dict[str, float]]:
    """The epochs of a run, as `fit` wrote them."""
    import json

    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

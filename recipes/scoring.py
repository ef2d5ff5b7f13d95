"""Evaluating runs and comparing models: what is printed, and the report that is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .comparison import Comparison, Say, compare, compare_by_folds, first_binary, write_comparison
from .cross_validation import NOTICE, cross_validated_risks
from .recipe import Recipe
from .runs import Run
from .variants import FUSED, known_heads, variants

if TYPE_CHECKING:
    from ..datasets import Cohort
    from ..fusion.report import Report


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
    from ..fusion.checkpoint import read_history
    from ..fusion.report import Report, write_report

    notice = ""
    if run.recipe.is_cross_validated:
        risks, test = cross_validated_risks(run, data)
        notice = f"{test.subjects} patients, each predicted by models that never saw the patient. {NOTICE}"
    else:
        risks, test = _held_out_risks(run, data, baselines=baselines)
    outcome = first_binary(test)
    first = next(iter(risks))
    evaluations = {name: evaluate(own, test, resamples=resamples) for name, own in risks.items()}
    remarks = all_remarks(test, risks[first].attrs.get("remarks", ()))
    for remark in remarks:
        say(f"left out: {remark}")
    say(f"{first}:")
    say(evaluations[first])
    differences = {}
    for name in list(risks)[1:]:
        auroc, auprc = (evaluations[name].cell(outcome, metric) for metric in ("AUROC", "AUPRC"))
        say(f"\n{name}: AUROC {auroc}, AUPRC {auprc}")
        gap = paired_difference(risks[first], risks[name], test, outcome=outcome, resamples=resamples)
        differences[f"{first} less {name}"] = gap
        say(f"  {first} less {name}: {gap}")
    if notice:
        say(f"\n{notice}")
    evaluations[first].to_json(run.folder / "evaluation.json")
    report = Report(
        title=f"{run.recipe.name}: held-out patients",
        evaluations=evaluations,
        summary=notice,
        synthetic=run.recipe.name == "demo",
        differences=differences,
        curves=curves(risks, test, outcome),
        curves_outcome=outcome or "",
        attrition=test.attrition,
        remarks=remarks,
        history=read_history(run.folder),
    )
    write_report(report, run.folder / "report.html")
    say(f"\nThe report is {run.folder / 'report.html'}.")


def _held_out_risks(run: Run, data: Path, *, baselines: bool) -> tuple[dict[str, pd.DataFrame], Cohort]:
    """Risks of the held-out patients from the run's model and from the baselines, and those patients."""
    from ..fusion import predict
    from ..fusion.baselines import BASELINES, baseline_risks

    model = run.model()
    train, valid, test = run.recipe.divide(run.recipe.read(data))
    run.refuse_training_patients(test)
    risks = {FUSED: predict(model, test)}
    outcome = first_binary(test)
    if baselines and outcome and (train.labs is not None or train.static is not None):
        risks |= {name: baseline_risks(name, train, test, outcome, valid=valid) for name in BASELINES}
    return risks, test


def all_remarks(cohort: Cohort, of_readers: Sequence[str]) -> tuple[str, ...]:
    """What was left out on the way to risks, counted: rows of the cohort's tables, and what readers could not use."""
    rows = Counter((left_out.table, left_out.reason) for left_out in cohort.exclusions)
    return (*(f"{table}: {count} rows, because {reason}" for (table, reason), count in rows.items()), *of_readers)


def compare_recipe(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    pairs: bool,
    heads: Sequence[str] | None = None,
    resamples: int,
    jobs: int = 1,
    say: Say,
) -> Comparison:
    """Train all variants of a recipe, print the table and the verdict, write both and a report.

    Args:
        recipe: the recipe.
        data: its data.
        out: folder for the tables and the report.
        pairs: whether to train pairs of modalities too.
        heads: fusion heads to train besides the recipe's own, by name; every one unless given.
        resamples: of patients, for the intervals.
        jobs: models that are trained at a time.
        say: prints a line.

    Raises:
        InputError: no outcome is binary, or no head has such a name.
    """
    from ..fusion.processes import is_main_process
    from ..fusion.report import write_report

    # A wrong name is told before anything is read.
    known_heads(heads)
    cohort = recipe.read(data)
    say(cohort.attrition.to_string(index=False))
    if recipe.is_cross_validated:
        comparison = compare_by_folds(recipe, cohort, pairs=pairs, heads=heads, resamples=resamples, jobs=jobs, say=say)
    else:
        parts = recipe.divide(cohort)
        models = variants(recipe, parts[0], pairs=pairs, heads=heads)
        comparison = compare(recipe, parts, models, resamples=resamples, jobs=jobs, say=say)
    remarks = all_remarks(comparison.test, comparison.remarks)
    _say_comparison(comparison, remarks, say)
    if is_main_process():
        write_comparison(comparison, out)
        write_report(_comparison_report(recipe, comparison, remarks), out / "report.html")
        say(f"\nThe table is {out / 'comparison.csv'}, the report {out / 'report.html'}.")
    return comparison


def _say_comparison(comparison: Comparison, remarks: Sequence[str], say: Say) -> None:
    for remark in remarks:
        say(f"left out: {remark}")
    say("\n" + comparison.table.to_string(index=False))
    missing = comparison.missingness
    if missing is not None:
        say("\nAUROC of fused, each modality withheld from a share of the patients who have it:")
        say(missing.summary.to_string(index=False))
        say(missing.verdict)
    say("\n" + comparison.verdict)


def _comparison_report(recipe: Recipe, comparison: Comparison, remarks: Sequence[str]) -> Report:
    from ..fusion.report import Report

    missing = comparison.missingness
    return Report(
        title=f"{recipe.name}: does fusion help here?",
        evaluations=comparison.evaluations,
        summary=comparison.verdict,
        synthetic=recipe.name == "demo",
        differences={f"{FUSED} less {name}": gap for name, gap in comparison.differences.items()},
        curves=curves(comparison.risks, comparison.test, comparison.outcome),
        curves_outcome=comparison.outcome,
        missingness=missing and missing.table,
        missingness_verdict=missing.verdict if missing else "",
        attrition=comparison.test.attrition,
        remarks=remarks,
    )


def curves(
    risks: Mapping[str, pd.DataFrame], test: Cohort, outcome: str | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Risks and labels of each model, for the report's plots."""
    from ..fusion.matching import labelled_risks

    if outcome is None:
        return {}
    matched = {name: labelled_risks(own, test, outcome=outcome) for name, own in risks.items()}
    return {name: (own.risk, own.label) for name, own in matched.items()}

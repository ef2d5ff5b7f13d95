"""Scores where patients are few: every patient is predicted by models that never saw the patient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from .recipe import Recipe
from .runs import Run, write_risks

if TYPE_CHECKING:
    from ..datasets import Cohort


def is_cross_validated(recipe: Recipe) -> bool:
    """Whether the recipe says what its cross-validation is repeated with."""
    return hasattr(recipe.module, "VARIANTS")


def cross_validate(run: Run, data: Path, *, say: Callable[[object], None]) -> None:
    """Train every variant on every fold, and keep the risks of the fold's patients.

    A fold whose risks are there already is not trained again, so that a stopped run goes on.

    Args:
        run: of a recipe with `VARIANTS`, and with `folds` and `repeats` in its settings.
        data: the recipe's data.
        say: prints a line.
    """
    from ..fusion import fit, predict

    for name, recipe in _variants(run.recipe).items():
        cohort = recipe.read(data)
        for repeat in range(recipe.settings.repeats):
            folds = cohort.folds(recipe.settings.folds, seed=recipe.settings.seed + repeat)
            for number, (rest, fold) in enumerate(folds):
                path = _fold_path(run, name, repeat, number)
                if path.is_file():
                    continue
                # Too few patients for a validation part that means something: a fixed number of epochs.
                model = recipe.model(rest)
                fit(model, rest, None, **recipe.training(), progress=False)
                write_risks(predict(model, fold), path)
            say(f"cross-validation {name}: repeat {repeat + 1} of {recipe.settings.repeats} done")


def out_of_fold_risks(run: Run, name: str) -> pd.DataFrame:
    """The risk of every sample of one variant, mean over repeats, each by models that never saw the patient."""
    settings = run.recipe.settings
    paths = [_fold_path(run, name, r, k) for r in range(settings.repeats) for k in range(settings.folds)]
    table = pd.concat([pd.read_csv(path, dtype={"subject_id": "str"}) for path in paths], ignore_index=True)
    keys = ["subject_id", "prediction_time", "outcome"]
    assert (table.groupby(keys).size() == settings.repeats).all(), "each repeat predicts each sample once"
    return table.groupby(keys, as_index=False).agg({"risk": "mean", "status": "first"})


def confounder_risks(told: pd.Series, cohort: Cohort, outcome: str, folds: int, seed: int) -> pd.DataFrame:
    """Risks from one thing that should not predict the outcome, such as the source of an image.

    Logistic regression on its values, by the same kind of folds as the model.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    values = told.astype(object).where(told.notna(), "unknown").to_frame().to_numpy()
    keyed = pd.Series(list(values), index=pd.MultiIndex.from_frame(cohort.outcomes[["subject_id", "prediction_time"]]))
    parts = []
    for rest, fold in cohort.folds(folds, seed=seed):
        classifier = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
        inputs = [
            [
                list(keyed[key])
                for key in zip(part.outcomes["subject_id"], part.outcomes["prediction_time"], strict=True)
            ]
            for part in (rest, fold)
        ]
        classifier.fit(inputs[0], rest.outcomes[outcome])
        risk = classifier.predict_proba(inputs[1])[:, 1]
        parts.append(fold.outcomes[["subject_id", "prediction_time"]].assign(outcome=outcome, risk=risk, status="ok"))
    return pd.concat(parts, ignore_index=True)


def _variants(recipe: Recipe) -> Mapping[str, Recipe]:
    return {
        name: dataclasses.replace(recipe, settings=dataclasses.replace(recipe.settings, **changes))
        for name, changes in recipe.module.VARIANTS.items()
    }


def _fold_path(run: Run, name: str, repeat: int, number: int) -> Path:
    return run.folder / "folds" / f"{name.replace(' ', '-')}-{repeat}-{number}.csv"


def score_cross_validation(
    run: Run, data: Path, *, resamples: int, say: Callable[[object], None]
) -> dict[str, pd.DataFrame]:
    """Print the metrics of every variant and of the confounders; returns the risks by name.

    Args:
        run: a run whose folds are done.
        data: the recipe's data.
        resamples: of patients, for the intervals.
        say: prints a line.
    """
    from ..fusion import evaluate

    cohort = run.recipe.read(data)
    outcome = next(iter(cohort.outcome_kinds))
    settings = run.recipe.settings
    risks = {name: out_of_fold_risks(run, name) for name in run.recipe.module.VARIANTS}
    for name, told in run.recipe.module.sources(data, cohort).items():
        risks[f"{name} alone"] = confounder_risks(told, cohort, outcome, settings.folds, settings.seed)
    say(f"{cohort.subjects} patients, each predicted by models that never saw the patient:")
    for name, own in risks.items():
        evaluation = evaluate(own, cohort, resamples=resamples)
        say(f"  {name:<16} AUROC {evaluation.cell(outcome, 'AUROC')}  AUPRC {evaluation.cell(outcome, 'AUPRC')}")
    say(
        "What is named alone should not predict the outcome. Where it does as well as the model, the model may have "
        "learned the source of the data, and the score says nothing of another hospital."
    )
    return risks

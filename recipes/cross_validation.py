"""Scores where patients are few: every patient is predicted by models that never saw the patient."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..datasets.errors import InputError
from ..datasets.files import read_table
from ..datasets.fingerprints import hash_tables
from .comparison import require_binary
from .recipe import Recipe
from .runs import Run, write_risks
from .variants import ALONE

if TYPE_CHECKING:
    from ..datasets import Cohort


_THRESHOLD = {"value": 0.5, "chosen": "the default; a fold leaves no validation patients to choose one on"}
_SAMPLE = ["subject_id", "prediction_time"]
_COLUMNS = (*_SAMPLE, "outcome", "risk", "status")


def cross_validate(run: Run, data: Path, *, say: Callable[[object], None]) -> None:
    """Train every variant on every fold, and keep the risks of the fold's patients.

    A fold whose risks are there already, for the same data and settings, is not trained again, so
    that a stopped run goes on.

    Args:
        run: of a recipe with `VARIANTS`, and with `folds` and `repeats` in its settings.
        data: the recipe's data.
        say: prints a line.
    """
    from ..fusion import fit, predict
    from ..fusion.processes import is_main_process

    # As the run is computed, so are its folds; a tracker tells of the model that is kept.
    computed = {name: value for name, value in run.keeping.items() if name != "trackers"}
    for name, recipe in _variants(run.recipe).items():
        cohort = recipe.read(data)
        paths = _fold_paths(run, name, recipe, cohort)
        for repeat in range(recipe.settings.repeats):
            folds = cohort.folds(recipe.settings.folds, seed=recipe.settings.seed + repeat)
            for number, (rest, fold) in enumerate(folds):
                path = paths[repeat, number]
                if path.is_file():
                    continue
                # Too few patients for a validation part that means something: a fixed number of epochs.
                model = recipe.model(rest)
                fit(model, rest, None, **recipe.training(kept=False) | computed | {"progress": False})
                if is_main_process():
                    write_risks(predict(model, fold), path)
            say(f"cross-validation {name}: repeat {repeat + 1} of {recipe.settings.repeats} done")


def out_of_fold_risks(run: Run, name: str, recipe: Recipe, cohort: Cohort) -> pd.DataFrame:
    """The risk of every sample by one variant, mean over repeats, each by models that never saw the patient.

    Args:
        run: where the folds were kept.
        name: of the variant.
        recipe: with the variant's settings.
        cohort: as the recipe reads it.

    Raises:
        InputError: folds of these data and settings are not there, or are damaged.
    """
    paths = list(_fold_paths(run, name, recipe, cohort).values())
    missing = sum(not path.is_file() for path in paths)
    if missing:
        raise InputError(
            f"The run is not finished: of the {len(paths)} folds {name}, {missing} are not there for these data, "
            "settings and recipe. Run chiasm train again with the same --data and --out."
        )
    table = pd.concat([_read_fold(path) for path in paths], ignore_index=True)
    by_sample = table.groupby([*_SAMPLE, "outcome"])
    wanted = len(cohort) * sum(len(kind.columns(outcome)) for outcome, kind in cohort.outcome_kinds.items())
    if len(by_sample) != wanted or (by_sample.size() != recipe.settings.repeats).any():
        raise InputError(
            f"The folds in {paths[0].parent} do not predict each sample once a repeat. Remove them, and run chiasm "
            "train again."
        )
    # What one repeat refused is refused.
    risks = by_sample["risk"].mean(skipna=False).to_frame()
    risks["status"] = by_sample["status"].agg(lambda own: next((word for word in own if word != "ok"), "ok"))
    risks = risks.reset_index()
    risks.attrs["thresholds"] = _default_thresholds(cohort)
    return risks


def _read_fold(path: Path) -> pd.DataFrame:
    table = read_table(path)
    if list(table.columns) == list(_COLUMNS):
        table = table.assign(risk=pd.to_numeric(table["risk"], errors="coerce"))
        refused = table["risk"].isna() & (table["status"] != "ok")
        if table.drop(columns="risk").notna().all(axis=None) and (table["risk"].notna() | refused).all():
            return table
    raise InputError(f"{path} is damaged. Remove it, and run chiasm train again.")


def _default_thresholds(cohort: Cohort) -> dict[str, dict[str, object]]:
    return {name: _THRESHOLD for name, kind in cohort.outcome_kinds.items() if kind == "binary"}


def confounder_risks(told: Sequence[object], cohort: Cohort, outcome: str, folds: int, seed: int) -> pd.DataFrame:
    """Risks from one thing that should not predict the outcome, such as the source of an image.

    Logistic regression on its values, by the same kind of folds as the model.

    Args:
        told: one value a sample, in the cohort's order; numbers are names too.
        cohort: the samples; those whose outcome is unknown are not learned from.
        outcome: a binary one.
        folds, seed: as `Cohort.folds` takes them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    own = pd.Series(list(told), dtype=object)
    values = own.where(own.notna(), "unknown").astype("str").to_numpy(object)[:, None]
    samples = pd.MultiIndex.from_frame(cohort.outcomes[_SAMPLE])
    parts = []
    for rest, fold in cohort.folds(folds, seed=seed):
        rest = rest.keep(rest.outcomes[outcome].notna().to_numpy(), why="patients whose outcome is known")
        learned, asked = (
            samples.get_indexer(pd.MultiIndex.from_frame(part.outcomes[_SAMPLE])) for part in (rest, fold)
        )
        classifier = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
        classifier.fit(values[learned], rest.outcomes[outcome].astype(int))
        risk = classifier.predict_proba(values[asked])[:, 1]
        parts.append(fold.outcomes[_SAMPLE].assign(outcome=outcome, risk=risk, status="ok"))
    risks = pd.concat(parts, ignore_index=True)
    risks.attrs["thresholds"] = _default_thresholds(cohort)
    return risks


def _variants(recipe: Recipe) -> Mapping[str, Recipe]:
    return {
        name: dataclasses.replace(recipe, settings=dataclasses.replace(recipe.settings, **changes))
        for name, changes in recipe.module.VARIANTS.items()
    }


def _fold_paths(run: Run, name: str, recipe: Recipe, cohort: Cohort) -> dict[tuple[int, int], Path]:
    """Where the risks of each repeat and fold lie; the folder's name tells data and settings apart."""
    folder = run.folder / "folds" / f"{name.replace(' ', '-')}-{_fingerprint(recipe, cohort)}"
    settings = recipe.settings
    return {(r, k): folder / f"{r}-{k}.csv" for r in range(settings.repeats) for k in range(settings.folds)}


def _fingerprint(recipe: Recipe, cohort: Cohort) -> str:
    """What must be equal for the risks of a fold to be kept: recipe, settings, and all that is known of patients."""
    digest = hashlib.sha256(json.dumps([recipe.digest or recipe.name, recipe.stated_settings, cohort.history]).encode())
    hash_tables(digest, cohort)
    # Files are told by what is in them, so that the data may be moved.
    for path in () if cohort.images is None else cohort.images["path"]:
        digest.update(_content(path))
    return digest.hexdigest()[:16]


def _content(path: str) -> bytes:
    if not Path(path).is_file():
        return path.encode()
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def cross_validated_risks(run: Run, data: Path) -> tuple[dict[str, pd.DataFrame], Cohort]:
    """The risks of every variant and of the confounders by name, and the patients they are of.

    Args:
        run: a run whose folds are done.
        data: the recipe's data.

    Raises:
        InputError: folds are missing or damaged, or the first outcome is not binary.
    """
    cohort = run.recipe.read(data)
    outcome = require_binary(cohort)
    settings = run.recipe.settings
    risks = {
        name: out_of_fold_risks(run, name, recipe, recipe.read(data)) for name, recipe in _variants(run.recipe).items()
    }
    for name, told in run.recipe.sources(data, cohort).items():
        risks[f"{name}{ALONE}"] = confounder_risks(told, cohort, outcome, settings.folds, settings.seed)
    return risks, cohort


NOTICE = (
    "What is named alone should not predict the outcome. Where it does as well as the model, the model may have "
    "learned the source of the data, and the score says nothing of another hospital."
)

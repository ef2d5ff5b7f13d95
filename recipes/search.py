"""What `chiasm tune` does: trials of a recipe's settings, each scored on folds of the training patients."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..datasets.errors import InputError
from ..datasets.fingerprints import hash_tables
from ..datasets.progress import showing_progress
from .ranges import Searched, draw
from .recipe import Recipe

if TYPE_CHECKING:
    import optuna

    from ..datasets import Cohort
    from ..fusion import FusionModel
    from ..fusion.matching import LabelledRisks
    from .studies import Study

PAUSE_S = 1.0
"""Seconds between looks at what other workers do, while there is nothing to begin."""
RESAMPLES = 200
"""Of patients, for the interval of a score; drawn for trials that are the best so far."""


@dataclass(frozen=True)
class Search:
    """A recipe, what is searched of it, and the patients on whom: all that a worker needs but the storage."""

    recipe: Recipe
    searched: Searched
    cohort: Cohort
    """Those of training and validation; the held-out patients are not among them."""
    folds: int
    trials: int

    @property
    def seed(self) -> int:
        return getattr(self.recipe.settings, "seed", 0)

    @property
    def binary(self) -> list[str]:
        """The outcomes that the score is of; where there is none, it is the loss."""
        return [name for name, kind in self.cohort.outcome_kinds.items() if kind == "binary"]

    @property
    def score(self) -> str:
        """What a score is called in tables."""
        return "AUROC" if self.binary else "loss"

    @property
    def objective(self) -> str:
        """What a score is, in words."""
        of = f" of {self.binary[0]}" if len(self.binary) == 1 else f", mean of {len(self.binary)} outcomes"
        what = f"AUROC{of}" if self.binary else "loss"
        return f"validation {what}, mean of {self.folds} folds by patient"

    @cached_property
    def parts(self) -> list[tuple[Cohort, Cohort]]:
        """Of each fold, the other patients and its own."""
        return list(self.cohort.folds(self.folds, seed=self.seed))

    @property
    def own(self) -> dict[str, object]:
        """The recipe's own settings as far as they may be drawn."""
        settings = {name: getattr(self.recipe.settings, name) for name in self.searched}
        return {name: value for name, value in settings.items() if value in self.searched[name]}

    def asked(self) -> dict[str, object]:
        """What must be equal for a search to go on, by what it is called in messages."""
        code = Path(self.recipe.module.__file__).read_bytes()
        return {
            "recipe": [Path(self.recipe.name).stem, hashlib.sha256(code).hexdigest()],
            "settings": repr(sorted(self.recipe.stated_settings.items())),
            "ranges": {name: str(one) for name, one in self.searched.items()},
            "folds": self.folds,
            "data": _content(self.cohort),
        }

    def with_settings(self, trial: optuna.Trial) -> Recipe:
        """The recipe with the settings that a trial tries."""
        drawn = draw(trial, self.recipe, self.searched)
        return dataclasses.replace(self.recipe, settings=dataclasses.replace(self.recipe.settings, **drawn))


def development(recipe: Recipe, data: Path, searched: Searched) -> Cohort:
    """The training and validation patients of a recipe, whom a search may look at.

    Raises:
        InputError: what is searched decides who they are or what is read of them, or `divide` makes other samples.
    """
    settings, looked_at = _watched(recipe.settings)
    watched = dataclasses.replace(recipe, settings=settings)
    cohort = watched.read(data)
    train, valid, _ = watched.divide(cohort)
    deciding = [name for name in searched if name in looked_at]
    if deciding:
        raise InputError(
            f"{deciding[0]} decides who is in the cohort or what is read of them, so trials with other values would "
            f"not be of the same patients and data. Give it by --set {deciding[0]}=VALUE, and search the others."
        )
    return recipe.development(cohort, train, valid)


def _watched(settings: object) -> tuple[object, set[str]]:
    """Settings that are equal, and the names of those that somebody has looked at since."""
    names = {field.name for field in dataclasses.fields(settings)}
    looked_at: set[str] = set()

    class Watched(type(settings)):
        def __getattribute__(self, name: str) -> object:
            if name in names:
                looked_at.add(name)
            return super().__getattribute__(name)

    watched = object.__new__(Watched)
    for name in names:
        object.__setattr__(watched, name, getattr(settings, name))
    return watched, looked_at


def _content(cohort: Cohort) -> str:
    """SHA-256 of all that is known of the patients; of image files, their sizes, wherever they lie."""
    kinds = {name: str(kind) for name, kind in cohort.outcome_kinds.items()}
    digest = hashlib.sha256(json.dumps([cohort.history, kinds]).encode())
    hash_tables(digest, cohort)
    for path in () if cohort.images is None else cohort.images["path"]:
        size = Path(path).stat().st_size if Path(path).is_file() else path
        digest.update(f"{size}\n".encode())
    return digest.hexdigest()


def work(search: Search, study: Study, *, tell: Callable[[], None], alive: Callable[[], bool] = lambda: True) -> None:
    """Work on trials until all are done, by this worker or by others.

    Args:
        search: what is searched.
        study: where the trials are shared.
        tell: called after each trial, and while others are waited for.
        alive: whether to begin another trial.
    """
    while alive() and not study.is_done(search.trials):
        slot = study.free_slot(search.trials)
        if slot is None:
            time.sleep(PAUSE_S)
        else:
            # The first trial is what the others are held against.
            fixed = {} if slot else search.own
            study.run(slot, lambda trial: run_trial(search, study, trial), seed=search.seed, fixed=fixed)
        tell()


def run_trial(search: Search, study: Study, trial: optuna.Trial) -> float:
    """The score of a trial: the mean over folds, each predicted by a model that was trained on the others.

    Raises:
        InputError: the first trial cannot be trained. Of later ones, that is a result.
        optuna.TrialPruned: it cannot be trained, or is worse than half of the others after some of the folds.
    """
    import torch
    from optuna import TrialPruned

    began = time.perf_counter()
    recipe = search.with_settings(trial)
    trial.set_user_attr("settings", {name: getattr(recipe.settings, name) for name in search.searched})
    scores: list[float] = []
    labelled: list[LabelledRisks] = []
    try:
        for score, risks in _fold_scores(search, recipe):
            scores.append(score)
            labelled += risks
            trial.set_user_attr("scores", scores)
            trial.set_user_attr("seconds", time.perf_counter() - began)
            trial.report(float(np.mean(scores)), len(scores))
            if len(scores) < search.folds and trial.should_prune():
                raise TrialPruned
    except (InputError, torch.OutOfMemoryError) as error:
        if trial.user_attrs["slot"] == 0:
            raise
        trial.set_user_attr("reason", " ".join(str(error).split()))
        raise TrialPruned from None
    mean = float(np.mean(scores))
    if len(search.binary) == 1 and study.is_better(mean):
        low, high = _interval(labelled, search.seed)
        trial.set_user_attr("interval", [low, high])
    return mean


def _fold_scores(search: Search, recipe: Recipe) -> Iterator[tuple[float, list[LabelledRisks]]]:
    """Of each fold the score, and the risks of its patients for each binary outcome."""
    from ..fusion import fit

    training = recipe.training(kept=False) | {"progress": False}
    for rest, fold in search.parts:
        # Without validation where the recipe's own folds have none.
        valid = None if recipe.is_cross_validated and search.binary else fold
        with showing_progress(False):
            model = recipe.model(rest)
            history = fit(model, rest, valid, **training)
            if search.binary:
                yield _auroc(model, fold, search.binary)
            else:
                yield history.epochs[history.best_epoch - 1]["valid_loss"], []


def _auroc(model: FusionModel, fold: Cohort, outcomes: Sequence[str]) -> tuple[float, list[LabelledRisks]]:
    from ..fusion.matching import match_risks
    from .variants import unrefused_risks

    # Of an outcome that is known of nobody in this fold, other folds tell.
    known = [name for name in outcomes if fold.outcomes[name].notna().any()]
    predicted = unrefused_risks(model, fold)
    matched = match_risks(predicted[predicted["outcome"].isin(known)], fold) if known else {}
    risks = list(matched.values())
    areas = np.array([_area(own, np.arange(len(own.label)), np.ones(len(own.label))) for own in risks])
    if not np.isfinite(areas).any():
        raise InputError(
            f"The {fold.subjects} patients of a fold have no outcome of both kinds, so it has no AUROC. "
            "Give fewer --folds, or bring more patients."
        )
    return float(np.nanmean(areas)), risks


def _area(own: LabelledRisks, rows: np.ndarray, weight: np.ndarray) -> float:
    return own.metrics(rows, weight, threshold=0.5, names=("AUROC",))["AUROC"]


def _interval(folds: Sequence[LabelledRisks], seed: int) -> tuple[float, float]:
    """The 95 % interval of the mean over folds, by resampling patients in each."""
    from ..fusion.evaluation import patient_bootstrap, percentile_interval

    drawn = [
        patient_bootstrap(
            lambda rows, weight, own=own: {"AUROC": _area(own, rows, weight)},
            own.patient,
            resamples=RESAMPLES,
            seed=(seed + number) % 2**32,
        )[1]["AUROC"]
        for number, own in enumerate(folds)
    ]
    low, high, _ = percentile_interval(np.mean(drawn, axis=0), level=0.95)
    return low, high

"""What gradient boosting says of training patients whom it was not trained on, for a network to learn from.

Whether a patient died is one bit, and much of it is chance; a risk that was estimated from thousands of
others tells more. A network that learns from both inherits what boosting is good at, thresholds and
extremes of single analytes, and adds what a summary does not hold.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.prepared import PreparedSamples
from .baselines import READ, BaselineFeatures, boosting, learnable
from .model import FusionModel

_FOLDS = 8
"""Of the training patients: each one's risk is told by boosting on seven eighths of them."""


def distilled(
    samples: PreparedSamples, train: Cohort, model: FusionModel, *, share: float, seed: int
) -> tuple[PreparedSamples, tuple[str, ...]]:
    """The samples with labels of binary outcomes that are partly risks by boosting.

    Each process and each start of a run trains the teacher anew: it is the same one, and takes seconds.

    Args:
        samples: of `train`, in its order.
        train: the training patients.
        model: boosting sees no modality that it does not, and no further back.
        share: of each label, from 0 to 1.
        seed: of the folds and of boosting.

    Returns:
        The samples, and a remark on each outcome that stays as it is, since it has too few patients of a class.

    Raises:
        InputError: the model has no binary outcome; there is neither a lab nor a static fact to learn from; or no
            outcome has enough patients.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, section 2. We differ:
    the teacher is gradient boosting, it never saw the patient whom it speaks of, and there is no temperature.
    """
    binary = {name: i for i, (name, kind) in enumerate(model.outcomes.items()) if kind == "binary"}
    if not binary:
        raise InputError("distillation= is for binary outcomes (0 and 1), and the model predicts none. Leave it out.")
    unread = {name: None for name in READ if name not in model.modalities}
    seen = model.as_seen(train).with_tables("what the teacher reads", **unread)
    features = BaselineFeatures().fit(seen).transform(seen).to_numpy()
    if not features.shape[1]:
        raise InputError(
            "distillation= learns from gradient boosting on labs and static facts. The model reads neither, or no "
            "static fact is there and no lab code has 5 training patients. Leave it out."
        )
    patients = train.outcomes["subject_id"].to_numpy()
    outcomes, remarks = samples.outcomes.copy(), []
    for name, i in binary.items():
        known = samples.known[:, i]
        labels = samples.outcomes[known, i]
        risks = cross_fitted_risks(features[known], labels.astype(int), patients[known], seed=seed)
        if risks is None:
            remarks.append(f"outcomes: {name} has too few patients of a class to be learned from boosting")
        else:
            outcomes[known, i] += share * (risks - labels)
    if len(remarks) == len(binary):
        raise InputError(
            f"distillation= needs two training patients of each class at least, and {next(iter(binary))} has fewer. "
            "Leave it out, or bring more patients."
        )
    return replace(samples, outcomes=outcomes), tuple(remarks)


def cross_fitted_risks(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, seed: int = 0
) -> np.ndarray | None:
    """Each sample's risk by boosting that was trained on other patients, `[sample]`.

    Args:
        features: `[sample, feature]`; NaN where a feature is missing.
        labels: 0 or 1, `[sample]`.
        patients: whose sample it is, `[sample]`.
        seed: of the folds and of boosting.

    Returns:
        None where patients cannot be divided so that those to learn from are always of both classes.
    """
    folds = _folds(labels, patients, seed)
    if folds is None:
        return None
    risks = np.zeros(len(labels))
    for others, own in folds:
        teacher = boosting(len(others), seed).fit(learnable(features[others]), labels[others])
        risks[own] = teacher.predict_proba(features[own])[:, 1]
    return risks


def _folds(labels: np.ndarray, patients: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Rows of the others and rows of the fold, by patient; fewer folds where a class has few patients."""
    from sklearn.model_selection import StratifiedKFold

    fewest = min(len(np.unique(patients[labels == label])) for label in (0, 1))
    if fewest < 2:
        return None
    # Patients are divided, not samples: one with many samples would take a class with it.
    names, place = np.unique(patients, return_inverse=True)
    ever = np.zeros(len(names), int)
    np.maximum.at(ever, place, labels)
    rarest = min(count for count in np.bincount(ever) if count)
    division = StratifiedKFold(min(_FOLDS, fewest, max(2, rarest)), shuffle=True, random_state=seed)
    folds = []
    for _, own in division.split(names, ever):
        inside = np.isin(place, own)
        if len(np.unique(labels[~inside])) < 2:
            return None
        folds.append((np.flatnonzero(~inside), np.flatnonzero(inside)))
    return folds

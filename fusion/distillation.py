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
from .baselines import SummaryFeatures, boosting
from .model import FusionModel

_FOLDS = 8
"""Each patient's risk is told by boosting on seven eighths of the patients; more folds tell hardly more."""
_READ = ("labs", "static")
"""What boosting on summary features reads."""


def distilled(
    samples: PreparedSamples, train: Cohort, model: FusionModel, *, share: float, seed: int
) -> PreparedSamples:
    """The samples with labels of binary outcomes that are partly risks by boosting.

    Args:
        samples: of `train`, in its order.
        train: the training patients.
        model: boosting sees no modality that the model does not.
        share: of each label, from 0 to 1.
        seed: of the folds and of boosting.

    Raises:
        InputError: the model has no binary outcome, or neither labs nor static facts; or a class has a single patient.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, section 2. We differ:
    the teacher is gradient boosting, it never saw the patient whom it speaks of, and there is no temperature.
    """
    binary = [(i, name) for i, (name, kind) in enumerate(model.outcomes.items()) if kind == "binary"]
    if not binary:
        raise InputError("distillation= is for binary outcomes, and the model predicts none. Leave it out.")
    unread = {name: None for name in _READ if name not in model.modalities}
    seen = train.with_tables("what the teacher reads", **unread)
    outcomes = samples.outcomes.copy()
    for i, name in binary:
        known = samples.known[:, i]
        labels = samples.outcomes[known, i]
        taught = cross_fitted_risks(seen.keep(known, why=f"{name} is known"), labels.astype(int), seed=seed)
        outcomes[known, i] += share * (taught - labels)
    return replace(samples, outcomes=outcomes)


def cross_fitted_risks(cohort: Cohort, labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Each sample's risk by boosting on labs and static facts that was trained on other patients, `[sample]`.

    Args:
        cohort: the samples.
        labels: 0 or 1 for each of them.
        seed: of the folds and of boosting.

    Raises:
        InputError: there is neither a lab nor a static fact, or a single patient of a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    features = SummaryFeatures().fit(cohort).transform(cohort)
    if not features.shape[1]:
        raise InputError(
            "distillation= learns from gradient boosting on labs and static facts, and the model or its patients have "
            "neither. Leave it out."
        )
    patients = cohort.outcomes["subject_id"]
    fewest = min(patients[labels == label].nunique() for label in (0, 1))
    if fewest < 2:
        raise InputError(
            "distillation= needs two training patients of each class at least, and of one there is a single one. "
            "Leave it out, or bring more patients."
        )
    count = min(_FOLDS, fewest)
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    teacher = boosting(len(labels) * (count - 1) // count, seed)
    risks = cross_val_predict(teacher, features.to_numpy(), labels, groups=patients, cv=folds, method="predict_proba")
    return risks[:, 1]

"""The metrics of one outcome, from arrays of risks and labels.

Metrics take probabilities, never logits. What is undefined is NaN (precision when nobody is called
positive, AUROC of one class), never 0. A `weight` says how often a sample counts: the bootstrap passes
how often its patient was drawn. Of a binary outcome they are computed here and held against
scikit-learn's by tests, because a bootstrap computes them thousands of times, and of 300 samples
scikit-learn looks at its arguments for ten times as long as it computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from ..datasets.errors import InputError

_RANKED = ("AUROC", "AUPRC")
_RECALIBRATED = ("calibration slope", "calibration intercept")
_THRESHOLDED = ("accuracy", "balanced accuracy", "precision", "recall", "specificity", "F1")
BINARY_METRICS = (*_RANKED, "Brier", *_RECALIBRATED, "ECE", *_THRESHOLDED)
CATEGORICAL_METRICS = ("macro AUROC", "log loss", "Brier", "accuracy", "balanced accuracy")
CONTINUOUS_METRICS = ("MAE", "RMSE", "R2")

# Half the distance from 1 to the float32 below it: risks computed in float32 saturate at 0 and 1, and
# their logits are read as if they lay this far inside.
LOGIT_MARGIN = 2.0**-25

CALIBRATION_BINS = 10


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Mean risk, observed rate and number of samples in each bin of risk, lowest risks first."""

    predicted: Float[np.ndarray, " bin"]
    observed: Float[np.ndarray, " bin"]
    samples: Float[np.ndarray, " bin"]


def binary_metrics(
    probability: Float[np.ndarray, " sample"],
    label: Shaped[np.ndarray, " sample"],
    *,
    threshold: float,
    weight: Shaped[np.ndarray, " sample"] | None = None,
    names: Iterable[str] = BINARY_METRICS,
) -> dict[str, float]:
    """Discrimination, calibration and decisions of one binary outcome.

    A sample is called positive when its probability is at least the threshold. AUPRC is average
    precision. The calibration slope is the coefficient of the risk's logit in a logistic regression of
    the label (1 is ideal, below 1 means risks too extreme); the intercept is calibration-in-the-large,
    the constant of the same regression with the slope held at 1 (0 is ideal, above 0 means risks too
    low). ECE is the mean distance of observed rate and mean risk over ten equal-count bins.

    Args:
        probability: risks in [0, 1].
        label: 0 or 1 (or False, True).
        threshold: in [0, 1].
        weight: how often each sample counts, ≥ 0; once each when absent.
        names: those of BINARY_METRICS that are wanted.

    Returns:
        A value for each name; NaN where it is undefined: AUROC, AUPRC and the calibration slope and
        intercept of one class, the slope of constant risks or of risks that separate the classes
        perfectly (it is infinite), and any ratio whose denominator is 0.

    Raises:
        InputError: lengths that disagree, values outside their range, an unknown name.

    Source: Van Calster et al., J Clin Epidemiol 74 (2016), and BMC Medicine 17:230 (2019), for the
    calibration slope and calibration-in-the-large; Naeini et al., AAAI 2015, for ECE, there with
    equal-width bins. Ours hold equal counts, because at low prevalence nearly all risks share one bin of
    equal width. ECE is never negative, so chance alone raises it: its resamples lie above its value.
    """
    wanted = _known_names(names, BINARY_METRICS)
    probability, label = _checked_binary(probability, label)
    weight = _checked_weight(weight, len(label))
    if not 0 <= threshold <= 1:
        raise InputError(f"the threshold must lie in [0, 1], not {threshold}")
    # Not by sums of weights, which rounding parts.
    counted = label[weight > 0]
    one_class = counted.min() == counted.max()

    values: dict[str, float] = {}
    if set(_THRESHOLDED) & set(wanted):
        values |= _decision_metrics(probability >= threshold, label, weight)
    if set(_RECALIBRATED) & set(wanted):
        values |= _recalibration(probability, label, weight, one_class=one_class)
    if set(_RANKED) & set(wanted):
        auroc, precision = _areas(probability, label, weight) if not one_class else (np.nan, np.nan)
        values |= {"AUROC": auroc, "AUPRC": precision}
    if "Brier" in wanted:
        values["Brier"] = np.average((probability - label) ** 2, weights=weight)
    if "ECE" in wanted:
        bins = calibration_bins(probability, label, weight=weight)
        values["ECE"] = np.average(np.abs(bins.observed - bins.predicted), weights=bins.samples)
    return {name: float(values[name]) for name in wanted}


def categorical_metrics(
    probability: Float[np.ndarray, "sample category"],
    label: Int[np.ndarray, " sample"],
    *,
    weight: Shaped[np.ndarray, " sample"] | None = None,
    names: Iterable[str] = CATEGORICAL_METRICS,
) -> dict[str, float]:
    """Discrimination and accuracy of one outcome with several classes.

    The class called is the most probable one. AUROC is the unweighted mean over classes, each against
    the rest; Brier is the squared error summed over classes, in [0, 2]; balanced accuracy is the mean
    recall of the classes that occur.

    Args:
        probability: one row a sample, summing to 1.
        label: index of the class, from 0.
        weight: how often each sample counts, ≥ 0; once each when absent.
        names: those of CATEGORICAL_METRICS that are wanted.

    Returns:
        A value for each name; macro AUROC is NaN when a class does not occur.

    Raises:
        InputError: shapes that disagree, rows that do not sum to 1, a label that is not a class, an
            unknown name.
    """
    from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, recall_score

    wanted = _known_names(names, CATEGORICAL_METRICS)
    probability, label = _checked_categorical(probability, label)
    weight = _checked_weight(weight, len(label))
    called = probability.argmax(axis=1)
    classes = np.arange(probability.shape[1])
    present = np.flatnonzero(np.bincount(label, weights=weight, minlength=len(classes)))

    values: dict[str, float] = {}
    if "macro AUROC" in wanted:
        everyone = len(present) == len(classes)
        each = [_areas(probability[:, k], label == k, weight)[0] for k in classes] if everyone else [np.nan]
        values["macro AUROC"] = np.mean(each)
    if "log loss" in wanted:
        values["log loss"] = log_loss(label, probability, labels=classes, sample_weight=weight)
    if "Brier" in wanted:
        values["Brier"] = brier_score_loss(
            label, probability, labels=classes, sample_weight=weight, scale_by_half=False
        )
    if "accuracy" in wanted:
        values["accuracy"] = accuracy_score(label, called, sample_weight=weight)
    if "balanced accuracy" in wanted:
        values["balanced accuracy"] = recall_score(label, called, labels=present, average="macro", sample_weight=weight)
    return {name: float(values[name]) for name in wanted}


def continuous_metrics(
    prediction: Float[np.ndarray, " sample"],
    label: Float[np.ndarray, " sample"],
    *,
    weight: Shaped[np.ndarray, " sample"] | None = None,
    names: Iterable[str] = CONTINUOUS_METRICS,
) -> dict[str, float]:
    """Errors of one continuous outcome: MAE and RMSE in the outcome's unit, R2 without unit.

    Args:
        prediction: expected values, in the outcome's unit.
        label: observed values, in the same unit.
        weight: how often each sample counts, ≥ 0; once each when absent.
        names: those of CONTINUOUS_METRICS that are wanted.

    Returns:
        A value for each name; R2 is NaN when all labels are equal.

    Raises:
        InputError: arrays that disagree in length, are empty or hold a value that is not finite, an
            unknown name.
    """
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    wanted = _known_names(names, CONTINUOUS_METRICS)
    prediction, label = _paired(prediction, label)
    weight = _checked_weight(weight, len(label))
    counted = label[weight > 0]
    values: dict[str, float] = {}
    if "MAE" in wanted:
        values["MAE"] = mean_absolute_error(label, prediction, sample_weight=weight)
    if "RMSE" in wanted:
        values["RMSE"] = root_mean_squared_error(label, prediction, sample_weight=weight)
    if "R2" in wanted:
        varies = counted.min() < counted.max()
        values["R2"] = r2_score(label, prediction, sample_weight=weight) if varies else np.nan
    return {name: float(values[name]) for name in wanted}


def calibration_bins(
    probability: Float[np.ndarray, " sample"],
    label: Shaped[np.ndarray, " sample"],
    *,
    weight: Shaped[np.ndarray, " sample"] | None = None,
    bins: int = CALIBRATION_BINS,
) -> CalibrationBins:
    """Mean risk beside observed rate in bins that hold about equally many samples.

    The edges are quantiles of the risks; equal risks share a bin, so heavily tied risks give fewer bins.

    Args:
        probability: risks in [0, 1].
        label: 0 or 1.
        weight: how often each sample counts, ≥ 0; once each when absent.
        bins: how many bins at most, ≥ 1.

    Raises:
        InputError: as `binary_metrics`, or fewer than one bin.
    """
    if bins < 1:
        raise InputError(f"calibration needs at least 1 bin, not {bins}")
    probability, label = _checked_binary(probability, label)
    weight = _checked_weight(weight, len(label))
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    edges = np.quantile(probability, inner, weights=weight, method="inverted_cdf")
    of_sample = np.searchsorted(edges, probability, side="left")
    samples = np.bincount(of_sample, weights=weight, minlength=bins)
    filled = samples > 0
    samples = samples[filled]
    risk = np.bincount(of_sample, weights=weight * probability, minlength=bins)[filled]
    events = np.bincount(of_sample, weights=weight * label, minlength=bins)[filled]
    return CalibrationBins(predicted=risk / samples, observed=events / samples, samples=samples)


def best_threshold(probability: Float[np.ndarray, " sample"], label: Shaped[np.ndarray, " sample"]) -> float:
    """The threshold that maximises F1 when a risk at or above it is called positive.

    It is one of the given risks. Of several thresholds with the same F1 the highest is taken, which
    calls the fewest patients positive. Choose it on validation patients, never on test patients.

    Raises:
        InputError: no positive label, or as `binary_metrics`.
    """
    from sklearn.metrics import precision_recall_curve

    probability, label = _checked_binary(probability, label)
    if not label.any():
        raise InputError(
            f"all {len(label)} labels are 0; a threshold that maximises F1 needs at least one event: "
            "use more validation patients"
        )
    precision, recall, thresholds = precision_recall_curve(label, probability)
    precision, recall = precision[:-1], recall[:-1]  # the curve's last point (1, 0) has no threshold
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    highest = np.flatnonzero(np.isclose(f1, f1.max(), rtol=1e-12, atol=0))[-1]
    return float(thresholds[highest])


def _areas(probability: np.ndarray, label: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and average precision, of samples of both classes."""
    order = np.argsort(-probability, kind="stable")
    descending, counted = probability[order], weight[order]
    # Of equal risks, all are called positive or none.
    last = np.flatnonzero(np.append(descending[1:] != descending[:-1], True))
    events = np.cumsum(counted * label[order])[last]
    called = np.cumsum(counted)[last]
    events, called = np.append(0.0, events), np.append(0.0, called)
    area = np.trapezoid(events, called - events) / (events[-1] * (called[-1] - events[-1]))
    gained = np.diff(events)
    # Where nobody counts yet, no event is gained either.
    return area, gained @ (events[1:] / np.where(called[1:] > 0, called[1:], 1)) / events[-1]


def _decision_metrics(called: np.ndarray, label: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    # Rows are labels, columns what they were called.
    (true_negative, false_positive), (false_negative, true_positive) = np.bincount(
        2 * label + called, weights=weight, minlength=4
    ).reshape(2, 2)
    recall = _ratio(true_positive, true_positive + false_negative)
    specificity = _ratio(true_negative, true_negative + false_positive)
    return {
        "accuracy": (true_positive + true_negative) / weight.sum(),
        "balanced accuracy": (recall + specificity) / 2,
        "precision": _ratio(true_positive, true_positive + false_positive),
        "recall": recall,
        "specificity": specificity,
        "F1": _ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else np.nan


def _recalibration(
    probability: np.ndarray, label: np.ndarray, weight: np.ndarray, *, one_class: bool
) -> dict[str, float]:
    if one_class:
        return {"calibration slope": np.nan, "calibration intercept": np.nan}
    counted = weight > 0
    probability, label, weight = probability[counted], label[counted], weight[counted]
    inside = np.clip(probability, LOGIT_MARGIN, 1 - LOGIT_MARGIN)
    logit = np.log(inside / (1 - inside))
    constant = np.ones((len(logit), 1))
    intercept = _logistic_fit(constant, label, weight, offset=logit)[0]

    events, others = logit[label == 1], logit[label == 0]
    separated = events.min() >= others.max() or others.min() >= events.max()
    if separated:
        return {"calibration slope": np.nan, "calibration intercept": intercept}
    slope = _logistic_fit(np.column_stack([constant, logit]), label, weight, offset=np.zeros_like(logit))[1]
    return {"calibration slope": slope, "calibration intercept": intercept}


def _logistic_fit(design: np.ndarray, label: np.ndarray, weight: np.ndarray, *, offset: np.ndarray) -> np.ndarray:
    """Unpenalised logistic regression with an offset, which scikit-learn's does not take: Newton steps,
    halved until the likelihood does not fall. NaN if it does not converge."""

    def loss(coefficients: np.ndarray) -> float:
        linear = offset + design @ coefficients
        return weight @ (np.logaddexp(0, linear) - label * linear)

    coefficients = np.zeros(design.shape[1])
    current = loss(coefficients)
    for _ in range(100):
        # tanh does not overflow where exp would
        mean = 0.5 * (1 + np.tanh(0.5 * (offset + design @ coefficients)))
        gradient = design.T @ (weight * (label - mean))
        curvature = (design.T * (weight * mean * (1 - mean))) @ design
        try:
            step = np.linalg.solve(curvature, gradient)
        except np.linalg.LinAlgError:
            break
        while (following := loss(coefficients + step)) > current * (1 + 1e-12):
            step = step / 2
        coefficients, current = coefficients + step, following
        if np.abs(step).max() < 1e-9:
            return coefficients
    return np.full(design.shape[1], np.nan)


def _known_names(names: Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(names)
    for name in names:
        if name not in known:
            raise InputError(f"no metric is called {name!r} here; there are {', '.join(known)}")
    return names


def _paired(prediction: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, label = np.asarray(prediction, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if label.ndim != 1 or prediction.shape[:1] != label.shape or not len(label):
        raise InputError(
            f"expected one risk and one label a sample, at least one sample: came risks of shape "
            f"{prediction.shape} and labels of shape {label.shape}"
        )
    for name, values in (("risks", prediction), ("labels", label)):
        if not np.isfinite(values).all():
            raise InputError(
                f"{int((~np.isfinite(values)).sum())} of {values.size} {name} are not finite; leave out "
                "refused risks and unknown labels before"
            )
    return prediction, label


def _checked_binary(probability: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probability, label = _paired(probability, label)
    if probability.ndim != 1:
        raise InputError(f"a binary outcome has one risk a sample: came risks of shape {probability.shape}")
    if probability.min() < 0 or probability.max() > 1:
        raise InputError(
            f"risks must lie in [0, 1], came {probability.min():.4g} to {probability.max():.4g}: "
            "pass probabilities, not logits"
        )
    if not np.isin(label, (0, 1)).all():
        raise InputError("labels of a binary outcome must be 0 or 1")
    return probability, label.astype(np.int64)


def _checked_categorical(probability: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probability, label = _paired(probability, label)
    if probability.ndim != 2 or probability.shape[1] < 2:
        raise InputError(f"expected one risk a sample and class: came risks of shape {probability.shape}")
    if probability.min() < 0 or not np.allclose(probability.sum(axis=1), 1, atol=1e-6):
        raise InputError("risks of the classes of a sample must be at least 0 and sum to 1")
    if not np.isin(label, np.arange(probability.shape[1])).all():
        raise InputError(f"labels must be class numbers from 0 to {probability.shape[1] - 1}")
    return probability, label.astype(np.int64)


def _checked_weight(weight: np.ndarray | None, samples: int) -> np.ndarray:
    if weight is None:
        return np.ones(samples)
    weight = np.asarray(weight, dtype=np.float64)
    if weight.shape != (samples,) or not (np.isfinite(weight).all() and weight.min() >= 0 and weight.any()):
        raise InputError(
            f"expected {samples} finite weights, none negative and at least one positive: came weights of "
            f"shape {weight.shape}"
        )
    return weight

"""Laws of the metrics of one outcome."""

import numpy as np
import pytest
from chiasm.datasets.errors import InputError
from chiasm.fusion.metrics import (
    BINARY_METRICS,
    best_threshold,
    binary_metrics,
    calibration_bins,
    categorical_metrics,
    continuous_metrics,
)
from sklearn import metrics as reference
from sklearn.linear_model import LogisticRegression


def _risks(seed=0, samples=400, ties=False):
    generator = np.random.default_rng(seed)
    logit = generator.normal(-1, 1.5, samples)
    label = (generator.random(samples) < 1 / (1 + np.exp(-0.6 * logit - 0.3))).astype(np.int64)
    probability = 1 / (1 + np.exp(-logit))
    return (np.round(probability, 1) if ties else probability), label


def _classes(seed=0, samples=300):
    generator = np.random.default_rng(seed)
    probability = generator.dirichlet([1, 2, 1], samples)
    label = np.array([generator.choice(3, p=row) for row in probability])
    return probability, label


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_metrics_are_those_of_scikit_learn(ties, weighted):
    probability, label = _risks(ties=ties)
    weight = np.random.default_rng(1).integers(0, 4, len(label)) if weighted else None
    called = probability >= 0.3
    ours = binary_metrics(probability, label, threshold=0.3, weight=weight)
    expected = {
        "AUROC": reference.roc_auc_score(label, probability, sample_weight=weight),
        "AUPRC": reference.average_precision_score(label, probability, sample_weight=weight),
        "Brier": reference.brier_score_loss(label, probability, sample_weight=weight),
        "accuracy": reference.accuracy_score(label, called, sample_weight=weight),
        "balanced accuracy": reference.balanced_accuracy_score(label, called, sample_weight=weight),
        "precision": reference.precision_score(label, called, sample_weight=weight),
        "recall": reference.recall_score(label, called, sample_weight=weight),
        "specificity": reference.recall_score(label, called, pos_label=0, sample_weight=weight),
        "F1": reference.f1_score(label, called, sample_weight=weight),
    }
    assert {name: ours[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_weights_count_samples_as_if_they_were_repeated():
    probability, label = _risks()
    weight = np.random.default_rng(1).integers(0, 4, len(label))
    weighted = binary_metrics(probability, label, threshold=0.3, weight=weight)
    repeated = binary_metrics(np.repeat(probability, weight), np.repeat(label, weight), threshold=0.3)
    assert weighted == pytest.approx(repeated, rel=1e-9)
    probability, label = _classes()
    weight = np.random.default_rng(1).integers(0, 4, len(label))
    weighted = categorical_metrics(probability, label, weight=weight)
    repeated = categorical_metrics(np.repeat(probability, weight, axis=0), np.repeat(label, weight))
    assert weighted == pytest.approx(repeated, rel=1e-9)


def test_the_calibration_slope_is_that_of_an_unpenalised_logistic_regression():
    probability, label = _risks()
    logit = np.log(probability / (1 - probability))
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], label)
    slope = binary_metrics(probability, label, threshold=0.5)["calibration slope"]
    assert slope == pytest.approx(fitted.coef_[0, 0], abs=1e-5)


def test_the_calibration_intercept_makes_the_mean_risk_equal_the_observed_rate():
    probability, label = _risks()
    intercept = binary_metrics(probability, label, threshold=0.5)["calibration intercept"]
    shifted = np.log(probability / (1 - probability)) + intercept
    assert np.mean(1 / (1 + np.exp(-shifted))) == pytest.approx(label.mean(), abs=1e-10)


def test_the_calibration_intercept_of_a_constant_risk_is_the_difference_of_two_logits():
    label = np.array([1] * 20 + [0] * 60)
    values = binary_metrics(np.full(80, 0.5), label, threshold=0.5)
    assert values["calibration intercept"] == pytest.approx(np.log(0.25 / 0.75))
    assert np.isnan(values["calibration slope"])


def test_calibration_survives_risks_of_exactly_0_and_1():
    probability, label = _risks()
    probability[:5], probability[5:10] = 0.0, 1.0
    values = binary_metrics(probability, label, threshold=0.5)
    assert np.isfinite(values["calibration slope"])
    assert np.isfinite(values["calibration intercept"])
    saturated = binary_metrics(np.ones(40), np.array([0, 1] * 20), threshold=0.5)
    assert saturated["calibration intercept"] == pytest.approx(-25 * np.log(2), rel=1e-6)


def test_the_calibration_slope_of_perfectly_separated_classes_is_undefined():
    values = binary_metrics(np.array([0.1, 0.2, 0.7, 0.9]), np.array([0, 0, 1, 1]), threshold=0.5)
    assert np.isnan(values["calibration slope"])
    assert values["AUROC"] == 1


def test_ece_equals_a_hand_calculation():
    # Two bins of five would be 0.1 | 0.6; ten equal-count bins of two tied values are the same two.
    probability = np.array([0.1] * 5 + [0.6] * 5)
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    ece = binary_metrics(probability, label, threshold=0.5)["ECE"]
    assert ece == pytest.approx(0.5 * abs(0.2 - 0.1) + 0.5 * abs(0.8 - 0.6))


def test_calibration_bins_hold_equally_many_samples_and_all_of_them():
    probability, label = _risks(samples=400)
    bins = calibration_bins(probability, label)
    assert bins.samples.sum() == 400
    assert np.abs(bins.samples - 40).max() <= 1
    assert np.average(bins.observed, weights=bins.samples) == pytest.approx(label.mean())
    assert np.average(bins.predicted, weights=bins.samples) == pytest.approx(probability.mean())
    assert (np.diff(bins.predicted) > 0).all()


def test_precision_with_nobody_called_positive_is_undefined_not_zero():
    values = binary_metrics(np.array([0.1, 0.2, 0.3]), np.array([0, 1, 0]), threshold=0.5)
    assert np.isnan(values["precision"])
    assert values["recall"] == 0
    assert values["F1"] == 0


@pytest.mark.parametrize("only", [0, 1])
def test_metrics_of_one_class_are_undefined_without_a_warning(only):
    values = binary_metrics(np.array([0.1, 0.6, 0.9]), np.full(3, only), threshold=0.5)
    for name in ("AUROC", "AUPRC", "calibration slope", "calibration intercept", "balanced accuracy"):
        assert np.isnan(values[name]), name
    assert np.isnan(values["specificity" if only else "recall"])


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_is_told_by_the_labels_that_count_whatever_their_weights_add_up_to(only):
    generator = np.random.default_rng(0)
    for samples in range(3, 40):
        label, weight = np.full(samples, only), generator.random(samples)
        # One of the other class does not count.
        label[0], weight[0] = 1 - only, 0.0
        values = binary_metrics(generator.random(samples), label, threshold=0.5, weight=weight)
        undefined = ("AUROC", "AUPRC", "calibration slope", "calibration intercept")
        assert np.isnan([values[name] for name in undefined]).all()


def test_a_risk_at_the_threshold_is_called_positive():
    values = binary_metrics(np.array([0.5, 0.4]), np.array([1, 0]), threshold=0.5)
    assert values["recall"] == values["specificity"] == 1


def test_metrics_not_asked_for_are_not_there():
    probability, label = _risks()
    all_of_them = binary_metrics(probability, label, threshold=0.3)
    for name in BINARY_METRICS:
        assert binary_metrics(probability, label, threshold=0.3, names=[name]) == {name: all_of_them[name]}


def test_categorical_metrics_are_those_of_scikit_learn():
    probability, label = _classes()
    called = probability.argmax(axis=1)
    expected = {
        "macro AUROC": reference.roc_auc_score(label, probability, multi_class="ovr", average="macro"),
        "log loss": reference.log_loss(label, probability),
        "Brier": reference.brier_score_loss(label, probability),
        "accuracy": reference.accuracy_score(label, called),
        "balanced accuracy": reference.balanced_accuracy_score(label, called),
    }
    assert categorical_metrics(probability, label) == pytest.approx(expected, rel=1e-12)


def test_a_class_that_does_not_occur_leaves_only_the_macro_auroc_undefined():
    probability, label = _classes()
    label = np.minimum(label, 1)
    values = categorical_metrics(probability, label)
    recalls = [(probability.argmax(axis=1)[label == k] == k).mean() for k in (0, 1)]
    assert np.isnan(values["macro AUROC"])
    assert values["balanced accuracy"] == pytest.approx(np.mean(recalls))
    assert values["log loss"] == pytest.approx(-np.log(probability[np.arange(len(label)), label]).mean())


def test_continuous_metrics_equal_a_hand_calculation():
    values = continuous_metrics(np.array([1.0, 2.0, 6.0]), np.array([1.0, 4.0, 4.0]))
    assert values == pytest.approx({"MAE": 4 / 3, "RMSE": np.sqrt(8 / 3), "R2": 1 - 8 / 6})


def test_r2_of_equal_labels_is_undefined():
    assert np.isnan(continuous_metrics(np.array([1.0, 2.0]), np.array([3.0, 3.0]))["R2"])


def test_the_best_threshold_has_the_highest_f1_of_all():
    probability, label = _risks(samples=120)
    best = best_threshold(probability, label)
    every = {t: reference.f1_score(label, probability >= t) for t in probability}
    assert every[best] == pytest.approx(max(every.values()))


def test_of_thresholds_with_equal_f1_the_highest_is_taken():
    # At 0.9: precision 1, recall 1/2. At 0.4: precision 1/2, recall 1. F1 is 2/3 at both.
    probability, label = np.array([0.9, 0.6, 0.5, 0.4]), np.array([1, 0, 0, 1])
    assert best_threshold(probability, label) == 0.9


def test_a_threshold_cannot_be_chosen_without_events():
    with pytest.raises(InputError, match=r"all 3 labels are 0; .* at least one event"):
        best_threshold(np.array([0.1, 0.2, 0.3]), np.zeros(3))


@pytest.mark.parametrize(
    ("probability", "label", "message"),
    [
        ([0.1, 0.2], [0, 1, 0], r"one risk and one label a sample.*\(2,\).*\(3,\)"),
        ([], [], "at least one sample"),
        ([0.1, np.nan], [0, 1], "1 of 2 risks are not finite"),
        ([0.1, 0.2], [0, np.nan], "1 of 2 labels are not finite"),
        ([[0.1, 0.9], [0.2, 0.8]], [0, 1], "one risk a sample"),
        ([-1.5, 2.0], [0, 1], r"lie in \[0, 1\], came -1.5 to 2: pass probabilities, not logits"),
        ([0.1, 0.2], [0, 2], "must be 0 or 1"),
    ],
)
def test_unusable_binary_risks_and_labels_are_refused(probability, label, message):
    with pytest.raises(InputError, match=message):
        binary_metrics(np.array(probability), np.array(label), threshold=0.5)


def test_unusable_thresholds_names_weights_and_bins_are_refused():
    probability, label = _risks(samples=20)
    with pytest.raises(InputError, match=r"threshold must lie in \[0, 1\], not 3"):
        binary_metrics(probability, label, threshold=3)
    with pytest.raises(InputError, match="no metric is called 'auc' here; there are AUROC"):
        binary_metrics(probability, label, threshold=0.5, names=["auc"])
    for weight in (np.ones(3), -np.ones(20), np.zeros(20)):
        with pytest.raises(InputError, match="expected 20 finite weights"):
            binary_metrics(probability, label, threshold=0.5, weight=weight)
    with pytest.raises(InputError, match="at least 1 bin, not 0"):
        calibration_bins(probability, label, bins=0)


@pytest.mark.parametrize(
    ("probability", "label", "message"),
    [
        ([0.5, 0.5], [0, 1], "one risk a sample and class"),
        ([[0.5, 0.4], [0.5, 0.5]], [0, 1], "sum to 1"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 2], "class numbers from 0 to 1"),
    ],
)
def test_unusable_categorical_risks_and_labels_are_refused(probability, label, message):
    with pytest.raises(InputError, match=message):
        categorical_metrics(np.array(probability), np.array(label))

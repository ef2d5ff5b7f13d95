"""How good risks are: metrics of predicted risks against a cohort's labels, with intervals over patients."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..datasets.arguments import require_counts, require_numbers, require_whole
from ..datasets.errors import InputError
from .artifact import write_whole
from .matching import LabelledRisks, labelled_risks, match_risks
from .metrics import BINARY_METRICS, CATEGORICAL_METRICS, CONTINUOUS_METRICS

if TYPE_CHECKING:
    from ..datasets import Cohort

METRICS = {"binary": BINARY_METRICS, "categorical": CATEGORICAL_METRICS, "continuous": CONTINUOUS_METRICS}

_DEFAULT_THRESHOLD = {"value": 0.5, "chosen": "the default; none was chosen on validation patients"}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of every outcome that was predicted, each with its interval.

    `table` has the columns outcome, metric, value, low, high and undefined (the number of resamples in
    which the metric was undefined, left out of the interval); value is NaN where the metric is undefined.
    `counts` has one row an outcome: outcome, kind, patients, samples, events (binary outcomes only),
    refused (risks of samples whose label is known), unknown (labels) and undefined_resamples (the most
    of any metric). Samples, refused and unknown add up to the cohort's samples. `thresholds` maps each
    binary outcome to {"value", "chosen"}. `not_predicted` names the outcomes that had no risks.
    """

    table: pd.DataFrame
    counts: pd.DataFrame
    thresholds: dict[str, dict[str, float | str]]
    level: float
    resamples: int
    seed: int
    not_predicted: tuple[str, ...] = ()

    def value(self, outcome: str, metric: str) -> float:
        """One metric of one outcome.

        Raises:
            InputError: no such outcome or metric here.
        """
        row = self.table[(self.table["outcome"] == outcome) & (self.table["metric"] == metric)]
        if row.empty:
            there = ", ".join(f"{o}: {m}" for o, m in zip(self.table["outcome"], self.table["metric"], strict=True))
            raise InputError(f"no metric {metric!r} of an outcome {outcome!r} here; there are {there}")
        return float(row["value"].iloc[0])

    def cell(self, outcome: str, metric: str) -> str:
        """One metric as it is printed: "0.853 (0.836–0.870)", or "undefined"."""
        value = self.value(outcome, metric)
        row = self.table[(self.table["outcome"] == outcome) & (self.table["metric"] == metric)].iloc[0]
        return interval_cell(value, row["low"], row["high"])

    def to_dict(self) -> dict:
        """Everything as plain dicts, lists and numbers, fit for JSON; what is NaN becomes None."""
        return {
            "table": _plain_rows(self.table),
            "counts": _plain_rows(self.counts),
            "thresholds": {outcome: dict(chosen) for outcome, chosen in self.thresholds.items()},
            "level": self.level,
            "resamples": self.resamples,
            "seed": self.seed,
            "not_predicted": list(self.not_predicted),
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as a JSON file, whole or not at all."""
        write_whole(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")

    def __str__(self) -> str:
        width = max(len(metric) for metric in self.table["metric"])
        blocks = [self._outcome_text(count, width) for _, count in self.counts.iterrows()]
        if self.resamples:
            blocks.append(
                f"In parentheses: {100 * self.level:g}% percentile intervals from {self.resamples} resamples of "
                f"patients (seed {self.seed})."
            )
        if self.not_predicted:
            blocks.append(f"Without risks, so not evaluated: {', '.join(self.not_predicted)}.")
        return "\n\n".join(blocks)

    def _outcome_text(self, count: pd.Series, width: int) -> str:
        outcome = count["outcome"]
        events = "" if pd.isna(count["events"]) else f", {count['events']} events"
        lines = [
            f"{outcome} ({count['kind']}): {count['patients']} patients, {count['samples']} samples{events}; "
            f"{count['refused']} risks refused, {count['unknown']} labels unknown"
        ]
        if outcome in self.thresholds:
            chosen = self.thresholds[outcome]
            lines.append(f"threshold {chosen['value']:.3g}: {chosen['chosen']}")
        for row in self.table[self.table["outcome"] == outcome].itertuples():
            line = f"  {row.metric:<{width}}  {interval_cell(row.value, row.low, row.high)}"
            if row.undefined:
                line = f"{line:<{width + 26}}  undefined in {row.undefined} of {self.resamples} resamples"
            lines.append(line)
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Difference:
    """How much a metric of one outcome changes from risks b to risks a, on the same resampled patients."""

    outcome: str
    metric: str
    value: float
    low: float
    high: float
    level: float
    resamples: int
    undefined: int
    patients: int
    samples: int

    def __str__(self) -> str:
        if np.isnan(self.value):
            return f"{self.metric} of {self.outcome}: the difference is undefined"
        interval = (
            "" if np.isnan(self.low) else f" ({self.low:+.3f} to {self.high:+.3f}, {100 * self.level:g}% interval)"
        )
        return (
            f"{self.metric} of {self.outcome} differs by {self.value:+.3f}{interval}: {self.patients} patients, "
            f"{self.samples} samples, {self.resamples} resamples of patients"
        )


def evaluate(
    risks: pd.DataFrame,
    cohort: Cohort,
    *,
    thresholds: Mapping[str, float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Evaluation:
    """Evaluate predicted risks against a cohort's labels, with percentile intervals over patients.

    Every outcome that has risks is evaluated on the samples whose label is known and whose risk is not
    refused. Intervals come from resampling patients, not samples: one patient may have several.

    Args:
        risks: what `predict` returns, or the same read back from CSV or Parquet: subject_id,
            prediction_time, outcome ("stage=mild" for the class mild of a categorical outcome), risk and
            status ("ok", or why the risk is refused). Rows of samples outside the cohort are not used.
        cohort: the patients to evaluate on; a missing label is unknown and left out.
        thresholds: for binary outcomes, the risk in [0, 1] from which a patient is called positive.
            Where it names no outcome, what `fit` chose on validation patients is taken from
            risks.attrs (lost in CSV files), and else 0.5; the result says which.
        resamples: bootstrap resamples; 0 gives no intervals.
        seed: of the resampling.
        level: of the intervals, in (0, 1).

    Raises:
        InputError: columns missing; risks for none of the cohort's samples, or lacking for some; rows
            that occur twice; a risk that is not finite though its status is ok, or outside [0, 1];
            an outcome the cohort does not have; one class only among the known labels; a threshold for
            an outcome that is not binary.

    Example:
        >>> print(evaluate(predict(model, test), test))
    """
    _check_resampling(resamples, level, seed)
    matched = match_risks(risks, cohort)
    for labelled in matched.values():
        labelled.check_classes()
    chosen = _thresholds(thresholds, risks.attrs.get("thresholds", {}), matched)
    rows, counts = [], []
    for outcome, labelled in matched.items():
        threshold = chosen[outcome]["value"] if outcome in chosen else None
        names = METRICS[labelled.kind]
        metrics = partial(labelled.metrics, threshold=threshold, names=names)
        values, resampled = patient_bootstrap(metrics, labelled.patient, resamples=resamples, seed=seed)
        intervals = {name: percentile_interval(resampled[name], level=level) for name in names}
        rows += [(outcome, name, values[name], *intervals[name]) for name in names]
        counts.append(_count(labelled, undefined_resamples=max(missed for *_, missed in intervals.values())))
    return Evaluation(
        table=pd.DataFrame(rows, columns=["outcome", "metric", "value", "low", "high", "undefined"]),
        counts=pd.DataFrame(counts).astype({"events": "Int64"}),
        thresholds=chosen,
        level=level,
        resamples=resamples,
        seed=seed,
        not_predicted=tuple(outcome for outcome in cohort.outcome_kinds if outcome not in matched),
    )


def paired_difference(
    risks_a: pd.DataFrame,
    risks_b: pd.DataFrame,
    cohort: Cohort,
    *,
    outcome: str,
    metric: str = "AUROC",
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """How much better risks a are than risks b, with an interval: does fusion help?

    Both are evaluated on the same samples, those that neither refused, and on the same resampled
    patients, so that what makes a patient hard for both does not widen the interval. Metrics at a
    threshold use the threshold that each of the two brings in its attrs, else 0.5.

    Args:
        risks_a, risks_b: as for `evaluate`.
        cohort: the patients to evaluate on.
        outcome: one outcome that both predict.
        metric: a name in METRICS for the outcome's kind ("macro AUROC" for categorical outcomes).
        resamples, seed, level: as for `evaluate`.

    Raises:
        InputError: as `evaluate`; also an unknown metric, or no sample that both predict.
    """
    _check_resampling(resamples, level, seed)
    risks = (risks_a, risks_b)
    both = [labelled_risks(each, cohort, outcome=outcome) for each in risks]
    shared = np.intersect1d(both[0].position, both[1].position)
    if not len(shared):
        raise InputError(f"no sample of the cohort has a risk of {outcome!r} in both predictions")
    both = [labelled.at(shared) for labelled in both]
    for labelled in both:
        labelled.check_classes()
    attrs = [_thresholds(None, each.attrs.get("thresholds", {}), {outcome: both[0]}) for each in risks]
    thresholds = [chosen[outcome]["value"] if chosen else None for chosen in attrs]

    def difference(rows: np.ndarray, weight: np.ndarray) -> dict[str, float]:
        value_a, value_b = (
            labelled.metrics(rows, weight, threshold=threshold, names=(metric,))[metric]
            for labelled, threshold in zip(both, thresholds, strict=True)
        )
        return {metric: value_a - value_b}

    values, resampled = patient_bootstrap(difference, both[0].patient, resamples=resamples, seed=seed)
    low, high, undefined = percentile_interval(resampled[metric], level=level)
    return Difference(
        outcome=outcome,
        metric=metric,
        value=values[metric],
        low=low,
        high=high,
        level=level,
        resamples=resamples,
        undefined=undefined,
        patients=both[0].patients,
        samples=len(shared),
    )


def patient_bootstrap(
    metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    patient: Int[np.ndarray, " sample"],
    *,
    resamples: int,
    seed: int,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics on all samples, and on resamples of patients drawn with replacement, all samples of a patient together.

    Drawing samples instead would treat a patient's repeated samples as independent and give intervals
    that are too narrow.

    Args:
        metrics: from the positions of the samples drawn and how often each was drawn to values.
        patient: for each sample the number of its patient, from 0 without gaps.
        resamples: how many, ≥ 0.
        seed: equal seeds and patients draw equal resamples, whatever the metrics.

    Returns:
        The values on all samples, and for each metric one value a resample; NaN where it is undefined.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; Field and Welsh,
    J R Stat Soc B 69 (2007), for resampling whole clusters.
    """
    import sklearn

    generator = np.random.default_rng(seed)
    patients = int(patient.max()) + 1
    values = metrics(np.arange(len(patient)), np.ones(len(patient)))
    resampled = {name: np.empty(resamples) for name in values}
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for k in range(resamples):
            drawn = np.bincount(generator.integers(patients, size=patients), minlength=patients)
            times = drawn[patient]
            rows = np.flatnonzero(times)
            for name, value in metrics(rows, times[rows]).items():
                resampled[name][k] = value
    return values, resampled


def percentile_interval(values: Float[np.ndarray, " resample"], *, level: float) -> tuple[float, float, int]:
    """Low end, high end, and how many resamples were left out because the metric was undefined in them.

    Both ends are NaN when the metric was undefined in every resample.
    """
    defined = values[~np.isnan(values)]
    undefined = len(values) - len(defined)
    if not len(defined):
        return np.nan, np.nan, undefined
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high), undefined


def interval_cell(value: float, low: float, high: float) -> str:
    """ "0.853 (0.836–0.870)"; "undefined" for NaN; the value alone where there is no interval."""
    if np.isnan(value):
        return "undefined"
    if np.isnan(low):
        return f"{value:.3f}"
    dash = "–" if low >= 0 else " to "
    return f"{value:.3f} ({low:.3f}{dash}{high:.3f})"


def _thresholds(
    given: Mapping[str, float] | None, fitted: Mapping[str, Mapping], matched: Mapping[str, LabelledRisks]
) -> dict[str, dict[str, float | str]]:
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise InputError(f'thresholds is a {type(given).__name__}; expected a risk by outcome: {{"died": 0.2}}.')
    require_numbers(**{f"The threshold of {outcome}": value for outcome, value in given.items()})
    binary = [outcome for outcome, labelled in matched.items() if labelled.kind == "binary"]
    for outcome in given:
        if outcome not in binary:
            raise InputError(
                f"a threshold was given for {outcome!r}; the binary outcomes with risks are "
                f"{', '.join(binary) or 'none'}"
            )
    chosen = {}
    for outcome in binary:
        chosen[outcome] = dict(fitted.get(outcome, _DEFAULT_THRESHOLD))
        if outcome in given:
            chosen[outcome] = {"value": float(given[outcome]), "chosen": "given by the caller"}
    return chosen


def _count(labelled: LabelledRisks, *, undefined_resamples: int) -> dict[str, object]:
    return {
        "outcome": labelled.outcome,
        "kind": str(labelled.kind),
        "patients": labelled.patients,
        "samples": len(labelled.label),
        "events": int(labelled.label.sum()) if labelled.kind == "binary" else pd.NA,
        "refused": labelled.refused,
        "unknown": labelled.unknown,
        "undefined_resamples": undefined_resamples,
    }


def _check_resampling(resamples: int, level: float, seed: int) -> None:
    require_counts(resamples=resamples)
    require_numbers(level=level)
    require_whole("seed", seed, least=0)
    if resamples < 0:
        raise InputError(f"the number of resamples must be at least 0, not {resamples}")
    if not 0 < level < 1:
        raise InputError(f"the level of an interval must lie between 0 and 1, such as 0.95; not {level}")


def _plain_rows(table: pd.DataFrame) -> list[dict]:
    rows = table.to_dict("records")
    return [{name: None if pd.isna(value) else value for name, value in row.items()} for row in rows]

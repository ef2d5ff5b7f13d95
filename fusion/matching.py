"""Predicted risks beside the labels of a cohort, joined by patient and prediction time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..datasets.arguments import require_cohort
from ..datasets.errors import InputError
from ..datasets.outcomes import OutcomeKind, encode_outcomes
from .metrics import binary_metrics, categorical_metrics, continuous_metrics

if TYPE_CHECKING:
    from ..datasets import Cohort

# Class risks written to a file with few digits need not sum to 1 exactly; they are divided by their sum.
SUM_TOLERANCE = 1e-3

_KEY = ["subject_id", "prediction_time"]
_RISK_COLUMNS = [*_KEY, "outcome", "risk", "status"]


@dataclass(frozen=True, eq=False)
class LabelledRisks:
    """The risks of one outcome beside the labels that are known, one entry a sample.

    `risk` is [sample], or [sample, class] for a categorical outcome, whose `label` is the number of the
    class; `patient` numbers patients from 0; `position` is the sample's row in the cohort's outcomes.
    """

    outcome: str
    kind: OutcomeKind
    risk: np.ndarray
    label: np.ndarray
    patient: np.ndarray
    position: np.ndarray
    refused: int
    unknown: int

    @property
    def patients(self) -> int:
        return len(np.unique(self.patient))

    def at(self, position: np.ndarray) -> LabelledRisks:
        """The same, of the samples in these rows of the cohort's outcomes only."""
        kept = np.isin(self.position, position)
        return replace(
            self,
            risk=self.risk[kept],
            label=self.label[kept],
            patient=np.unique(self.patient[kept], return_inverse=True)[1],
            position=self.position[kept],
        )

    def check_classes(self) -> None:
        """Raises InputError when the known labels are all of one class."""
        _refuse_one_class(self.outcome, self.kind, self.label, of="samples with a risk")

    def metrics(
        self, rows: np.ndarray, weight: np.ndarray, *, threshold: float | None, names: tuple[str, ...]
    ) -> dict[str, float]:
        """The named metrics on some of the samples, each counted `weight` times."""
        risk, label = self.risk[rows], self.label[rows]
        if self.kind == "binary":
            return binary_metrics(risk, label, threshold=threshold, weight=weight, names=names)
        if self.kind == "categorical":
            return categorical_metrics(risk, label, weight=weight, names=names)
        return continuous_metrics(risk, label, weight=weight, names=names)


def require_labels(cohort: Cohort, kinds: Mapping[str, OutcomeKind]) -> None:
    """Raise `InputError` for one of these outcomes of which no risks could be evaluated, before any are computed."""
    labels, known = encode_outcomes(cohort.outcomes, kinds)
    for place, (outcome, kind) in enumerate(kinds.items()):
        own = labels[known[:, place], place]
        if not len(own):
            raise InputError(
                f"outcome {outcome!r}: none of the {len(cohort)} samples to evaluate on has a known label. Evaluate on "
                "more patients, or leave out this outcome"
            )
        _refuse_one_class(outcome, kind, own, of=f"{len(cohort)} samples to evaluate on")


def _refuse_one_class(outcome: str, kind: OutcomeKind, label: np.ndarray, *, of: str) -> None:
    if kind == "continuous" or label.min() < label.max():
        return
    only = (kind.classes or (0, 1))[int(label[0])]
    other = f"{1 - only}" if kind == "binary" else "another class"
    raise InputError(
        f"outcome {outcome!r}: all {len(label)} known labels of {of} are {only}; AUROC needs both {only} and {other}. "
        "Evaluate on more patients, or leave out the rows of this outcome"
    )


def labelled_risks(risks: pd.DataFrame, cohort: Cohort, *, outcome: str) -> LabelledRisks:
    """The risks of one outcome beside its known labels, joined by patient and prediction time.

    Raises:
        InputError: as `evaluate`, or the outcome has no risks.
    """
    matched = match_risks(risks, cohort)
    if outcome not in matched:
        raise InputError(f"there are no risks of {outcome!r}; there are risks of {', '.join(matched)}")
    return matched[outcome]


def match_risks(risks: pd.DataFrame, cohort: Cohort) -> dict[str, LabelledRisks]:
    """The risks of every outcome that has any beside its known labels, in the cohort's order of outcomes.

    Patients are matched by `subject_id` whether it came as number or as text, prediction times whether
    as times or as ISO 8601 text.

    Raises:
        InputError: as `evaluate`.
    """
    _check_columns(risks)
    require_cohort(cohort)
    samples = cohort.outcomes
    kinds = cohort.outcome_kinds
    names = {outcome: kind.columns(outcome) for outcome, kind in kinds.items()}
    expected = [name for of_outcome in names.values() for name in of_outcome]
    foreign = risks.loc[~risks["outcome"].isin(expected), "outcome"].unique()
    if len(foreign):
        raise InputError(
            f"risks of {', '.join(map(str, foreign[:5]))}: the cohort has no such outcome, its risks would be "
            f"called {', '.join(expected)}. Give the cohort the model's outcomes, outcome_kinds=model.outcomes; leave "
            "those rows out; or add the labels to the cohort"
        )
    position = _positions(risks, samples)
    inside = position >= 0
    if not inside.any():
        raise InputError(
            f"none of the {len(risks)} rows of risks belongs to one of the cohort's {len(samples)} samples "
            f"(subject_id came as {risks['subject_id'].dtype}, in the cohort as "
            f"{samples['subject_id'].dtype}). Predict on this cohort; when reading risks from CSV, read "
            "subject_id as text if the cohort has text"
        )
    rows = risks.loc[inside].assign(position=position[inside])
    _check_duplicates(rows)
    labels, known = encode_outcomes(samples, kinds)
    return {
        outcome: _labelled(rows, samples["subject_id"], outcome, kind, labels[:, place], known[:, place])
        for place, (outcome, kind) in enumerate(kinds.items())
        if rows["outcome"].isin(names[outcome]).any()
    }


def _labelled(
    rows: pd.DataFrame, subjects: pd.Series, outcome: str, kind: OutcomeKind, label: np.ndarray, known: np.ndarray
) -> LabelledRisks:
    names = kind.columns(outcome)
    risk = np.full((len(subjects), len(names)), np.nan)
    accepted = np.zeros(risk.shape, dtype=bool)
    present = np.zeros(risk.shape, dtype=bool)
    for column, name in enumerate(names):
        of_name = rows[rows["outcome"] == name]
        position = of_name["position"].to_numpy()
        risk[position, column] = of_name["risk"].to_numpy(dtype=np.float64)
        accepted[position, column] = (of_name["status"] == "ok").to_numpy()
        present[position, column] = True
    missing = int((~present.all(axis=1)).sum())
    if missing:
        raise InputError(
            f"outcome {outcome!r}: {missing} of the cohort's {len(subjects)} samples have no row of risks, "
            "neither ok nor refused. Predict on the whole cohort, or filter the cohort to what was predicted"
        )
    accepted = accepted.all(axis=1)
    _check_range(risk[accepted], outcome, kind)

    used = np.flatnonzero(accepted & known)
    if not len(used):
        raise InputError(
            f"outcome {outcome!r}: no sample has both a known label and a risk; of {len(subjects)} samples "
            f"{int((~known).sum())} have no known label and {int((~accepted).sum())} a refused risk (see the "
            "column status)"
        )
    return LabelledRisks(
        outcome=outcome,
        kind=kind,
        risk=risk[used] / risk[used].sum(axis=1, keepdims=True) if kind == "categorical" else risk[used, 0],
        label=label[used].astype(np.float64 if kind == "continuous" else np.int64),
        patient=np.unique(subjects.to_numpy()[used], return_inverse=True)[1],
        position=used,
        refused=int((known & ~accepted).sum()),
        unknown=int((~known).sum()),
    )


def _positions(risks: pd.DataFrame, samples: pd.DataFrame) -> np.ndarray:
    """For each row of risks the row of its sample, −1 where the sample is not the cohort's."""
    as_numbers = all(pd.api.types.is_integer_dtype(table["subject_id"]) for table in (risks, samples))
    keys = [
        pd.MultiIndex.from_arrays(
            [table["subject_id"] if as_numbers else _subject_text(table["subject_id"]), _times(table)]
        )
        for table in (risks, samples)
    ]
    return keys[1].get_indexer(keys[0])


def _subject_text(subject: pd.Series) -> pd.Series:
    if pd.api.types.is_float_dtype(subject):
        raise InputError(
            "subject_id came as decimal numbers, as happens when a CSV file lacks some: read the column as text "
            "or as whole numbers"
        )
    return subject.astype("str")


def _times(table: pd.DataFrame) -> pd.Series:
    time = table["prediction_time"]
    if not pd.api.types.is_datetime64_any_dtype(time):
        text = time.astype("str")
        try:
            time = pd.to_datetime(text, format="ISO8601", errors="coerce")
        except ValueError:
            # Zones that differ, as on both sides of a change of the clock.
            time = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
        if time.isna().any():
            raise InputError(
                f"{int(time.isna().sum())} of {len(time)} prediction times are not times; expected ISO 8601 text "
                "such as 2024-05-01 08:00:00"
            )
    if getattr(time.dtype, "tz", None) is not None:
        raise InputError(
            "prediction times carry a time zone, and the cohort's do not: where its tables had zones they are UTC. "
            "Convert yours to what they are, and remove the zone: "
            "pandas.to_datetime(risks['prediction_time'], utc=True).dt.tz_localize(None)"
        )
    return time.astype("datetime64[us]")


def _check_columns(risks: pd.DataFrame) -> None:
    if not isinstance(risks, pd.DataFrame):
        raise InputError(
            f"risks came as a {type(risks).__name__}; expected the DataFrame that predict returns. Of a file: "
            "pandas.read_csv(path)."
        )
    lacking = [column for column in _RISK_COLUMNS if column not in risks.columns]
    if lacking:
        raise InputError(
            f"risks lack the columns {', '.join(lacking)}; expected {', '.join(_RISK_COLUMNS)}, came "
            f"{', '.join(map(str, risks.columns))}"
        )
    empty = [column for column in (*_KEY, "outcome", "status") if risks[column].isna().any()]
    if empty:
        raise InputError(f"risks have rows without a value in {', '.join(empty)}; only risk may be missing")
    if not pd.api.types.is_numeric_dtype(risks["risk"]):
        raise InputError(f"the column risk must hold numbers, not {risks['risk'].dtype}")


def _check_duplicates(rows: pd.DataFrame) -> None:
    repeated = int(rows.duplicated(["position", "outcome"]).sum())
    if repeated:
        raise InputError(
            f"{repeated} of {len(rows)} rows of risks repeat a patient, prediction time and outcome; keep one "
            "prediction of each, from one model"
        )


def _check_range(risk: np.ndarray, outcome: str, kind: str) -> None:
    bad = int((~np.isfinite(risk)).any(axis=1).sum())
    if bad:
        raise InputError(
            f"outcome {outcome!r}: {bad} of {len(risk)} risks with status ok are not finite numbers; a risk is "
            "finite, or refused with a reason in the column status"
        )
    if kind == "continuous" or not risk.size:
        return
    if risk.min() < 0 or risk.max() > 1:
        raise InputError(
            f"outcome {outcome!r}: risks must lie in [0, 1], came {risk.min():.4g} to {risk.max():.4g}; pass "
            "probabilities, not logits or percentages. If the model predicts numbers, give the cohort its outcomes: "
            "outcome_kinds=model.outcomes"
        )
    off = np.abs(risk.sum(axis=1) - 1) > SUM_TOLERANCE
    if kind == "categorical" and off.any():
        raise InputError(
            f"outcome {outcome!r}: the risks of the classes do not sum to 1 in {int(off.sum())} of {len(risk)} "
            "samples; expected one row a class from one prediction"
        )

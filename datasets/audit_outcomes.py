"""What predicts the outcome and should not: what is missing, where the data come from, a column that is the outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from .audit_findings import Finding, Material, Place, counted
from .cohort import Cohort
from .windows import EVENTS

ENOUGH = 10
"""Patients with, and without, an outcome below which nothing is said of what predicts it."""

ABOVE_CHANCE = 0.6
"""AUROC, low end of its interval, from which missingness or the source alone predicts an outcome."""

DECIDES = 0.9
"""And from which it decides it, so that a score tells of the data's making alone."""

EQUALS = 0.98
"""AUROC, low end of its interval, from which a column is the outcome; a column of truth values that is
wrong in 2 % of the patients has 0.98. The best single laboratory values and scores reach 0.9."""

NEARLY = 0.93
"""And from which it nearly is."""

LEVEL = 0.95
RESAMPLES = 400
FOLDS = 5
MOST_CODES = 50
"""Codes of labs that the model of missingness has an indicator of: the commonest."""

_SOURCE_WORDS = (
    *("site", "hospital", "center", "centre", "source", "institution", "clinic", "facility", "location", "ward"),
    *("scanner", "manufacturer", "machine", "device", "vendor", "equipment", "dataset", "database", "batch", "view"),
)
"""Words in the name of a static column that says where the data come from rather than how the patient is."""


class Power(NamedTuple):
    """How well something alone tells an outcome."""

    auroc: float
    low: float
    """Low end of the interval, by resampling patients."""
    high: float

    def __str__(self) -> str:
        return f"AUROC {self.auroc:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Label:
    """An outcome as yes or no: a class against the others, a number above its median."""

    name: str
    event: np.ndarray
    """bool `[sample]`."""
    known: np.ndarray
    """int64: the samples of which it is known."""


def labels_of(cohort: Cohort) -> Iterator[Label]:
    """Every outcome as one or more yes-or-no questions."""
    for name, kind in cohort.outcome_kinds.items():
        values = cohort.outcomes[name]
        known = np.flatnonzero(values.notna())
        if kind == "categorical":
            classes = kind.classes if len(kind.classes) > 2 else kind.classes[:1]
            for label in classes:
                yield Label(f"{name}={label}", (values == label).fillna(False).to_numpy(bool), known)
        elif kind == "binary":
            yield Label(name, (values == 1).to_numpy(bool), known)
        else:
            yield Label(f"{name} above its median", (values > values.median()).to_numpy(bool), known)


def enough(event: Bool[np.ndarray, " sample"], patient: Int[np.ndarray, " sample"]) -> bool:
    """Whether there are enough patients with and without the event."""
    return min(len(np.unique(patient[event])), len(np.unique(patient[~event]))) >= ENOUGH


def predictive_power(
    event: Bool[np.ndarray, " sample"],
    score: Float[np.ndarray, " sample"],
    patient: Int[np.ndarray, " sample"],
    *,
    at_least: float = 0.0,
) -> Power | None:
    """AUROC of a score with its interval; None where patients are too few, or it is below `at_least`.

    The interval is a percentile one over resampled patients, all samples of a patient together.
    """
    if not enough(event, patient):
        return None
    place = np.unique(score, return_inverse=True)[1]
    value = _auroc(event, place, np.ones(len(event)))
    if value < at_least:
        return None
    number = pd.factorize(patient)[0]
    patients = int(number.max()) + 1
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        weight = np.bincount(generator.integers(patients, size=patients), minlength=patients)[number]
        if weight[event].any() and weight[~event].any():
            drawn.append(_auroc(event, place, weight))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Power(value, float(low), float(high))


def _auroc(event: np.ndarray, place: np.ndarray, weight: np.ndarray) -> float:
    """Share of pairs in which the sample with the event has the higher score, ties as half.

    Args:
        place: number of each sample's score among the different scores, in ascending order.
        weight: how often each sample counts.
    """
    with_event = np.bincount(place, weight * event)
    without = np.bincount(place, weight * ~event)
    pairs = with_event.sum() * without.sum()
    return float((with_event * (np.cumsum(without) - without / 2)).sum() / pairs)


def out_of_fold(
    inputs: Float[np.ndarray, "sample column"], event: Bool[np.ndarray, " sample"], patient: Int[np.ndarray, " sample"]
) -> Float[np.ndarray, " sample"]:
    """Log-odds of the event by logistic regression, each patient's by a model that never saw the patient."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fold = _folds(event, patient)
    score = np.zeros(len(event))
    for number in range(FOLDS):
        rest, own = fold != number, fold == number
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        model.fit(inputs[rest], event[rest])
        score[own] = model.decision_function(inputs[own])
    return score


def _folds(event: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """A fold for each sample, by patient; those who ever have the event are dealt out evenly."""
    number, patients = pd.factorize(patient)
    ever = np.bincount(number, weights=event, minlength=len(patients)) > 0
    place = np.empty(len(patients), int)
    generator = np.random.default_rng(0)
    for side in (ever, ~ever):
        place[generator.permutation(np.flatnonzero(side))] = np.arange(side.sum())
    return (place % FOLDS)[number]


# What is missing


def check_missingness(material: Material) -> Iterator[Finding]:
    """Whether what was recorded at all, and how often, predicts an outcome."""
    inputs = _recorded(material.cohort)
    inputs = inputs.loc[:, inputs.nunique() > 1]
    if inputs.empty:
        return
    labels = list(labels_of(material.cohort))
    for label in labels:
        rows, patient = label.known, material.sample_patient[label.known]
        if not enough(label.event[rows], patient):
            continue
        table = inputs.iloc[rows]
        score = out_of_fold(table.to_numpy(float), label.event[rows], patient)
        power = _beyond_chance(label.event[rows], score, patient, len(labels))
        if power is None:
            continue
        most = _strongest(table, label.event[rows])
        yield Finding(
            "invalidates" if power.low >= DECIDES else "misleads",
            "missingness predicts",
            1,
            Place("outcomes", label.name),
            f"What was recorded at all, without any value, predicts {label.name}: {power}; most of it {most}.",
            "Ask why it was recorded of some patients only. If that comes with the outcome, take the same of all; if "
            "with the course of care, report the score beside this one.",
        )


def _recorded(cohort: Cohort) -> pd.DataFrame:
    """What each sample has and how much, without any value."""
    columns = {f"any {name}": has.astype(float) for name, has in cohort.has_input().items()}
    for name in EVENTS:
        columns[f"number of {name}"] = np.log1p(np.diff(cohort.window(name).offsets))
    for code, rows in code_rows(cohort, MOST_CODES):
        columns[f"lab {code}"] = np.isin(np.arange(len(cohort)), rows["sample"]).astype(float)
    if cohort.static is not None:
        facts = cohort.static.set_index("subject_id").notna().reindex(cohort.outcomes["subject_id"], fill_value=False)
        columns |= {f"static {column}": facts[column].to_numpy(float) for column in facts}
    return pd.DataFrame({name: np.asarray(values) for name, values in columns.items()})


def _strongest(table: pd.DataFrame, event: np.ndarray) -> str:
    apart = (table[event].mean() - table[~event].mean()) / table.std()
    return f'"{apart.abs().idxmax()}"'


def code_rows(cohort: Cohort, most: int | None = None) -> Iterator[tuple[str, pd.DataFrame]]:
    """The labs of each code that samples see: `sample` (position) and `value`, in order of time.

    Args:
        most: codes, the commonest; None for all.
    """
    if cohort.labs is None or not len(cohort.labs):
        return
    window = cohort.window("labs")
    codes = cohort.labs["code"].astype("category").cat
    code = codes.codes.to_numpy()[window.rows]
    order = np.argsort(code, kind="stable")
    ends = np.searchsorted(code[order], np.arange(len(codes.categories) + 1))
    samples, values = window.samples, cohort.labs["value"].to_numpy()[window.rows]
    wanted = np.argsort(-np.diff(ends), kind="stable")[:most]
    for number in sorted(wanted):
        rows = order[ends[number] : ends[number + 1]]
        if len(rows):
            yield str(codes.categories[number]), pd.DataFrame({"sample": samples[rows], "value": values[rows]})


# Where the data come from


def check_sources(material: Material) -> Iterator[Finding]:
    """Whether the site, the source or the make of a file predicts an outcome."""
    sources = static_sources(material) | _image_sources(material)
    labels = list(labels_of(material.cohort))
    for (table, column), told in sources.items():
        for label in labels:
            rows = label.known[told.notna().to_numpy()[label.known]]
            values, patient, event = told.iloc[rows], material.sample_patient[rows], label.event[rows]
            # A word that one patient alone has says nothing that could be checked.
            values = values.where(values.map(pd.Series(patient, values).groupby(level=0).nunique()) > 1, "other")
            if values.nunique() < 2 or not enough(event, patient):
                continue
            score = out_of_fold(pd.get_dummies(values).to_numpy(float), event, patient)
            power = _beyond_chance(event, score, patient, len(labels) * len(sources))
            if power is None:
                continue
            yield Finding(
                "invalidates" if power.low >= DECIDES else "misleads",
                "source predicts",
                1,
                Place(table, column),
                f"{column} of {table} alone predicts {label.name}: {power}, "
                f"{counted(len(np.unique(patient)), 'patient')}.",
                "A model may learn where the data come from: divide by it (Cohort.split_by_site), or report the score "
                "within each source, beside what it gives alone.",
            )


def static_sources(material: Material) -> dict[tuple[str, str], pd.Series]:
    """What was given as a source, and static columns that name one: one value a sample, by table and column."""
    cohort = material.cohort
    found = {("sources", name): told.astype(object) for name, told in material.sources.items()}
    if cohort.static is not None:
        facts = cohort.static.set_index("subject_id").reindex(cohort.outcomes["subject_id"]).reset_index(drop=True)
        for column in facts:
            if any(word in str(column).lower() for word in _SOURCE_WORDS):
                found["static", column] = facts[column].astype(object)
    return found


def _image_sources(material: Material) -> dict[tuple[str, str], pd.Series]:
    """How the last image that each sample sees was made and kept."""
    cohort, found = material.cohort, {}
    window = cohort.window("images")
    if len(window.rows):
        shown = np.diff(window.offsets) > 0
        last = window.rows[np.maximum(window.offsets[1:] - 1, 0)]
        pictures, images = material.pictures, cohort.images
        shape = pd.Series([pictures.looks[k].shape or None for k in pictures.look], dtype=object)
        kinds = {"file type": images["path"].map(lambda path: PurePath(path).suffix.lower())}
        kinds |= {"folder": images["path"].map(lambda path: str(PurePath(path).parent)), "size in pixels": shape}
        if "view" in images.columns:
            kinds["view"] = images["view"]
        for name, values in kinds.items():
            own = values.astype(object).reset_index(drop=True).iloc[last].where(shown, None).reset_index(drop=True)
            found["images", name] = own
    return found


# A column that is the outcome


def check_columns(material: Material) -> Iterator[Finding]:
    """Whether one static column or one lab tells an outcome almost without error, either way round."""
    columns = list(_columns(material.cohort))
    for label in labels_of(material.cohort):
        for table, column, samples, values in columns:
            known = np.isin(samples, label.known)
            rows = samples[known]
            event, patient, own = label.event[rows], material.sample_patient[rows], values[known]
            if len(np.unique(own.astype(str) if own.dtype == object else own)) < 2 or not enough(event, patient):
                continue
            score = _class_scores(own, event, patient) if own.dtype == object else own
            power = _either_way(event, score, patient)
            if power is None or power.low < NEARLY or _by_chance(power.auroc, event, patient, len(columns)):
                continue
            equal = power.low >= EQUALS
            yield Finding(
                "invalidates" if equal else "misleads",
                "column equals outcome",
                1,
                Place(table, column),
                f"{column} alone tells {label.name}{'' if equal else ' almost'}: {power}, "
                f"{counted(len(np.unique(patient)), 'patient')}.",
                "Find out when it is written: what follows from the outcome is no input. Leave it out, or state when "
                "it was known (available_at).",
            )


def _columns(cohort: Cohort) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Table, column, samples that have it, and values: numbers, or objects for categories."""
    if cohort.static is not None:
        facts = cohort.static.set_index("subject_id").reindex(cohort.outcomes["subject_id"])
        for column in facts:
            have = np.flatnonzero(facts[column].notna())
            numeric = pd.api.types.is_numeric_dtype(facts[column].dtype)
            yield "static", column, have, facts[column].iloc[have].to_numpy(float if numeric else object)
    everyone = np.arange(len(cohort))
    for code, rows in code_rows(cohort):
        last = rows.drop_duplicates("sample", keep="last")
        yield "labs", f"value of {code}", last["sample"].to_numpy(), last["value"].to_numpy(float)
        yield "labs", f"whether {code} was measured", everyone, np.isin(everyone, last["sample"]).astype(float)


def _class_scores(values: np.ndarray, event: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """For each sample, how often others of its category, in other folds, have the event."""
    fold = _folds(event, patient)
    score = np.full(len(event), event.mean())
    table = pd.DataFrame({"value": values.astype(str), "event": event, "fold": fold})
    for number in range(FOLDS):
        rest = table[table["fold"] != number].groupby("value")["event"].mean()
        own = fold == number
        score[own] = table["value"][own].map(rest).fillna(event[~own].mean())
    return score


def _either_way(event: np.ndarray, score: np.ndarray, patient: np.ndarray) -> Power | None:
    upright = predictive_power(event, score, patient, at_least=NEARLY)
    return upright if upright is not None else predictive_power(event, -score, patient, at_least=NEARLY)


def _beyond_chance(event: np.ndarray, score: np.ndarray, patient: np.ndarray, tries: int) -> Power | None:
    """How well a score predicts, where that is more than one of so many would by chance."""
    power = predictive_power(event, score, patient, at_least=ABOVE_CHANCE)
    if power is None or power.low < ABOVE_CHANCE or _by_chance(power.auroc, event, patient, tries):
        return None
    return power


def _by_chance(auroc: float, event: np.ndarray, patient: np.ndarray, tries: int) -> bool:
    """Whether one of so many scores may well reach such an AUROC by chance: a bound on its chance of 1 %.

    Patients count, not samples: those of one patient are no further evidence.

    Source: Hanley and McNeil, Radiology 143:29-36 (1982), for the variance without any relation.
    """
    ever = pd.Series(event).groupby(patient).max()
    events, others = int(ever.sum()), int((~ever).sum())
    # A patient whose outcome changes counts on the scarcer side.
    events, others = max(events, 1), max(others, 1)
    spread = np.sqrt((events + others + 1) / (12 * events * others))
    # Of a normal variable, P(|z| > x) <= exp(-x² / 2).
    return bool(tries * np.exp(-np.square((auroc - 0.5) / spread) / 2) > 0.01)

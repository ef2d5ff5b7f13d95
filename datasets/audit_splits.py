"""Patients in two parts of a division, under one id or under two, and samples that count twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd

from .audit_findings import Finding, Material, Place, Shared, counted, linked, row_groups, single_rows
from .windows import EVENTS, Window

SURE_BITS = 15
"""Two records are one patient's if their likeness by chance is rarer than one pair of patients in so many
powers of two (33,000) cohorts of this size."""

SAME_RECORD = 0.8
"""Share of the larger of two lab records that must stand in both, of the rows that few patients have."""

_FEW_OWNERS = 3
"""A lab row that more patients have says nothing of who they are."""

_MOST_FACTS = 30
# Facts depend on each other where those who agree in one agree in the other so many times more often than all.
_DEPENDENT, _FEW_PAIRS = 4, 3

AT_ONCE = np.timedelta64(5, "m")
"""Two predictions of one patient this close, from the same input, are one sample."""


def check_division(material: Material) -> Iterator[Finding]:
    """Patients in two parts, and patients in none."""
    division = material.division
    if not division.parts:
        return
    parts = division.member.sum(axis=1)
    doubled = np.flatnonzero(parts > 1)
    if len(doubled):
        rows = [np.flatnonzero(material.sample_patient == one) for one in doubled]
        groups = [Shared(np.array([one]), own) for one, own in zip(doubled, rows, strict=True)]
        yield Finding(
            "invalidates",
            "patients in two parts",
            len(doubled),
            Place("outcomes", "subject_id", row_groups(groups), division.names(doubled)),
            f"{counted(len(doubled), 'patient stands', 'patients stand')} in more than one part, of "
            f"{material.cohort.subjects:,}.",
            "Divide by patient, not by row: cohort.split(...) or Cohort.split_by_table. Models that were trained on "
            "this division have seen patients whom they are tested on.",
        )
    nowhere = np.flatnonzero(parts == 0)
    if len(nowhere):
        yield Finding(
            "note",
            "patients in no part",
            len(nowhere),
            Place("outcomes", "subject_id", tuple((row,) for row in material.samples_of(nowhere[:20]))),
            f"{counted(len(nowhere), 'patient stands', 'patients stand')} in no part, of {material.cohort.subjects:,}.",
            "Nothing, if they are to be left out; else name them in the division.",
        )


# One patient under two ids


def check_twins(material: Material) -> Iterator[Finding]:
    """Pairs of ids whose records are so alike that they are one patient's."""
    facts = _fact_codes(material)
    evidence = {
        "lab series": _same_labs(material),
        "static facts": _same_facts(material, facts),
        "images and static facts": _same_pictures(material, facts),
        "notes and static facts": _with_same_facts([group.patients for group in material.note_groups.copies], facts),
    }
    pairs = sorted(set().union(*evidence.values()))
    if not pairs:
        return
    told = ", ".join(f"equal {what} in {len(found)}" for what, found in evidence.items() if found)
    groups = [Shared(group, np.array(material.samples_of(group)) - 1) for group in linked(np.array(pairs))]
    for severity, some, parts in material.shared(groups):
        yield Finding(
            "misleads" if severity == "note" else severity,
            "one patient under two ids",
            len(some),
            Place("outcomes", "subject_id", row_groups(some), parts),
            f"{counted(len(some), 'patient seems', 'patients seem')} to stand under more than one subject_id "
            f"(pairs of all: {told}).",
            "Give one patient one subject_id before the cohort is divided; look at the rows that stand together.",
        )


def _bits_needed(material: Material) -> float:
    patients = material.cohort.subjects
    return float(np.log2(max(patients * (patients - 1) / 2, 1))) + SURE_BITS


def _fact_codes(material: Material) -> pd.DataFrame:
    """Static facts as numbers of their values, one row a patient; -1 where unknown."""
    static = material.cohort.static
    if static is None:
        return pd.DataFrame(index=range(len(material.patients)))
    facts = static.set_index("subject_id").reindex(material.patients).reset_index(drop=True)
    return facts.apply(lambda column: pd.Series(pd.factorize(column)[0]))


def _bits(codes: np.ndarray) -> float:
    """How much it says that two agree in this: -log2 of the share of pairs that do; one pair at least."""
    pairs = len(codes) * (len(codes) - 1) / 2
    return float(np.log2(pairs / max(_pairs(codes), 1))) if pairs else 0.0


def _pairs(codes: np.ndarray | pd.Series) -> float:
    """How many pairs agree."""
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * (counts - 1) / 2).sum())


def _same_facts(material: Material, facts: pd.DataFrame) -> set[tuple[int, int]]:
    """Patients whose static facts are equal and say enough to be one patient's alone."""
    if facts.empty:
        return set()
    weight = _further_bits(facts)
    bits = (facts[weight.index] >= 0).to_numpy() @ weight.to_numpy()
    telling = facts[bits >= _bits_needed(material)]
    pairs = set()
    for _, own in telling.groupby(list(telling.columns)):
        if 1 < len(own) <= _FEW_OWNERS:
            pairs |= set(combinations(own.index.tolist(), 2))
    return pairs


def _further_bits(facts: pd.DataFrame) -> pd.Series:
    """How much each fact says beyond any one of those that say more: a hospital's town follows from its name.

    At most `_MOST_FACTS` facts, those that say most.
    """
    # Patients who are equal in all are those in question.
    distinct = facts.drop_duplicates()
    alone = pd.Series({column: _bits(distinct[column][distinct[column] >= 0].to_numpy()) for column in facts})
    further = alone.astype(float).sort_values(ascending=False, kind="stable").head(_MOST_FACTS)
    for place, column in enumerate(further.index):
        for other in further.index[:place]:
            own = distinct[[column, other]][(distinct[[column, other]] >= 0).all(axis=1)]
            agreeing, both = _pairs(own[other]), _pairs(own.groupby([column, other]).ngroup())
            if both >= _FEW_PAIRS and both > _DEPENDENT * agreeing * 2 ** -alone[column]:
                further[column] = min(further[column], np.log2(agreeing / both))
    return further


def _with_same_facts(groups: list[np.ndarray], facts: pd.DataFrame) -> set[tuple[int, int]]:
    """The pairs of patients of these groups who also have the same static facts, and some."""
    if facts.empty:
        return set()
    table = facts.to_numpy()
    pairs = (pair for group in groups if len(group) <= 50 for pair in combinations(group.tolist(), 2))
    return {(a, b) for a, b in pairs if (table[a] == table[b]).all() and (table[a] >= 0).any()}


def _same_pictures(material: Material, facts: pd.DataFrame) -> set[tuple[int, int]]:
    if facts.empty or material.cohort.images is None:
        return set()
    identical, near = material.picture_groups
    return _with_same_facts([group.patients for group in (*identical, *near)], facts)


def _same_labs(material: Material) -> set[tuple[int, int]]:
    """Patients with the same lab series, at the same times or at the same distances of time."""
    labs = material.cohort.labs
    if labs is None or not len(labs):
        return set()
    minute = labs["time"].to_numpy().astype("datetime64[m]").astype(np.int64)
    table = pd.DataFrame(
        {
            "patient": material.positions("labs"),
            "code": labs["code"].astype("category").cat.codes.to_numpy(),
            "value": labs["value"].to_numpy(),
            "minute": minute,
        }
    )
    needed = _bits_needed(material)
    # A copy may keep its dates, or have had them shifted.
    shifted = table.assign(minute=minute - table.groupby("patient")["minute"].transform("min"))
    return _alike(table.drop_duplicates(), needed) | _alike(shifted.drop_duplicates(), needed)


def _alike(table: pd.DataFrame, needed: float) -> set[tuple[int, int]]:
    """Pairs of patients who share most of their rows, among rows that few others have."""
    table = table.assign(row=table.groupby(["code", "minute", "value"]).ngroup())
    weight = {code: _bits(own.to_numpy()) for code, own in table.groupby("code")["row"]}
    owners = np.bincount(table["row"])[table["row"]]
    few = table[(owners > 1) & (owners <= _FEW_OWNERS)]
    # What many have counts neither for a pair nor against it.
    rows = table["patient"][owners <= _FEW_OWNERS].value_counts()
    pairs = few.merge(few[["row", "patient"]], on="row", suffixes=("", "_other"))
    pairs = pairs[pairs["patient"] < pairs["patient_other"]]
    both = ["patient", "patient_other"]
    # The same number once more says less: some quantities hardly move within a patient.
    once = pairs.drop_duplicates([*both, "code", "value"])
    bits = once.assign(bits=once["code"].map(weight)).groupby(both)["bits"].sum()
    shared = pairs.groupby(both).size()
    of_both = np.maximum(*(rows[shared.index.get_level_values(name)].to_numpy() for name in both))
    alike = (shared.to_numpy() >= SAME_RECORD * of_both) & (bits.to_numpy() >= needed)
    return {(int(one), int(other)) for one, other in shared.index[alike]}


# Samples and rows that count twice


def check_samples(material: Material) -> Iterator[Finding]:
    """Samples of one patient that see the very same, and rows that stand twice."""
    cohort = material.cohort
    spans = np.stack([cohort.window(name).offsets for name in EVENTS], axis=1)
    counts = np.diff(spans, axis=0)
    # A patient's samples see slices of one sorted table: the same count and the same first row is the same input.
    first = np.stack([_first_rows(cohort.window(name)) for name in EVENTS], axis=1)
    same = (counts[1:] == counts[:-1]).all(axis=1) & ((first[1:] == first[:-1]) | (counts[1:] == 0)).all(axis=1)
    same &= (material.sample_patient[1:] == material.sample_patient[:-1]) & (counts[1:].sum(axis=1) > 0)
    apart = cohort.outcomes["prediction_time"].diff().iloc[1:].to_numpy()
    for severity, rows, words in (
        ("misleads", same & (apart <= AT_ONCE), "within five minutes"),
        ("note", same & (apart > AT_ONCE), "later"),
    ):
        again = np.flatnonzero(rows) + 1
        if len(again):
            yield Finding(
                severity,
                "samples twice",
                len(again),
                Place("outcomes", "prediction_time", tuple((int(row), int(row) + 1) for row in again[:20])),
                f"{counted(len(again), 'sample sees', 'samples see')} the very same as the patient's sample before, "
                f"{words}, of {len(cohort):,}.",
                "Keep one of them: they are no further evidence. Intervals over patients are right as they are.",
            )
    if cohort.labs is not None:
        again = cohort.labs.duplicated(["subject_id", "time", "code", "value"]).to_numpy()
        if again.any():
            yield Finding(
                "note",
                "lab rows twice",
                int(again.sum()),
                Place("labs", None, single_rows(np.flatnonzero(again))),
                f"{counted(int(again.sum()), 'row has', 'rows have')} patient, time, code and value of "
                f"another, of {len(again):,}.",
                "Remove them, unless they are two readings indeed: counts of measurements are inputs as well.",
            )


def _first_rows(window: Window) -> np.ndarray:
    """The first row that each sample sees; any where it sees none."""
    if not len(window.rows):
        return np.zeros(len(window.offsets) - 1, np.int64)
    return window.rows[np.minimum(window.offsets[:-1], len(window.rows) - 1)]

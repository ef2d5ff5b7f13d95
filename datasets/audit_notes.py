"""Notes that stand for more than one patient, and notes that tell the outcome."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from .audit_findings import Finding, Material, Place, Shared, counted, row_groups, single_rows
from .audit_outcomes import Label, labels_of, predictive_power
from .leakage import OUTCOME_TEXT, remove_outcome_text, sentences
from .progress import progress_bar

LONG = 12
"""Words from which equal notes are worth a remark. Of 680 sentences of the COVID-19 collection's notes, no
two patients share one of that length."""

OWN_WORDS = 25
"""Words that patients share, in sentences that no other patient's note has, from which they are no stock
text: one or two sentences of a customary report ("The lungs are clear. ...") stay below."""

OF_ONE = 3
"""Ids at most under which one patient's note is taken to stand. What more patients share is a stock text."""

TEMPLATES = 3
"""Texts that three or more patients share, from which a cohort's notes are templates (if these are also a
tenth of all shared texts): then pairs come about by chance as well."""

BY_CHANCE = 1e-3
"""Chance below which outcome words and any of the outcomes are taken to go together."""

TOLD = 0.9
"""AUROC of outcome words alone, low end of its interval, from which the notes tell the outcome."""

_WORD = re.compile(r"\w+")


class NoteGroups(NamedTuple):
    """Long notes that patients share."""

    copies: tuple[Shared, ...]
    """With enough words of their own."""
    templates: tuple[Shared, ...]
    """Stock texts, and all shared notes where the cohort's are written from templates."""


def shared_notes(notes: pd.DataFrame | None, patient: np.ndarray) -> NoteGroups:
    """Long notes that several patients share, but for case, space and punctuation.

    "Normal." stands in many notes, and so do the sentences of a template. A copy is told by sentences that
    stand in no other patient's notes.

    Args:
        notes: the cohort's.
        patient: of each note.
    """
    if notes is None or not len(notes):
        return NoteGroups((), ())
    plain = notes["text"].map(_plain)
    long = (plain.str.count(" ") >= LONG - 1).to_numpy(bool)
    rows = pd.DataFrame({"text": plain, "patient": patient, "row": np.arange(len(plain))})[long]
    owners = rows.groupby("text")["patient"].transform("nunique")
    groups = [
        Shared(np.unique(own["patient"]), own["row"].to_numpy())
        for _, own in rows[owners > 1].groupby("text", sort=False)
    ]
    many = sum(len(group.patients) > 2 for group in groups)
    if many >= TEMPLATES and many >= 0.1 * len(groups):
        return NoteGroups((), tuple(groups))
    stock = tuple(group for group in groups if len(group.patients) > OF_ONE)
    groups = [group for group in groups if len(group.patients) <= OF_ONE]
    told = [_sentences(notes["text"].iloc[group.rows[0]]) for group in groups]
    seen = _patients_by_sentence(notes["text"], patient, set().union(*told)) if groups else {}
    # All that the same patients share counts together.
    own_words: Counter[tuple[int, ...]] = Counter()
    for some, group in zip(told, groups, strict=True):
        patients = tuple(group.patients.tolist())
        own_words[patients] += sum(len(sentence.split()) for sentence in some if seen[sentence] <= set(patients))
    copied = [own_words[tuple(group.patients.tolist())] >= OWN_WORDS for group in groups]
    copies = tuple(group for group, own in zip(groups, copied, strict=True) if own)
    return NoteGroups(copies, stock + tuple(group for group, own in zip(groups, copied, strict=True) if not own))


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))


def _sentences(text: str) -> set[str]:
    return {_plain(sentence) for sentence in sentences(text)}


def _patients_by_sentence(texts: pd.Series, patient: np.ndarray, wanted: set[str]) -> dict[str, set[int]]:
    seen: dict[str, set[int]] = {sentence: set() for sentence in wanted}
    with progress_bar("comparing notes", len(texts)) as advance:
        for one, text in zip(patient.tolist(), texts, strict=True):
            for sentence in _sentences(text) & wanted:
                seen[sentence].add(one)
            advance(1)
    return seen


def check_notes(material: Material) -> Iterator[Finding]:
    """Notes that two patients share."""
    for severity, groups, parts in material.shared(material.note_groups.copies):
        yield Finding(
            severity,
            "identical notes",
            len(groups),
            Place("notes", "text", row_groups(groups), parts),
            f"{counted(len(groups), 'long note stands', 'long notes stand')} for more than one patient, word by word.",
            "Give the notes of one patient one subject_id, or remove the copies, before the cohort is divided; look "
            "at the rows that stand together.",
        )
    templates = material.note_groups.templates
    if templates:
        yield Finding(
            "note",
            "notes from templates",
            len(templates),
            Place("notes", "text", row_groups(templates)),
            f"{counted(len(templates), 'long note stands', 'long notes stand')} for more than one patient, taken "
            "for a stock text or a template: copies among such notes are not told apart.",
            "Nothing, if notes are written from templates here. Else look at the rows that stand together.",
        )


def check_outcome_words(material: Material) -> Iterator[Finding]:
    """Words in notes that samples see and that tell what is to be predicted, by topic."""
    cohort = material.cohort
    window = cohort.window("notes")
    visible = np.unique(window.rows)
    if not len(visible):
        return
    noted = np.diff(window.offsets) > 0
    texts = cohort.notes["text"].iloc[visible]
    labels = list(labels_of(cohort))
    for topic, patterns in OUTCOME_TEXT.items():
        expression = re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.I)
        telling = np.zeros(len(cohort.notes), bool)
        telling[visible] = [expression.search(text) is not None for text in texts]
        if not telling.any():
            continue
        _, report = remove_outcome_text(texts[telling[visible]], {topic: patterns})
        told = np.zeros(len(cohort), bool)
        told[window.samples[telling[window.rows]]] = True
        severity, words = "note", ""
        for label in labels:
            grave, with_figures = _go_together(label, told, noted, material, BY_CHANCE / len(labels))
            if grave != "note" and severity != "invalidates":
                severity, words = grave, with_figures
        yield Finding(
            severity,
            f"outcome words: {topic}",
            report.touched,
            Place("notes", "text", single_rows(np.flatnonzero(telling))),
            f"Samples see {counted(report.touched, 'note that speaks', 'notes that speak')} of {topic} "
            f"({counted(report.removed, 'sentence')}){words}.",
            "Read some of them. If that is what is to be predicted, take such sentences out: "
            "datasets.leakage.remove_outcome_text(cohort.notes).",
        )


def _go_together(
    label: Label, told: np.ndarray, noted: np.ndarray, material: Material, by_chance: float
) -> tuple[str, str]:
    """How grave it is that some samples' notes have outcome words, and in words how the outcome differs.

    Args:
        told: bool `[sample]`, whether its notes have such words.
        noted: bool `[sample]`, whether it has notes at all; whether that tells the outcome is another question.
        by_chance: chance below which the two are taken to go together.
    """
    rows = label.known[noted[label.known]]
    patient = material.sample_patient[rows]
    # By patient, so that ten samples of one count once: were the words ever there, was it ever so?
    table = pd.DataFrame({"told": told[rows], "event": label.event[rows]}).groupby(patient).max()
    chance = min(_chance(table["told"], event) for event in (table["event"], ~table["event"]))
    if chance >= by_chance:
        return "note", ""
    share = [f"{100 * table['event'][table['told'] == side].mean():.0f} %" for side in (True, False)]
    words = f"; {label.name} in {share[0]} of those patients and {share[1]} of others with notes"
    powers = [predictive_power(label.event[rows], sign * told[rows], patient, at_least=TOLD) for sign in (1.0, -1.0)]
    decided = any(power is not None and power.low >= TOLD for power in powers)
    return ("invalidates" if decided else "misleads"), words


def _chance(told: pd.Series, event: pd.Series) -> float:
    """Chance that at least so many of those told have the event, were the two unrelated (hypergeometric)."""
    patients, events, chosen = len(told), int(event.sum()), int(told.sum())
    logs = np.concatenate([[0], np.cumsum(np.log(np.arange(1, patients + 1)))])

    def ways(all_: int, some: int | np.ndarray) -> np.ndarray:
        return logs[all_] - logs[some] - logs[all_ - some]

    both = np.arange(int((told & event).sum()), min(events, chosen) + 1)
    both = both[chosen - both <= patients - events]
    log = ways(events, both) + ways(patients - events, chosen - both) - ways(patients, chosen)
    return float(np.exp(log).sum())

"""Text that tells the outcome: sentences of notes that say what a model is to predict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd

from .errors import InputError

__all__ = ["OUTCOME_TEXT", "OutcomeTextReport", "names_later_day", "remove_outcome_text", "sentences"]

OUTCOME_TEXT: Mapping[str, tuple[str, ...]] = {
    "intensive care": (
        r"\bICUs?\b|\bITU\b|\bHDU\b|\bPICU\b|\bMICU\b|\bSICU\b",
        r"\bintens\w*[\s-]+(?:care|therapy|treatment|medicine)\b",
        r"\bcritical(?:ly)?[\s-]+(?:care|ill\w*)\b",
        r"\bhigh[\s-]+dependency\b|\bstep[\s-]?down\s+unit\b",
    ),
    "ventilation": (
        r"\b(?:re-?|non-?|un)?intub\w*|\b(?:re-?|self-?)?extub\w*",
        r"\b(?:non-?|un)?ventil+at\w*|\brespirator\b",
        r"\bendo-?\s?tracheal\b|\bE\.?T\.?T\b|\bE\.?T\.?[\s-]+tubes?\b",
        r"\btracheal\s+(?:cannula|tube)\w*|\btrache?ostom\w*|\btracheotom\w*",
        r"\bCPAP\b|\bBi-?PAP\b|\bNIV\b|\bHFN[CO]\b|\bhigh[\s-]+flow\b|\bprone\s+position\w*|\bproning\b",
        r"\bECMO\b|\bextra-?\s?corporeal\b|\boxygenator\b",
        r"\bsedat(?:ed|ion)\b",
    ),
    "lines and organ support": (
        r"\b(?:central|jugular|subclavian|femoral)\s+(?:venous\s+)?(?:lines?|catheters?|CV[CL])\b",
        r"\bjugular\b|\bCV[CL]s?\b|\bPICC\b|\barterial\s+lines?\b",
        r"\bna-?so-?gastric\b|\bNG\s?T\b|\bNG\s+tubes?\b",
        r"\bsupportive\s+(?:care|measures)\b|\bvasopress\w*|\bnor-?adrenaline\b|\bnorepinephrine\b|\binotrop\w*|\bh(?:a)?emofiltration\b",
    ),
    "death": (
        r"\b(?:died|dies|dying|dead|deaths?|deceased?|expired|demise|perished|succumb\w*)\b",
        r"\bpassed\s+away\b|\bfatal\w*|\blethal\b|\bmortal\w*|\b(?:non-?)?surviv\w*|\boutliv\w*",
        r"\bpost[\s-]?mortem\b|\bautops\w*|\bpalliat\w*|\bhospice\b|\bDN[AI]?R\b|\bend[\s-]of[\s-]life\b",
    ),
    "discharge and recovery": (
        r"\bdischarged\b|\bdischarge\s+(?:home|from|to|date|letter|summary)\b",
        r"\b(?:at|after|before|until|since|hospital|ward|for)\s+discharge\b",
        r"\b(?:sent|went|returned|released)\s+home\b|\blength\s+of\s+stay\b",
        r"\brecover(?:y|ed|ing|s)?\b|\bconvalesc\w*|\bcured\b|\bfully\s+healed\b",
        r"\b(?:un)?favou?rabl[ey]\b|\buneventful\w*|\bprognos\w*|\bclinical\s+(?:course|evolution|outcome)\b",
        r"\brespon(?:se|ded)\s+(?:well\s+)?to\b|\bremission\b",
        r"\bwith\s+(?:clinical|radio\w*)\b[^.]{0,40}\bimprove\w*|\bimprove\w*\s+in\s+symptoms\b",
    ),
    "later course": (
        r"\bdeteriorat\w*|\bclinical(?:ly)?\s+(?:worse\w*|unstable)",
        r"\b(?:hours?|days?|weeks?|months?|years?)\s+(?:later|afterwards?|after\s+(?:admission|presentation|the\s+last))\b",
        r"\bsubsequent(?:ly)?\b|\beventual(?:ly)?\b|\bultimately\b|\bin\s+the\s+end\b|\bthereafter\b|\bafterwards\b",
        r"\b(?:the\s+)?(?:next|following)\s+(?:\w+\s+)?(?:hours?|days?|weeks?|months?|morning)\b",
        r"\bafter\s+(?:\d+|a\s+few|several|two|three|four|five|six|seven)\s+(?:hours?|days?|weeks?|months?)\b",
        r"\bwas\s+(?:then\s+)?(?:transferred|moved)\s+to\b|\breferred\s+to\s+an?\b|\bfollow(?:ed)?[\s-]?up\b|\bsequences\b",
    ),
}
"""What tells that a patient fell gravely ill, died or went home, by topic: regular expressions, matched
without regard to case. They were written from the customary phrases of clinical notes and completed
by reading the published notes of every patient with intensive care in the COVID-19 image collection.

A negation is removed with the rest ("was not intubated" tells the outcome as well). What the patient
has at the moment, such as low oxygen saturation, is left. Tubes, lines and ventilation count as
outcome text because they follow the decision that is to be predicted.
"""

_ABBREVIATIONS = (
    "dr drs mr mrs ms prof assoc st jr sr fig figs tab ref refs no nr vs approx ca cf al e.g i.e eg ie viz "
    "pt pts hx dx tx rx resp temp max min inc dept hosp jan feb mar apr jun jul aug sept sep oct nov dec a.m p.m"
)
_ABBREVIATED = re.compile(rf"(?:^|[\s(\[/])(?:{'|'.join(map(re.escape, _ABBREVIATIONS.split()))}|[A-Z])\.$", re.I)
# A stop with space after it, a stop between a small and a capital letter ("normal.This"), or a new line.
_BOUNDARY = re.compile(r"[.!?]+[\"')\]]*(?:\s+[.!?]+)*\s+|(?<=[a-z)])[.!?](?=[A-Z][a-z])|\n\s*")

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_SPELT = {word: number for words in (_NUMBERS, _ORDINALS) for number, word in enumerate(words, 1)}
_DAY = re.compile(
    rf"\bday\s+#?(\d{{1,3}}|{'|'.join(_NUMBERS)})\b|\b(\d{{1,3}})(?:st|nd|rd|th)\s+day\b|\b({'|'.join(_ORDINALS)})\s+day\b",
    re.I,
)

Notes = TypeVar("Notes", pd.DataFrame, pd.Series)


@dataclass(frozen=True)
class OutcomeTextReport:
    """What `remove_outcome_text` took out; counts only, never the text."""

    notes: int
    """Notes looked at."""
    touched: int
    """Notes that lost at least one sentence."""
    emptied: int
    """Notes of which nothing was left; they are absent from the result."""
    sentences: int
    """Sentences looked at."""
    removed: int
    """Sentences taken out."""
    share_of_characters: float
    """Characters taken out, as a share of all, 0 to 1."""
    by_topic: pd.DataFrame
    """Columns `topic`, `notes`, `sentences`; a sentence counts for every topic that it touches."""

    def __str__(self) -> str:
        return (
            f"{self.removed} of {self.sentences} sentences tell the outcome ({self.share_of_characters:.1%} of the "
            f"characters), in {self.touched} of {self.notes} notes, of which {self.emptied} had nothing else"
        )


def remove_outcome_text(
    notes: Notes, patterns: Mapping[str, Sequence[str]] = OUTCOME_TEXT
) -> tuple[Notes, OutcomeTextReport]:
    """Take the sentences that tell the outcome out of notes.

    Published cases are written when their end is known, and even a ward's notes say that intensive
    care is arranged. A model that reads so predicts what it was told. Whole sentences go, since a
    gap where a phrase stood would tell as much. No list is complete: look at what a model finds
    important before believing its score.

    Args:
        notes: a notes table with the column `text`, or the texts alone.
        patterns: regular expressions by topic, matched within a sentence without regard to case.

    Returns:
        The notes in the same form, each without those sentences and otherwise unchanged; notes of
        which nothing is left are absent. And the counts.

    Raises:
        InputError: no column `text`, something that is no text, or an expression that is not valid.

    Example:
        >>> notes, report = remove_outcome_text(cohort.notes)
        >>> cohort = cohort.with_tables(str(report), notes=notes)
    """
    texts = _texts(notes)
    topics = _compiled(patterns)
    counts = dict.fromkeys(("sentences", "removed", "before", "after"), 0)
    tally = {topic: [0, 0] for topic in topics}
    cleaned, touched = [], 0
    for text in texts:
        kept, found = [], dict.fromkeys(topics, 0)
        parts = sentences(text)
        for part in parts:
            hits = [topic for topic, expression in topics.items() if expression.search(part)]
            for topic in hits:
                found[topic] += 1
            if not hits:
                kept.append(part)
        result = text if len(kept) == len(parts) else "".join(kept).strip()
        cleaned.append(result)
        touched += len(kept) < len(parts)
        for topic, count in found.items():
            tally[topic][0] += count > 0
            tally[topic][1] += count
        counts["sentences"] += len(parts)
        counts["removed"] += len(parts) - len(kept)
        counts["before"] += len(text)
        counts["after"] += len(result)

    left = np.array([bool(re.search(r"\w", text)) for text in cleaned], bool)
    report = OutcomeTextReport(
        notes=len(texts),
        touched=touched,
        emptied=int((~left).sum()),
        sentences=counts["sentences"],
        removed=counts["removed"],
        share_of_characters=1 - counts["after"] / counts["before"] if counts["before"] else 0.0,
        by_topic=pd.DataFrame(
            [(topic, *pair) for topic, pair in tally.items()], columns=["topic", "notes", "sentences"]
        ),
    )
    column = pd.Series(cleaned, index=notes.index, dtype="str")
    result = column.rename(notes.name) if isinstance(notes, pd.Series) else notes.assign(text=column)
    return result[left], report


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with the white space after it; joined, they are the text again.

    Stops in decimals (38.5) and after abbreviations (Dr., Fig., e.g., initials) end no sentence. In
    doubt two sentences stay together, so that rather too much is removed than too little.
    """
    parts, start = [], 0
    for stop in _BOUNDARY.finditer(text):
        before = text[start : stop.end()].rstrip()
        if stop.group().rstrip(" \t") == "." and _ABBREVIATED.search(before[-12:]):
            continue
        if before:
            parts.append(text[start : stop.end()])
            start = stop.end()
    return [*parts, text[start:]] if start < len(text) else parts


def names_later_day(sentence: str, day: float) -> bool:
    """Whether a sentence speaks of a day ("day 9", "the 7th day", "day nine") after `day`."""
    for digits, ordinal, word in _DAY.findall(sentence):
        named = (digits or ordinal or word).lower()
        if (_SPELT.get(named) or int(named)) > day:
            return True
    return False


def _texts(notes: pd.DataFrame | pd.Series) -> list[str]:
    if isinstance(notes, pd.DataFrame):
        if "text" not in notes.columns:
            raise InputError(f"The notes lack the column text; they have {', '.join(map(str, notes.columns))}.")
        notes = notes["text"]
    texts = notes.tolist()
    for row, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise InputError(f"notes, data row {row}: text is {type(text).__name__}. Leave rows without text out.")
    return texts


def _compiled(patterns: Mapping[str, Sequence[str]]) -> dict[str, re.Pattern[str]]:
    compiled = {}
    for topic, expressions in patterns.items():
        if isinstance(expressions, str) or not expressions:
            raise InputError(f"The patterns of {topic!r} must be a list of regular expressions, with at least one.")
        try:
            compiled[topic] = re.compile("|".join(f"(?:{expression})" for expression in expressions), re.I)
        except re.error as error:
            raise InputError(f"A pattern of {topic!r} is not a regular expression: {error}. Correct it.") from error
    return compiled

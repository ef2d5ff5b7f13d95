"""What would leak or mislead: an audit of a cohort and of its division, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from .audit_facts import check_ages
from .audit_findings import SEVERITIES, Division, Finding, Material, Place, Severity, counted
from .audit_images import check_images
from .audit_links import check_links
from .audit_notes import check_notes, check_outcome_words
from .audit_outcomes import check_columns, check_missingness, check_sources, enough, labels_of
from .audit_splits import check_division, check_samples, check_twins
from .audit_time import (
    check_after_prediction,
    check_dates_only,
    check_early_results,
    check_far_times,
    check_lifetimes,
    check_shifted_clocks,
)
from .audit_units import check_codes, check_units
from .errors import InputError
from .progress import progress_bar

if TYPE_CHECKING:
    from .cohort import Cohort

__all__ = ["CHECKS", "Audit", "Finding", "Place", "audit"]

CHECKS: Mapping[str, Callable[[Material], Iterator[Finding]]] = {
    "the division: patients in two parts, or in none": check_division,
    "images of several patients, blank, dim or unreadable": check_images,
    "images linked to another patient": check_links,
    "notes of several patients": check_notes,
    "one patient under two ids": check_twins,
    "samples and rows that stand twice": check_samples,
    "what lies after the prediction": check_after_prediction,
    "results before their draw": check_early_results,
    "dates without a time of day": check_dates_only,
    "times far away": check_far_times,
    "events before birth or after death": check_lifetimes,
    "clocks that are shifted": check_shifted_clocks,
    "outcome words in notes": check_outcome_words,
    "columns that equal the outcome": check_columns,
    "an outcome that missingness predicts": check_missingness,
    "an outcome that the source predicts": check_sources,
    "units": check_units,
    "codes that are written in two ways": check_codes,
    "ages that cannot be": check_ages,
}
"""What is looked at, in this order."""

_NEEDS = {
    check_images: "images",
    check_links: "images",
    check_notes: "notes",
    check_outcome_words: "notes",
    check_units: "labs",
    check_codes: "labs",
    check_ages: "static",
}


@dataclass(frozen=True)
class Audit:
    """What an audit found, gravest first."""

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    """What was looked at."""
    not_checked: Mapping[str, str]
    """What could not be looked at, and why."""
    patients: int
    samples: int
    parts: tuple[str, ...]

    @property
    def invalidates(self) -> bool:
        """Whether something makes every score of this data and division meaningless."""
        return any(finding.severity == "invalidates" for finding in self.findings)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def to_dict(self) -> dict[str, object]:
        """As plain values, fit for JSON."""
        return {
            "patients": self.patients,
            "samples": self.samples,
            "parts": list(self.parts),
            "invalidates": self.invalidates,
            "findings": [finding.to_dict() for finding in self.findings],
            "checked": list(self.checked),
            "not_checked": dict(self.not_checked),
        }

    def summary(self) -> str:
        """One sentence."""
        counts = [f"{len(self.of(severity))} {word}" for severity, word in _COUNTED.items() if self.of(severity)]
        of = f"{counted(self.patients, 'patient')}, {counted(self.samples, 'sample')}"
        of += f", parts {', '.join(self.parts)}" if self.parts else ", not divided"
        return f"{of}: {', '.join(counts) or 'nothing found'}."

    def __str__(self) -> str:
        lines = [self.summary()]
        for finding in self.findings:
            lines.append(f"{finding.severity}: {finding.check} ({finding.count:,}) in {finding.where}")
            lines.append(f"  {finding.what} {finding.remedy}")
        lines += [f"not checked: {what} ({why})" for what, why in self.not_checked.items()]
        return "\n".join(lines)


_COUNTED = {
    "invalidates": "that would invalidate a result",
    "misleads": "that may mislead",
    "note": "to note",
}


def audit(
    cohort: Cohort,
    parts: Mapping[str, Cohort] | Sequence[Cohort] | pd.DataFrame | None = None,
    *,
    sources: Mapping[str, Sequence[object] | pd.Series] | None = None,
    births: pd.Series | None = None,
    deaths: pd.Series | None = None,
    same_identifiers: bool = False,
    found: Sequence[Finding] = (),
) -> Audit:
    """Look for what would leak between the parts of a division, or mislead.

    Whoever is in two parts, under one id or two, by the same image, note or lab series, is learned in one
    and asked in the other: a score then tells how well a model remembers. What lies in the tables after
    the prediction is counted and no more, since chiasm shows it to no sample. An outcome that
    missingness or the source alone predicts, outcome words in notes, a column that equals the outcome,
    values in two units and clocks that disagree make a score mean something else than it seems to.

    Images are looked at in each file's own window, also where an encoder is given another: what is said to be
    blank, dim or unreadable may be none of it there.

    Nothing found is no proof. An image of which more than 3 % a side is cut off, or that is turned by more
    than 3 degrees other than by quarters, notes that were rewritten, and a patient who stands under two
    ids with different data may not be found; what needs a number of patients to be told
    (ten with and ten without the outcome) is passed over in smaller cohorts.

    Args:
        cohort: all patients.
        parts: the parts it is divided into, by name or in the order train, valid, test; or a table of
            `subject_id` and `split`, with any words. None: the cohort's `subject_splits`, if it has them.
        sources: what should not predict the outcome, such as the hospital of an image: one value a sample, in
            the order of `cohort.outcomes`, by name. Static columns with a name like site are looked at anyway.
        births: time of birth by patient id, where known.
        deaths: time of death by patient id, where known.
        same_identifiers: patient ids are the Patient IDs of DICOM headers, so that an image whose header has
            another is another patient's. False where they are pseudonyms: headers must then only agree among
            themselves.
        found: what was found while the cohort was read, to stand with the rest.

    Returns:
        The findings, the same for the same cohort, without text, names or ids of patients.

    Raises:
        InputError: a division that names no patient of the cohort, or a source of another length.

    Example:
        >>> report = audit(cohort, cohort.split((0.7, 0.1, 0.2), seed=0))
        >>> print(report)
        >>> assert not report.invalidates
    """
    given = {name: pd.Series(list(told), dtype=object) for name, told in (sources or {}).items()}
    for name, told in given.items():
        if len(told) != len(cohort):
            raise InputError(
                f"The source {name!r} has {len(told)} values; expected one for each of {len(cohort)} samples."
            )
    material = Material(cohort, Division.of(cohort, parts), given, births, deaths, same_identifiers)
    findings, checked, not_checked = [*found], [], {}
    with progress_bar("auditing", len(CHECKS)) as advance:
        for what, check in CHECKS.items():
            reason = _unable(check, material)
            if reason is None:
                findings += check(material)
                checked.append(what)
            else:
                not_checked[what] = reason
            advance(1)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Audit(tuple(findings), tuple(checked), not_checked, cohort.subjects, len(cohort), material.division.parts)


def _unable(check: Callable, material: Material) -> str | None:
    """Why a check has nothing to look at."""
    table = _NEEDS.get(check)
    if table is not None and table not in material.cohort.modalities:
        return f"there are no {'static facts' if table == 'static' else table}"
    if check is check_division and not material.division.parts:
        return "no division was given"
    predicts = (check_columns, check_missingness, check_sources)
    if check in predicts and not any(
        enough(label.event[label.known], material.sample_patient[label.known]) for label in labels_of(material.cohort)
    ):
        return "too few patients with, or without, the outcome"
    return None

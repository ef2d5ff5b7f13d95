"""The audit as a command: a table of what would leak or mislead, and the same as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.disk import write_json
from ..datasets.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..datasets.audit import Audit, Finding

_COLOURS = {"invalidates": "bold red", "misleads": "yellow", "note": "dim"}


def audit_data(
    data: Path,
    recipe: str | None,
    assignments: Sequence[str],
    out: Path | None,
    *,
    same_identifiers: bool,
    say: Callable[[object], None],
) -> Audit:
    """Audit a folder as it is, or as a recipe reads and divides it; print what was found.

    Args:
        data: five tables, MEDS, or the recipe's data.
        recipe: name or path; None for a folder as it is.
        assignments: settings of the recipe, as `name=value`.
        out: a JSON file for the same; None for none.
        same_identifiers: patient ids are the Patient IDs of DICOM headers themselves.
        say: prints a line.

    Raises:
        InputError: the data cannot be read at all, settings without a recipe, or a JSON file in no folder.
    """
    from ..datasets.audit import audit

    if assignments and recipe is None:
        raise InputError("--set is for the settings of a recipe. Give --recipe, or leave it out.")
    if out is not None and out.is_dir():
        raise InputError(f"{out} is a folder. Give --json the path of a file, such as {out / 'audit.json'}.")
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"There is no folder {out.absolute().parent} for {out.name}. Make it, or give another path.")
    given = _opened(data) if recipe is None else _read_by_recipe(data, recipe, assignments)
    report = audit(same_identifiers=same_identifiers, **given)
    if out is not None:
        write_json(out, report.to_dict())
    _show(report, given.get("found", ()), say)
    return report


def _opened(data: Path) -> dict[str, Any]:
    """A folder as it is: the cohort, its division, and what else it says, as arguments of `audit`."""
    from ..datasets.audit_reading import open_folder

    opened = open_folder(data)
    known = {"births": opened.births, "deaths": opened.deaths, "found": opened.found}
    return {"cohort": opened.cohort, "parts": opened.division, **known}


def _read_by_recipe(data: Path, name: str, assignments: Sequence[str]) -> dict[str, Any]:
    """The cohort as a recipe reads and divides it, as arguments of `audit`."""
    from .recipe import load_recipe

    recipe = load_recipe(name, assignments)
    cohort = recipe.read(data)
    parts = dict(zip(("train", "valid", "held out"), recipe.divide(cohort), strict=True))
    return {"cohort": cohort, "parts": parts, "sources": recipe.sources(data, cohort)}


def _show(report: Audit, as_given: Sequence[Finding], say: Callable[[object], None]) -> None:
    """Print a report; `as_given` are findings whose rows are those of the files, not of the cohort."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..datasets.tables import REQUIRED

    if report.findings:
        table = Table("severity", "what and where", "count", "what was found, and what to do", show_lines=True)
        for finding in report.findings:
            table.add_row(
                Text(finding.severity, _COLOURS[finding.severity]),
                Text(f"{finding.check}\n{finding.where}"),
                Text(f"{finding.count:,}", justify="right"),
                Text(f"{finding.what}\n→ {finding.remedy}"),
            )
        Console().print(table)
    for what, why in report.not_checked.items():
        say(f"not checked: {what} ({why})")
    say(report.summary())
    placed = [finding for finding in report.findings if finding.where.rows]
    named = {finding.where.table for finding in placed if finding not in as_given}
    places = [f"cohort.{name}.iloc[row - 1]" for name in REQUIRED if name in named]
    if places:
        say(f"Rows are those of the cohort's tables, counted from 1: {', '.join(places)}.")
    given = {finding.check for finding in placed if finding in as_given}
    if given:
        say(f"Of {', '.join(sorted(given))} they are rows of the files, counted from 1 below the names of columns.")

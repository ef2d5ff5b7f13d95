"""Divisions of a cohort into parts. A patient is in one part only, whatever the division goes by."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .arguments import require_table
from .checks import TableCheck
from .errors import InputError
from .subject_ids import are_whole_numbers, subject_names
from .words import as_words

if TYPE_CHECKING:
    from .cohort import Cohort

MEDS_SPLITS = ("train", "tuning", "held_out")
_OTHER_SPLITS = ("dev", "development", "eval", "heldout", "holdout", "test", "training", "val", "valid", "validation")
_PART_NAMES = {2: ("train", "test"), 3: ("train", "valid", "test")}


def by_fraction(cohort: Cohort, fractions: Sequence[float], seed: int) -> tuple[Cohort, ...]:
    """Divide the patients at random.

    Args:
        cohort: what to divide.
        fractions: share of the patients in each part; they add up to 1.
        seed: the division is the same for the same patients and seed, whatever their order.

    Raises:
        InputError: fractions that do not add up to 1, a seed that is no whole number, or too
            few patients for a part to have one.
    """
    try:
        shares = np.atleast_1d(np.asarray(fractions, dtype=np.float64))
    except (TypeError, ValueError):
        # What stands there may be long.
        shares = np.zeros(0)
        fractions = f"no numbers but a {type(fractions).__name__}"
    if shares.ndim != 1 or len(shares) < 2 or not (shares > 0).all() or not abs(shares.sum() - 1) <= 1e-6:
        raise InputError(
            f"The fractions are {', '.join(map(str, shares.ravel())) or fractions}; expected two or more positive ones "
            "that add up to 1, such as (0.7, 0.1, 0.2)."
        )
    _require_seed(seed)
    patients = np.sort(cohort.outcomes["subject_id"].unique())
    order = np.random.default_rng(seed).permutation(len(patients))
    ends = np.round(np.cumsum(shares) * len(patients)).astype(int)
    part_of_rank = np.searchsorted(ends[:-1], np.arange(len(patients)), "right")
    part = pd.Series(0, index=patients)
    part.iloc[order] = part_of_rank
    return _divide(cohort, cohort.outcomes["subject_id"].map(part), _names(len(shares)))


def by_time(cohort: Cohort, dates: Sequence[str | pd.Timestamp]) -> tuple[Cohort, ...]:
    """Divide at dates of prediction: before the first, from the first to before the second, and so on.

    A patient belongs to the period of the first prediction; later predictions that fall into another
    period are left out, and the attrition log counts them.

    Raises:
        InputError: no date, dates that do not ascend, or a period without patients.
    """
    edges = [_edge(date) for date in ([dates] if isinstance(dates, str) else dates)]
    if not edges or any(later <= earlier for earlier, later in pairwise(edges)):
        raise InputError(
            f"The dates of the split are {', '.join(map(str, edges)) or 'none'}; expected some, ascending."
        )
    moments = cohort.outcomes["prediction_time"]
    period = pd.Series(pd.DatetimeIndex(edges).searchsorted(moments, "right"))
    first = period.groupby(cohort.outcomes["subject_id"]).transform("first")
    one_period = cohort.keep((period == first).to_numpy(), why="predictions in the patient's own period")
    return _divide(one_period, first[period == first].reset_index(drop=True), _names(len(edges) + 1))


def _edge(date: object) -> pd.Timestamp:
    """A date of a split as the cohort's tables have it: without a zone, UTC where it had one."""
    # A bare 2031 would be taken for nanoseconds since 1970.
    known = isinstance(date, (str, datetime.date, np.datetime64))
    edge = (
        pd.to_datetime(date, format="ISO8601" if isinstance(date, str) else None, errors="coerce") if known else pd.NaT
    )
    if edge is pd.NaT:
        raise InputError(f"A date of the split is {date!r}. Write it as 2031-05-17 (ISO 8601).")
    return edge.tz_convert("UTC").tz_localize(None) if edge.tzinfo else edge


def by_site(cohort: Cohort, column: str, sites: Sequence[Sequence[str]]) -> tuple[Cohort, ...]:
    """Divide by a static column, such as the hospital: one list of values for each part.

    Raises:
        InputError: no such column, a value in two parts or in none of the data, or a value of the
            data in no part.
    """
    columns = [] if cohort.static is None else [*cohort.static.columns.drop("subject_id")]
    if column not in columns:
        have = ", ".join(columns) or "none"
        raise InputError(f"There is no static column {column!r} to split by; there is: {have}.")
    own = as_words(cohort.static[column])
    site = own.text.mask(own.blank).set_axis(cohort.static["subject_id"])
    of_sample = cohort.outcomes["subject_id"].map(site)
    part_of: dict[str, int] = {}
    for number, values in enumerate(sites):
        for value in as_words(pd.Series([values] if np.ndim(values) == 0 else [*values], dtype=object)).text:
            if value in part_of:
                raise InputError(f"The site {value!r} stands in the split twice. A site is in one part.")
            part_of[value] = number
    absent = sorted(set(part_of) - set(of_sample.dropna()))
    if absent:
        raise InputError(f"No patient has the {column} {absent[0]!r} of the split. Check how it is written.")
    part = of_sample.map(part_of)
    if part.isna().any():
        lost = sorted(set(of_sample[part.isna()].dropna()))
        raise InputError(
            f"{int(part.isna().sum())} samples have a {column} that no part of the split names "
            f"({', '.join(lost[:5]) or 'blank'}). Name it, or filter those patients out first."
        )
    return _divide(cohort, part.astype(int), _names(len(sites)))


def by_table(cohort: Cohort, table: pd.DataFrame | None) -> tuple[Cohort, ...]:
    """Divide as a table says; without one, as the `subject_splits` that came with a MEDS dataset.

    Args:
        cohort: what to divide.
        table: `subject_id` and `split`, which is one of MEDS's words train, tuning, held_out.
            Patients whom it does not name are left out and counted in the attrition log.

    Returns:
        The cohorts of train, tuning and held_out.

    Raises:
        InputError: no table, other words, a patient in two splits, or an empty part.
    """
    if table is None:
        if cohort.subject_splits is None:
            raise InputError("The cohort came without subject_splits. Give a table of subject_id and split.")
        part_name = cohort.subject_splits
    else:
        part_name = as_subject_splits(table, cohort.outcomes["subject_id"])
    of_sample = cohort.outcomes["subject_id"].map(part_name)
    named = of_sample.notna().to_numpy()
    if not named.any():
        raise InputError("The split names none of the cohort's patients. Check how both write subject_id.")
    if not named.all():
        cohort = cohort.keep(named, why="patients whom the split names")
    part = of_sample[named].map({name: k for k, name in enumerate(MEDS_SPLITS)}).reset_index(drop=True)
    return _divide(cohort, part.astype(int), MEDS_SPLITS)


def as_subject_splits(table: pd.DataFrame, like: pd.Series) -> pd.Series:
    """A checked table of `subject_id` and `split` as a series by patient id of the type of `like`.

    Raises:
        InputError: a column is missing, a word is not one of MEDS's, or a patient is in two splits.
    """
    require_table("The split table", table)
    missing = [column for column in ("subject_id", "split") if column not in table.columns]
    if missing or not table.columns.is_unique:
        what = f"lacks the column {missing[0]}" if missing else "has a column twice"
        raise InputError(f"The split table {what}. It needs subject_id and split.")
    table = table.reset_index(drop=True)
    words = set(as_words(table["split"]).text)
    if not words <= set(MEDS_SPLITS):
        # Of words that no division uses it is not known whose they are.
        other = ", ".join(sorted(word for word in words if word.lower() in _OTHER_SPLITS))
        other = other or ("a blank" if "" in words else "other words")
        raise InputError(f"The split table has {other}; expected the words {', '.join(MEDS_SPLITS)} alone.")
    check = TableCheck("split table", len(table), "raise")
    ids = subject_names(table["subject_id"], check)
    if pd.api.types.is_integer_dtype(like.dtype):
        other = np.array([not are_whole_numbers([name]) for name in ids], bool)
        check.refuse(other, "subject_id is not a whole number, as the cohort's are", "Correct it")
    check.settle(table)
    pairs = pd.DataFrame({"subject_id": ids.astype(like.dtype), "split": table["split"].astype("str")})
    pairs = pairs.drop_duplicates()
    doubled = pairs["subject_id"].duplicated()
    if doubled.any():
        raise InputError(
            f"{int(doubled.sum())} patients stand in more than one split (first: data row "
            f"{int(pairs.index[doubled][0]) + 1} of the split table). A patient is in one split."
        )
    return pairs.set_index("subject_id")["split"]


def folds(cohort: Cohort, count: int, seed: int) -> Iterator[tuple[Cohort, Cohort]]:
    """Cross-validation by patient, stratified by the first outcome where it is not continuous.

    Yields:
        `count` pairs: the cohort without the fold, and the fold.

    Raises:
        InputError: fewer patients, or fewer patients of a class, than folds.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    _require_seed(seed)
    if not isinstance(count, int) or count < 2 or cohort.subjects < count:
        raise InputError(f"{count} folds were asked of {cohort.subjects} patients. Give 2 to {cohort.subjects} folds.")
    groups = cohort.outcomes["subject_id"]
    labels = _strata(cohort)
    if labels is None:
        division = GroupKFold(count, shuffle=True, random_state=seed).split(groups, groups=groups)
    else:
        rarest = groups.groupby(labels).nunique().min()
        if rarest < count:
            raise InputError(
                f"{count} folds were asked, but one outcome class has only {rarest} patients. "
                f"Give at most {rarest} folds."
            )
        folder = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        division = folder.split(groups, labels, groups)
    for number, (rest, fold) in enumerate(division, 1):
        inside = np.zeros(len(cohort), bool)
        inside[fold] = True
        assert not set(groups[rest]) & set(groups[fold])
        yield (
            cohort.keep(~inside, why=f"all but fold {number} of {count}"),
            cohort.keep(inside, why=f"fold {number} of {count}"),
        )


def _require_seed(seed: int) -> None:
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise InputError(f"The seed is {seed!r}; expected a whole number from 0 to {2**32 - 1}.")


def _strata(cohort: Cohort) -> pd.Series | None:
    for name, kind in cohort.outcome_kinds.items():
        if kind != "continuous" and cohort.outcomes[name].notna().all():
            return cohort.outcomes[name].astype("str")
    return None


def _names(parts: int) -> tuple[str, ...]:
    return _PART_NAMES.get(parts, tuple(f"part {k + 1}" for k in range(parts)))


def _divide(cohort: Cohort, part: pd.Series, names: Sequence[str]) -> tuple[Cohort, ...]:
    part = part.to_numpy()
    counts = {name: int((part == k).sum()) for k, name in enumerate(names)}
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise InputError(
            f"The part {empty[0]!r} of the split would have no patient (of {cohort.subjects} in all). "
            "Divide otherwise, or bring more patients."
        )
    return tuple(cohort.keep(part == k, why=f"split: {name}") for k, name in enumerate(names))

"""Times of all tables as one clock: microseconds without a zone, UTC where the source had zones."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .checks import TableCheck
from .errors import InputError
from .words import as_words

# ISO 8601 with at least a whole day: a bare "2031" may as well be minutes since admission, and
# "2031-05" taken as its first day would let an event be known weeks before it happened.
_DAY = r"^(?:\d{4}-\d{2}-\d{2}|\d{4}/\d{2}/\d{2}|\d{8}T)"
_MOMENT = rf"{_DAY}(?:[T ]?\d{{2}}(?::?\d{{2}}(?::?\d{{2}}(?:\.\d+)?)?)?\s*(?:Z|[+-]\d{{2}}(?::?\d{{2}})?)?)?$"
# As hospitals write dates for people: 17.05.1950, 5/17/50, 17-May-1950, May 17, 1950, with or without a time of day.
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_CUSTOMARY = (
    rf"(?i)^(?:\d{{1,2}}[./-]\d{{1,2}}[./-](?:\d{{4}}|\d{{2}})|\d{{1,2}}[ .-]*{_MONTH}[ ,.-]*\d{{2,4}}|"
    rf"{_MONTH} *\d{{1,2}}(?:st|nd|rd|th)?,? +\d{{4}})(?:,?[ T]+\d{{1,2}}:\d{{2}}.*)?$"
)
_ZONED = rf"{_DAY}.*\d\s*(?:Z|[+-]\d{{2}}(?::?\d{{2}})?)$"


def parse_times(values: pd.Series, check: TableCheck, column: str, *, optional: bool = False) -> tuple:
    """Timestamps in microseconds without a zone (UTC where the source had one).

    A date without a time of day counts as its first moment.

    Args:
        values: datetimes, or text in ISO 8601.
        check: collects rows whose time is blank or cannot be parsed.
        column: the name for messages.
        optional: whether a blank is allowed (it stays NaT).

    Returns:
        The parsed series and whether the source had time zones.

    Raises:
        InputError: numbers instead of times, or times with and without a zone in one column.
    """
    where = f"{check.table}.{column}"
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        parsed, zoned = values.dt.tz_convert("UTC").dt.tz_localize(None), True
    elif pd.api.types.is_datetime64_dtype(values.dtype):
        parsed, zoned = values, False
    elif pd.api.types.is_numeric_dtype(values.dtype) and values.notna().any():
        way = 'pandas.to_datetime(column, unit="s") or pandas.Timestamp("2000-01-01") + pandas.to_timedelta(...)'
        if are_mostly_days(values):
            way = 'pandas.to_datetime(column.astype("str"), format="%Y%m%d"), if 20310517 is the 17th of May 2031'
        raise InputError(f"{where} holds numbers, not times. Convert them first, for instance with {way}.")
    else:
        return _parse_text_times(values, check, column, optional)
    if not optional:
        check.refuse(parsed.isna().to_numpy(bool), f"{column} is blank", "Fill in the time")
    try:
        return parsed.astype("datetime64[us]"), zoned
    except pd.errors.OutOfBoundsDatetime as error:
        raise InputError(f"{where} has a time that microseconds cannot count. Correct it.") from error


def _parse_text_times(values: pd.Series, check: TableCheck, column: str, optional: bool) -> tuple[pd.Series, bool]:
    words = as_words(values)
    text = words.text.str.strip()
    arrow = pa.array(text, pa.large_string())
    moment = pc.match_substring_regex(arrow, _MOMENT).to_numpy(zero_copy_only=False)
    zoned = pc.match_substring_regex(arrow, _ZONED).to_numpy(zero_copy_only=False) & moment
    if zoned.any() and not zoned[moment].all():
        counts = f"({int(zoned.sum())} rows)", f"({int((moment & ~zoned).sum())} rows)"
        raise mixed_zones(f"{check.table}.{column}", *counts)
    parsed = pd.to_datetime(text.where(moment), format="ISO8601", errors="coerce", utc=True).dt.tz_localize(None)
    unparsed = parsed.isna().to_numpy(bool) & ~words.blank
    check.refuse(unparsed, f"{column} is not a time", "Write times as 2031-05-17 08:30:00 (ISO 8601)")
    if not optional:
        check.refuse(words.blank, f"{column} is blank", "Fill in the time")
    return parsed.astype("datetime64[us]"), bool(zoned.any())


def mixed_zones(column: str, zoned: str = "", local: str = "") -> InputError:
    """Of a column such as `labs.time`, some times have a zone and some have none; how many, where that is known."""
    mixture = " ".join(f"{column} mixes times with a zone {zoned} and without {local}".split())
    return InputError(f"{mixture}, which cannot be ordered. Give all of them a zone, or none.")


def require_one_clock(zones: Mapping[str, bool]) -> None:
    """Raise `InputError` where some time columns have zones and others have none.

    Args:
        zones: whether a column had zones, by its name, such as `labs.time`.
    """
    zoned = [column for column, has_zone in zones.items() if has_zone]
    local = [column for column, has_zone in zones.items() if not has_zone]
    if zoned and local:
        raise InputError(
            f"{zoned[0]} has time zones and {local[0]} has none, so the two cannot be compared. "
            "Give all times a zone, or none."
        )


def mostly_dates(words: pd.Series) -> bool:
    """Whether more than half of these texts are dates or times (of birth, say), in ISO 8601 or a customary form."""
    arrow = pa.array(words, pa.large_string())
    dates = pc.match_substring_regex(arrow, _MOMENT).to_numpy(zero_copy_only=False)
    dates |= pc.match_substring_regex(arrow, _CUSTOMARY).to_numpy(zero_copy_only=False)
    return bool(len(words)) and bool(dates.mean() > 0.5)


def are_mostly_days(numbers: pd.Series) -> bool:
    """Whether more than half of these numbers are days as 20310517 writes them, of the years 1850 to 2100."""
    known = numbers.dropna().astype("float64")
    known = known[(known >= 18500101) & (known <= 21001231) & (known % 1 == 0)]
    days = pd.to_datetime(known.astype("int64").astype("str"), format="%Y%m%d", errors="coerce")
    return bool(days.notna().sum() > numbers.notna().sum() / 2)


def are_mostly_years(numbers: pd.Series) -> bool:
    """Whether more than half of these numbers are years of a calendar, from 1850 to 2100."""
    known = numbers.dropna()
    return bool(len(known)) and bool((known.between(1850, 2100) & (known % 1 == 0)).mean() > 0.5)

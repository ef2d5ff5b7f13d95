"""Times that cannot be, and clocks that do not agree."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from .audit_findings import SHOWN, Finding, Material, Place, counted, single_rows
from .audit_outcomes import static_sources
from .tables import AGE
from .windows import EVENTS, available_time

OLDEST, FURTHEST = 90, 50
"""Years before and after a prediction within which an electronic record lies."""

AFTER_DEATH = np.timedelta64(24, "h")
"""Of grace: a death is often stated by its day."""

SYSTEMATIC = 0.01
"""Share of results before their draw from which a clock is wrong, rather than a row."""

DATES_ONLY = 0.95
"""Share of times at midnight from which a table has dates, not times."""

_LONGEST_REACH = 24 * 30
"""Hours: where patients' events lie further apart than that, a year's shift is not told from a long history."""

_APART = 0.95
"""AUROC with which a site's spans of time differ from the others'."""

_MOSTLY = 0.5
_ENOUGH_EVENTS = 20
_SOME_EVENTS = 5
_ENOUGH_PATIENTS = 20
_BIRTH, _DEATH = (re.compile(rf"(?:MEDS_)?{word}(?:$|//)", re.I) for word in ("BIRTH", "DEATH"))


def check_after_prediction(material: Material) -> Iterator[Finding]:
    """What lies after the prediction, and tables that do not say when a result was known."""
    last = _last_prediction(material)
    for name in EVENTS:
        events = getattr(material.cohort, name)
        if events is None or not len(events):
            continue
        later = available_time(events).to_numpy() > last[material.positions(name)]
        if later.any():
            unseen = len(material.cohort.window(name).rows) == 0
            yield Finding(
                "misleads" if unseen else "note",
                "after the prediction",
                int(later.sum()),
                Place(
                    name,
                    "available_at" if "available_at" in events.columns else "time",
                    single_rows(np.flatnonzero(later)),
                ),
                f"{counted(int(later.sum()), 'row')} of {len(events):,} became known after their patient's predictions"
                + (", and no sample sees any row of this table." if unseen else "."),
                "Check prediction_time against the clock of this table."
                if unseen
                else "Nothing: chiasm shows no sample what came later. Other tools may: cut such rows off for them.",
            )
        if "available_at" not in events.columns:
            yield Finding(
                "note",
                "no available_at",
                len(events),
                Place(name, "available_at"),
                f"{name} does not say when a row became known: the time of the draw, writing or image stands for it.",
                "Give available_at (of results: when they were released), or results may be seen hours too early.",
            )


def _last_prediction(material: Material) -> np.ndarray:
    """The last prediction of each patient, datetime64 `[patient]`."""
    moments = material.cohort.outcomes["prediction_time"]
    return moments.groupby(material.sample_patient).max().to_numpy()


def check_early_results(material: Material) -> Iterator[Finding]:
    """Results that were available before they were drawn, so that one of two clocks is wrong."""
    for name, early in material.cohort.early_results.items():
        if not len(early):
            continue
        hours, rows = early["hours"].to_numpy(), early["row"].to_numpy()
        typical = float(np.median(hours))
        whole = round(typical)
        constant = whole >= 1 and np.mean(np.abs(hours - typical) < 0.1) > 0.5 and abs(typical - whole) < 0.1
        share = len(early) / max(len(getattr(material.cohort, name)), 1)
        yield Finding(
            "misleads" if share >= SYSTEMATIC and len(early) >= _SOME_EVENTS else "note",
            "available before its time",
            len(early),
            Place(name, "available_at", tuple((int(row),) for row in rows[:SHOWN])),
            f"{counted(len(early), 'row')} ({100 * share:.1f} %) available before the time it is of, by "
            f"{typical:.1f} h in the middle"
            + (f": a clock that is {counted(whole, 'hour')} off, such as another time zone." if constant else "."),
            "chiasm takes the later of the two. Find out which clock is wrong and correct it in the source.",
        )


def check_dates_only(material: Material) -> Iterator[Finding]:
    """Times that are dates, so that what happened in the afternoon counts as known at midnight."""
    cohort = material.cohort
    asked = cohort.outcomes["prediction_time"]
    by_day = bool((asked == asked.dt.normalize()).mean() >= DATES_ONLY)
    for name in EVENTS:
        events = getattr(cohort, name)
        if events is None or len(events) < _ENOUGH_EVENTS:
            continue
        known = available_time(events)
        if (known == known.dt.normalize()).mean() < DATES_ONLY:
            continue
        window = cohort.window(name)
        day = asked.dt.normalize().to_numpy()[window.samples]
        same_day = np.unique(window.rows[known.to_numpy()[window.rows] == day])
        if not len(same_day):
            continue
        yield Finding(
            "note" if by_day else "misleads",
            "dates without time",
            len(same_day),
            Place(name, "available_at" if "available_at" in events.columns else "time", single_rows(same_day)),
            f"{name} has dates without a time of day, and samples see {counted(len(same_day), 'row')} of the very day "
            "of the prediction, from midnight on.",
            "Give the time of day, or date such rows to the end of their day (available_at).",
        )


def check_far_times(material: Material) -> Iterator[Finding]:
    """Events so far from any prediction that their date is a slip or stands for "unknown"."""
    moments = material.cohort.outcomes["prediction_time"].groupby(material.sample_patient)
    first, last = moments.min().to_numpy(), moments.max().to_numpy()
    for name in EVENTS:
        events = getattr(material.cohort, name)
        if events is None or not len(events):
            continue
        patient, time = material.positions(name), events["time"].to_numpy()
        # Days, so that no year is too far to be counted.
        far = time < first[patient] - np.timedelta64(OLDEST * 365, "D")
        if name == "labs":
            far &= ~events["code"].astype("str").str.match(_BIRTH).to_numpy(bool)
        far |= time > last[patient] + np.timedelta64(FURTHEST * 365, "D")
        if far.any():
            yield Finding(
                "misleads",
                "times far away",
                int(far.sum()),
                Place(name, "time", single_rows(np.flatnonzero(far))),
                f"{counted(int(far.sum()), 'row lies', 'rows lie')} more than {OLDEST} years before or {FURTHEST} "
                "years after every prediction of their patient.",
                "Such dates are slips, or stand for an unknown one: correct them, or leave the rows out.",
            )


def check_lifetimes(material: Material) -> Iterator[Finding]:
    """Events before birth or after death, and predictions for the dead."""
    birth = _vital(material, material.births, _BIRTH, "min")
    death = _vital(material, material.deaths, _DEATH, "max")
    for name in EVENTS:
        events = getattr(material.cohort, name)
        if events is None or not len(events):
            continue
        patient, time = material.positions(name), events["time"].to_numpy()
        own = np.zeros(len(events), bool)
        if name == "labs":
            codes = events["code"].astype("str")
            own = (codes.str.match(_BIRTH) | codes.str.match(_DEATH)).to_numpy(bool)
        for when, rows in (
            ("before the birth", (time < birth[patient]) & ~own),
            ("more than a day after the death", (time > death[patient] + AFTER_DEATH) & ~own),
        ):
            if rows.any():
                yield Finding(
                    "misleads",
                    "events before birth" if "birth" in when else "events after death",
                    int(rows.sum()),
                    Place(name, "time", single_rows(np.flatnonzero(rows))),
                    f"{counted(int(rows.sum()), 'row lies', 'rows lie')} {when} of their patient.",
                    "Correct the dates, or check whether two patients share the id.",
                )
    late = material.cohort.outcomes["prediction_time"].to_numpy() > death[material.sample_patient]
    if late.any():
        yield Finding(
            "misleads",
            "predictions after death",
            int(late.sum()),
            Place("outcomes", "prediction_time", single_rows(np.flatnonzero(late))),
            f"{counted(int(late.sum()), 'sample is', 'samples are')} predicted after the patient's death.",
            "Predict earlier, or leave these samples out: cohort.keep(...).",
        )


def _vital(material: Material, stated: pd.Series | None, code: re.Pattern[str], pick: str) -> np.ndarray:
    """When each patient was born or died, datetime64 `[patient]`, NaT where unknown.

    From what the source states, from events of that code, or, for birth, from an age in years: no earlier
    than the first prediction less age and one year, and one more of slack.
    """
    known = pd.Series(pd.NaT, index=range(len(material.patients)), dtype="datetime64[us]")
    labs = material.cohort.labs
    if labs is not None and len(labs):
        rows = labs["code"].astype("str").str.match(code).to_numpy(bool)
        told = labs["time"][rows].groupby(material.positions("labs")[rows]).agg(pick)
        known = told.astype("datetime64[us]").reindex(known.index)
    if stated is not None:
        named = stated.reindex(material.patients).reset_index(drop=True).astype("datetime64[us]")
        known = named.fillna(known)
    if code is _BIRTH:
        known = known.fillna(_earliest_birth(material))
    return known.to_numpy()


def _earliest_birth(material: Material) -> pd.Series:
    nothing = pd.Series(pd.NaT, index=range(len(material.patients)), dtype="datetime64[us]")
    static = material.cohort.static
    ages = [column for column in ([] if static is None else static.columns) if AGE.fullmatch(str(column))]
    if not ages or not pd.api.types.is_numeric_dtype(static[ages[0]].dtype):
        return nothing
    age = static.set_index("subject_id")[ages[0]].reindex(material.patients).to_numpy(float)
    # Ages that are scaled are no years.
    if not (age >= 0).any() or (age < 0).any() or not 1 < np.nanmax(age) < 130:
        return nothing
    first = material.cohort.outcomes["prediction_time"].groupby(material.sample_patient).min()
    known = np.flatnonzero(age >= 0)
    days = np.ceil((age[known] + 2) * 365.25).astype("timedelta64[D]")
    nothing.iloc[known] = (first.to_numpy()[known] - days).astype("datetime64[us]")
    return nothing


def check_shifted_clocks(material: Material) -> Iterator[Finding]:
    """Patients or sites whose events all lie a whole number of years, days or hours off."""
    reach = _reach(material)
    yield from _ahead(material, reach)
    yield from _shifted_patients(material, reach)
    for (table, column), told in static_sources(material).items():
        site = told.groupby(material.sample_patient).first()
        yield from _shifted_site(table, column, site, reach, "from event to prediction")
        yield from _shifted_site(table, column, site, _waits(material), "from the draw to the result")


def _reach(material: Material) -> pd.DataFrame:
    """Hours to the last prediction from the `late`st and the `early` event, for patients who have some events.

    Negative where the event lies after it.
    """
    parts = []
    for name in EVENTS:
        events = getattr(material.cohort, name)
        if events is not None and len(events):
            parts.append(pd.DataFrame({"patient": material.positions(name), "time": events["time"].to_numpy()}))
    if not parts:
        return pd.DataFrame({"early": [], "late": []}, dtype=float)
    times = pd.concat(parts).groupby("patient")["time"].agg(["min", "max", "size"])
    times = times[times["size"] >= _SOME_EVENTS]
    asked = pd.Series(_last_prediction(material)).reindex(times.index)
    hour = np.timedelta64(1, "h")
    return pd.DataFrame({"early": (asked - times["min"]) / hour, "late": (asked - times["max"]) / hour})


def _waits(material: Material) -> pd.DataFrame:
    """Hours from the draw to the result: the `early` and `late` tenth of each patient's labs that have to wait."""
    labs = material.cohort.labs
    if labs is None or "available_at" not in labs.columns:
        return pd.DataFrame({"early": [], "late": []}, dtype=float)
    hours = (labs["available_at"] - labs["time"]) / np.timedelta64(1, "h")
    waiting = (hours > 0).to_numpy()
    by_patient = hours[waiting].groupby(material.positions("labs")[waiting])
    table = pd.DataFrame({"early": by_patient.quantile(0.1), "late": by_patient.quantile(0.9)})
    return table[(by_patient.size() >= _SOME_EVENTS).to_numpy()]


def _ahead(material: Material, reach: pd.DataFrame) -> Iterator[Finding]:
    """Patients all of whose events come after all of their predictions."""
    ahead = reach.index[(reach["early"] < 0).to_numpy()]
    if len(ahead) >= 3 and len(ahead) >= SYSTEMATIC * len(reach):
        # Whose record begins within the day may have been asked about on arrival.
        late = len(ahead) >= _MOSTLY * len(reach) or float(-reach["early"][ahead].median()) > 24
        yield Finding(
            "misleads" if late else "note",
            "predictions before any event",
            len(ahead),
            Place("outcomes", "prediction_time", tuple((row,) for row in material.samples_of(ahead[:SHOWN]))),
            f"All events of {counted(len(ahead), 'patient')} with {_SOME_EVENTS} or more lie after every prediction.",
            "Check prediction_time: it may be the time of birth or admission, or of another clock.",
        )


def _shifted_patients(material: Material, reach: pd.DataFrame) -> Iterator[Finding]:
    """Patients whose events lie whole years away, and would lie among the others' if they were shifted back."""
    if len(reach) < _ENOUGH_PATIENTS:
        return
    # Those that are shifted are few: the reach of the others is told without the outermost tenths.
    low, high = reach["late"].quantile(0.1), reach["early"].quantile(0.9)
    margin = (high - low) / 2 + 36
    if margin > _LONGEST_REACH:
        return
    year = 24 * 365.25
    years = (reach["late"] / year).round()
    fits = (reach["late"] - years * year >= low - margin) & (reach["early"] - years * year <= high + margin)
    shifted = reach.index[((years != 0) & fits).to_numpy()]
    if len(shifted):
        yield Finding(
            "misleads",
            "shifted clocks",
            len(shifted),
            Place("outcomes", "prediction_time", tuple((row,) for row in material.samples_of(shifted[:SHOWN]))),
            f"All events of {counted(len(shifted), 'patient')} lie a whole number of years from the prediction, and "
            f"those of nine in ten others within {max(high, -low) / 24:.0f} days.",
            "Correct the year, of the events or of prediction_time.",
        )


def _shifted_site(table: str, column: str, site: pd.Series, spans: pd.DataFrame, what: str) -> Iterator[Finding]:
    """The site whose shortest and longest spans both differ by the same whole hours from those elsewhere."""
    from sklearn.metrics import roc_auc_score

    site = site.reindex(spans.index).dropna()
    spans = spans.loc[site.index]
    # Where there are two, the smaller one is the odd one out.
    for value in site.value_counts().index[::-1]:
        own, rest = spans[site == value], spans[site != value]
        if min(len(own), len(rest)) < _ENOUGH_PATIENTS:
            continue
        shifts = own.median() - rest.median()
        hours, other = float(shifts["late"]), float(shifts["early"])
        tolerance = max(0.1 * abs(hours), 0.25)
        whole = round(hours) != 0 and abs(hours - round(hours)) < tolerance and abs(hours - other) < 2 * tolerance
        apart = roc_auc_score(site == value, spans["late"])
        if whole and max(apart, 1 - apart) >= _APART:
            yield Finding(
                "misleads",
                "shifted clocks",
                len(own),
                Place(table, column),
                f"The hours {what} of one {column} ({counted(len(own), 'patient')}) are {abs(hours):.1f} "
                f"{'more' if hours > 0 else 'less'} than elsewhere, the shortest and the longest alike.",
                "Check the clocks and time zones of that source.",
            )
            return

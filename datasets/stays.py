"""Stays in hospital or intensive care, and what is predicted of them: the same rules for every source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from .errors import InputError

Task = Literal["mortality", "length-of-stay", "readmission"]
TASKS: tuple[Task, ...] = ("mortality", "length-of-stay", "readmission")

READMISSION_DAYS = 30
"""From discharge to the next admission, the customary span of quality reports in the United States."""

LONGEST_STAY = pd.Timedelta(days=5 * 365)
"""Hospitals keep patients for months, institutions for years; a system that needs an end where there is none
writes one decades ahead (2099-12-31, 9999-12-31)."""

_FEW = 0.1
"""Share of a source's starts and ends that, alone after years in which nobody comes or goes, are no follow-up."""

_COLUMNS = ("subject_id", "start", "end", "died", "died_at")


@dataclass(frozen=True)
class Predictions:
    """Samples with their outcome, and who was left out on the way to them."""

    outcomes: pd.DataFrame
    """`subject_id`, `prediction_time` and one column, named after the outcome."""
    steps: tuple[tuple[str, int, int], ...]
    """Step, patients and samples that were left after it, for the attrition log."""
    stays: pd.DataFrame
    """The stay of each row of `outcomes`, in the same order."""


def predictions(stays: pd.DataFrame, task: Task, *, after: float = 48.0) -> Predictions:
    """What is to be predicted of each stay, when, and what came of it.

    - "mortality" (`died`, binary): will the patient die in this hospital? Asked `after` hours from
      the start, of patients who are then still there and alive.
    - "length-of-stay" (`remaining_days`, continuous): days from then until the stay ends, by
      discharge or death.
    - "readmission" (`readmitted`, binary): does another stay begin within 30 days of this one's end?
      Asked at the end, of patients who left alive. Where the data end sooner, with the last
      start or end of any stay, it is unknown. A patient who dies at home within the 30 days was not
      readmitted. Few stays (a tenth at most) that come after 5 years in which nobody came or went are
      mistaken dates, or stand-ins (2099-12-31): the data end before them.

    An end more than 5 years after the start is a stand-in for none: such a stay goes on.

    Args:
        stays: `subject_id`, `start`, `end` (blank where it goes on), `died` (boolean: in hospital,
            before discharge from it; blank where unknown), `died_at` (blank where alive or unknown).
            Times are of one clock, without a zone. Further columns are kept.
        task: which of the three.
        after: hours from the start of a stay to the moment of prediction; not for "readmission".

    Raises:
        InputError: an unknown task, `after` not positive, or no stay that qualifies.
    """
    if task not in TASKS:
        raise InputError(f"task is {task!r}; expected one of {', '.join(TASKS)}.")
    if not 0 < after < math.inf:
        raise InputError(f"after is {after}; expected a positive number of hours.")
    missing = [name for name in _COLUMNS if name not in stays.columns]
    assert not missing, f"a source made stays without {missing}"
    steps = [("stays in the source", *_counted(stays))]
    kept = stays[stays["start"].notna() & ~(stays["end"] < stays["start"])]
    steps.append(("with a start, and an end that is not before it", *_counted(kept)))
    kept, doubted = with_believed_ends(kept)
    if doubted:
        steps.append((told_of_doubt(doubted), *_counted(kept)))
    build = _readmissions if task == "readmission" else _during_the_stay
    outcomes, kept, own_steps = build(kept, task, after)
    if not len(outcomes):
        raise InputError(
            f"No stay of {len(stays)} qualifies for the task {task!r}"
            + (f" with a prediction {after:g} h after its start." if task != "readmission" else ".")
            + " Check the times of the stays, or choose another task or moment."
        )
    return Predictions(outcomes.reset_index(drop=True), (*steps, *own_steps), kept.reset_index(drop=True))


def with_believed_ends(stays: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The stays, those that would last longer than `LONGEST_STAY` as going on; and how many these are.

    Such an end stands for "not yet". Believed, it would be the end of everybody's follow-up. Whether the
    patient died before it is then unknown too, where the source's columns tell of death.
    """
    doubted = stays["end"] - stays["start"] > LONGEST_STAY
    if not doubted.any():
        return stays, 0
    return stays.assign(end=stays["end"].mask(doubted), died=stays["died"].mask(doubted)), int(doubted.sum())


def told_of_doubt(count: int) -> str:
    """What the attrition log says of ends that are not believed."""
    return f"ends more than {LONGEST_STAY.days // 365} years after the start taken as not known: {count}"


def _during_the_stay(stays: pd.DataFrame, task: Task, after: float) -> tuple[pd.DataFrame, pd.DataFrame, list]:
    """Samples at `after` hours from the start of those who are still there."""
    moment = stays["start"] + pd.Timedelta(hours=after)
    left = stays[["end", "died_at"]].min(axis=1)
    # A death years after the start of a stay without an end does not tell how long it was.
    left = left.mask(left - stays["start"] > LONGEST_STAY)
    there = ~(left <= moment)
    kept, moment, left = stays[there], moment[there], left[there]
    steps = [(f"still there and alive {after:g} h after the start", *_counted(kept))]
    once = ~pd.DataFrame({"subject_id": kept["subject_id"], "moment": moment}).duplicated()
    if not once.all():
        kept, moment, left = kept[once], moment[once], left[once]
        steps.append(("one stay a patient and moment", *_counted(kept)))
    if task == "mortality":
        outcome = {"died": kept["died"].astype("boolean").astype("Float64")}
    else:
        outcome = {"remaining_days": (left - moment) / pd.Timedelta(days=1)}
    keys = {"subject_id": kept["subject_id"], "prediction_time": moment}
    return pd.DataFrame(keys | outcome), kept, steps


def _readmissions(stays: pd.DataFrame, _task: Task, _after: float) -> tuple[pd.DataFrame, pd.DataFrame, list]:
    """Samples at the end of the stays that patients left alive."""
    ended = stays[stays["end"].notna()]
    steps = [("ended", *_counted(ended))]
    alive = ended["died"].astype("boolean").eq(False).fillna(False) & ~(ended["died_at"] <= ended["end"])
    kept = ended[alive].sort_values(["subject_id", "end", "start"]).drop_duplicates(["subject_id", "end"], keep="first")
    steps.append(("left alive, one stay a patient and end", *_counted(kept)))

    # The next start at or after this stay's end; a start inside the stay is a transfer, not a return.
    starts = stays[["subject_id", "start"]].sort_values("start")
    ends = kept[["subject_id", "end"]].reset_index().sort_values("end")
    following = pd.merge_asof(
        ends, starts, left_on="end", right_on="start", by="subject_id", direction="forward", allow_exact_matches=False
    ).set_index("index")["start"]
    horizon = kept["end"] + pd.Timedelta(days=READMISSION_DAYS)
    returned = following.reindex(kept.index) <= horizon
    last, beyond = _end_of_data(stays)
    if beyond:
        years = f"{LONGEST_STAY.days // 365} years in which nobody came or went"
        steps.append((f"starts and ends after {years} taken for no follow-up: {beyond}", *_counted(kept)))
    seen = last >= horizon
    readmitted = returned.astype("Float64").where(returned | seen, pd.NA)
    outcomes = {"subject_id": kept["subject_id"], "prediction_time": kept["end"], "readmitted": readmitted}
    return pd.DataFrame(outcomes), kept, steps


def _end_of_data(stays: pd.DataFrame) -> tuple[pd.Timestamp, int]:
    """The last start or end that tells how far the source reaches, and how many lie beyond it."""
    moments = pd.concat([stays["start"], stays["end"]]).dropna().sort_values(ignore_index=True)
    count = len(moments)
    for place in moments.index[moments.diff() > LONGEST_STAY][::-1]:
        if len(moments) - place > _FEW * len(moments):
            break
        count = place
    return moments.iloc[:count].max(), len(moments) - count


def _counted(stays: pd.DataFrame) -> tuple[int, int]:
    return int(stays["subject_id"].nunique()), len(stays)

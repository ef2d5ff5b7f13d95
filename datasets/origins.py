"""What a DICOM header says about where an image comes from, as far as it cannot name the patient."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from .dicom import text
from .errors import UnreadableImageError

if TYPE_CHECKING:
    from pydicom import Dataset

# Code strings and identifiers have these alphabets (PS3.5 6.2); anything else is text of unknown content.
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_UID = re.compile(r"[0-9.]{1,64}")
_CLOCK = re.compile(r"(\d{12})(\d{2})?(?:\.(\d{1,6}))?(?:[+-]\d{4})?")


def origin(dataset: Dataset) -> dict[str, str | datetime | None]:
    """Modality, view, laterality, UIDs and time of acquisition, each None where absent or not what it should be."""

    def matching(pattern: re.Pattern[str], *keywords: str) -> str | None:
        # A broken remark about the picture does not make its pixels less true, so it counts as absent.
        for keyword in keywords:
            with suppress(UnreadableImageError):
                value = text(dataset, keyword)
                if value is not None and pattern.fullmatch(value):
                    return value
        return None

    whole = matching(_CLOCK, "AcquisitionDateTime")
    for kind in ("Acquisition", "Content"):
        date = matching(re.compile(r"\d{8}"), f"{kind}Date")
        time = matching(re.compile(r"\d{4,6}(\.\d{1,6})?"), f"{kind}Time")
        whole = whole or (date and time and date + time)
    return {
        "modality": matching(_CODE, "Modality"),
        "view": matching(_CODE, "ViewPosition"),
        "laterality": matching(re.compile("[RLBU]"), "ImageLaterality", "Laterality"),
        "study_uid": matching(_UID, "StudyInstanceUID"),
        "series_uid": matching(_UID, "SeriesInstanceUID"),
        "acquired": _moment(whole),
    }


def _moment(written: str | None) -> datetime | None:
    """A DICOM date and time of at least hours and minutes; None for anything else."""
    match = _CLOCK.fullmatch(written or "")
    if match is None:
        return None
    minutes, seconds, fraction = match.groups()
    with suppress(ValueError):
        return datetime.strptime(f"{minutes}{seconds or '00'}.{fraction or '0'}", "%Y%m%d%H%M%S.%f")
    return None

"""Static facts that cannot be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from .audit_findings import Finding, Material, Place, counted, single_rows
from .tables import AGE

OLDEST_AGE = 120
"""Years; the longest life that is known was of 122."""

# Ages of which this share is negative, and that lie around 0, are scaled and no years.
_SCALED_SHARE, _SCALED_MEDIAN = 0.2, 5


def check_ages(material: Material) -> Iterator[Finding]:
    """Ages in years that nobody has."""
    static = material.cohort.static
    for column in [column for column in static.columns if AGE.fullmatch(str(column))]:
        if not pd.api.types.is_numeric_dtype(static[column].dtype):
            continue
        age = static[column].to_numpy(float)
        known = age[~np.isnan(age)]
        if (known < 0).mean() >= _SCALED_SHARE and np.median(np.abs(known)) < _SCALED_MEDIAN:
            continue
        wrong = (age < 0) | (age > OLDEST_AGE)
        if wrong.any():
            yield Finding(
                "misleads",
                "impossible ages",
                int(wrong.sum()),
                Place("static", str(column), single_rows(np.flatnonzero(wrong))),
                f"{counted(int(wrong.sum()), 'age is', 'ages are')} below 0 or above {OLDEST_AGE} years; they lie "
                f"between {np.min(age[wrong]):g} and {np.max(age[wrong]):g}.",
                "Correct them, and leave the cell blank where the age is not known: -1 and 999 are read as ages.",
            )

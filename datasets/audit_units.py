"""Labs of one code whose values are in two units, and of one quantity under two codes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from .audit_findings import Finding, Material, Place, counted, single_rows

APART = 1.5
"""Ratio of medians from which two spellings of a unit are two units: between customary units of one
quantity it is 2.7 (°C and °F) and more."""

FAR = 8
"""Ratio of two clouds from which units are to be suspected where no conversion is known: between kPa and
mmHg it is 7.5, and ten and more where a prefix differs. Below it, two states of patients will do as well."""

BY_CHANCE = 0.02
"""Bound on the chance below which the values beside two spellings are taken to differ."""

_SOME_ROWS = 3


def check_units(material: Material) -> Iterator[Finding]:
    """Codes with values in two clouds, and codes with two units beside their values."""
    # What no sample sees is in no unit that matters: a later course may well have another scale.
    labs = material.cohort.labs[material.cohort.window("labs").seen(len(material.cohort.labs))]
    if not len(labs):
        return
    yield from _clouds(labs)
    if "unit" in labs.columns:
        yield from _spelt(labs)


def check_codes(material: Material) -> Iterator[Finding]:
    """Codes that are alike but for case and blanks."""
    codes = material.cohort.labs["code"]
    rows = codes.value_counts()
    told = pd.DataFrame({"code": rows.index.astype("str"), "rows": rows.to_numpy()}).query("rows > 0")
    told["plain"] = told["code"].str.lower().str.replace(r"\s+", "", regex=True)
    # By frequency: each after the first is the odd one out.
    odd = told[told.duplicated("plain")]
    if len(odd):
        first = told.drop_duplicates("plain").set_index("plain")["code"]
        pairs = [f"{code!r} beside {first[plain]!r}" for code, plain in zip(odd["code"], odd["plain"], strict=True)]
        yield Finding(
            "note",
            "codes alike but for case",
            len(odd),
            Place("labs", "code", single_rows(np.flatnonzero(codes.isin(odd["code"])))),
            f"{counted(len(odd), 'code differs', 'codes differ')} from another in case or blanks alone: "
            f"{', '.join(pairs[:3])}{', ...' * (len(pairs) > 3)}. They are two series.",
            "Write one quantity as one code.",
        )


def _clouds(labs: pd.DataFrame) -> Iterator[Finding]:
    from .units import two_clouds

    for cloud in two_clouds(labs).itertuples():
        own = labs[(labs["code"] == cloud.code).to_numpy()]
        high = (own["value"] > np.sqrt(cloud.low * cloud.high)).to_numpy()
        # The smaller cloud is the one to look at.
        odd = own.index[high if cloud.share_high <= 0.5 else ~high]
        yield Finding(
            "misleads" if cloud.likely or cloud.ratio >= FAR else "note",
            "units in two clouds",
            len(odd),
            Place("labs", f"value of {cloud.code}", single_rows(odd)),
            f"{cloud.code} has values about {cloud.low:.3g} and about {cloud.high:.3g} ({cloud.ratio:.3g} times, "
            f"{100 * cloud.share_high:.0f} % of them){f': {cloud.likely}' if cloud.likely else ''}.",
            "Find out which rows are in which unit and convert them (datasets.units); leave out what cannot be told.",
        )


def _spelt(labs: pd.DataFrame) -> Iterator[Finding]:
    """Codes with two units: of two scales, or only spelt in two ways."""
    unit = labs["unit"].astype("str").str.lower().str.replace(r"[\s*^{}\[\]]", "", regex=True).str.replace("μ", "u")
    unit = unit.str.replace("µ", "u").where(labs["unit"].notna())
    table = pd.DataFrame({"code": labs["code"].astype("str"), "unit": unit, "value": labs["value"].abs()}).dropna()
    groups = table.groupby(["code", "unit"])["value"].agg(["size", "median"]).reset_index()
    for code, own in groups[groups["size"] >= _SOME_ROWS].groupby("code"):
        if len(own) < 2:
            continue
        low, high = own["median"].min(), own["median"].max()
        extremes = [own.loc[own["median"].idxmin(), "unit"], own.loc[own["median"].idxmax(), "unit"]]
        values = [table["value"][(table["code"] == code) & (table["unit"] == unit)] for unit in extremes]
        apart = high > APART * low and _differ(*values)
        rarest = own.loc[own["size"].idxmin(), "unit"]
        rows = table.index[((table["code"] == code) & (table["unit"] == rarest)).to_numpy()]
        yield Finding(
            "misleads" if apart else "note",
            "two units of one code",
            len(own),
            Place("labs", f"unit of {code}", single_rows(rows)),
            f"{code} has {len(own)} units, with medians of {low:.3g} to {high:.3g}.",
            "Convert them to one unit (datasets.units), or give each its own code."
            if apart
            else "Nothing, if they are two names of one unit.",
        )


def _differ(low: pd.Series, high: pd.Series) -> bool:
    """Whether the second values are larger beyond chance (Mann and Whitney's test, by a bound on its normal form)."""
    rank = pd.concat([low, high]).rank().to_numpy()
    some, others = len(high), len(low)
    larger = (rank[others:].sum() - some * (some + 1) / 2) / (some * others)
    spread = np.sqrt((some + others + 1) / (12 * some * others))
    # Of a normal variable, P(z > x) <= exp(-x² / 2) / 2.
    return bool(larger > 0.5 and np.exp(-np.square((larger - 0.5) / spread) / 2) / 2 < BY_CHANCE)

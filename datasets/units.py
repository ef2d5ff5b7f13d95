"""One unit a code: labs in several units converted where that is known, and analytes that look like two units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal, TypeVar

import numpy as np
import pandas as pd

from .analytes import Analyte, conversion, find_analyte
from .cohort import Cohort
from .errors import InputError
from .tables import LARGEST_LAB_VALUE
from .unit_symbols import Unit, parse_unit
from .words import as_words

__all__ = ["harmonise_units", "two_clouds"]

Labs = TypeVar("Labs", Cohort, pd.DataFrame)
_REPORT = ["code", "unit", "rows", "done", "to", "slope", "intercept"]


def harmonise_units(
    labs: Labs, *, to: Mapping[str, str] | None = None, unconvertible: Literal["raise", "separate"] = "raise"
) -> tuple[Labs, pd.DataFrame]:
    """Give every code one unit, by converting what can be converted, and say what was done.

    A code's unit is the one that `to` names, else the most frequent of its units that are known. Units
    are known by their UCUM symbol and the usual other spellings (`parse_unit`). Values convert between
    units of one dimension, and between mass, amount and equivalents for the analytes of
    `analytes.ANALYTES`, which codes are told by: LOINC codes and names. A blank unit is no unit: such
    values are reported and left as they are. The most frequent unit is told by all rows, those of test
    patients too; name it in `to` where that must not be.

    Args:
        labs: a cohort, or a table with `code`, `value` and `unit`.
        to: the unit wanted, by code or by the analyte's name, such as `{"glucose": "mmol/L"}`.
        unconvertible: "raise" where no conversion between two units of a code is known; "separate"
            gives such values a code of their own, `CODE [UNIT]`.

    Returns:
        The same with one unit a code, and a report with a row for each code and unit: `code`, `unit` (as it
        stood; missing where blank), `rows`, `done` ("kept", "respelt", "converted", "separate", "blank"),
        `to` (the unit that they have now), `slope` and `intercept` (value × slope + intercept).

    Raises:
        InputError: labs has no numbers, no conversion is known, or `to` names what is not there.

    Example:
        >>> cohort, report = harmonise_units(cohort, to={"glucose": "mmol/L"})
        >>> print(report[report["done"] == "converted"])
    """
    if unconvertible not in ("raise", "separate"):
        raise InputError(f'unconvertible is {unconvertible!r}; expected "raise" or "separate".')
    table = labs.labs if isinstance(labs, Cohort) else labs
    if table is None or not len(table):
        return labs, pd.DataFrame(columns=_REPORT)
    _require_numbers(table)
    kinds, number = _kinds(table)
    report = _plan(kinds, dict(to or {}), unconvertible)
    changed = _converted(table, report, number)
    report = report[_REPORT]
    if isinstance(labs, Cohort):
        count = report.loc[report["done"] == "converted", "code"].nunique()
        return labs.with_tables(f"units converted in {count} codes", labs=changed), report
    return changed, report


def _require_numbers(labs: pd.DataFrame) -> None:
    """Raise `InputError` unless these are labs with a code in every row, and numbers."""
    missing = [column for column in ("code", "value") if column not in labs.columns]
    if missing:
        raise InputError(
            f"labs lacks the column {missing[0]}. Give a table with code and value, and unit if it has one."
        )
    if not pd.api.types.is_numeric_dtype(labs["value"].dtype):
        raise InputError(
            f"labs.value holds {labs['value'].dtype}, not numbers. Convert it, or make a Cohort of it first."
        )
    blank = labs["code"].isna().to_numpy()
    if blank.any():
        raise InputError(
            f"labs, data row {int(np.flatnonzero(blank)[0]) + 1}: code is blank. Fill it in, or remove it."
        )


def _kinds(table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The pairs of code and unit (blank is missing) with their `rows`, and the number of each row's pair."""
    code, codes = pd.factorize(table["code"])
    spelt, spellings = np.full(len(table), -1), pd.Series(dtype="str")
    if "unit" in table.columns:
        words = as_words(table["unit"]).text if table["unit"].dtype == object else table["unit"]
        spelt, spellings = pd.factorize(words)
        spellings = as_words(pd.Series(spellings)).text.str.strip()
    # The last unit is for what is missing, -1.
    units = pd.array([*spellings.where(spellings != ""), None], dtype="str")
    number, pairs = pd.factorize(code.astype("int64") * len(units) + spelt % len(units))
    kinds = pd.DataFrame(
        {
            "code": pd.array([str(codes[pair // len(units)]) for pair in pairs], dtype="str"),
            "unit": units.take(pairs % len(units)),
            "rows": np.bincount(number, minlength=len(pairs)),
        }
    )
    return kinds, number


def _plan(kinds: pd.DataFrame, to: Mapping[str, str], unconvertible: str) -> pd.DataFrame:
    """What is to be done with each pair of code and unit, in their order."""
    analytes = {code: find_analyte(code) for code in kinds["code"].unique()}
    strange = set(to) - {*analytes, *(analyte.name for analyte in analytes.values() if analyte)}
    if strange:
        raise InputError(f"to names {min(strange)!r}, which is no code of labs and no analyte of theirs. Correct it.")
    rows: dict[int, dict] = {}
    for code, own in kinds.groupby("code", sort=False):
        analyte = analytes[code]
        units = {at: _unit(unit, analyte) for at, unit in own["unit"].dropna().items()}
        target = _target(code, units, own["rows"], analyte, to)
        for at in own.index:
            rows[at] = {"done": "blank", "to": None, "slope": 1.0, "intercept": 0.0, "new_code": code}
            if at in units:
                rows[at] |= _step(code, units[at], own.loc[at], target, analyte, unconvertible)
    return kinds.join(pd.DataFrame.from_dict(rows, orient="index").astype({"to": "str"}))


def _unit(spelt: str, analyte: Analyte | None) -> Unit:
    """What a spelling means; one that is not known is a unit of a dimension of its own."""
    return parse_unit(spelt, counts=analyte.is_counted if analyte else None) or Unit(spelt, f"{spelt}?")


def _target(
    code: str, units: Mapping[int, Unit], rows: pd.Series, analyte: Analyte | None, to: Mapping[str, str]
) -> Unit | None:
    """The unit that a code is to have; None where all of its units are blank."""
    wanted = to.get(code) or (analyte and to.get(analyte.name))
    if wanted:
        unit = _unit(str(wanted), analyte)
        if not _is_known(unit):
            raise InputError(f"to wants {code} in {wanted!r}, which is no unit that is known. Write it in UCUM.")
        return unit
    counts: Counter[str] = Counter()
    for at, unit in units.items():
        counts[unit.symbol] += int(rows[at])
    return max(units.values(), key=lambda unit: (_is_known(unit), counts[unit.symbol], unit.symbol), default=None)


def _is_known(unit: Unit) -> bool:
    return not unit.dimension.endswith("?")


def _step(
    code: str, unit: Unit, kind: pd.Series, target: Unit, analyte: Analyte | None, unconvertible: str
) -> dict[str, object]:
    """What is to be done with the values of one code in one unit."""
    if unit.symbol == target.symbol:
        return {"done": "kept" if unit.symbol == kind["unit"] else "respelt", "to": unit.symbol}
    line = conversion(unit, target, analyte)
    if line is not None:
        return {"done": "converted", "to": target.symbol, "slope": line.slope, "intercept": line.intercept}
    if unconvertible == "separate":
        return {"done": "separate", "to": unit.symbol, "new_code": f"{code} [{unit.symbol}]"}
    raise InputError(
        f"labs: {code} has {kind['rows']} values in {kind['unit']!r}, and no conversion to {target.symbol!r} is known. "
        'Correct the units, leave those values out, or give them a code of their own with unconvertible="separate".'
    )


def _converted(table: pd.DataFrame, plan: pd.DataFrame, number: np.ndarray) -> pd.DataFrame:
    """The labs after the plan; `number` is the row of the plan for each row of the labs."""
    slope, intercept = (plan[name].to_numpy()[number] for name in ("slope", "intercept"))
    value = table["value"].to_numpy("float64", na_value=np.nan) * slope + intercept
    unit = pd.Categorical(plan["to"])[number]
    code = table["code"]
    if (plan["new_code"] != plan["code"]).any():
        code = pd.Categorical(plan["new_code"])[number]
    if table["value"].dtype.kind == "f":
        value = value.astype(table["value"].dtype)
    return table.assign(code=code, value=value, unit=unit)


# Two clouds

_BINS = 400
_LEAST = 20
"""Values in each of two clouds."""
_LEAST_SHARE = 0.01
"""Of all values, in each of two clouds: fewer are outliers and slips of the keyboard."""
_SHALLOW, _DEEP = 0.3, 0.1
"""Density in the valley between two clouds, of that at the lower of their peaks."""
_FAR = 5.0
"""How many times as high the upper cloud lies, where no two units of the analyte are known."""
_NEAR = 1.35
"""How far a ratio of medians may be from a factor of conversion: those who are measured in one unit
need not be as ill as those who are measured in the other."""
_MOST_ALIKE = 0.5
"""Share of a cloud that may be one value: more is a limit of detection or a code."""
_LEAST_VALUES = 8
"""Different values in each of two clouds: fewer are a score or a code."""


def two_clouds(labs: pd.DataFrame) -> pd.DataFrame:
    """Codes whose values fall into two clouds, as they do where two units are mixed.

    Clouds are two peaks of the density of log values with a valley between them. They are suspect where
    the ratio of their medians is near a conversion between two units of the analyte, or is large and the
    valley is deep. Values that are not positive are not looked at, and neither are the units beside
    them. Two units that differ by less than the analyte varies (bilirubin's 17-fold range in intensive
    care, kg and lb) make no valley, and are not found.

    Args:
        labs: `code` and `value`.

    Returns:
        A row a suspect code: `code`, `low` and `high` (medians of the two clouds), `ratio`, `share_high`
        (of all positive values), and `likely`, such as "mmol/L and mg/dL of glucose", or "".
    """
    _require_numbers(labs)
    found = []
    values = labs["value"].to_numpy("float64", na_value=np.nan)
    usable = (values > 1 / LARGEST_LAB_VALUE) & (values <= LARGEST_LAB_VALUE)
    number, codes = pd.factorize(labs["code"])
    # Codes of few values are not looked at one by one: free text makes a million of them.
    usable &= number >= 0
    usable &= (np.bincount(number[usable], minlength=len(codes)) >= 2 * _LEAST)[number]
    for one, own in pd.Series(values[usable]).groupby(number[usable]):
        code = str(codes[one])
        suspect = _suspect(own.to_numpy(), find_analyte(code))
        if suspect is not None:
            found.append({"code": code, **suspect})
    columns = {"code": "str", "low": "float64", "high": "float64", "ratio": "float64", "share_high": "float64"}
    return pd.DataFrame(found, columns=[*columns, "likely"]).astype(columns | {"likely": "str"})


def _suspect(values: np.ndarray, analyte: Analyte | None) -> dict[str, object] | None:
    """The two clouds of one code's positive values, or None."""
    if len(values) < 2 * _LEAST:
        return None
    for split, depth in _valleys(values):
        low, high = values[values <= split], values[values > split]
        if not (_is_cloud(low, len(values)) and _is_cloud(high, len(values))):
            continue
        medians = float(np.median(low)), float(np.median(high))
        likely = _likely(*medians, analyte)
        if (likely and depth <= _SHALLOW) or (depth <= _DEEP and medians[1] / medians[0] >= _FAR):
            share = len(high) / len(values)
            ratio = medians[1] / medians[0]
            return {"low": medians[0], "high": medians[1], "ratio": ratio, "share_high": share, "likely": likely}
    return None


def _is_cloud(values: np.ndarray, of: int) -> bool:
    if len(values) < max(_LEAST, _LEAST_SHARE * of):
        return False
    counts = np.unique(values, return_counts=True)[1]
    return len(counts) >= _LEAST_VALUES and counts.max() <= _MOST_ALIKE * len(values)


def _valleys(values: np.ndarray) -> list[tuple[float, float]]:
    """Values at which the density of log values has a minimum between two peaks, and its depth, deepest first."""
    low, high = np.log(np.quantile(values, [0.001, 0.999]))
    if high <= low:
        return []
    margin = 0.1 * (high - low)
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    step = edges[1] - edges[0]
    width = np.clip(_bandwidth(np.log(values)) / step, 1.0, _BINS / 10)
    reach = np.arange(-int(4 * width) - 1, int(4 * width) + 2)
    kernel = np.exp(-0.5 * (reach / width) ** 2)
    density = np.convolve(_spread(values, np.exp(edges)), kernel / kernel.sum(), "same")
    before = np.maximum.accumulate(density)
    after = np.maximum.accumulate(density[::-1])[::-1]
    lower = np.minimum(before, after)
    depth = np.divide(density, lower, out=np.ones_like(density), where=lower > 0)
    lowest = (density[1:-1] <= density[:-2]) & (density[1:-1] < density[2:]) & (depth[1:-1] <= _SHALLOW)
    places = np.flatnonzero(lowest) + 1
    order = places[np.argsort(depth[places], kind="stable")]
    return [(float(np.exp(edges[place] + step / 2)), float(depth[place])) for place in order[:5]]


def _spread(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many values lie between the edges, each spread half-way to the next other one.

    So whole numbers and rounded ones have no valleys between them.
    """
    distinct, counts = np.unique(values, return_counts=True)
    between = (distinct[:-1] + distinct[1:]) / 2
    first, last = 2 * distinct[0] - between[0], 2 * distinct[-1] - between[-1]
    return np.diff(np.interp(edges, [first, *between, last], [0, *np.cumsum(counts)]))


def _bandwidth(logs: np.ndarray) -> float:
    """Silverman's rule for the spread within the two halves that differ most from each other (Otsu's)."""
    ordered = np.sort(logs)
    count = np.arange(1, len(ordered))
    mean_low = np.cumsum(ordered)[:-1] / count
    mean_high = (ordered.sum() - np.cumsum(ordered)[:-1]) / (len(ordered) - count)
    cut = int(np.argmax(count * (len(ordered) - count) * (mean_high - mean_low) ** 2)) + 1
    halves = (ordered[:cut], ordered[cut:])
    spread = np.sqrt(sum(len(half) * half.var() for half in halves) / len(ordered))
    return 0.9 * spread * min(map(len, halves)) ** -0.2


def _likely(low: float, high: float, analyte: Analyte | None) -> str:
    """The two units of the analyte whose conversion takes the one median nearest to the other, or ""."""
    best, named = np.log(_NEAR), ""
    for source in analyte.reported_in() if analyte else ():
        for target in analyte.reported_in():
            line = conversion(source, target, analyte)
            moved = low * line.slope + line.intercept if line and source != target else 0.0
            # A factor near one makes no clouds.
            if moved > _NEAR * low and abs(np.log(moved / high)) < best:
                best = abs(np.log(moved / high))
                named = f"{source.symbol} and {target.symbol} of {analyte.name}"
    return named

"""Whether measurements come in the units that a model learned them in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from .errors import InputError
from .unit_symbols import parse_unit

# Codes that a remark names.
_NAMED = 5


def stated_units(labs: pd.DataFrame, rows: np.ndarray) -> dict[str, list[str]]:
    """The units that stand beside each code's values, each in one of its spellings, in alphabetical order.

    Args:
        labs: a cohort's table.
        rows: which of its rows count.

    Returns:
        By code; a code without any unit is not there.
    """
    if "unit" not in labs.columns or not len(rows):
        return {}
    code, codes = labs["code"].cat.codes.to_numpy(np.int64)[rows], labs["code"].cat.categories
    unit, units = pd.factorize(labs["unit"].iloc[rows])
    pairs = np.unique(code[unit >= 0] * len(units) + unit[unit >= 0])
    found: dict[str, dict[object, str]] = {}
    for code_place, unit_place in zip(*np.divmod(pairs, max(len(units), 1)), strict=True):
        spelt = str(units[unit_place]).strip()
        if spelt:
            found.setdefault(codes[code_place], {}).setdefault(_meaning(spelt), spelt)
    return {code: sorted(own.values()) for code, own in found.items()}


def tell_mixed(learned: Mapping[str, list[str]]) -> tuple[str, ...]:
    """A remark on codes that training patients have in several units."""
    mixed = [f"{code} ({', '.join(units)})" for code, units in learned.items() if len(units) > 1]
    if not mixed:
        return ()
    more = f" and {len(mixed) - _NAMED} more codes" if len(mixed) > _NAMED else ""
    return (
        f"labs: units that differ within a code, whose values are taken as they stand: {'; '.join(mixed[:_NAMED])}"
        f"{more}. Give each code one unit by harmonise_units",
    )


def require_units(labs: pd.DataFrame, rows: np.ndarray, learned: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Remarks on units that cannot be told from those that training patients had.

    Args:
        labs, rows: as `stated_units` takes them.
        learned: what it gave of the training patients.

    Raises:
        InputError: a unit is another one than any that was learned.
    """
    untold = []
    for code, units in stated_units(labs, rows).items():
        known = {_meaning(unit): unit for unit in learned.get(code, ())}
        for unit in units:
            if not known or _meaning(unit) in known:
                continue
            if parse_unit(unit) is not None and all(parse_unit(own) is not None for own in known.values()):
                first = next(iter(known.values()))
                raise InputError(
                    f"labs: {code} comes in {unit}, and the training patients have it in {', '.join(known.values())}. "
                    f'Convert it: harmonise_units(cohort, to={{"{code}": "{first}"}}).'
                )
            untold.append(f"{code} ({unit}; in training {', '.join(known.values())})")
    if not untold:
        return ()
    more = f" and {len(untold) - _NAMED} more" if len(untold) > _NAMED else ""
    return (f"labs: units that cannot be told to be those of training patients: {'; '.join(untold[:_NAMED])}{more}",)


def _meaning(spelt: str) -> object:
    """What two spellings of one unit have in common."""
    unit = parse_unit(spelt)
    return spelt.lower() if unit is None else (unit.dimension, f"{unit.factor:.9g}", unit.offset)

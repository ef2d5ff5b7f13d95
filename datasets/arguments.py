"""What callers give as arguments: of another type than was asked for, they are refused by their name."""

from __future__ import annotations

from numbers import Integral, Real
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd

from .errors import InputError

_LARGEST = 10**9
"""No count of anything that a user sets reaches this."""


def require_whole(name: str, value: object, *, least: int, most: int | None = None) -> None:
    """Raise `InputError` unless a setting is a whole number in its range, ends included."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        expected = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name} is {value!r}; expected a whole number {expected}.")


def require_counts(**counts: object) -> None:
    """Raise `InputError` unless these settings are whole numbers; their ranges are for the caller to check."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or abs(value) > _LARGEST:
            raise InputError(f"{name} is {_shown(value)}; expected a whole number, of 1e9 at most.")


def require_numbers(**numbers: object) -> None:
    """Raise `InputError` unless these settings are numbers; their ranges are for the caller to check."""
    for name, value in numbers.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise InputError(f"{name} is {_shown(value)}; expected a number.")


def require_truth(**flags: object) -> None:
    """Raise `InputError` unless these settings are True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} is {_shown(value)}; expected True or False.")


def require_table(name: str, table: object) -> None:
    """Raise `InputError` unless a table came as a DataFrame."""
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"{name} is a {type(table).__name__}; expected a pandas DataFrame.")


def require_by_patient(name: str, values: object) -> None:
    """Raise `InputError` unless something of each patient came as a Series, with each id once in its index."""
    if not isinstance(values, pd.Series) or not values.index.is_unique:
        raise InputError(
            f"{name} came as a {type(values).__name__}; expected a pandas Series with each patient's id once in its "
            "index."
        )


def require_mask(mask: object, samples: pd.Index, why: str) -> np.ndarray:
    """A filter of a cohort's samples as bool `[sample]`.

    Args:
        mask: as it was given.
        samples: the index of the cohort's outcomes.
        why: what the filter is called.

    Raises:
        InputError: it is not one truth value a sample, or nothing would be left.
    """
    if isinstance(mask, pd.Series) and not mask.index.equals(samples):
        raise InputError(
            f"The mask of the filter {why!r} has rows other than those of cohort.outcomes, or in another order. "
            "Compute it from cohort.outcomes, or give an array in its order."
        )
    mask = np.asarray(mask)
    if mask.shape != (len(samples),) or mask.dtype != bool:
        raise InputError(
            f"The mask of the filter {why!r} has shape {mask.shape} and type {mask.dtype}; "
            f"expected one truth value for each of the {len(samples)} samples."
        )
    if not mask.any():
        raise InputError(f"The filter {why!r} leaves no sample of {len(samples)}. Loosen it.")
    return mask


def require_cohort(cohort: object) -> None:
    """Raise `InputError` unless samples came as a cohort."""
    from .cohort import Cohort

    if not isinstance(cohort, Cohort):
        raise InputError(
            f"Samples came as a {type(cohort).__name__}; expected a Cohort. Make one: Cohort(outcomes=..., labs=...), "
            "or Cohort.read(folder)."
        )


def as_path(name: str, path: object) -> Path:
    """The path of a file or folder.

    Raises:
        InputError: it is neither text nor a path.
    """
    if not isinstance(path, (str, PathLike)):
        raise InputError(f"{name} is a {type(path).__name__}; expected a path, as text or pathlib.Path.")
    return Path(path)


def _shown(value: object) -> str:
    """A setting in a message: itself, where it is short enough to be one."""
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"

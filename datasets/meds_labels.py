"""What is to be predicted in a MEDS dataset: its label files as one outcomes table.

Source: MEDS 0.4.1, https://github.com/Medical-Event-Data-Standard/meds (LabelSchema).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .checks import Exclusion, Policy
from .errors import InputError
from .files import read_table
from .outcomes import OutcomeKind

_KEYS = ["subject_id", "prediction_time"]
_TWICE = "the same patient and prediction_time stand there twice"
# What a value column of a label file says of the outcome's kind; classes and integers are looked at.
_LABEL_KINDS = {
    "boolean_value": "binary",
    "categorical_value": None,
    "float_value": "continuous",
    "integer_value": None,
}


def require_numbers(path: Path, table: pd.DataFrame) -> None:
    """Raise `InputError` unless `subject_id` stands there once, in whole numbers."""
    ids = table.get("subject_id")
    if not isinstance(ids, pd.Series) or not pd.api.types.is_integer_dtype(ids.dtype) or ids.isna().any():
        raise InputError(f"{path}: subject_id is missing, or not whole numbers without a blank. Write the file anew.")


def read_labels(
    folder: Path, known: Mapping[str, Mapping] | None, invalid: Policy
) -> tuple[pd.DataFrame, dict[str, str], tuple[Exclusion, ...]]:
    """All label files of `labels/` joined into one outcomes table, with the kinds they declare.

    Args:
        folder: the dataset.
        known: kind and classes of each outcome, where chiasm wrote it.
        invalid: "raise" or "exclude", of rows that say of a sample again what was said.

    Returns:
        The table, the kinds, and the rows that were left out.

    Raises:
        InputError: a file is missing, or no label file, or says two things of one sample.
    """
    samples = folder / "metadata" / "samples.parquet"
    outcomes, left_out = None, ()
    if samples.is_file():
        outcomes, left_out = _once([(samples, _read_keyed(samples)[_KEYS])], folder, invalid)
    kinds: dict[str, str] = {}
    home = folder / "labels"
    paths: dict[str, list[Path]] = {}
    for path in sorted(home.glob("*.parquet")) + sorted(home.glob("*/**/*.parquet")):
        paths.setdefault(path.relative_to(home).parts[0].removesuffix(".parquet"), []).append(path)
    for name in paths if known is None else known:
        if name not in paths:
            raise InputError(f"{home} lacks {name}.parquet, which metadata/chiasm.json names.")
        labels, declared, again = _read_label_file(paths[name], name, folder, invalid)
        left_out += again
        outcomes = labels if outcomes is None else outcomes.merge(labels, on=_KEYS, how="outer")
        if known is not None:
            declared = OutcomeKind(known[name]["kind"], known[name]["classes"])
        if declared is not None:
            kinds[name] = declared
    if outcomes is None:
        raise InputError(
            f"{folder} has no label files. Put what is to be predicted into labels/NAME.parquet "
            "(subject_id, prediction_time, boolean_value)."
        )
    return outcomes, kinds, left_out


def _read_keyed(path: Path) -> pd.DataFrame:
    """A file with a row a sample, whose keys are of MEDS's types."""
    table = read_table(path)
    if not {*_KEYS} <= set(table.columns) or not table.columns.is_unique:
        raise InputError(f"{path} is no MEDS label file: it needs subject_id, prediction_time and a value, each once.")
    require_numbers(path, table)
    try:
        if not pd.api.types.is_datetime64_dtype(table["prediction_time"].dtype):
            raise TypeError
        table = table.astype({"subject_id": "int64", "prediction_time": "datetime64[us]"})
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{path}: prediction_time or subject_id is not of MEDS's types, timestamp[us] without a zone and int64. "
            "Write the file anew."
        ) from None
    return table


def _once(
    shards: Sequence[tuple[Path, pd.DataFrame]], folder: Path, invalid: Policy
) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Shards one below the other, with a row a sample, and the rows that said again what was said, left out.

    Raises:
        InputError: rows say two things of one sample; or they repeat each other, and are not to be left out; or a value
            has parts.
    """
    rows = pd.concat([shard for _, shard in shards], ignore_index=True)
    try:
        again = rows.duplicated().to_numpy()
    except TypeError:
        # Lists and structures cannot be told equal.
        path = shards[0][0] if len(shards) == 1 else shards[0][0].parent
        raise InputError(
            f"{path}: a label is a list or has fields; expected one truth value, number or word a sample. Write the "
            "file anew."
        ) from None
    kept = rows[~again].reset_index(drop=True)
    contrary = ~again
    contrary[contrary] = kept.duplicated(_KEYS).to_numpy()
    contradicting = int(contrary.sum())
    places = [(path, row) for path, shard in shards for row in range(1, len(shard) + 1)]
    if contradicting or (again.any() and invalid != "exclude"):
        path, row = places[int(np.flatnonzero(contrary if contradicting else again)[0])]
        told = f"{contradicting} such rows with other values" if contradicting else f"{int(again.sum())} such rows"
        otherwise = "" if contradicting else ', or leave the others out with invalid="exclude"'
        raise InputError(f"{path}, data row {row}: {_TWICE} ({told}). Keep one row a sample{otherwise}.")
    left_out = (
        Exclusion(str(path.relative_to(folder)), row, f"{_TWICE}, with the same outcome")
        for path, row in (places[number] for number in np.flatnonzero(again))
    )
    return kept, tuple(left_out)


def _read_label_file(
    paths: list[Path], name: str, folder: Path, invalid: Policy
) -> tuple[pd.DataFrame, str | None, tuple[Exclusion, ...]]:
    """One outcome of all its shards, the kind that its column declares (None: to be inferred), and rows left out."""
    shards = []
    for path in paths:
        shard = _read_keyed(path)
        if not set(_LABEL_KINDS) & set(shard.columns):
            raise InputError(f"{path} is no MEDS label file: it needs subject_id, prediction_time and a value.")
        shards.append((path, shard[[column for column in (*_KEYS, *_LABEL_KINDS) if column in shard.columns]]))
    labels, left_out = _once(shards, folder, invalid)
    present = [column for column in _LABEL_KINDS if column in labels.columns]
    # A file may have all columns that MEDS knows, and values in one.
    column = next((column for column in present if labels[column].notna().any()), present[0])
    if pd.api.types.infer_dtype(labels[column], skipna=True) == "boolean":
        # As numbers, so that the user may also give another kind.
        labels[column] = labels[column].astype("float32")
    if column == "categorical_value":
        # What is declared to be classes may have numbers among their names.
        labels[column] = labels[column].astype("category")
    return labels[[*_KEYS, column]].rename(columns={column: name}), _LABEL_KINDS[column], left_out

"""What `chiasm prepare` does: a recipe's data as arrays in a folder, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..datasets import Cohort
    from ..datasets.checks import Policy
    from ..datasets.prepared import PreparedSamples
    from .recipe import Recipe

_REFUSED = "refused.csv"


def prepare_recipe(
    recipe: Recipe, data: Path, store: Path, *, unreadable: Policy, say: Callable[[object], None]
) -> None:
    """Fit the readers of a recipe's model on its training patients, and read all of its patients into a store.

    The image files that were left out, with the reason of each, are written to `refused.csv` there.

    Raises:
        InputError: the data or settings cannot be used, a file cannot be read, or the disk is full.
    """
    from ..fusion.artifact import write_whole

    cohort = recipe.read(data).with_store(store, unreadable=unreadable)
    say(cohort.attrition.to_string(index=False))
    parts = recipe.divide(cohort)
    refused = []
    for name, part, samples in zip(("train", "valid", "held out"), parts, prepare_parts(recipe, parts), strict=True):
        say(f"{name}: {len(samples)} samples")
        for remark in samples.remarks:
            say(f"left out: {remark}")
        refused += [(part.images["path"].iloc[one.row - 1], one.reason) for one in samples.exclusions]
    if refused:
        table = pd.DataFrame(refused, columns=["path", "reason"]).drop_duplicates()
        write_whole(store / _REFUSED, table.to_csv(index=False))
        say(f"{len(table)} files that cannot be read are listed in {store / _REFUSED}.")
    size = sum(path.stat().st_size for path in store.rglob("*.npy"))
    say(f"{size / 1e6:,.0f} MB of arrays are in {store}.")


def prepare_parts(recipe: Recipe, parts: Sequence[Cohort]) -> list[PreparedSamples]:
    """Training and other patients through the readers of a recipe's model, which are fitted on the first part."""
    from ..datasets.prepared import prepare

    readers = recipe.model(parts[0]).readers
    for reader in readers.values():
        reader.fit(parts[0])
    return [prepare(part, readers) for part in parts]

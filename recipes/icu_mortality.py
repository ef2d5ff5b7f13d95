"""In-hospital death, predicted after the first 48 hours in intensive care (PhysioNet 2012).

Data: https://physionet.org/content/challenge-2012/1.0.0/ (Open Data Commons Attribution License).
Any of set-a, set-b and set-c, as published or as Parquet, in one folder.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from chiasm.datasets import Cohort, InputError
from chiasm.datasets.files import read_table
from chiasm.datasets.physionet2012 import read_physionet2012, sets_in, stays_of
from chiasm.encoders import LabAugmentation, LabEncoder, StaticEncoder
from chiasm.fusion import CrossAttentionFusion, FusionModel
from chiasm.recipes.ranges import Choice, Range
from chiasm.recipes.recipe import Card

CARD = Card(
    outcome="died in hospital (binary)",
    data="PhysioNet 2012: set-a, set-b, set-c; 4,000 stays each",
    cost="about 2 min on 2 cores, 2 GB",
    score="AUROC 0.87, AUPRC 0.55, trained on set-a, tested on set-b",
)


@dataclass(frozen=True)
class Settings:
    """Settings of the recipe.

    Command: `chiasm train icu-mortality --data physionet2012 --out runs/icu`. Cost and score: see
    `CARD` and the README's table, which states the score's interval.
    """

    train_sets: tuple[str, ...] = ("a",)
    tuning: float = 0.1
    """Share of the training stays that are for validation."""
    test_sets: tuple[str, ...] = ("b",)
    split_file: str | None = None
    """CSV or Parquet with `subject_id` and `split` (train, tuning, held_out), in place of the sets."""
    width: int = 64
    dropout: float = 0.2
    summary_dropout: float = 0.3
    measurement_dropout: float = 0.2
    epochs: int = 16
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 2.0
    distillation: float = 0.8
    """Share of each label that is the risk by gradient boosting trained on other patients; 0 for labels alone, which
    want more dropout (0.4, and 0.6 of the summary) and fewer epochs (8)."""
    members: int = 1
    """Models that are trained, with seeds that follow each other, and predict together."""
    boosted: float = 0.4
    """Share of an ensemble's members, rounded down, that are gradient boosting on detailed summaries in place of
    networks. Its first member is a network, whatever the share."""
    rotating: bool = True
    """Whether each member of an ensemble is validated on other stays and learns from the rest, so that together they
    learn from all that are for training and tuning. Not with `split_file`, which says who is for tuning alone."""
    seed: int = 0


SEARCHED = {
    "width": Choice(32, 64, 128),
    "dropout": Range(0.0, 0.6),
    "summary_dropout": Range(0.0, 0.8),
    "measurement_dropout": Range(0.0, 0.4),
    "epochs": Range(4, 32),
    "learning_rate": Range(3e-4, 3e-3, log=True),
    "weight_decay": Range(0.1, 5.0, log=True),
    "distillation": Range(0.0, 1.0),
}
"""What `chiasm tune` may choose from."""


def read(data: Path, settings: Settings) -> Cohort:
    """The stays of those sets that the folder has, each marked as training, tuning or held out."""
    there = sets_in(data)
    wanted = tuple(dict.fromkeys((*settings.train_sets, *settings.test_sets)))
    lost = [letter for letter in settings.train_sets if letter not in there and set(there) & set(settings.train_sets)]
    if lost and not settings.split_file:
        raise InputError(f"train_sets names {lost[0]}, and {data} has no set-{lost[0]}. Bring it, or leave it out.")
    sets = there if settings.split_file else tuple(letter for letter in wanted if letter in there)
    # Where none of the wanted sets is there, the reader says what it looked for.
    cohort = read_physionet2012(data, sets=sets or wanted).keep_with_input()
    if settings.split_file:
        return cohort.with_splits(read_table(Path(settings.split_file)))
    return cohort.with_splits(pd.concat([_division(data, letter, settings) for letter in sets]))


def patients(data: Path, settings: Settings) -> Cohort:
    """Every stay of every set that the folder has."""
    return read_physionet2012(data, sets=sets_in(data) or settings.test_sets)


def _division(data: Path, letter: str, settings: Settings) -> pd.DataFrame:
    """MEDS's word for each stay of one set: some of the training stays are for tuning."""
    stays = np.sort(stays_of(data, letter))
    if letter not in settings.train_sets:
        return pd.DataFrame({"subject_id": stays, "split": "held_out"})
    drawn = np.random.default_rng(settings.seed).random(len(stays))
    return pd.DataFrame({"subject_id": stays, "split": np.where(drawn < settings.tuning, "tuning", "train")})


def divide(cohort: Cohort, settings: Settings) -> tuple[Cohort, Cohort, Cohort]:
    """Training, tuning and held-out stays."""
    if not settings.split_file and set(settings.train_sets) & set(settings.test_sets):
        raise InputError("A set stands in both train_sets and test_sets. A stay is for one of them.")
    return cohort.split_by_table()


def model(cohort: Cohort, settings: Settings) -> FusionModel:
    """Labs and vital signs through a GRU, static facts beside them."""
    return FusionModel(
        labs=LabEncoder(
            width=settings.width,
            dropout=settings.dropout,
            summary_dropout=settings.summary_dropout,
            augmentation=LabAugmentation(dropped=settings.measurement_dropout),
        ),
        static=StaticEncoder(width=32),
        fusion=CrossAttentionFusion(width=settings.width, depth=2, heads=4, dropout=settings.dropout),
        outcomes=cohort.outcome_kinds,
        modality_dropout=0.05,
    )


def training(settings: Settings) -> dict[str, object]:
    """Arguments of `fit`."""
    if settings.split_file and settings.rotating and settings.members > 1:
        raise InputError(
            "split_file says who is for tuning alone, and members of an ensemble would be trained on them in turn. Set "
            "rotating=false as well."
        )
    names = ("epochs", "batch_size", "learning_rate", "weight_decay", "distillation", "seed")
    # Log-loss on 400 stays turns up early by chance; on folds of set-a the last epoch ranks better.
    return {name: getattr(settings, name) for name in names} | {"keep": "last"}

"""Training with weights that are divided among processes, of patients of whom few have an image or a note."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
from chiasm.datasets import Cohort
from chiasm.encoders import ImageEncoder, LabAugmentation, LabEncoder, NoteEncoder, StaticEncoder
from chiasm.fusion import ConcatenationFusion, FusionModel, fit, predict, training
from chiasm.fusion.sharding import OwnParts
from PIL import Image

NOW = pd.Timestamp("2024-03-01 12:00")
_WORDS = ("fever", "cough", "oedema", "effusion", "clear", "stable", "sepsis", "pain")


def clinic(folder: Path, patients: int = 10) -> Cohort:
    """So many patients; one in four has an image, one in three a note, and a batch may have neither."""
    random, numbers = np.random.default_rng(1), np.arange(patients)
    folder.mkdir(exist_ok=True)
    imaged, noted = numbers[numbers % 4 == 1], numbers[numbers % 3 == 0]
    paths = [folder / f"{number}.png" for number in imaged]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (64, 64), np.uint8)).save(path)
    same = {"time": NOW - pd.Timedelta("2h")}
    measured = numbers[numbers % 3 > 0]
    return Cohort(
        pd.DataFrame({"subject_id": numbers, "prediction_time": NOW, "days": np.sin(numbers) * 3 + 5}),
        labs=pd.DataFrame({"subject_id": measured, "code": "urea", "value": np.cos(measured) + 3} | same),
        notes=pd.DataFrame({"subject_id": noted, "text": [" ".join(random.choice(_WORDS, 9)) for _ in noted]} | same),
        images=pd.DataFrame({"subject_id": imaged, "path": [str(path) for path in paths]} | same),
        static=pd.DataFrame({"subject_id": numbers, "age": 40.0 + numbers}),
    )


def plan(cohort: Cohort, *, dropout: float = 0.0, **notes: object) -> FusionModel:
    """All modalities; without dropout, nothing is drawn at random in training."""
    from transformers import BertConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(**sizes, **drops, max_position_embeddings=64)
    return FusionModel(
        image=ImageEncoder("test_efficientnet_gn", size=64, grid=1, augment=False),
        labs=LabEncoder(8, rare=1, dropout=0, summary_dropout=0, augmentation=LabAugmentation(dropped=0)),
        notes=NoteEncoder(config, length=32, overlap=4, word_dropout=dropout, **notes),
        static=StaticEncoder(8, dropout=0),
        fusion=ConcatenationFusion(16, dropout=0),
        outcomes=cohort.outcome_kinds,
        modality_dropout=dropout,
    )


def train_all(folder: Path, jobs: Mapping[str, Mapping[str, object]], killed_after: int | None = None) -> None:
    """Train one model after the other, and have each process tell the losses, risks and warnings of all.

    Args:
        folder: for images and for what is told, as `told-0.json` and so on.
        jobs: by name, arguments of `fit`; under `plan` those of `plan`; and whether a gradient `breaks`.
        killed_after: updates after which the process ends at once.
    """
    cohort, told = clinic(folder / "images"), {}
    parts = cohort.keep(np.arange(10) < 8, why="train"), cohort.keep(np.arange(10) >= 8, why="valid")
    if killed_after is not None:
        kill_after(killed_after)
    for name, given in jobs.items():
        settings = {"batch_size": 3, "epochs": 2, "average": 0.5, "progress": False, **given}
        model, breaks = plan(cohort, **settings.pop("plan", {})), settings.pop("breaks", False)
        with breaking_gradient() if breaks else nullcontext():
            history = fit(model, *parts, **settings)
        told[name] = {
            "losses": [[record[kind] for kind in ("train_loss", "valid_loss")] for record in history.epochs],
            "risks": predict(model, cohort)["risk"].tolist(),
            "warnings": history.warnings,
            "skipped": len(history.skipped),
        }
    (folder / f"told-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(told))


def kill_after(updates: int) -> None:
    """End this process at once when it has done so many updates."""
    real, done = training.update, []

    def update(*given):
        done.append(1)
        if len(done) > updates:
            os._exit(9)
        return real(*given)

    training.update = update


@contextmanager
def breaking_gradient() -> Iterator[None]:
    """Inside the block, the second update finds an infinite gradient, in the part of the second process alone."""
    real, done = OwnParts.take_gradients, []

    def take(parts, *given, **named):
        done.append(1)
        if len(done) == 2 and os.environ["RANK"] == "1":
            for weight in (weight for weight, _ in parts._pairs if weight.grad is not None):
                weight.grad.to_local().fill_(np.inf)
        return real(parts, *given, **named)

    OwnParts.take_gradients = take
    try:
        yield
    finally:
        OwnParts.take_gradients = real

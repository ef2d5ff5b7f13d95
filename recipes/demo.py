"""Death in a synthetic hospital, from radiographs, labs, notes and static facts.

The hospital is made up (`chiasm.datasets.synthetic`), so that its true risks are known and what a
model reaches can be held against what anyone could reach. A part of the risk is an interaction: a
finding in the radiograph that matters only with a rising lab.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chiasm.datasets import Cohort
from chiasm.encoders import ImageEncoder, LabAugmentation, LabEncoder, NoteEncoder, StaticEncoder
from chiasm.fusion import CrossAttentionFusion, FusionModel
from chiasm.recipes.ranges import Choice, Range
from chiasm.recipes.recipe import Card

if TYPE_CHECKING:
    from transformers import BertConfig

CARD = Card(
    outcome="died (binary)",
    data="none of your own: `chiasm demo` makes 2,000 synthetic patients",
    cost="about 3 min on 2 cores, 3 GB",
    score="AUROC 0.85 (0.81 to 0.89), where 0.89 is the best reachable",
)


@dataclass(frozen=True)
class Settings:
    """Settings of the demonstration.

    Command: `chiasm demo --out demo`. Cost and score: see `CARD` and the README's table.
    """

    history: float = 96
    """Hours before the prediction time that inputs reach back."""
    size: int = 64
    """Side of the images in pixels."""
    width: int = 64
    epochs: int = 18
    batch_size: int = 32
    learning_rate: float = 2e-3
    modality_dropout: float = 0.1
    seed: int = 0


SEARCHED = {
    "width": Choice(32, 64, 128),
    "epochs": Range(10, 30),
    "learning_rate": Range(5e-4, 5e-3, log=True),
    "modality_dropout": Range(0.0, 0.3),
}
"""What `chiasm tune` may choose from."""


def read(data: Path, settings: Settings) -> Cohort:
    """The five tables of the synthetic hospital."""
    return Cohort.read(data, history=settings.history).keep_with_input()


def divide(cohort: Cohort, settings: Settings) -> tuple[Cohort, Cohort, Cohort]:
    """Training, validation and held-out patients."""
    return cohort.split((0.7, 0.1, 0.2), seed=settings.seed)


def model(cohort: Cohort, settings: Settings) -> FusionModel:
    """A small network for every modality, so that the whole trains in minutes on a CPU."""
    return FusionModel(
        image=ImageEncoder("test_resnet", size=settings.size, grid=2),  # timm's smallest ResNet, 0.4 M weights
        labs=LabEncoder(
            width=settings.width,
            dropout=0.5,
            bends=False,
            summary_dropout=0.5,
            augmentation=LabAugmentation(dropped=0.3),
        ),
        notes=NoteEncoder(_note_network(), length=128, word_dropout=0.2, sentence_dropout=0.5),
        static=StaticEncoder(width=settings.width // 2),
        fusion=CrossAttentionFusion(width=settings.width, depth=2, heads=4, dropout=0.3),
        outcomes=cohort.outcome_kinds,
        modality_dropout=settings.modality_dropout,
    )


def _note_network() -> "BertConfig":
    """A small transformer, since notes here are a few sentences long."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=8000,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.2,
        # Words and sentences are hidden as it is.
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=128,
    )


def training(settings: Settings) -> dict[str, object]:
    """Arguments of `fit`."""
    return {
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        # With three seeds of four, 1,400 patients were learned better from batches of any size.
        "group_by_length": False,
        "seed": settings.seed,
    }

"""Who will need intensive care, from a chest image, its note, labs and static facts (COVID-19 collection).

Data: https://github.com/ieee8023/covid-chestxray-dataset (each row names its licence; most are
non-commercial). Not for clinical use; its authors ask that no diagnostic performance be claimed.

Only some 60 patients have a known outcome, so the score comes from repeated cross-validation by
patient, and its interval is wide. Two things that have nothing to do with illness predict the
outcome here: which publication an image is from, and the view (bedside images are of the sicker).
`chiasm evaluate` prints what they alone give. A model that scores no better has learned the source.

Notes are case histories, written when the end was known. `read_covid` cuts them back to what the day
of the image may have known and takes out sentences that tell the outcome; the attrition log counts
what was removed, and the recipe reports with and without notes.
"""

from dataclasses import dataclass
from pathlib import Path

from chiasm.datasets import Cohort
from chiasm.datasets.covid import read_covid
from chiasm.encoders import ImageEncoder, LabEncoder, NoteEncoder, StaticEncoder
from chiasm.fusion import CrossAttentionFusion, FusionModel
from chiasm.recipes.ranges import Choice, Range
from chiasm.recipes.recipe import Card

CARD = Card(
    outcome="icu: intensive care at any time of the illness (binary)",
    data="COVID-19 image collection: metadata.csv and images/",
    cost="about 7 min on 1 core for 5 folds, twice, with and without notes",
    score="AUROC about 0.6 to 0.8, and no more than the source and the view alone give",
)


@dataclass(frozen=True)
class Settings:
    """Settings of the recipe.

    Command: `chiasm train covid-icu --data covid --out runs/covid`. Cost and score: see `CARD`.
    """

    image_model: str = "resnet10t"
    """A timm model or a local folder of one."""
    pretrained: bool = False
    """Start from the image model's published weights (needs a network, or a local folder)."""
    note_model: str | None = None
    """A Hugging Face encoder by name or local folder; None trains a small one."""
    use_notes: bool = True
    keep_outcome_text: bool = False
    """Leave sentences that tell the outcome in the notes, to see what they give away."""
    size: int = 128
    width: int = 64
    folds: int = 5
    repeats: int = 2
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    seed: int = 0


SEARCHED = {
    "width": Choice(32, 64, 128),
    "epochs": Range(6, 24),
    "learning_rate": Range(3e-4, 3e-3, log=True),
    "weight_decay": Range(0.01, 1.0, log=True),
}
"""What `chiasm tune` may choose from."""


def read(data: Path, settings: Settings) -> Cohort:
    """Of all patients, those whose outcome is stated."""
    cohort = patients(data, settings)
    return cohort.keep(cohort.outcomes["icu"].notna().to_numpy(), why="patients of whom went_icu is stated")


def patients(data: Path, settings: Settings) -> Cohort:
    """The first day with an image of every patient."""
    cohort = read_covid(data, keep_outcome_text=settings.keep_outcome_text)
    # Later images were often taken in intensive care: they show it rather than foretell it.
    later = cohort.outcomes["subject_id"].duplicated().to_numpy()
    cohort = cohort.keep(~later, why="first day with an image")
    return cohort if settings.use_notes else cohort.with_tables("notes left out", notes=None)


def divide(cohort: Cohort, settings: Settings) -> tuple[Cohort, Cohort, Cohort]:
    """Training, validation and held-out patients of the model that is kept."""
    return cohort.split((0.7, 0.15, 0.15), seed=settings.seed)


def model(cohort: Cohort, settings: Settings) -> FusionModel:
    """Small encoders, since patients are few."""
    return FusionModel(
        image=ImageEncoder(settings.image_model, pretrained=settings.pretrained, size=settings.size, grid=2),
        labs=LabEncoder(width=settings.width // 2, rare=3, resolution=24),
        notes=NoteEncoder(settings.note_model, length=128) if settings.use_notes else None,
        static=StaticEncoder(width=settings.width // 2),
        fusion=CrossAttentionFusion(width=settings.width, depth=1, heads=4, dropout=0.3),
        outcomes=cohort.outcome_kinds,
        modality_dropout=0.2,
    )


def training(settings: Settings) -> dict[str, object]:
    """Arguments of `fit`."""
    names = ("epochs", "batch_size", "learning_rate", "weight_decay", "seed")
    return {name: getattr(settings, name) for name in names}


VARIANTS = {"with notes": {"use_notes": True}, "without notes": {"use_notes": False}}
"""What cross-validation is repeated with: settings that differ, by name."""


def sources(data: Path, cohort: Cohort) -> dict[str, object]:
    """What should not predict the outcome, one value a sample, by name: printed beside the score."""
    from chiasm.datasets.covid import covid_sources

    told = covid_sources(data).drop_duplicates("path").set_index("path")
    window = cohort.window("images")
    # Every sample has an image of its day; the last that it sees is one.
    shown = cohort.images["path"].iloc[window.rows[window.offsets[1:] - 1]]
    return {name: shown.map(told[name]).reset_index(drop=True) for name in ("source", "view")}

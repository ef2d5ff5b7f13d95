"""Death in hospital, and three other questions, from all that is known in intensive care (MIMIC-IV).

Data: credentialed, from PhysioNet, each under its own data use agreement. One folder with
- MIMIC-IV 3.x, https://physionet.org/content/mimiciv/ (needed): of `hosp/` the files patients, admissions,
  labevents, d_labitems (and diagnoses_icd for phenotypes), of `icu/` icustays and chartevents;
- MIMIC-IV-Note, https://physionet.org/content/mimic-iv-note/: `note/radiology`;
- MIMIC-CXR-JPG, https://physionet.org/content/mimic-cxr-jpg/: `mimic-cxr-2.0.0-metadata`, `files/`, and
  `mimic-cxr-2.0.0-split` for `cxr_split`; or MIMIC-CXR, https://physionet.org/content/mimic-cxr/ (DICOM):
  `cxr-record-list` and `files/`.

Each table as `.csv.gz`, `.csv` or `.parquet`, under folders of any name. What is not there is absent:
radiographs exist for some of the patients only, and the model has a token for those without.

What each filter keeps, as the attrition log counts it:
- 18 years or older: everyone in MIMIC-IV, which has adults only. (The benchmark on MIMIC-III drops children.)
- `stays=first`: one stay a patient, the first, whatever its length; most published cohorts do so.
  `stays=single-unit`: admissions with exactly one stay in intensive care and no transfer between
  units, as Harutyunyan et al. (2019) define their cohort. `stays=all`: every stay; a patient is in one split.
- still there and alive after 48 h (24 h for length-of-stay): the benchmark's stays of at least 48 h.
  Nobody is asked about who has left. Phenotypes are asked at the end of the stay, of all stays.
- for readmission: those who left hospital alive.
- something known before the prediction time: the benchmark drops stays without an observation too.

One setting takes one question: `--set task=mortality`, `phenotypes`, `length-of-stay` or `readmission`.
"""

from dataclasses import dataclass
from pathlib import Path

from chiasm.datasets import Cohort
from chiasm.datasets.mimic import cxr_splits, read_mimic
from chiasm.encoders import ImageEncoder, LabEncoder, NoteEncoder, StaticEncoder
from chiasm.fusion import CrossAttentionFusion, FusionModel
from chiasm.recipes.ranges import Choice, Range
from chiasm.recipes.recipe import Card

CARD = Card(
    outcome="died in hospital (binary); or 25 phenotypes, remaining days, readmission",
    data="MIMIC-IV; MIMIC-IV-Note and MIMIC-CXR where you have them (credentialed)",
    cost="reading takes minutes and up to 4 GB; training in full was not measured: a GPU and hours",
    score="not measured on the credentialed data; the benchmark reached AUROC 0.87 for death (MIMIC-III)",
)


@dataclass(frozen=True)
class Settings:
    """Settings of the recipe.

    Command: `chiasm train mimic-iv --data physionet.org --out runs/mimic --set stays=single-unit`.
    Cost and score: see `CARD`.
    """

    task: str = "mortality"
    """mortality, phenotypes, length-of-stay or readmission."""
    after: float | None = None
    """Hours into the stay at which is asked; None for the task's own: 48, at the end, 24, at discharge."""
    stays: str = "first"
    """first, single-unit or all."""
    history: float | None = 48.0
    """Hours before the prediction time that inputs reach back; None for all."""
    skip_missing: bool = False
    """Leave out, and list, images whose files were not downloaded; otherwise the first is an error."""
    cxr_split: bool = False
    """Divide as MIMIC-CXR-JPG publishes it; patients without radiographs are then left out."""
    image_model: str = "resnet50"
    """A timm model or a local folder of one."""
    pretrained: bool = False
    """Start from the image model's published weights (needs a network, or a local folder)."""
    note_model: str | None = None
    """A Hugging Face encoder by name or local folder; None trains a small one."""
    size: int = 224
    width: int = 128
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0


SEARCHED = {
    "width": Choice(64, 128, 256),
    "epochs": Range(5, 30),
    "learning_rate": Range(2e-4, 2e-3, log=True),
    "weight_decay": Range(0.01, 0.5, log=True),
}
"""What `chiasm tune` may choose from."""


def read(data: Path, settings: Settings) -> Cohort:
    """The stays of the task of which something is known."""
    cohort = read_mimic(
        data,
        task=settings.task,
        after=settings.after,
        stays=settings.stays,
        history=settings.history,
        invalid="exclude" if settings.skip_missing else "raise",
    ).keep_with_input()
    return cohort.with_splits(cxr_splits(data)) if settings.cxr_split else cohort


def divide(cohort: Cohort, settings: Settings) -> tuple[Cohort, Cohort, Cohort]:
    """Training, validation and held-out patients."""
    return cohort.split_by_table() if settings.cxr_split else cohort.split((0.7, 0.1, 0.2), seed=settings.seed)


def model(cohort: Cohort, settings: Settings) -> FusionModel:
    """An encoder for each modality that the folder has."""
    image = ImageEncoder(settings.image_model, pretrained=settings.pretrained, size=settings.size)
    return FusionModel(
        image=image if "images" in cohort.modalities else None,
        labs=LabEncoder(width=settings.width),
        notes=NoteEncoder(settings.note_model) if "notes" in cohort.modalities else None,
        static=StaticEncoder(width=settings.width // 4),
        fusion=CrossAttentionFusion(width=settings.width, depth=2, heads=4),
        outcomes=cohort.outcome_kinds,
        modality_dropout=0.1,
    )


def training(settings: Settings) -> dict[str, object]:
    """Arguments of `fit`."""
    names = ("epochs", "batch_size", "learning_rate", "weight_decay", "seed")
    return {name: getattr(settings, name) for name in names}

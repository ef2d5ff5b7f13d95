"""What all tests share: no network, shapes that are executed, and one small hospital."""

import atexit
import gc
import os

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The networks of tests are so small that threads cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort
from jaxtyping import install_import_hook
from PIL import Image

# Shapes and types in annotations are checked at every call of the networks.
_HEADS = ("cross_attention", "concatenation", "gated", "late", "bottleneck", "low_rank", "recurrent", "experts")
_NETWORKS = ("token_entry", "state", "outcome_heads", *_HEADS)
BEARTYPE = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["chiasm.encoders", *(f"chiasm.fusion.{name}" for name in _NETWORKS)], BEARTYPE)

# What is imported is not looked through for garbage once more, be it while tests run or when all is over.
atexit.register(gc.freeze)


def pytest_collection_finish() -> None:
    gc.freeze()


NOW = pd.Timestamp("2024-03-01 12:00")
MODALITIES = ("images", "labs", "notes", "static")
_WORDS = ["fever", "cough", "oedema", "effusion", "clear", "stable", "sepsis", "lactate", "pain", "normal"]


@pytest.fixture(scope="session")
def hospital(tmp_path_factory) -> dict[str, pd.DataFrame]:
    """Tables of 16 patients, one with each subset of the four modalities: bit k of the number stands for modality k."""
    folder = tmp_path_factory.mktemp("hospital")
    random = np.random.default_rng(7)
    rows: dict[str, list[dict]] = {name: [] for name in ("outcomes", *MODALITIES)}

    def earlier(hours: float) -> pd.Timestamp:
        return NOW - pd.Timedelta(hours=hours)

    for patient in range(16):
        has = {name: bool(patient >> bit & 1) for bit, name in enumerate(MODALITIES)}
        own = {"subject_id": patient}
        outcomes = {"died": patient * 7 % 16 % 2, "stage": ("mild", "severe", "critical")[patient % 3]}
        days = np.nan if patient == 5 else random.gamma(2, 3)
        rows["outcomes"].append(own | {"prediction_time": NOW} | outcomes | {"days": days})
        for number in range(has["images"] * (1 + patient // 2 % 3)):
            path = folder / f"{patient}-{number}.png"
            Image.fromarray(random.integers(0, 256, (64, 64), np.uint8)).save(path)
            rows["images"].append(own | {"time": earlier(10.5 * number + 1), "path": str(path)})
        for number in range(has["labs"] * (1 + patient % 5)):
            # Two analytes at the same moment, and one of them once more within the hour.
            values = {"lactate": random.lognormal(0.5, 0.5), "sodium": random.normal(140, 4)}
            rows["labs"] += [
                own | {"time": earlier(7 * number + 2), "code": code, "value": value} for code, value in values.items()
            ]
            rows["labs"].append(own | {"time": earlier(7 * number + 2.1), "code": "lactate", "value": 2.0})
        for number in range(has["notes"] * (1 + patient // 4 % 2)):
            text = " ".join(random.choice(_WORDS, 4 + patient))
            rows["notes"].append(own | {"time": earlier(20 * number + 3), "text": text})
        if has["static"]:
            rows["static"].append(own | {"age": 30.0 + 4 * patient, "sex": "fm"[patient % 2]})
    return {name: pd.DataFrame(own) for name, own in rows.items()}


@pytest.fixture(scope="session")
def cohort(hospital) -> Cohort:
    """The small hospital; the patient with number 0 has nothing but an outcome."""
    return Cohort(**hospital)


@pytest.fixture(scope="session")
def small_model():
    """A function that plans a small model of any modalities: `small_model(("labs", "notes"), outcomes=...)`."""
    from chiasm.encoders import ImageEncoder, LabEncoder, NoteEncoder, StaticEncoder
    from chiasm.fusion import CrossAttentionFusion, FusionModel
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    plans = {
        "image": lambda: ImageEncoder("test_resnet", size=64, grid=2),
        "labs": lambda: LabEncoder(16, rare=1),
        "notes": lambda: NoteEncoder(BertConfig(**sizes, max_position_embeddings=64), length=32, overlap=4),
        "static": lambda: StaticEncoder(16),
    }

    def plan(modalities=tuple(plans), *, outcomes, fusion=None, **settings) -> FusionModel:
        encoders = {name: plans[name]() for name in modalities}
        fusion = fusion or CrossAttentionFusion(32, depth=2, heads=4, latents=2)
        return FusionModel(**encoders, fusion=fusion, outcomes=outcomes, **settings)

    return plan


@pytest.fixture(scope="session")
def patients(cohort) -> Cohort:
    """The patients of whom something is known."""
    return cohort.keep_with_input()


def trains(patient: int) -> bool:
    """Whether a patient is a training patient: those with one or three modalities, so that each is in both parts."""
    return patient.bit_count() % 2 == 1


@pytest.fixture(scope="session")
def halves(patients) -> tuple[Cohort, Cohort]:
    """Training and validation patients; both kinds of outcome are in both."""
    train = patients.outcomes["subject_id"].map(trains).to_numpy()
    return patients.keep(train, why="train"), patients.keep(~train, why="valid")


@pytest.fixture
def plan(patients, small_model):
    """A function that plans a quick model of labs and static facts."""
    return lambda **settings: small_model(("labs", "static"), outcomes=patients.outcome_kinds, **settings)

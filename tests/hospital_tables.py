"""Clean cohorts to plant leaks in: tables in which nothing tells the outcome but chance."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

PATIENTS = 100
DAY = pd.Timestamp("2031-05-01")
ANALYTES = {"creatinine": (90.0, "umol/L"), "sodium": (138.0, "mmol/L"), "lactate": (1.6, "mmol/L")}
ANALYTES |= {"leukocytes": (9.0, "10*9/L")}
STOCK = ("Normal.", "No acute finding.", "Stable overnight, slept well.", "Seen on the round. Plan unchanged.")
STOCK += ("The lungs are clear. The heart is of normal size. There is no effusion and no pneumothorax. Bones intact.",)
Tables = dict[str, pd.DataFrame]


def texture(random: np.random.Generator, size: int = 96) -> np.ndarray:
    """A picture of blurred noise, as uint8: no two are alike."""
    coarse = Image.fromarray(random.integers(0, 256, (12, 12), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    fine = Image.fromarray(random.integers(0, 256, (32, 32), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return (0.5 * np.asarray(coarse) + 0.5 * np.asarray(fine)).astype(np.uint8)


def write_pictures(folder: Path, count: int) -> list[str]:
    """That many PNG files of textures."""
    random = np.random.default_rng(5)
    paths = [str(folder / f"{number}.png") for number in range(count)]
    for path in paths:
        Image.fromarray(texture(random)).save(path)
    return paths


def clean_tables(
    pictures: list[str],
    *,
    patients: int = PATIENTS,
    seed: int = 0,
    samples: int = 1,
    images: int = 1,
    missing: float = 0.1,
    rate: float = 0.35,
    tables: tuple[str, ...] = ("labs", "notes", "images", "static"),
) -> Tables:
    """Tables of a made-up hospital.

    Args:
        pictures: image files; each is used once.
        samples: predictions a patient, a day apart.
        images: images a patient.
        missing: share of patients who lack a table, for each of them.
        rate: share of patients with the outcome.
        tables: which of the input tables there are.
    """
    random = np.random.default_rng(seed)
    died = np.zeros(patients, int)
    died[random.permutation(patients)[: round(rate * patients)]] = 1
    start = DAY + pd.to_timedelta(random.integers(0, 300 * 24 * 60, patients), unit="min")
    has = {name: random.random(patients) >= missing for name in tables}
    pool = iter(pictures)
    make = {
        "labs": lambda asked, _: _labs(asked, random),
        "notes": lambda asked, _: _notes(asked, random),
        "images": lambda asked, k: _images(asked, random, [(next(pool), f"1.2.{k}.{n}") for n in range(images)]),
        "static": lambda *_: [_facts(random)],
    }
    rows: dict[str, list[dict]] = {name: [] for name in ("outcomes", *tables)}
    for k in range(patients):
        own = {"subject_id": f"P{1000 + 7 * k}"}
        for number in range(samples):
            rows["outcomes"].append(own | {"prediction_time": start[k] + pd.Timedelta(days=number), "died": died[k]})
        for name in tables:
            rows[name] += [own | row for row in (make[name](start[k], k) if has[name][k] else [])]
    return {name: pd.DataFrame(own) for name, own in rows.items()}


def _earlier(asked: pd.Timestamp, hours: float) -> pd.Timestamp:
    return (asked - pd.Timedelta(hours=hours)).floor("s")


def _labs(asked: pd.Timestamp, random: np.random.Generator) -> list[dict]:
    rows = []
    for code, (middle, unit) in ANALYTES.items():
        level = random.lognormal(np.log(middle), 0.2)
        for hours in random.uniform(1, 48, 4):
            drawn = {"time": _earlier(asked, hours), "available_at": _earlier(asked, hours - random.uniform(0.3, 0.9))}
            rows.append(drawn | {"code": code, "value": round(level * random.lognormal(0, 0.05), 2), "unit": unit})
    return rows


def _notes(asked: pd.Timestamp, random: np.random.Generator) -> list[dict]:
    return [
        {"time": _earlier(asked, random.uniform(20, 40)), "text": story(random)},
        {"time": _earlier(asked, random.uniform(1, 9)), "text": random.choice(STOCK)},
    ]


def _images(asked: pd.Timestamp, random: np.random.Generator, taken: list[tuple[str, str]]) -> list[dict]:
    told = [{"time": _earlier(asked, random.uniform(1, 40)), "view": random.choice(["PA", "AP"])} for _ in taken]
    return [row | {"path": path, "study_uid": study} for row, (path, study) in zip(told, taken, strict=True)]


def _facts(random: np.random.Generator) -> dict:
    facts = {"age": int(random.integers(20, 95)), "sex": random.choice(["f", "m"])}
    return facts | {"weight": round(random.normal(75, 12), 1), "site": random.choice(["north", "south"])}


def story(random: np.random.Generator) -> str:
    """A note of about twenty-five words, made-up ones among them, so that no two are alike."""
    syllables = ["ba", "co", "di", "fe", "gu", "la", "mi", "no", "pe", "ru", "sa", "to", "ve", "xi"]
    words = ["".join(random.choice(syllables, 3)) for _ in range(12)]
    known = list(random.choice(["cough", "fever", "oedema", "pain", "walks", "at", "home", "with", "his", "wife"], 13))
    words = list(random.permutation(words + known))
    return " ".join(words[:13]).capitalize() + ". " + " ".join(words[13:]).capitalize() + "."


def divided(tables: Tables, seed: int = 1) -> pd.DataFrame:
    """A table of splits, by patient."""
    ids = tables["outcomes"]["subject_id"].unique()
    random = np.random.default_rng(seed)
    words = np.array(["train"] * len(ids), object)
    words[random.permutation(len(ids))[: len(ids) // 3]] = "held_out"
    return pd.DataFrame({"subject_id": ids, "split": words})

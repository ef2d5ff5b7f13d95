"""How far a copy of a radiograph may be cropped or turned until `chiasm audit` no longer finds it.

    python tests/benchmarks/bench_copies.py --images 200 --size 256

Draws as many chests of one anatomy-like model, each another patient's, and gives every second one's picture to one more
patient: cropped by so much on each side, or turned by so many degrees, and compressed as a JPEG. Prints how many of
the copies are found and how many pairs that are none are taken for copies, by how much was changed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from chiasm.datasets import Cohort
from chiasm.datasets.audit_images import look_at, shared_pictures
from chiasm.datasets.phantom import draw_chest, draw_radiograph
from PIL import Image

CROPS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.08, 0.12)
"""Of the side, on each side."""
TURNS = (1.0, 2.0, 3.0, 5.0, 8.0)
"""In degrees."""


def draw(folder: Path, images: int, size: int) -> list[Path]:
    """As many radiographs, in 8 bits."""
    random, paths = np.random.default_rng(0), []
    for k in range(images):
        plane = 0.8 * draw_radiograph(draw_chest(random, consolidation=k % 4 == 0), random, size=size)
        paths.append(folder / f"{k}.png")
        Image.fromarray(np.rint(255 * plane.clip(0, 1)).astype(np.uint8)).save(paths[-1])
    return paths


def copy(path: Path, folder: Path, *, crop: float = 0.0, turn: float = 0.0) -> Path:
    """A file's picture without a margin, or turned, as a JPEG."""
    image = Image.open(path).rotate(turn, Image.Resampling.BICUBIC)
    wide, high = image.size
    image = image.crop((round(crop * wide), round(crop * high), round((1 - crop) * wide), round((1 - crop) * high)))
    target = folder / f"{path.stem}.jpg"
    image.save(target, quality=80)
    return target


def shared(paths: list[Path]) -> set[frozenset[str]]:
    """Files that are taken for one picture of several patients, where each file is another's."""
    patient = np.arange(len(paths))
    images = pd.DataFrame({"subject_id": patient, "time": pd.Timestamp("2031-05-01"), "path": list(map(str, paths))})
    outcomes = pd.DataFrame({"subject_id": patient, "prediction_time": pd.Timestamp("2031-05-02"), "died": 0})
    own = Cohort(outcomes, images=images).images
    groups = shared_pictures(look_at(SimpleNamespace(images=own), own["subject_id"].to_numpy()))[1]
    return {frozenset(own["path"].iloc[group.rows]) for group in groups}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--images", type=int, default=200)
    asked.add_argument("--size", type=int, default=256, help="side of the radiographs in pixels")
    given = asked.parse_args()
    changes = [{"crop": crop} for crop in CROPS] + [{"turn": turn} for turn in TURNS]
    with tempfile.TemporaryDirectory() as scratch:
        paths = draw(Path(scratch), given.images, given.size)
        copied = paths[::2]
        for number, change in enumerate(changes):
            folder = Path(scratch, f"copies-{number}")
            folder.mkdir()
            made = [copy(path, folder, **change) for path in copied]
            wanted = {frozenset(map(str, pair)) for pair in zip(copied, made, strict=True)}
            began = time.process_time()
            found = shared([*paths, *made])
            seconds = time.process_time() - began
            told = ", ".join(f"{name} {value:g}" for name, value in change.items())
            right, invented = len(found & wanted), len(found - wanted)
            print(f"{told}: {right} of {len(wanted)} found, {invented} invented, {seconds:.1f} s")


if __name__ == "__main__":
    main()

"""Peak memory of one training step with many images and long notes a patient, with a budget of tokens and without.

    python tests/benchmarks/bench_budget.py
    python tests/benchmarks/bench_budget.py --images 30 --pieces 100 --only image

Each row is a process of its own: a ResNet-18 reads images of 96 pixels, or a BERT of 2 layers pieces of 64 words, of 16
patients, and a cross-attention head fuses them; forward and backward. Prints the tokens a patient, the largest
resident memory of the process less what it had before the step, and the processor time of the step. Without a budget
as many pieces as by default take 8 GB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from chiasm.datasets import Cohort
from chiasm.datasets.batch import Batch, Images, Notes, Part
from chiasm.encoders import ImageEncoder, NoteEncoder
from chiasm.fusion import CrossAttentionFusion, FusionModel

BUDGET = {"image": 128, "notes": 1024}
SIZE, WORDS = 96, 64
NOW = pd.Timestamp("2030-01-01")


def memory_bytes(field: str) -> int:
    """VmHWM, the largest resident memory of this process so far, or VmRSS, that of now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def model_of(modality: str, most: int, budget: int | None) -> FusionModel:
    """Built on a few patients without images, whose notes are of two words."""
    outcomes = pd.DataFrame({"subject_id": range(4), "prediction_time": NOW, "died": [0, 1, 0, 1]})
    notes = pd.DataFrame({"subject_id": range(4), "time": NOW, "text": "fever cough"})
    encoder = (
        ImageEncoder("resnet18", size=SIZE, grid=3, most=most, budget=budget)
        if modality == "image"
        else NoteEncoder(length=WORDS, overlap=8, most=most, budget=budget)
    )
    model = FusionModel(**{modality: encoder}, fusion=CrossAttentionFusion(128, heads=4), outcomes={"died": "binary"})
    model.build(Cohort(outcomes, notes=notes))
    return model


def part_of(modality: str, patients: int, rows: int) -> Part:
    """So many rows a patient, each of a day of its own."""
    draw = np.random.default_rng(0)
    patient = torch.arange(patients).repeat_interleave(rows)
    hours = -24.0 * torch.arange(rows).flip(0).repeat(patients)
    count = len(patient)
    if modality == "image":
        return Images(patient, hours, torch.from_numpy(draw.integers(0, 256, (count, 1, SIZE, SIZE), np.uint8)))
    words = torch.from_numpy(draw.integers(2, 8, (count, WORDS)))
    return Notes(patient, hours, words, torch.full((count,), WORDS))


def step(modality: str, patients: int, rows: int, budget: int | None) -> None:
    """One step, and what it took."""
    model = model_of(modality, rows, budget).train()
    known = torch.ones(patients, 1, dtype=torch.bool)
    batch = Batch(torch.arange(patients), {modality: part_of(modality, patients, rows)}, known.float(), known)
    before, began = memory_bytes("VmRSS"), time.process_time()
    risk = model(batch)
    model.loss(risk, batch)[0].backward()
    seconds, peak = time.process_time() - began, memory_bytes("VmHWM")
    model.eval()
    with torch.no_grad():
        few = batch._replace(parts={modality: part_of(modality, 1, rows)}, sample=torch.arange(1))
        tokens = int(model.encode(few)[modality].mask.sum())
    told = f"budget {budget}" if budget else "no budget"
    cost = f"{(peak - before) / 1e9:5.2f} GB, {seconds:4.0f} s"
    print(f"{modality:5} {rows:4} a patient, {told:11}: {tokens:6} tokens a patient, {cost}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--pieces", type=int, default=300)
    parser.add_argument("--patients", type=int, default=16)
    parser.add_argument("--only", choices=list(BUDGET))
    parser.add_argument("--step", choices=("with", "without"), help="one step in this process")
    given = parser.parse_args()
    rows = {"image": given.images, "notes": given.pieces}
    if given.step:
        step(given.only, given.patients, rows[given.only], BUDGET[given.only] if given.step == "with" else None)
        return
    for modality in (given.only,) if given.only else rows:
        for which in ("with", "without"):
            command = [sys.executable, __file__, "--only", modality, "--step", which]
            command += ["--images", str(given.images), "--pieces", str(given.pieces)]
            subprocess.run([*command, "--patients", str(given.patients)], check=True)


if __name__ == "__main__":
    main()

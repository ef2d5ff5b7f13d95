"""What it saves and costs to compute activations again: memory and time of a training step of a large text encoder.

    python tests/benchmarks/bench_recompute.py                    # a BERT of 12 layers and width 384, 16 notes

Each side is a process of its own, two steps after one that warms up: the highest resident memory of the system's own
count, less what was resident before the first step, and the median of processor seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from chiasm.datasets import Cohort
from chiasm.encoders import NoteEncoder
from chiasm.fusion import ConcatenationFusion, FusionModel
from chiasm.fusion.learning import make_optimizer

NOW = pd.Timestamp("2030-01-01")


def notes(patients: int, words: int) -> Cohort:
    """Patients with a note of so many words each."""
    random, people = np.random.default_rng(0), np.arange(patients)
    vocabulary = np.array(["".join(random.choice(list("aeioulmnrst"), 5)) for _ in range(1500)])
    return Cohort(
        pd.DataFrame({"subject_id": people, "prediction_time": NOW, "died": people % 2}),
        notes=pd.DataFrame(
            {"subject_id": people, "time": NOW, "text": [" ".join(random.choice(vocabulary, words)) for _ in people]}
        ),
    )


def side(given: argparse.Namespace) -> None:
    """Steps of one side: its memory in MB and its seconds a step."""
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=given.width,
        num_hidden_layers=given.layers,
        num_attention_heads=given.width // 64,
        intermediate_size=4 * given.width,
        max_position_embeddings=128,
    )
    cohort = notes(given.patients, 128)
    model = FusionModel(
        notes=NoteEncoder(config, length=128), fusion=ConcatenationFusion(64), outcomes=cohort.outcome_kinds
    )
    model.build(cohort)
    batch, rule = model.read(cohort, labelled=True)[list(range(given.patients))], make_optimizer(model, "sgd", 1e-3, 0)
    model.encoders["notes"].recompute(given.side == "again")
    model.train()
    before, spent = _memory("VmRSS"), []
    for _ in range(3):
        began = time.process_time()
        loss, labels = model.loss(model(batch), batch)
        (loss / labels).backward()
        rule.step()
        rule.zero_grad()
        spent.append(time.process_time() - began)
    print(json.dumps({"megabytes": _memory("VmHWM") - before, "seconds": statistics.median(spent[1:])}))


def _memory(name: str) -> float:
    """A line of the system's count of this process's memory, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--patients", type=int, default=16)
    parser.add_argument("--side", choices=("kept", "again"), help="used by itself")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.side:
        side(given)
        return
    told = {}
    for name in ("kept", "again"):
        command = [sys.executable, __file__, *sys.argv[1:], "--side", name]
        told[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for name, own in told.items():
        print(f"activations {name}: {own['megabytes']:.0f} MB, {own['seconds']:.2f} s a step")
    ratios = [told["again"][name] / told["kept"][name] for name in ("megabytes", "seconds")]
    print(f"{ratios[0]:.2f} × the memory, {ratios[1]:.2f} × the time")


if __name__ == "__main__":
    main()

"""What the lab encoder costs: an epoch beside a bare GRU loop over the same tensors, and memory on wide, long series.

Run by hand: python tests/benchmarks/bench_labs.py [--patients 1024] [--threads 1] [--epochs 9]

The bare loop is given what a GRU is told of each step, computed before; the lab encoder computes it from events, in
which it varies the series, and its summary beside. Both update with AdamW's fused kernel, as `fit` does. Their epochs
take turns, and the least of each counts: the processor is shared with others, who can only add to it.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from chiasm.datasets import Cohort
from chiasm.datasets.prepared import BucketedBatches, PreparedSamples, prepare
from chiasm.encoders import LabEncoder
from chiasm.encoders.lab_grid import lab_grid, step_features
from torch import Tensor, nn

WIDTH = 64
BATCH = 64
NOW = pd.Timestamp("2030-01-01")


def draw_cohort(patients: int, *, codes: int, events: int, hours: float, seed: int = 0) -> Cohort:
    """Patients with so many measurements each, at random times."""
    draw = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), events)
    outcomes = {"subject_id": np.arange(patients), "prediction_time": NOW, "died": np.arange(patients) % 2}
    labs = {
        "subject_id": patient,
        "time": NOW - pd.to_timedelta(draw.uniform(0, hours, len(patient)), unit="h"),
        "code": pd.Categorical.from_codes(draw.integers(0, codes, len(patient)), [f"code {i}" for i in range(codes)]),
        "value": draw.normal(100, 10, len(patient)),
    }
    return Cohort(pd.DataFrame(outcomes), labs=pd.DataFrame(labs))


class BareLoop(nn.Module):
    """A linear layer, a GRU and a head on its last state."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.enter = nn.Linear(features, WIDTH)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, steps: Tensor) -> Tensor:
        return self.head(self.gru(self.enter(steps))[1][-1])[:, 0]


def epoch_seconds(batches: list, forward: Callable[[object], Tensor], weights: list[Tensor]) -> float:
    """CPU seconds of one pass with updates; the processor is shared, so that its own time is the measure."""
    rule = torch.optim.AdamW(weights, fused=True)
    began = time.process_time()
    for batch in batches:
        forward(batch).square().mean().backward()
        rule.step()
        rule.zero_grad()
    return time.process_time() - began


def compare_epochs(patients: int, epochs: int) -> None:
    cohort = draw_cohort(patients, codes=37, events=430, hours=48)
    encoder = LabEncoder(WIDTH)
    encoder.build(cohort)
    encoder.train()
    head = nn.Linear(2 * WIDTH, 1)
    samples: PreparedSamples = prepare(cohort, {"labs": encoder.reader})
    parts = [samples[own].parts["labs"] for own in BucketedBatches(samples.sizes, BATCH)]
    sizes = [int(part.patient.max()) + 1 for part in parts]
    batches = list(zip(parts, sizes, strict=True))
    grids = [step_features(lab_grid(part, size, encoder.codes)).contiguous() for part, size in batches]
    bare = BareLoop(grids[0].shape[-1])

    def encoded(batch: tuple) -> Tensor:
        tokens = encoder(*batch)
        return head(torch.cat([tokens.values.mean(1), tokens.summary], -1))[:, 0]

    ours, theirs = [], []
    for _ in range(epochs):
        theirs.append(epoch_seconds(grids, bare, list(bare.parameters())))
        learned = [*encoder.parameters(), *head.parameters()]
        ours.append(epoch_seconds(batches, encoded, learned))
    print(f"{patients} patients, {grids[0].shape[1]} steps, width {WIDTH}: CPU seconds an epoch, best of {epochs}")
    print(f"bare GRU loop {min(theirs):.2f}, lab encoder from events {min(ours):.2f}: {min(ours) / min(theirs):.2f} x")


def wide_and_long(steps: int) -> None:
    cohort = draw_cohort(16, codes=1000, events=10_000, hours=0.5 * 10_000)
    encoder = LabEncoder(128, rare=1, steps=steps)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    encoder.build(cohort)
    encoder.train()
    tokens = encoder(prepare(cohort, {"labs": encoder.reader})[range(16)].parts["labs"], 16)
    (tokens.values.mean() + tokens.summary.mean()).backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    unit = 2**20 if sys.platform != "darwin" else 2**30
    print(f"1,000 codes x 10,000 events x batch 16, {steps} steps, forward and backward: {tuple(tokens.values.shape)}")
    print(f"peak {peak / unit:.2f} GB, of which {before / unit:.2f} GB before the encoder was built")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    compare_epochs(given.patients, given.epochs)
    wide_and_long(given.steps)

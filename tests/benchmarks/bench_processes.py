"""Two processes that train together, a processor each, beside one that has both.

    python tests/benchmarks/bench_processes.py --folder DIR

Trains the workload of `bench_step.py` with `fit`, in batches of 32 in all, by two processes as torchrun starts them and
by one with two threads, in turn; the first epoch of each is not counted. Two processors should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from chiasm.fusion import fit
from step_workload import SMALL, chiasm_model, draw_cohort


def train(folder: Path, patients: int, epochs: int, precision: str) -> None:
    """One side: its first process prints the wall seconds of the epochs that count."""
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    cohort = draw_cohort(folder / str(patients), patients, SMALL["size"])
    model = chiasm_model(cohort, SMALL)
    settings = {"epochs": epochs + 1, "batch_size": SMALL["batch"], "precision": precision}
    history = fit(model, cohort, progress=False, **settings)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps([record["seconds"] for record in history.epochs[1:]]))


def seconds(given: argparse.Namespace, processes: int) -> list[float]:
    """Of the epochs of one side."""
    own = [__file__, "--side", "--folder", str(given.folder), "--patients", str(given.patients)]
    own += ["--epochs", str(given.epochs), "--precision", given.precision]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"] if processes == 2 else []
    threads = os.environ | {"OMP_NUM_THREADS": str(2 // processes)}
    ran = subprocess.run([sys.executable, *launcher, *own], check=True, stdout=subprocess.PIPE, text=True, env=threads)
    return json.loads(ran.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=2, help="of each turn, besides the first")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--folder", type=Path, help="kept, so that the workload is not made again")
    parser.add_argument("--side", action="store_true", help="one side, in this process")
    given = parser.parse_args()
    if given.side:
        train(given.folder, given.patients, given.epochs, given.precision)
        return
    with tempfile.TemporaryDirectory() as scratch:
        given.folder = given.folder or Path(scratch)
        # The store is filled once, before anything is timed.
        cohort = draw_cohort(given.folder / str(given.patients), given.patients, SMALL["size"])
        chiasm_model(cohort, SMALL).read(cohort)
        told: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(given.turns):
            for processes in (1, 2) if turn % 2 else (2, 1):
                told[processes] += seconds(given, processes)
                print(f"{processes} process(es): {', '.join(f'{own:.1f}' for own in told[processes])} s", flush=True)
    rates = {processes: given.patients / statistics.median(own) for processes, own in told.items()}
    print(f"{given.precision}: {rates[1]:.1f} samples a second by one process, {rates[2]:.1f} by two")
    print(f"two processes have {rates[2] / rates[1]:.3f} of the rate of one with both processors")


if __name__ == "__main__":
    main()

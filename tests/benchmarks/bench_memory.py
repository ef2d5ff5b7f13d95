"""Resident memory of chiasm's step beside that of a bare loop, and whether it grows with the patients.

    python tests/benchmarks/bench_memory.py --patients 2000      # and four times as many

Each side takes six steps of the workload of `bench_step.py` in a process of its own. What is mapped from files, which
makes room for whoever needs it, is told apart from memory of its own. The tables that patients are drawn as are gone
by then, and their memory is given back, of which the C library would keep as much as it likes. It also keeps some of
what steps need, from one run to the next by some hundred megabytes more or less: whether memory grows with the
patients is told from what is held before the first step.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from bench_step import Clock, bare_step, chiasm_step
from chiasm.datasets.prepared import BucketedBatches
from chiasm.fusion import FusionModel
from safetensors.torch import load_file, save_file
from step_workload import SMALL, BareModel, chiasm_model, draw_cohort, ready


def memory(arguments: argparse.Namespace) -> None:
    """Resident memory of both sides after some steps, each in a process of its own."""
    told = {}
    few, many = arguments.patients, 4 * arguments.patients
    for side, patients in (("bare", few), ("chiasm", few), ("chiasm", many)):
        own = {}
        # Once to fill the store, whose making does not count.
        for turn in ("fill", side):
            command = [sys.executable, __file__, "--patients", str(patients), "--side", turn]
            command += ["--folder", str(arguments.folder), "--threads", str(arguments.threads)]
            own = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        told[side, patients] = own
        told_own = f"{own['held']:.0f} MB of its own before, {own['own']:.0f} after, {own['cache']:.0f} of files"
        print(f"{side}, {patients} patients: {told_own}", flush=True)
    print(f"chiasm less bare: {told['chiasm', few]['own'] - told['bare', few]['own']:+.0f} MB")
    print(f"{many} patients less {few}: {told['chiasm', many]['held'] - told['chiasm', few]['held']:+.0f} MB")


def side_of(side: str, folder: Path, patients: int) -> None:
    """One side alone: six steps, and what is resident."""
    if side == "fill":
        cohort = draw_cohort(folder / str(patients), patients, SMALL["size"])
        model = chiasm_model(cohort, SMALL)
        samples = model.read(cohort, labelled=True)
        model.save(folder / f"model-{patients}")
        batches = [ready(samples, own, model) for own in list(BucketedBatches(samples.sizes, 32))[:6]]
        named = {f"{k} {name}": own.contiguous() for k, batch in enumerate(batches) for name, own in batch.items()}
        save_file(named, folder / f"ready-{patients}.safetensors")
        print("{}")
        return
    model = FusionModel.load(folder / f"model-{patients}")
    if side == "bare":
        step = bare_step(BareModel(model, SMALL))
        del model
        chosen = [{} for _ in range(6)]
        for name, own in load_file(folder / f"ready-{patients}.safetensors").items():
            chosen[int(name.split()[0])][name.split()[1]] = own
    else:
        cohort = draw_cohort(folder / str(patients), patients, SMALL["size"])
        samples = model.read(cohort, labelled=True)
        step, chosen = chiasm_step(model, samples, Clock()), list(BucketedBatches(samples.sizes, 32))[:6]
        del cohort
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    held = resident()["RssAnon"]
    for own in chosen:
        step(own)
    after = resident()
    print(json.dumps({"held": held, "own": after["RssAnon"], "cache": after["RssFile"]}))


def resident() -> dict[str, float]:
    """Resident megabytes of this process, by kind."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="kept, so that the workload is not made again")
    parser.add_argument("--side", choices=("fill", "bare", "chiasm"), help="this one alone, in this process")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        given.folder = given.folder or Path(scratch)
        if given.side:
            side_of(given.side, given.folder, given.patients)
        else:
            memory(given)


if __name__ == "__main__":
    main()

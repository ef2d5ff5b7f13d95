"""Batches from a prepared store by a loader of two processes: how many samples a second, in how much memory.

    python tests/benchmarks/bench_loader.py --samples 1000 100000

Makes a store of samples of one image of 128 x 128, 200 measurements over 48 hours and a note of 128 tokens, and
loads batches of 32 of them in a process of its own, in the order in which training would. Prints samples a second,
without and with worker processes, of wall time and of the processor time of the process that needs most of it (of
two workers, half of what both need), which other programs do not change; and the resident memory of all processes
together: what is their own, and what is the system's cache of the store's files, which it takes back when it needs
the room.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from chiasm.datasets.batch import Images, Labs, Notes
from chiasm.datasets.prepared import BucketedBatches, Packed, PreparedSamples
from chiasm.datasets.store import Store
from torch.utils.data import DataLoader

BATCH, EVENTS, TOKENS, SIDE = 32, 200, 128, 128


class MadeUp:
    """Stands for a reader; its arrays are noise."""

    def __init__(self, part: str, samples: int) -> None:
        self.part, self.samples = part, samples

    def state(self) -> dict[str, object]:
        return {}

    def pack(self, _: object) -> Packed:
        random, count = np.random.default_rng(0), self.samples
        if self.part == "image":
            some = random.integers(0, 256, (1000, 1, SIDE, SIDE), np.uint8)
            arrays = {"pixels": np.tile(some, (-(-count // 1000), 1, 1, 1))[:count]}
            return Packed(Images, np.arange(count + 1), np.arange(count), np.zeros(count, np.float32), arrays)
        if self.part == "notes":
            tokens = random.integers(5, 8000, (count, TOKENS), np.int32)
            arrays = {"tokens": tokens, "length": random.integers(TOKENS // 2, TOKENS + 1, count, np.int32)}
            return Packed(Notes, np.arange(count + 1), np.arange(count), np.zeros(count, np.float32), arrays)
        offsets = np.concatenate([[0], np.cumsum(random.integers(EVENTS // 2, EVENTS * 3 // 2, count))])
        rows = np.arange(offsets[-1])
        hours = -48 * random.random(len(rows), np.float32)
        arrays = {"code": random.integers(0, 40, len(rows)), "value": random.standard_normal(len(rows), np.float32)}
        return Packed(Labs, offsets, rows, hours, arrays, {"step": np.floor(hours + 48).astype(np.int64)})


def samples_of(folder: Path, count: int) -> PreparedSamples:
    store = Store.open(folder)
    parts = {part: store.packed(part, MadeUp(part, count), None, "made up") for part in ("image", "labs", "notes")}
    keys = pd.DataFrame({"subject_id": np.arange(count), "prediction_time": pd.Timestamp("2024-01-01")})
    known = np.ones((count, 1), bool)
    return PreparedSamples(keys, parts, np.zeros((count, 1), np.float32), known)


def measure(folder: Path, count: int, seconds: float) -> dict[str, float]:
    """Load for some seconds with and without workers."""
    samples = samples_of(folder, count)
    told = {}
    for workers in (0, 2):
        loader = DataLoader(
            samples,
            sampler=_Endless(samples.sizes),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=workers or None,
        )
        batches = iter(loader)
        for _ in range(20):
            next(batches)
        began, before, done = time.perf_counter(), _processor_seconds(), 0
        while time.perf_counter() - began < seconds:
            done += len(next(batches).sample)
        told[f"{workers} workers"] = done / (time.perf_counter() - began)
        own, *others = (spent - before.get(pid, 0) for pid, spent in _processor_seconds().items())
        told[f"{workers} workers, processor"] = done / max(own, sum(others) / max(workers, 1))
    processes = [psutil.Process(), *psutil.Process().children()]
    told |= {kind: sum(_resident(one.pid)[kind] for one in processes) / 1024 for kind in ("own", "cache")}
    told["processes"] = len(processes)
    return told


def _processor_seconds() -> dict[int, float]:
    own = psutil.Process()
    return {one.pid: sum(one.cpu_times()[:2]) for one in (own, *own.children())}


class _Endless:
    """The batches of one epoch after the other."""

    def __init__(self, sizes: np.ndarray) -> None:
        self.sizes = sizes

    def __iter__(self) -> Iterable[list[int]]:
        epoch = 0
        while True:
            yield from BucketedBatches(self.sizes, BATCH, epoch=epoch)
            epoch += 1


def _resident(process: int) -> dict[str, int]:
    """KiB of a process that are its own or shared between loader processes, and that lie in files."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {"own": sizes["Anonymous"], "cache": sizes["Rss"] - sizes["Anonymous"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--store", type=Path, help="measure one that is there")
    arguments = parser.parse_args()
    if arguments.store:
        print(json.dumps(measure(arguments.store, arguments.samples[0], arguments.seconds)))
        return
    for count in arguments.samples:
        with tempfile.TemporaryDirectory() as folder:
            # Made in a process of its own, whose memory does not count.
            if not os.fork():
                samples_of(Path(folder), count)
                os._exit(0)
            os.wait()
            command = [sys.executable, __file__, "--store", folder, "--samples", str(count)]
            command += ["--seconds", str(arguments.seconds)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{count:7} samples: {told['2 workers']:7.0f} a second by 2 workers, {told['0 workers']:7.0f} by none; "
                f"if each process had a processor, {told['2 workers, processor']:7.0f} and "
                f"{told['0 workers, processor']:7.0f}; "
                f"{told['processes']:.0f} processes hold {told['own']:.0f} MiB of their own, "
                f"and {told['cache']:.0f} MiB of cached files",
                flush=True,
            )


if __name__ == "__main__":
    main()

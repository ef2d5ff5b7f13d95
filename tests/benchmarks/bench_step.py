"""What chiasm costs beside a bare hand-written PyTorch loop: a step, a prediction, a cold command.

    python tests/benchmarks/bench_step.py train                  # steps in turn, and where the time of one goes
    python tests/benchmarks/bench_step.py predict                # all patients, and one alone, warm
    python tests/benchmarks/bench_step.py cold                   # from the command to the first risk
    python tests/benchmarks/bench_step.py variants               # other precisions, layouts and batches, also of chiasm
    python tests/benchmarks/bench_step.py compile                # steps with compiled networks and without, in turn
    python tests/benchmarks/bench_step.py gpu                    # the large workload, where there is a GPU

The workload: 2,000 patients of one image of 128 x 128 (ResNet-18), a series of 48 hours (GRU of 128) and a note of
up to 128 tokens (BERT of 4 layers, width 256); a cross-attention head of width 256; batches of 32 in fp32. Both sides
see the same batches in turn. Numbers are medians of processor and of wall seconds; others may use the machine, so
that ratios of neighbours count, not seconds.

The bare loop (`BareModel`) runs the same networks, a head of the same size, the same loss, clipping and fused AdamW,
on channels-last images, over tensors that are ready: series lie on their grid with all features computed. It knows
every modality of every patient to be there. It does not do what chiasm does besides: make the grid and the summary
of a series from events, mark tokens by their time, withhold modalities, learn from each modality alone, average
weights, check that losses are finite. Augmentation is off on both sides, dropout is on.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from chiasm.datasets import Cohort
from chiasm.datasets.prepared import BucketedBatches, PreparedSamples
from chiasm.fusion import FusionModel
from chiasm.fusion.inference import infer
from chiasm.fusion.learning import MovingAverage, make_optimizer, tuned_encoders
from chiasm.fusion.numerics import autocast
from step_workload import LARGE, SMALL, BareModel, chiasm_model, draw_cohort, ready
from torch import Tensor, nn
from torch.nn import functional


class Clock:
    """Processor and wall seconds of what is named."""

    def __init__(self) -> None:
        self.spent: dict[str, list[tuple[float, float]]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.process_time(), time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.spent[name].append((time.process_time() - began[0], time.perf_counter() - began[1]))

    def median(self, name: str, column: int = 0) -> float:
        return statistics.median(own[column] for own in self.spent[name])

    def ratio(self, ours: str, theirs: str) -> str:
        """Of neighbours: how much of the rate of theirs ours has."""
        told = []
        for column, kind in enumerate(("processor", "wall")):
            pairs = zip(self.spent[ours], self.spent[theirs], strict=True)
            told.append(f"{statistics.median(b[column] / a[column] for a, b in pairs):.3f} by {kind} time")
        return ", ".join(told)


Step = Callable[[list[int]], None]


def chiasm_step(model: FusionModel, samples: PreparedSamples, clock: Clock, precision: str = "fp32") -> Step:
    """What `fit` does in a step, by its own parts."""
    rule, averaged = make_optimizer(model, "adamw", 1e-3, 0.01), MovingAverage(model, 0.98)
    weights = list(model.parameters())
    model.train()

    def step(positions: list[int]) -> None:
        with clock("data"):
            batch = samples[positions]
        with clock("forward"):
            with autocast(torch.device("cpu"), precision):
                risk = model(batch)
            loss, labels = model.loss(risk, batch)
            if not loss.isfinite():
                raise SystemExit("The loss is not finite.")
        with clock("backward"):
            (loss / labels).backward()
        with clock("optimizer"):
            nn.utils.clip_grad_norm_(weights, 1.0)
            rule.step()
            rule.zero_grad()
        with clock("rest"):
            averaged.update()

    return step


def bare_step(bare: BareModel, autocast: bool = False) -> Callable[[dict[str, Tensor]], None]:
    decays = [[own for own in bare.parameters() if (own.ndim > 1) is matrix] for matrix in (True, False)]
    groups = [{"params": decays[0], "weight_decay": 0.01}, {"params": decays[1], "weight_decay": 0.0}]
    rule, weights = torch.optim.AdamW(groups, lr=1e-3, fused=True), list(bare.parameters())
    bare.train()

    def step(batch: dict[str, Tensor]) -> None:
        with torch.autocast(batch["pixels"].device.type, torch.bfloat16, enabled=autocast):
            logits = bare(batch)
        functional.binary_cross_entropy_with_logits(logits, batch["died"]).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        rule.step()
        rule.zero_grad()

    return step


def train(samples: PreparedSamples, model: FusionModel, steps: int) -> None:
    clock, bare = Clock(), BareModel(model, SMALL)
    ours, theirs = chiasm_step(model, samples, clock), bare_step(bare)
    sizes = [sum(own.numel() for own in one.parameters()) / 1e6 for one in (model, bare)]
    print(f"weights: chiasm {sizes[0]:.2f} million, bare {sizes[1]:.2f} million")
    batches = list(BucketedBatches(samples.sizes, SMALL["batch"]))[: steps + 2]
    for number, positions in enumerate(batches):
        own = ready(samples, positions, model)
        # Who goes first changes, as what goes second finds warm caches or a hot processor.
        for side in ("chiasm", "bare") if number % 2 else ("bare", "chiasm"):
            with clock(side):
                ours(positions) if side == "chiasm" else theirs(own)
        if number == 1:
            clock.spent.clear()
    told = [f"{name} {clock.median(name):.3f} s (wall {clock.median(name, 1):.3f})" for name in ("chiasm", "bare")]
    print(f"one step of {SMALL['batch']}, median of {steps}: {', '.join(told)}")
    print(f"chiasm has of the bare loop's rate: {clock.ratio('chiasm', 'bare')}")
    whole = sum(clock.median(name) for name in ("data", "forward", "backward", "optimizer", "rest"))
    for name in ("data", "forward", "backward", "optimizer", "rest"):
        print(f"  {name:9} {1000 * clock.median(name):7.1f} ms, {clock.median(name) / whole:5.1%}")


def compiled(samples: PreparedSamples, model: FusionModel, steps: int) -> None:
    """Steps with compiled networks and without, in turn, and what compiling them takes."""
    clock = Clock()
    plain = copy.deepcopy(model)
    for _, encoder in tuned_encoders(model):
        encoder.compile_network(True)
    sides = {"compiled": chiasm_step(model, samples, Clock()), "plain": chiasm_step(plain, samples, Clock())}
    for number, positions in enumerate(list(BucketedBatches(samples.sizes, SMALL["batch"]))[: steps + 2]):
        for side in sorted(sides, reverse=number % 2 > 0):
            with clock(side):
                sides[side](positions)
        if not number:
            print(f"the first compiled step: {clock.median('compiled', 1):.0f} s of wall time", flush=True)
        if number == 1:
            clock.spent.clear()
    print(f"compiled networks have of the plain ones' rate: {clock.ratio('compiled', 'plain')}")


def predict(samples: PreparedSamples, model: FusionModel, patients: int) -> None:
    clock, bare = Clock(), BareModel(model, SMALL).eval()
    model.eval()
    chosen = list(BucketedBatches(samples.sizes[:patients], 64, shuffle=False))
    for name, batches in (("all", chosen), ("one", [[k] for k in range(40)])):
        for number, positions in enumerate(batches):
            own = ready(samples, positions, model)
            with clock(f"bare, {name}"), torch.inference_mode():
                bare(own).sigmoid().numpy()
            part = _taken(samples, positions)
            with clock(f"chiasm, {name}"):
                infer(model, part)
            if name == "one" and number == 9:
                clock.spent[f"bare, {name}"].clear(), clock.spent[f"chiasm, {name}"].clear()
        spent = [1000 * clock.median(f"{side}, {name}") for side in ("chiasm", "bare")]
        what = f"{patients} patients, a batch of 64" if name == "all" else "one patient, warm"
        print(f"{what}: chiasm {spent[0]:.1f} ms, bare {spent[1]:.1f} ms; times {spent[0] / spent[1]:.2f};", end=" ")
        print("chiasm has of the bare rate", clock.ratio(f"chiasm, {name}", f"bare, {name}"))


def _taken(samples: PreparedSamples, positions: list[int]) -> PreparedSamples:
    """Some of the samples, over the same arrays."""
    from dataclasses import replace

    from chiasm.datasets.prepared import Packed

    def cut(packed: Packed) -> Packed:
        rows = [np.arange(packed.offsets[k], packed.offsets[k + 1]) for k in positions]
        entry = np.concatenate(rows)
        entries = {name: own[entry] for name, own in packed.entries.items()}
        offsets = np.concatenate([[0], np.cumsum([len(own) for own in rows])])
        return replace(packed, offsets=offsets, rows=packed.rows[entry], hours=packed.hours[entry], entries=entries)

    parts = {name: cut(packed) for name, packed in samples.parts.items()}
    labels = {"outcomes": samples.outcomes[positions], "known": samples.known[positions]}
    return replace(samples, keys=samples.keys.iloc[positions], parts=parts, **labels)


def variants(samples: PreparedSamples, model: FusionModel, steps: int) -> None:
    """What layout, buckets and bf16 give a bare loop, and chiasm, over the same samples on this processor."""
    few = range(steps * SMALL["batch"])
    as_they_come = np.array(few).reshape(steps, -1).tolist()
    by_length = list(BucketedBatches(samples.sizes[few], SMALL["batch"]))

    def bare(layout: torch.memory_format, *, half: bool) -> Step:
        step = bare_step(BareModel(model, SMALL, layout), half)
        return lambda positions: step(made[tuple(positions)])

    runs = {
        "bare, fp32": (bare(torch.contiguous_format, half=False), as_they_come),
        "bare, fp32, channels-last": (bare(torch.channels_last, half=False), as_they_come),
        "bare, fp32, channels-last, by length": (bare(torch.channels_last, half=False), by_length),
        "chiasm, fp32": (chiasm_step(copy.deepcopy(model), samples, Clock()), by_length),
    }
    if has_bf16():
        half = chiasm_step(copy.deepcopy(model), samples, Clock(), "bf16")
        runs["bare, bf16, channels-last, by length"] = (bare(torch.channels_last, half=True), by_length)
        runs["chiasm, bf16"] = (half, by_length)
    else:
        print("This processor has no instructions for bf16, in which it takes many times as long: not measured.")
    made = {tuple(own): ready(samples, own, model) for own in (*as_they_come, *by_length)}
    clock = Clock()
    for number in (0, *range(steps)):
        for name, (step, batches) in runs.items():
            with clock(name):
                step(batches[number])
    spent = {name: np.sum(own[1:], axis=0) for name, own in clock.spent.items()}
    print(f"{len(few)} samples in batches of {SMALL['batch']}, steps in turn, after one to begin with")
    for name, own in spent.items():
        processor, wall = spent["bare, fp32"] / own
        print(f"{name}: {len(few) / own[0]:.1f} samples a processor second;", end=" ")
        print(f"{processor:.3f} times the plain fp32 bare loop's rate by processor time, {wall:.3f} by wall time")


def has_bf16() -> bool:
    """Whether the processor has instructions for matrix products in bf16."""
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def cold(folder: Path) -> None:
    """From the command to the first risk, of a run of the demonstration on 60 patients."""
    from chiasm.datasets.synthetic import write_hospital

    data, run = folder / "hospital", folder / "run"
    chiasm = [sys.executable, "-m", "chiasm.recipes"]
    if not (run / "model").exists():
        write_hospital(data, patients=60, seed=0)
        train = [*chiasm, "train", "demo", "--data", str(data), "--out", str(run), "--set", "epochs=1"]
        subprocess.run(train, check=True, capture_output=True)
    one = folder / "one"
    Cohort.read(data).keep(np.arange(60) < 1, why="first").write(one) if not one.exists() else None
    command = [*chiasm, "predict", str(run), "--data", str(one), "--out", str(folder / "risks.csv")]
    spent = []
    for _ in range(5):
        before, began = os.times(), time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        after = os.times()
        used = sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system"))
        spent.append((time.perf_counter() - began, used))
    wall, used = (statistics.median(own) for own in zip(*spent, strict=True))
    print(f"chiasm predict, cold, one patient: {wall:.1f} s of wall time, {used:.1f} s of processor time, median of 5")


def gpu(folder: Path, steps: int) -> None:
    """The large workload in bf16: rate, share of the measured matrix rate, idle time, and the loader's rate."""
    if not torch.cuda.is_available():
        print("There is no GPU here, so the large workload (224 px, ResNet-50, BERT of 12 layers, batch 256, bf16) was")
        print("not measured: no samples a second, no share of the matrix rate, no idle time can be told.")
        return
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    device = torch.device("cuda")
    cohort = draw_cohort(folder, 1024, LARGE["size"])
    model = chiasm_model(cohort, LARGE)
    samples = model.read(cohort, labelled=True)
    model.to(device).train()
    from chiasm.fusion.inference import to_device

    square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    matrix_rate = 2 * 8192**3 / _seconds(lambda: square @ square)
    batches = [own for own in BucketedBatches(samples.sizes, LARGE["batch"]) if len(own) == LARGE["batch"]]
    loader_rate = LARGE["batch"] / _seconds(lambda: samples[batches[0]])
    rule, averaged = make_optimizer(model, "adamw", 1e-4, 0.01), MovingAverage(model, 0.98)

    def step() -> None:
        batch = to_device(samples[batches[0]], device)
        with torch.autocast("cuda", torch.bfloat16):
            risk = model(batch)
        loss, labels = model.loss(risk, batch)
        (loss / labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rule.step()
        rule.zero_grad()
        averaged.update()

    step()
    with FlopCounterMode(display=False) as flops:
        step()
    seconds = _seconds(step, steps)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        whole = time.perf_counter() - began
    busy = sum(one.self_device_time_total for one in seen.key_averages()) / 1e6
    print(f"{torch.cuda.get_device_name()}: {LARGE['batch'] / seconds:.0f} samples a second in bf16, from the store")
    print(f"share of the measured matrix rate ({matrix_rate / 1e12:.0f} TFLOP/s):", end=" ")
    print(f"{flops.get_total_flops() / seconds / matrix_rate:.1%}; idle in a step: {max(0.0, 1 - busy / whole):.1%}")
    print(f"the loader alone, one process: {loader_rate:.0f} samples a second")


def _seconds(work: Callable[[], object], times: int = 10) -> float:
    """Median wall seconds, the device's work included."""
    clock = Clock()
    for _ in range(times + 2):
        with clock("work"):
            work()
    return statistics.median(own[1] for own in clock.spent["work"][2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "predict", "compile", "variants", "cold", "gpu"))
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="kept, so that the workload is not made again")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        given.folder = given.folder or Path(scratch)
        if given.what == "cold":
            cold(given.folder)
        elif given.what == "gpu":
            gpu(given.folder, given.steps)
        else:
            cohort = draw_cohort(given.folder / str(given.patients), given.patients, SMALL["size"])
            model = chiasm_model(cohort, SMALL)
            samples = model.read(cohort, labelled=True)
            if given.what == "predict":
                predict(samples, model, given.patients)
            else:
                {"train": train, "compile": compiled, "variants": variants}[given.what](samples, model, given.steps)


if __name__ == "__main__":
    main()

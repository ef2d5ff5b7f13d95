"""The largest batch that fits: nothing is changed by looking for it, and memory is never exceeded."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from chiasm.datasets import InputError
from chiasm.fusion import batch_size, largest_batch
from chiasm.fusion.batch_size import _Gauge, _heaviest, _search
from chiasm.fusion.memory import free_memory, memory_bytes, resident_memory

from .crashes import end
from .sharded import clinic, plan
from .trained import same, weights
from .workers import start

GB = 1024**3


@pytest.mark.parametrize("largest", range(12))
def test_every_number_is_found_and_none_is_tried_twice(largest):
    tried = []
    assert _search(lambda number: tried.append(number) or number <= largest, 10) == min(largest, 10)
    assert len(tried) == len(set(tried)) <= 8
    assert max(tried) <= 10


def test_all_samples_fit_where_there_is_memory_and_nothing_is_changed(halves, plan):
    model, again = plan(), plan()
    again.build(halves[0])
    before, state = weights(again), torch.random.get_rng_state()
    assert largest_batch(model, halves[0]) == len(halves[0])
    assert largest_batch(again, halves[0], precision="bf16", recompute=True, most=3) == 3
    assert not model.is_built
    assert same(weights(again), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(weight.grad is None for weight in again.parameters())


def test_a_bound_on_a_cpu_is_kept_without_trying_what_may_exceed_it(monkeypatch):
    # A process that needs 1 GB, and 0.5 GB more for each sample.
    now, seen = [1.0 * GB], []
    monkeypatch.setattr(batch_size, "resident_memory", lambda: now[0])
    gauge = _Gauge(torch.device("cpu"), 8.0 * GB)

    class Watched:
        def __init__(self, count):
            self.count = count

        def __call__(self):
            seen.append(1.0 * GB + 0.5 * GB * self.count)
            now[0] = seen[-1]

    def fits(count):
        try:
            return gauge.fits(Watched(count), count)
        finally:
            now[0] = 1.0 * GB

    monkeypatch.setattr(gauge, "_watching", lambda: watching(now))
    found = _search(fits, 1000)
    assert max(seen) <= 8.0 * GB
    # Of the 14 samples that fit, what a margin of a fifth leaves.
    assert 11 <= found <= 14


class watching:  # noqa: N801
    """Memory as it is at the end of the block."""

    def __init__(self, now):
        self.now = now

    def __enter__(self):
        return lambda: self.peak

    def __exit__(self, *_):
        self.peak = self.now[0]


def test_the_highest_memory_is_seen():
    gauge = _Gauge(torch.device("cpu"), None)
    with gauge._watching() as peak:
        block = np.ones(40 * 1024**2)
        while peak() < resident_memory():
            pass
        del block
    assert peak() > resident_memory() + 0.25 * GB


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(),
        # Of a kernel that finds no room for its code, of a library that finds none for itself, and of the system.
        RuntimeError("CUDA error: out of memory\nCompile with ..."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_what_fails_for_want_of_memory_does_not_fit(error):
    def fail():
        raise error

    assert not _Gauge(torch.device("cpu"), GB * 1e6).fits(fail, 1)


def test_what_fails_for_another_reason_is_not_taken_for_want_of_memory():
    def fail():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        _Gauge(torch.device("cpu"), GB * 1e6).fits(fail, 1)


def test_a_batch_for_fp16_also_fits_in_fp32_in_which_what_overflows_is_computed_once_more(halves, plan, monkeypatch):
    tried, real = [], batch_size.autocast
    monkeypatch.setattr(batch_size, "autocast", lambda device, told: tried.append(told) or real(device, told))
    for precision, heaviest in (("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp32")):
        tried.clear()
        largest_batch(plan(), halves[0], precision=precision, most=1)
        assert set(tried) == {heaviest}


def test_the_samples_that_have_most_of_each_modality_are_tried(halves, small_model, patients):
    model = small_model(outcomes=patients.outcome_kinds)
    model.build(halves[0])
    samples = model.read(halves[0])
    tried = list(_heaviest(samples, 2))
    for name in ("image", "labs"):
        counts = np.diff(samples.parts[name].offsets)
        assert any(sorted(counts[chosen]) == sorted(counts)[-2:] for chosen in tried)
    assert len(list(_heaviest(samples, len(samples)))) == 1


def test_a_model_of_which_no_sample_fits_is_refused(halves, plan):
    with pytest.raises(
        InputError, match=r"Not even one sample fits into 0\.00 GB, of which the process held \d\.\d\d before\. Give"
    ):
        largest_batch(plan(), halves[0], memory=1e-3)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"memory": 0}, "memory is 0; expected a positive number of GB, or None"),
        ({"memory": "8 GB"}, "memory is '8 GB'"),
        ({"most": 0}, "most is 0"),
        ({"timeout": 0}, "timeout is 0; expected a number of seconds from 1 to 1e7"),
        ({"precision": "fp8"}, "precision is 'fp8'; expected 'fp32' or 'bf16' or 'fp16'"),
    ],
)
def test_settings_out_of_range_are_refused(halves, plan, wrong, match):
    with pytest.raises(InputError, match=match):
        largest_batch(plan(), halves[0], **wrong)


def test_other_systems_are_told_that_their_memory_is_not_known(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(InputError, match="is known on Linux only"):
        _Gauge(torch.device("cpu"), None)


def test_the_least_of_machine_and_groups_is_what_is_free(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\n")
    assert free_memory(tmp_path, tmp_path / "none") == 8000000 * 1024
    assert memory_bytes(tmp_path, tmp_path / "none") > 2**28
    (tmp_path / "self" / "cgroup").write_text("0::/job/step\n")
    for name, most in (("job", "3000000"), ("job/step", "max")):
        (tmp_path / "groups" / name).mkdir(parents=True)
        (tmp_path / "groups" / name / "memory.max").write_text(f"{most}\n")
        (tmp_path / "groups" / name / "memory.current").write_text("1000000\n")
    assert free_memory(tmp_path, tmp_path / "groups") == 2000000
    # What a job may have bounds weights, too, in whichever group it is.
    assert memory_bytes(tmp_path, tmp_path / "groups") == 3000000
    # Pages of files that were read make room.
    (tmp_path / "groups" / "job" / "memory.stat").write_text("anon 300000\ninactive_file 500000\nactive_file 100000\n")
    assert free_memory(tmp_path, tmp_path / "groups") == 2600000
    # The first version has a tree of its own for memory, and says a huge number where nothing is limited.
    (tmp_path / "self" / "cgroup").write_text("5:cpuset:/job\n4:memory:/job/step\n0::/\n")
    for name, most in (("job", 4000000), ("job/step", 2**63 - 4096)):
        group = tmp_path / "groups" / "memory" / name
        group.mkdir(parents=True)
        (group / "memory.limit_in_bytes").write_text(f"{most}\n")
        (group / "memory.usage_in_bytes").write_text("3500000\n")
        (group / "memory.stat").write_text("active_file 9000\ntotal_active_file 20000\ntotal_inactive_file 30000\n")
    assert free_memory(tmp_path, tmp_path / "groups") == 550000
    assert memory_bytes(tmp_path, tmp_path / "groups") == 4000000
    assert free_memory() > 0


def look(folder: Path) -> None:
    """What one of two processes finds, of which the second has memory for three samples, and the first for all."""
    real = _Gauge.fits
    if os.environ["RANK"] == "1":
        _Gauge.fits = lambda gauge, work, count: count <= 3 and real(gauge, work, count)
    cohort = clinic(folder / f"images-{os.environ['RANK']}")
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(largest_batch(plan(cohort), cohort)))


def fail(folder: Path) -> None:
    """What one of two processes finds where the other cannot read its patients."""
    if os.environ["RANK"] == "1":
        batch_size._trial = refuse
    cohort = clinic(folder / f"images-{os.environ['RANK']}")
    largest_batch(plan(cohort), cohort, timeout=20)


def refuse(*_, **__):
    raise InputError("scan 7 cannot be read.")


def test_where_one_process_fails_all_end_with_the_first_cause(tmp_path):
    assert end(start(fail, tmp_path, processes=2, said=tmp_path / "said")) == [2, 2]
    assert "Process 1 stopped: scan 7 cannot be read." in (tmp_path / "said" / "0.txt").read_text()


def test_processes_agree_on_what_the_one_with_the_least_memory_can_take(tmp_path):
    assert end(start(look, tmp_path, processes=2, said=tmp_path / "said")) == [0, 0]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [6, 6]

"""Batches that are made ahead: the same ones, in the same order, and no error is lost."""

import threading
from contextlib import closing

import pytest
import torch
from chiasm.datasets import InputError
from chiasm.fusion import fit, training
from chiasm.fusion.prefetching import made_ahead, pinned

from .trained import SHORT, same, weights

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("count", range(5))
def test_all_are_made_once_and_in_order(device, count):
    made = []
    assert list(made_ahead(lambda k: made.append(k) or 10 * k, range(count), device)) == [
        (k, 10 * k) for k in range(count)
    ]
    assert made == list(range(count))


def test_a_gpu_finds_the_next_made_by_another_thread_and_no_more_than_that():
    made, event = [], threading.Event()

    def make(k):
        made.append(threading.current_thread())
        if len(made) == 3:
            event.set()
        return k

    with closing(made_ahead(make, range(100), GPU)) as ready:
        assert next(ready) == (0, 0)
        assert event.wait(10)
    assert threading.main_thread() not in made
    assert len(made) == 3


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_an_error_is_raised_where_its_batch_was_due(device):
    def make(k):
        if k == 2:
            raise InputError("scan 2 cannot be read")
        return k

    ready = made_ahead(make, range(9), device)
    assert [next(ready), next(ready)] == [(0, 0), (1, 1)]
    with pytest.raises(InputError, match="scan 2 cannot be read"):
        next(ready)


def test_what_is_made_ahead_trains_the_same_to_the_last_bit(halves, small_model, patients, monkeypatch):
    results = []
    for device in (CPU, GPU):
        monkeypatch.setattr(
            training, "made_ahead", lambda make, items, _, device=device: made_ahead(make, items, device)
        )
        model = small_model(outcomes=patients.outcome_kinds)
        fit(model, *halves, epochs=2, batch_size=3, accumulate=2, **SHORT)
        results.append(weights(model))
    assert same(*results)


def test_only_a_gpu_needs_memory_that_is_not_moved(halves, plan):
    model = plan()
    model.build(halves[0])
    batch = model.read(halves[0], labelled=True)[[0, 1]]
    assert pinned(batch, CPU) is batch
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU to copy to")
    kept = pinned(batch, GPU)
    assert kept.known.is_pinned()
    assert torch.equal(kept.known, batch.known)

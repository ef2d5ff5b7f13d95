"""Runs in processes of their own, killed, stopped and broken: nothing is lost, and nobody waits for the dead."""

import math
import os
import re
import signal
import time
from pathlib import Path

import pytest
from chiasm.datasets import InputError

from .crashes import Campaign, end, train_run
from .workers import digest, start


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("pair"), processes=2)


def test_a_run_that_is_killed_is_gone_on_with(alone):
    assert alone.kill_once(0.7 * alone.seconds) == ""


def test_a_run_that_is_asked_to_stop_is_gone_on_with(alone):
    assert alone.kill_once(0.6 * alone.seconds, signal.SIGTERM) == ""


# One of two processes misbehaves


def misbehave(kind: str, data: Path, folder: Path) -> None:
    """Train in two processes, of which the second, or both, do something in the third update."""
    from chiasm.fusion import FusionModel, training

    real, updates = training.update, []
    validate = training.validation_loss

    def update(*given):
        updates.append(1)
        if len(updates) == 3 and kind == "is asked to stop like the other":
            os.kill(os.getpid(), signal.SIGTERM)
        if len(updates) == 3 and kind in deeds and os.environ["RANK"] == "1":
            deeds[kind]()
        return real(*given)

    def raise_error():
        raise InputError("scan 7 cannot be read.")

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep():
        time.sleep(300)

    def break_loss():
        whole = FusionModel.loss

        def loss(*given):
            FusionModel.loss = whole
            total, labels = whole(*given)
            return total * math.nan, labels

        FusionModel.loss = loss

    def validation_loss(*given):
        if kind == "is asked to stop between epochs" and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(*given)

    deeds = {"raises": raise_error, "is killed": kill, "sleeps": sleep, "gets a NaN": break_loss}
    training.update, training.validation_loss = update, validation_loss
    # Whoever computes slowly beside other programs is not taken for one that sleeps.
    train_run(data, folder, timeout=8 if kind == "sleeps" else 60)


def outcome(kind: str, pair: Campaign, tmp_path: Path) -> tuple[list[int | None], list[str]]:
    """Exit codes, and what each process said last."""
    said = tmp_path / "said"
    codes = end(start(misbehave, kind, pair.data, tmp_path / "run", processes=2, said=said))
    return codes, [(said / f"{rank}.txt").read_text() for rank in (0, 1)]


ENDED = "chiasm: (Another process ended before all were done|Process 0 lost another one)"
"""What one that is stuck says when it is ended: the cause, if who knows it is still there to be asked."""


@pytest.mark.parametrize(
    ("kind", "codes", "first", "second"),
    [
        ("raises", [2, 2], "chiasm: Process 1 stopped: scan 7 cannot be read.", r"chiasm: scan 7 cannot be read\."),
        ("is killed", [2, -signal.SIGKILL], "chiasm: Process 0 lost another one, which was killed, or did not", ""),
        ("sleeps", [2, 2], "or did not answer in time", ENDED),
    ],
)
def test_where_one_process_fails_all_end_with_the_first_cause(pair, tmp_path, kind, codes, first, second):
    ended, said = outcome(kind, pair, tmp_path)
    assert ended == codes
    assert first in said[0]
    assert re.search(second, said[1])
    if kind == "is killed":
        # What was reached before is whole, and is gone on with.
        folder = tmp_path / "run"
        assert end(start(train_run, pair.data, folder, processes=2, said=tmp_path / "again")) == [0, 0]
        assert digest(folder / "model") == pair.expected


def test_a_nan_in_one_process_is_left_out_by_all_and_they_go_on_together(pair, tmp_path):
    ended, said = outcome("gets a NaN", pair, tmp_path)
    assert ended == [0, 0], said
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 1


def test_all_stop_where_one_process_alone_is_asked_to_between_two_epochs(pair, tmp_path):
    ended, said = outcome("is asked to stop between epochs", pair, tmp_path)
    assert ended == [128 + signal.SIGTERM] * 2, said


def test_both_stop_in_order_where_both_are_asked_to_and_go_on_to_the_same_weights(pair, tmp_path):
    ended, said = outcome("is asked to stop like the other", pair, tmp_path)
    assert ended == [128 + signal.SIGTERM] * 2, said
    folder = tmp_path / "run"
    assert max((folder / "checkpoints").iterdir()).name == "00000-0000003"
    assert end(start(train_run, pair.data, folder, processes=2, said=tmp_path / "again")) == [0, 0]
    assert digest(folder / "model") == pair.expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small file system")
def test_a_full_disk_ends_in_a_message_and_the_run_goes_on_once_there_is_space(alone):
    assert alone.fill_disk_once(0.6 * alone.megabytes) == ""

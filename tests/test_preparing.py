"""`chiasm prepare`: what it fills is what the other commands map."""

from pathlib import Path

import pandas as pd
import pytest
from chiasm.datasets import note_reader
from chiasm.datasets.image_reader import ImageReader
from chiasm.datasets.synthetic import write_hospital

from .command import chiasm

TINY = ["--set", "epochs=1", "--set", "width=16", "--set", "size=64"]


@pytest.fixture
def hospital(tmp_path) -> Path:
    write_hospital(tmp_path / "hospital", patients=80, seed=3, image_size=64)
    return tmp_path / "hospital"


def test_what_was_prepared_is_trained_evaluated_and_predicted_on_without_decoding(
    hospital, tmp_path, monkeypatch, capsys
):
    store, run = tmp_path / "store", tmp_path / "run"
    assert chiasm("prepare", "demo", "--data", hospital, "--out", store, *TINY) == 0
    told = capsys.readouterr().out
    assert "held out:" in told
    assert f"Next: chiasm train demo --data {hospital} --store {store}" in told
    monkeypatch.setattr(ImageReader, "read", None)
    monkeypatch.setattr(note_reader, "_pieces", None)
    assert chiasm("prepare", "demo", "--data", hospital, "--out", store, *TINY) == 0
    assert chiasm("train", "demo", "--data", hospital, "--store", store, "--out", run, *TINY) == 0
    few = ["--resamples", 20, "--no-baselines"]
    assert chiasm("evaluate", run, "--data", hospital, "--store", store, *few) == 0
    monkeypatch.undo()
    risks = []
    for kept in ([], ["--store", store]):
        assert chiasm("predict", run, "--data", hospital, "--out", tmp_path / "risks.csv", *kept) == 0
        risks.append(pd.read_csv(tmp_path / "risks.csv"))
    pd.testing.assert_frame_equal(*risks)


def test_files_that_cannot_be_read_stop_it_or_are_listed(hospital, tmp_path, capsys):
    store = tmp_path / "store"
    spoilt = sorted((hospital / "images").iterdir())[::9]
    for path in spoilt:
        path.write_bytes(path.read_bytes()[:300])
    assert chiasm("prepare", "demo", "--data", hospital, "--out", store, *TINY) == 2
    told = capsys.readouterr().err
    assert 'unreadable="exclude"' in told
    assert told.count("\n") == 1
    assert chiasm("prepare", "demo", "--data", hospital, "--out", store, "--exclude", *TINY) == 0
    told = capsys.readouterr().out
    listed = pd.read_csv(store / "refused.csv")
    assert f"{len(listed)} files that cannot be read are listed in {store / 'refused.csv'}" in told
    assert set(listed["path"]) <= {str(path) for path in spoilt}
    assert len(listed) > 0
    assert listed["reason"].notna().all()
    # What was asked for holds for those who use the folder.
    assert chiasm("train", "demo", "--data", hospital, "--store", store, "--out", tmp_path / "run", *TINY) == 0


def test_a_folder_of_something_else_is_refused(hospital, capsys):
    assert chiasm("prepare", "demo", "--data", hospital, "--out", hospital) == 2
    assert "exists and is no store of chiasm" in capsys.readouterr().err

"""The store: what is decoded once is never decoded again, and nothing half-written is ever read."""

import copy
import errno
import importlib.util
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.datasets import Cohort, InputError, UnreadableImageError
from chiasm.datasets import disk as disk_module
from chiasm.datasets import note_reader as note_reader_module
from chiasm.datasets import shelf as shelf_module
from chiasm.datasets import store as store_module
from chiasm.datasets.batch import Batch
from chiasm.datasets.image_reader import ImageReader
from chiasm.datasets.lab_reader import LabReader
from chiasm.datasets.mapped import MappedArray, map_array, write_array
from chiasm.datasets.note_reader import NoteReader
from chiasm.datasets.prepared import BucketedBatches, PreparedSamples, prepare
from chiasm.datasets.progress import progress_bar, showing_progress
from chiasm.datasets.static_reader import StaticReader
from joblib.externals.loky import get_reusable_executor
from PIL import Image

NOW = pd.Timestamp("2031-05-17 08:00")
WORDS = ["fever", "cough", "oedema", "effusion", "stable", "sepsis", "lactate", "pain"]


def save_images(folder: Path, count: int, first: int = 0) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        # Without compression, so that all are of one size.
        tones = np.random.default_rng(number).integers(0, 256, (40, 50), np.uint8)
        Image.fromarray(tones).save(path, compress_level=0)
    return paths


def of_images(paths: list[Path]) -> Cohort:
    """One patient an image."""
    outcomes = pd.DataFrame({"subject_id": range(len(paths)), "prediction_time": NOW})
    images = pd.DataFrame({"subject_id": range(len(paths)), "time": NOW, "path": [str(path) for path in paths]})
    return Cohort(outcomes, images=images)


def write_table(path: Path, images: list[Path]) -> None:
    """What another process makes the same cohort of."""
    own = {"subject_id": range(len(images)), "prediction_time": NOW, "time": NOW, "path": [str(one) for one in images]}
    pd.DataFrame(own).to_csv(path, index=False)


@pytest.fixture
def whole(tmp_path) -> Cohort:
    """Twelve patients with two images, labs, notes and facts each; every image of theirs but two is another."""
    random = np.random.default_rng(3)
    paths = save_images(tmp_path / "files", 24)
    shutil.copy(paths[0], paths[5])
    who = np.arange(12)
    hours = pd.to_timedelta(random.uniform(1, 48, 24), unit="h")
    twice = {"subject_id": np.repeat(who, 2), "time": NOW - hours}
    texts = [" ".join(random.choice(WORDS, 3 + 2 * number)) for number in range(24)]
    return Cohort(
        pd.DataFrame({"subject_id": who, "prediction_time": NOW, "died": who % 2}),
        labs=pd.DataFrame(twice | {"code": ["Na", "K"] * 12, "value": random.normal(size=24)}),
        notes=pd.DataFrame(twice | {"text": texts}),
        images=pd.DataFrame(twice | {"path": [str(path) for path in paths]}),
        static=pd.DataFrame({"subject_id": who, "age": who + 50.0}),
    )


def readers(cohort: Cohort) -> dict:
    made = {
        "image": ImageReader(32),
        "labs": LabReader(rare=1),
        "notes": NoteReader(length=12, overlap=3, most=3),
        "static": StaticReader(),
    }
    for reader in made.values():
        reader.fit(cohort)
    return made


def batch_of(samples: PreparedSamples) -> list[torch.Tensor]:
    batch = samples[range(len(samples))]
    return [batch.outcomes, batch.known, *(column for name in batch.parts for column in batch.parts[name])]


def assert_equal(one: PreparedSamples, other: PreparedSamples) -> None:
    pd.testing.assert_frame_equal(one.keys, other.keys)
    assert one.remarks == other.remarks
    assert all(torch.equal(left, right) for left, right in zip(batch_of(one), batch_of(other), strict=True))


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of files that are decoded and the texts that are tokenized, as they are."""
    done = []
    read, pieces = ImageReader.read, note_reader_module._pieces
    monkeypatch.setattr(ImageReader, "read", lambda reader, path: [done.append(Path(path).name), read(reader, path)][1])
    monkeypatch.setattr(note_reader_module, "_pieces", lambda cut, text: [done.append(text), pieces(cut, text)][1])
    return done


# The same as in memory


def test_a_store_gives_what_memory_gives(whole, tmp_path):
    stored = whole.with_store(tmp_path / "store")
    expected, fitted = readers(whole), readers(stored)
    assert {name: reader.state() for name, reader in expected.items()} == {
        name: reader.state() for name, reader in fitted.items()
    }
    for _ in range(2):
        assert_equal(prepare(whole, expected, whole.outcome_kinds), prepare(stored, fitted, stored.outcome_kinds))


def test_parts_of_a_cohort_use_its_store_in_any_order(whole, tmp_path, decoded):
    stored = whole.with_store(tmp_path / "store")
    train, valid, test = whole.split((0.5, 0.25, 0.25))
    fitted = readers(train)
    for part in stored.split((0.5, 0.25, 0.25))[::-1]:
        prepare(part, fitted)
    decoded.clear()
    made = [prepare(part, fitted) for part in stored.split((0.5, 0.25, 0.25))]
    assert not decoded
    for own, part in zip(made, (train, valid, test), strict=True):
        assert_equal(own, prepare(part, fitted))


def test_every_array_of_a_store_is_mapped(whole, tmp_path):
    for packed in prepare(whole.with_store(tmp_path / "store"), readers(whole)).parts.values():
        arrays = (packed.offsets, packed.rows, packed.hours, *packed.arrays.values(), *packed.entries.values())
        assert all(isinstance(array, MappedArray) for array in arrays)


def test_a_model_trains_to_the_same_weights_from_a_store_and_resumes_from_either(whole, tmp_path, small_model):
    from chiasm.fusion import fit
    from chiasm.fusion.training_samples import fingerprint_of

    weights = []
    for cohort in (whole, whole.with_store(tmp_path / "store")):
        model = small_model(("image", "labs"), outcomes=whole.outcome_kinds)
        fit(model, cohort, None, epochs=1, batch_size=6, progress=False)
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    fitted = readers(whole)
    both = (whole, whole.with_store(tmp_path / "store"))
    prints = {fingerprint_of(prepare(cohort, fitted), None, {}) for cohort in both}
    assert len(prints) == 1


# Decoded once


def test_a_second_call_decodes_and_packs_nothing(whole, tmp_path, decoded, monkeypatch):
    stored = whole.with_store(tmp_path / "store")
    fitted = readers(whole)
    first = prepare(stored, fitted)
    decoded.clear()
    for kind in (ImageReader, LabReader, NoteReader, StaticReader):
        monkeypatch.setattr(kind, "pack", None)
    again = whole.with_store(tmp_path / "store")
    assert_equal(first, prepare(again, fitted))
    assert not decoded


def test_equal_files_and_equal_notes_are_kept_once(whole, tmp_path, decoded):
    stored = whole.with_store(tmp_path / "store")
    table = stored.notes.assign(text="stable")
    twice = stored.with_tables("the same note", notes=table)
    samples = prepare(twice, {name: reader for name, reader in readers(whole).items() if name in ("image", "notes")})
    assert len(samples.parts["image"].arrays["pixels"]) == 23
    assert len(samples.parts["notes"].arrays["tokens"]) == 1
    assert decoded[24:].count("stable") == 1


def test_a_file_that_was_touched_copied_or_moved_is_not_decoded_again(tmp_path, decoded):
    paths = save_images(tmp_path / "files", 6)
    reader = ImageReader(32)
    first = prepare(of_images(paths).with_store(tmp_path / "store"), {"image": reader})
    decoded.clear()
    os.utime(paths[0], (1, 1))
    paths[1] = paths[1].rename(tmp_path / "moved.png")
    paths[2] = Path(shutil.copy(paths[2], tmp_path / "copied.png"))
    again = prepare(of_images(paths).with_store(tmp_path / "store"), {"image": reader})
    assert not decoded
    assert_equal(first, again)


def test_a_file_that_changed_is_decoded_again_and_no_other(tmp_path, decoded):
    paths = save_images(tmp_path / "files", 6)
    prepare(of_images(paths).with_store(tmp_path / "store"), {"image": ImageReader(32)})
    decoded.clear()
    before, (other,) = paths[3].stat(), save_images(tmp_path / "others", 1, first=99)
    paths[3].write_bytes(other.read_bytes())
    # The same size and time of modification do not hide a change.
    os.utime(paths[3], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert paths[3].stat().st_size == before.st_size
    cohort = of_images(paths)
    again = prepare(cohort.with_store(tmp_path / "store"), {"image": ImageReader(32)})
    assert decoded == ["3.png"]
    assert_equal(again, prepare(cohort, {"image": ImageReader(32)}))


@pytest.mark.parametrize("change", ["size", "version", "scales", "tokenizer", "history", "event"])
def test_what_changes_is_made_anew(whole, tmp_path, monkeypatch, change):
    fitted = readers(whole)
    prepare(whole.with_store(tmp_path / "store"), fitted)
    if change == "size":
        fitted["image"] = ImageReader(40)
    elif change == "version":
        monkeypatch.setattr(store_module, "version", lambda _: "0.0.0")
    elif change == "scales":
        fitted["labs"].centre_ = fitted["labs"].centre_ + 1
    elif change == "tokenizer":
        fitted["notes"] = NoteReader(vocabulary=40, length=12, overlap=3, most=3)
        fitted["notes"].fit(whole)
    elif change == "history":
        whole.history = 10.0
        whole.__dict__.pop("_windows")
    else:
        whole = whole.with_tables("an edit", labs=whole.labs.assign(value=whole.labs["value"] + 1))
    assert_equal(prepare(whole.with_store(tmp_path / "store"), fitted), prepare(whole, fitted))


def test_what_was_made_before_a_change_is_still_there(whole, tmp_path, decoded):
    small, large = ImageReader(32), ImageReader(40)
    for reader in (small, large):
        prepare(whole.with_store(tmp_path / "store"), {"image": reader})
    decoded.clear()
    prepare(whole.with_store(tmp_path / "store"), {"image": small})
    assert not decoded


# Killed, full, damaged

CHILD = """
import sys, time
from chiasm.datasets import Cohort
from chiasm.datasets.batch import Batch
from chiasm.datasets.image_reader import ImageReader
from chiasm.datasets.prepared import prepare
import pandas as pd

class SlowReader(ImageReader):
    def read(self, path):
        time.sleep(0.02)
        return super().read(path)

table = pd.read_csv(sys.argv[1], parse_dates=["time", "prediction_time"])
cohort = Cohort(table[["subject_id", "prediction_time"]], images=table[["subject_id", "time", "path"]])
print("ready", flush=True)
prepare(cohort.with_store(sys.argv[2]), {"image": SlowReader(32)})
"""


def rows_of(store: Path) -> int:
    journals = list(store.glob("images-*/journal.jsonl"))
    lines = journals[0].read_bytes().split(b"\n")[:-1] if journals else []
    return sum(len(json.loads(line)["sources"]) for line in lines)


def test_a_run_that_is_killed_goes_on_without_decoding_again_what_was_done(tmp_path, decoded):
    paths = save_images(tmp_path / "files", 120)
    write_table(tmp_path / "table.csv", paths)
    store = tmp_path / "store"
    child = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "table.csv", store], stdout=subprocess.PIPE)
    child.stdout.readline()
    while rows_of(store) < 40:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    done = rows_of(store)
    assert 40 <= done < 120
    cohort = of_images(paths)
    again = prepare(cohort.with_store(store), {"image": ImageReader(32)})
    assert len(decoded) == 120 - done
    assert_equal(again, prepare(cohort, {"image": ImageReader(32)}))


def test_rows_without_their_line_in_the_journal_do_not_exist(tmp_path, decoded):
    paths = save_images(tmp_path / "files", 40)
    cohort = of_images(paths)
    prepare(cohort.with_store(tmp_path / "store"), {"image": ImageReader(32)})
    journal = next((tmp_path / "store").glob("images-*/journal.jsonl"))
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    # As after a kill in the middle of writing the last line.
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:100])
    shutil.rmtree(tmp_path / "store" / "packs")
    decoded.clear()
    again = prepare(cohort.with_store(tmp_path / "store"), {"image": ImageReader(32)})
    assert len(decoded) == 10
    assert sum(len(json.loads(line)["sources"]) for line in journal.read_bytes().splitlines()) == 40
    assert_equal(again, prepare(cohort, {"image": ImageReader(32)}))


def test_an_array_that_grew_can_be_read_by_others_and_has_all_rows(tmp_path):
    prepare(of_images(save_images(tmp_path / "files", 40)).with_store(tmp_path / "store"), {"image": ImageReader(32)})
    assert np.load(next((tmp_path / "store").glob("images-*/pixels.npy"))).shape == (40, 1, 32, 32)


FULL = "The disk of .* is full, and .* could not be written. What was written before is kept: free some space"


def test_a_full_disk_is_said_and_nothing_half_written_is_read(tmp_path, decoded):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount")
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk]).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        paths = save_images(tmp_path / "files", 200)
        cohort = of_images(paths)
        with pytest.raises(InputError, match=FULL):
            prepare(cohort.with_store(disk / "store"), {"image": ImageReader(32)})
        done = rows_of(disk / "store")
        assert 0 < done < 100
        subprocess.run(["mount", "-o", "remount,size=2M", disk], check=True)
        decoded.clear()
        again = prepare(cohort.with_store(disk / "store"), {"image": ImageReader(32)})
        assert len(decoded) == 200 - done
        assert_equal(again, prepare(cohort, {"image": ImageReader(32)}))
        del again
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_description_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_module, "reach_disk", full)
    with pytest.raises(InputError, match=FULL):
        of_images(save_images(tmp_path / "files", 1)).with_store(tmp_path / "store")
    assert not list((tmp_path / "store").iterdir())


@pytest.mark.parametrize("place", [shelf_module, store_module])
def test_a_disk_that_is_full_at_any_place_is_said(whole, tmp_path, monkeypatch, place):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(place, "write_rows" if place is shelf_module else "write_array", full)
    fitted = readers(whole)
    with pytest.raises(InputError, match=FULL):
        prepare(whole.with_store(tmp_path / "store"), fitted)
    monkeypatch.undo()
    assert_equal(prepare(whole.with_store(tmp_path / "store"), fitted), prepare(whole, fitted))


def test_another_failure_of_the_disk_is_not_called_a_full_one(whole, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shelf_module, "write_rows", broken)
    with pytest.raises(OSError, match="Input/output error"):
        prepare(whole.with_store(tmp_path / "store"), {"image": ImageReader(32)})


# An array of Python objects, which could only be read by running code.
OBJECTS = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (24,), }".ljust(127) + b"\n"


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("images-*/journal.jsonl", b"[]\n", r"journal.jsonl is damaged. Remove .* and prepare again"),
        ("images-*/journal.jsonl", b"\0\0\0\n", r"journal.jsonl is damaged"),
        ("images-*/pixels.npy", b"", r"pixels.npy is missing or damaged. Remove the folder .*images-"),
        ("images-*/pixels.npy", None, r"pixels.npy is missing or damaged"),
        ("images-*/pixels.npy", OBJECTS, r"pixels.npy is missing or damaged"),
        ("packs/*/rows.npy", 100, r"rows.npy is missing or damaged. Remove the folder .*packs"),
        ("packs/*/index.json", b"{}", r"index.json is damaged. Remove .*packs"),
        ("packs/*/index.json", b"[]", r"index.json is missing or damaged"),
        ("packs/*/index.json", b"{", r"index.json is missing or damaged"),
        ("store.json", b"{", r"store.json is missing or damaged"),
        ("store.json", b'{"schema": 2}', r"is a store of the schema 2, and this version of chiasm reads 1"),
    ],
)
def test_a_damaged_store_is_refused_with_what_to_remove(tmp_path, file, content, match):
    cohort = of_images(save_images(tmp_path / "files", 24))
    prepare(cohort.with_store(tmp_path / "store"), {"image": ImageReader(32)})
    path = next((tmp_path / "store").glob(file))
    if content is None:
        path.unlink()
    elif isinstance(content, int):
        os.truncate(path, content)
    else:
        path.write_bytes(content)
    if "journal" in file:
        # A pack that is there is mapped without a look at the journal.
        shutil.rmtree(tmp_path / "store" / "packs")
    with pytest.raises(InputError, match=match):
        prepare(cohort.with_store(tmp_path / "store"), {"image": ImageReader(32)})


@pytest.mark.parametrize("part", ["images-*", "images-*/journal.jsonl", "packs", "packs/*"])
def test_any_folder_of_a_store_may_be_removed_and_is_made_again(tmp_path, part):
    paths = save_images(tmp_path / "files", 24)
    prepare(of_images(paths).with_store(tmp_path / "store"), {"image": ImageReader(32)})
    removed = next((tmp_path / "store").glob(part))
    shutil.rmtree(removed) if removed.is_dir() else removed.unlink()
    # Others come first, so that rows lie elsewhere than they did.
    prepare(
        of_images(save_images(tmp_path / "files", 5, first=60)).with_store(tmp_path / "store"),
        {"image": ImageReader(32)},
    )
    cohort = of_images(paths)
    again = prepare(cohort.with_store(tmp_path / "store"), {"image": ImageReader(32)})
    assert_equal(again, prepare(cohort, {"image": ImageReader(32)}))


def test_a_folder_that_holds_something_else_is_no_store(whole, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("x")
    for path in (tmp_path / "letters", tmp_path / "letters" / "a.txt"):
        with pytest.raises(InputError, match=r"exists and is no store of chiasm. Give another folder"):
            whole.with_store(path)
    with pytest.raises(InputError, match='unreadable is \'skip\'; expected "raise" or "exclude"'):
        whole.with_store(tmp_path / "store", unreadable="skip")


# Files that cannot be read


@pytest.fixture
def spoilt(tmp_path) -> Cohort:
    """Four patients with three images each; the latest of the first and all of the last cannot be read."""
    paths = save_images(tmp_path / "files", 12)
    for number in (2, 9, 10):
        paths[number].write_bytes(paths[number].read_bytes()[:60])
    paths[11].unlink()
    who = np.arange(4)
    hours = pd.to_timedelta(np.tile([3, 2, 1], 4), unit="h")
    images = pd.DataFrame({"subject_id": np.repeat(who, 3), "time": NOW - hours, "path": map(str, paths)})
    return Cohort(pd.DataFrame({"subject_id": who, "prediction_time": NOW}), images=images)


def test_the_first_unreadable_file_is_an_error_and_what_was_decoded_is_kept(spoilt, tmp_path, decoded):
    with pytest.raises(UnreadableImageError, match=r"2.png: it cannot be decoded.*listed, with unreadable=\"exclude\""):
        prepare(spoilt.with_store(tmp_path / "store"), {"image": ImageReader(32)})
    done = rows_of(tmp_path / "store")
    assert done
    decoded.clear()
    prepare(spoilt.with_store(tmp_path / "store", unreadable="exclude"), {"image": ImageReader(32)})
    assert sum(name not in ("2.png", "9.png", "10.png") for name in decoded) == 8 - done


def test_unreadable_files_are_left_out_counted_and_listed_in_the_pass_that_decodes(spoilt, tmp_path, decoded):
    reader = ImageReader(32, most=2)
    stored = spoilt.with_store(tmp_path / "store", unreadable="exclude")
    for _ in range(2):
        samples = prepare(stored, {"image": reader})
        assert samples.remarks[0] == "images: 4 that cannot be read"
        assert [(one.table, one.row) for one in samples.exclusions] == [("images", row) for row in (3, 10, 11, 12)]
        assert "there is no such file" in samples.exclusions[-1].reason
    assert len(decoded) == len(set(decoded))
    readable = prepare(spoilt.keep_readable_images(), {"image": reader})
    assert all(torch.equal(one, other) for one, other in zip(batch_of(samples), batch_of(readable), strict=True))
    assert samples.empty.tolist() == [False, False, False, True]


def test_a_store_remembers_what_is_to_become_of_unreadable_files(spoilt, tmp_path):
    spoilt.with_store(tmp_path / "store", unreadable="exclude")
    assert len(prepare(spoilt.with_store(tmp_path / "store"), {"image": ImageReader(32)}).exclusions) == 4
    with pytest.raises(UnreadableImageError):
        prepare(spoilt.with_store(tmp_path / "store", unreadable="raise"), {"image": ImageReader(32)})


def test_a_file_that_was_mended_is_read(spoilt, tmp_path):
    stored = spoilt.with_store(tmp_path / "store", unreadable="exclude")
    prepare(stored, {"image": ImageReader(32)})
    save_images(tmp_path / "files", 12)
    assert not prepare(stored, {"image": ImageReader(32)}).exclusions


# In parallel


@pytest.fixture
def no_workers_left():
    """joblib keeps its processes for the next call, for some minutes."""
    yield
    get_reusable_executor().shutdown(wait=True)


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("backend", ["threading", "multiprocessing", "loky"])
def test_every_backend_of_joblib_gives_the_same(tmp_path, backend):
    paths = save_images(tmp_path / "files", 40)
    cohort = of_images(paths)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        stored = prepare(cohort.with_store(tmp_path / "store"), {"image": ImageReader(32)})
        held = prepare(of_images(paths), {"image": ImageReader(32)})
        paths[20].write_bytes(b"")
        with pytest.raises(UnreadableImageError, match="it is empty"):
            prepare(of_images(paths).with_store(tmp_path / "store"), {"image": ImageReader(32)})
        with pytest.raises(UnreadableImageError, match="it is empty"):
            prepare(of_images(paths[10:30]), {"image": ImageReader(32)})
    for made in (stored, held):
        assert_equal(made, held)
    np.testing.assert_array_equal(held[[7]].parts["image"].pixels[0], ImageReader(32).read(str(paths[7]))[0])


def test_two_that_build_at_once_decode_each_file_once(tmp_path, decoded):
    cohort, made = of_images(save_images(tmp_path / "files", 60)), []
    start = threading.Barrier(2)

    def build() -> None:
        start.wait()
        made.append(prepare(cohort.with_store(tmp_path / "store"), {"image": ImageReader(32)}))

    both = [threading.Thread(target=build) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(decoded) == 60
    assert_equal(*made)


RAY = """
import sys
import joblib, pandas as pd, ray
from ray.util.joblib import register_ray
from chiasm.datasets import Cohort
from chiasm.datasets.batch import Batch
from chiasm.datasets.image_reader import ImageReader
from chiasm.datasets.prepared import prepare

class ToldReader(ImageReader):
    def read(self, path):
        with open(log_path, "a") as log:
            log.write(f"{ray.get_runtime_context().get_worker_id()}\\n")
        return super().read(path)

log_path = sys.argv[3]
table = pd.read_csv(sys.argv[1], parse_dates=["time", "prediction_time"])
cohort = Cohort(table[["subject_id", "prediction_time"]], images=table[["subject_id", "time", "path"]])
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
register_ray()
with joblib.parallel_config(backend="ray", n_jobs=2):
    prepare(cohort.with_store(sys.argv[2]), {"image": ToldReader(32)})
ray.shutdown()
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install chiasm[ray]")
def test_the_same_call_runs_on_a_ray_cluster_of_two_workers(tmp_path, decoded):
    paths = save_images(tmp_path / "files", 64)
    write_table(tmp_path / "table.csv", paths)
    arguments = [tmp_path / "table.csv", tmp_path / "store", tmp_path / "log"]
    # Ray's workers make way for every other process unless they are told not to.
    told = os.environ | {"RAY_worker_niceness": "0"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", RAY, *arguments], env=told, check=True, timeout=300)
    workers = (tmp_path / "log").read_text().split()
    assert len(workers) == 64
    assert len(set(workers)) == 2
    cohort = of_images(paths)
    again = prepare(cohort.with_store(tmp_path / "store"), {"image": ImageReader(32)})
    assert not decoded
    assert_equal(again, prepare(cohort, {"image": ImageReader(32)}))


# Loaded


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_loader_of_two_processes_gives_the_same_batches_and_they_carry_no_copy(whole, tmp_path):
    samples = prepare(whole.with_store(tmp_path / "store"), readers(whole), whole.outcome_kinds)
    assert len(pickle.dumps(samples.parts)) < 6000
    assert_equal(pickle.loads(pickle.dumps(samples)), samples)
    batches = BucketedBatches(samples.sizes, 3, seed=1)
    loader = torch.utils.data.DataLoader(
        samples, sampler=batches, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    for positions, batch in zip(batches, loader, strict=True):
        expected = samples[positions]
        assert torch.equal(batch.sample, expected.sample)
        for name, part in expected.parts.items():
            assert all(torch.equal(one, other) for one, other in zip(part, batch.parts[name], strict=True))


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    return [batch.sample, batch.outcomes, batch.known, *itertools.chain(*batch.parts.values())]


def test_a_batch_is_pickled_as_one_tensor_whatever_it_holds(whole):
    samples = prepare(whole, readers(whole), whole.outcome_kinds)
    bare = samples[np.flatnonzero(samples.empty)]
    for batch in (samples[np.arange(len(samples))], samples[[3]], bare):
        assert sum(isinstance(own, torch.Tensor) for own in batch.__reduce__()[1]) == 1
        for again in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)):
            assert type(again) is type(batch)
            assert [*again.parts] == [*batch.parts]
            for tensor, expected in zip(tensors_of(again), tensors_of(batch), strict=True):
                assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
                assert torch.equal(tensor, expected)


def test_a_batch_of_another_device_is_pickled_tensor_by_tensor(whole):
    batch = prepare(whole, readers(whole), whole.outcome_kinds)[[1, 2]]
    elsewhere = batch._replace(known=batch.known.to("meta"))
    assert elsewhere.__reduce__() == (type(batch), tuple(elsewhere))


def test_a_mapped_array_is_pickled_as_its_file_and_what_is_cut_out_of_it_as_numbers(tmp_path):
    numbers = np.arange(40_000, dtype=np.int32).reshape(10_000, 4)
    write_array(tmp_path / "numbers.npy", numbers)
    mapped = map_array(tmp_path / "numbers.npy", 9_000)
    assert not mapped.flags.writeable
    assert len(pickle.dumps(mapped)) < 300
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mapped)), numbers[:9_000])
    for cut in (mapped[2:5], mapped[[7, 8]], mapped + 1, mapped.reshape(-1)[:3], np.diff(mapped, axis=0)[:3]):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(cut)), np.asarray(cut))
        assert len(pickle.dumps(cut)) < 400_000
    assert type(mapped[3:]) is type(mapped + 1) is np.ndarray
    assert mapped[3, 1] == 13
    assert mapped.sum() == numbers[:9_000].sum()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (5, 0), (7,), (7, 2, 3)])
@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, np.int64])
def test_arrays_of_any_shape_are_written_and_mapped(tmp_path, shape, kind):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(kind)
    write_array(tmp_path / "array.npy", array)
    np.testing.assert_array_equal(map_array(tmp_path / "array.npy", len(array)), array)
    np.testing.assert_array_equal(np.load(tmp_path / "array.npy"), array)
    if 0 not in shape[1:]:
        with pytest.raises(InputError, match=r"array.npy is missing or damaged"):
            map_array(tmp_path / "array.npy", len(array) + 1)


def test_an_array_in_another_order_or_format_is_refused(tmp_path):
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.ones((3, 2))))
    with (tmp_path / "two.npy").open("wb") as file:
        np.lib.format.write_array(file, np.ones(3), version=(2, 0))
    for name in ("columns.npy", "two.npy"):
        with pytest.raises(InputError, match="is missing or damaged"):
            map_array(tmp_path / name, 1)


# Bars


def test_bars_are_drawn_by_the_first_process_where_they_may_be(monkeypatch):
    drawn = []
    with progress_bar("work", 0) as advance:
        advance(0)
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setattr("rich.progress.Progress.add_task", lambda *_, **told: drawn.append(told["total"]) or 0)
    monkeypatch.setattr("rich.progress.Progress.advance", lambda *_: None)

    def work(total: int) -> None:
        with progress_bar("work", total) as advance:
            advance(1)

    work(1)
    with showing_progress(False):
        work(2)
    monkeypatch.setenv("RANK", "1")
    work(3)
    monkeypatch.setenv("RANK", "0")
    work(4)
    assert drawn == [1, 4]

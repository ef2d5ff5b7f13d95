"""Models on disk: whole or not at all, unchanged or refused, and never code."""

import errno
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from chiasm.datasets import InputError
from chiasm.encoders import ImageEncoder
from chiasm.fusion import ConcatenationFusion, FusionModel, artifact, predict
from chiasm.fusion.artifact import DamagedError, checked_folder, new_file, new_folder, read_folder, write_whole
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

MODALITIES = ("image", "labs", "notes", "static")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, cohort, small_model) -> Path:
    """The folder of a small model of labs and static facts."""
    model = small_model(("labs", "static"), outcomes=cohort.outcome_kinds)
    model.build(cohort, seed=0)
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(saved, tmp_path / "model")


def unsealed(folder: Path) -> dict:
    """A manifest without its own hash, as older versions wrote it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return {name: value for name, value in manifest.items() if name != "sha256"}


def reseal(folder: Path) -> None:
    """Make the manifest true again, as somebody would who means harm."""
    manifest = unsealed(folder)
    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    manifest["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def refuses(folder: Path, match: str) -> None:
    with pytest.raises(InputError, match=match):
        FusionModel.load(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What is saved comes back


@pytest.mark.parametrize("window", [None, "lung", (50, 350), 1])
def test_a_loaded_model_reads_images_in_the_window_of_the_saved_one(window, tmp_path, cohort):
    image = ImageEncoder("test_resnet", size=64)
    model = FusionModel(image=image, fusion=ConcatenationFusion(16), outcomes=cohort.outcome_kinds)
    model.build(cohort, seed=0)
    # The pictures of this cohort are no CT: what is saved is what a reader would read by.
    image.reader.window = window
    model.save(tmp_path / "model")
    again = FusionModel.load(tmp_path / "model").encoders["image"].reader
    assert again.window == window
    assert again.window == ImageEncoder("test_resnet", window=window).reader.window


@pytest.mark.parametrize("modalities", [*((name,) for name in MODALITIES), MODALITIES], ids=" + ".join)
def test_a_loaded_model_predicts_to_the_bit_what_the_saved_one_did(modalities, tmp_path, cohort, small_model):
    fusion = ConcatenationFusion(16) if modalities == ("static",) else None
    model = small_model(modalities, outcomes=cohort.outcome_kinds, fusion=fusion, modality_dropout=0.25)
    model.build(cohort, seed=3)
    samples = cohort.keep_with_input()
    if "image" in modalities:
        # Batch norms that have seen something.
        model.train()(_batch(model, samples))
    model.thresholds_ = {"died": 0.3}
    model.save(tmp_path / "model")
    again = FusionModel.load(tmp_path / "model")
    ours, theirs = predict(model, samples), predict(again, samples)
    assert ours.equals(theirs)
    assert (ours["status"] == "ok").any()
    assert ours.attrs == theirs.attrs
    assert again.modality_dropout == 0.25
    assert again.outcomes == model.outcomes
    assert [kind.classes for kind in again.outcomes.values()] == [kind.classes for kind in model.outcomes.values()]
    again.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "model")


def _batch(model, cohort):
    from chiasm.datasets.prepared import prepare

    return prepare(cohort, model.readers)[range(len(cohort))]


def test_a_folder_holds_safetensors_and_json_and_no_pickle(saved):
    assert set(contents(saved)) == {"manifest.json", "model.json", "weights.safetensors"}
    for name, content in contents(saved).items():
        if name.endswith(".json"):
            json.loads(content)
    assert load_file(saved / "weights.safetensors")


def test_a_folder_is_open_to_whom_the_system_says(tmp_path):
    before = os.umask(0o027)
    try:
        with new_folder(tmp_path / "made", "model") as scratch:
            (scratch / "a.json").write_text("{}")
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o750


def test_a_model_without_weights_is_not_saved(tmp_path, cohort, small_model):
    with pytest.raises(InputError, match="has no weights yet"):
        small_model(("labs",), outcomes=cohort.outcome_kinds).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


# What is not what was saved is refused


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.999])
def test_a_changed_byte_is_refused(folder, name, where):
    content = bytearray((folder / name).read_bytes())
    content[int(where * len(content))] ^= 1
    (folder / name).write_bytes(content)
    refuses(folder, f"{name} is not the file that was saved")


def test_a_changed_byte_of_the_manifest_is_refused_wherever_it_is(folder):
    content = (folder / "manifest.json").read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        (folder / "manifest.json").write_bytes(changed)
        # As damage, that a run which goes on passes over, and not as another kind of folder.
        with pytest.raises(DamagedError):
            checked_folder(folder, "model")
    (folder / "manifest.json").write_bytes(content)
    checked_folder(folder, "model")


@pytest.mark.parametrize(
    "manifest", ["", "[]", "null", '{"kind": "model", "schema": 1, "files": 3}', "\xff", "[" * 100_000]
)
def test_a_damaged_manifest_is_refused(folder, manifest):
    (folder / "manifest.json").write_text(manifest, encoding="latin-1")
    refuses(folder, r"manifest.json is damaged")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), SafetensorError(f"I/O error: full (os error {errno.ENOSPC})")],
    ids=["the system", "safetensors"],
)
def test_a_full_disk_is_told_and_leaves_what_was_there(folder, error):
    before = contents(folder)
    full = rf"The disk of {folder.parent} is full, and the model {folder.name} could not be written\. What was written"
    with pytest.raises(InputError, match=full), new_folder(folder, "model"):
        raise error
    with pytest.raises(InputError, match=rf"{folder} is full, and risks.csv could not"), new_file(folder / "risks.csv"):
        raise error
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_weights_that_cannot_be_written_for_another_reason_are_a_defect_of_ours(tmp_path):
    with pytest.raises(SafetensorError, match="odd"), new_folder(tmp_path / "model", "model"):
        raise SafetensorError("odd")


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    refuses(folder, f"lacks {name}")


def test_a_missing_manifest_or_folder_is_refused(folder, tmp_path):
    (folder / "manifest.json").unlink()
    refuses(folder, "is no model: it has no manifest.json")
    refuses(tmp_path / "nowhere", "is no model: it has no manifest.json")


@pytest.mark.parametrize("name", ["optimizer.pkl", "notes.txt", ".hidden"])
def test_a_file_that_does_not_belong_there_is_refused(folder, name):
    (folder / name).write_bytes(pickle.dumps(3))
    refuses(folder, f"holds {name}, which its manifest does not name")


def test_another_schema_or_kind_is_refused(folder):
    manifest = unsealed(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": 999}))
    refuses(folder, "has the schema 999, and this version of chiasm reads 1")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"kind": "checkpoint"}))
    refuses(folder, "holds a checkpoint, not a model. Check the path")


def test_a_link_is_refused_even_to_the_same_content(folder, tmp_path):
    (folder / "weights.safetensors").rename(tmp_path / "elsewhere")
    (folder / "weights.safetensors").symlink_to(tmp_path / "elsewhere")
    refuses(folder, "is not the file that was saved")


def test_a_manifest_cannot_point_outside_its_folder(folder, tmp_path):
    (tmp_path / "outside").write_text("x")
    manifest = unsealed(folder)
    manifest["files"]["../outside"] = hashlib.sha256(b"x").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refuses(folder, r"lacks ../outside")


# A true manifest over something that is no model


class Trap:
    """What a pickle can do when it is read."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


def test_a_pickle_under_the_name_of_weights_is_refused_and_not_run(folder, tmp_path):
    weights = folder / "weights.safetensors"
    weights.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    reseal(folder)
    refuses(folder, "Take the folder from a backup")
    torch.save({"x": Trap(tmp_path / "sprung")}, weights)
    reseal(folder)
    refuses(folder, "Take the folder from a backup")
    assert not (tmp_path / "sprung").exists()


def test_truncated_weights_are_refused(folder):
    weights = folder / "weights.safetensors"
    for length in (0, 4, 100, -1):
        weights.write_bytes(weights.read_bytes()[:length])
        reseal(folder)
        refuses(folder, "Take the folder from a backup")


def test_weights_that_lack_or_exceed_what_the_model_has_are_refused(folder):
    weights = load_file(folder / "weights.safetensors")
    name = next(iter(weights))
    for wrong in (
        {own: value for own, value in weights.items() if own != name},
        weights | {"stranger": torch.zeros(1)},
        weights | {name: torch.zeros(7, 7, 7)},
    ):
        save_file(wrong, folder / "weights.safetensors")
        reseal(folder)
        refuses(folder, "Take the folder from a backup")


EDITS = {
    "another width": lambda own: own["fusion"]["settings"].update(width=64),
    "heads that do not divide": lambda own: own["fusion"]["settings"].update(heads=5),
    "a width that is text": lambda own: own["fusion"]["settings"].update(width="wide"),
    "an unknown argument": lambda own: own["fusion"]["settings"].update(nonsense=1),
    "an unknown fusion": lambda own: own["fusion"].update(kind="os.system"),
    "an unknown encoder": lambda own: own["encoders"].update(sound=own["encoders"]["labs"]),
    "a misplaced encoder": lambda own: own["encoders"].update(labs=own["encoders"]["static"]),
    "no encoder": lambda own: own["encoders"].clear(),
    "no reader": lambda own: own["encoders"]["labs"].pop("reader"),
    "a shorter vocabulary": lambda own: own["encoders"]["labs"]["reader"].update(codes_=["lactate"]),
    "an unknown kind of outcome": lambda own: own["outcomes"]["died"].update(kind="fate"),
    "a lost outcome": lambda own: own["outcomes"].pop("died"),
    "no thresholds": lambda own: own.pop("thresholds"),
    "thresholds that are a number": lambda own: own.update(thresholds=3),
    "no history": lambda own: own.pop("history"),
    "a history that is text": lambda own: own.update(history="long"),
    "a history of the future": lambda own: own.update(history=-48),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_a_description_that_was_edited_is_refused(folder, edit):
    description = json.loads((folder / "model.json").read_text())
    edit(description)
    (folder / "model.json").write_text(json.dumps(description))
    reseal(folder)
    own = "expected heads that divide|which belongs to static=|The model has no encoder|The outcome kind is 'fate'"
    refuses(folder, f"Take the folder from a backup|{own}")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3"])
def test_a_description_that_is_none_is_refused(folder, content):
    (folder / "model.json").write_text(content)
    reseal(folder)
    refuses(folder, "Take the folder from a backup")


# Saving replaces an older model, and nothing else


def write(folder: Path, content: str = "new", kind: str = "model") -> None:
    with new_folder(folder, kind) as scratch:
        (scratch / "a.json").write_text(content)


def test_an_older_one_is_replaced_and_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "made").mkdir()
    for content in ("old", "new"):
        write(tmp_path / "made", content)
        assert (checked_folder(tmp_path / "made", "model") / "a.json").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_parents_are_made_where_they_lack(tmp_path):
    write(tmp_path / "a" / "b" / "made")
    checked_folder(tmp_path / "a" / "b" / "made", "model")


def test_what_is_no_older_model_is_left_alone(tmp_path):
    def foreign(folder: Path) -> None:
        folder.mkdir()
        (folder / "thesis.tex").write_text("x")

    def of_another_program(folder: Path) -> None:
        foreign(folder)
        (folder / "manifest.json").write_text('{"name": "my web page", "icons": []}')

    makers = {
        "file": lambda path: path.write_text("x"),
        "foreign": foreign,
        "of another program": of_another_program,
        "checkpoint": lambda path: write(path, kind="checkpoint"),
    }
    for name, make in makers.items():
        make(tmp_path / name)
        before = contents(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match="exists and is no model of chiasm"):
            write(tmp_path / name)
        after = contents(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).read_bytes()
        assert after == before


def test_a_file_that_somebody_put_beside_the_model_is_not_lost(tmp_path):
    write(tmp_path / "made", "old")
    (tmp_path / "made" / "results.csv").write_text("weeks of work")
    with pytest.raises(InputError, match=r"holds results.csv, which is not part of the model and would be lost"):
        write(tmp_path / "made")
    assert (tmp_path / "made" / "results.csv").read_text() == "weeks of work"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"made cannot be written \((NotADirectory|FileExists)Error\)"):
        write(tmp_path / "file" / "made")


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a.json").read_text() == "new"


def test_a_failure_while_saving_leaves_the_old_one_intact(tmp_path):
    write(tmp_path / "made", "old")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "made", "model") as scratch:
        (scratch / "a.json").write_bytes(b"half" * (1 // 0))
    assert (checked_folder(tmp_path / "made", "model") / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_failure_while_replacing_leaves_the_old_one_intact(tmp_path, monkeypatch):
    write(tmp_path / "made", "old")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if target.name == "made" and "retired" not in path.name:
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path / "made")
    assert (checked_folder(tmp_path / "made", "model") / "a.json").read_text() == "old"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "_GRACE", 0.0)
    write(tmp_path / "made", "old")
    (tmp_path / "made").rename(tmp_path / ".made-retired")
    assert (checked_folder(tmp_path / "made", "model") / "a.json").read_text() == "old"
    # Nor does one that is followed by a save that fails.
    (tmp_path / "made").rename(tmp_path / ".made-retired")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "made", "model"):
        1 / 0  # noqa: B018
    assert (checked_folder(tmp_path / "made", "model") / "a.json").read_text() == "old"


# Read while it is replaced


def test_who_reads_in_the_moment_of_replacing_does_not_stop_who_writes(tmp_path, monkeypatch):
    made = tmp_path / "made"
    write(made, "old")
    rename, moved = Path.rename, []

    def slow(path: Path, target: Path) -> Path:
        if path.name.startswith(".made-") and "retired" not in path.name and not moved:
            moved.append(path)
            # As a reader does that finds no folder.
            artifact.restore_retired(made)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", slow)
    write(made, "new")
    assert moved
    assert (checked_folder(made, "model") / "a.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_who_finds_no_folder_waits_for_the_new_one_to_arrive(tmp_path, monkeypatch):
    made = tmp_path / "made"
    write(made, "old")
    write(tmp_path / "arriving", "new")
    made.rename(tmp_path / ".made-retired")
    monkeypatch.setattr(artifact.time, "sleep", lambda _: (tmp_path / "arriving").rename(made))
    assert (checked_folder(made, "model") / "a.json").read_text() == "new"


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again_whole(tmp_path):
    made = tmp_path / "made"
    write(made, "old")
    seen: list[str] = []

    def read(folder: Path) -> str:
        seen.append((folder / "a.json").read_text())
        if len(seen) < 3:
            write(made, f"new {len(seen)}")
        if len(seen) == 2:
            raise FileNotFoundError(folder / "b.json")
        return seen[-1]

    assert read_folder(made, "model", read) == "new 2"
    assert seen == ["old", "new 1", "new 2"]
    # What is damaged and stays so is told at once.
    (made / "a.json").write_text("changed")
    with pytest.raises(InputError, match="is not the file that was saved"):
        read_folder(made, "model", lambda _: pytest.fail("read"))


# Files that are whole


def test_a_file_that_cannot_be_written_leaves_the_old_one_whole(tmp_path):
    path = tmp_path / "report.html"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_file_is_written_into_folders_that_are_made_for_it_and_behind_a_link(tmp_path):
    write_whole(tmp_path / "a" / "real.csv", "old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "a" / "real.csv")
    write_whole(tmp_path / "link.csv", "new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "a" / "real.csv").read_text() == "new"


def test_what_a_kill_left_behind_long_ago_is_cleared_and_what_another_writes_now_stays(tmp_path):
    old, new = tmp_path / ".made-0123abcd", tmp_path / ".made-89ef4567"
    for left in (old, new, tmp_path / ".made-notes"):
        left.mkdir()
        os.utime(left, (0, 0))
    os.utime(new)
    write(tmp_path / "made")
    assert {path.name for path in tmp_path.iterdir()} == {"made", new.name, ".made-notes"}

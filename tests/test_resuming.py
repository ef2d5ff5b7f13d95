"""No run is lost: one that was stopped or killed goes on to the weights of one that was not."""

import fcntl
import hashlib
import json
import math
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from chiasm.datasets import InputError
from chiasm.fusion import ConcatenationFusion, CrossAttentionFusion, FusionModel, fit, predict, stopping, training
from chiasm.fusion.artifact import checked_folder, new_folder
from chiasm.fusion.checkpoint import read_history
from chiasm.fusion.stopping import Stopped, locked, stopping_in_order

from .trained import SHORT, same, weights

# It goes on where it was stopped


@contextmanager
def stopped(monkeypatch, *, after: int):
    """Ctrl-C when the epoch after so many is validated."""
    real, calls = training.validation_loss, []

    def stop(*given):
        calls.append(1)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(training, "validation_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        yield
    monkeypatch.setattr(training, "validation_loss", real)


@pytest.mark.parametrize("stopped_after", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"average": 0.9}], ids=["adamw", "sgd", "average"])
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(
    halves, plan, monkeypatch, tmp_path, stopped_after, settings
):
    settings = {"epochs": 4, "batch_size": 3, "seed": 5} | SHORT | settings
    whole = plan()
    expected = fit(whole, *halves, out=tmp_path / "whole", **settings)

    with stopped(monkeypatch, after=stopped_after):
        fit(plan(), *halves, out=tmp_path / "run", **settings)
    resumed = plan()
    history = fit(resumed, *halves, out=tmp_path / "run", **settings)

    assert same(weights(resumed), weights(whole))
    assert same(weights(FusionModel.load(tmp_path / "run" / "model")), weights(whole))
    assert resumed.thresholds_ == whole.thresholds_
    assert history.best_epoch == expected.best_epoch
    keys = ("epoch", "train_loss", "valid_loss", "learning_rate")
    assert [[own[key] for key in keys] for own in history.epochs] == [
        [own[key] for key in keys] for own in expected.epochs
    ]


def test_a_run_with_images_and_notes_goes_on_too(halves, patients, small_model, monkeypatch, tmp_path):
    train = halves[0].keep(halves[0].has_input()[["images", "notes"]].any(axis=1), why="image or note")

    def run(folder: str) -> FusionModel:
        model = small_model(("image", "notes"), outcomes=patients.outcome_kinds)
        fit(model, train, halves[1], epochs=2, batch_size=4, out=tmp_path / folder, **SHORT)
        return model

    whole = run("whole")
    with stopped(monkeypatch, after=1):
        run("stopped")
    resumed = run("stopped")
    assert same(weights(resumed), weights(whole))
    assert predict(resumed, halves[1]).equals(predict(whole, halves[1]))


def test_a_finished_run_is_not_run_again(halves, plan, monkeypatch, tmp_path):
    first, again = plan(), plan()
    fit(first, *halves, epochs=2, out=tmp_path, **SHORT)
    monkeypatch.setattr(training, "update", None)
    history = fit(again, *halves, epochs=2, out=tmp_path, **SHORT)
    assert same(weights(first), weights(again))
    assert len(history.epochs) == 2


OTHERS = {
    "epochs": {"epochs": 3},
    "batch size": {"batch_size": 4},
    "learning rate": {"learning_rate": 1e-2},
    "optimizer": {"optimizer": "sgd"},
    "weight decay": {"weight_decay": 0.5},
    "warm-up": {"warmup": 0.5},
    "clipping": {"clip": 0.1},
    "average": {"average": 0.5},
    "patience": {"patience": 1},
    "what is kept": {"keep": "last"},
    "balancing": {"balanced": True},
    "precision": {"precision": "bf16"},
    "seed": {"seed": 1},
}


@pytest.fixture(scope="module")
def run_folder(halves, patients, small_model, tmp_path_factory):
    """The folder of a finished run of labs and static facts."""
    folder = tmp_path_factory.mktemp("run")
    model = small_model(("labs", "static"), outcomes=patients.outcome_kinds)
    fit(model, *halves, epochs=2, out=folder, **SHORT)
    return folder


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_other_settings_cannot_go_on_in_the_same_folder(halves, plan, run_folder, other):
    with pytest.raises(InputError, match="holds a run with other data or other settings"):
        fit(plan(), *halves, **{"epochs": 2, "out": run_folder} | SHORT | other)


def test_other_data_or_another_model_cannot_go_on_in_the_same_folder(halves, patients, small_model, plan, run_folder):
    train, valid = halves
    labs = train.labs.assign(value=train.labs["value"] + np.arange(len(train.labs)) % 3)
    others = [
        (plan(), train.keep(np.arange(len(train)) > 0, why="fewer"), valid),
        (plan(), train.with_tables("another value", labs=labs), valid),
        (plan(), train, valid.keep(np.arange(len(valid)) > 0, why="fewer")),
        (plan(), train, None),
        (plan(modality_dropout=0.5), train, valid),
        (plan(fusion=CrossAttentionFusion(16, depth=2, heads=4)), train, valid),
        (plan(fusion=ConcatenationFusion(16)), train, valid),
        (
            small_model(("static",), outcomes=patients.outcome_kinds),
            train.keep(train.has_input()["static"], why="s"),
            valid,
        ),
    ]
    for model, own, held_out in others:
        with pytest.raises(InputError, match="holds a run with other data or other settings"):
            fit(model, own, held_out, epochs=2, out=run_folder, **SHORT)


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run."""
    return max((folder / "checkpoints").iterdir())


def damage(checkpoint: Path) -> None:
    """Change one bit of its weights."""
    state = checkpoint / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)


def test_the_newest_whole_checkpoint_is_gone_on_from_and_the_damaged_one_is_told(halves, plan, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    damage(newest(folder))
    model = plan()
    history = fit(model, *halves, epochs=2, out=folder, **SHORT)
    told = "the checkpoint 00002-0000000 is damaged, and the run goes on from 00001-0000000 before it"
    assert history.warnings == (told,)
    assert same(weights(model), weights(FusionModel.load(run_folder / "model")))
    # It was written anew.
    assert fit(plan(), *halves, epochs=2, out=folder, **SHORT).warnings == ()


@contextmanager
def unreadable(monkeypatch, *names: str, error: OSError):
    """Checkpoints that the system gives an error for, whoever asks: root may read everything."""
    real = Path.open

    def opened(path, *given, **named):
        if path.parent.name in names:
            raise error
        return real(path, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", opened)
        yield


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_the_newest_checkpoint_that_can_be_read_is_gone_on_from(halves, plan, run_folder, monkeypatch, tmp_path, error):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    model = plan()
    with unreadable(monkeypatch, "00002-0000000", error=error):
        history = fit(model, *halves, epochs=2, out=folder, **SHORT)
    told = f"the checkpoint 00002-0000000 cannot be read ({type(error).__name__}), and the run goes on from 00001-"
    assert [warning[: len(told)] for warning in history.warnings] == [told]
    assert same(weights(model), weights(FusionModel.load(run_folder / "model")))
    with (
        unreadable(monkeypatch, "00001-0000000", "00002-0000000", error=error),
        pytest.raises(InputError, match=r"the checkpoint 00002-0000000 cannot be read .* Give the right to read it"),
    ):
        fit(plan(), *halves, epochs=2, out=folder, **SHORT)


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(halves, plan, run_folder, monkeypatch, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    real = Path.iterdir

    def iterdir(path):
        if path.name == "checkpoints":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(PermissionError):
        fit(plan(), *halves, epochs=2, out=folder, **SHORT)


def test_a_checkpoint_that_cannot_be_removed_is_named(halves, plan, run_folder, monkeypatch, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    damage(newest(folder))
    real = shutil.rmtree

    def rmtree(path, **named):
        if Path(path).name == "00002-0000000":
            raise PermissionError(13, "Permission denied", str(path))
        real(path, **named)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(InputError, match=r"00002-0000000 cannot be removed \(PermissionError\)\. Remove it"):
        fit(plan(), *halves, epochs=2, out=folder, **SHORT)


def test_where_all_checkpoints_are_damaged_nothing_is_begun_anew(halves, plan, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    for checkpoint in (folder / "checkpoints").iterdir():
        damage(checkpoint)
    with pytest.raises(InputError, match="is not the file that was saved"):
        fit(plan(), *halves, epochs=2, out=folder, **SHORT)


def test_checkpoints_without_manifests_are_refused_before_the_best_model_is_replaced(
    halves, plan, run_folder, tmp_path
):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    for checkpoint in (folder / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()
    before = (folder / "model" / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=r"is no checkpoint: it has no manifest\.json"):
        fit(plan(), *halves, epochs=2, out=folder, **SHORT)
    assert (folder / "model" / "manifest.json").read_bytes() == before


def rewritten(checkpoint: Path, **changes: object) -> None:
    """A whole checkpoint with other numbers."""
    told = json.loads((checkpoint / "run.json").read_text())
    with new_folder(checkpoint, "checkpoint") as scratch:
        shutil.copy(checkpoint / "state.safetensors", scratch)
        (scratch / "run.json").write_text(json.dumps(told | changes))


def test_a_checkpoint_that_another_version_wrote_is_refused(halves, plan, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    groups = json.loads((newest(folder) / "run.json").read_text())["groups"]
    rewritten(newest(folder), groups=groups[:1])
    with pytest.raises(InputError, match=r"this version of chiasm cannot go on from it\. Go on with the version"):
        fit(plan(), *halves, epochs=2, out=folder, **SHORT)


def test_a_checkpoint_of_a_newer_schema_is_refused_and_not_passed_over(halves, plan, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    manifest = newest(folder) / "manifest.json"
    told = json.loads(manifest.read_text()) | {"schema": 99}
    del told["sha256"]
    manifest.write_text(json.dumps(told))
    with pytest.raises(InputError, match="has the schema 99, and this version of chiasm reads 1"):
        checked_folder(manifest.parent, "checkpoint")
    # A newer version may say more in its manifest, which it seals.
    told["more"] = 1
    told["sha256"] = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps(told))
    with pytest.raises(InputError, match="has the schema 99, and this version of chiasm reads 1"):
        fit(plan(), *halves, epochs=2, out=folder, **SHORT)


def test_another_number_of_processes_goes_on_and_says_what_that_means(halves, plan, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    rewritten(newest(folder), processes=2)
    history = fit(plan(), *halves, epochs=2, out=folder, **SHORT)
    assert history.warnings == (
        "going on with 1 process where 2 processes stopped: the same training, but not to the last bit",
    )


def test_a_run_folder_holds_a_readable_history_a_model_and_checkpoints_without_pickles(run_folder):
    lines = (run_folder / "history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["epoch"] for record in records] == [1, 2]
    assert set(records[0]) == {"epoch", "train_loss", "valid_loss", "learning_rate", "seconds"}
    files = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*") if path.is_file()}
    written = ("manifest.json", "run.json", "state.safetensors")
    assert files == {
        "history.jsonl",
        *(f"model/{name}" for name in ("manifest.json", "model.json", "weights.safetensors")),
        *(f"checkpoints/0000{epoch}-0000000/{name}" for name in written for epoch in (1, 2)),
    }
    json.loads((newest(run_folder) / "run.json").read_text())


# In the middle of an epoch too


@contextmanager
def killed(monkeypatch, *, before: int, error: type[BaseException] = KeyboardInterrupt):
    """Nothing more happens from one update on, counted from 0."""
    real, calls = training.update, []

    def update(*given):
        calls.append(1)
        if len(calls) == before + 1:
            raise error
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(training, "update", update)
        with pytest.raises(error):
            yield


EPOCHS = {"epochs": 2, "batch_size": 3, "average": 0.9, "progress": False}
"""Of three updates each, with the training patients at hand."""


@pytest.fixture(scope="module")
def uninterrupted(halves, patients, small_model):
    """A model of all modalities, trained without a stop."""
    model = small_model(outcomes=patients.outcome_kinds)
    return model, fit(model, *halves, **EPOCHS)


@pytest.mark.parametrize("before", range(1, 6))
def test_a_run_that_is_killed_in_an_epoch_ends_with_the_weights_of_one_that_was_not(
    halves, patients, small_model, uninterrupted, monkeypatch, tmp_path, before
):
    settings = EPOCHS | {"out": tmp_path, "save_every": 0}
    with killed(monkeypatch, before=before):
        fit(small_model(outcomes=patients.outcome_kinds), *halves, **settings)
    resumed = small_model(outcomes=patients.outcome_kinds)
    # What was done is not done again.
    done = []
    real = training.update
    monkeypatch.setattr(training, "update", lambda *given: done.append(1) or real(*given))
    history = fit(resumed, *halves, **settings)
    whole, expected = uninterrupted
    assert len(done) == 2 * math.ceil(len(halves[0]) / 3) - before
    assert same(weights(resumed), weights(whole))
    assert [own["train_loss"] for own in history.epochs] == [own["train_loss"] for own in expected.epochs]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_run_that_is_asked_to_stop_ends_its_update_saves_and_goes_on_later(
    halves, patients, small_model, uninterrupted, monkeypatch, tmp_path, number
):
    real, calls = training.update, []

    def update(*given):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return real(*given)

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(training, "update", update)
        with pytest.raises(Stopped, match=f"stopped by {number.name}") as stopped:
            fit(small_model(outcomes=patients.outcome_kinds), *halves, out=tmp_path, **EPOCHS)
    assert stopped.value.number == number
    assert len(calls) == 2
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert newest(tmp_path).name == "00000-0000002"

    resumed = small_model(outcomes=patients.outcome_kinds)
    fit(resumed, *halves, out=tmp_path, **EPOCHS)
    assert same(weights(resumed), weights(uninterrupted[0]))


def test_a_second_ctrl_c_interrupts_at_once_but_not_its_echo(monkeypatch):
    clock = iter([0.0, 0.0, 1.0, 3.0])
    monkeypatch.setattr(stopping.time, "monotonic", lambda: next(clock))
    with stopping_in_order() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        # As a launcher passes it on.
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_newest_checkpoints_are_kept(halves, plan, tmp_path):
    fit(plan(), *halves, epochs=3, batch_size=3, out=tmp_path, save_every=0, checkpoints=3, **SHORT)
    kept = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert kept == ["00002-0000002", "00002-0000003", "00003-0000000"]


def test_what_a_kill_left_half_written_is_cleared(halves, plan, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    for scratch in (folder / ".model-0123abcd", folder / "checkpoints" / ".00002-0000001-0123abcd"):
        scratch.mkdir()
    for name in ("run.json", "history.jsonl", "skipped.jsonl"):
        (folder / f".0123abcd-{name}").write_text("{")
    fit(plan(), *halves, epochs=2, out=folder, **SHORT)
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize("what", ["empty", "damaged", "another's"])
def test_a_model_that_is_not_the_runs_own_best_is_written_again(halves, plan, run_folder, tmp_path, what):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    shutil.rmtree(folder / "model")
    if what == "another's":
        fit(plan(), *halves, epochs=1, seed=1, out=tmp_path / "other", **SHORT)
        shutil.copytree(tmp_path / "other" / "model", folder / "model")
    else:
        (folder / "model").mkdir()
    if what == "damaged":
        shutil.copytree(run_folder / "model", folder / "model", dirs_exist_ok=True)
        (folder / "model" / "weights.safetensors").write_bytes(b"")
    fit(plan(), *halves, epochs=2, out=folder, **SHORT)
    assert (folder / "model" / "weights.safetensors").read_bytes() == (
        run_folder / "model" / "weights.safetensors"
    ).read_bytes()
    # What is no model of chiasm is not written over.
    shutil.rmtree(folder / "model")
    (folder / "model").write_text("x")
    with pytest.raises(InputError, match="model exists and is no model of chiasm"):
        fit(plan(), *halves, epochs=2, out=folder, **SHORT)


def test_a_folder_beside_the_checkpoints_is_left_alone(halves, plan, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "checkpoints" / "2024-thesis").mkdir()
    damage(newest(folder).with_name("00002-0000000"))
    assert len(fit(plan(), *halves, epochs=2, out=folder, **SHORT).warnings) == 1
    assert (folder / "checkpoints" / "2024-thesis").is_dir()


def test_what_was_moved_away_from_a_finished_run_is_written_again(halves, plan, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    shutil.rmtree(folder / "model")
    (folder / "history.jsonl").unlink()
    fit(plan(), *halves, epochs=2, out=folder, **SHORT)
    again, before = (FusionModel.load(own / "model") for own in (folder, run_folder))
    assert same(weights(again), weights(before))
    assert again.thresholds_ == before.thresholds_
    assert (folder / "history.jsonl").read_bytes() == (run_folder / "history.jsonl").read_bytes()


def test_a_validation_loss_that_is_not_finite_is_null_in_the_files_and_read_as_no_number(
    halves, plan, monkeypatch, tmp_path
):
    script = iter([2.0, math.nan, math.inf, 1.0])
    monkeypatch.setattr(training, "validation_loss", lambda *_: next(script))
    for epochs in (3, 4):
        with killed(monkeypatch, before=3) if epochs == 3 else nullcontext():
            history = fit(plan(), *halves, epochs=4, batch_size=100, out=tmp_path, **SHORT)
    for text in ((tmp_path / "history.jsonl").read_text(), (newest(tmp_path) / "run.json").read_text()):
        assert text.count('"valid_loss": null') == 2
        json.loads(text.splitlines()[0], parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    for epochs in (history.epochs, read_history(tmp_path)):
        assert [math.isfinite(record["valid_loss"]) for record in epochs] == [True, False, False, True]
    assert history.best_epoch == 4


def test_two_runs_cannot_write_into_one_folder(halves, plan, tmp_path):
    (tmp_path / "run").mkdir()
    other = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="Another run writes into"):
        fit(plan(), *halves, epochs=1, out=tmp_path / "run", **SHORT)
    os.close(other)
    fit(plan(), *halves, epochs=1, out=tmp_path / "run", **SHORT)


def test_a_folder_is_locked_under_whatever_name_and_once_for_all_within(halves, plan, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with locked(tmp_path / "link"), locked(tmp_path / "run"):
        fit(plan(), *halves, epochs=1, out=tmp_path / "run", **SHORT)
    # Within a block, and not within a program: another thread is another run.
    with locked(tmp_path / "link"), ThreadPoolExecutor(1) as other:
        refused = other.submit(lambda: locked(tmp_path / "run").__enter__()).exception()
    assert "Another run writes into" in str(refused)


def test_a_folder_that_was_made_to_be_locked_goes_where_nothing_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "new" / "run"):
        with locked(folder):
            assert folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with locked(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "run.json").write_text("{}")
    assert (tmp_path / "new" / "run" / "run.json").is_file()


def test_a_folder_that_goes_while_it_is_locked_is_not_taken_for_one_of_its_own(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(stopping.fcntl, "flock", lambda *_: folder.rmdir())
    with pytest.raises(InputError, match="Another run writes into"), locked(folder):
        pass


def test_a_file_is_no_folder_for_a_run(halves, plan, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match=r"run cannot be written \(FileExistsError\)"):
        fit(plan(), *halves, epochs=1, out=tmp_path / "run", **SHORT)


def test_a_folder_that_becomes_read_only_ends_the_run_and_the_last_checkpoint_stays(
    halves, plan, monkeypatch, tmp_path
):
    settings = {"epochs": 2, "batch_size": 3, "out": tmp_path, "save_every": 0} | SHORT
    whole = plan()
    fit(whole, *halves, **settings | {"out": tmp_path / "whole"})
    real, made = Path.mkdir, []

    def mkdir(path, *given, **named):
        made.extend([path] if path.parent.name == "checkpoints" else [])
        if len(made) == 3:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", mkdir)
        with pytest.raises(InputError, match=r"cannot be written \(PermissionError\)"):
            fit(plan(), *halves, **settings)
    resumed = plan()
    fit(resumed, *halves, **settings)
    assert same(weights(resumed), weights(whole))

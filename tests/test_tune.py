"""Searches: what is tried, on whom, what is kept when a search is stopped, and the recipe that comes of it."""

import json
import multiprocessing
import os
import pickle
import signal
import sqlite3
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.recipes import search, search_workers, studies, variants
from chiasm.recipes.ranges import searched_settings
from chiasm.recipes.recipe import load_recipe
from chiasm.recipes.search import Search, development
from chiasm.recipes.storages import file_url, open_storage
from chiasm.recipes.studies import Study
from chiasm.recipes.tune import tune_recipe

from .command import chiasm

RECIPE = '''"""Who dies, from two facts: a recipe that trains in a tenth of a second."""

from dataclasses import dataclass

from chiasm.datasets import Cohort
from chiasm.encoders import StaticEncoder
from chiasm.fusion import ConcatenationFusion, FusionModel
from chiasm.recipes.ranges import Choice, Range
from chiasm.recipes.recipe import Card

CARD = Card(outcome="died (binary)", data="two tables", cost="a second", score="none")


@dataclass(frozen=True)
class Settings:
    """Settings."""

    history: float | None = 24
    width: int = 8
    learning_rate: float = 1e-2
    note: str = ""
    seed: int = 0


SEARCHED = {"width": Choice(4, 8, 15, 16), "learning_rate": Range(1e-4, 1.0, log=True)}


def read(data, settings):
    return Cohort.read(data, history=settings.history)


def divide(cohort, settings):
    return cohort.split((0.6, 0.15, 0.25), seed=settings.seed)


def model(cohort, settings):
    width = settings.width
    return FusionModel(static=StaticEncoder(width), fusion=ConcatenationFusion(width), outcomes=cohort.outcome_kinds)


def training(settings):
    return {"epochs": 1, "batch_size": 16, "learning_rate": settings.learning_rate, "seed": settings.seed}
'''
FEW = ("--folds", 2)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "own.py"
    path.write_text(RECIPE)
    return path


def write_tables(folder, **changes: object):
    """Two tables of 80 patients, whose age and sex tell something of the outcome."""
    draw = np.random.default_rng(3)
    ids = np.arange(1, 81)
    died = draw.integers(0, 2, 80)
    outcomes = pd.DataFrame({"subject_id": ids, "prediction_time": "2031-05-17 08:00", "died": died})
    facts = pd.DataFrame({"subject_id": ids, "age": 60 + 6 * died + draw.normal(0, 8, 80)})
    facts["sex"] = np.where(draw.random(80) < 0.5 + 0.2 * died, "f", "m")
    folder.mkdir(parents=True, exist_ok=True)
    outcomes.assign(**changes).to_csv(folder / "outcomes.csv", index=False)
    facts.to_csv(folder / "static.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("data") / "tables")


def one_line(capsys) -> str:
    """What was written to standard error: one line, without a traceback."""
    told = capsys.readouterr().err.strip()
    assert told.startswith("chiasm: ")
    assert "\n" not in told
    return told


def trials(folder) -> pd.DataFrame:
    """The trials that a search has written, but for how long they took."""
    return pd.read_csv(folder / "trials.csv").drop(columns="seconds")


@pytest.fixture(scope="module", autouse=True)
def few_trials_and_resamples():
    """Fewer trials before draws depend on them, so that few trials show what those draws do; and fewer resamples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "RANDOM", 3)
        patch.setattr(search, "RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def searched(recipe, tables, tmp_path_factory):
    """The folder of a search of seven trials."""
    folder = tmp_path_factory.mktemp("searches") / "tuned"
    assert chiasm("tune", recipe, "--data", tables, "--out", folder, "--trials", 7, *FEW) == 0
    return folder


# What comes of it


def test_a_search_tries_the_recipes_own_settings_first_and_keeps_to_the_ranges(searched):
    table = trials(searched)
    assert list(table["trial"]) == list(range(1, 8))
    assert table.loc[0, ["width", "learning_rate"]].to_list() == [8, 0.01]
    assert set(table["width"]) <= {4, 8, 15, 16}
    assert table["learning_rate"].between(1e-4, 1).all()
    assert table["learning_rate"].nunique() == 7
    assert set(table["end"]) == {"done", "pruned"}
    # Those that were given up were so before the last fold.
    assert (table["folds"] == table["end"].map({"done": 2, "pruned": 1})).all()
    best = table[table["end"] == "done"].sort_values("AUROC").iloc[-1]
    assert best["low"] <= best["AUROC"] <= best["high"]


def test_the_score_is_the_mean_of_what_the_recipe_reaches_on_folds_of_training_and_validation_patients(
    searched, recipe, tables
):
    from chiasm.fusion import evaluate, fit, predict

    own = load_recipe(str(recipe))
    cohort = own.read(tables)
    train, valid, _ = own.divide(cohort)
    known = cohort.outcomes["subject_id"].isin([*train.outcomes["subject_id"], *valid.outcomes["subject_id"]])
    areas = []
    for rest, fold in cohort.keep(known.to_numpy(), why="not held out").folds(2, seed=0):
        model = own.model(rest)
        fit(model, rest, fold, **own.training(), progress=False)
        areas.append(evaluate(predict(model, fold), fold, resamples=0).value("died", "AUROC"))
    assert trials(searched).loc[0, "AUROC"] == pytest.approx(np.mean(areas), abs=1e-12)


def test_the_best_settings_are_a_recipe_that_trains_and_may_be_searched_again(searched, tables, tmp_path, capsys):
    done = trials(searched)
    best = done[done["end"] == "done"].sort_values(["AUROC", "trial"], ascending=[False, True]).iloc[0]
    assert chiasm("train", searched / "best.py", "--data", tables, "--out", tmp_path / "run") == 0
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["width"] == best["width"]
    assert settings["learning_rate"] == best["learning_rate"]
    assert settings["history"] == 24
    # A recipe of a recipe, with a setting that was given to the search.
    again = ("--out", tmp_path / "again", "--trials", 1, "--set", "width=8", "--set", 'note=it\'s "quoted"')
    assert chiasm("tune", searched / "best.py", "--data", tables, *again, *FEW) == 0
    capsys.readouterr()
    settings = load_recipe(str(tmp_path / "again" / "best.py")).settings
    assert settings.note == 'it\'s "quoted"'
    assert (settings.width, settings.learning_rate) == (8, best["learning_rate"])


def test_a_shipped_recipe_is_the_beginning_of_the_best_one(tmp_path):
    from chiasm.recipes.best_recipe import Trial, recipe_text, unwritten

    own = load_recipe("icu-mortality", ["train_sets=a,c", "tuning=0.2"])
    plan = Search(own, searched_settings(own), SimpleNamespace(outcome_kinds={"died": "binary"}), 3, 5)
    best = Trial(3, "done", 0.9, 0.8, 0.95, 3, {"width": 128, "dropout": 0.25}, 1.0, "")
    first = Trial(1, "done", 0.8, np.nan, np.nan, 3, {"width": 64, "dropout": 0.4}, 1.0, "")
    path = tmp_path / "best.py"
    path.write_text(recipe_text(plan, best, trials=5, first=first, path=path))
    assert "0.900 (0.800–0.950). Trial 1, of the recipe as it was: 0.800." in path.read_text()
    settings = load_recipe(str(path)).settings
    assert (settings.train_sets, settings.tuning, settings.width, settings.dropout) == (("a", "c"), 0.2, 128, 0.25)
    assert settings.epochs == own.settings.epochs
    assert unwritten(plan) == []


# Whom it looks at


def test_held_out_patients_change_nothing(recipe, tables, searched, tmp_path, capsys):
    own = load_recipe(str(recipe))
    held_out = own.divide(own.read(tables))[2].outcomes["subject_id"]
    other = write_tables(tmp_path / "other")
    for name, column, value in (("outcomes", "died", 1), ("static", "age", 999), ("static", "sex", "x")):
        table = pd.read_csv(other / f"{name}.csv").astype(object)
        table.loc[table["subject_id"].isin(held_out), column] = value
        table.to_csv(other / f"{name}.csv", index=False)
    assert chiasm("tune", recipe, "--data", other, "--out", tmp_path / "tuned", "--trials", 4, *FEW) == 0
    pd.testing.assert_frame_equal(trials(tmp_path / "tuned"), trials(searched).head(4), check_dtype=False)
    # As far as the search knows, the data are the same.
    assert chiasm("tune", recipe, "--data", tables, "--out", tmp_path / "tuned", "--trials", 4, *FEW) == 0
    assert "4 trials are done, and it goes on" in capsys.readouterr().out


def test_what_decides_who_is_in_the_cohort_is_not_searched(recipe, tables, tmp_path, capsys):
    command = ("tune", recipe, "--data", tables, "--out", tmp_path / "tuned", "--range", "history=12:48")
    assert chiasm(*command) == 2
    assert "history decides who is in the cohort or what is read of them" in one_line(capsys)
    assert not (tmp_path / "tuned").exists()


def test_a_division_into_other_samples_than_were_read_is_refused(tables, tmp_path):
    path = tmp_path / "moved.py"
    moved = "Cohort(outcomes=cohort.outcomes.assign(prediction_time=pd.Timestamp('2031-06-01')), static=cohort.static)"
    path.write_text(RECIPE.replace("return cohort.split", f"import pandas as pd\n    return {moved}.split"))
    own = load_recipe(str(path))
    with pytest.raises(InputError, match="divides 60 samples into training and validation, of which its read gives 0"):
        development(own, tables, searched_settings(own))


def test_without_a_binary_outcome_the_score_is_the_loss_and_lower_is_better(recipe, tmp_path):
    tables = write_tables(tmp_path / "days", died=np.random.default_rng(0).gamma(2, 3, 80).round(2))
    assert chiasm("tune", recipe, "--data", tables, "--out", tmp_path / "tuned", "--trials", 2, *FEW) == 0
    table = trials(tmp_path / "tuned")
    best = table[table["end"] == "done"].sort_values("loss").iloc[0]
    assert f"of trial {best['trial']}, the best of 2" in (tmp_path / "tuned" / "best.py").read_text()


def test_a_fold_with_outcomes_of_one_kind_is_refused(recipe, tmp_path, capsys):
    # Where an outcome is unknown, folds are not balanced by it.
    died = np.arange(80).astype(object) % 2
    died[:4] = ""
    own = load_recipe(str(recipe))
    cohort = development(own, write_tables(tmp_path / "some", died=died), searched_settings(own))
    first = next(cohort.folds(2, seed=0))[1].outcomes["subject_id"].astype(int)
    died[first[first > 4] - 1] = 0
    tables = write_tables(tmp_path / "none", died=died)
    assert chiasm("tune", recipe, "--data", tables, "--out", tmp_path / "tuned", "--trials", 1, *FEW) == 2
    assert "The 30 patients of a fold have no outcome of both kinds, so it has no AUROC" in one_line(capsys)


def test_a_fold_in_which_an_outcome_is_known_of_nobody_is_scored_by_the_others(monkeypatch):
    number = np.arange(8)
    keys = {"subject_id": number, "prediction_time": pd.Timestamp("2031-05-17")}
    fold = Cohort(
        pd.DataFrame(keys | {"died": number % 2, "rare": np.nan, "days": np.nan}),
        outcome_kinds={"died": "binary", "rare": "binary", "days": "continuous"},
    )
    own = pd.DataFrame(keys | {"risk": 0.1 * number, "status": "ok"})
    risks = pd.concat([own.assign(outcome=name) for name in ("died", "rare", "days")])
    monkeypatch.setattr(variants, "unrefused_risks", lambda *_: risks)
    score, labelled = search._auroc(None, fold, ["died", "rare"])
    # By hand: of 16 pairs, 4 + 3 + 2 + 1 are in order.
    assert score == pytest.approx(10 / 16)
    assert [one.outcome for one in labelled] == ["died"]
    with pytest.raises(InputError, match="have no outcome of both kinds"):
        search._auroc(None, fold, ["rare"])


def test_a_recipe_scored_by_cross_validation_is_told_that_its_patients_are_searched_on(tables, tmp_path, capsys):
    path = tmp_path / "validated.py"
    more = 'VARIANTS = {"all": {}}\n\n\ndef sources(data, cohort):\n    return {}\n'
    path.write_text(RECIPE.replace("    seed:", "    folds: int = 2\n    repeats: int = 1\n    seed:") + more)
    assert chiasm("tune", path, "--data", tables, "--out", tmp_path / "tuned", "--trials", 1, *FEW) == 0
    assert "with the settings found that score will be too good" in capsys.readouterr().out
    assert load_recipe(str(tmp_path / "tuned" / "best.py")).is_cross_validated


def test_a_setting_that_no_recipe_file_can_hold_is_named_to_be_given_again(tables, tmp_path, capsys):
    path = tmp_path / "own.py"
    held = RECIPE.replace('    note: str = ""', '    note: Path = Path(".")')
    path.write_text(held.replace("import dataclass\n", "import dataclass\nfrom pathlib import Path\n"))
    out = tmp_path / "tuned"
    assert chiasm("tune", path, "--data", tables, "--out", out, "--trials", 1, "--set", "note=/a/b", *FEW) == 0
    assert "--out RUN --set note=..." in capsys.readouterr().out
    assert "note" not in (out / "best.py").read_text()


# Stopping and going on


def test_a_stopped_search_goes_on_to_what_it_would_have_been(recipe, tables, searched, tmp_path, capsys, monkeypatch):
    out = tmp_path / "tuned"
    command = ("tune", recipe, "--data", tables, "--out", out, "--trials", 7, *FEW)
    scored = search._fold_scores
    begun = []

    def stopped(*arguments):
        begun.append(arguments)
        for number, score in enumerate(scored(*arguments)):
            if len(begun) == 4 and number == 1:
                raise KeyboardInterrupt
            yield score

    monkeypatch.setattr(search, "_fold_scores", stopped)
    assert chiasm(*command) == 130
    assert "chiasm tune its finished trials" in one_line(capsys)
    assert list(trials(out)["end"]) == ["done"] * 3
    assert chiasm(*command) == 0
    table = trials(out)
    assert list(table["end"]).count("stopped") == 1
    kept = table[table["end"] != "stopped"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, trials(searched), check_dtype=False)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_is_killed_leaves_its_trial_to_the_others(recipe, tables, tmp_path, monkeypatch):
    monkeypatch.setattr(search_workers, "PAUSE_S", 0.05)
    # Starting them anew imports all of torch in each.
    monkeypatch.setattr(search_workers, "START", "fork")
    said, killed = [], []

    def say(line: object) -> None:
        said.append(str(line))
        if "trial" in str(line) and not killed and "AUROC" in str(line):
            killed.append(multiprocessing.active_children()[0])
            os.kill(killed[0].pid, signal.SIGKILL)

    tune_recipe(str(recipe), tables, tmp_path / "tuned", trials=6, folds=2, jobs=2, say=say)
    assert killed
    table = trials(tmp_path / "tuned")
    finished = table[table["end"].isin(["done", "pruned", "untrainable"])]
    assert sorted(finished["trial"]) == list(range(1, 7))
    assert list(table["end"]).count("stopped") <= 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_where_all_processes_are_killed_or_one_finds_bad_input_the_search_says_so(
    recipe, tables, tmp_path, monkeypatch
):
    monkeypatch.setattr(search_workers, "PAUSE_S", 0.05)
    monkeypatch.setattr(search_workers, "START", "fork")

    def kill(line: object) -> None:
        if "AUROC" in str(line) and "trial" in str(line):
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)

    settings = {"folds": 2, "jobs": 2, "trials": 50}
    with pytest.raises(InputError, match=r"2 of 2 processes ended before the search did.* Give fewer --jobs"):
        tune_recipe(str(recipe), tables, tmp_path / "killed", **settings, say=kill)
    wild = ["learning_rate=1e29:1e30"]
    with pytest.raises(InputError, match="not finite"):
        tune_recipe(str(recipe), tables, tmp_path / "wild", **settings, ranges=wild, say=kill)


def test_a_search_travels_to_another_process(recipe, tables):
    own = load_recipe(str(recipe), ["note=x"])
    searched = searched_settings(own)
    sent = Search(own, searched, development(own, tables, searched), 2, 5)
    got = pickle.loads(pickle.dumps(sent))
    assert got.recipe.settings.note == "x"
    assert got.searched == searched
    assert got.asked() == sent.asked()


def test_other_data_settings_ranges_or_folds_are_refused(recipe, tables, searched, tmp_path, capsys):
    before = (searched / "trials.csv").read_bytes()
    other = write_tables(tmp_path / "other", died=np.arange(80) % 2)
    changed = tmp_path / "own.py"
    changed.write_text(RECIPE + "# changed\n")
    for named, part in (
        ((recipe, "--data", other), "data"),
        ((recipe, "--data", tables, "--set", "note=x"), "settings"),
        ((recipe, "--data", tables, "--range", "width=4,8"), "ranges"),
        ((recipe, "--data", tables, "--folds", 4), "folds"),
        ((changed, "--data", tables), "recipe"),
    ):
        folds = () if part == "folds" else FEW
        assert chiasm("tune", *named, "--out", searched, *folds) == 2
        assert f"is a search with other {part}. Give what it was begun with" in one_line(capsys)
    assert (searched / "trials.csv").read_bytes() == before


# Several workers on one storage


ASKED = {"data": "these"}


@pytest.fixture
def worker(tmp_path):
    """A function that opens the same study as another worker would, on this machine or on another one."""
    opened = []

    def open_one(machine: str = "this") -> Study:
        url = file_url(tmp_path / "search.db")
        study = Study(url, name="search", asked=ASKED, maximize=True, workers=tmp_path / machine)
        opened.append(study.__enter__())
        return study

    yield open_one
    for study in opened:
        study.__exit__()


def score(trial) -> float:
    return trial.suggest_float("rate", 0, 1)


def forbidden(_) -> float:
    raise AssertionError("worked on twice")


def test_workers_share_the_slots_and_none_is_worked_on_twice(worker):
    one, other = worker(), worker()

    def while_the_other_works(trial) -> float:
        assert other.free_slot(2) == 1
        # Too late: this slot is taken.
        other.run(0, forbidden, seed=0, fixed={})
        other.run(1, score, seed=0, fixed={})
        assert other.free_slot(2) is None
        assert not other.is_done(2)
        return score(trial)

    one.run(one.free_slot(2), while_the_other_works, seed=0, fixed={})
    assert other.is_done(2)
    first, second = (trial.params["rate"] for trial in other.standing.values())
    assert first != second


def test_a_worker_that_gives_no_sign_of_life_is_taken_for_dead_and_its_slot_is_free(worker, monkeypatch):
    one, other = worker("this"), worker("far")
    drawn = []

    def asleep(trial) -> float:
        drawn.append(score(trial))
        assert other.free_slot(1) is None
        monkeypatch.setattr(studies, "GRACE_S", -1)
        slot = other.free_slot(1)
        other.run(slot, lambda own: drawn.append(score(own)) or 0.5, seed=0, fixed={})
        trial.report(1.0, 1)
        raise AssertionError("it was given to another worker")

    one.run(0, asleep, seed=0, fixed={})
    # The slot's draws are the same, whoever works on it; what counts is what the living one says.
    assert drawn[0] == drawn[1]
    assert [trial.value for trial in one.standing.values()] == [0.5]


def test_a_trial_that_is_begun_gives_signs_of_life(worker, monkeypatch):
    one, other = worker("this"), worker("far")
    monkeypatch.setattr(studies, "BEAT_S", 0.02)
    beats = []

    def watched(_) -> float:
        while not beats or max(beats) < 2:
            time.sleep(0.02)
            beats.append(next(own.user_attrs["beat"] for own in other.trials))
        return 1.0

    one.run(0, watched, seed=0, fixed={})
    assert beats[-1] >= 2


def test_the_lock_of_a_dead_process_tells_its_trial_at_once(worker, tmp_path):
    one, other = worker(), worker()

    def killed(trial) -> float:
        # What is left of a process that was killed: its file, which nobody holds.
        lock = one._lock
        os.link(lock.lock_file, tmp_path / "kept")
        os.unlink(lock.lock_file)
        (tmp_path / "this" / f"{trial.user_attrs['worker']}.lock").touch()
        assert other.free_slot(1) == 0
        return 1.0

    one.run(0, killed, seed=0, fixed={})
    assert one.standing == {}


def test_settings_that_cannot_be_trained_are_a_result_but_not_the_recipes_own(recipe, tables, tmp_path, capsys):
    wild = ("--range", "learning_rate=0.01:1e30:log", "--trials", 3, *FEW)
    out = tmp_path / "tuned"
    assert chiasm("tune", recipe, "--data", tables, "--out", out, *wild) == 0
    table = trials(out)
    lost = table[table["end"] == "untrainable"]
    assert len(lost)
    assert lost["reason"].str.contains("not finite").all()
    assert "cannot be trained: The" in capsys.readouterr().out
    only = ("--range", "learning_rate=1e29:1e30", "--trials", 3, *FEW)
    assert chiasm("tune", recipe, "--data", tables, "--out", tmp_path / "lost", *only) == 2
    assert "not finite" in one_line(capsys)


# What cannot be


BAD = {
    "no trials": (["--trials", "0"], "trials is 0; expected a whole number of at least 1"),
    "one fold": (["--folds", "1"], "folds is 1; expected a whole number of at least 2"),
    "more folds than patients": (["--folds", "90"], "90 folds were asked"),
    "no such setting": (["--range", "depth=1:2"], "has no setting depth to search"),
    "nothing to search": (["--set", "width=8", "--set", "learning_rate=0.1"], "Nothing of the recipe"),
    "no URL": (["--storage", "search.db"], "--storage is no URL of a database"),
    "a port that is none": (["--storage", "postgresql://me@host:secret-word/db"], "--storage is no URL"),
    "no such database": (["--storage", "oracular://host/db"], "SQLAlchemy knows no database oracular"),
    "in memory": (["--storage", "sqlite://"], "is in memory, and would keep nothing"),
    "no folder for the file": (["--storage", "sqlite:////nowhere/at/all.db"], "cannot be opened: unable to open"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_before_anything_is_tried(case, recipe, tables, tmp_path, capsys):
    words, message = BAD[case]
    assert chiasm("tune", recipe, "--data", tables, "--out", tmp_path / "tuned", *words) == 2
    told = one_line(capsys)
    assert message in told
    assert "secret-word" not in told
    assert not list(tmp_path.glob("tuned/*"))


def test_a_folder_that_holds_something_else_or_is_a_file_is_refused(recipe, tables, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out, message in (
        (tables, "exists and is no search of chiasm"),
        (tmp_path / "file", "is a file. Give a folder"),
        (tmp_path / "file" / "deeper", "Check the path, its permissions"),
    ):
        assert chiasm("tune", recipe, "--data", tables, "--out", out) == 2
        assert message in one_line(capsys)


def test_a_database_that_does_not_answer_is_told_without_the_password(recipe, tables, tmp_path, capsys):
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install chiasm[database]")
    url = "postgresql+psycopg://me:secret-word%7B0%7D@127.0.0.1:1/search?password=secret-word"
    assert chiasm("tune", recipe, "--data", tables, "--out", tmp_path / "tuned", "--storage", url) == 2
    told = one_line(capsys)
    assert "The storage postgresql+psycopg://me:***@127.0.0.1:1/search cannot be opened" in told
    assert "secret-word" not in told


def test_a_driver_that_is_not_installed_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"driver of postgresql\+psycopg is not installed\. Run pip install \"chiasm"):
        open_storage("postgresql+psycopg://me@host/db")


def test_a_storage_of_another_version_of_optuna_is_refused(tmp_path):
    url = file_url(tmp_path / "old.db")
    open_storage(url)
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    connection.close()
    with pytest.raises(InputError, match="was made by another version of Optuna"):
        open_storage(url)


def test_a_storage_that_goes_away_is_told_and_what_is_kept(worker, tmp_path):
    one = worker()
    with sqlite3.connect(tmp_path / "search.db") as connection:
        connection.execute("DROP TABLE trials")
    connection.close()
    with pytest.raises(InputError, match=r"search\.db went away or cannot be written .* the same command goes on"):
        one.free_slot(1)


def test_a_launcher_of_several_processes_is_refused(recipe, tables, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert chiasm("tune", recipe, "--data", tables, "--out", tmp_path / "tuned") == 2
    assert "give --jobs, and leave the launcher out" in one_line(capsys)
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert chiasm("tune", recipe, "--data", tables, "--out", tmp_path / "tuned") == 2
    assert "WORLD_SIZE is 'two' in the environment; expected a whole number" in one_line(capsys)
